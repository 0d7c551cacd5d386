"""What is asked of apps, by hour and group: counted in memory, and handed over in parts to whoever keeps it.

Counts are of every group. Devices are told apart for groups that log decisions alone, as the journal names them; names
that led to an app and that no rule knew are kept once so many of them asked, and then without a device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

HOUR, DAY = 3_600, 86_400
#: Devices of a part, and names that are not candidates yet; more are not counted.
MAX_DEVICES, MAX_NAMES = 200_000, 10_000
#: What is counted of an app.
ACTIONS = frozenset({"block", "monitor", "exempt", "allow"})


def columns(queries: Mapping[str, int]) -> list[int]:
    """Give the numbers of queries that a table shows: let through, refused, exempt. What is allowed is let through."""
    count = queries.get
    return [count("monitor", 0) + count("allow", 0), count("block", 0), count("exempt", 0)]


Key = TypeVar("Key")


@dataclass(frozen=True)
class Cell:
    """What is counted together."""

    #: Hours since 1970.
    hour: int
    app: str
    group: str
    action: str


@dataclass
class Sum:
    """How often, and when first and last; seconds since 1970."""

    queries: int = 0
    first: float = 0.0
    last: float = 0.0

    def add(self, other: Sum) -> None:
        """Take another's queries and times in."""
        self.first = min(self.first or other.first, other.first)
        self.last = max(self.last, other.last)
        self.queries += other.queries


@dataclass
class Part:
    """What was counted since the part before."""

    sums: dict[Cell, Sum] = field(default_factory=dict)
    #: (day since 1970, app, group, action, device) of groups that log decisions.
    devices: set[tuple[int, str, str, str, str]] = field(default_factory=set)
    #: (day since 1970, name, app) -> when it was first and last, for names that enough devices asked.
    names: dict[tuple[int, str, str], Sum] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Say whether there is nothing to keep."""
        return not (self.sums or self.devices or self.names)

    def add(self, other: Part) -> None:
        """Take another part in."""
        _add(self.sums, other.sums)
        _add(self.names, other.names)
        self.devices |= set(list(other.devices)[: MAX_DEVICES - len(self.devices)])


def _add(own: dict[Key, Sum], theirs: Mapping[Key, Sum]) -> None:
    for key, value in theirs.items():
        own.setdefault(key, Sum()).add(value)


class Usage:
    """Counts; one thread at a time."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._part = Part()
        self._before: Counter[tuple[str, str, str]] = Counter()
        #: (name, app) -> devices that asked, as long as they are too few.
        self._few: dict[tuple[str, str], set[str]] = {}
        self._enough: set[tuple[str, str]] = set()

    def count(self, totals: Counter[tuple[str, str, str]], now: float) -> None:
        """Take sums in that only grow: (group, app, action) -> queries."""
        for key, total in totals.items():
            group, app, action = key
            more = total - self._before[key]
            if more > 0 and app and action in ACTIONS:
                cell = Cell(int(now // HOUR), app, group, action)
                self._part.sums.setdefault(cell, Sum()).add(Sum(more, now, now))
        self._before = Counter(totals)

    def saw(self, app: str, group: str, action: str, device: str, now: float) -> None:
        """Note that a device of a group that logs decisions asked for something of an app, and what was done."""
        key = (int(now // DAY), app, group, action, device)
        if len(self._part.devices) < MAX_DEVICES:
            self._part.devices.add(key)

    def led(self, name: str, app: str, device: str, least: int, now: float) -> None:
        """Note that a name which no rule knew led such a device to an app; `least` devices make it a candidate."""
        key = (name, app)
        if key not in self._enough:
            if key not in self._few and len(self._few) >= MAX_NAMES:
                # The oldest has waited longest in vain.
                del self._few[next(iter(self._few))]
            devices = self._few.setdefault(key, set())
            devices.add(device)
            if len(devices) < least:
                return
            del self._few[key]
            if len(self._enough) >= MAX_NAMES:
                self._enough.clear()
            self._enough.add(key)
        self._part.names.setdefault((int(now // DAY), *key), Sum()).add(Sum(1, now, now))

    def take(self) -> Part:
        """Hand over what was counted; nothing of it is left."""
        part, self._part = self._part, Part()
        return part

    def give_back(self, part: Part) -> None:
        """Take back what could not be kept."""
        self._part.add(part)
