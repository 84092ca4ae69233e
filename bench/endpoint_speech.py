"""The labelled utterances of bench.endpoint: what is said, when each word ends, and where the speaker rests.

Two kinds. Sentences that the keyless voice speaks, phrase by phrase, with rests between the phrases. And, from a
folder of recordings of single digits in real voices, numbers read in groups. All of them go through a telephone
line: noise, sometimes the band of an analogue line, mu-law. The same seed gives the same utterances, sample by sample.
"espeak" here is espeak-ng, which is GPL-3.0-or-later: the benchmark loads it, the server never does.
"""

import ctypes
import re
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import espeakng_loader
import numpy as np
import soxr

from tools.demo_model.espeak import Espeak, Signal
from tools.demo_model.telephone import RATE, amplitude, band_limited, coloured, normalised, pick, to_mulaw

REST_MS = (200, 900)
"""The shortest and the longest rest inside an utterance; all lengths between are equally likely."""
LEAD_MS = 600
TAIL_MS = 3000
"""Of the line alone, before and after the speech."""
SNR_DB = (15, 40)
FADING_MS = 60
"""A word is understood this long before its last sample."""
GROUPS = (2, 4)
DIGITS_A_GROUP = (3, 4)
DIGIT_GAP_MS = (20, 80)

# `|` is a rest: where the speaker hesitates or takes a breath. `/` is one between two sentences of the same turn.
KOREAN = """
네, 맞아요.
두 명이요.
아니요, 괜찮아요.
감사합니다.
영업시간이 어떻게 되나요?
주차장 있어요?
예약을 취소하고 싶어요.
가격이 얼마예요?
상담원 연결해 주세요.
내일 오후
토요일
서울 강남구
저는 | 내일 저녁 일곱 시에 | 두 명이요.
예약을 하려고 하는데 | 내일 자리가 있나요?
음 | 다음 주 월요일로 해 주세요.
제 이름은 | 김민수입니다.
어제 주문을 했는데 | 아직 안 와서요.
혹시 | 주말에도 영업하세요?
시간이 없어서 | 예약을 | 다음 주로 미루고 싶어요.
그러면 | 세 시 말고 | 네 시에 갈게요.
친구랑 | 같이 가려고 하는데 | 자리가 될까요?
오늘은 안 되고 | 내일은 됩니다.
주소는 | 서울시 강남구 | 테헤란로 이십이예요.
전화번호는 | 공일공 | 일이삼사 | 오육칠팔이요.
전화번호는 | 공일공 | 구팔칠육 | 오사삼이.
예약 | 두 명이요.
내일 오후 | 세 시쯤 | 가능할까요?
창가 자리 | 남아 있어요?
배송이 | 언제쯤 올지 | 알 수 있을까요?
제가 | 지난주에 산 신발이 | 너무 작은데 | 바꿀 수 있나요?
몸이 안 좋아서요 | 예약을 취소하려고요.
예약하고 싶은데요 | 내일 저녁 되나요?
비가 오면 | 그냥 취소해 주세요.
아이가 있으니까 | 조용한 자리로 부탁드려요.
그게 | 카드로 계산했는데 | 영수증을 못 받았어요.
강남역에서 | 어떻게 가면 돼요?
두 시부터 | 네 시까지 | 회의실 쓸 수 있어요?
메뉴를 바꾸고 싶은데 | 어 | 아직 안 늦었죠?
안녕하세요. / 예약 좀 하려고요.
네. / 그걸로 할게요.
괜찮아요. / 그럼 다음에 | 다시 전화할게요.
"""

ENGLISH = """
Yes, please.
No, thank you.
Is there parking?
I want to cancel my booking.
How much does it cost?
Table for two, please.
Can I speak to an agent?
Tomorrow morning
John Smith
Two people
I would like to | make a reservation.
My name is | John Smith.
I'd like a table for | four people | tomorrow evening.
Um | can you tell me | when you close?
I ordered a pair of shoes and | they still have not arrived.
Is it possible to | come a little later?
I'm calling because | my order was wrong.
My number is | five five five | one two three | four five six seven.
It's | two zero one | five five five | oh one two three.
We would be there at | seven thirty | if that is possible.
I'd like the | uh | large one please.
Could you | send me the receipt?
I need a room for | two nights | from Friday.
So | what time | do you open on Sunday?
I have a booking but | I need to change | the date.
If it rains | we would rather | sit inside.
The address is | twenty one | Baker Street.
Tomorrow | at three in the afternoon.
I was wondering if | you have a table | by the window.
Next Monday | would be great.
I will pay with | my credit card.
My son is ill so | we have to cancel.
A small coffee | and a sandwich please.
It is for my mother | she is coming from Busan.
Do you deliver to | the city centre?
When I called yesterday | nobody answered the phone.
I paid in cash | but I did not get | a receipt.
Hello. / I have a question about my order.
Yes. / That works for me.
That's fine. / I will call again | next week.
"""

