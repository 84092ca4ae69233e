"""What a person sees when the server is up: which services are in use, why, and what to set for better ones."""

import structlog

from app.wiring import Services

log = structlog.get_logger(__name__)

DEFAULT_URL = "http://127.0.0.1:8000"
LABELS = {"stt": "recogniser", "llm": "model", "tts": "voice"}


def start_table(services: Services) -> str:
    settings = services.settings
    lines = ["", f"  Malgil listens on {settings.host} port {settings.port}  ({settings.app_env})", ""]
    for kind, row in services.in_use.items():
        lines.append(f"  {LABELS[kind]:<11} {row.name}")
        if row.why:
            lines.append(f"  {'':<11} because: {row.why}")
        if row.better:
            lines.append(f"  {'':<11} better:  {row.better}")
    lines.append(f"  {'speech':<11} {services.vad_name}")
    lines.append("")
    ill = {name: health.note for name, health in services.readiness.components.items() if not health.ok}
    for name, note in ill.items():
        lines.append(f"  NOT READY   {name}: {note}")
    if settings.development:
        lines.append(f"  Call it:    {_example_call(services)}")
        lines.append("  For a real telephone number see README.md; settings are listed in env.example.")
    else:
        lines.append(f"  Voice webhook for your Twilio number: {settings.base_url}/twilio/voice")
    return "\n".join([*lines, ""])


def _example_call(services: Services) -> str:
    settings = services.settings
    url = "" if settings.base_url == DEFAULT_URL else f" --url {settings.base_url}"
    english = settings.lang_hint == "en"
    words = ("Hello.", "What are your opening hours?") if english else ("안녕하세요.", "영업시간이 어떻게 되나요?")
    return f".venv/bin/malgil simulate{url}" + "".join(f' --say "{text}"' for text in words)


def start_record(services: Services) -> None:
    """The same for a collector of JSON logs."""
    in_use = {kind: row.name for kind, row in services.in_use.items()}
    ill = {name: health.note for name, health in services.readiness.components.items() if not health.ok}
    log.info("- serving", url=services.settings.base_url, speech=services.vad_name, not_ready=ill, **in_use)
