"""Our own recogniser: models, engine, device. Knows nothing of calls."""
