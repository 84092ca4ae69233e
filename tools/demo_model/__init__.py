"""How the demo model in `backend/app/asr/demo_model` is made. See `__main__.py` and docs/demo-model.md."""
