"""A phone in software: the caller's and Twilio's side of a call, for `malgil simulate`, the tests and the benches."""
