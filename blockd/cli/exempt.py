"""``blockd exempt``: request, approve and revoke exemptions, and see what the ledger says."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from blockd.cli.options import Config, Json, Socket, socket_path
from blockd.cli.output import ask_daemon, print_json, print_rows, print_table, say

Name = Annotated[str, typer.Argument(metavar="EXEMPTION", help="Such as E7, as `request` and `list` name it.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    exempt = typer.Typer(
        help="Request, approve and revoke exemptions; see and verify the ledger.", no_args_is_help=True
    )
    for command in (request, approve, revoke, list_, show, verify, export, forget):
        exempt.command(command.__name__.rstrip("_"))(command)
    app.add_typer(exempt, name="exempt")


def request(
    device: Annotated[str, typer.Option("--device", help="Serial or hostname of an inventory, or a set of devices.")],
    apps: Annotated[
        list[str],
        typer.Option(
            "--app", help="An app, or a set of apps (@NAME); what they need comes with them. May be repeated."
        ),
    ],
    purpose: Annotated[str, typer.Option("--purpose", help="What it is for.")],
    team: Annotated[str, typer.Option("--team", help="The security team that has to approve.")],
    clearance: Annotated[str, typer.Option("--clearance", help="Reference of the ministerial clearance.")],
    mitigations: Annotated[list[str], typer.Option("--mitigation", help="What keeps it safe. May be repeated.")],
    until: Annotated[
        str, typer.Option("--until", help="Its end: 2026-12-01T18:00:00+00:00, or 30min, 8h, 5d from now.")
    ],
    since: Annotated[
        str, typer.Option("--from", help="Its beginning, written as the end is. Default: the approval.")
    ] = "",
    hours: Annotated[str, typer.Option("--hours", help="Such as `mon-fri 08:00-18:00 Europe/London`.")] = "",
    networks: Annotated[list[str] | None, typer.Option("--network", help="Where the device has to be.")] = None,
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Ask for an exemption. It holds nothing until somebody else has approved it."""
    values = {
        "device": device,
        "apps": apps,
        "purpose": purpose,
        "team": team,
        "clearance": clearance,
        "mitigations": mitigations,
        "not_before": _moment(since, "--from") if since else None,
        "expires_at": _moment(until, "--until"),
        "hours": hours,
        "networks": networks or [],
    }
    _tell(_ask("request", config, socket, as_json, **values), as_json)


def approve(name: Name, config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Approve an exemption that somebody else requested: it holds from its beginning on, with the next query."""
    _tell(_ask("approve", config, socket, as_json, exemption=name), as_json)


def revoke(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why.")],
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Revoke an exemption: the next query is refused again."""
    _tell(_ask("revoke", config, socket, as_json, exemption=name, reason=reason), as_json)


def list_(
    everything: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Show exemptions and how they stand."""
    answer = _ask("list", config, socket, as_json)
    rows = [row for row in answer["exemptions"] if everything or row["state"] not in ("expired", "revoked")]
    if as_json:
        print_json({**answer, "exemptions": rows})
        return
    heads = ["NAME", "STATE", "DEVICE", "APPS", "TEAM", "REQUESTER", "APPROVER", "UNTIL"]
    keys = ("name", "state", "device", "apps", "team", "requester", "approver", "expires_at")
    if rows:
        print_table(heads, [[_cell(row[key]) for key in keys] for row in rows])
    else:
        say("no exemption")


def show(name: Name, config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Show one exemption, and what became of it."""
    answer = _ask("show", config, socket, as_json, exemption=name)
    if as_json:
        print_json(answer)
        return
    _tell(answer, as_json)
    say()
    print_table(["ENTRY", "AT", "WHAT", "BY"], [[e["number"], e["at"], e["kind"], e["by"]] for e in answer["entries"]])


def verify(
    head: Annotated[str, typer.Option("--head", help="NUMBER:HASH that was noted before: it has to be in it.")] = "",
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Check every entry of the ledger against the one before it. Exit code 1: it was changed, or cut."""
    answer = _ask("verify", config, socket, as_json, head=head)
    if as_json:
        print_json(answer)
    else:
        say(f"{answer['entries']} entries, whole; head {answer['head']}")


def export(config: Config = None, socket: Socket = None) -> None:
    """Print the ledger, a line of JSON an entry, and last whose digests are known."""
    answer = _ask("export", config, socket, False)
    for entry in answer["entries"]:
        say(json.dumps(entry, sort_keys=True))
    say(json.dumps({"people": answer["people"]}, sort_keys=True))


def forget(
    person: Annotated[str, typer.Argument(help="A user whose name is erased; the ledger stays whole without it.")],
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Erase a person's name from beside the ledger."""
    _ask("forget", config, socket, as_json, person=person)
    say(f"{person} is forgotten")


def _moment(text: str, option: str) -> str:
    """Give a time of RFC 3339; one that is so far from now is reckoned."""
    units = {"min": "minutes", "h": "hours", "d": "days"}
    for unit, name in units.items():
        if text.endswith(unit) and text[: -len(unit)].isdigit():
            try:
                return (datetime.now(UTC) + timedelta(**{name: int(text[: -len(unit)])})).isoformat()
            except (OverflowError, ValueError):
                raise typer.BadParameter(f"{option}: no calendar goes so far; write a shorter time") from None
    if not text[:4].isdigit():
        raise typer.BadParameter(f"{option}: expected 2026-12-01T18:00:00+00:00, or a time from now, such as 8h")
    return text


def _ask(do: str, config: Path | None, socket: Path | None, as_json: bool, **values: Any) -> dict[str, Any]:
    return ask_daemon(f"exempt {do}", socket_path(config, socket), "exempt", as_json, do=do, **values)


def _cell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value or "")


def _tell(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    labels = {"not_before": "from", "expires_at": "until", "mitigations": "safe by"}
    print_rows((labels.get(key, key), _cell(value)) for key, value in answer["exemption"].items() if value)
