"""A lease file that is read again when it changes: the new end of one that grows, all of one that is written anew."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from blockd.devices.leases.dhcpd import Dhcpd
from blockd.devices.leases.dnsmasq import Dnsmasq
from blockd.devices.leases.kea import Kea
from blockd.devices.leases.lease import Lease, Unusable
from blockd.problems import Problem, Skipped
from blockd.settings.values import Address

#: Octets of a file that are read: ten million leases.
MAX_OCTETS = 1 << 30
#: Octets before where a look ended, by which it is known again.
TAIL = 200
#: Leases of a file that are kept.
MAX_LEASES = 1_000_000
#: Octets of a line that is read.
MAX_LINE = 1 << 20
TOO_LONG = Unusable("the line has more than a mebibyte")


class Format(Protocol):
    """How a server writes its leases down."""

    #: Whether the file is written anew at each change, so that what is not in it is over.
    is_whole: bool
    #: Endings of files that have what is not in this one yet, the oldest first.
    before: tuple[str, ...]

    def read(self, line: str) -> Iterator[Lease | Unusable]:
        """Give what a line, or the block that it ends, says."""


FORMATS: dict[str, type[Kea] | type[Dnsmasq] | type[Dhcpd]] = {"kea": Kea, "dnsmasq": Dnsmasq, "dhcpd": Dhcpd}


@dataclass
class Part:
    """What a look at a source found: leases that were not read before, or why there are none."""

    leases: list[Lease] = field(default_factory=list)
    #: Records that cannot be used.
    skipped: Skipped = field(default_factory=Skipped)
    #: Addresses that there was no room for.
    left_out: int = 0
    #: They begin a file anew.
    is_beginning: bool = False
    #: The file is as it was at the look before.
    is_settled: bool = False
    problem: str | None = None
    #: All that there is: what is not in it is gone.
    is_all: bool = False
    #: Nothing more of this look follows.
    is_last: bool = True

    def slices(self, most: int) -> Iterator[Part]:
        """Give it in parts that are taken in quickly, one after the other."""
        if self.is_all or len(self.leases) <= most:
            yield self
            return
        for at in range(0, len(self.leases), most):
            some, is_last = self.leases[at : at + most], at + most >= len(self.leases)
            if at == 0:
                yield replace(self, leases=some, is_last=is_last)
            else:
                yield Part(some, is_settled=self.is_settled, is_last=is_last)


class Feed:
    """One file. `fetch` reads it, and may wait for a file server; `take` is quick."""

    def __init__(self, file: Path, format: str) -> None:
        """Start without having read it."""
        self.file, self.format = file, format
        #: By address, the last that was said; ended ones stay until somebody drops them.
        self.leases: dict[Address, Lease] = {}
        #: Why it cannot be read, if so.
        self.problem: str | None = None
        #: When it was read, or seen to be as it was read; seconds since 1970.
        self.confirmed = 0.0
        #: Records of the file that cannot be used.
        self.skipped = Skipped()
        #: Leases that there was no room for.
        self.left_out = 0
        self._reader: Format = FORMATS[format]()
        self._state: tuple[int, int, int] | None = None
        self._offset, self._tail = 0, b""
        #: Lines before the offset.
        self._lines = 0
        #: Whether the last line, which has no end, was read as it is: nobody goes on writing it.
        self._is_rest_read = False
        #: Why what was read is no lease file, if so.
        self._garbage: str | None = None
        #: Of a file that is written anew: the addresses that are in it now.
        self._written: set[Address] = set()

    @property
    def is_empty(self) -> bool:
        """Say whether no record was read that is a lease, not even one that was given back."""
        return not self._written

    def look(self, now: float) -> set[Address]:
        """Read what is new; give the addresses of which something else is said than before."""
        return self.take(self.fetch(), now)

    def fetch(self) -> Part:
        """Read what is new; nothing that was known changes by it."""
        try:
            # What is no file would have us wait for its other end.
            descriptor = os.open(self.file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return self._fetch(descriptor)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            self._state, self._garbage = None, None
            return Part(problem=f"{self.file}: {getattr(error, 'strerror', None) or error}")

    def take(self, part: Part, now: float) -> set[Address]:
        """Take in what was read; give the addresses of which something else is said than before."""
        self.problem = part.problem
        if part.problem is not None:
            return set()
        self.confirmed = now
        if part.is_beginning:
            self._written, self.skipped = set(), Skipped()
        self.skipped.update(part.skipped)
        self.left_out += part.left_out
        changed = set()
        for lease in part.leases:
            if len(self.leases) >= MAX_LEASES and lease.address not in self.leases:
                self.left_out += 1
            else:
                if self.leases.get(lease.address) != lease:
                    changed.add(lease.address)
                self.leases[lease.address] = lease
                self._written.add(lease.address)
        if FORMATS[self.format].is_whole and part.is_settled:
            # Not before: while it is being written, what is not in it yet is not over.
            changed |= self._end_what_is_gone(now)
        return changed

    def _end_what_is_gone(self, now: float) -> set[Address]:
        """End what a file has no more. It may have been cut, too: so it ends now, and is not as if it had never been.

        Unless its device has another address by now: then it is known to have left this one.
        """
        gone = {a for a in self.leases.keys() - self._written if self.leases[a].expires > now}
        here = {(lease.mac, a.version) for a, lease in self.leases.items() if a not in gone and lease.expires > now}
        for address in gone:
            lease = self.leases[address]
            has_left = (lease.mac, address.version) in here
            self.leases[address] = replace(lease, expires=0.0 if has_left else now)
        return gone

    def _fetch(self, descriptor: int) -> Part:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("is no file")
        state = (found.st_ino, found.st_size, found.st_mtime_ns)
        if state == self._state:
            return self._settled(descriptor, found.st_size)
        if found.st_size > MAX_OCTETS:
            raise ValueError(f"has more than {MAX_OCTETS >> 20} MiB: it is no lease file")
        is_longer = self._state is not None and found.st_size >= self._offset and self._has_tail(descriptor)
        is_beginning = FORMATS[self.format].is_whole or not is_longer
        read = _Read()
        if is_beginning:
            # Another file by this name: Kea begins a new one when it cleans up, and what it said before still stands.
            self._reader, self._offset, self._lines = FORMATS[self.format](found.st_mtime_ns // 10**9), 0, 0
            self._read_before(read)
        lines = _Lines(descriptor, self._offset, found.st_size)
        self._lines += read.add(self._reader, lines, str(self.file), self._lines)
        self._offset, self._state, self._is_rest_read = lines.offset, state, False
        self._tail = os.pread(descriptor, TAIL, max(0, self._offset - TAIL))
        self._note_garbage(read, is_beginning)
        return read.part(is_beginning=is_beginning, problem=self._garbage)

    def _settled(self, descriptor: int, size: int) -> Part:
        """Give what is left of a file that did not change: a last line that nobody ended, in a copied file for one."""
        if self._is_rest_read or self._garbage is not None or self._offset == size:
            return Part(is_settled=True, problem=self._garbage)
        self._is_rest_read = True
        read = _Read()
        rest = os.pread(descriptor, min(MAX_LINE, size - self._offset), self._offset)
        # The reader stays where it is: whoever goes on writing ends this line.
        read.add(deepcopy(self._reader), [_text(rest)], str(self.file), self._lines)
        self._note_garbage(read, self._offset == 0)
        return read.part(is_settled=True, problem=self._garbage)

    def _note_garbage(self, read: _Read, is_beginning: bool) -> None:
        # A page of an error, another program's file: it says nothing of anybody, and ends nobody's lease.
        is_garbage = is_beginning and bool(read.skipped.total) and not read.leases
        self._garbage = f"{self.file}: has no line that is a lease of {self.format}" if is_garbage else None

    def _read_before(self, read: _Read) -> None:
        for ending in FORMATS[self.format].before:
            file = self.file.with_name(f"{self.file.name}{ending}")
            with suppress(FileNotFoundError), file.open("rb") as opened:
                size = min(MAX_OCTETS, os.fstat(opened.fileno()).st_size)
                read.add(self._reader, _Lines(opened.fileno(), 0, size), str(file), 0)

    def _has_tail(self, descriptor: int) -> bool:
        """Say whether what was read last is still where it was: another file may have the same number."""
        return os.pread(descriptor, len(self._tail), max(0, self._offset - TAIL)) == self._tail


class _Read:
    """What was read at one look: of each address the last lease, and what could not be used."""

    def __init__(self) -> None:
        self.leases: dict[Address, Lease] = {}
        self.skipped = Skipped()
        self.left_out = 0

    def add(self, reader: Format, lines: Iterable[str | None], file: str, number: int) -> int:
        """Read lines of a file that follow its first `number`; give how many there were."""
        count = 0
        for count, line in enumerate(lines, 1):
            for found in (TOO_LONG,) if line is None else reader.read(line):
                if isinstance(found, Unusable):
                    self.skipped.add(Problem(file, number + count - found.lines_ago, "", found.reason))
                elif len(self.leases) < MAX_LEASES or found.address in self.leases:
                    self.leases[found.address] = found
                else:
                    self.left_out += 1
        return count

    def part(self, *, is_beginning: bool = False, is_settled: bool = False, problem: str | None = None) -> Part:
        """Give it as what a look found."""
        leases = list(self.leases.values())
        return Part(leases, self.skipped, self.left_out, is_beginning, is_settled, problem)


class _Lines:
    """Whole lines of a file, None for one that is too long to be a lease; a last one without an end is left."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        #: Where the lines end that were given.
        self.offset = offset

    def __iter__(self) -> Iterator[str | None]:
        at, is_too_long = self.offset, False
        while at < self._size:
            chunk = os.pread(self._descriptor, min(MAX_LINE, self._size - at), at)
            if not chunk:
                return
            whole, newline, rest = chunk.rpartition(b"\n")
            at += len(chunk)
            if not newline:
                is_too_long = is_too_long or len(chunk) == MAX_LINE
                if not is_too_long:
                    return
                continue
            at -= len(rest)
            self.offset = at
            first, *others = whole.split(b"\n")
            yield None if is_too_long else _text(first)
            is_too_long = False
            yield from map(_text, others)
        if is_too_long:
            self.offset = at
            yield None


def _text(line: bytes) -> str:
    # After a power cut a file may have octets of zero where its end was, with the next record right behind them.
    # What is not UTF-8 comes back as the octets that it was: dhcpd may write a DUID so.
    return (line.lstrip(b"\0") or line).decode(errors="surrogateescape")
