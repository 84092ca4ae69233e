"""What an admin chose while the server ran. All workers read it, and of two that change it at once one wins."""

from dataclasses import asdict, replace

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from app.db.engine import Database
from app.db.models import ChoiceRow
from app.errors import ProviderError
from app.services.ai_call.ports import Choice


class SqlChoiceStore:
    """A ChoiceStore. Every method raises ProviderError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> Choice | None:
        async with self._database.transaction() as connection:
            row = (await connection.execute(select(ChoiceRow.__table__).where(ChoiceRow.name == name))).first()
        if row is None:
            return None
        return Choice(row.value, row.before, row.setting, row.why, row.changed_at, row.version)

    async def put(self, name: str, choice: Choice) -> Choice | None:
        stored = replace(choice, version=choice.version + 1)
        values = {"name": name, **asdict(stored)}
        try:
            async with self._database.transaction() as connection:
                if choice.version:
                    replaced = update(ChoiceRow).where(ChoiceRow.name == name, ChoiceRow.version == choice.version)
                    done = (await connection.execute(replaced.values(**values))).rowcount
                else:
                    done = (await connection.execute(insert(ChoiceRow).values(**values))).rowcount
        except ProviderError as error:
            if isinstance(error.__cause__, IntegrityError):  # somebody else was the first to choose
                return None
            raise
        return stored if done else None
