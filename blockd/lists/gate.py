"""May a candidate take the place of what is in force? A list that was emptied, swapped or poisoned must not.

A candidate is judged by its manifest, beside the one of the generation in force; nothing is read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blockd.problems import Problem

if TYPE_CHECKING:
    # A fetch judges by these rules too, and has no use for the whole schema.
    from blockd.settings.schema import Settings

#: What a compile calls a name that is everybody's.
PUBLIC_SUFFIX = "a public suffix"
#: What it calls a rule about every name.
EVERY_NAME = "a rule about every name"
#: Names that a list may gain whatever its share of them is: short lists grow by leaps.
FEW = 50
#: The command that takes in what is refused.
RELOAD = "blockd reload --accept"
#: Reasons for skipped lines that are not counted among those that give no name: what every hosts file has, what stands
#: beside each rule of some dnsmasq lists, and what is refused for itself.
USUAL = (
    "the machine's own name",
    PUBLIC_SUFFIX,
    EVERY_NAME,
    "an option about sets of addresses",
    "a trigger of name servers, which a forwarder does not see",
)


@dataclass(frozen=True)
class Limits:
    """How much may change without somebody's word for it; shares of what there was, or of lines."""

    largest_shrink: float
    largest_growth: float
    largest_unparsed: float


def limits(settings: Settings) -> Limits:
    """Give the limits that a config sets."""
    return Limits(settings.reload.largest_shrink, settings.reload.largest_growth, settings.reload.largest_unparsed)


def samples(lines: Iterable[tuple[int, str, bytes]]) -> list[dict[str, Any]]:
    """Write lines of a list as a manifest has them: their bytes escaped, for they are read on terminals."""
    return [{"line": number, "reason": why, "text": repr(text)[2:-1]} for number, why, text in lines]


def refusals(
    before: dict[str, Any] | None, after: dict[str, Any], limits: Limits, config: str, how: str | None = RELOAD
) -> list[Problem]:
    """Give what speaks against a candidate; `before` is None where nothing is in force yet.

    `how` is the command that takes it in all the same, None for whoever has said so.
    """
    if before is not None:
        before, after = _with_moved(before, after), _without_known(before, after)
    problems = [Problem(**{**problem, "text": problem["text"] + _meant(how)}) for problem in after.get("must", [])]
    problems += _forbidden(after, how)
    problems += _unparsed(after, limits, how)
    problems += _unusable(before or {}, after, limits, how)
    if before is not None:
        problems += _cut(before, after, how)
        problems += _cut_inventories(before, after, how)
        problems += _grown(before, after, limits, how)
        problems += _shrunk(before, after, limits, config, how)
    return problems


def _meant(how: str | None) -> str:
    return "" if how is None else f"; if that is meant: {how}"


def _forbidden(after: dict[str, Any], how: str | None) -> Iterable[Problem]:
    for report in after.get("lists", []):
        for sample in report.get("refused_samples", []):
            what = f"{sample['text']}: {sample['reason']}; {report['refused']} such in this list"
            advice = _meant(how)
            if how is not None and sample["reason"] == PUBLIC_SUFFIX:
                # It is left out of a list that is taken in; an app may say that it is meant.
                advice = f"; to take the list in without: {how}; public_suffix: true of the app takes them, too"
            elif how is not None and sample["reason"] == EVERY_NAME:
                advice = f'; "{how}" loads the list without it'
            yield Problem(report["file"], sample["line"], "", what + advice)


def _unparsed(after: dict[str, Any], limits: Limits, how: str | None) -> Iterable[Problem]:
    for report in after.get("lists", []):
        bad = sum(count for reason, count in report["skipped"].items() if reason not in USUAL)
        lines = bad + report["kept"]
        largest = limits.largest_unparsed
        if lines and bad > largest * lines:
            first = next(sample for sample in report["samples"] if sample["reason"] not in USUAL)
            text = (
                f"{bad} of {lines} lines ({100 * bad / lines:.0f}%) give no name, more than reload.largest_unparsed "
                f"({100 * largest:g}%); the first: {first['reason']}: {first['text']}{_meant(how)}"
            )
            yield Problem(report["file"], first["line"], "", text)


def _inventory(report: dict[str, Any]) -> tuple[str, ...]:
    return report["group"], report["file"], *report["only"]


