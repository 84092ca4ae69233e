"""`python -m bench.endpoint` (`make bench-endpoint`): delay against false cut-offs, for fixed silence and for ours.

A caller who rests inside a sentence must not be taken for one who has ended; one who has ended must not be kept
waiting. Each policy gets the same labelled utterances (endpoint_speech.py), through the same mu-law, the same Silero
and the product's Endpointer. Ours sets the wait by the words so far (completeness.py) once a guess of them can be
there: the words are the label's, so recognition is taken as perfect, but for a decode that takes --decode-ms. The
rows below it spoil that: every guess ends in a full stop, as Whisper ends whatever it is given; and a slow decode,
with an endpoint that comes without its words, or one that awaits them (up to the longest wait).

* cut: utterances with an endpoint between their true beginning and their true end.
* p50, p90: from the true end of speech to the endpoint, ms. Only of utterances that were not cut, which are the easier
  ones: a policy that cuts much is flattered.
* none: utterances without an endpoint in the 3 s after their end, and never cut.

The sentences and the rules of completeness.py have the same author, so the synthetic part shows that the rules do what
they are meant to, and how much it brings; it is no measure of how often callers speak so.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from app.audio import g711
from app.audio.endpoint import Endpointer, EndpointOptions, SpeechPaused, SpeechResumed, SpeechStopped
from app.audio.vad import SileroModel, load_silero
from app.services.ai_call.completeness import EndpointWaits
from bench import machine
from bench.endpoint_speech import (
    DIGITS_A_GROUP,
    ENGLISH,
    GROUPS,
    KOREAN,
    REST_MS,
    Utterance,
    mobile,
    recorded,
    studio,
    synthetic,
)
from bench.figures import percentile

RESULTS = Path(__file__).parent / "results"
FIXED_MS = (200, 350, 500, 700, 1000)
DECODE_MS = 150
"""From a pause to the words: a small model on a CPU with short windows."""
SLOW_DECODE_MS = 400
"""More than the middle wait: an endpoint that does not wait for the words comes before they can say anything."""


@dataclass(frozen=True, slots=True)
class Guess:
    """What is known at a pause. `over` is the label's: the last word was said."""

    text: str
    over: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """`silence_ms` ends an utterance, until a guess is there (`decode_ms` after the pause) and sets `wait_ms`."""

    name: str
    silence_ms: int
    wait_ms: Callable[[Guess], int] | None = None
    decode_ms: int = 0


def fixed(ms: int) -> Policy:
    return Policy(f"fixed {ms} ms", ms)