Voice = Mapping[str, Sequence[Signal]]
"""A speaker's recordings of each digit."""

_BASES = {"ko": ("ko",), "en": ("en-us", "en-gb-x-rp", "en-gb-scotland")}
_VARIANTS = ("m1", "m3", "m4", "m7", "f1", "f2", "f3", "f4", "Annie", "benjamin", "linda", "Michael")
_RECORDING = re.compile(r"(\d)_([^_]+)_\d+\.wav")
_TRIM_DB = -30
"""What of a recording is this much below its loudest 10 ms, before and after, is no speech."""


@dataclass(frozen=True, slots=True)
class Word:
    """As the recogniser would write it, with the space before it, and when in the call it is over."""

    text: str
    end_ms: float


@dataclass(frozen=True, slots=True)
class Rest:
    start_ms: float
    end_ms: float
    between_sentences: bool = False

    @property
    def ms(self) -> float:
        return self.end_ms - self.start_ms


@dataclass(frozen=True, slots=True)
class Utterance:
    """One turn of a caller. Moments are ms of the call's audio, `mulaw`, of 8,000 bytes a second."""

    words: tuple[Word, ...]
    rests: tuple[Rest, ...]
    begins_ms: float
    mulaw: bytes = b""

    @property
    def ends_ms(self) -> float:
        return self.words[-1].end_ms

    def said_by(self, at_ms: float) -> str:
        """The words heard by then. A comma belongs to the word that follows, which is not heard yet."""
        words = [word.text for word in self.words if word.end_ms <= at_ms + FADING_MS]
        return "".join(words).strip().rstrip(",")


@dataclass(frozen=True, slots=True)
class Phrase:
    """Speech without a rest, at 8 kHz; its words, their ends counted from its beginning."""

    samples: Signal
    words: tuple[Word, ...]
    ends_sentence: bool = False


def studio(seed: int) -> Espeak:
    """espeak's breath and flutter are random, and go on from one sentence to the next: the same seed gives the same
    speech to a process that lets it say the same things in the same order, and to no other."""
    espeak = Espeak()
    ctypes.CDLL(str(espeakng_loader.get_library_path())).espeak_ng_SetRandSeed(ctypes.c_long(seed))
    return espeak


def synthetic(espeak: Espeak, language: str, text: str, seed: int, takes: int) -> Iterator[Utterance]:
    """Every line of a text, `takes` times: each time another voice, other rests, another line."""
    for number, line in enumerate(text.strip().splitlines() * takes):
        rng = np.random.default_rng([seed, number])
        voice = f"{pick(rng, _BASES[language])}+{pick(rng, _VARIANTS)}"
        speed, pitch = int(rng.integers(130, 200)), int(rng.integers(25, 75))
        phrases = [_spoken(espeak, part, voice, speed, pitch) for part in re.split(r"(?<=[|/])", line)]
        yield joined(phrases, rng)


def recorded(folder: Path, seed: int, count: int) -> Iterator[Utterance]:
    """Numbers of two to four groups, each in one speaker's voice, the speakers by turns. ValueError where the folder
    has no such recordings."""
    for voice, rng in _speakers(folder, seed, count):
        sizes = rng.integers(DIGITS_A_GROUP[0], DIGITS_A_GROUP[1] + 1, rng.integers(GROUPS[0], GROUPS[1] + 1))
        yield joined([_group(voice, [str(digit) for digit in rng.integers(10, size=size)], rng) for size in sizes], rng)


def mobile(folder: Path, seed: int, count: int) -> Iterator[Utterance]:
    """The same speakers say a Korean mobile number: 010, four digits, four digits."""
    for voice, rng in _speakers(folder, seed, count):
        groups = ["010", *("".join(str(digit) for digit in rng.integers(10, size=4)) for _ in range(2))]
        yield joined([_group(voice, group, rng) for group in groups], rng)


def joined(phrases: Sequence[Phrase], rng: np.random.Generator) -> Utterance:
    """The phrases with rests between them, on a line."""
    pieces, words, rests = [_silence(LEAD_MS)], [], []
    at_ms = float(LEAD_MS)
    for number, phrase in enumerate(phrases):
        words += [Word(word.text, at_ms + word.end_ms) for word in phrase.words]
        pieces.append(phrase.samples)
        at_ms += _ms(phrase.samples)
        if number + 1 < len(phrases):
            silence = _silence(rng.uniform(*REST_MS))
            rests.append(Rest(at_ms, at_ms + _ms(silence), phrase.ends_sentence))
            pieces.append(silence)
            at_ms += _ms(silence)
    pieces.append(_silence(TAIL_MS))
    speech = np.concatenate(pieces)
    return Utterance(tuple(words), tuple(rests), float(LEAD_MS), _on_a_line(speech, rng))