def _unusable(before: dict[str, Any], after: dict[str, Any], limits: Limits, how: str | None) -> Iterable[Problem]:
    """Give the inventories of which too many records cannot be used.

    Where the generation in force has too many already, somebody accepted those: only the others count.
    """
    largest = limits.largest_unparsed
    had = {_inventory(report): report for report in before.get("inventories", [])}
    for report in after.get("inventories", []):
        records, bad, old = report["records"], report["unusable"], had.get(_inventory(report))
        is_accepted = old is not None and old["unusable"] > largest * old["records"]
        if bad - (old["unusable"] if old is not None and is_accepted else 0) > largest * records:
            names = ("hostname", "serial", "owner")
            first = next((sample for sample in report["samples"] if sample["key"] not in names), None)
            what = f"; the first: {first['text']}" if first else ""
            text = (
                f"{bad} of {records} records ({100 * bad / records:.0f}%) cannot be used, more than "
                f"reload.largest_unparsed ({100 * largest:g}%){what}{_meant(how)}"
            )
            yield Problem(report["file"], first["line"] if first else 0, "", text)


def _cut_inventories(before: dict[str, Any], after: dict[str, Any], how: str | None) -> Iterable[Problem]:
    """Give the inventories that end earlier than before, within a line or a record, and have fewer devices."""
    had = {_inventory(report): report for report in before.get("inventories", [])}
    for report in after.get("inventories", []):
        old = had.get(_inventory(report))
        if old is not None and report["end"] > old["end"] and report["devices"] < old["devices"]:
            text = (
                f"ends within a line, and has {report['devices']} devices where it had {old['devices']}, as a file has "
                f"that was cut off or is being written{_meant(how)}"
            )
            yield Problem(report["file"], 0, "", text)


def moved(before: dict[str, Any] | None, after: dict[str, Any]) -> list[Problem]:
    """Give the lists that are not there yet and would take the place of one that is: nobody can accept that."""
    problems = []
    for new, old in _moves(before or {}, after):
        if new.get("is_lacking") and old["kept"]:
            text = (
                f"this list of {new['app']} is not there yet, and would take the place of one of {old['kept']} names: "
                "a reload fetches it first, and takes nothing in while it cannot be fetched"
            )
            problems.append(Problem(new["file"], 0, "", text))
    return problems


