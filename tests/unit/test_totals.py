"""Sums of what firewalls count never go back, whatever becomes of a firewall."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from blockd.egress.totals import MAX_COUNTS, MAX_TABLES, Totals


def status(packets: int, drift: int = 0, app: str = "tiktok") -> dict[str, Any]:
    """Write a status with these counts."""
    row = {"what": "blocked", "group": "corporate", "app": app, "packets": packets, "octets": 0}
    return {"generation": "7", "drift": drift, "ended": 0, "refused": {"full": drift}, "counters": [row]}


def packets(totals: Totals) -> int:
    """Give the packets in all."""
    return sum(totals.by("packets").values())


def test_a_firewall_that_comes_and_goes_is_counted_once() -> None:
    """Reconnected, it goes on; with a new table it begins anew; off, it keeps what it had; another one adds up."""
    totals = Totals()
    for table, count, expected in (
        ("a", 10, 10),
        ("a", 15, 15),
        ("b", 4, 19),
        ("a", 15, 19),
        ("a", 3, 22),  # its table was made anew
        ("a", 5, 24),
    ):
        totals.read(table, status(count))
        assert packets(totals) == expected, (table, count)
    totals.read("a", {"generation": None})
    assert packets(totals) == 24
    totals.read("a", status(6, drift=2))
    assert (packets(totals), totals.sum("drift"), totals.by("refused")) == (25, 2, {("full",): 2})


def test_what_peers_send_is_bounded() -> None:
    """Tables and names without end: the first names stay, and the last tables."""
    totals = Totals()
    for at in range(MAX_TABLES + 5):
        totals.read(f"t{at}", status(1))
    for at in range(MAX_COUNTS + 5):
        totals.read("t", status(1, app=f"app{at}"))
    assert len(totals.sums) == MAX_COUNTS
    assert packets(totals) >= MAX_TABLES


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(-5, 50), st.integers(0, 50)), max_size=40))
def test_no_sum_goes_back(read: list[tuple[str, int, int]]) -> None:
    """Whatever is read, in whatever order."""
    totals = Totals()
    before = totals.copy().sums
    for table, count, drift in read:
        totals.read(table, status(count, drift))
        assert all(totals.sums[key] >= value for key, value in before.items())
        before = totals.copy().sums
