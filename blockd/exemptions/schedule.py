"""When an exemption holds, as changes of one device's view over the next days.

Times are seconds since 1970. No clock is read here: now is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
#: How far ahead the hot path is told; after that, without anybody's word, it is as if there were no exemption.
HORIZON = 48 * 3_600.0
#: Changes of a slot, the last of which is always to no exemption at all.
MAX_CHANGES = 8

_HOURS = re.compile(
    r"(?:(?P<from_day>[a-z]{3})(?:-(?P<to_day>[a-z]{3}))? )?"
    r"(?P<from>[0-2]?[0-9]:[0-5][0-9])-(?P<to>[0-2]?[0-9]:[0-5][0-9]) (?P<zone>[A-Za-z0-9_+/-]+)"
)


@dataclass(frozen=True)
class Hours:
    """Hours of the day, on some days of the week, in a zone; they may go over midnight."""

    days: frozenset[int]
    #: Minutes since midnight.
    start: int
    end: int
    zone: ZoneInfo

    def windows(self, start: float, end: float) -> Iterator[tuple[float, float]]:
        """Give the stretches within a time that are in these hours, by the wall clock of the zone."""
        day = datetime.fromtimestamp(start, self.zone).date() - timedelta(days=1)
        while (first := self._at(day, self.start)) < end:
            last = self._at(day, self.end) if self.end > self.start else self._at(day + timedelta(days=1), self.end)
            if day.weekday() in self.days and last > start:
                yield max(first, start), min(last, end)
            day += timedelta(days=1)

    def _at(self, day: date, minutes: int) -> float:
        days, minutes = divmod(minutes, 24 * 60)
        wall = datetime.combine(day + timedelta(days=days), time(minutes // 60, minutes % 60), self.zone)
        return wall.astimezone(UTC).timestamp()


def read_hours(text: str) -> Hours:
    """Read `mon-fri 08:00-18:00 Europe/London`; without days, every day. ValueError says what is wrong."""
    found = _HOURS.fullmatch(" ".join(text.split()))
    example = "such as mon-fri 08:00-18:00 Europe/London"
    if found is None:
        raise ValueError(f"{text!r} are no hours, {example}")
    days = [
        (found[key] or usual).lower() for key, usual in (("from_day", "mon"), ("to_day", found["from_day"] or "sun"))
    ]
    if any(day not in DAYS for day in days):
        raise ValueError(f"{text!r} names no day of the week, {example}")
    first, last = (DAYS.index(day) for day in days)
    minutes = [int(found[key].split(":")[0]) * 60 + int(found[key].split(":")[1]) for key in ("from", "to")]
    if minutes[0] >= 24 * 60 or minutes[1] > 24 * 60 or minutes[0] == minutes[1]:
        raise ValueError(f"{text!r} has no beginning and end within a day, {example}")
    try:
        zone = ZoneInfo(found["zone"])
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{found['zone']!r} is no time zone, {example}") from None
    span = range(first, last + 1) if first <= last else (*range(first, 7), *range(last + 1))
    return Hours(frozenset(span), minutes[0], minutes[1], zone)


@dataclass(frozen=True)
class Term:
    """When one exemption holds, and for which apps."""

    apps: frozenset[str]
    start: float
    end: float
    hours: Hours | None = None

    def windows(self, start: float, end: float) -> Iterable[tuple[float, float]]:
        """Give the stretches within a time in which it holds."""
        start, end = max(start, self.start), min(end, self.end)
        if start >= end:
            return []
        return [(start, end)] if self.hours is None else list(self.hours.windows(start, end))


def changes(terms: Iterable[Term], now: float) -> list[tuple[float, frozenset[str]]]:
    """Give from when which apps are exempt; the first from 0, the last none.

    A device that needs more changes than there is room for is told of the next ones later, before the last is reached.
    """
    windows = [(start, end, term.apps) for term in terms for start, end in term.windows(now, now + HORIZON)]
    moments = sorted({now, *(moment for start, end, _ in windows for moment in (start, end))})
    found: list[tuple[float, frozenset[str]]] = []
    for moment in moments:
        apps = frozenset().union(*(apps for start, end, apps in windows if start <= moment < end))
        if not found or found[-1][1] != apps:
            found.append((moment if found else 0.0, apps))
    if len(found) > MAX_CHANGES + 1:
        found = [*found[:MAX_CHANGES], (found[MAX_CHANGES][0], frozenset())]
    return found


def slot(found: list[tuple[float, frozenset[str]]], view: Callable[[frozenset[str]], int]) -> list[tuple[float, int]]:
    """Put views in the place of apps."""
    return [(moment, view(apps)) for moment, apps in found]