def _moves(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pair lists of an app that came with those that went, in their order: most likely they are the same, elsewhere."""
    old = {(report["app"], report["file"]) for report in before.get("lists", [])}
    new = {(report["app"], report["file"]) for report in after.get("lists", [])}
    pairs = []
    for app in dict.fromkeys(app for app, _ in [*old, *new]):
        came = [one for one in after.get("lists", []) if one["app"] == app and (app, one["file"]) not in old]
        went = [one for one in before.get("lists", []) if one["app"] == app and (app, one["file"]) not in new]
        pairs += list(zip(came, went, strict=False))
    return pairs


def _with_moved(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Give what is in force with lists under the names that they have now, so that one that moves is compared."""
    names = {(old["app"], old["file"]): new["file"] for new, old in _moves(before, after) if not new.get("is_lacking")}
    lists = [{**one, "file": names.get((one["app"], one["file"]), one["file"])} for one in before.get("lists", [])]
    return {**before, "lists": lists}


def _without_known(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was said, and accepted, of lists that are as they are in force: it would keep out all others."""
    known = {(one["app"], one["file"]): (one.get("sha256"), one.get("refused")) for one in before.get("lists", [])}
    said = [(problem["key"], problem["text"]) for problem in before.get("must", [])]
    lists = []
    for one in after.get("lists", []):
        is_known = one.get("sha256") and known.get((one["app"], one["file"])) == (one["sha256"], one.get("refused"))
        lists.append({**one, "refused_samples": [], "skipped": {}} if is_known else one)
    must = [problem for problem in after.get("must", []) if (problem["key"], problem["text"]) not in said]
    return {**after, "lists": lists, "must": must}


def _cut(before: dict[str, Any], after: dict[str, Any], how: str | None) -> Iterable[Problem]:
    """Give the files that end within a line, did not before, and have less than before, as what is cut off does."""
    had = {(report["app"], report["file"]): report for report in before.get("lists", [])}
    for report in after.get("lists", []):
        old = had.get((report["app"], report["file"]))
        ends_within = report.get("ends_within_line") and old is not None and not old.get("ends_within_line")
        if old is not None and ends_within and report["kept"] < old["kept"]:
            text = (
                f"ends within a line, and has {report['kept']} names where it had {old['kept']}, as a file has that "
                f"was cut off or is being written{_meant(how)}"
            )
            yield Problem(report["file"], 0, "", text)


def _grown(before: dict[str, Any], after: dict[str, Any], limits: Limits, how: str | None) -> Iterable[Problem]:
    old_lists, new_lists = _lists(before), _lists(after)
    lacking = {(report["app"], report["file"]) for report in before.get("lists", []) if report.get("is_lacking")}
    for (app, file), had in old_lists.items():
        if (app, file) in lacking:
            # It was not fetched yet: all of it is new.
            continue
        has, largest = new_lists.get((app, file), 0), _own(after, app, file, "largest_growth", limits.largest_growth)
        if has - had > max(FEW, largest * had):
            text = (
                f"the list of {app} would grow from {had} names to {has}, by more than its largest growth "
                f"({100 * largest:g}%){_meant(how)}"
            )
            yield Problem(file, 0, "", text)


def _shrunk(
    before: dict[str, Any], after: dict[str, Any], limits: Limits, config: str, how: str | None
) -> Iterable[Problem]:
    """Give the apps, lists and inventories that lose too much.

    An app that no policy names any more lost nothing: its policy changed, and that was meant. It lost all of its rules
    if the policy names its owner: its file is gone, or has another owner.
    """
    old_lists, new_lists = _lists(before), _lists(after)
    largest = limits.largest_shrink
    told: set[str] = set()
    for (app, file), had in old_lists.items():
        own = _own(after, app, file, "largest_shrink", largest)
        if (app, file) in new_lists and _is_too_much(had, new_lists[app, file], own):
            told.add(app)
            yield Problem(file, 0, "", _text(f"the list of {app}", had, new_lists[app, file], own) + _meant(how))
    # An export that came empty must not hide behind the group's other files.
    old_files = {_inventory(report): report["devices"] for report in before.get("inventories", [])}
    told_of: set[str] = set()
    for report in after.get("inventories", []):
        had, has = old_files.get(_inventory(report), 0), report["devices"]
        if _is_too_much(had, has, largest):
            told_of.add(report["group"])
            what = f"this inventory of {report['group']}"
            yield Problem(report["file"], 0, "", _text(what, had, has, largest, "devices") + _meant(how))
    old_devices: dict[str, int] = before.get("devices", {})
    new_devices: dict[str, int] = after.get("devices", {})
    for group, had in old_devices.items():
        if group not in told_of and group in new_devices and _is_too_much(had, new_devices[group], largest):
            what = f"the inventory of {group}"
            yield Problem(config, 0, "", _text(what, had, new_devices[group], largest, "devices") + _meant(how))
    old_rules: dict[str, int] = before.get("rules", {})
    new_rules: dict[str, int] = after.get("rules", {})
    for app, had in old_rules.items():
        # A list that may lose more by its own limit is no loss of its app.
        has = new_rules.get(app, 0) + sum(
            lost for (of, file), lost in (old_lists - new_lists).items() if of == app and _has_own(after, app, file)
        )
        left = None if app in new_rules else _left(app, before, after)
        if (app in new_rules or left) and app not in told and _is_too_much(had, has, largest):
            what = f"the app {app}, no longer in {left}," if left else f"the app {app}"
            yield Problem(config, 0, "", _text(what, had, has, largest) + _meant(how))


def _left(app: str, before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Give the owner's set that an app has left while others of it are in force; None if no set had brought it."""
    if before.get("sets", {}).get(app) is None:
        return None
    owners = after.get("owners", {})
    return next(
        (
            owner
            for owner, apps in before.get("owners", {}).items()
            if app in apps
            and app not in owners.get(owner, ())
            and any(other in after["rules"] and other in after["sets"] for other in owners.get(owner, ()))
        ),
        None,
    )


def _lists(manifest: dict[str, Any]) -> Counter[tuple[str, str]]:
    lists: Counter[tuple[str, str]] = Counter()
    for report in manifest.get("lists", []):
        lists[report["app"], report["file"]] += report["kept"]
    return lists


def _own(manifest: dict[str, Any], app: str, file: str, key: str, otherwise: float) -> float:
    """Give the limit that the list has of its own, or the one for all."""
    for report in manifest.get("lists", []):
        if (report["app"], report["file"]) == (app, file) and report.get(key) is not None:
            return float(report[key])
    return otherwise


def _has_own(manifest: dict[str, Any], app: str, file: str) -> bool:
    return _own(manifest, app, file, "largest_shrink", -1) >= 0


def _is_too_much(had: int, has: int, largest: float) -> bool:
    return has < had and had - has > largest * had


def _text(what: str, had: int, has: int, largest: float, of: str = "rules") -> str:
    share = 100 * (had - has) / had
    return (
        f"{what} would lose {had - has} of its {had} {of} ({share:.0f}%), more than reload.largest_shrink "
        f"({100 * largest:g}%)"
    )
