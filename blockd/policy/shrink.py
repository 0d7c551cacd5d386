"""Does a reload lose too much? A list that was emptied by accident must not open what it blocked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from blockd.problems import Problem


def shrunk(before: dict[str, Any], after: dict[str, Any], largest: float, config: str) -> Iterable[Problem]:
    """Compare two manifests; give the apps, lists and inventories that lose more than a share (0 to 1).

    An app that no policy names any more lost nothing: its policy changed, and that was meant.
    """
    old_lists, new_lists = _lists(before), _lists(after)
    told: set[str] = set()
    for (app, file), had in old_lists.items():
        if (app, file) in new_lists and _is_too_much(had, new_lists[app, file], largest):
            told.add(app)
            yield Problem(file, 0, "", _text(f"the list of {app}", had, new_lists[app, file], largest))
    old_devices: dict[str, int] = before.get("devices", {})
    new_devices: dict[str, int] = after.get("devices", {})
    for group, had in old_devices.items():
        if group in new_devices and _is_too_much(had, new_devices[group], largest):
            what = f"the inventory of {group}"
            yield Problem(config, 0, "", _text(what, had, new_devices[group], largest, "devices"))
    old_rules: dict[str, int] = before.get("rules", {})
    new_rules: dict[str, int] = after.get("rules", {})
    for app, had in old_rules.items():
        if app in new_rules and app not in told and _is_too_much(had, new_rules[app], largest):
            yield Problem(config, 0, "", _text(f"the app {app}", had, new_rules[app], largest))


def _lists(manifest: dict[str, Any]) -> Counter[tuple[str, str]]:
    lists: Counter[tuple[str, str]] = Counter()
    for report in manifest.get("lists", []):
        lists[report["app"], report["file"]] += report["kept"]
    return lists


def _is_too_much(had: int, has: int, largest: float) -> bool:
    return has < had and had - has > largest * had


def _text(what: str, had: int, has: int, largest: float, of: str = "rules") -> str:
    share = 100 * (had - has) / had
    return (
        f"{what} would lose {had - has} of its {had} {of} ({share:.0f}%), more than reload.largest_shrink "
        f"({100 * largest:g}%); if that is meant: blockd reload --accept"
    )
