"""A lease file that is read again when it changes: the new end of one that grows, all of one that is written anew."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from blockd.devices.leases.dhcpd import Dhcpd
from blockd.devices.leases.dnsmasq import Dnsmasq
from blockd.devices.leases.kea import Kea
from blockd.devices.leases.lease import Lease
from blockd.settings.values import Address

#: Octets of a file that are read: ten million leases.
MAX_OCTETS = 1 << 30
#: Octets before where a look ended, by which it is known again.
TAIL = 200
#: Leases of a file that are kept.
MAX_LEASES = 1_000_000


class Format(Protocol):
    """How a server writes its leases down."""

    #: Whether the file is written anew at each change, so that what is not in it is over.
    is_whole: bool
    #: Endings of files that have what is not in this one yet, the oldest first.
    before: tuple[str, ...]

    def read(self, lines: Iterator[str]) -> Iterator[Lease | None]:
        """Give what each line, or the block that it ends, says."""


FORMATS: dict[str, type[Kea] | type[Dnsmasq] | type[Dhcpd]] = {"kea": Kea, "dnsmasq": Dnsmasq, "dhcpd": Dhcpd}


@dataclass
class Part:
    """What a look at a source found: leases that were not read before, or why there are none."""

    leases: list[Lease] = field(default_factory=list)
    #: Lines that say nothing.
    skipped: int = 0
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
            skipped = self.skipped if at == 0 else 0
            yield replace(
                self, leases=some, skipped=skipped, is_beginning=self.is_beginning and at == 0, is_last=is_last
            )


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
        #: Lines that say nothing.
        self.skipped = 0
        #: Leases that there was no room for.
        self.left_out = 0
        self._reader: Format = FORMATS[format]()
        self._state: tuple[int, int, int] | None = None
        self._offset, self._tail = 0, b""
        #: Why what was read is no lease file, if so.
        self._garbage: str | None = None
        #: Of a file that is written anew: the addresses that are in it now.
        self._written: set[Address] = set()

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
        self.skipped += part.skipped
        if part.is_beginning:
            self._written = set()
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
            return Part(is_settled=True, problem=self._garbage)
        if found.st_size > MAX_OCTETS:
            raise ValueError(f"has more than {MAX_OCTETS >> 20} MiB: it is no lease file")
        is_longer = self._state is not None and found.st_size >= self._offset and self._has_tail(descriptor)
        is_beginning = FORMATS[self.format].is_whole or not is_longer
        # Another file by this name: Kea begins a new one when it cleans up, and what it said before still stands.
        offset = 0 if is_beginning else self._offset
        lines, offset = _lines(descriptor, offset, found.st_size)
        if is_beginning:
            lines = [*self._lines_before(), *lines]
        self._offset, self._state = offset, state
        self._tail = os.pread(descriptor, TAIL, max(0, offset - TAIL))
        if is_beginning:
            self._reader = FORMATS[self.format]()
        # Read here, where it keeps nobody waiting.
        found_here = list(self._reader.read(iter(lines)))
        leases = [lease for lease in found_here if lease is not None]
        # A page of an error, another program's file: it says nothing of anybody, and ends nobody's lease.
        is_garbage = is_beginning and bool(found_here) and not leases
        self._garbage = f"{self.file}: has no line that is a lease of {self.format}" if is_garbage else None
        return Part(leases, len(found_here) - len(leases), is_beginning, problem=self._garbage)

    def _lines_before(self) -> list[str]:
        lines: list[str] = []
        for ending in FORMATS[self.format].before:
            with suppress(FileNotFoundError), self.file.with_name(f"{self.file.name}{ending}").open("rb") as file:
                lines += _lines(file.fileno(), 0, min(MAX_OCTETS, os.fstat(file.fileno()).st_size))[0]
        return lines

    def _has_tail(self, descriptor: int) -> bool:
        """Say whether what was read last is still where it was: another file may have the same number."""
        return os.pread(descriptor, len(self._tail), max(0, self._offset - TAIL)) == self._tail


def _lines(descriptor: int, offset: int, size: int) -> tuple[list[str], int]:
    """Give whole lines, and where they end; one that is being written is left for the next look."""
    lines: list[str] = []
    while offset < size:
        chunk = os.pread(descriptor, min(1 << 20, size - offset), offset)
        whole, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            if len(chunk) >= 1 << 20:
                raise ValueError("has a line of a mebibyte: it is no lease file")
            break
        offset += len(chunk) - len(rest)
        lines += whole.decode(errors="replace").split("\n")
    return lines, offset
