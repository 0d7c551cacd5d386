"""``blockd top``: live rates, apps and groups."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from blockd.cli.options import Config, Json, Socket, socket_path
from blockd.cli.output import ask_daemon, plain, table
from blockd.cli.status import servers

#: Decisions shown, the most frequent first.
ROWS = 20


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(top)


def top(
    config: Config = None,
    socket: Socket = None,
    interval: Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, help="Looks, then end. Default: for ever on a terminal, one in a pipe."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show live rates, by app and group; Ctrl-C ends it."""
    path = socket_path(config, socket)
    console = Console(highlight=False)
    looks = count if count is not None else (None if console.is_terminal and not as_json else 1)
    try:
        rates = _rates(path, as_json, interval, looks)
        if as_json:
            for rate in rates:
                print(json.dumps(rate), flush=True)
        elif console.is_terminal and looks is None:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                for rate in rates:
                    live.update(_screen(rate), refresh=True)
        elif console.is_terminal:
            for rate in rates:
                console.print(_screen(rate))
        else:
            for rate in rates:
                print(_plain(rate), flush=True)
    except KeyboardInterrupt:
        sys.stdout.flush()


def _rates(path: Path, as_json: bool, interval: float, looks: int | None) -> Iterator[dict[str, Any]]:
    before = ask_daemon("top", path, "status", as_json)
    while looks is None or looks > 0:
        time.sleep(interval)
        now = ask_daemon("top", path, "status", as_json)
        yield difference(before, now)
        before = now
        looks = None if looks is None else looks - 1


def difference(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Give what happened between two states, a second."""
    seconds = now["uptime"] - before["uptime"]
    if seconds <= 0:
        # Another daemon answers: it counted from nothing.
        before = {**before, "totals": dict.fromkeys(now["totals"], 0), "decisions": []}
        seconds = max(now["uptime"], 1e-3)
    rates = {name: max(0, total - before["totals"][name]) / seconds for name, total in now["totals"].items()}
    old = {(d["group"], d["app"], d["action"]): d["count"] for d in before["decisions"]}
    decisions = [
        {**d, "rate": (d["count"] - old.get((d["group"], d["app"], d["action"]), 0)) / seconds}
        for d in now["decisions"]
    ]
    decisions.sort(key=lambda d: (-d["rate"], -d["count"]))
    asked = rates["cache.hits"] + rates["cache.misses"]
    return {
        "seconds": seconds,
        "rates": rates,
        "hit_ratio": rates["cache.hits"] / asked if asked else None,
        "pending": now["pending"],
        "decisions": decisions[:ROWS],
        "upstreams": now["upstreams"],
    }


def _head(rate: dict[str, Any]) -> str:
    rates = rate["rates"]
    ratio = "-" if rate["hit_ratio"] is None else f"{100 * rate['hit_ratio']:.0f}%"
    return (
        f"{rates['queries.udp']:.0f} queries/s by UDP, {rates['queries.tcp']:.0f} by TCP; {ratio} hits; "
        f"{rates['upstream.sent']:.0f} asked upstream/s; {rate['pending']} waiting"
    )


COLUMNS = ["GROUP", "APP", "ACTION", "A SECOND", "IN ALL"]
SERVER_COLUMNS = ["UPSTREAM", "STATE", "TAKES", "SENT", "ANSWERED", "FAILED", "LATE"]


def _rows(rate: dict[str, Any]) -> list[list[object]]:
    return [[d["group"], d["app"] or "-", d["action"], f"{d['rate']:.1f}", d["count"]] for d in rate["decisions"]]


def _screen(rate: dict[str, Any]) -> Group:
    return Group(
        Text(_head(rate), style="bold"),
        Text(),
        table(COLUMNS, _rows(rate), right=COLUMNS[3:]),
        Text(),
        table(SERVER_COLUMNS, servers(rate), right=["TAKES"]),
    )


def _plain(rate: dict[str, Any]) -> str:
    return f"{_head(rate)}\n{plain(COLUMNS, _rows(rate))}\n{plain(SERVER_COLUMNS, servers(rate))}"
