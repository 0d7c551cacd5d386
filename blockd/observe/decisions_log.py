"""The decisions log: the first (device, app, rule) of a minute at once, the rest as one closing line with a count."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from dnslib import QTYPE

from blockd.fastpath import _native

log = logging.getLogger("blockd.decisions")

#: Generations of views whose names are remembered: rows are at most a minute old.
REMEMBERED = 16


class DecisionsLog:
    """Gives names to rows, and writes them."""

    def __init__(self) -> None:
        """Start knowing no generation."""
        self._names: OrderedDict[int, tuple[list[str], list[str], list[dict[str, str]]]] = OrderedDict()
        self.written = 0
        #: Names the exemptions by which a client, as rows have it, may use an app now.
        self.exempting: Callable[[str, str], list[str]] = lambda client, app: []

    def published(self, generation: int, meta: dict[str, Any]) -> None:
        """Learn what the numbers of a new generation mean."""
        self._names[generation] = (meta["groups"], meta["apps"], meta.get("sets", []))
        while len(self._names) > REMEMBERED:
            self._names.popitem(last=False)

    def write(self, row: _native.LogRow) -> dict[str, Any] | None:
        """Write a row, and give it by names; one of a generation that nobody remembers is dropped: it would lie."""
        names = self._names.get(row["generation"])
        if names is None:
            return None
        groups, apps, sets = names
        fields: dict[str, Any] = {
            "action": row["action"],
            "client": row["client"],
            "group": groups[row["view"]],
            "app": apps[row["app"]],
            "name": row["name"],
            "type": str(QTYPE.get(row["qtype"])),
            "rule": row["rule"],
        }
        if row["view"] < len(sets) and (by := sets[row["view"]].get(fields["app"])) is not None:
            fields["set"] = by
        if row["action"] == "exempt" and (own := self.exempting(fields["client"], fields["app"])):
            fields["exemption"] = ", ".join(own)
        if row["more"] is not None:
            fields["more"] = row["more"]
        self.written += 1
        log.info("%s", readable(fields), extra={"fields": fields})
        return fields


def readable(fields: dict[str, Any]) -> str:
    """Write one line of words; names come from the crate escaped, in presentation form."""
    who = f"{fields['client']} ({fields['group']})"
    app = f"{fields['app']} ({fields['set']})" if "set" in fields else fields["app"]
    what = f"{fields['action']} {app} for {who}: {fields['name']} {fields['type']}, by {fields['rule']}"
    if "exemption" in fields:
        what += f", exemption {fields['exemption']}"
    return f"{what}; {fields['more']} more in this minute" if "more" in fields else what
