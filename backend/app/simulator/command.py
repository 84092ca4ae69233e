"""`malgil simulate`: call a server with the software phone and print what came of it."""

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.errors import ConfigError
from app.simulator.clip import Clip
from app.simulator.options import DEFAULT_PARTIES, Parties, PhoneOptions
from app.simulator.phone import Phone
from app.simulator.recording import write_stereo
from app.simulator.report import CallReport, Refusal, Turn
from app.simulator.script import conversation
from app.simulator.voice import read_wav, speak

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_RECORDING = Path("malgil-call.wav")
DEFAULT_WORDS = {
    "ko": ("안녕하세요.", "영업시간이 어떻게 되나요?", "감사합니다."),
    "en": ("Hello.", "What are your opening hours?", "Thank you."),
}
RECORD_S = 6.0
"""A server has 5 s to write a call's record."""
_SAME_UTTERANCE_MS = 2_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run, spoken=[])
    parser.add_argument("--url", default=DEFAULT_URL, help=f"the server, without a path (default {DEFAULT_URL})")
    parser.add_argument(
        "--stream-url", default="", metavar="WS_URL", help="dial this media stream at once, without webhooks"
    )
    parser.add_argument("--say", action="append", dest="spoken", metavar="TEXT", help="say this, spoken by espeak")
    parser.add_argument(
        "--wav", action="append", dest="spoken", type=Path, metavar="FILE", help="say what is in this PCM wav file"
    )
    parser.add_argument(
        "--barge-in",
        type=_positive(int),
        metavar="MS",
        help="say each utterance so long after the bot began to speak, instead of when it has finished",
    )
    parser.add_argument("--hang-up-at", type=_positive(float), metavar="S", help="hang up after so many seconds")
    parser.add_argument("--calls", type=_positive(int), default=1, metavar="N", help="so many phones at once")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help=f"stereo wav, caller left, bot right (default {DEFAULT_RECORDING})"
    )
    parser.add_argument("--language", choices=("ko", "en"), default="ko", help="of a text that does not show its own")
    parser.add_argument("--auth-token", help="signs as Twilio does (default: the environment's TWILIO_AUTH_TOKEN)")
    parser.add_argument("--account-sid", help="default: the environment's TWILIO_ACCOUNT_SID, else one of zeros")
    parser.add_argument("--from", dest="caller", default=DEFAULT_PARTIES.caller, metavar="NUMBER")
    parser.add_argument("--to", dest="callee", default=DEFAULT_PARTIES.callee, metavar="NUMBER")


def run(options: argparse.Namespace) -> int:
    """0 if all was well, 1 if the server refused, broke the protocol or left a call abnormally."""
    _check(options)
    return asyncio.run(_simulate(options))


def _check(options: argparse.Namespace) -> None:
    if options.calls > 1 and options.record:
        raise ConfigError("--record: only one call can be recorded; leave out --calls")
    _check_url("--url", options.url, ("http", "https"))
    if options.stream_url:
        _check_url("--stream-url", options.stream_url, ("ws", "wss"))


def _check_url(option: str, url: str, schemes: tuple[str, str]) -> None:
    try:
        parts = urlsplit(url)
        well = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        well = False
    if not well:
        raise ConfigError(
            f"{option}: must be {schemes[0]}:// or {schemes[1]}://, a host, and a port where it is not usual"
        )


async def _simulate(options: argparse.Namespace) -> int:
    clips = await _clips(options)
    phone = PhoneOptions(
        url=options.url,
        stream_url=options.stream_url,
        parties=Parties(
            options.account_sid or os.environ.get("TWILIO_ACCOUNT_SID") or DEFAULT_PARTIES.account_sid,
            options.auth_token or os.environ.get("TWILIO_AUTH_TOKEN", ""),
            options.caller,
            options.callee,
        ),
        hang_up_at_s=options.hang_up_at,
    )
    script = conversation(clips, options.barge_in)
    _print(f"Calling {options.stream_url or options.url} in real time …")
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(Phone(phone, script).call()) for _ in range(options.calls)]
    reports = [call.result() for call in calls]
    if len(reports) == 1:
        await _print_call(reports[0], options)
    else:
        _print_summary(reports)
    for refusal in {report.refusal for report in reports if report.refusal}:
        _print(f"\nThe server did not take the call: {refusal.why}\n{_advice(refusal, options)}")
    return 0 if all(report.ok for report in reports) else 1


