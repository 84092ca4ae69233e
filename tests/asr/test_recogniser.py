"""How CTranslate2 is asked: the real demo model where words matter, a scripted Whisper where the asking does."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import soxr
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

from app.asr.models import DEMO_FOLDER
from app.asr.prompts import MAX_PREVIOUS_TOKENS, max_length
from app.asr.recogniser import Decoded, Recogniser, RecogniserOptions, Request
from app.errors import ConfigError
from tests.asr.sample_calls import RATE, SampleCall, nobody, sample_calls, spoken
from tests.asr.scripted_whisper import Says, ScriptedWhisper

FULL = RecogniserOptions(encoder_window="full")


@pytest.fixture(scope="module")
def demo() -> Recogniser:
    return Recogniser.load(DEMO_FOLDER, "demo")


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    return WhisperModel(str(DEMO_FOLDER), device="cpu", compute_type="int8", cpu_threads=1)


def scripted(*says: Says, device: str = "cpu", **options: Any) -> tuple[Recogniser, ScriptedWhisper]:
    whisper = ScriptedWhisper([list(says)], **options)
    return Recogniser(whisper, name="scripted", device=device), whisper


def request(call: SampleCall, language: str = "") -> Request:
    return Request(call.pcm, RATE, language or call.language)


def seconds(length: float, language: str = "ko", previous: str = "") -> Request:
    return Request(bytes(2 * int(length * RATE)), RATE, language, previous=previous)


def samples_of(call: SampleCall) -> Any:
    return soxr.resample(np.frombuffer(call.pcm, "<i2").astype(np.float32) / 32768, RATE, 16_000)


def hear(recogniser: Recogniser, asked: Request, beam: int = 2) -> Decoded:
    return recogniser.decode([asked], beam=beam)[0]


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("beam", [1, 2])
def test_hears_what_was_said(demo: Recogniser, beam: int) -> None:
    for call in sample_calls()[beam::2]:
        assert hear(demo, request(call), beam).text == call.text


def test_hears_nothing_where_nobody_speaks(demo: Recogniser) -> None:
    assert [hear(demo, request(call)).text for call in nobody()] == [""] * len(nobody())
    assert hear(demo, Request(b"", RATE, "ko")) == Decoded("", "ko")
    assert demo.decode([], beam=2) == []


def test_finds_the_language_itself(demo: Recogniser) -> None:
    for text, language in [("안녕하세요.", "ko"), ("Hello.", "en")]:
        decoded = hear(demo, request(spoken(text), "auto"), beam=1)
        assert (decoded.text, decoded.language) == (text, language)


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_takes_audio_of_any_rate(demo: Recogniser, rate: int) -> None:
    call = spoken("영업시간이 어떻게 되나요?")
    samples = np.frombuffer(call.pcm, "<i2").astype(np.float32)
    pcm = soxr.resample(samples, RATE, rate).astype("<i2").tobytes()
    assert hear(demo, Request(pcm, rate, "ko"), beam=1).text == call.text


def test_tells_how_sure_it_is(demo: Recogniser) -> None:
    decoded = hear(demo, request(spoken("안녕하세요.")))
    assert decoded.confidence is not None
    assert 0.5 < decoded.confidence <= 1
    assert decoded.decode_ms > 0
    assert Decoded("", "ko").confidence is None


def test_a_full_window_hears_what_faster_whisper_hears(model: WhisperModel) -> None:
    full = Recogniser(model, name="demo", options=FULL)
    for call in [spoken("네."), spoken("여보세요?"), spoken("Where are you located?")]:
        segments, _ = model.transcribe(
            samples_of(call),
            language=call.language,
            beam_size=2,
            length_penalty=0,
            temperature=0,
            without_timestamps=True,
        )
        segment = next(iter(segments))
        decoded = hear(full, request(call))
        assert decoded.text == segment.text.strip() == call.text
        assert decoded.avg_logprob == pytest.approx(segment.avg_logprob, abs=0.05)
        assert decoded.no_speech_prob == pytest.approx(segment.no_speech_prob, abs=0.01)


# ---------------------------------------------------------------- batches


def test_a_batch_hears_what_each_would_hear_alone(demo: Recogniser) -> None:
    calls = [call for call in sample_calls() if call.text][::4]
    asked = [request(call, language) for call, language in zip(calls, ["", "auto"] * len(calls), strict=False)]
    asked.insert(3, Request(b"", RATE, "ko"))
    alike = [one for one in asked if not one.pcm or demo.batch_key(one) == demo.batch_key(asked[0])]
    assert len(alike) > 4
    together = demo.decode(alike, beam=2)
    alone = [hear(demo, one) for one in alike]
    assert [(one.text, one.language) for one in together] == [(one.text, one.language) for one in alone]
    assert len({one.decode_ms for one in together if one.window_s}) == 1


def test_one_of_a_batch_is_looked_at_again_alone() -> None:
    whisper = ScriptedWhisper([[Says("네."), Says("음", logprob=-1.5), Says("아니요.")], [Says("여보세요?")]])
    recogniser = Recogniser(whisper, name="scripted")
    decoded = recogniser.decode([seconds(1), seconds(1), seconds(1)], beam=2)
    assert [(one.text, one.window_s, one.redecoded) for one in decoded] == [
        ("네.", 5, False),
        ("여보세요?", 30, True),
        ("아니요.", 5, False),
    ]
    assert [(len(asked.prompts), asked.window_s) for asked in whisper.asked] == [(3, 5), (1, 30)]


def test_a_first_look_says_what_deserves_a_second() -> None:
    whisper = ScriptedWhisper([[Says("네."), Says("음", logprob=-1.5), Says("아니요.")], [Says("여보세요?")]])
    recogniser = Recogniser(whisper, name="scripted")
    first = recogniser.decode([replace(seconds(1), look="first")] * 3, beam=2)
    assert [(one.text, one.suspect, one.redecoded) for one in first] == [
        ("네.", False, False),
        ("음", True, False),
        ("아니요.", False, False),
    ]
    second = hear(recogniser, replace(seconds(1), look="second"))
    assert (second.text, second.suspect, second.redecoded) == ("여보세요?", False, True)
    assert [(len(asked.prompts), asked.window_s) for asked in whisper.asked] == [(3, 5), (1, 30)]


def test_a_second_look_shares_no_decode_with_first_ones() -> None:
    recogniser, _ = scripted(Says("네."))
    keys = [recogniser.batch_key(replace(seconds(1), look=look)) for look in ("first", "second", "second")]
    assert len(set(keys)) == 3


def test_what_may_share_a_decode() -> None:
    recogniser, _ = scripted(Says("네. 아니요."))
    key = recogniser.batch_key
    assert key(seconds(1, "ko")) == key(seconds(2.5, "auto"))
    assert key(seconds(1)) != key(seconds(3))
    assert key(seconds(1)) != key(seconds(1, previous="네."))
    assert key(seconds(1, previous="네.")) == key(seconds(2, previous="네."))
    assert key(seconds(1, previous="네.")) != key(seconds(1, previous="아니요."))
    assert recogniser.max_batch == 8


def test_a_full_window_is_never_shared_on_a_cpu() -> None:
    cpu, _ = scripted(Says("네."))
    gpu, _ = scripted(Says("네."), device="cuda")
    assert cpu.batch_key(seconds(20)) != cpu.batch_key(seconds(20))
    assert gpu.batch_key(seconds(20)) == gpu.batch_key(seconds(1))
    assert gpu.max_batch == 16


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("device", "options", "windows"),
    [
        ("cpu", RecogniserOptions(), [5, 8, 12, 30]),
        ("cpu", FULL, [30, 30, 30, 30]),
        ("cuda", RecogniserOptions(), [30, 30, 30, 30]),
    ],
)
def test_windows_are_short_where_the_encoder_is_dear(
    device: str, options: RecogniserOptions, windows: list[float]
) -> None:
    whisper = ScriptedWhisper([[Says("네.")]])
    recogniser = Recogniser(whisper, name="scripted", device=device, options=options)
    decoded = [hear(recogniser, seconds(length)) for length in (1, 4, 7, 20)]
    assert [one.window_s for one in decoded] == [asked.window_s for asked in whisper.asked] == windows


def test_a_full_window_that_looks_wrong_is_not_looked_at_again() -> None:
    recogniser, whisper = scripted(Says("네.", logprob=-1.5))
    assert not hear(recogniser, seconds(20)).redecoded
    assert len(whisper.asked) == 1


# ---------------------------------------------------------------- how it is asked


def test_the_encoder_runs_once_and_apart_only_where_the_language_is_not_known() -> None:
    recogniser, whisper = scripted(Says("네."), language="en")
    assert hear(recogniser, seconds(1, "ko")).language == "ko"
    assert hear(recogniser, seconds(1, "auto")).language == "en"
    both = recogniser.decode([seconds(1, "ko"), seconds(1, "auto")], beam=1)
    assert [one.language for one in both] == ["ko", "en"]
    assert [asked.encoded for asked in whisper.asked] == [False, True, True]
    assert whisper.encoded == [500, 500]


def test_a_language_that_the_model_has_not_learnt_is_found_out() -> None:
    recogniser, _ = scripted(Says("네."))
    assert hear(recogniser, seconds(1, "ja")).language == "ko"
    english, whisper = scripted(Says("Yes."), is_multilingual=False)
    assert hear(english, seconds(1, "ko")).language == "en"
    assert [len(prompt) for prompt in whisper.asked[0].prompts] == [2]  # start, no timestamps


def test_text_before_goes_before_the_start() -> None:
    recogniser, whisper = scripted(Says("네. 아니요."))
    hear(recogniser, seconds(1, previous="네."))
    hear(recogniser, seconds(1, previous="네. " * 500))
    ids = whisper.hf_tokenizer.token_to_id
    short, long = (asked.prompts[0] for asked in whisper.asked)
    opening = ["<|startoftranscript|>", "<|ko|>", "<|transcribe|>", "<|notimestamps|>"]
    assert short[-4:] == long[-4:] == [ids(token) for token in opening]
    assert short[0] == long[0] == ids("<|startofprev|>")
    assert whisper.hf_tokenizer.decode(short[1:-4]).strip() == "네."
    assert len(long) == 1 + MAX_PREVIOUS_TOKENS + 4


def test_the_real_model_takes_text_before(demo: Recogniser) -> None:
    call = spoken("내일 오후 세 시에 예약해 주세요.")
    asked = Request(call.pcm, RATE, "ko", previous="안녕하세요.")
    assert demo.batch_key(asked) != demo.batch_key(request(call))
    assert hear(demo, asked).text == call.text


def test_is_asked_for_no_timestamps_at_temperature_zero_with_the_usual_tokens_suppressed() -> None:
    recogniser, whisper = scripted(Says("네."))
    hear(recogniser, seconds(1), beam=3)
    settings = whisper.asked[0].settings
    assert (settings["beam_size"], settings["length_penalty"], settings["suppress_blank"]) == (3, 0, True)
    assert not {"sampling_temperature", "sampling_topk", "num_hypotheses"} & settings.keys()
    start = whisper.hf_tokenizer.token_to_id("<|startoftranscript|>")
    assert start in settings["suppress_tokens"]
    assert whisper.hf_tokenizer.token_to_id("<|endoftext|>") not in settings["suppress_tokens"]


@pytest.mark.parametrize("prompt_text", ["", " 안녕하세요.", " 내일 오후 세 시에 예약해 주세요. 감사합니다."])
@pytest.mark.parametrize("tokens", [1, 2, 5, 8, 20])
def test_ctranslate2_stops_where_we_want_it(model: WhisperModel, prompt_text: str, tokens: int) -> None:
    """It is told a length, of which it takes half, or all less the prompt."""
    tokenizer = Tokenizer(model.hf_tokenizer, True, task="transcribe", language="ko")
    before = [tokenizer.sot_prev, *tokenizer.encode(prompt_text)] if prompt_text else []
    prompt = [*before, *tokenizer.sot_sequence, tokenizer.no_timestamps]
    result = model.model.generate(
        _window(model, spoken("네.")),
        [prompt],
        beam_size=1,
        max_length=max_length(tokens, len(prompt)),
        suppress_blank=False,
        suppress_tokens=[tokenizer.eot],
    )
    assert len(result[0].sequences_ids[0]) == tokens


def test_the_usual_length_penalty_would_cost_a_beam_its_words(model: WhisperModel) -> None:
    """Why finals are decoded with length_penalty 0: with 1, a beam of 2 ends as soon as two hypotheses have ended, even
    if the best one has not. Where partials are greedy, nothing is lost with either."""
    calls = [call for call in sample_calls() if call.text][::2]
    windows = [_window(model, call) for call in calls]

    def right(beam: int, length_penalty: float) -> int:
        count = 0
        for call, window in zip(calls, windows, strict=True):
            tokenizer = Tokenizer(model.hf_tokenizer, True, task="transcribe", language=call.language)
            prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
            settings = {"beam_size": beam, "length_penalty": length_penalty, "max_length": 60}
            result = model.model.generate(window, [prompt], **settings)
            count += tokenizer.decode(result[0].sequences_ids[0]).strip() == call.text
        return count

    assert right(1, 1.0) == right(2, 0.0) == len(calls)
    assert right(2, 1.0) < 0.8 * len(calls)


def _window(model: WhisperModel, call: SampleCall) -> ctranslate2.StorageView:
    """Of the call's own length, and silence up to 8 s."""
    samples = samples_of(call)
    features = model.feature_extractor(np.pad(samples, (0, 8 * 16_000 - len(samples))), padding=0)
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(features[None]))


