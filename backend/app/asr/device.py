"""Where to decode: DEVICE and COMPUTE_TYPE, `auto` resolved to what this machine can really do.

A GPU that CTranslate2 sees is not yet one that it can use: it loads `libcublas.so.12` at the first decode, and
finds it on the loader's path only. The package that `malgil[cuda]` brings lies elsewhere, so it is loaded here
first; the loader then knows it by its name.
"""

import ctypes
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.errors import ConfigError

CUBLAS = "libcublas.so.12"
NO_CUBLAS = (
    f"a GPU is there, but {CUBLAS} of CUDA 12 is not: pip install 'malgil[cuda]', then start again to use the GPU"
)
PREFERRED = {"cuda": ("int8_float16", "int8", "float32"), "cpu": ("int8", "float32")}


@dataclass(frozen=True, slots=True)
class Device:
    """`note` says what kept `auto` from a GPU that is there; else it is empty."""

    name: Literal["cpu", "cuda"]
    compute_type: str
    note: str = ""


def choose_device(device: Literal["auto", "cpu", "cuda"], compute_type: str) -> Device:
    """Blocking for a moment: imports CTranslate2 and may load cuBLAS. Raises ConfigError for what cannot be had."""
    trouble = "" if device == "cpu" else gpu_trouble()
    if device == "cuda" and trouble:
        raise ConfigError(f"DEVICE: cuda cannot be used; {trouble}; or set DEVICE=cpu")
    if device == "cpu" or trouble:
        note = trouble if trouble == NO_CUBLAS else ""
        return Device("cpu", _compute_type("cpu", compute_type), note)
    return Device("cuda", _compute_type("cuda", compute_type))


def gpu_trouble() -> str:
    """Why no GPU can be used, in words; empty if one can."""
    import ctranslate2

    if not ctranslate2.get_cuda_device_count():
        return "CTranslate2 sees no NVIDIA GPU with a driver for CUDA 12"
    return "" if find_cublas() else NO_CUBLAS


def find_cublas(library: str = CUBLAS) -> bool:
    if _loads(library):
        return True
    package = importlib.util.find_spec("nvidia")
    for root in (package.submodule_search_locations or ()) if package else ():
        folder = Path(root) / "cublas" / "lib"
        if _loads(str(folder / "libcublasLt.so.12")) and _loads(str(folder / library)):
            return True
    return False


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _compute_type(device: Literal["cpu", "cuda"], wanted: str) -> str:
    import ctranslate2

    supported: set[str] = ctranslate2.get_supported_compute_types(device)
    if wanted == "auto":
        return next((kind for kind in PREFERRED[device] if kind in supported), "default")
    if wanted not in supported:
        raise ConfigError(
            f"COMPUTE_TYPE: not possible on {device}; this machine can do {', '.join(sorted(supported))}, or auto"
        )
    return wanted
