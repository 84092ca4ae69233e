import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest

from app.errors import ConfigError, SttError
from app.services.ai_call.rtzr_stt_service import (
    LONGEST_MESSAGE,
    Result,
    RtzrOptions,
    RtzrSttService,
    parse_keywords,
    read_message,
)
from tests.emulators.rtzr import GARBAGE, AuthFault, Fault, RtzrEmulator, query_mistakes
from tests.servers import until

SECRETS = ("test-id", "test-secret", "token-")


@pytest.fixture
async def emulator() -> AsyncIterator[RtzrEmulator]:
    async with RtzrEmulator() as emulator:
        yield emulator
    assert emulator.violations == []


@pytest.fixture
async def service(emulator: RtzrEmulator) -> AsyncIterator[RtzrSttService]:
    service = RtzrSttService(options(emulator))
    yield service
    await service.aclose()


def options(emulator: RtzrEmulator) -> RtzrOptions:
    return RtzrOptions(
        client_id=emulator.client_id,
        client_secret=emulator.client_secret,
        api_base=emulator.url,
        authenticate_s=0.3,
        connect_s=0.6,
    )


async def connected(service: RtzrSttService, language: str = "ko") -> None:
    """A stream that is opened and closed as a call does it."""
    connection = await service.connect(8000, language)
    await connection.send("EOS")
    await connection.wait_closed()


async def failure(service: RtzrSttService) -> SttError:
    with pytest.raises(SttError) as raised:
        await service.connect(8000, "ko")
    assert raised.value.provider == "rtzr"
    assert not any(secret in f"{raised.value}{raised.value.__cause__}" for secret in SECRETS)
    return raised.value


# ---------------------------------------------------------------- keywords


def test_keywords_are_read() -> None:
    assert parse_keywords(" 말길, 예약 변경:2.50 ,영업시간:-5,,") == ("말길", "예약 변경:2.5", "영업시간:-5")
    assert parse_keywords("") == parse_keywords(" , ") == ()
    assert len(parse_keywords(",".join(["가" * 20] * 100))) == 100


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (",".join(["말"] * 101), "101 keywords"),
        ("말길,malgil", "number 2: write it as it sounds"),
        ("말길:", "number 1: its score"),
        ("말길:high", "its score"),
        ("말길:5.1", "its score"),
        ("말길:-6", "its score"),
        ("말길:nan", "its score"),
        ("말길:1:2", "its score"),
        (":2", "write it as it sounds"),
        ("가" * 21, "longer than 20"),
        ("3호점", "write it as it sounds"),
    ],
)
def test_a_keyword_that_the_vendor_would_refuse_is_a_setting_to_correct(value: str, says: str) -> None:
    with pytest.raises(ConfigError, match="RTZR_KEYWORDS") as raised:
        parse_keywords(value)
    assert says in str(raised.value)
    assert "malgil" not in str(raised.value)


# ---------------------------------------------------------------- the handshake


async def test_all_settings_are_query_parameters(emulator: RtzrEmulator) -> None:
    service = RtzrSttService(replace(options(emulator), keywords=parse_keywords("말길,예약 변경:-1.5"), epd_s=0.7))
    await connected(service)
    await service.aclose()
    assert emulator.streams[0].query == {
        "sample_rate": "8000",
        "encoding": "LINEAR16",
        "model_name": "sommers_ko",
        "domain": "CALL",
        "language": "ko",
        "use_itn": "true",
        "use_disfluency_filter": "true",
        "use_profanity_filter": "false",
        "use_punctuation": "true",
        "epd_time": "0.7",
        "keywords": "말길,예약 변경:-1.5",
    }


@pytest.mark.parametrize(
    ("language", "spoken", "boosted"), [("en", "en", False), ("auto", "ko", True)], ids=["english", "auto"]
)
async def test_other_languages_are_whispers(emulator: RtzrEmulator, language: str, spoken: str, boosted: bool) -> None:
    service = RtzrSttService(replace(options(emulator), keywords=("말길",)))
    await connected(service, language)
    await service.aclose()
    query = emulator.streams[0].query
    assert (query["model_name"], query["language"], "keywords" in query) == ("whisper", spoken, boosted)