# ---------------------------------------------------------------- loading


def test_warms_up(demo: Recogniser) -> None:
    assert demo.warm_up() > 0


@pytest.mark.parametrize(("device", "windows"), [("cpu", [30, 12, 8, 5, 5]), ("cuda", [30, 30])])
def test_warms_every_window_that_it_will_use(device: str, windows: list[float]) -> None:
    """The last once more: what that takes is what a decode takes."""
    recogniser, whisper = scripted(Says("네."), device=device)
    recogniser.warm_up()
    assert [asked.window_s for asked in whisper.asked] == windows


@pytest.mark.parametrize("n_mels", [250, 1500])
def test_a_model_that_ctranslate2_would_misread_is_refused(n_mels: int) -> None:
    with pytest.raises(ConfigError, match=rf"MODEL_NAME: scripted has {n_mels} mel bands"):
        Recogniser(ScriptedWhisper([[Says("네.")]], n_mels=n_mels), name="scripted")


@pytest.mark.parametrize("file", ["model.bin", "tokenizer.json", "config.json"])
def test_an_incomplete_folder_is_named(tmp_path: Path, file: str) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).unlink()
    with pytest.raises(ConfigError, match=rf"MODEL_NAME: .*{tmp_path.name}.* {file} missing; name a folder"):
        Recogniser.load(tmp_path, "mine")


def test_a_broken_model_is_named(tmp_path: Path) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.bin").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"MODEL_NAME: mine cannot be used from .* on DEVICE=cpu"):
        Recogniser.load(tmp_path, "mine")


class Broken(ScriptedWhisper):
    """Loads, and fails at the first decode, as a model does on a GPU without its libraries."""

    words = ""

    def generate(self, *arguments: object, **settings: object) -> list[Any]:
        raise RuntimeError(self.words)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("Library libcublas.so.12 is not found or cannot be loaded", r"DEVICE: .*pip install 'malgil\[cuda\]'"),
        ("CUDA failed with error out of memory", "MODEL_NAME: .*smaller model"),
        ("Requested int8_float16 compute type, but", "COMPUTE_TYPE: .*auto chooses"),
    ],
)
def test_what_fails_at_the_first_decode_says_what_to_do(words: str, advice: str) -> None:
    broken = Broken([[Says("")]])
    broken.words = words
    recogniser = Recogniser(broken, name="medium", device="cuda", compute_type="int8_float16")
    with pytest.raises(ConfigError, match=advice):
        recogniser.warm_up()
