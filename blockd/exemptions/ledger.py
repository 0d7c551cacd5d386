"""The ledger: every request, approval, revocation, command and refusal, each chained to the one before by hash.

Names of people are no part of the chain: it holds salted digests of them, and a table beside it says whose they are. A
name can be erased there, by law, and the chain still holds.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    func,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from blockd.problems import Problem

#: Kinds of entries that somebody may be exempt by.
GRANTS = ("request", "approve")
#: Seconds by which clocks may differ.
SKEW = 30.0
#: Where PostgreSQL tells of entries, the driver that can listen to it, seconds between two looks at whether to stop.
CHANNEL, LISTENS, PAUSE = "blockd_ledger", "postgresql+psycopg", 1.0
#: A connection on which nothing is said is asked whether it lives: seconds until, between, and how often.
ALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
#: Milliseconds since 1970: the beginning of the first year and the end of the last one that calendars here know.
FIRST_MS, END_MS = -62_135_596_800_000, 253_402_300_800_000
#: What the first entry is chained to.
BEGINNING = "0" * 64

_tables = MetaData()
_entries = Table(
    "blockd_ledger",
    _tables,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("body", Text, nullable=False),
    Column("before", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)
_people = Table(
    "blockd_people",
    _tables,
    Column("digest", String(64), primary_key=True),
    Column("salt", String(32), nullable=False),
    Column("name", String(256), nullable=False, unique=True),
)


class LedgerError(Exception):
    """The store cannot be reached, or does not take what is to be written."""


class LedgerBroken(LedgerError):
    """What it holds is not what was written."""


class LedgerMoved(LedgerError):
    """Somebody else wrote to it meanwhile: read again, and then write."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    number: int
    #: Milliseconds since 1970.
    at_ms: int
    kind: str
    body: dict[str, Any]
    before: str
    hash: str

    @property
    def at(self) -> float:
        """Seconds since 1970."""
        return self.at_ms / 1000

    def skip(self, reason: str) -> Problem:
        """Say why this entry, which is in the chain, cannot be used."""
        return Problem("ledger", self.number, self.kind, reason)

    def as_json(self) -> dict[str, Any]:
        """Give it as it is exported."""
        return {
            "number": self.number,
            "at_ms": self.at_ms,
            "kind": self.kind,
            "body": self.body,
            "before": self.before,
            "hash": self.hash,
        }


def written(body: dict[str, Any]) -> str:
    """Write a body in the one way that is hashed."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def read_body(text: str) -> dict[str, Any]:
    """Read a body; one that is not an object is empty, and then nothing that asks for a key of it finds any."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def digest(number: int, at_ms: int, kind: str, body: str, before: str) -> str:
    """Give the hash of an entry: SHA-256 over its parts, none of which can be mistaken for another's."""
    return hashlib.sha256(json.dumps([number, at_ms, kind, body, before]).encode()).hexdigest()


@dataclass(frozen=True)
class Head:
    """The last entry's number and hash: who knows it finds out whether the ledger was cut or written anew."""

    number: int = 0
    hash: str = BEGINNING

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


def read_head(text: str) -> Head:
    """Read `NUMBER:HASH`. ValueError when it is none."""
    number, _, found = text.partition(":")
    if (
        not (number.isascii() and number.isdigit() and len(number) < 20)
        or len(found) != 64
        or not all(digit in "0123456789abcdef" for digit in found)
    ):
        raise ValueError(f"{text!r} is no head of a ledger, such as 12:{'0' * 8}..., 64 digits in all")
    return Head(int(number), found)


@dataclass
class Book:
    """The ledger as it was read, and found to be whole."""

    entries: list[Entry] = field(default_factory=list)
    #: Digest -> name, of the people whose names are not erased.
    people: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Head:
        """Give the head; of an empty one, the beginning."""
        return Head(self.entries[-1].number, self.entries[-1].hash) if self.entries else Head()

    @property
    def latest(self) -> float:
        """Give the time of the newest entry."""
        return self.entries[-1].at if self.entries else 0.0


