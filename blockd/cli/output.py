"""How commands print: for people on a terminal, plain columns in a pipe, JSON where it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from blockd.control import ControlError, ask
from blockd.problems import Problem, escaped

if TYPE_CHECKING:
    # In a pipe nobody sees colours: imported where there is a terminal.
    from pathlib import Path

    from rich.console import RenderableType

#: Words that say how things stand -> style.
STYLES = {
    "block": "bold bright_red",
    "monitor": "yellow",
    "allow": "green",
    "exempt": "green",
    "pass": "green",
    "up": "green",
    "slow": "yellow",
    "failing": "bold bright_red",
    "dead": "bold bright_red",
    "unreachable": "bold bright_red",
}


def say(text: str = "") -> None:
    """Print lines; what would steer a terminal is escaped."""
    print(_escaped_lines(text))


def complain(text: object) -> None:
    """Print lines to stderr, likewise."""
    print(_escaped_lines(str(text)), file=sys.stderr)


def _escaped_lines(text: str) -> str:
    return "\n".join(map(escaped, text.split("\n")))


def refuse(command: str, text: str, as_json: bool) -> NoReturn:
    """Say why not, in the form that was asked for, and end with exit code 1."""
    if as_json:
        print_json({"ok": False, "error": text})
    else:
        complain(f"blockd {command}: {text}")
    raise typer.Exit(1)


def ask_daemon(name: str, path: Path, what: str, as_json: bool, /, **arguments: Any) -> dict[str, Any]:
    """Have the daemon do something, give its answer; print why it does not, as `blockd NAME`, and end.

    Whatever a command reads from an answer is there: a refusal, such as one of a user without the right, does not get
    that far.
    """
    try:
        answer = ask(path, what, **arguments)
    except ControlError as error:
        refuse(name, str(error), as_json)
    if "error" in answer and not answer.get("ok", False):
        refuse(name, answer["error"], as_json)
    return answer


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def print_rows(rows: Iterable[tuple[str, str]], styles: dict[str, str] | None = None) -> None:
    """Print label and text, a row a line; labels are as wide as the widest usual one."""
    if not sys.stdout.isatty():
        for label, text in rows:
            print(_escaped_lines(f"{label:10}{text}".rstrip()))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for label, text in rows:
        line = Text()
        line.append(f"{label:10}", style="dim")
        line.append(_escaped_lines(text), style=(styles or {}).get(label, ""))
        console.print(line)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> RenderableType:
    """Make a table for a terminal; words that say how things stand have their colour."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell), style=STYLES.get(str(cell), "")) for cell in row))
    return made


def plain(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table as aligned columns of text."""
    cells = [list(columns), *([str(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Print a table, in the form that fits where it goes."""
    rows = [[escaped(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        print(plain(columns, rows))
        return
    from rich.console import Console

    Console(highlight=False).print(table(columns, rows, right))


def duration(seconds: float) -> str:
    """Write seconds as people do: the two largest units."""
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def show_changes(answer: dict[str, Any]) -> None:
    """Print what a dry run said: names gained and lost by app, and what speaks against it."""
    for row in answer["changes"]:
        kind = " (holes)" if row["kind"] == "hole" else ""
        say(f"{row['app']}{kind}: {row['gained']} gained, {row['lost']} lost")
        for sign, key in (("+", "gained"), ("-", "lost")):
            for name in row[f"{key}_samples"]:
                say(f"  {sign} {name}")
            more = row[key] - len(row[f"{key}_samples"])
            if more > 0:
                say(f"  {sign} and {more} more")
    for problem in answer["problems"]:
        complain(Problem(**problem))
    if not answer["ok"]:
        complain("a reload would be refused")
    elif answer["problems"]:
        say("it would be taken in all the same")
    else:
        say("a reload would take it" if answer["changes"] else "a reload would change no name")
