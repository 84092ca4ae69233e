"""The command line: what it prints, and the codes it exits with."""

import pytest

from app import cli
from app.errors import EX_CONFIG, ConfigError, TtsError
from tests.servers import free_port, process


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["serve", "--fast"], ["asr", "x"], ["simulate", "--calls", "many"]]
)
def test_what_cannot_be_understood_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "usage: malgil" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["asr", "--help"], ["simulate", "--help"]])
def test_help_is_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 0
    assert "malgil" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("PORT: taken"), EX_CONFIG, "malgil: PORT: taken\n"),
        (TtsError("mute", provider="espeak", kind="down", retryable=False), 1, "malgil: mute\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_every_end_has_its_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(cli, "load_settings", broken)
    monkeypatch.setattr(cli, "load_asr_settings", broken)
    for program in ("serve", "asr"):
        assert cli.main([program]) == code
        assert capsys.readouterr().err == line


async def test_simulate_says_what_to_do_when_nobody_answers() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with process("simulate", "--url", url, "--say", "안녕하세요.") as phone:
        assert await phone.exit_code() == 1
        assert "make run" in phone.output
        assert url in phone.output
        assert "Traceback" not in phone.output


async def test_simulate_refuses_an_address_that_is_none() -> None:
    with process("simulate", "--url", "example.test") as phone:
        assert await phone.exit_code() == EX_CONFIG
        assert phone.output.startswith("malgil: --url: must be http:// or https://, a host")


async def test_simulate_refuses_a_port_that_is_none() -> None:
    with process("simulate", "--url", "http://127.0.0.1:99999") as phone:
        assert await phone.exit_code() == EX_CONFIG
        assert "Traceback" not in phone.output