def ours(waits: EndpointWaits, decode_ms: int) -> list[Policy]:
    def by_words(guess: Guess) -> int:
        return waits.wait_ms(guess.text)

    def with_a_stop(guess: Guess) -> int:
        return waits.wait_ms(guess.text if not guess.text or guess.text[-1] in ".?!" else f"{guess.text}.")

    return [
        Policy("by the words", waits.unknown_ms, by_words, decode_ms),
        Policy("  all with a full stop", waits.unknown_ms, with_a_stop, decode_ms),
        Policy(f"  after {SLOW_DECODE_MS} ms", waits.unknown_ms, by_words, SLOW_DECODE_MS),
        Policy(f"  after {SLOW_DECODE_MS} ms, awaited", waits.most_ms, by_words, SLOW_DECODE_MS),
    ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`cut_after`: the words at the first endpoint inside the utterance; None where there was none. `delay_ms`: from
    the true end to the endpoint; None where it was cut before, or no endpoint came."""

    cut_after: str | None
    delay_ms: float | None


def probabilities(model: SileroModel, mulaw: bytes) -> list[float]:
    detector, pcm = model.detector(), g711.decode(mulaw)
    size = detector.frame_bytes
    return [detector.probability(pcm[at : at + size]) for at in range(0, len(pcm) - size + 1, size)]


def judge(policy: Policy, utterance: Utterance, heard: Sequence[float], frame_ms: int) -> Outcome:
    """`heard`: the probability of speech in each frame."""
    endpointer = Endpointer(EndpointOptions(silence_ms=policy.silence_ms))
    guess: Guess | None = None
    ready_ms = 0
    for probability in heard:
        if policy.wait_ms is not None and guess is not None and ready_ms < endpointer.media_ms + frame_ms:
            endpointer.wait(policy.wait_ms(guess))  # it came before this frame was heard to its end
            guess = None
        for event in endpointer.process(probability, frame_ms):
            match event:
                case SpeechPaused():
                    guess = _guess(utterance, endpointer.media_ms)
                    ready_ms = endpointer.media_ms + policy.decode_ms
                case SpeechResumed():
                    guess = None
                case SpeechStopped() if endpointer.media_ms > utterance.begins_ms:
                    return _ended(utterance, endpointer.media_ms)
    return Outcome(None, None)


def _guess(utterance: Utterance, now_ms: int) -> Guess:
    text = utterance.said_by(now_ms)
    return Guess(text, over=text == utterance.said_by(utterance.ends_ms))


def _ended(utterance: Utterance, now_ms: int) -> Outcome:
    delay_ms = now_ms - utterance.ends_ms
    return Outcome(utterance.said_by(now_ms), None) if delay_ms < 0 else Outcome(None, delay_ms)


# ---------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class Cell:
    """What one policy did with one part of the utterances."""

    utterances: int
    cut: int
    none: int
    p50_ms: float | None
    p90_ms: float | None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Cell":
        delays = [outcome.delay_ms for outcome in outcomes if outcome.delay_ms is not None]
        cut = sum(outcome.cut_after is not None for outcome in outcomes)
        none = len(outcomes) - cut - len(delays)
        return cls(len(outcomes), cut, none, percentile(delays, 50), percentile(delays, 90))

    def __str__(self) -> str:
        p50, p90 = ("-" if ms is None else f"{ms:.0f}" for ms in (self.p50_ms, self.p90_ms))
        return f"{self.cut / max(1, self.utterances):>5.1%} {p50:>5} {p90:>5} {self.none:>4}"


Part = Mapping[str, Cell]
"""By the policy's name."""

_HEAD = f"{'cut':>5} {'p50':>5} {'p90':>5} {'none':>4}"


def table(parts: Mapping[str, Part]) -> str:
    policies = list(next(iter(parts.values())))
    first = max(len(name) for name in policies)
    lines = [
        " " * first + "".join(f"   {name:^{len(_HEAD)}}" for name in parts),
        " " * first + f"   {_HEAD}" * len(parts),
    ]
    for policy in policies:
        lines.append(f"{policy:<{first}}" + "".join(f"   {part[policy]!s:>{len(_HEAD)}}" for part in parts.values()))
    return "\n".join(lines)


def about(name: str, utterances: Sequence[Utterance]) -> str:
    rests = [rest for utterance in utterances for rest in utterance.rests]
    between = sum(rest.between_sentences for rest in rests)
    without = sum(not utterance.rests for utterance in utterances)
    return (
        f"{name}: {len(utterances)} utterances, {without} of them without a rest; {len(rests)} rests of {REST_MS[0]} "
        f"to {REST_MS[1]} ms, all lengths equally likely, {between} of them between two sentences"
    )


def measure(
    policies: Iterable[Policy], utterances: Sequence[Utterance], model: SileroModel
) -> dict[str, list[Outcome]]:
    heard = [probabilities(model, utterance.mulaw) for utterance in utterances]
    return {
        policy.name: [
            judge(policy, utterance, one, model.frame_ms) for utterance, one in zip(utterances, heard, strict=True)
        ]
        for policy in policies
    }


# ---------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    waits = EndpointWaits()
    policies = [*(fixed(ms) for ms in FIXED_MS), *ours(waits, options.decode_ms)]
    espeak = studio(options.seed)
    material = {
        "Korean, synthetic": list(synthetic(espeak, "ko", KOREAN, options.seed, options.takes)),
        "English, synthetic": list(synthetic(espeak, "en", ENGLISH, options.seed, options.takes)),
    }
    if options.speech_dir:
        try:
            material["numbers, recorded"] = list(recorded(options.speech_dir, options.seed, options.numbers))
            material["010 numbers, recorded"] = list(mobile(options.speech_dir, options.seed, options.numbers))
        except (OSError, ValueError) as error:
            print(f"SPEECH_DIR: {error}", file=sys.stderr)
            return 2
    model = load_silero()
    outcomes = {name: measure(policies, part, model) for name, part in material.items()}
    parts = {name: {policy: Cell.of(part[policy]) for policy in part} for name, part in outcomes.items()}
    print(table(parts))
    print("\n".join(_remarks(material, options.decode_ms, waits)))
    if options.cuts:
        print("\n".join(_cuts(outcomes, "by the words")))
    result = {
        **{"machine": machine.describe(), "seed": options.seed, "decode_ms": options.decode_ms},
        **{"waits": asdict(waits), "detector": model.name},
        "parts": {name: {policy: asdict(cell) for policy, cell in part.items()} for name, part in parts.items()},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    return 0


def _remarks(material: Mapping[str, Sequence[Utterance]], decode_ms: int, waits: EndpointWaits) -> list[str]:
    said = [about(name, part) for name, part in material.items()]
    if "numbers, recorded" in material:
        said.append(
            f"numbers: {GROUPS[0]} to {GROUPS[1]} groups of {DIGITS_A_GROUP[0]} or {DIGITS_A_GROUP[1]} digits; "
            "010 numbers: 010, four digits, four digits; each in one voice"
        )
    else:
        said.append("no recordings: SPEECH_DIR names a folder of single digits, named like 3_george_0.wav")
    return [
        *said,
        f"by the words: {waits.complete_ms} ms behind a whole sentence, {waits.unknown_ms} where nothing is known, "
        f"{waits.continuing_ms} behind an unfinished one; words known {decode_ms} ms after a pause, and right",
        "p50, p90: ms from the true end of speech to the endpoint, the detector's lag included, of what was not cut",
    ]


def _cuts(outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]], policy: str) -> list[str]:
    return [
        f"{name}: cut after {outcome.cut_after!r}"
        for name, part in outcomes.items()
        for outcome in part[policy]
        if outcome.cut_after is not None
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.endpoint", description=__doc__.partition("\n")[0])
    folder = os.environ.get("SPEECH_DIR")
    folder_help = "of single digits, 8 kHz, named like 3_george_0.wav (default: SPEECH_DIR)"
    parser.add_argument("--speech-dir", type=Path, default=folder and Path(folder), metavar="DIR", help=folder_help)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--takes", type=int, default=3, help="of each sentence (default 3)")
    parser.add_argument("--numbers", type=int, default=120, help="of each kind, where there are recordings (120)")
    parser.add_argument("--decode-ms", type=int, default=DECODE_MS, help=f"from a pause to its words ({DECODE_MS})")
    parser.add_argument("--cuts", action="store_true", help="also after which words ours cut")
    parser.add_argument("--json", type=Path, default=RESULTS / "endpoint.json", metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
