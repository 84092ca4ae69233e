"""Alembic's entry. The server hands in its connection; on the command line DATABASE_URL names one."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from app.db.engine import open_database
from app.db.models import Base


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


async def run_by_hand() -> None:
    database = open_database(os.environ["DATABASE_URL"])
    try:
        await database.alter(run)
    finally:
        await database.aclose()


handed_in: Connection | None = context.config.attributes.get("connection")
if handed_in is None:
    asyncio.run(run_by_hand())
else:
    run(handed_in)
