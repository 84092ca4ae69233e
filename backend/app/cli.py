"""The command line: `malgil serve`, `malgil asr`, `malgil simulate` (also as `python -m app …`)."""

import argparse
import sys
from collections.abc import Sequence

from app.config import load_asr_settings, load_settings
from app.errors import EX_CONFIG, ConfigError, MalgilError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        exit_code: int = options.run(options)
    except ConfigError as error:
        print(f"malgil: {error}", file=sys.stderr)
        return EX_CONFIG
    except MalgilError as error:
        print(f"malgil: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return exit_code


def _parser() -> argparse.ArgumentParser:
    from app.simulator.command import add_arguments

    parser = argparse.ArgumentParser(
        prog="malgil", description="Malgil answers the telephone and talks with the caller."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serving = commands.add_parser("serve", help="start the server; settings come from the environment and .env")
    serving.set_defaults(run=_serve)
    recognising = commands.add_parser(
        "asr", help="start the recogniser as a service of its own (ASR_PORT, ASR_API_KEY; docs/asr-service.md)"
    )
    recognising.set_defaults(run=_asr)
    simulating = commands.add_parser(
        "simulate", help="call a media-stream server as Twilio would, with a software phone"
    )
    add_arguments(simulating)
    return parser


def _serve(_options: argparse.Namespace) -> int:
    settings = load_settings()
    from app.log import configure_logging
    from app.server import serve
    from app.start_table import start_record, start_table
    from app.wiring import Services

    def on_serving(services: Services) -> None:
        if settings.console_logs:
            print(start_table(services), flush=True)
        else:
            start_record(services)

    configure_logging(settings.log_level, settings.console_logs)
    serve(settings, on_serving)
    return 0


def _asr(_options: argparse.Namespace) -> int:
    settings = load_asr_settings()
    from app.asr.models import ModelShelf
    from app.asr_service import serve_asr, start_lines, start_record
    from app.log import configure_logging

    def on_serving(shelf: ModelShelf) -> None:
        if settings.console_logs:
            print(start_lines(settings, shelf), flush=True)
        else:
            start_record(settings, shelf)

    configure_logging(settings.log_level, settings.console_logs)
    serve_asr(settings, on_serving)
    return 0
