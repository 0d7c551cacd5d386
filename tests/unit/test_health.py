"""Upstreams by latency and failures: who does badly is asked later, for longer each time."""

from __future__ import annotations

import itertools
import time
from ipaddress import ip_address
from typing import Any

import dns.message

from blockd.endpoint import Endpoint
from blockd.resolver.paths import Paths, Sign
from blockd.resolver.routes import FEWEST_TRIES, FORGIVEN_AFTER, LONGEST_BACK_OFF, Routes
from tests.conftest import Serve
from tests.support.questions import PERSONAL, addresses, ask
from tests.support.upstream import Asked, Reply, Upstream, answer

FAST, SLOW = (Endpoint(ip_address(f"192.0.2.{last}"), 53) for last in (1, 2))


def native(server: Endpoint) -> tuple[str, str, str, int, str]:
    """Give a server as the crate does."""
    return (server.transport, str(server.address), server.scope, server.port, server.name)


class Ways(Paths):
    """Paths as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[Endpoint, int] = {}
        self.answers: set[Endpoint] = set()
        self.suspected: list[Endpoint] = []

    def look(self, server: Endpoint, is_suspected: bool) -> Sign:
        """Give what the test says."""
        if is_suspected:
            self.suspected.append(server)
        return Sign(self.errors.get(server), is_suspected and server in self.answers)


class Fastpath:
    """Counters that a test sets; remembers order and probes."""

    def __init__(self) -> None:
        keys = ("sent", "answered", "timed_out", "failed", "silent_in_a_row", "waited_us", "not_sent", "send_error")
        self.counts: dict[Any, dict[str, Any]] = {s: dict.fromkeys(keys, 0) for s in (SLOW, FAST)}
        self.ranks: dict[Any, int] = {}
        self.probed: list[Any] = []

    def servers(self) -> list[dict[str, Any]]:
        """Give what the crate gives."""
        return [{"endpoint": native(server), **counts} for server, counts in self.counts.items()]

    def set_order(self, ranks: dict[Any, int]) -> None:
        """Remember it."""
        self.ranks = dict(ranks)

    def probe(self, server: Any) -> None:
        """Remember it."""
        self.probed.append(server)

    def answer(self, server: Any, count: int, seconds: float) -> None:
        """Answer so often, each after so long."""
        self.counts[server]["sent"] += count
        self.counts[server]["answered"] += count
        self.counts[server]["waited_us"] += int(count * seconds * 1e6)


def fail(fastpath: Any, server: Any, count: int) -> None:
    """Answer with an error so often."""
    fastpath.counts[server]["sent"] += count
    fastpath.counts[server]["failed"] += count


def make() -> tuple[Any, Routes]:
    """Give counters, and what watches them."""
    fastpath: Any = Fastpath()
    routes = Routes(fastpath, lambda: [[SLOW, FAST]], Ways())
    routes.look(0.0)
    return fastpath, routes


def test_a_slow_server_is_asked_after_a_fast_one() -> None:
    """Four times as long and 50 ms more; it comes back when probes find it fast, and stays back longer each time."""
    fastpath, routes = make()
    waits = []
    now = 1.0
    for _ in range(3):
        fastpath.answer(SLOW, 10, 0.3)
        fastpath.answer(FAST, 10, 0.01)
        while routes.look(now).get(SLOW) != "slow":
            fastpath.answer(SLOW, 10, 0.3)
            fastpath.answer(FAST, 10, 0.01)
            now += 1
        assert fastpath.ranks[SLOW] > fastpath.ranks[FAST]
        began = now
        while routes.health[SLOW].state != "up":
            now += 1
            fastpath.answer(SLOW, 1, 0.01)
            routes.look(now)
        waits.append(now - began)
    assert waits[0] < waits[1] < waits[2], waits
    assert fastpath.ranks[SLOW] == fastpath.ranks[FAST]


def test_a_failing_server_is_asked_last_and_forgiven_in_time() -> None:
    """More than half of its exchanges; a few are nothing; after a minute without, it starts from nothing."""
    fastpath, routes = make()
    fail(fastpath, SLOW, FEWEST_TRIES - 2)
    assert routes.look(1.0) == {}
    fail(fastpath, SLOW, FEWEST_TRIES)
    fail(fastpath, FAST, 3 * FEWEST_TRIES)
    assert routes.look(1.5) == {}, "where nobody does better it is the names"
    fastpath, routes = make()
    fail(fastpath, SLOW, 2 * FEWEST_TRIES)
    fastpath.answer(FAST, 2 * FEWEST_TRIES, 0.01)
    assert routes.look(2.0) == {SLOW: "failing"}
    assert fastpath.ranks == {SLOW: 2, FAST: 0}
    now = 2.0
    while routes.health[SLOW].state != "up":
        now += 1
        assert now < 60
        routes.look(now)
    assert SLOW in fastpath.probed
    assert routes.health[SLOW].strikes > 0
    routes.look(now + FORGIVEN_AFTER)
    assert routes.health[SLOW].strikes == 0


def test_a_dead_server_is_probed_less_and_less() -> None:
    """Up to half a minute apart; one answer is enough to come back."""
    fastpath, routes = make()
    fastpath.counts[SLOW]["silent_in_a_row"] = 3
    assert routes.look(1.0) == {SLOW: "dead"}
    times = []
    for now in range(2, 200):
        before = len(fastpath.probed)
        routes.look(float(now))
        if len(fastpath.probed) > before:
            times.append(now)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps == sorted(gaps)
    assert max(gaps) == LONGEST_BACK_OFF
    fastpath.counts[SLOW]["silent_in_a_row"] = 0
    assert routes.look(200.0) == {SLOW: "up"}


def test_a_server_that_fails_is_passed_over_by_the_daemon(serve: Serve) -> None:
    """SERVFAIL after SERVFAIL: the second server is asked first, and metrics and status say why."""

    def fails(query: dns.message.Message, asked: Asked) -> Reply:
        return answer(query, rcode=2)

    def works(query: dns.message.Message, asked: Asked) -> Reply:
        return answer(query, f"{asked.name}. 60 IN A 192.0.2.1")

    with Upstream(fails) as first, Upstream(works) as second:
        blockd = serve([first.address, second.address])
        deadline = time.monotonic() + 10
        at = 0
        while blockd.metric("blockd_upstream_server_state", server=first.address, state="failing") != 1:
            assert time.monotonic() < deadline
            for _ in range(10):
                at += 1
                assert addresses(ask(blockd, f"n{at}.example", client=PERSONAL)) == ["192.0.2.1"]
        count = len(first.asked)
        ask(blockd, "after.example", client=PERSONAL)
        assert "after.example" not in [asked.name for asked in first.asked[count:]]
        assert blockd.metric("blockd_upstream_server_faults_total", server=first.address, reason="failed") >= 10
        assert f"upstream {first.address} fails" in blockd.log.read_text()


def test_latencies_are_those_of_hits_and_misses(serve: Serve) -> None:
    """Hits take microseconds, misses what the upstream takes; as many as were sent."""
    with Upstream({"a.example": ["a.example. 60 IN A 192.0.2.1"]}) as upstream:
        upstream.delay = 0.12
        blockd = serve([upstream.address])
        for _ in range(20):
            ask(blockd, "a.example", client=PERSONAL)
        metrics = blockd.metrics()
        assert metrics['blockd_answer_seconds_count{path="miss"}'] == 1
        assert metrics['blockd_answer_seconds_count{path="hit"}'] == 19
        assert 0.12 <= metrics['blockd_answer_seconds_sum{path="miss"}'] < 0.4
        assert metrics['blockd_answer_seconds_bucket{le="0.1",path="miss"}'] == 0
        assert metrics['blockd_answer_seconds_bucket{le="0.25",path="miss"}'] == 1
        assert metrics['blockd_answer_seconds_bucket{le="0.01",path="hit"}'] == 19
        assert metrics['blockd_answer_seconds_bucket{le="+Inf",path="hit"}'] == 19
