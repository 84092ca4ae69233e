"""Malgil: a self-hosted backend that answers the telephone and talks with the caller."""

import os

# Both are read when the libraries are first imported, so they stand before every import of ours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its own thread spins through every decode and doubles its CPU time
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reports to its maker unless told not to
