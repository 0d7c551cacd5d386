"""The ledger: nobody edits it, cuts it or writes it anew without being found out."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from blockd.exemptions.ledger import Book, Head, Ledger, LedgerBroken, LedgerError, read_head


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give a ledger of five entries."""
    file = tmp_path / "ledger.db"
    ledger, book = Ledger(f"sqlite:///{file}"), Book()
    for at in range(5):
        by = ledger.person(book, "carol" if at % 2 else "alice")
        book = ledger.append(book, 1000.5 + at, "asked", {"command": "list", "by": by})
    ledger.close()
    return file


def read(file: Path, head: Head | None = None) -> Book:
    """Read it."""
    ledger = Ledger(f"sqlite:///{file}")
    try:
        return ledger.read(head)
    finally:
        ledger.close()


def change(file: Path, statement: str) -> None:
    """Do to it what nobody should."""
    with sqlite3.connect(file) as connection:
        connection.execute(statement)
    connection.close()


def test_what_was_written_is_read(file: Path) -> None:
    """In order, with its times, and with the names of people beside it."""
    book = read(file)
    assert [entry.number for entry in book.entries] == [1, 2, 3, 4, 5]
    assert book.entries[0].at == 1000.5
    assert {book.people[entry.body["by"]] for entry in book.entries} == {"carol", "alice"}
    assert b"carol" not in b"".join(str(entry.as_json()).encode() for entry in book.entries)
    assert read(file, book.head).head == book.head == read_head(str(book.head))
    assert (file.stat().st_mode & 0o777) == 0o600


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        (
            "update blockd_ledger set body = replace(body, 'list', 'show') where number = 3",
            "entry 3 is not what was written",
        ),
        ("update blockd_ledger set at_ms = at_ms + 1 where number = 2", "entry 2 is not what was written"),
        ("update blockd_ledger set kind = 'approve' where number = 5", "entry 5 is not what was written"),
        ("update blockd_ledger set hash = before where number = 2", "entry 2 is not what was written"),
        ("delete from blockd_ledger where number = 3", "entry 3 is missing"),
        ("delete from blockd_ledger where number = 1", "entry 1 is missing"),
        ("update blockd_ledger set before = hash where number = 4", "entry 4 is not chained"),
    ],
)
def test_an_edited_ledger_is_found(file: Path, statement: str, why: str) -> None:
    """Whatever was changed, by the number of its entry."""
    change(file, statement)
    with pytest.raises(LedgerBroken, match=why):
        read(file)


def test_a_cut_or_rewritten_ledger_is_found_by_its_head(file: Path) -> None:
    """Both are whole in themselves; who noted a head knows better."""
    head = read(file).head
    change(file, "delete from blockd_ledger where number > 3")
    assert read(file).head.number == 3
    with pytest.raises(LedgerBroken, match="ends at entry 3, and the head says 5: it was cut"):
        read(file, head)
    ledger, book = Ledger(f"sqlite:///{file}"), read(file)
    for _ in range(3):
        book = ledger.append(book, 2000, "asked", {"command": "verify", "by": "x"})
    ledger.close()
    with pytest.raises(LedgerBroken, match="entry 5 is another than the head says: the ledger was written anew"):
        read(file, head)


def test_a_name_is_erased_and_the_ledger_stays_whole(file: Path) -> None:
    """A new digest stands for the same person later: nobody can tell that they are one."""
    ledger = Ledger(f"sqlite:///{file}")
    book = ledger.read()
    own = ledger.person(book, "carol")
    assert ledger.forget(book, "carol")
    assert not ledger.forget(book, "carol")
    assert ledger.read(book.head).people == {digest: "alice" for digest in book.people}
    assert ledger.person(book, "carol") != own
    ledger.close()


def test_two_writers_do_not_fork_the_chain(file: Path) -> None:
    """The second one is told to read again; a clock that stands back writes nothing."""
    ledger = Ledger(f"sqlite:///{file}")
    book = ledger.read()
    ledger.append(book, 3000, "asked", {"by": "x"})
    with pytest.raises(LedgerError, match="somebody else wrote"):
        ledger.append(book, 3001, "asked", {"by": "x"})
    book = ledger.read()
    with pytest.raises(LedgerError, match="the clock stands before"):
        ledger.append(book, 2900, "approve", {"by": "x"})
    assert ledger.read().head == book.head
    # Clocks of two machines differ; and a revocation is never in the way of one.
    book = ledger.append(book, 2999, "approve", {"by": "x"})
    book = ledger.append(book, 1000, "revoke", {"by": "x"})
    assert [entry.at for entry in ledger.read(book.head).entries[-2:]] == [3000, 3000]
    ledger.close()


def test_a_ledger_that_cannot_be_reached_is_no_empty_one(tmp_path: Path) -> None:
    """A directory that is not there, a file that is no database."""
    with pytest.raises(LedgerError):
        read(tmp_path / "none" / "ledger.db")
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"this is no database at all, but a text" * 100)
    with pytest.raises(LedgerError, match="cannot be reached"):
        read(junk)