@pytest.mark.parametrize(
    ("fault", "kind", "retryable", "says"),
    [
        ("throttled", "throttled", False, "429 A0001"),
        ("bad_request", "rejected", False, "RTZR_KEYWORDS"),
        ("server_error", "unavailable", True, "500 E500"),
        ("drop", "reset", True, "handshake"),
        ("not_http", "reset", True, "handshake"),
        ("hang", "timeout", True, "RTZR_API_BASE"),
        ("revoked", "auth", False, "RTZR_CLIENT_ID"),
    ],
)
async def test_a_refused_stream_says_why(
    emulator: RtzrEmulator, service: RtzrSttService, fault: Fault, kind: str, retryable: bool, says: str
) -> None:
    emulator.fault = fault
    error = await failure(service)
    assert (error.kind, error.retryable) == (kind, retryable)
    assert says in str(error)


async def test_one_stream_more_than_the_plan_allows_is_throttled(
    emulator: RtzrEmulator, service: RtzrSttService
) -> None:
    emulator.max_streams = 1
    connection = await service.connect(8000, "ko")
    assert (await failure(service)).kind == "throttled"
    await connection.send("EOS")
    await connection.wait_closed()
    await until(lambda: not emulator.live)
    await connected(service)


async def test_a_url_that_is_too_long_names_the_keywords(emulator: RtzrEmulator) -> None:
    service = RtzrSttService(replace(options(emulator), keywords=parse_keywords(",".join(["가나다라마" * 4] * 100))))
    error = await failure(service)
    await service.aclose()
    assert error.kind == "rejected"
    assert "RTZR_KEYWORDS" in str(error)


async def test_nobody_at_the_address(emulator: RtzrEmulator) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        service = RtzrSttService(replace(options(emulator), api_base=f"http://127.0.0.1:{unused.getsockname()[1]}"))
        error = await failure(service)
        await service.aclose()
    assert (error.kind, error.retryable) == ("connect", True)


async def test_nobody_at_the_address_any_more(emulator: RtzrEmulator, service: RtzrSttService) -> None:
    await connected(service)
    await emulator.kill()
    assert (await failure(service)).kind == "connect"
    await emulator.listen()
    await connected(service)


# ---------------------------------------------------------------- the token


async def test_calls_share_one_token(emulator: RtzrEmulator, service: RtzrSttService) -> None:
    emulator.authenticate_s = 0.05
    await asyncio.gather(*(connected(service) for _ in range(5)))
    await connected(service)
    assert emulator.authentications == 1


async def test_calls_share_a_failure(emulator: RtzrEmulator, service: RtzrSttService) -> None:
    """Else each would wait for its own, one after the other."""
    emulator.authenticate_s = 0.05
    emulator.auth_faults = deque(["server_error"])
    errors = await asyncio.gather(*(failure(service) for _ in range(5)))
    assert {error.kind for error in errors} == {"unavailable"}
    assert emulator.authentications == 1
    await connected(service)


async def test_a_call_that_hangs_up_leaves_the_token_to_the_others(
    emulator: RtzrEmulator, service: RtzrSttService
) -> None:
    emulator.authenticate_s = 0.1
    async with asyncio.TaskGroup() as group:
        first = group.create_task(connected(service))
        second = group.create_task(connected(service))
        await until(lambda: emulator.authentications == 1)
        first.cancel()
    assert first.cancelled()
    assert second.done()
    assert emulator.authentications == 2