async def _clips(options: argparse.Namespace) -> list[Clip]:
    """In the order of the command line."""
    spoken: Sequence[str | Path] = options.spoken or DEFAULT_WORDS[options.language]
    texts = [item for item in spoken if isinstance(item, str)]
    voiced = iter(await speak(texts, options.language) if texts else [])
    return [next(voiced) if isinstance(item, str) else read_wav(item) for item in spoken]


# ---------------------------------------------------------------- one call


async def _print_call(report: CallReport, options: argparse.Namespace) -> None:
    if not report.stream_sid:
        return
    exchanges, hint = await _exchanges(report, options)
    _print(f"Call {report.call_sid}")
    if warning := await _recogniser_note(options):
        _print(f"Note: {warning}.")
    if report.greeting_ms is not None:
        if exchanges and not exchanges[0]["user"]:
            _print(f"\n    greeting    {_answered(exchanges[0])}")
        _print(f"    first audio {report.greeting_ms:.0f} ms after the stream began")
    heard = _by_turn(report.turns, exchanges)
    for number, (turn, exchange) in enumerate(zip(report.turns, heard, strict=True), 1):
        _print_turn(number, turn, exchange, bool(exchanges))
    _print("")
    if hint:
        _print(hint)
    _print(f"Ended by the {report.ended_by}{_closed(report)}. TwiML: {', '.join(report.verbs) or 'none'}.")
    if report.ended_by == "bot" and report.close_code != 1000:
        _print(_after_abnormal_end(report.close_code, options))
    if report.underruns:
        _print(f"The bot's audio ran dry {report.underruns} times.")
    _print_violations([report])
    recording = options.record or DEFAULT_RECORDING
    try:
        write_stereo(recording, report.caller, report.bot)
    except OSError as error:
        raise ConfigError(f"--record: {recording} cannot be written ({error.strerror})") from error
    _print(f"Both sides, as heard (left caller, right bot): {recording}")


def _print_turn(number: int, turn: Turn, exchange: dict[str, Any] | None, known: bool) -> None:
    _print(f"\n{number:>2}  said        {turn.said}")
    if known:
        _print(f"    recognised  {exchange['user'] if exchange else '(no exchange of its own)'}")
        if exchange:
            _print(f"    answered    {_answered(exchange)}")
    if turn.answer_ms is None:
        _print("    first audio (no answer was heard)")
    else:
        _print(f"    first audio {turn.answer_ms:.0f} ms after the end of speech")
    if turn.interrupted:
        cleared = (
            "the bot did not stop" if turn.clear_ms is None else f"the bot was cut off after {turn.clear_ms:.0f} ms"
        )
        _print(f"    talked over the bot; {cleared}")


def _answered(exchange: dict[str, Any]) -> str:
    return f"{exchange['bot']}{' …' if exchange['interrupted'] else ''}"


def _closed(report: CallReport) -> str:
    if report.close_code is None:
        return ""
    return f" (close code {report.close_code}{': ' + report.close_reason if report.close_reason else ''})"


