"""Every setting: its name, its default, its checks. `env.example` is the same list for people; a test holds
the two equal.

A setting comes from the environment, else from `.env`, else from its default. A secret may also come from a
file: `NAME_FILE` names it. Settings are frozen and checked once, at the start: a call never finds a credential
missing.
"""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.errors import ConfigError

ENV_FILE = ".env"
MIN_SECRET_CHARS = 32
PLACEHOLDERS = ("changeme", "change-me", "change_me", "your-", "your_", "xxxx", "<", "placeholder", "todo")
"""How a value begins that nobody has filled in yet."""

E164 = re.compile(r"\+[1-9]\d{1,14}")
URLS = (
    *("public_base_url", "twilio_api_base", "asr_url", "rtzr_api_base", "openai_base_url"),
    *("llm_url", "elevenlabs_base_url"),
)

Positive = Annotated[int, Field(gt=0)]
SttName = Literal["local", "remote", "rtzr", "google", "legacy"]

PROFILES: dict[str, dict[str, Any]] = {
    "latency": {"model_name": "small", "beam_size": 1, "num_predict": 40},
    "balanced": {"model_name": "medium", "beam_size": 2, "num_predict": 60},
    "accuracy": {"model_name": "large-v3", "beam_size": 3, "compute_type": "float16", "num_predict": 60},
    "cpu": {"model_name": "small", "device": "cpu", "compute_type": "int8", "num_predict": 60},
}
"""What PROFILE sets where nothing is set by name. The original's `latency` also had a window of 0.9 s, which cuts words
in two; ours is no faster for it, so it is left out (WINDOW_S takes it)."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True, case_sensitive=False
    )

    # the process
    app_env: Literal["production", "development"] = "production"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    public_base_url: str = ""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "console", ""] = ""

    # Twilio
    twilio_account_sid: str = ""
    twilio_auth_token: SecretStr = SecretStr("")
    twilio_auth_token_secondary: SecretStr = SecretStr("")
    twilio_api_base: str = "https://api.twilio.com"
    twilio_numbers: Annotated[tuple[str, ...], NoDecode] = ()

    # keys of our own
    media_token_secret: SecretStr = SecretStr("")
    admin_api_key: SecretStr = SecretStr("")

    # storage
    database_url: str = "sqlite+aiosqlite:///./data/malgil.db"

    # recognition: who does it
    stt_provider: SttName = "local"
    stt_fallback: Annotated[tuple[SttName, ...], NoDecode] = ()
    stt_provider_by_number: Annotated[dict[str, SttName], NoDecode] = {}
    stt_batch_provider: Literal["google", "openai"] = "google"

    # recognition: our own
    profile: Literal["latency", "balanced", "accuracy", "cpu", ""] = ""
    model_name: str = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_type: str = "auto"
    beam_size: Annotated[int, Field(ge=1, le=10)] = 2
    lang_hint: Literal["ko", "en", "auto"] = "ko"
    vad: Literal["silero", "energy"] = "silero"
    vad_frame_ms: Annotated[int, Field(ge=10, le=40)] = 30
    no_speech_threshold: Annotated[float, Field(ge=0, le=1)] = 0.6
    condition_on_prev: bool = False
    window_s: Annotated[float, Field(ge=0.5, le=30)] = 15.0
    window_overlap_ms: Annotated[int, Field(ge=0, le=500)] = 120
    encoder_window: Literal["auto", "full"] = "auto"
    partial_flush_ms: Annotated[int, Field(ge=100, le=5000)] = 250
    final_flush_silence_ms: Annotated[int, Field(ge=100, le=3000)] = 350

    # recognition: our own, as a service
    asr_url: str = "http://asr:5005"
    asr_port: Annotated[int, Field(ge=0, le=65535)] = 5005
    asr_api_key: SecretStr = SecretStr("")

    # recognition: RTZR
    rtzr_client_id: str = ""
    rtzr_client_secret: SecretStr = SecretStr("")
    rtzr_api_base: str = "https://openapi.vito.ai"
    rtzr_keywords: str = ""
    rtzr_epd_time: Annotated[float, Field(ge=0.1, le=3)] = 0.5

    # recognition: Google and OpenAI
    google_application_credentials: str = ""
    google_speech_endpoint: str = ""
    google_speech_model: str = ""
    openai_api_key: SecretStr = SecretStr("")
    openai_base_url: str = "https://api.openai.com/v1"
    openai_stt_model: str = "gpt-transcribe"

    # the answer
    llm_provider: Literal["ollama", "scripted"] = "ollama"
    llm_url: str = "http://localhost:11434"
    llm_model: str = Field(default="qwen2.5:7b-instruct", validation_alias=AliasChoices("llm_model", "model"))
    num_predict: Positive = 60
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.6
    context_turns: Annotated[int, Field(ge=0, le=50)] = 6

    # the voice
    tts_provider: Literal["elevenlabs", "espeak", ""] = ""
    elevenlabs_api_key: SecretStr = SecretStr("")
    elevenlabs_voice_id: str = ""
    elevenlabs_model: str = "eleven_flash_v2_5"
    elevenlabs_base_url: str = "https://api.elevenlabs.io"

    # the conversation
    barge_in: Literal["speech", "words", "off"] = "words"
    lead_ms: Annotated[int, Field(ge=100, le=5000)] = 600
    max_calls: Positive = 100
    max_call_s: Positive = 1800
    drain_s: Annotated[int, Field(ge=0)] = 300

    # ------------------------------------------------------------ derived

    @property
    def development(self) -> bool:
        return self.app_env == "development"

    @property
    def base_url(self) -> str:
        """What Twilio calls and signs, without a trailing slash."""
        return (self.public_base_url or f"http://{_bracketed(self.host)}:{self.port}").rstrip("/")

    @property
    def stream_url(self) -> str:
        """The media stream's URL: `base_url` with the scheme that a socket has."""
        scheme, rest = self.base_url.split("://", 1)
        return f"{'wss' if scheme == 'https' else 'ws'}://{rest}/twilio/stream"

    @property
    def voice(self) -> Literal["elevenlabs", "espeak"]:
        """TTS_PROVIDER, or by its absence: ElevenLabs where there is a key, else the keyless voice."""
        if self.tts_provider:
            return self.tts_provider
        return "elevenlabs" if self.elevenlabs_api_key.get_secret_value() else "espeak"

    @property
    def recognisers(self) -> tuple[SttName, ...]:
        """All that calls may be given: the chosen one, its successors, those of single numbers."""
        return tuple(dict.fromkeys((self.stt_provider, *self.stt_fallback, *self.stt_provider_by_number.values())))

    def missing(self, recogniser: SttName) -> tuple[str, ...]:
        """The variables without which it cannot be used."""
        google = {"GOOGLE_APPLICATION_CREDENTIALS": self.google_application_credentials or self.google_speech_endpoint}
        needed: dict[str, str] = {}
        match recogniser:
            case "remote":
                needed = {"ASR_URL": self.asr_url}
            case "rtzr":
                secret = self.rtzr_client_secret.get_secret_value()
                needed = {"RTZR_CLIENT_ID": self.rtzr_client_id, "RTZR_CLIENT_SECRET": secret}
            case "google":
                needed = google
            case "legacy" if self.stt_batch_provider == "openai":
                needed = {"OPENAI_API_KEY": self.openai_api_key.get_secret_value()}
            case "legacy":
                needed = google
        return tuple(name for name, value in needed.items() if not value or value.lower().startswith(PLACEHOLDERS))

    @property
    def console_logs(self) -> bool:
        return self.log_format == "console" or (not self.log_format and self.development)

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    # ------------------------------------------------------------ checks

    @field_validator("twilio_numbers", "stt_fallback", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("stt_provider_by_number", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if any(not E164.fullmatch(number.strip()) for number, _, _ in pairs):
            raise ValueError("write it as +821012345678=rtzr, comma-separated")
        return {number.strip(): name.strip() for number, _, name in pairs}

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_bind("leaves webhooks unsigned")
        if not self.development:
            self._check_production()
        elif self.public_base_url and not is_loopback(urlsplit(self.public_base_url).hostname or ""):
            why = "PUBLIC_BASE_URL can be reached by others"
            _require("TWILIO_AUTH_TOKEN", self.twilio_auth_token, why)
            _require("ADMIN_API_KEY", self.admin_api_key, why, min_chars=MIN_SECRET_CHARS)
        self._check_recognisers()
        if self.voice == "elevenlabs":
            _require("ELEVENLABS_API_KEY", self.elevenlabs_api_key, "the voice is ElevenLabs")
            _require("ELEVENLABS_VOICE_ID", self.elevenlabs_voice_id, "the voice is ElevenLabs")
        for name in URLS:
            _check_url(name.upper(), getattr(self, name))
        return self

    def _check_bind(self, why: str) -> None:
        if self.development and not self.loopback:
            raise ConfigError(
                f"HOST: development mode {why}, so it binds to a loopback address only; "
                "set HOST=127.0.0.1, or APP_ENV=production"
            )

    def _check_recognisers(self) -> None:
        for name in self.recognisers:
            if missing := self.missing(name):
                raise ConfigError(
                    f"{', '.join(missing)}: not set (or still a placeholder), and {name} is among the recognisers "
                    "(STT_PROVIDER, STT_FALLBACK, STT_PROVIDER_BY_NUMBER); set it in the environment or in .env "
                    "(see env.example)"
                )
        if self.partial_flush_ms >= self.window_s * 1000:
            raise ConfigError("PARTIAL_FLUSH_MS: must be less than WINDOW_S, or no partial is ever due")

    def _check_production(self) -> None:
        why = "APP_ENV is production"
        _require("PUBLIC_BASE_URL", self.public_base_url, why)
        if urlsplit(self.public_base_url).scheme != "https":
            raise ConfigError("PUBLIC_BASE_URL: must begin with https:// in production; Twilio streams to wss only")
        _require("TWILIO_ACCOUNT_SID", self.twilio_account_sid, why)
        _require("TWILIO_AUTH_TOKEN", self.twilio_auth_token, why)
        _require("MEDIA_TOKEN_SECRET", self.media_token_secret, why, min_chars=MIN_SECRET_CHARS)
        _require("ADMIN_API_KEY", self.admin_api_key, why, min_chars=MIN_SECRET_CHARS)
        if not self.tts_provider and not self.elevenlabs_api_key.get_secret_value():
            raise ConfigError(
                "TTS_PROVIDER: not set, and there is no ELEVENLABS_API_KEY; set that key, or TTS_PROVIDER=espeak "
                "for the keyless voice"
            )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _SecretFiles(settings_cls), dotenv_settings, _Profile(settings_cls)


class AsrSettings(Settings):
    """For the recogniser as a program of its own: neither a telephone nor a voice is asked for."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_bind("leaves the recogniser open to anybody")
        if not self.development and not self.loopback:
            why = "HOST can be reached by others"
            _require("ASR_API_KEY", self.asr_api_key, why, min_chars=MIN_SECRET_CHARS)
        return self


class _Profile(PydanticBaseSettingsSource):
    """What PROFILE stands for. The last to be asked, so whatever is set by name wins."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return PROFILES.get(str(self.current_state.get("profile", "")), {})


class _SecretFiles(PydanticBaseSettingsSource):
    """`NAME_FILE=/run/secrets/name` gives the secret NAME, for containers that mount secrets as files."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        variable = f"{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        if field.annotation is not SecretStr or not path:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{variable}: the file cannot be read ({type(error).__name__})") from error

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(env_file: str | None = ENV_FILE, **overrides: Any) -> Settings:
    """Read and check the settings. Raises ConfigError with one line that names the variable, never its value."""
    return _load(Settings, env_file, overrides)


def load_asr_settings(env_file: str | None = ENV_FILE, **overrides: Any) -> AsrSettings:
    """The same for `malgil asr`."""
    return _load(AsrSettings, env_file, overrides)


def _load(kind: type[AnySettings], env_file: str | None, overrides: dict[str, Any]) -> AnySettings:
    try:
        return kind(_env_file=env_file, **overrides)  # type: ignore[call-arg]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{env_file}: not a text file in UTF-8; env.example shows what it looks like") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = str(first["loc"][0]).upper() if first["loc"] else "settings"
        raise ConfigError(f"{name}: {first['msg'].lower().removeprefix('value error, ')}; see env.example") from error


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _require(name: str, value: str | SecretStr, why: str, min_chars: int = 1) -> None:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not text:
        raise ConfigError(f"{name}: not set, and {why}; set it in the environment or in .env (see env.example)")
    if len(text) < min_chars:
        raise ConfigError(f"{name}: too short, {min_chars} characters at least; try: openssl rand -hex 32")
    if isinstance(value, SecretStr) and text.lower().startswith(PLACEHOLDERS):
        raise ConfigError(f"{name}: still a placeholder, and {why}; put the real one in")


def _check_url(name: str, value: str) -> None:
    if not value:
        return
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"{name}: must be an http(s) URL; its host or port is none") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"{name}: must be an http(s) URL with a host and without a query")
    if parts.username is not None:
        raise ConfigError(f"{name}: a login inside the URL is not used; take it out")