@pytest.mark.parametrize("ahead_s", [-86_400, 0, 86_400], ids=["behind", "right", "ahead"])
async def test_a_token_is_renewed_at_four_fifths_of_its_life(
    emulator: RtzrEmulator, service: RtzrSttService, ahead_s: float
) -> None:
    """Whatever the clocks say; a stream that runs does not notice."""
    emulator.ahead_s = ahead_s
    emulator.token_life_s = 1
    running = await service.connect(8000, "ko")
    await connected(service)
    assert emulator.authentications == 1
    await asyncio.sleep(0.85)
    await connected(service)
    assert emulator.authentications == 2
    await asyncio.sleep(0.3)
    assert emulator.live == 1
    await running.send("EOS")
    await running.wait_closed()
    assert running.close_code == 1000


async def test_a_renewal_that_fails_costs_nothing_while_the_old_token_serves(
    emulator: RtzrEmulator, service: RtzrSttService, log_lines: list[Any]
) -> None:
    emulator.token_life_s = 2
    await connected(service)
    await asyncio.sleep(1.65)
    emulator.auth_fault = "server_error"
    await connected(service)
    await connected(service)
    assert emulator.authentications == 2
    assert [line["kind"] for line in log_lines] == ["unavailable"]


async def test_a_token_refused_before_its_time_is_replaced_once(
    emulator: RtzrEmulator, service: RtzrSttService
) -> None:
    await connected(service)
    emulator.faults = deque(["revoked"])
    await connected(service)
    assert emulator.authentications == 2
    emulator.faults = deque(["revoked", "throttled"])
    assert (await failure(service)).kind == "throttled"
    assert emulator.authentications == 3


async def test_calls_that_are_refused_at_once_share_the_new_token(
    emulator: RtzrEmulator, service: RtzrSttService
) -> None:
    emulator.authenticate_s = 0.05
    await connected(service)
    emulator.faults = deque(["revoked"] * 4)
    await asyncio.gather(*(connected(service) for _ in range(4)))
    assert emulator.authentications == 2


@pytest.mark.parametrize(
    ("fault", "kind", "retryable", "says"),
    [
        ("bad_credentials", "auth", False, "RTZR_CLIENT_ID and RTZR_CLIENT_SECRET"),
        ("bad_request", "auth", False, "RTZR_CLIENT_ID and RTZR_CLIENT_SECRET"),
        ("server_error", "unavailable", True, "500 E500"),
        ("throttled", "throttled", False, "429 A0001"),
        ("html", "format", False, "RTZR_API_BASE"),
        ("no_token", "format", False, "RTZR_API_BASE"),
        ("hang", "timeout", True, "RTZR_API_BASE"),
        ("drop", "reset", True, "broke off"),
    ],
)
async def test_check_names_what_is_wrong(
    emulator: RtzrEmulator, service: RtzrSttService, fault: AuthFault, kind: str, retryable: bool, says: str
) -> None:
    emulator.auth_fault = fault
    with pytest.raises(SttError, match=says) as raised:
        await service.check()
    assert (raised.value.kind, raised.value.retryable) == (kind, retryable)
    assert (await failure(service)).kind == kind


async def test_a_wrong_secret_is_found_by_the_check(emulator: RtzrEmulator) -> None:
    service = RtzrSttService(replace(options(emulator), client_secret="another"))
    with pytest.raises(SttError, match="401 H0002: see RTZR_CLIENT_ID") as raised:
        await service.check()
    await service.aclose()
    assert "another" not in str(raised.value)


async def test_a_wrong_address_is_found_by_the_check(emulator: RtzrEmulator) -> None:
    service = RtzrSttService(replace(options(emulator), api_base=f"{emulator.url}/v2"))
    with pytest.raises(SttError, match="404 H0004: see RTZR_API_BASE"):
        await service.check()
    await service.aclose()
    assert emulator.violations.pop() == "POST /v2/v1/authenticate"


async def test_a_check_leaves_a_fresh_token(emulator: RtzrEmulator, service: RtzrSttService) -> None:
    await service.check()
    await service.check()
    await connected(service)
    assert emulator.authentications == 2


async def test_no_secret_is_shown(emulator: RtzrEmulator, service: RtzrSttService, log_lines: list[Any]) -> None:
    await connected(service)
    emulator.fault = "revoked"
    await failure(service)
    shown = f"{service.options!r} {vars(service)!r} {log_lines!r}"
    assert not any(secret in shown for secret in SECRETS)


