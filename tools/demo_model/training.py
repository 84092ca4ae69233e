"""Training in three stages on one CPU core: attention decoder and, to help the encoder along, CTC."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.demo_model.lessons import IGNORED, Lesson, Teacher
from tools.demo_model.network import Shape, Whisper

SMOOTHING = 0.06


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of training. Each but the first starts from the weights of the one before."""

    pools: tuple[int, ...]
    seconds: float
    """CPU seconds."""
    peak_rate: float
    warmup: int
    """Steps until the learning rate is at its peak."""
    long_share: float
    """How many batches are padded far beyond their speech, mostly to 30 s. Slow, so rare."""
    late_long_share: float
    late_from: float
    """The part of the time after which the long batches become `late_long_share`."""
    flat_silence: bool
    """Teach for non-speech the end of text first and all else alike: faster-whisper forbids the end of text
    as first token, and drops the segment only when what comes instead is improbable."""
    smooth_text_only: bool
    """Smooth labels over the text tokens only: the end of text must stay far below them, or beam search
    collects early endings."""


STAGES = (
    Stage((1, 2), 1000, 1.5e-3, 150, 0.02, 0.3, 0.75, flat_silence=False, smooth_text_only=False),
    Stage((2, 3), 330, 5e-4, 150, 0.06, 0.25, 0.85, flat_silence=True, smooth_text_only=False),
    Stage((2, 3), 125, 5e-4, 40, 0.08, 0.08, 1.0, flat_silence=True, smooth_text_only=True),
)


