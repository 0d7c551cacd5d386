"""What a security team takes to a decision: usage of apps, and what a block would have touched, as data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from blockd.policy.inputs import Inputs
from blockd.policy.views import group_views
from blockd.review.store import Kept
from blockd.review.usage import DAY

#: Of candidates, how many a report shows.
MOST = 100


@dataclass(frozen=True)
class AppFacts:
    """What is said of an app elsewhere."""

    title: str
    owner: str
    #: What it takes -> who says so.
    takes: Mapping[str, str]
    #: `block`, `monitor`, `allow` -> groups.
    standing: Mapping[str, list[str]]
    #: Groups that a decision to block it would concern.
    decidable: Collection[str] = ()
    #: The set of apps by which a policy names it.
    set: str | None = None


def report(
    kept: Kept, facts: Mapping[str, AppFacts], since: float, until: float, apps: Iterable[str]
) -> dict[str, Any]:
    """Put a span together: seconds since 1970; of these apps, of all that were used or are live without any."""
    used = {row[1] for row in kept.usage}
    wanted = sorted(set(apps) or used | facts.keys())
    return {
        "since": _date(since),
        "until": _date(until),
        "apps": [_app(app, kept, facts.get(app), since, until) for app in wanted],
        "candidates": [
            {"name": name, "app": app, "queries": queries, "first": _moment(first), "last": _moment(last)}
            for name, app, queries, first, last in kept.names
            if app in wanted
        ][:MOST],
    }


def facts_of(inputs: Inputs) -> dict[str, AppFacts]:
    """Give what is known of each live app."""
    standing: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: {"block": [], "monitor": [], "allow": []})
    for view in group_views(inputs):
        for key in ("block", "monitor", "allow"):
            for app in getattr(view, key):
                standing[app][key].append(view.group)
    entries = {name: inputs.catalogue.entries[name].app for name in inputs.live_apps()}
    return {
        name: AppFacts(
            app.title,
            app.owner or "",
            dict(app.takes),
            standing[name],
            inputs.decidable.get(name, ()),
            inputs.set_of.get(name),
        )
        for name, app in entries.items()
    }


def _app(app: str, kept: Kept, facts: AppFacts | None, since: float, until: float) -> dict[str, Any]:
    by_group: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_day: defaultdict[int, Counter[str]] = defaultdict(Counter)
    seen: dict[str, tuple[int, int]] = {}
    for hour, whose, group, action, queries, first, last in kept.usage:
        if whose == app:
            by_group[group][action] += queries
            by_day[hour * 3_600 // DAY][action] += queries
            earliest, latest = seen.get(group, (first, last))
            seen[group] = (min(earliest, first), max(latest, last))
    groups: list[dict[str, Any]] = [
        {
            "group": group,
            "queries": dict(sorted(counts.items())),
            "devices": kept.devices.get((app, group)),
            "first": _moment(seen[group][0]),
            "last": _moment(seen[group][1]),
        }
        for group, counts in sorted(by_group.items())
    ]
    days = range(int(since // DAY), int(until // DAY) + 1)
    # A decision to block never reaches a group whose policy blocks nothing, whatever that group's devices query.
    concerned = facts.decidable if facts else ()
    touched = [row for row in groups if row["queries"].get("monitor") and row["group"] in concerned]
    return {
        "app": app,
        "title": facts.title if facts else app,
        "owner": facts.owner if facts else "",
        "set": facts.set if facts else None,
        "takes": dict(facts.takes) if facts else {},
        "standing": {key: list(names) for key, names in facts.standing.items()} if facts else {},
        "groups": groups,
        "trend": [{"day": _date(day * DAY), **dict(sorted(by_day[day].items()))} for day in days],
        "block_would_touch": {
            "queries": sum(row["queries"]["monitor"] for row in touched),
            "devices": _sum(kept.monitored.get((app, row["group"])) for row in touched),
            "groups": [row["group"] for row in touched],
        },
        "exempt_queries": sum(counts["exempt"] for counts in by_group.values()),
    }


def _sum(counts: Iterable[int | None]) -> int | None:
    """Add up; None when they are known of nobody."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="minutes")