# ---------------------------------------------------------------- messages


def test_a_final_is_read_whole() -> None:
    text = (
        '{"seq": 3, "start_at": 120, "duration": 1500, "final": true, "alternatives": [{"text": " 안녕하세요 ", '
        '"confidence": 0.95, "words": [{"text": "안녕하세요|", "start_at": 0, "duration": 400}]}]}'
    )
    assert read_message(text) == Result(3, True, "안녕하세요", 120, 1500, 0.95)


@pytest.mark.parametrize(
    "rest",
    [
        '"alternatives": []',
        '"alternatives": null',
        '"start_at": "x"',
        '"alternatives": [{"text": null}]',
        '"error": ""',
    ],
)
def test_what_is_missing_is_empty(rest: str) -> None:
    assert read_message(f'{{"seq": 0, "final": true, {rest}}}') == Result(0, True, "", 0, 0, None)


@pytest.mark.parametrize("number", ["NaN", "-1", "1e300", "1" * 400, "true"])
def test_numbers_that_mean_nothing_do_no_harm(number: str) -> None:
    result = read_message(f'{{"seq": 0, "final": true, "start_at": {number}, "duration": {number}}}')
    assert result is not None
    assert result.start_ms in (0, 1)


@pytest.mark.parametrize(
    "message",
    [
        *GARBAGE,
        b"\x00\x01",
        "null",
        '{"seq": true, "final": true}',
        '{"seq": -1, "final": true}',
        '{"final": true}',
        '{"seq": 0}',
        '{"seq": 0, "final": true, "alternatives": [{"text": "' + "x" * LONGEST_MESSAGE + '"}]}',
    ],
)
def test_nonsense_is_no_result(message: str | bytes) -> None:
    assert read_message(message) is None


@pytest.mark.parametrize(
    ("message", "kind", "retryable"),
    [
        ('{"error": "words of a caller"}', "unavailable", True),
        ('{"type": "error", "message": "words of a caller"}', "unavailable", True),
        ('{"type": "error", "code": "A0001", "message": "words of a caller"}', "throttled", False),
        ('{"error": {"code": "H0002"}}', "auth", False),
    ],
)
def test_both_shapes_of_an_error_are_known(message: str, kind: str, retryable: bool) -> None:
    with pytest.raises(SttError) as raised:
        read_message(message)
    assert (raised.value.kind, raised.value.retryable) == (kind, retryable)
    assert "words" not in str(raised.value)


# ---------------------------------------------------------------- the emulator is strict

GOOD = {"sample_rate": "8000", "encoding": "LINEAR16", "epd_time": "0.5", "language": "ko"}


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({}, None),
        ({"epd_time": None}, "query field epd_time is missing"),
        ({"sample_rate": None}, "query field sample_rate is missing"),
        ({"sample_rate": "4000"}, "sample_rate"),
        ({"encoding": "MULAW"}, "encoding"),
        ({"model_name": "sommers_en"}, "unknown model_name"),
        ({"language": "en"}, "the language en with sommers_ko"),
        ({"domain": "GENERAL"}, "domain"),
        ({"use_itn": "True"}, "use_itn is not a boolean"),
        ({"epd_time": "long"}, "epd_time"),
        ({"punctuation": "true"}, "unknown query field punctuation"),
        ({"keywords": "abc"}, "a keyword"),
        ({"keywords": "말길:9"}, "a keyword"),
        ({"keywords": "말길", "model_name": "whisper", "language": "en"}, "keywords with whisper in en"),
    ],
)
def test_the_emulator_sees_wrong_settings(changes: dict[str, str | None], mistake: str | None) -> None:
    query = urlencode({name: value for name, value in (GOOD | changes).items() if value is not None})
    found = list(query_mistakes(query))
    assert found == [] if mistake is None else len(found) == 1 and mistake in found[0]
