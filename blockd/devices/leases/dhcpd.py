"""ISC dhcpd's lease file: blocks that are added at each change, the last one for an address counts. dhcpd.leases(5)."""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from blockd.devices.leases.lease import ENDLESS, NO_STATE, Lease, Unusable, mac_of_duid, read_lease, read_time

#: dhcpd writes what is outside of all blocks at the beginning of a line, and nothing else there: a client's words are
#: quoted, and a newline in them is written as `\012`. So a block that was cut ends where the next one begins.
_TOP = re.compile(r"lease [0-9a-fA-F.:]+ \{|ia-[a-z]+ ")
_PART = re.compile(r'"(?:[^"\\]|\\.)*"?|[{};]|#.*|[^\s{};"#]+')
_TIME = re.compile(r"(\d{4})/(\d\d)/(\d\d) (\d\d):(\d\d):(\d\d)")
#: Words of a statement that are looked at; what is of use has fewer.
MAX_WORDS = 16
#: Binding states in which nobody has the address.
ENDED = ("free", "backup", "expired", "released", "abandoned", "reset")

_CUT = "the block of a lease does not end"
_STRANGE = Unusable("expected a statement of dhcpd")
#: What a statement outside of all blocks begins with; a page of an error, for one, begins otherwise.
_KEYWORD = re.compile(r"[a-z][a-z0-9.-]*")
_CLOSED = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass
class _Block:
    """A lease that is being read."""

    address: str
    #: Blocks around its statements, itself included.
    depth: int
    #: Of the block around it, for an IPv6 lease.
    mac: str
    #: Lines since it began.
    lines: int = 0
    fields: dict[str, list[str]] = field(default_factory=dict)


class Dhcpd:
    """Reads lines as they come; a lease is known when its block is closed."""

    is_whole = False
    before: tuple[str, ...] = ()

    def __init__(self, written: float = 0.0) -> None:
        """Start outside of any block. The file has its own times, so that when it was written does not matter."""
        self._depth = 0
        self._words: list[str] = []
        self._block: _Block | None = None
        #: Whether the outermost block is an `ia-...`, and the MAC of its client.
        self._is_ia, self._mac = False, ""

    def read(self, line: str) -> Iterator[Lease | Unusable]:
        """Give the leases whose blocks end here."""
        if self._block is not None:
            self._block.lines += 1
        if _TOP.match(line if self._depth else line.lstrip()):
            yield from self._cut()
        for part in _PART.findall(line):
            if part == "{":
                self._open()
            elif part == "}":
                yield from self._close()
            elif part == ";":
                self._end_statement()
            elif part.startswith('"') and not _CLOSED.fullmatch(part):
                # A string ends on its line; without the statement that was cut, the next one counts.
                self._words = []
            elif not part.startswith("#") and len(self._words) < MAX_WORDS:
                if not self._depth and not self._words and not _KEYWORD.fullmatch(part):
                    yield _STRANGE
                self._words.append(part)

    def _cut(self) -> Iterator[Unusable]:
        """Leave whatever is open."""
        if self._block is not None:
            yield Unusable(_CUT, self._block.lines)
        self._depth, self._words, self._block, self._is_ia = 0, [], None, False

    def _open(self) -> None:
        words, self._words = self._words, []
        self._depth += 1
        kind = words[0] if len(words) == 2 else ""
        if self._depth == 1 and kind == "lease":
            self._block = _Block(words[1], 1, "")
        elif self._depth == 1 and kind.startswith("ia-"):
            # Of addresses that are kept, and not of temporary ones, which are another device's next time.
            self._is_ia, self._mac = True, _mac_of_ia(words[1]) if kind == "ia-na" else ""
        elif self._depth == 2 and self._is_ia and kind == "iaaddr":
            self._block = _Block(words[1], 2, self._mac)

    def _close(self) -> Iterator[Lease | Unusable]:
        self._end_statement()
        if self._block is not None and self._block.depth == self._depth:
            yield _lease(self._block)
            self._block = None
        self._depth = max(0, self._depth - 1)
        self._is_ia = self._is_ia and self._depth > 0

    def _end_statement(self) -> None:
        words, self._words = self._words, []
        if words and self._block is not None and self._block.depth == self._depth:
            self._block.fields[words[0]] = words[1:]


def _lease(block: _Block) -> Lease | Unusable:
    fields = block.fields
    state = " ".join(fields.get("binding", ["state", "active"]))
    is_ended = state.removeprefix("state ") in ENDED or "abandoned" in fields
    found: Lease | Unusable
    if not is_ended and state != "state active":
        found = NO_STATE
    else:
        hardware = fields.get("hardware", [])
        mac = hardware[1] if len(hardware) == 2 and hardware[0] == "ethernet" else block.mac
        hostname = "".join(fields.get("client-hostname", [])[:1]).strip('"')
        found = read_lease(block.address, mac, hostname, 0.0 if is_ended else _end(fields.get("ends", [])))
    return Unusable(found.reason, block.lines) if isinstance(found, Unusable) else found


def _end(words: list[str]) -> float | None:
    """Read `never`, `epoch SECONDS`, or a weekday, date and time in UTC."""
    if words == ["never"]:
        return ENDLESS
    if len(words) == 2 and words[0] == "epoch":
        return read_time(words[1])
    found = _TIME.fullmatch(" ".join(words[1:]))
    try:
        return None if found is None else float(calendar.timegm(tuple(map(int, found.groups()))))
    except (ValueError, OverflowError):
        return None


def _mac_of_ia(text: str) -> str:
    """Give the MAC in an IA's name: four octets of IAID, then the DUID.

    Octets are written as `\\ooo` or as they are, or all in hexadecimal where `lease-id-format hex` is set.
    """
    if not text.startswith('"'):
        return mac_of_duid(":".join(text.split(":")[4:]))
    octets = re.sub(
        rb"\\([0-7]{3}|.)",
        lambda found: bytes([int(found[1], 8) & 255]) if len(found[1]) == 3 else found[1],
        text[1:].removesuffix('"').encode("utf-8", errors="surrogateescape"),
    )
    return mac_of_duid(octets[4:].hex())