def problem_of(entries: Iterable[tuple[Any, ...]], head: Head | None = None) -> str | None:
    """Say what is wrong with a chain, if anything is; with a head, also whether that is still in it."""
    before, expected = BEGINNING, 1
    is_met = head is None or head.number == 0
    for number, at_ms, kind, body, linked, found in entries:
        # SQLite has any type in any column, and a time that no calendar knows could not even be shown.
        are_types = (type(number), type(at_ms)) == (int, int) and {type(kind), type(body), type(linked)} == {str}
        if not are_types or not 0 <= at_ms < END_MS:
            return f"entry {expected} is not what was written"
        if number != expected:
            return f"entry {expected} is missing"
        if linked != before:
            return f"entry {number} is not chained to the one before it"
        if found != digest(number, at_ms, kind, body, linked):
            return f"entry {number} is not what was written"
        if head is not None and head.number == number:
            if head.hash != found:
                return f"entry {number} is another than the head says: the ledger was written anew"
            is_met = True
        before, expected = found, expected + 1
    if not is_met and head is not None:
        return f"the ledger ends at entry {expected - 1}, and the head says {head.number}: it was cut"
    return None


class Database:
    """One database, by its URL, opened when it is first wanted."""

    def __init__(self, url: str, tables: MetaData) -> None:
        """Name it, and the tables that must be there."""
        self._url, self._tables = url, tables
        self._engine: Engine | None = None
        #: SQLite's file, and which one it was when it was opened.
        self._file: Path | None = None
        self._is_file = (0, 0)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Begin a transaction. LedgerError when the store cannot be reached; IntegrityError is the caller's."""
        try:
            self._leave_other_file()
            with self._connect().begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise LedgerError(_text(error)) from None

    def close(self) -> None:
        """Close what is open."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def _leave_other_file(self) -> None:
        """Let a file go that is not the one of this name any more: everybody reads and writes the same."""
        if self._engine is None or self._file is None:
            return
        try:
            found = self._file.stat()
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._is_file:
            self.close()

    def _connect(self) -> Engine:
        if self._engine is None:
            engine = create_engine(self._url, pool_pre_ping=True, connect_args=_patience(self._url))
            if engine.url.get_backend_name() == "sqlite" and engine.url.database:
                self._file = Path(engine.url.database)
                _touch(self._file)
                found = self._file.stat()
                self._is_file = (found.st_dev, found.st_ino)
            self._tables.create_all(engine)
            self._engine = engine
        return self._engine


class Ledger:
    """A ledger in a database. Every call may block; one thread at a time."""

    def __init__(self, url: str) -> None:
        """Name the database, as SQLAlchemy does: `sqlite:///FILE` or `postgresql+psycopg://...`."""
        self._url, self._database = url, Database(url, _tables)

    def read(self, head: Head | None = None) -> Book:
        """Read all of it. LedgerError when it cannot be reached, or is not whole, or does not hold this head."""
        with self._database.begin() as connection:
            rows = [tuple(row) for row in connection.execute(select(_entries).order_by(_entries.c.number))]
            people = {
                row.digest: row.name
                for row in connection.execute(select(_people))
                if isinstance(row.digest, str) and isinstance(row.name, str)
            }
        problem = problem_of(rows, head)
        if problem is not None:
            raise LedgerBroken(f"the ledger is not whole: {problem}")
        return Book(
            [Entry(n, at, kind, read_body(body), before, own) for n, at, kind, body, before, own in rows], people
        )

    def head(self) -> Head:
        """Give the head alone. LedgerError when the store cannot be reached."""
        newest = select(_entries.c.number, _entries.c.hash).order_by(_entries.c.number.desc()).limit(1)
        with self._database.begin() as connection:
            row = connection.execute(newest).first()
        return Head() if row is None else Head(row.number, row.hash)

    def append(self, book: Book, at: float, kind: str, body: dict[str, Any]) -> Book:
        """Add an entry behind a book's last. LedgerError, and nothing is written, when it is not the last any more."""
        at_ms, latest = round(at * 1000), round(book.latest * 1000)
        if at_ms < latest:
            # Clocks of several machines differ; and nothing may stand in the way of a revocation.
            if kind in GRANTS and latest - at_ms > 1000 * SKEW:
                raise LedgerError("the clock stands before the ledger's newest entry: set it right first")
            at_ms = latest
        number, before, words = book.head.number + 1, book.head.hash, written(body)
        entry = Entry(number, at_ms, kind, body, before, digest(number, at_ms, kind, words, before))
        try:
            with self._database.begin() as connection:
                if connection.dialect.name == "postgresql":
                    # Its clock is everybody's: an entry from ahead would close exemptions on all until that time comes.
                    theirs = float(connection.execute(select(func.extract("epoch", func.now()))).scalar() or 0)
                    if at - theirs > SKEW:
                        raise LedgerError("this machine's clock is ahead of the database's: set it right first")
                last = connection.execute(select(func.max(_entries.c.number))).scalar() or 0
                if last != book.head.number:
                    raise LedgerMoved("somebody else wrote to the ledger meanwhile: try again")
                connection.execute(insert(_entries).values(**{**entry.as_json(), "body": words}))
                if connection.dialect.name == "postgresql":
                    # Sent when it is committed, and not before.
                    connection.execute(select(func.pg_notify(CHANNEL, str(number))))
        except IntegrityError:
            raise LedgerMoved("somebody else wrote to the ledger meanwhile: try again") from None
        return Book([*book.entries, entry], book.people)

    def hear(self, news: Callable[[], None], is_over: Callable[[], bool]) -> None:
        """Call `news` when somebody wrote, until it is over; returns at once where the database tells nobody.

        LedgerError when it cannot be reached, or not any more. Call it in a thread of its own.
        """
        url = make_url(self._url)
        if url.drivername != LISTENS:
            return
        try:
            engine = create_engine(url, poolclass=NullPool, connect_args={**_patience(self._url), **ALIVE})
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text(f"LISTEN {CHANNEL}"))
                # It may have been written to before anybody listened.
                news()
                driver: Any = connection.connection.driver_connection
                while not is_over():
                    for _ in driver.notifies(timeout=PAUSE, stop_after=1):
                        news()
        except Exception as error:  # noqa: BLE001  of the driver, a package of its own that may not be there
            raise LedgerError(f"the ledger's news are not heard: {error}") from None

    def person(self, book: Book, name: str) -> str:
        """Give the digest that stands for a person, a new one for somebody new."""
        known = next((own for own, whose in book.people.items() if whose == name), None)
        if known is not None:
            return known
        salt = secrets.token_hex(16)
        own = hashlib.sha256(f"{salt}{name}".encode()).hexdigest()
        try:
            with self._database.begin() as connection:
                connection.execute(insert(_people).values(digest=own, salt=salt, name=name))
        except IntegrityError:
            raise LedgerMoved("somebody else wrote to the ledger meanwhile: try again") from None
        book.people[own] = name
        return own

    def forget(self, book: Book, name: str) -> bool:
        """Erase a person's name; False when it is not known. What was done under it stays."""
        known = [own for own, whose in book.people.items() if whose.partition(":")[0] == name]
        with self._database.begin() as connection:
            connection.execute(delete(_people).where(_people.c.digest.in_(known)))
        for own in known:
            del book.people[own]
        return bool(known)

    def close(self) -> None:
        """Close what is open."""
        self._database.close()


def _patience(url: str) -> dict[str, Any]:
    """Bound every wait for a database of another machine: a grant that hangs is no grant."""
    if make_url(url).get_backend_name() != "postgresql":
        return {}
    return {"connect_timeout": 3, "options": "-c statement_timeout=3000", "tcp_user_timeout": 5000}


def _text(error: SQLAlchemyError) -> str:
    cause = getattr(error, "orig", None) or error
    return f"the ledger cannot be reached: {' '.join(str(cause).split())}"


def _touch(file: Path) -> None:
    """Make it with a mode of its own; a directory that is not there is an error of the store's."""
    try:
        file.touch(mode=0o600)
    except OSError as error:
        raise LedgerError(f"the ledger cannot be reached: {file}: {error.strerror}") from None
