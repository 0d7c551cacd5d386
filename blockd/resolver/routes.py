"""Which upstream comes first: those that answer, in the order of the config; the silent are asked now and then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from blockd.fastpath import Fastpath, _native

#: Time-outs in a row after which a server counts as dead.
SILENT_UNTIL_DEAD = 3
#: Seconds between two looks.
LOOK_INTERVAL = 1.0

Endpoint = tuple[str, int]


def dead_servers(servers: Iterable[_native.ServerCounts]) -> frozenset[Endpoint]:
    """Name the servers that have not answered for some time."""
    return frozenset(s["address"] for s in servers if s["silent_in_a_row"] >= SILENT_UNTIL_DEAD)


class Routes:
    """Watches the servers' counters, and publishes a new order when one dies or comes back."""

    def __init__(self, fastpath: Fastpath) -> None:
        """Start with all of them alive."""
        self._fastpath = fastpath
        self.dead: frozenset[Endpoint] = frozenset()

    def look(self) -> frozenset[Endpoint]:
        """Compare, publish, probe the dead; give the servers that changed since the last look."""
        servers = self._fastpath.servers()
        dead = dead_servers(servers)
        # One that a reload took away neither died nor came back.
        changed = (dead ^ self.dead) & {server["address"] for server in servers}
        self.dead = dead
        if changed:
            self.publish()
        for server in dead:
            self._fastpath.probe(server)
        return changed

    def publish(self) -> None:
        """Put the dead behind the living; also after each new snapshot, whose order is the config's."""
        ranks: Mapping[tuple[str, int], int] = {server: 1 for server in self.dead}
        self._fastpath.set_order(ranks)
