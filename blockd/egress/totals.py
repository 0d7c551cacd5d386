"""Sums of what firewalls count. They only grow: a firewall's own counts end with its table, its process or its link."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

#: Tables whose last counts are remembered, so that a firewall which connects again is not counted twice.
MAX_TABLES = 64
#: Different counts in all: labels come from peers, and what is beyond this is left out.
MAX_COUNTS = 10_000

Key = tuple[str, ...]


class Totals:
    """Adds up what each status says beyond the status before of the same table."""

    def __init__(self) -> None:
        """Start at nothing."""
        #: `("packets", what, group, app)`, `("refused", reason)`, `("ended",)`, `("drift",)` -> sum.
        self.sums: Counter[Key] = Counter()
        self._last: OrderedDict[str, Mapping[Key, int]] = OrderedDict()

    def read(self, table: str, status: Mapping[str, Any]) -> None:
        """Take a status, as `read_status` gives it, of the packet filter that `table` names."""
        now = _counts(status)
        before = self._last.pop(table, {})
        for key, value in now.items():
            if key not in self.sums and len(self.sums) >= MAX_COUNTS:
                continue
            last = before.get(key, 0)
            # A count that went back began anew.
            self.sums[key] += value - last if value >= last else value
        # A status that says less, as of a firewall that is off, takes nothing away from what is known.
        self._last[table] = {**before, **now}
        while len(self._last) > MAX_TABLES:
            self._last.popitem(last=False)

    def copy(self) -> Totals:
        """Give the sums as they are now, to be read on another thread."""
        copied = Totals()
        copied.sums = self.sums.copy()
        return copied

    def sum(self, kind: str) -> int:
        """Give the sum of a kind that has no labels."""
        return self.sums[(kind,)]

    def by(self, kind: str) -> dict[Key, int]:
        """Give the sums of a kind by its labels, in order."""
        return {key[1:]: value for key, value in sorted(self.sums.items()) if key[0] == kind}


def _counts(status: Mapping[str, Any]) -> dict[Key, int]:
    counts: dict[Key, int] = {("refused", reason): count for reason, count in status.get("refused", {}).items()}
    counts |= {(kind,): status[kind] for kind in ("ended", "drift") if kind in status}
    for row in status.get("counters", ()):
        counts["packets", row["what"], row["group"], row["app"]] = row["packets"]
    return {key: value for key, value in counts.items() if value >= 0}
