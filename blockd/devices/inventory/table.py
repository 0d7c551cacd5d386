"""CSV as tools and spreadsheets write it: where the header is, what is between columns, and rows that may be broken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from blockd.devices.inventory.cells import has_values, read_addresses, read_macs
from blockd.devices.inventory.columns import column_of, listed, looks_like_identity, plain
from blockd.devices.inventory.record import Record
from blockd.problems import InputError, Problem

TOO_MANY_COLUMNS = "the row has more columns than the header"
TOO_FEW_COLUMNS = "the row has fewer columns than the header"
OPEN_QUOTE = "a quotation mark without its other one: the columns of the row are not known"
SWALLOWED = "the row is inside a quoted cell: a quotation mark is missing above it"
WANTED = "the first line must name columns: address or mac, and any of hostname, serial, owner, group"

#: What may be between columns; where two fit equally well, the file is refused.
SEPARATORS = (",", ";", "\t", "|")
#: Stands for the separator of a file with one column; a row that contains it is broken anyway.
NO_SEPARATOR = "\0"
#: Names of a column that is a street, where there are others of these beside it.
POSTAL = frozenset(("address", "addresses"))
BESIDE_POSTAL = frozenset(("city", "zip", "zipcode", "postcode", "postalcode", "state", "country", "street"))
#: Lines among which the header is looked for.
HEADER_LINES = 10
#: Cells of a line above the header: a title, or `Exported on: 1 May`.
MAX_TITLE_CELLS = 2
#: Lines of one row; more means that a quotation mark is missing.
MAX_ROW_LINES = 1000

#: What is in a quoted cell, up to the quotation mark that ends it or to the end of the line.
_INSIDE = re.compile('[^"]*(?:""[^"]*)*')
_SPACES = re.compile(" *")


def split_row(lines: Sequence[str], at: int, separator: str) -> tuple[list[str] | None, int]:
    """Give the cells of the row that begins at a line (RFC 4180), None when its quotation marks do not match.

    The number is that of the line behind it. Each line is looked at once.
    """
    line, end, pos = lines[at], at + 1, 0
    if '"' not in line:
        return line.split(separator), end
    cells = []
    while True:
        quote = _SPACES.match(line, pos).end()  # type: ignore[union-attr]  # it matches anywhere
        if not line.startswith('"', quote):
            found = line.find(separator, pos)
            if found < 0:
                cells.append(line[pos:])
                return cells, end
            cells.append(line[pos:found])
            pos = found + 1
            continue
        parts, pos = [], quote + 1
        while True:
            inside = _INSIDE.match(line, pos)
            assert inside is not None
            parts.append(inside[0])
            if inside.end() < len(line):
                break
            if end == len(lines) or end - at == MAX_ROW_LINES:
                return None, end
            line, end, pos = lines[end], end + 1, 0
        cells.append("\n".join(parts).replace('""', '"'))
        pos = _SPACES.match(line, inside.end() + 1).end()  # type: ignore[union-attr]
        if pos == len(line):
            return cells, end
        if line[pos] != separator:
            return None, end
        pos += 1


def _plain_cells(line: str, separator: str) -> list[str]:
    """Split a line without regard to quotation marks: what is left of them at the ends of cells is removed."""
    return [cell.strip().removeprefix('"').removesuffix('"').replace('""', '"') for cell in line.split(separator)]


class Table:
    """A table with a header. InputError when it has none, or when it is not certain where its columns are."""

    #: Whether what was cut off at its end still reads.
    has_lines = True

    def __init__(self, file: Path, lines: list[str]) -> None:
        """Find the header."""
        self._file, self._lines = file, lines
        self._header, self._separator, self._first = self._find_header()
        self._columns = list(map(column_of, self._header))
        if _is_postal(self._header):
            self._columns = ["" if plain(n) in POSTAL else c for n, c in zip(self._header, self._columns, strict=True)]
        self._identities = [at for at, column in enumerate(self._columns) if column in ("mac", "address")]

    @property
    def notes(self) -> list[Problem]:
        """Give the columns that look like identity and are not read."""
        heads = zip(self._header, self._columns, strict=True)
        unread = [head for head, column in heads if not column and looks_like_identity(head)]
        if _is_postal(self._header):
            unread = [head for head in unread if plain(head) not in POSTAL]
        text = f"columns that are not read, though they look like identity: {listed(unread)}"
        return [Problem(str(self._file), self._first, "", text)] if unread else []

    def records(self) -> Iterator[tuple[int, Record | str]]:
        """Give each row below the header with the line that it begins on, or the reason why it cannot be used."""
        lines, at = self._lines, self._first
        while at < len(lines):
            if not lines[at].strip():
                at += 1
                continue
            cells, end = split_row(lines, at, self._separator)
            record = OPEN_QUOTE if cells is None else self._fit(cells)
            if (isinstance(record, str) and end - at > 1) or cells is None:
                # One quotation mark must not cost the rows after it: those lines are rows by themselves.
                for number in range(at, end):
                    yield from self._alone(number)
            elif any(cell.strip() for cell in cells):
                yield at + 1, record
                if end - at > 1 and len(self._header) > 1:
                    yield from ((number + 1, SWALLOWED) for number in self._swallowed(at, end, cells))
            at = end

    def _alone(self, number: int) -> Iterator[tuple[int, Record | str]]:
        cells = _plain_cells(self._lines[number], self._separator)
        if any(cells):
            # With as many columns as the header, every separator is one: where columns are is certain.
            is_whole = len(cells) == len(self._header)
            yield number + 1, self._fit(cells) if is_whole else OPEN_QUOTE

    def _swallowed(self, at: int, end: int, cells: list[str]) -> list[int]:
        """Give the lines of one row that are rows by themselves, of devices that the row does not name."""
        own = self._named(cells)
        rows = ((number, _plain_cells(self._lines[number], self._separator)) for number in range(at, end))
        return [number for number, row in rows if len(row) == len(self._header) and self._named(row) - own]

    def _named(self, cells: list[str]) -> set[object]:
        """Give the MACs and addresses of a row."""
        columns = [cells[at] for at in self._identities if at < len(cells)]
        return {value for cell in columns for read in (read_macs, read_addresses) for value in read(cell)[0]}

    def _fit(self, cells: list[str]) -> Record | str:
        wanted = len(self._header)
        if any(cell.strip() for cell in cells[wanted:]):
            return TOO_MANY_COLUMNS
        # Excel leaves out separators at the end of rows whose last cells are empty.
        if len(cells) < wanted and (len(cells) < 2 or len(cells) <= self._identities[-1]):
            return TOO_FEW_COLUMNS
        record: Record = {}
        for column, cell in zip(self._columns, cells, strict=False):
            if column:
                record.setdefault(column, []).append(cell)
        return record

    def _find_header(self) -> tuple[list[str], str, int]:
        """Give the names of the columns, what is between them, and the line behind them."""
        lines = self._lines
        separators: tuple[str, ...] = SEPARATORS
        places = [at for at, line in enumerate(lines[: 10 * HEADER_LINES]) if line.strip()][:HEADER_LINES]
        if places and lines[places[0]].strip('"').upper().startswith("#TYPE "):
            # Windows PowerShell begins what it exports with the type of the objects.
            del places[0]
        if places and (said := re.fullmatch('"?sep=(.)"?[,;]*', lines[places[0]], re.IGNORECASE)):
            # So Excel says what is between columns.
            separators = (said[1],)
            del places[0]
        if not places:
            raise InputError([Problem(str(self._file), 1, "", f"the file is empty; {WANTED}")])
        found = [(at, reading) for at in places if (reading := self._reading(at, separators)) is not None]
        if len(found) > 1 and len(list(filter(str.strip, found[0][1][0]))) == 1 and _known(found[1][1][0]) > 1:
            # A title such as `MAC addresses` above the header.
            del found[0]
        if not found:
            raise InputError([self._no_header(places[0], separators)])
        at, (header, separator, end) = found[0]
        for above in places[: places.index(at)]:
            filled = sum(1 for cell in lines[above].split(separator) if cell.strip(' "'))
            if filled > MAX_TITLE_CELLS and not lines[above].startswith("#"):
                raise InputError([self._no_header(above, (separator,))])
        while len(header) > 1 and not header[-1].strip():
            header = header[:-1]
        return header, separator, end

    def _reading(self, at: int, separators: Sequence[str]) -> tuple[list[str], str, int] | None:
        """Read a line as a header by the separator that makes most of it; None when no MAC and no address is in it."""
        readings = []
        for separator in (*separators, NO_SEPARATOR):
            cells, end = split_row(self._lines, at, separator)
            if cells is None or (len(cells) == 1 and separator != NO_SEPARATOR):
                continue
            if {"mac", "address"} & {column_of(cell) for cell in cells}:
                readings.append((cells, separator, end))
        readings.sort(key=lambda reading: (_known(reading[0]), reading[1] != NO_SEPARATOR), reverse=True)
        if len(readings) > 1 and readings[1][1] != NO_SEPARATOR and _known(readings[0][0]) == _known(readings[1][0]):
            signs = " and ".join(repr(separator) for _, separator, _ in readings[:2])
            text = f"{signs} could both be what is between columns; write a first line such as sep=;"
            raise InputError([Problem(str(self._file), at + 1, "", text)])
        return readings[0] if readings else None

    def _no_header(self, at: int, separators: Sequence[str]) -> Problem:
        line = self._lines[at]
        rows = (split_row(self._lines, at, separator)[0] or [line] for separator in separators)
        cells = max(rows, key=len)
        if line.lstrip().startswith("<"):
            text = f"this is HTML or XML, and no table; {WANTED}"
        elif "\0" in line or "\ufffd" in line:
            text = f"this is binary, or UTF-16 without a byte order mark; {WANTED}"
        elif has_values(cells):
            # What devices have is not repeated: whose it is may be private.
            text = f"{WANTED}; this one has values, and no names of columns"
        else:
            text = f"{WANTED}; found: {listed(cells)}"
        return Problem(str(self._file), at + 1, "", text)


def _is_postal(header: Sequence[str]) -> bool:
    """Say whether a column `Address` is where somebody lives, or an office is: beside a city or the like, with MACs."""
    names = set(map(plain, header))
    return not names.isdisjoint(BESIDE_POSTAL) and "mac" in map(column_of, header)


def _known(header: Sequence[str]) -> int:
    return sum(1 for name in header if column_of(name))
