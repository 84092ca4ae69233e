"""The wall clock, for records only. Decisions are made by the loop's clock or by milliseconds of audio."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the one place
