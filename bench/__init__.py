"""How much the server costs and how fast it answers, measured from the telephone's side. See README.md."""
