"""Where usage is kept: beside the ledger, in the same database, for a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, String, Table, case, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from blockd.exemptions.ledger import Database
from blockd.review.usage import DAY, HOUR, Part, Sum

#: Rows that are written at once.
ROWS = 1_000
#: Candidates of a span that are read.
MOST_NAMES = 10_000
_tables = MetaData()
_usage = Table(
    "blockd_usage",
    _tables,
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("app", String(256), primary_key=True),
    Column("grp", String(256), primary_key=True),
    Column("action", String(16), primary_key=True),
    Column("queries", BigInteger, nullable=False),
    Column("first_ms", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),
)
_devices = Table(
    "blockd_usage_devices",
    _tables,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("app", String(256), primary_key=True),
    Column("grp", String(256), primary_key=True),
    Column("action", String(16), primary_key=True),
    Column("device", String(256), primary_key=True),
)
_names = Table(
    "blockd_usage_candidates",
    _tables,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("name", String(1024), primary_key=True),
    Column("app", String(256), primary_key=True),
    Column("queries", BigInteger, nullable=False),
    Column("first_ms", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),
)


@dataclass(frozen=True)
class Kept:
    """What is known of a span of time."""

    #: hour, app, group, action, queries, first and last in milliseconds.
    usage: Sequence[Any]
    #: app, group -> devices of the span, where they are told apart.
    devices: dict[tuple[str, str], int]
    #: The same of those that were let through, and counted.
    monitored: dict[tuple[str, str], int]
    #: name, app, queries, first and last in milliseconds.
    names: Sequence[Any]


class Store:
    """Usage in a database. Every call may block; LedgerError when the database cannot be reached."""

    def __init__(self, url: str) -> None:
        """Name the database, as the ledger does."""
        self._database = Database(url, _tables)

    def keep(self, part: Part, before: float, logged: Collection[str]) -> None:
        """Add a part; forget what is older than a time in seconds, and devices of groups that are not `logged`."""
        with self._database.begin() as connection:
            for cell, total in part.sums.items():
                place = {"hour": cell.hour, "app": cell.app, "grp": cell.group, "action": cell.action}
                _add(connection, _usage, place, total)
            keys = ("day", "app", "grp", "action", "device")
            rows = [dict(zip(keys, (*device[:4], _text(device[4])), strict=True)) for device in sorted(part.devices)]
            for at in range(0, len(rows), ROWS):
                insert = _insert(connection)(_devices).on_conflict_do_nothing()
                connection.execute(insert, rows[at : at + ROWS])
            for (day, name, app), total in part.names.items():
                _add(connection, _names, {"day": day, "name": _text(name, 1_024), "app": app}, total)
            connection.execute(delete(_usage).where(_usage.c.hour < before // HOUR))
            gone = or_(_devices.c.day < before // DAY, _devices.c.grp.notin_(logged))
            connection.execute(delete(_devices).where(gone))
            connection.execute(delete(_names).where(_names.c.day < before // DAY))

    def read(self, since: float, until: float) -> Kept:
        """Give what was kept of a span."""
        devices = (
            select(_devices.c.app, _devices.c.grp, func.count(func.distinct(_devices.c.device)))
            .where(_devices.c.day >= since // DAY, _devices.c.day <= until // DAY)
            .group_by(_devices.c.app, _devices.c.grp)
        )
        monitored = devices.where(_devices.c.action == "monitor")
        span = select(_usage).where(_usage.c.hour >= since // HOUR, _usage.c.hour <= until // HOUR)
        queries = func.sum(_names.c.queries)
        names = (
            select(_names.c.name, _names.c.app, queries, func.min(_names.c.first_ms), func.max(_names.c.last_ms))
            .where(_names.c.day >= since // DAY, _names.c.day <= until // DAY)
            .group_by(_names.c.name, _names.c.app)
            .order_by(queries.desc(), _names.c.name)
            .limit(MOST_NAMES)
        )
        with self._database.begin() as connection:
            return Kept(
                [tuple(row) for row in connection.execute(span.order_by(_usage.c.hour))],
                {(app, group): count for app, group, count in connection.execute(devices)},
                {(app, group): count for app, group, count in connection.execute(monitored)},
                [(name, app, int(count), *times) for name, app, count, *times in connection.execute(names)],
            )

    def close(self) -> None:
        """Close what is open."""
        self._database.close()


def _add(connection: Connection, table: Table, place: dict[str, Any], total: Sum) -> None:
    """Add to a row that several resolvers write to, or make it."""
    first, last = round(total.first * 1000), round(total.last * 1000)
    row = {**place, "queries": total.queries, "first_ms": first, "last_ms": last}
    adding = _insert(connection)(table).values(**row)
    newest = case((table.c.last_ms < last, last), else_=table.c.last_ms)
    oldest = case((table.c.first_ms > first, first), else_=table.c.first_ms)
    more = {"queries": table.c.queries + total.queries, "first_ms": oldest, "last_ms": newest}
    connection.execute(adding.on_conflict_do_update(index_elements=list(place), set_=more))


def _text(text: str, longest: int = 256) -> str:
    """Write a text as every database takes it, so that one cannot keep all the others from being kept.

    PostgreSQL takes no NUL and nothing longer than its column, and no driver takes half a surrogate pair.
    """
    return text[:longest] if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text[:longest])


def _insert(connection: Connection) -> Any:
    """Give the statement that knows of conflicts; the two databases write it alike."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[connection.dialect.name]
