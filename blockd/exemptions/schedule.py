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

#: Seconds between two looks at whether clocks changed.
STEP = 6 * 3_600.0
#: Names that are another zone on each machine.
LOCAL = frozenset({"localtime", "posixrules"})

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
        while self._latest(day) < end:
            if day.weekday() in self.days:
                for first, last in self._of(day):
                    if first < end and last > start:
                        yield max(first, start), min(last, end)
            day += timedelta(days=1)

    def _latest(self, day: date) -> float:
        """Give a moment that is before any of a day's hours in every offset."""
        return datetime.combine(day, time(), UTC).timestamp() - 86_400

    def _of(self, day: date) -> list[tuple[float, float]]:
        """Give the stretches in which the wall clock shows the hours that begin on a day.

        Where clocks go forward there may be none, where they go back there may be two: a moment is in the hours when
        the clock says so then, and at no other time.
        """
        midnight = datetime.combine(day, time(), UTC).timestamp()
        wall_first = midnight + 60 * self.start
        wall_last = midnight + 60 * self.end + (0 if self.end > self.start else 86_400)
        found: list[tuple[float, float]] = []
        for began, ended, offset in self._offsets(midnight - 86_400, midnight + 3 * 86_400):
            first, last = max(began, wall_first - offset), min(ended, wall_last - offset)
            if first >= last:
                continue
            if found and found[-1][1] == first:
                found[-1] = (found[-1][0], last)
            else:
                found.append((first, last))
        return found

    def _offsets(self, start: float, end: float) -> Iterator[tuple[float, float, float]]:
        """Give the stretches of a time in which clocks differ from UTC by the same, and by how many seconds."""
        began = start
        while began < end:
            offset, ended = self._offset(began), end
            # Zones change by the hour of some day; never twice within six.
            step = next((at for at in _steps(began, end) if self._offset(at) != offset), None)
            if step is not None:
                low, high = max(began, step - STEP), step
                while high - low > 1:
                    middle = float((low + high) // 2)
                    low, high = (middle, high) if self._offset(middle) == offset else (low, middle)
                ended = high
            yield began, ended, offset
            began = ended

    def _offset(self, moment: float) -> float:
        delta = datetime.fromtimestamp(moment, self.zone).utcoffset()
        return 0.0 if delta is None else delta.total_seconds()


def _steps(start: float, end: float) -> Iterator[float]:
    at = start
    while at < end:
        at = min(at + STEP, end)
        yield at


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
        if found["zone"] in LOCAL:
            raise ValueError(found["zone"])
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
