"""Every error Malgil raises on purpose, in one tree.

    MalgilError                     code
    ├── ConfigError                 a setting is missing or wrong; the start stops with exit code 78
    ├── InvalidState                our own code used an object out of order (a bug, never a peer's fault)
    ├── ProtocolViolation           a peer broke the wire protocol; carries the WebSocket close code
    ├── TokenRefused, …             refusals of one module, drawn there (stream_token, the simulator)
    └── ProviderError               retryable: a recogniser, model, voice, database or carrier failed; names it
        ├── SttError
        ├── LlmError
        └── TtsError

Adapters translate a vendor's exceptions at their border and chain the cause, so nothing above them ever
catches a vendor's class. `code` is stable and safe to count and to log; the message is for people.
"""

from typing import ClassVar

EX_CONFIG = 78
"""sysexits.h EX_CONFIG: the process was configured wrongly and a restart will not help."""


class MalgilError(Exception):
    code: ClassVar[str] = "malgil"


class ConfigError(MalgilError):
    """The message is one line, names the variable and never holds its value."""

    code = "config"


class InvalidState(MalgilError):
    code = "invalid_state"


class ProtocolViolation(MalgilError):
    """`close_code` follows the table in docs/call-flow.md; `kind` is a counter's label (a closed set)."""

    code = "protocol"

    def __init__(self, message: str, *, close_code: int, kind: str) -> None:
        super().__init__(message)
        self.close_code = close_code
        self.kind = kind


class ProviderError(MalgilError):
    """`kind` says what went wrong in one word; `retryable` whether the same request may work a moment later."""

    code = "provider"

    def __init__(self, message: str, *, provider: str, kind: str, retryable: bool) -> None:
        super().__init__(message)
        self.provider = provider
        self.kind = kind
        self.retryable = retryable


class SttError(ProviderError):
    code = "stt"


class LlmError(ProviderError):
    code = "llm"


class TtsError(ProviderError):
    code = "tts"
