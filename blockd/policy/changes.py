"""What a candidate would change, app by app: names gained and lost, with the first of each."""

from __future__ import annotations

from typing import Any

from blockd.apps.catalogue import RULE_KEYS, Entry
from blockd.fastpath import list_changes
from blockd.policy.inputs import Inputs
from blockd.settings.values import to_ascii

#: How many names a sample shows.
SHOWN = 10


def changes(before: Inputs, after: Inputs) -> list[dict[str, Any]]:
    """Compare the rules of live apps and their lists; an app that changes nothing is left out.

    OSError when a list that was kept cannot be read any more.
    """
    old, new = _entries(before), _entries(after)
    found = []
    for app in sorted({*old, *new}):
        for what, kind in (("block", "block"), ("hole", "hole")):
            row = {"app": app, "kind": what, **_compare(before, old.get(app), after, new.get(app), kind)}
            if row["gained"] or row["lost"]:
                found.append(row)
    return found


def _entries(inputs: Inputs) -> dict[str, Entry]:
    return {app: inputs.catalogue.entries[app] for app in inputs.live_apps()}


def _compare(before: Inputs, old: Entry | None, after: Inputs, new: Entry | None, kind: str) -> dict[str, Any]:
    had, has = _own(old, kind), _own(new, kind)
    gained, lost = sorted(has - had), sorted(had - has)
    listed = list_changes(_lists(before, old, kind), _lists(after, new, kind), to_ascii)
    return {
        "gained": len(gained) + listed[0],
        "gained_samples": [*gained, *listed[1]][:SHOWN],
        "lost": len(lost) + listed[2],
        "lost_samples": [*lost, *listed[3]][:SHOWN],
    }


def _own(entry: Entry | None, kind: str) -> set[str]:
    keys = [key for key in RULE_KEYS if (key == "holes") == (kind == "hole")]
    return set() if entry is None else {str(rule) for key in keys for rule in getattr(entry.app, key)}


def _lists(inputs: Inputs, entry: Entry | None, kind: str) -> list[tuple[str, str, bool]]:
    if entry is None:
        return []
    return [
        (str(inputs.source.list_file(entry.list_path(at))), item.format, entry.app.public_suffix)
        for at, item in enumerate(entry.app.lists)
        if item.kind == kind
    ]
