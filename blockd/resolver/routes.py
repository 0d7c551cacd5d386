"""Which upstream comes first: those that do well, in the order of the config; others later, and probed at times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from blockd.endpoint import Endpoint
from blockd.fastpath import Fastpath, _native
from blockd.resolver.paths import Paths

#: Time-outs in a row after which a server counts as dead.
SILENT_UNTIL_DEAD = 3
#: Seconds between two looks.
LOOK_INTERVAL = 1.0
#: Share of its latest exchanges that may fail or be late, and how many there must be to tell.
WORST_FAULTS = 0.5
FEWEST_TRIES = 10
#: How many another must have to be compared with.
FEWEST_OTHERS = 3
#: A server is slow when it takes so many times as long as the fastest of its route, and so many seconds more.
SLOW_TIMES, SLOW_SECONDS = 4.0, 0.05
#: Weight of the newest second in what is remembered of speed, and what remains of older faults.
SPEED_WEIGHT, FAULTS_REMAIN = 0.3, 0.8
#: Seconds that a server stands back: doubled each time up to the longest, forgiven after so long without.
SHORTEST_BACK_OFF, LONGEST_BACK_OFF, FORGIVEN_AFTER = 1.0, 32.0, 60.0

#: Seconds without a new error after which a silent server is no longer unreachable, but dead.
ERROR_HOLDS = 10.0

#: States in the order in which servers are asked.
STATES = ("up", "slow", "failing", "dead", "unreachable")
#: Those in which a server gives no answers.
UNUSABLE_STATES = frozenset({"dead", "unreachable"})


@dataclass
class Health:
    """How one server does."""

    state: str = "up"
    #: Seconds from query to answer, the latest counting most; none before the first answer.
    latency: float | None = None
    tries: float = 0.0
    faults: float = 0.0
    strikes: int = 0
    #: When it may come back; when it last came back.
    until: float = 0.0
    since: float = 0.0
    last: _native.ServerCounts | None = None
    #: Why nothing can be sent to it, as the system says (errno), and when it said so last.
    error: int | None = None
    error_at: float = 0.0

    def count(self, counts: _native.ServerCounts) -> tuple[bool, bool, bool]:
        """Take in what happened since the last look; say whether it replied, was silent, and could not be sent to."""
        sent, answered, failed, late, not_sent, waited_us = (
            counts[key] - (self.last[key] if self.last else 0)
            for key in ("sent", "answered", "failed", "timed_out", "not_sent", "waited_us")
        )
        if answered > 0:
            took = waited_us / 1e6 / answered
            self.latency = took if self.latency is None else self.latency + SPEED_WEIGHT * (took - self.latency)
        self.tries = self.tries * FAULTS_REMAIN + sent
        self.faults = self.faults * FAULTS_REMAIN + failed + late
        self.last = counts
        return answered + failed > 0, late > 0, not_sent > 0

    def note(self, error: int | None, has_replied: bool, now: float) -> None:
        """Take in what the system says of the way to it."""
        if error is not None:
            self.error, self.error_at = error, now
        elif has_replied or now - self.error_at > ERROR_HOLDS:
            self.error = None

    @property
    def does_badly(self) -> bool:
        """Whether most of its latest exchanges failed or were late."""
        return self.tries >= FEWEST_TRIES and self.faults > WORST_FAULTS * self.tries

    def verdict(self, beside: Sequence[Health]) -> str:
        """Say what it is worth now, compared with those of its routes that answer."""
        assert self.last is not None
        if self.error is not None:
            return "unreachable"
        if self.last["silent_in_a_row"] >= SILENT_UNTIL_DEAD:
            return "dead"
        # Where nobody does better it is the names: a client that asks for broken ones must not choose our upstream.
        if self.does_badly and any(other.tries >= FEWEST_OTHERS and not other.does_badly for other in beside):
            return "failing"
        fastest = min((other.latency for other in beside if other.latency is not None), default=None)
        if fastest is not None and self.latency is not None:
            bound = max(SLOW_TIMES * fastest, fastest + SLOW_SECONDS)
            return "slow" if self.latency > bound else "up"
        return "up"

    def back_off(self, now: float) -> None:
        """Stand back for twice as long as the last time."""
        self.until = now + min(SHORTEST_BACK_OFF * 2**self.strikes, LONGEST_BACK_OFF)
        self.strikes += 1


class Routes:
    """Watches the servers' counters, and publishes a new order when one gets worse or comes back."""

    def __init__(
        self, fastpath: Fastpath, routes: Callable[[], Iterable[Sequence[Endpoint]]], paths: Paths | None = None
    ) -> None:
        """Start with all of them up; ``routes()`` gives the servers of each route in force."""
        self._fastpath = fastpath
        self._routes = routes
        self._paths = Paths() if paths is None else paths
        self.health: dict[Endpoint, Health] = {}

    @property
    def dead(self) -> frozenset[Endpoint]:
        """The servers that do not answer, or cannot be reached."""
        return frozenset(server for server, health in self.health.items() if health.state in UNUSABLE_STATES)

    @property
    def is_any_usable(self) -> bool:
        """Whether a server of any route may answer; true until one was found that does not."""
        return not self.health or any(health.state not in UNUSABLE_STATES for health in self.health.values())

    def look(self, now: float) -> dict[Endpoint, str]:
        """Compare, publish, probe those that stand back; give the new state of those that changed. ``now``: seconds."""
        servers = {Endpoint.from_native(server["endpoint"]): server for server in self._fastpath.servers()}
        # One that a reload took away neither died nor came back.
        self.health = {address: self.health.get(address) or Health(since=now) for address in servers}
        self._paths.keep(frozenset(servers))
        for address, counts in servers.items():
            self._look_at(address, counts, now)
        changed = {}
        for address, health in self.health.items():
            verdict = health.verdict(self._beside(address))
            before = health.state
            if before == "up" and verdict == "up":
                if now - health.since >= FORGIVEN_AFTER:
                    health.strikes = 0
            elif before == "up" or STATES.index(verdict) > STATES.index(before):
                health.state = verdict
                health.back_off(now)
            elif now >= health.until:
                if verdict == "up":
                    health.state, health.since = "up", now
                else:
                    health.state = verdict
                    health.back_off(now)
                    if verdict != "unreachable":
                        self._fastpath.probe(address)
            elif before in UNUSABLE_STATES and verdict != before:
                # It answered, which is all that a dead one has to do, or there is a way to it again.
                health.state, health.since = verdict, now
            if health.state != before:
                changed[address] = health.state
        if changed:
            self.publish()
        return changed

    def _look_at(self, address: Endpoint, counts: _native.ServerCounts, now: float) -> None:
        health = self.health[address]
        has_replied, is_silent, is_refused = health.count(counts)
        if has_replied:
            health.note(None, has_replied, now)
            self._paths.forget(address)
            return
        sign = self._paths.look(address, is_silent or is_refused or health.error is not None)
        error = sign.error
        if is_refused and error is None and not sign.is_answered:
            error = counts["send_error"]
        if sign.is_answered and counts["silent_in_a_row"]:
            # The hot path counts it silent until it has an answer of its own, which comes before the next look.
            self._fastpath.probe(address)
            return
        health.note(error, sign.is_answered, now)

    def _beside(self, address: Endpoint) -> list[Health]:
        """Give the others of its routes that answer."""
        others = {other for route in self._routes() if address in route for other in route} - {address}
        known = [self.health[other] for other in others if other in self.health]
        return [health for health in known if health.state not in UNUSABLE_STATES]

    def publish(self) -> None:
        """Order the servers; also after each new snapshot, whose order is the config's."""
        ranks = {server: STATES.index(health.state) for server, health in self.health.items()}
        self._fastpath.set_order(ranks)
