"""``blockd report``: what a security team would take to a decision, on the terminal or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from blockd.cli.options import Config, Json, Socket, socket_path
from blockd.cli.output import ask_daemon, complain, print_json, print_table, refuse, say
from blockd.review.usage import columns

BARS = "▁▂▃▄▅▆▇█"
UNITS = {"h": 3_600, "d": 86_400, "w": 7 * 86_400}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    since: Annotated[str, typer.Option("--since", help="How far back: 24h, 30d, 8w.")] = "30d",
    apps: Annotated[
        list[str] | None, typer.Option("--app", help="This app, or set of apps (@NAME), alone. May be repeated.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="F", help="Write a page to F, that prints well.")
    ] = None,
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Say how apps are used, by group and day, what a block would have touched, and which exemptions held."""
    seconds = int(since[:-1]) * UNITS[since[-1]] if since[:-1].isdigit() and since[-1:] in UNITS else 0
    if not 0 < seconds <= 3_660 * 86_400:
        raise typer.BadParameter("--since: expected how far back, such as 24h, 30d or 8w")
    answer = ask_daemon("report", socket_path(config, socket), "report", as_json, seconds=seconds, apps=apps or [])
    if html is not None:
        from blockd.review.page import page

        try:
            html.write_text(page(answer))
        except OSError as error:
            refuse("report", f"{html}: {error.strerror}", as_json)
    if as_json:
        print_json(answer)
    elif html is None:
        _show(answer)
    else:
        say(f"written to {html}")


def _show(answer: dict[str, Any]) -> None:
    say(f"{answer['since']} to {answer['until']}")
    for app in answer["apps"]:
        if not app["groups"]:
            continue
        say()
        standing = "; ".join(f"{key} for {', '.join(groups)}" for key, groups in app["standing"].items() if groups)
        name = f"{app['app']}, {app['set']}" if app.get("set") else app["app"]
        say(f"{app['title']} ({name}): {standing or 'no policy names it'}")
        say(f"  {_trend(app['trend'])}")
        rows = [
            [
                f"  {group['group']}",
                *(number or "" for number in columns(group["queries"])),
                "-" if group["devices"] is None else group["devices"],
                group["first"][:16],
                group["last"][:16],
            ]
            for group in app["groups"]
        ]
        numbers = ["LET THROUGH", "REFUSED", "EXEMPT", "DEVICES"]
        print_table(["  GROUP", *numbers, "FIRST", "LAST"], rows, right=numbers)
        touched = app["block_would_touch"]
        if touched["queries"]:
            devices = "" if touched["devices"] is None else f", from {touched['devices']} devices"
            groups = ", ".join(touched["groups"])
            say(f"  a block would have refused {touched['queries']} queries of {groups}{devices}")
    unused = [app["app"] for app in answer["apps"] if not app["groups"]]
    if unused:
        say()
        say(f"not used: {', '.join(unused)}")
    if answer["candidates"]:
        say()
        rows = [[row["name"], row["app"], row["queries"], row["last"][:10]] for row in answer["candidates"]]
        print_table(["CANDIDATE", "LED TO", "QUERIES", "LAST"], rows, right=["QUERIES"])
    for key, heads, fields in (
        (
            "exemptions",
            ["EXEMPTION", "DEVICE", "APPS", "UNTIL", "STATE"],
            ("name", "device", "apps", "expires_at", "state"),
        ),
        (
            "decisions",
            ["DECISION", "APP", "TO", "BY", "APPROVED BY", "STATE"],
            ("name", "app", "to", "by", "approver", "state"),
        ),
    ):
        if answer.get(key):
            say()
            print_table(heads, [[_cell(row[field]) for field in fields] for row in answer[key]])
    if answer.get("problem"):
        complain(answer["problem"])


def _trend(trend: list[dict[str, Any]]) -> str:
    """Draw queries by day as a line of blocks."""
    days = [sum(value for key, value in day.items() if key != "day") for day in trend]
    highest = max(days, default=0) or 1
    return "".join(BARS[min(len(BARS) - 1, day * len(BARS) // (highest + 1))] if day else "·" for day in days)


def _cell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value or "")
