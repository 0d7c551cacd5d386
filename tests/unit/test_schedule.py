"""When exemptions hold: hours in their zone, over a change of clocks, and as changes of a slot."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.exemptions.schedule import HORIZON, MAX_CHANGES, Hours, Term, changes, read_hours


def at(text: str) -> float:
    """Read a time."""
    return datetime.fromisoformat(text).timestamp()


def shown(hours: Hours, start: str, end: str) -> list[tuple[str, str]]:
    """Give windows as times of UTC."""
    found = hours.windows(at(start), at(end))
    return [tuple(datetime.fromtimestamp(t, UTC).strftime("%d %H:%M") for t in window) for window in found]  # type: ignore[misc]


def test_hours_are_those_of_their_zone_when_clocks_change() -> None:
    """Eight o'clock in London is another moment before and after the last Sunday of March."""
    hours = read_hours("sat-mon 08:00-18:00 Europe/London")
    assert shown(hours, "2027-03-27T00:00+00:00", "2027-03-30T00:00+00:00") == [
        ("27 08:00", "27 18:00"),
        ("28 07:00", "28 17:00"),
        ("29 07:00", "29 17:00"),
    ]
    night = read_hours("22:00-06:00 Europe/London")
    # The night in which an hour is left out is shorter by it.
    assert shown(night, "2027-03-27T12:00+00:00", "2027-03-28T12:00+00:00") == [("27 22:00", "28 05:00")]
    assert shown(night, "2027-10-30T12:00+00:00", "2027-10-31T12:00+00:00") == [("30 21:00", "31 06:00")]
    # Begun the day before.
    assert shown(night, "2027-01-10T03:00+00:00", "2027-01-10T12:00+00:00") == [("10 03:00", "10 06:00")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8-18",
        "mon 08:00-18:00",
        "xyz 08:00-18:00 Europe/London",
        "08:00-08:00 UTC",
        "25:00-26:00 UTC",
        "08:00-18:00 Nowhere/X",
    ],
)
def test_other_hours_are_refused(text: str) -> None:
    """With what would be right."""
    with pytest.raises(ValueError, match=r"such as mon-fri 08:00-18:00 Europe/London"):
        read_hours(text)


def test_a_slot_begins_now_and_ends_without_exemption() -> None:
    """What holds now holds from 0; each change is one; the last is nobody's grant."""
    one = Term(frozenset({"a"}), 0, 5000)
    two = Term(frozenset({"b"}), 2000, 3000)
    assert changes([one, two], 1000) == [
        (0.0, frozenset({"a"})),
        (2000, frozenset({"a", "b"})),
        (3000, frozenset({"a"})),
        (5000, frozenset()),
    ]
    assert changes([], 1000) == [(0.0, frozenset())]
    assert changes([one], 5000) == [(0.0, frozenset())]
    endless = Term(frozenset({"a"}), 0, 1e12)
    assert changes([endless], 1000) == [(0.0, frozenset({"a"})), (1000 + HORIZON, frozenset())]


def test_more_changes_than_there_is_room_for_end_without_exemption() -> None:
    """The rest is told later."""
    terms = [Term(frozenset({"a"}), 100 * n, 100 * n + 50) for n in range(40)]
    found = changes(terms, 10)
    assert len(found) == MAX_CHANGES + 1
    assert found[-1][1] == frozenset()
    assert [moment for moment, _ in found] == [0.0, 50, 100, 150, 200, 250, 300, 350, 400]


@given(
    st.lists(
        st.builds(
            Term,
            st.frozensets(st.sampled_from("abc"), min_size=1),
            st.integers(0, 60).map(float),
            st.integers(0, 90).map(float),
        ),
        max_size=5,
    ),
    st.integers(0, 60),
)
def test_a_slot_says_what_the_terms_say(terms: list[Term], now: int) -> None:
    """At every moment that it covers; never more than they do after it."""
    found = changes(terms, now)
    assert found[0][0] == 0.0
    assert found[-1][1] == frozenset()
    assert len(found) <= MAX_CHANGES + 1
    for moment in range(now, 100):
        told = [apps for start, apps in found if start <= moment][-1]
        wanted = frozenset().union(*(t.apps for t in terms if t.start <= moment < t.end))
        assert told <= wanted
        if moment < found[-1][0] or len(found) <= MAX_CHANGES:
            assert told == wanted, moment


LONDON = ZoneInfo("Europe/London")


@pytest.mark.parametrize(
    "text", ["01:15-01:45", "00:30-01:30", "01:30-02:15", "01:30-02:30", "sun 22:00-02:00", "mon-sat 23:30-01:30"]
)
@pytest.mark.parametrize("day", ["2027-03-27T12:00:00+00:00", "2027-10-30T12:00:00+00:00", "2027-06-01T00:00:00+00:00"])
def test_hours_are_what_the_wall_clock_says_and_nothing_else(text: str, day: str) -> None:
    """Minute by minute over both changes of the year: open exactly when the clock there shows these hours."""
    hours = read_hours(f"{text} Europe/London")
    start = datetime.fromisoformat(day).timestamp()
    end = start + 36 * 3600
    windows = list(hours.windows(start, end))
    assert all(first < last for first, last in windows)
    for moment in range(int(start), int(end), 60):
        wall = datetime.fromtimestamp(moment, LONDON)
        minutes = wall.hour * 60 + wall.minute
        if hours.start < hours.end:
            is_open = hours.start <= minutes < hours.end and wall.weekday() in hours.days
        else:
            before = (wall.weekday() - 1) % 7
            late, early = minutes >= hours.start, minutes < hours.end
            is_open = (late and wall.weekday() in hours.days) or (early and before in hours.days)
        assert any(first <= moment < last for first, last in windows) == is_open, wall


@pytest.mark.parametrize("zone", ["localtime", "posixrules", "Nowhere/Gone"])
def test_a_zone_is_the_same_everywhere(zone: str) -> None:
    """Resolvers that share a ledger must not each read it by their own."""
    with pytest.raises(ValueError, match="is no time zone"):
        read_hours(f"08:00-18:00 {zone}")
