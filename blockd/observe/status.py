"""One screen of health, as data: what `blockd status` and `blockd top` show."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from blockd.endpoint import Endpoint
from blockd.fastpath import Fastpath
from blockd.observe.metrics import DecisionCounts, ReloadCounts
from blockd.policy.views import sets_of
from blockd.resolver.routes import UNUSABLE_STATES, Routes

#: Of counters, those that rates are made of.
RATES = ("queries.udp", "queries.tcp", "cache.hits", "cache.misses", "upstream.sent", "upstream.answered")


def status(
    *,
    fastpath: Fastpath,
    routes: Routes,
    route_servers: Mapping[str | None, Sequence[Endpoint]],
    nat64: list[tuple[str, str]],
    decisions: DecisionCounts,
    reloads: ReloadCounts,
    ready: dict[str, Any],
    meta: dict[str, Any],
    devices: dict[str, int],
    lists: list[dict[str, Any]],
    missing: list[str],
    leases: list[dict[str, Any]],
    version: str,
    listen: list[str],
    uptime: float,
    now: float,
) -> dict[str, Any]:
    """Gather it. ``uptime`` and ages are seconds."""
    counters, sizes = fastpath.counters(), fastpath.sizes()
    lost = {
        name: value
        for name, value in counters.items()
        if name.startswith(("dropped.", "pending.shed.", "not_read")) and value
    }
    return {
        **ready,
        "version": version,
        "listen": listen,
        "uptime": uptime,
        "policy_age": max(0.0, now - reloads.last_success),
        "names": sizes["rules.names"],
        "apps": len(meta["apps"]),
        "threads": len(fastpath.beats()),
        "totals": {name: counters[name] for name in RATES},
        "cache": {"entries": sizes["cache.entries"], "octets": sizes["cache.octets"], "stale": counters["cache.stale"]},
        "pending": sizes["pending.waiters"],
        "lost": lost,
        "latency": fastpath.latencies(),
        "upstreams": [_server(server, routes) for server in fastpath.servers()],
        "zones_without_upstream": [
            zone or "."
            for zone, servers in route_servers.items()
            if all(server in routes.health and routes.health[server].state in UNUSABLE_STATES for server in servers)
        ],
        "nat64": [{"prefix": prefix, "source": source} for prefix, source in nat64],
        "groups": [
            {"group": group, "devices": devices.get(group, 0), **view, "sets": sets_of(meta, at)}
            for at, (group, view) in enumerate(zip(meta["groups"], meta["views"], strict=True))
        ],
        "decisions": [
            {"group": group, "app": app, "action": action, "count": count}
            for (group, app, action), count in sorted(decisions.read(fastpath).items())
        ],
        "lists": [
            {key: report[key] for key in ("app", "file", "kept")} | {"skipped": sum(report["skipped"].values())}
            for report in lists
        ],
        "leases": leases,
        "missing_inventories": missing,
    }


def _server(counts: Any, routes: Routes) -> dict[str, Any]:
    endpoint = Endpoint.from_native(counts["endpoint"])
    health = routes.health.get(endpoint)
    error = None if health is None else health.error
    return {
        "server": str(endpoint),
        "state": "up" if health is None else health.state,
        "error": None if error is None else os.strerror(error),
        "latency": None if health is None else health.latency,
        "sent": counts["sent"],
        "answered": counts["answered"],
        "failed": counts["failed"],
        "timed_out": counts["timed_out"],
        "has_edns": counts["has_edns"],
    }