def _by_turn(turns: Sequence[Turn], exchanges: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """The server's exchange for each of our turns: the one whose speech ended at about the same time.

    Two utterances that the server took for one have one exchange, which goes to the later.
    """
    found: list[dict[str, Any] | None] = [None] * len(turns)
    spoken = [exchange for exchange in exchanges if exchange["user"]]
    for position, exchange in enumerate(spoken):
        ended = exchange["latency"]["speech_end_ms"]
        if ended is None:
            index = position if position < len(turns) else -1
        else:
            index = min(range(len(turns)), key=lambda at: abs(turns[at].end_ms - ended), default=-1)
            if index >= 0 and abs(turns[index].end_ms - ended) > _SAME_UTTERANCE_MS:
                index = -1
        if index >= 0:
            found[index] = exchange
    return found


async def _recogniser_note(options: argparse.Namespace) -> str:
    """What the server says of its recogniser: above all, that it hears with the demo model."""
    if options.stream_url:
        return ""
    async with httpx.AsyncClient(trust_env=False, timeout=5.0, headers=_admin()) as http:
        try:
            ready = (await http.get(f"{options.url.rstrip('/')}/ready")).json()
            return str(ready["in_use"]["stt"]["why"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            return ""  # another server, or no key for ours


def _admin() -> dict[str, str]:
    key = os.environ.get("ADMIN_API_KEY", "")
    return {"Authorization": f"Bearer {key}"} if key else {}


async def _exchanges(report: CallReport, options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """What the server recorded, and if there is nothing, a hint why."""
    if options.stream_url:
        return [], ""
    url = f"{options.url.rstrip('/')}/api/calls/{report.call_sid}"
    until = asyncio.get_running_loop().time() + RECORD_S
    async with httpx.AsyncClient(trust_env=False, timeout=5.0, headers=_admin()) as http:
        while True:
            try:
                answer = await http.get(url)
            except httpx.HTTPError as error:
                return [], f"The words are unknown: {url} gave no answer ({type(error).__name__})."
            if answer.status_code in (401, 403):
                return [], "The words are unknown: set ADMIN_API_KEY as the server has it, to see them."
            over = asyncio.get_running_loop().time() > until
            if answer.status_code == 200 and (over or answer.json().get("ended_at")):
                exchanges: list[dict[str, Any]] = answer.json()["exchanges"]
                return exchanges, "" if exchanges else "The server recorded no exchange."
            if over:
                return [], f"The words are unknown: {url} answered HTTP {answer.status_code}."
            await asyncio.sleep(0.1)


# ---------------------------------------------------------------- many calls


def _print_summary(reports: Sequence[CallReport]) -> None:
    turns = [turn for report in reports for turn in report.turns]
    answers = [turn.answer_ms for turn in turns if turn.answer_ms is not None]
    clears = [turn.clear_ms for turn in turns if turn.clear_ms is not None]
    greetings = [report.greeting_ms for report in reports if report.greeting_ms is not None]
    _print(f"calls        {len(reports)}, of them {sum(report.ok for report in reports)} without fault")
    _print(f"turns        {len(turns)}, of them {len(answers)} answered")
    for name, values in (("greeting", greetings), ("first audio", answers), ("cut off", clears)):
        if values:
            _print(f"{name:<12} p50 {statistics.median(values):.0f} ms, p95 {_p95(values):.0f} ms")
    _print(f"underruns    {sum(report.underruns for report in reports)}")
    _print(
        f"phone late   {max(report.late_ms for report in reports):.0f} ms at worst; over 20: too many for this machine"
    )
    _print_violations(reports)


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


# ---------------------------------------------------------------- words


def _print_violations(reports: Sequence[CallReport]) -> None:
    counts: dict[str, int] = {}
    for report in reports:
        for violation in report.violations:
            counts[str(violation)] = counts.get(str(violation), 0) + 1
    for words, count in counts.items():
        _print(f"Protocol broken by the server, {count} times: {words}")


def _after_abnormal_end(close_code: int | None, options: argparse.Namespace) -> str:
    if close_code == 4401 and options.stream_url:
        return "It wants a token that only its own TwiML gives: use --url in place of --stream-url."
    return "That is no normal end: the server's log says why."


def _advice(refusal: Refusal, options: argparse.Namespace) -> str:
    match refusal.stage, refusal.status:
        case "voice", 0:
            return f"Is it running? Start it with `make run`, or give its address with --url (now {options.url})."
        case "voice" | "stream", 403:
            return (
                "It checks Twilio's signature. Set TWILIO_AUTH_TOKEN (or --auth-token) and TWILIO_ACCOUNT_SID to the "
                "server's own, call it at its PUBLIC_BASE_URL with --url, and one of its numbers with --to."
            )
        case "voice", 404:
            return f"There is no /twilio/voice under {options.url}: --url takes the server's address without a path."
        case "voice", 200:
            return f"It answers, but takes no call now: {options.url}/ready says why."
        case "stream", 503:
            return f"It is full or stopping: {options.url}/ready says which."
        case "stream", 0:
            return "The stream's URL in its TwiML leads nowhere from here: check PUBLIC_BASE_URL, or --stream-url."
        case _:
            return "The server's log says more."


def _positive(number: type[int] | type[float]) -> Any:
    def convert(text: str) -> int | float:
        value = number(text)
        if not 0 < value < 1e6:
            raise argparse.ArgumentTypeError("must be more than 0")
        return value

    return convert


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