def _on_a_line(speech: Signal, rng: np.random.Generator) -> bytes:
    speech = speech / np.abs(speech).max() * amplitude(rng.uniform(-20, -3))
    loudness = float(speech[np.abs(speech) > 1e-4].std())
    noise = coloured(rng, len(speech), pick(rng, ("white", "pink", "brown")))
    call = speech + noise * np.float32(loudness * amplitude(-rng.uniform(*SNR_DB)))
    return to_mulaw(band_limited(call) if rng.random() < 0.6 else call)


# ---------------------------------------------------------------- the keyless voice


def _spoken(espeak: Espeak, part: str, voice: str, speed: int, pitch: int) -> Phrase:
    text = part.rstrip("|/").strip()
    reading = espeak.say(text, voice, rate=speed, pitch=pitch)
    samples: Signal = soxr.resample(reading.samples, espeak.rate, RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    first, end = int(loud[0]), int(loud[-1]) + 1
    starts = [start * 1000 - first * 1000 / RATE for start in reading.word_starts]
    samples = samples[first:end]
    return Phrase(samples, _timed(text.split(), starts, _ms(samples)), part.endswith("/"))


def _timed(words: Sequence[str], starts: Sequence[float], end_ms: float) -> tuple[Word, ...]:
    """A word is over when the next begins. Where espeak counts other words than we do: by their letters."""
    if len(starts) == len(words):
        ends = [*starts[1:], end_ms]
    else:
        letters = np.cumsum([len(word) for word in words])
        ends = [end_ms * int(count) / int(letters[-1]) for count in letters]
    return tuple(Word(f" {word}", min(end, end_ms)) for word, end in zip(words, ends, strict=True))


# ---------------------------------------------------------------- recordings


def _recordings(folder: Path) -> Mapping[str, Voice]:
    """By speaker and digit; speakers of whom a digit is missing are left out."""
    voices: dict[str, dict[str, list[Signal]]] = {}
    for path in sorted(folder.glob("*.wav")):
        if name := _RECORDING.fullmatch(path.name):
            voices.setdefault(name[2], {}).setdefault(name[1], []).append(_trimmed(_read(path)))
    whole = {name: voice for name, voice in voices.items() if len(voice) == 10}
    if not whole:
        raise ValueError(
            f"{folder} holds no speaker of all ten digits, named like 3_george_0.wav (digit, speaker, take)"
        )
    return whole


def _read(path: Path) -> Signal:
    try:
        with wave.open(str(path)) as file:
            form = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            pcm = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path}: {error}") from error
    if form != (RATE, 1, 2) or not any(pcm):
        raise ValueError(f"{path} is no sound of 16 bits, one channel and {RATE} Hz")
    return (np.frombuffer(pcm, "<i2") / 32768).astype(np.float32)


def _trimmed(samples: Signal) -> Signal:
    step = RATE // 100
    frames = samples[: len(samples) // step * step].reshape(-1, step)
    loudness = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(loudness > loudness.max() * amplitude(_TRIM_DB))
    return samples[int(loud[0]) * step : (int(loud[-1]) + 1) * step]


def _speakers(
    folder: Path, seed: int, count: int
) -> Iterator[tuple[Mapping[str, Sequence[Signal]], np.random.Generator]]:
    voices = _recordings(folder)
    names = sorted(voices)
    for number in range(count):
        yield voices[names[number % len(names)]], np.random.default_rng([seed, number])


def _group(voice: Voice, digits: Sequence[str], rng: np.random.Generator) -> Phrase:
    pieces: list[Signal] = []
    words: list[Word] = []
    end_ms = 0.0
    for digit in digits:
        if words:
            pieces.append(_silence(rng.uniform(*DIGIT_GAP_MS)))
            end_ms += _ms(pieces[-1])
        pieces.append(normalised(pick(rng, voice[digit])))
        end_ms += _ms(pieces[-1])
        words.append(Word(digit if words else f" {digit}", end_ms))
    return Phrase(np.concatenate(pieces), tuple(words))


def _silence(ms: float) -> Signal:
    return np.zeros(round(ms * RATE / 1000), np.float32)


def _ms(samples: Signal) -> float:
    return len(samples) * 1000 / RATE
