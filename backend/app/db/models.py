"""What is stored: three tables. A change here needs a migration and a new REVISION: see docs/database.md."""

from datetime import UTC, datetime
from typing import ClassVar

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, Index, MetaData, String
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

REVISION = "0002"
"""The newest migration. Kept here so that a start with an up-to-date database need not load Alembic."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware moment, always handed back in UTC. SQLite has no time zones: it keeps the UTC digits as text,
    which sorts as time does. A naive datetime is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a stored moment needs a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {datetime: UtcDateTime, str: String}


class Call(Base):
    __tablename__ = "calls"
    __table_args__ = (
        CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name="ended_whole"),
        Index("ix_calls_started_at_call_sid", "started_at", "call_sid"),  # the list's order and its cursor
    )

    call_sid: Mapped[str] = mapped_column(primary_key=True)
    account_sid: Mapped[str]
    caller: Mapped[str]
    callee: Mapped[str]
    language: Mapped[str]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    end_reason: Mapped[str | None]


class CallExchange(Base):
    """One row a turn. The times are those of TurnLatency: milliseconds since the call was answered."""

    __tablename__ = "exchanges"

    call_sid: Mapped[str] = mapped_column(ForeignKey("calls.call_sid", ondelete="CASCADE"), primary_key=True)
    turn: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    user: Mapped[str]
    bot: Mapped[str]
    interrupted: Mapped[bool]
    speech_end_ms: Mapped[int | None]
    final_ms: Mapped[int | None]
    first_token_ms: Mapped[int | None]
    first_audio_ms: Mapped[int | None]


class ChoiceRow(Base):
    """What an admin chose while the server ran, one row a choice; `version` grows with every change."""

    __tablename__ = "choices"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
    before: Mapped[str]
    setting: Mapped[str]
    why: Mapped[str]
    changed_at: Mapped[datetime]
    version: Mapped[int]
