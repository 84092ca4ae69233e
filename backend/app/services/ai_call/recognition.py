"""Which recogniser serves which call: chosen by the settings, exchanged while running, watched all the time.

    GET, PUT /api/providers ──▶ Recognition ──▶ Succession (of one call) ──▶ Listener
                                  │  ▲
             the store: one choice for all workers, past a restart
                                  │
             probes: a broken recogniser is tried with a spoken sentence until it is well again

A recogniser that was switched to is on trial. Should it break within `trial_s`, the one before serves again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import structlog

from app.errors import ConfigError, MalgilError, ProviderError, SttError
from app.services.ai_call.in_use import InUse, Row
from app.services.ai_call.ports import Admitting, Checkable, Choice, ChoiceStore, SpeechToText
from app.services.ai_call.preflight import PreflightOptions, preflight
from app.services.ai_call.succession import Candidate

log = structlog.get_logger(__name__)

CHOICE = "stt"
Work = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Opened:
    """A recogniser that is open; `chore` is work of its own that goes on behind the calls, `figures` what it counts,
    for the metrics."""

    stt: SpeechToText
    row: Row
    chore: Work | None = None
    figures: Callable[[], Mapping[str, float]] = dict


@dataclass(frozen=True, slots=True)
class Offer:
    """One that there could be. `missing` names the settings that it lacks; `open` raises ConfigError."""

    name: str
    missing: tuple[str, ...]
    open: Callable[[], Awaitable[Opened]]


@dataclass(frozen=True, slots=True)
class RecognitionOptions:
    """`chosen` is STT_PROVIDER, `language` that of the sentence for probes. `follow_s`: how often the store is asked
    what another worker chose. `open_s` bounds the opening of a recogniser while running: a model may have to be loaded.
    """

    chosen: str
    fallback: tuple[str, ...] = ()
    by_number: Mapping[str, str] = field(default_factory=dict)
    language: str = "ko"
    trial_s: float = 600.0
    follow_s: float = 2.0
    probe_tick_s: float = 0.5
    open_s: float = 60.0
    adopt_again_s: float = 60.0
    preflight: PreflightOptions = field(default_factory=PreflightOptions)


@dataclass(frozen=True, slots=True)
class Report:
    """A line of GET /api/providers. `healthy` is None for one that was never opened here: nobody asked it."""

    name: str
    chosen: bool
    missing: tuple[str, ...]
    healthy: bool | None
    note: str
    latency_ms: tuple[int, int] | None
    calls: int


class UnknownRecogniser(MalgilError):
    code = "unknown_recogniser"


class NotConfigured(MalgilError):
    """`missing` may be empty: then the message says what else stands in the way."""

    code = "not_configured"

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class SwitchedElsewhere(MalgilError):
    code = "switched_elsewhere"


class Recognition:
    """`now` is the loop's time, `utc_now` the wall clock; `start` runs work that nobody waits for; `on_final` is told
    each final with words: the recogniser's name, and milliseconds since the end of speech."""

    def __init__(
        self,
        recognisers: Sequence[Offer],
        options: RecognitionOptions,
        store: ChoiceStore,
        *,
        now: Callable[[], float],
        utc_now: Callable[[], datetime],
        start: Callable[[Coroutine[Any, Any, None]], object],
        on_final: Callable[[str, float], None] = lambda name, ms: None,
    ) -> None:
        self._table = {recogniser.name: recogniser for recogniser in recognisers}
        self._options = options
        self._store = store
        self._now = now
        self._utc_now = utc_now
        self._start = start
        self._on_final = on_final
        self._open: dict[str, Candidate] = {}
        self._rows: dict[str, Row] = {}
        self._figures: list[Callable[[], Mapping[str, float]]] = []
        self._notes: dict[str, str] = {}  # what its last check, or its opening, complained of
        self._choice: Choice | None = None
        self._seen = 0
        """The version of the choice in the store, whether it could be adopted or not."""
        self._try_again_at = 0.0
        self._changing = asyncio.Lock()

    # ------------------------------------------------------------ for calls

    @property
    def chosen(self) -> str:
        return self._choice.value if self._choice else self._options.chosen

    def for_call(self, callee: str) -> tuple[Candidate, ...]:
        """Who may hear a call to this number of ours, in order; the first one that is well begins."""
        names = [self._options.by_number.get(callee, self.chosen), *self._options.fallback]
        if self._on_trial:
            names.append(self._choice.before)  # type: ignore[union-attr]
        return tuple(self._open[name] for name in dict.fromkeys(names) if name in self._open)

    def full(self, callee: str) -> bool:
        """A further call to this number would have to wait for its words."""
        first = next((one for one in self.for_call(callee) if not one.breaker.open), None)
        return first is not None and isinstance(first.stt, Admitting) and first.stt.full

    # ------------------------------------------------------------ for people

    def row(self) -> InUse:
        row = self._rows[self.chosen]()
        if self._choice is None:
            return row
        return InUse(row.name, self._choice.why, row.better)

    def figures(self) -> dict[str, float]:
        """What the recognisers of our own count."""
        return {name: value for figures in self._figures for name, value in figures().items()}

    def report(self) -> list[Report]:
        return [self._report(recogniser) for recogniser in self._table.values()]

    def _report(self, recogniser: Offer) -> Report:
        name = recogniser.name
        candidate = self._open.get(name)
        note = self._notes.get(name, "")
        healthy = None
        if candidate is not None:
            healthy = not candidate.breaker.open and not note
            note = note or (f"it failed ({candidate.breaker.reason}); it is being probed" if not healthy else "")
        return Report(
            name,
            name == self.chosen,
            recogniser.missing,
            healthy,
            note,
            candidate.latency_ms() if candidate else None,
            candidate.calls if candidate else 0,
        )

    async def check(self) -> None:
        """Raises SttError when none of those that an ordinary call may use is well."""
        candidates = self.for_call("")
        async with asyncio.TaskGroup() as group:
            asked = {name: group.create_task(self._is_well(candidate)) for name, candidate in self._open.items()}
        if not any(asked[candidate.name].result() for candidate in candidates):
            notes = "; ".join(self._report(self._table[one.name]).note for one in candidates)
            raise SttError(notes or "no recogniser is open", provider=self.chosen, kind="unavailable", retryable=True)

    async def _is_well(self, candidate: Candidate) -> bool:
        note = ""
        if isinstance(candidate.stt, Checkable):
            try:
                await candidate.stt.check()
            except MalgilError as error:
                note = str(error)
            except Exception as error:  # the edge of a check: a bug in one says nothing about the others
                log.error("x check broke", provider=candidate.name, exc_info=error)
                note = f"its check broke ({type(error).__name__}); the log has the stack"
        self._notes[candidate.name] = note
        return not note and not candidate.breaker.open

    # ------------------------------------------------------------ opening

    async def open(self) -> None:
        """Open what the settings name, then what was chosen while running. Raises ConfigError for the former; the
        latter is given up with a warning when it cannot be opened any more."""
        wanted = (self._options.chosen, *self._options.fallback, *self._options.by_number.values())
        for name in dict.fromkeys(wanted):
            await self._opened(name)
        await self._follow()

    async def _opened(self, name: str) -> Candidate:
        if name not in self._open:
            opened = await self._table[name].open()
            self._open[name] = Candidate(name, opened.stt, on_final=self._on_final)
            self._rows[name] = opened.row
            self._figures.append(opened.figures)
            if opened.chore is not None:
                self._start(opened.chore())
        return self._open[name]

    async def _adopt(self, choice: Choice) -> None:
        """What another worker, or this one before its restart, chose."""
        if trouble := await self._trouble_opening(choice.value):
            self._notes[choice.value] = trouble
            log.warning("x chosen recogniser cannot be used here", provider=choice.value, reason=trouble)
            return
        if trouble := await self._trouble_opening(choice.before):
            log.warning("x no way back to the recogniser before", provider=choice.before, reason=trouble)
            choice = replace(choice, before=choice.value)
        self._open[choice.value].breaker.succeeded()  # its pre-flight is newer than what is known here
        self._choice = choice
        log.info("- recogniser chosen", provider=choice.value, why=choice.why)

    async def _trouble_opening(self, name: str) -> str:
        recogniser = self._table.get(name)
        if recogniser is None or recogniser.missing:
            return f"{', '.join(recogniser.missing) if recogniser else name} is not set"
        try:
            async with asyncio.timeout(self._options.open_s):
                await self._opened(name)
        except ConfigError as error:
            return str(error)
        except TimeoutError:
            return f"it was not open within {self._options.open_s:g} s"
        return ""

    # ------------------------------------------------------------ switching

    async def switch(self, name: str) -> None:
        """New calls use `name` from now on, in all workers. Raises UnknownRecogniser, NotConfigured, SttError when a
        spoken sentence does not come back as words, SwitchedElsewhere, and ProviderError when the choice cannot be
        stored; then nothing has changed."""
        recogniser = self._table.get(name)
        if recogniser is None:
            raise UnknownRecogniser(f"{name!r} is none of {', '.join(self._table)}")
        if recogniser.missing:
            raise NotConfigured(
                f"{name} lacks {', '.join(recogniser.missing)}: set it in the environment or in .env, then start again",
                recogniser.missing,
            )
        async with self._changing:
            await self._follow()
            try:
                candidate = await self._open_for_switch(name)
                await preflight(candidate.stt, self._options.language, self._options.preflight)
            except SttError as error:
                log.warning("x switch refused", provider=name, kind=error.kind)
                raise
            candidate.breaker.succeeded()
            self._notes[name] = ""
            if name != self.chosen:
                await self._choose(name, self.chosen, f"switched from {self.chosen} by an admin")

    async def _open_for_switch(self, name: str) -> Candidate:
        try:
            async with asyncio.timeout(self._options.open_s):
                return await self._opened(name)
        except ConfigError as error:
            raise NotConfigured(str(error)) from error
        except TimeoutError as error:
            message = f"{name} was not open within {self._options.open_s:g} s; is its model still being fetched?"
            raise SttError(message, provider=name, kind="timeout", retryable=True) from error

    async def _choose(self, name: str, before: str, why: str) -> None:
        # in place of what was seen when this was decided: a choice made elsewhere meanwhile stays
        choice = Choice(name, before, self._options.chosen, why, self._utc_now(), self._seen)
        now = await self._store.put(CHOICE, choice)
        if now is None:
            raise SwitchedElsewhere("another worker has just switched; look again")
        log.info("- recogniser switched", provider=name, was=self.chosen, why=why)
        self._choice = now
        self._seen = now.version

    @property
    def _on_trial(self) -> bool:
        if self._choice is None or self._choice.before == self._choice.value:
            return False
        return (self._utc_now() - self._choice.changed_at).total_seconds() < self._options.trial_s

    # ------------------------------------------------------------ watching

    async def run(self) -> None:
        """Follow the other workers, take back a switch that failed, and probe what is broken."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_following())
            group.create_task(self._keep_probing())

    async def _keep_following(self) -> None:
        while True:
            await asyncio.sleep(self._options.follow_s)
            try:
                async with self._changing:
                    await self._follow()
                    await self._roll_back()
            except (ProviderError, SwitchedElsewhere) as error:
                log.debug("x choice of the recogniser not read", error=str(error))

    async def _follow(self) -> None:
        choice = await self._store.get(CHOICE)
        if choice is None or (choice.version == self._seen and self._now() < self._try_again_at):
            return
        self._seen = choice.version
        self._try_again_at = self._now() + self._options.adopt_again_s
        adopted = self._choice is not None and self._choice.version == choice.version
        if choice.setting == self._options.chosen and not adopted:  # else STT_PROVIDER is the newer word
            await self._adopt(choice)

    async def _roll_back(self) -> None:
        choice = self._choice
        if choice is None or choice.version != self._seen or not self._on_trial:
            return
        if not self._open[choice.value].breaker.open:
            return
        reason = self._open[choice.value].breaker.reason
        log.warning("x switched back", provider=choice.before, was=choice.value, kind=reason)
        why = f"switched back from {choice.value}, which failed ({reason})"
        await self._choose(choice.before, choice.before, why)  # before itself: this one is not on trial

    async def _keep_probing(self) -> None:
        while True:
            await asyncio.sleep(self._options.probe_tick_s)
            due = [one for one in self._open.values() if one.suspected or one.breaker.probe_due(self._now())]
            async with asyncio.TaskGroup() as group:
                for candidate in due:
                    group.create_task(self._probe(candidate))

    async def _probe(self, candidate: Candidate) -> None:
        kind = ""
        try:
            await preflight(candidate.stt, self._options.language, self._options.preflight)
        except SttError as error:
            kind = error.kind
        except Exception as error:  # the edge of a probe: it must not end the others
            log.error("x probe broke", provider=candidate.name, exc_info=error)
            kind = "bug"
        candidate.suspected = False
        if not kind:
            log.info("- recogniser understands", provider=candidate.name, was_broken=candidate.breaker.open)
            candidate.breaker.succeeded()
        elif candidate.breaker.open:
            candidate.breaker.probe_failed(self._now(), kind)
            log.debug("x recogniser still broken", provider=candidate.name, kind=kind)
        else:
            candidate.breaker.failed(self._now(), kind, curable=False)
            log.warning("x recogniser is broken", provider=candidate.name, kind=kind)
