"""DEVICE and COMPUTE_TYPE on this machine, and on one where a GPU is seen but its library is missing."""

import ctypes
from pathlib import Path

import ctranslate2
import pytest

from app.asr.device import CUBLAS, NO_CUBLAS, Device, choose_device, find_cublas
from app.asr.recogniser import RecogniserOptions
from app.asr.worker_child import Load, load_recogniser
from app.errors import ConfigError


def test_a_cpu_decodes_in_int8() -> None:
    assert choose_device("cpu", "auto") == Device("cpu", "int8")
    assert choose_device("cpu", "float32") == Device("cpu", "float32")


def test_an_impossible_compute_type_is_named_with_the_possible_ones() -> None:
    with pytest.raises(ConfigError, match=r"COMPUTE_TYPE: not possible on cpu; .*int8"):
        choose_device("cpu", "int8_float16")


def test_a_library_that_is_not_there_is_not_found() -> None:
    assert not find_cublas("libcublas.so.0")


@pytest.fixture
def _a_gpu_without_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    # what CTranslate2 sees is the machine's, so the machine is what is played here
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 1)
    monkeypatch.setattr(ctypes, "CDLL", _no_library)


def _no_library(name: str, mode: int = 0) -> None:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.usefixtures("_a_gpu_without_cublas")
def test_a_gpu_that_cannot_be_used_is_passed_over_and_named() -> None:
    assert choose_device("auto", "auto") == Device("cpu", "int8", NO_CUBLAS)
    with pytest.raises(ConfigError, match=r"DEVICE: cuda .*libcublas\.so\.12.* pip install 'malgil\[cuda\]'"):
        choose_device("cuda", "auto")


def test_no_gpu_at_all_is_no_trouble_unless_one_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 0)
    assert choose_device("auto", "auto") == Device("cpu", "int8")
    with pytest.raises(ConfigError, match="DEVICE: cuda cannot be used; CTranslate2 sees no NVIDIA GPU"):
        choose_device("cuda", "auto")


def test_a_usable_gpu_decodes_in_int8_and_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 1)
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda kind: {"float32", "int8", "int8_float16"})
    monkeypatch.setattr(ctypes, "CDLL", lambda name, mode=0: None)
    assert choose_device("auto", "auto") == Device("cuda", "int8_float16")


def test_the_models_own_process_loads_cublas_for_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def load(name: str, mode: int = 0) -> None:
        asked.append(name)
        assert mode == ctypes.RTLD_GLOBAL

    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(ConfigError, match="not a complete faster-whisper model"):
        load_recogniser(Load(str(tmp_path), "none", "cuda", "int8", 1, RecogniserOptions()))
    assert asked == [CUBLAS]
