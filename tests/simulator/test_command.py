"""`malgil simulate`, as a person uses it: words in, words and an exit code out."""

import argparse
import socket
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.errors import ConfigError
from app.simulator.command import add_arguments, run
from tests.simulator.served import Served


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, and an environment without keys."""
    monkeypatch.chdir(tmp_path)
    for name in ("TWILIO_AUTH_TOKEN", "TWILIO_ACCOUNT_SID", "ADMIN_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def beep(tmp_path: Path) -> str:
    """A short utterance as a wav file."""
    path = tmp_path / "beep.wav"
    samples = (8000 * np.sin(np.arange(800) / 3)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    return str(path)


Output = Callable[[], str]


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    return lambda: capsys.readouterr().out


def test_say_and_wav_keep_their_order() -> None:
    parsed = options("--say", "one", "--wav", "two.wav", "--say", "three")

    assert parsed.spoken == ["one", Path("two.wav"), "three"]
    assert options().spoken == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--calls", "2", "--record", "x.wav"),
        ("--url", "127.0.0.1:8000"),
        ("--stream-url", "http://127.0.0.1/stream"),
    ],
)
def test_wrong_options_are_named(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^--"):
        run(options(*arguments))


@pytest.mark.parametrize("arguments", [("--barge-in", "0"), ("--calls", "-1"), ("--hang-up-at", "nan")])
def test_numbers_must_be_positive(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        options(*arguments)


def test_a_server_that_is_not_running(beep: str, output: Output) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"

    assert run(options("--url", url, "--wav", beep)) == 1
    assert "make run" in output()


def test_a_call_is_printed_and_recorded(beep: str, output: Output, tmp_path: Path) -> None:
    with Served() as server:
        assert run(options("--url", server.url, "--wav", beep)) == 0

    printed = output()
    assert "said        beep.wav" in printed
    assert "recognised  words that were recognised" in printed
    assert "answered    words that were answered" in printed
    assert "greeting    hello" in printed
    assert "ms after the end of speech" in printed
    assert "Ended by the caller" in printed
    with wave.open(str(tmp_path / "malgil-call.wav")) as file:
        tracks = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    assert np.abs(tracks).max(axis=0).min() > 4000, "both sides can be heard"


def test_an_admin_key_is_asked_for_when_it_is_needed(
    beep: str, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Served(admin_key="k" * 32) as server:
        assert run(options("--url", server.url, "--wav", beep, "--record", "one.wav")) == 0
        assert "set ADMIN_API_KEY" in output()
        assert Path("one.wav").exists()
        monkeypatch.setenv("ADMIN_API_KEY", "k" * 32)
        assert run(options("--url", server.url, "--wav", beep)) == 0

    assert "words that were recognised" in output()


def test_a_signature_that_does_not_match(beep: str, output: Output) -> None:
    with Served(token="the server's") as server:
        assert run(options("--url", server.url, "--wav", beep, "--auth-token", "another")) == 1
        assert "TWILIO_AUTH_TOKEN" in output()
        assert run(options("--url", server.url, "--wav", beep, "--auth-token", "the server's")) == 0


def test_a_server_that_breaks_the_protocol(beep: str, output: Output) -> None:
    with Served(breach=True) as server:
        assert run(options("--url", server.url, "--wav", beep)) == 1

    assert "Protocol broken by the server, 1 times: 31950 binary" in output()


def test_a_media_stream_of_anybody(beep: str, output: Output) -> None:
    with Served() as server:
        assert run(options("--stream-url", server.stream_url, "--wav", beep, "--hang-up-at", "0.3")) == 0

    printed = output()
    assert "TwiML: none" in printed
    assert "recognised" not in printed


@pytest.mark.parametrize(("code", "words"), [(4401, "use --url"), (1011, "log says why")])
def test_a_stream_that_ends_abnormally(code: int, words: str, beep: str, output: Output) -> None:
    with Served(close_code=code) as server:
        assert run(options("--stream-url", server.stream_url, "--wav", beep)) == 1

    assert words in output()


def test_many_calls_are_summed_up(beep: str, output: Output, tmp_path: Path) -> None:
    with Served() as server:
        assert run(options("--stream-url", server.stream_url, "--wav", beep, "--calls", "3")) == 0

    printed = output()
    assert "calls        3, of them 3 without fault" in printed
    assert "turns        3, of them 3 answered" in printed
    assert "first audio  p50" in printed
    assert not list(tmp_path.glob("*call.wav"))


def test_a_recording_that_cannot_be_written(beep: str) -> None:
    with Served() as server, pytest.raises(ConfigError, match="--record"):
        run(options("--stream-url", server.stream_url, "--wav", beep, "--hang-up-at", "0.1", "--record", "no/x.wav"))


def test_texts_are_spoken(output: Output) -> None:
    with Served() as server:
        assert run(options("--stream-url", server.stream_url, "--say", "네.", "--barge-in", "100")) == 0

    assert "said        네." in output()
