# Thin: the work is done by tools/bootstrap.py (the environment) and by the programs named below.
# `PYTHON=python3.13 make test` tests another Python, in an environment of its own.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do command -v $$p && break; done)

# Brings the environment up to date (0.1 s when it is), then runs a command in it.
IN_VENV = "$(or $(PYTHON),python3)" tools/bootstrap.py
LOCK = $(IN_VENV) -- env UV_CUSTOM_COMPILE_COMMAND="make lock" \
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11

.DEFAULT_GOAL := help
.PHONY: help run test lint bench bench-stt bench-endpoint prove lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/  make \1\t\2/p' Makefile

run: ## the server, in development mode, on 127.0.0.1:8000
	@export APP_ENV="$${APP_ENV:-development}"; exec $(IN_VENV) -- malgil serve

test: lint ## lint, types, and all tests
	@exec $(IN_VENV) --dev -- pytest -n auto --maxprocesses 8 --dist worksteal

lint: ## ruff and mypy
	@exec $(IN_VENV) --dev -- ruff check .
	@exec $(IN_VENV) --dev -- ruff format --check .
	@exec $(IN_VENV) --dev -- mypy

bench: ## microseconds a frame, milliseconds to the first audio
	@exec $(IN_VENV) --dev -- python -m bench

bench-stt: ## recognisers side by side, windows, batches, model sizes (4 minutes)
	@exec $(IN_VENV) --dev -- python -m bench.stt

bench-endpoint: ## how soon an endpoint comes, and how often too soon; SPEECH_DIR adds recordings
	@exec $(IN_VENV) --dev -- python -m bench.endpoint

prove: ## removes each cure in turn and shows that its test turns red
	@exec $(IN_VENV) --dev -- python tools/prove.py

lock: ## writes the locks anew after a change of requirements*.txt or pyproject.toml
	@$(LOCK) --output-file requirements.lock requirements.txt requirements-nodeps.txt
	@$(LOCK) --output-file requirements-dev.lock --constraints requirements.lock --group dev \
		requirements.txt requirements-nodeps.txt
	@$(LOCK) --output-file requirements-bootstrap.lock --group bootstrap
	@for extra in cuda google; do $(IN_VENV) -- python -c 'import sys, tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")' $$extra \
		| $(LOCK) --output-file requirements-$$extra.lock --constraints requirements.lock - || exit 1; done

clean: ## removes the environments and the caches; data/ stays
	@rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis backend/malgil.egg-info
	@find backend bench tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