class Trainer:
    """A network on its way through one stage."""

    def __init__(self, stage: Stage, teacher: Teacher) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._stage = stage
        self._teacher = teacher
        self._shape = Shape(teacher.vocabulary)
        self._network = Whisper(self._shape)
        self._ctc = nn.Linear(self._shape.width, teacher.text_tokens)
        weights = [*self._network.parameters(), *self._ctc.parameters()]
        self._weights = [weight for weight in weights if weight.requires_grad]
        self._optimiser = torch.optim.AdamW(self._weights, lr=stage.peak_rate, weight_decay=0.02, betas=(0.9, 0.98))

    def load(self, path: Path) -> None:
        checkpoint = torch.load(path)
        self._network.load_state_dict(checkpoint["network"])
        self._ctc.load_state_dict(checkpoint["ctc"])

    def save(self, path: Path) -> None:
        network, ctc = self._network.state_dict(), self._ctc.state_dict()
        torch.save({"network": network, "ctc": ctc, "shape": asdict(self._shape)}, path)

    def run(self, seconds: float, most_steps: int | None = None) -> None:
        """Trains for so many CPU seconds, or fewer steps, and prints how it goes."""
        began = time.process_time()
        step = 0
        while (elapsed := time.process_time() - began) < seconds and step != most_steps:
            loss = self._step(step, elapsed / seconds)
            step += 1
            if step % 25 == 0:
                print(f"step {step}, {elapsed:.0f} s, loss {loss:.3f}", flush=True)
            if step % 300 == 0:
                self.report()
        self.report()

    def report(self) -> None:
        exact, silent = self.score()
        print(f"validation: {exact:.1%} exact, {silent:.1%} of non-speech recognised as such", flush=True)

    def _step(self, step: int, progress: float) -> float:
        stage = self._stage
        cosine = 0.5 * (1 + math.cos(math.pi * progress)) * 0.98 + 0.02
        for group in self._optimiser.param_groups:
            group["lr"] = stage.peak_rate * min(1, (step + 1) / stage.warmup) * cosine
        late = progress >= stage.late_from
        batch, frames = self._teacher.next_batch(stage.late_long_share if late else stage.long_share)
        features = self._teacher.features(batch, frames, disturb=True)
        given, labels = self._teacher.tokens(batch)
        with torch.autocast("cpu", torch.bfloat16):
            memory = self._network.encoder(features)
            logits = self._network.decoder(given, memory)
            # CTC teaches the encoder where the sounds are. Later it is needed less; on a padded window never.
            aligned = frames is None and (progress < 0.6 or step % 4 == 0)
            frame_logits = self._ctc(memory[:, ::2]) if aligned else None
        loss = self._decoder_loss(logits.float(), given, labels, batch)
        total = loss if frame_logits is None else loss + 0.3 * self._ctc_loss(frame_logits.float(), batch)
        self._optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimiser.step()
        return float(loss.detach())

    def _decoder_loss(self, logits: Tensor, given: Tensor, labels: Tensor, batch: Sequence[Lesson]) -> Tensor:
        teacher = self._teacher
        silent = torch.tensor([not lesson.text for lesson in batch])
        silent_starts = (given == teacher.no_timestamps) & silent[:, None] & self._stage.flat_silence
        labels = labels.masked_fill(silent_starts, IGNORED)
        likely = logits.log_softmax(-1)
        if self._stage.smooth_text_only:
            known = labels != IGNORED
            right = likely[known].gather(1, labels[known][:, None]).mean()
            loss = -(0.95 * right + 0.05 * likely[known][:, : teacher.text_tokens - 1].mean())
        else:
            loss = functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, label_smoothing=SMOOTHING
            )
        if silent_starts.any():
            first = likely[silent_starts]
            loss -= 0.3 * first[:, teacher.end].mean()
            loss -= 0.2 * first[:, : teacher.text_tokens - 1].mean()
        return loss

    def _ctc_loss(self, logits: Tensor, batch: Sequence[Lesson]) -> Tensor:
        steps = torch.tensor([min(logits.shape[1], lesson.frames // 4) for lesson in batch])
        lengths = torch.tensor([len(lesson.text) for lesson in batch])
        targets = torch.tensor([token for lesson in batch for token in lesson.text])
        return functional.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            targets,
            steps,
            lengths,
            blank=self._teacher.text_tokens - 1,
            zero_infinity=True,
        )

    def score(self) -> tuple[float, float]:
        """Of the validation samples: exact texts among speech, and "no speech" said of non-speech."""
        speech = [lesson for lesson in self._teacher.validation if lesson.text]
        rest = [lesson for lesson in self._teacher.validation if not lesson.text]
        exact = sum(
            answer == lesson.text
            for at in range(0, len(speech), 50)
            for lesson, answer in zip(speech[at : at + 50], self._answers(speech[at : at + 50]), strict=True)
        )
        silent = self._called_silent(rest) if rest else 0
        return exact / max(1, len(speech)), silent / max(1, len(rest))

    def _answers(self, batch: Sequence[Lesson]) -> list[list[int]]:
        """Greedy decoding, no timestamps."""
        teacher = self._teacher
        with torch.no_grad():
            memory = self._network.encoder(teacher.features(batch, None, disturb=False))
            tokens = self._prompts(batch)
            done = torch.zeros(len(batch), dtype=torch.bool)
            while tokens.shape[1] < 44 and not done.all():
                following = self._network.decoder(tokens, memory)[:, -1].argmax(-1)
                following[done] = teacher.end
                done |= following == teacher.end
                tokens = torch.cat([tokens, following[:, None]], 1)
        return [[token for token in row[4:] if token != teacher.end] for row in tokens.tolist()]

    def _called_silent(self, batch: Sequence[Lesson]) -> int:
        with torch.no_grad():
            memory = self._network.encoder(self._teacher.features(batch, None, disturb=False))
            first = self._network.decoder(self._prompts(batch), memory)[:, 0].softmax(-1)
        return int((first[:, self._teacher.no_speech] > 0.5).sum())

    def _prompts(self, batch: Sequence[Lesson]) -> Tensor:
        teacher = self._teacher
        languages = (teacher.languages[lesson.sample.language] for lesson in batch)
        rows = [[teacher.start, code, teacher.transcribe, teacher.no_timestamps] for code in languages]
        return torch.tensor(rows)
