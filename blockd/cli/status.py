"""``blockd status``: one screen of health."""

from __future__ import annotations

from typing import Any

import typer

from blockd.cli.options import Config, Json, Socket, socket_path
from blockd.cli.output import ask_daemon, duration, print_json, print_rows, print_table, say
from blockd.fastpath import LATENCY_BOUNDS


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(status)


def status(config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Show how the daemon does, on one screen. Exit code 1: it does not answer, or something is wrong."""
    state = ask_daemon("status", socket_path(config, socket), "status", as_json)
    wrong = complaints(state)
    if as_json:
        print_json({**state, "ok": not wrong, "wrong": wrong})
    else:
        show(state, wrong)
    if wrong:
        raise typer.Exit(1)


def complaints(state: dict[str, Any]) -> list[str]:
    """Say what is wrong, if anything is."""
    wrong = []
    if not state["config_in_force"]:
        wrong.append("the config as it stands is not in force:")
        wrong += state["problems"]
    if state["config_in_force"]:
        wrong += [
            f"{file}: this inventory is missing; the last good one is in force" for file in state["missing_inventories"]
        ]
    wrong += [f"leases: {source['problem']}" for source in state["leases"] if source["problem"]]
    for server in state["upstreams"]:
        if server["state"] == "unreachable":
            wrong.append(f"upstream {server['server']} cannot be reached: {server['error']}")
    for zone in state["zones_without_upstream"]:
        wrong.append("no upstream answers" if zone == "." else f"no upstream of {zone} answers")
    return wrong


def show(state: dict[str, Any], wrong: list[str]) -> None:
    """Print the screen."""
    totals, cache = state["totals"], state["cache"]
    asked = totals["cache.hits"] + totals["cache.misses"]
    ratio = f"{100 * totals['cache.hits'] / asked:.0f}% hits" if asked else "nothing asked yet"
    rows = [
        ("blockd", f"{state['version']}, up {duration(state['uptime'])}, {state['threads']} threads"),
        ("listens", ", ".join(state["listen"])),
        ("config", f"{state['config']}: {'in force' if state['config_in_force'] else 'NOT IN FORCE'}"),
        (
            "policy",
            f"{state['names']} names of {state['apps']} apps, {duration(state['policy_age'])} old, generation "
            f"{state['generation']} (rules {state['rules_generation']}, views {state['views_generation']})",
        ),
        ("queries", f"{totals['queries.udp']} by UDP, {totals['queries.tcp']} by TCP, {state['pending']} waiting"),
        ("cache", f"{cache['entries']} answers, {cache['octets'] / 2**20:.1f} MiB, {ratio}, {cache['stale']} stale"),
    ]
    if state["nat64"]:
        rows.append(("nat64", ", ".join(f"{one['prefix']} ({one['source']})" for one in state["nat64"])))
    for path, (counts, _) in sorted(state["latency"].items()):
        if sum(counts):
            shares = ", ".join(f"{100 * share:g} % within {_within(counts, share)}" for share in (0.5, 0.99))
            rows.append((f"{path}es" if path == "miss" else f"{path}s", shares))
    if state["lost"]:
        rows.append(("lost", ", ".join(f"{name} {count}" for name, count in state["lost"].items())))
    skipped = {source["file"]: sum(source["skipped"].values()) for source in state["leases"]}
    if any(skipped.values()):
        text = ", ".join(f"{file}: {count}" for file, count in skipped.items() if count)
        rows.append(("skipped", f'{text}; "blockd devices" shows which records'))
    if state.get("ledger", {}).get("skipped"):
        rows.append(("ledger", f"{state['ledger']['skipped']} entries cannot be used; the log has the first 20"))
    rows += [("WRONG" if at == 0 else "", text) for at, text in enumerate(wrong)]
    print_rows(rows, {"blockd": "bold", "WRONG": "bold red"})
    say()
    print_table(["UPSTREAM", "STATE", "TAKES", "SENT", "ANSWERED", "FAILED", "LATE"], servers(state), right=["TAKES"])
    say()
    print_table(["GROUP", "DEVICES", "BLOCK", "MONITOR", "ALLOW"], groups(state))
    if state["decisions"]:
        say()
        rows_of = [
            [d["group"], d["app"] or "-", d["action"], d["count"]]
            for d in sorted(state["decisions"], key=lambda d: -d["count"])[:12]
        ]
        print_table(["GROUP", "APP", "ACTION", "DECISIONS"], rows_of, right=["DECISIONS"])


def _within(counts: list[int], share: float) -> str:
    """Give the bound of the bucket in which this share of answers was reached."""
    reached = 0
    for bound, count in zip(LATENCY_BOUNDS, counts, strict=False):
        reached += count
        if reached >= share * sum(counts):
            return f"{1000 * bound:g} ms"
    return "more"


def servers(state: dict[str, Any]) -> list[list[object]]:
    """Give the upstreams' rows."""
    return [
        [
            server["server"],
            server["state"],
            "-" if server["latency"] is None else f"{1000 * server['latency']:.1f} ms",
            *(server[key] for key in ("sent", "answered", "failed", "timed_out")),
        ]
        for server in state["upstreams"]
    ]


def groups(state: dict[str, Any]) -> list[list[object]]:
    """Give the groups' rows."""
    from blockd.policy.views import brief

    return [
        [
            group["group"],
            group["devices"] or "-",
            *(", ".join(brief(group[key], group.get("sets", {}))) or "-" for key in ("block", "monitor", "allow")),
        ]
        for group in state["groups"]
    ]
