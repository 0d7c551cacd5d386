"""``blockd egress``: the firewall's process, and what it does."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from blockd.cli.options import Config, Json, Socket, config_path, socket_path
from blockd.cli.output import ask_daemon, complain, print_json, print_table, refuse, say
from blockd.control import ControlError, ask
from blockd.problems import InputError, os_text


def register(app: typer.Typer) -> None:
    """Add the commands."""
    egress = typer.Typer(help="Enforce the policy in this gateway's packet filter, or show what is enforced.")
    egress.callback(invoke_without_command=True)(run)
    for command in (plan, status, off, on):
        egress.command()(command)
    app.add_typer(egress, name="egress")


def run(
    context: typer.Context,
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
    connect: Annotated[str | None, typer.Option(help="HOST:PORT of a daemon of another machine, by TLS.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Ours, a PEM file.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, a PEM file.")] = None,
    authority: Annotated[Path | None, typer.Option(help="Whose certificate the daemon has, a PEM file.")] = None,
) -> None:
    """Enforce what the daemon says, until SIGINT or SIGTERM; then the rules stand. It needs CAP_NET_ADMIN.

    With --connect, and the three files, the daemon is another machine's, and no config is read.
    """
    context.obj = (config, socket, as_json)
    if context.invoked_subcommand is not None:
        return
    from blockd.egressing import run as enforce
    from blockd.observe import log_format
    from blockd.problems import StartError
    from blockd.settings.load import load_settings
    from blockd.settings.source import Disk

    log_format.set_up()
    try:
        if connect is not None:
            enforce(_far(connect, certificate, key, authority))
            return
        file = Path(os.path.abspath(config_path(config)))
        settings, _ = load_settings(file, Disk())
        log_format.set_up(settings.log.format == "json")
        enforce(file.parent / settings.egress.socket)
    except StartError as error:
        complain(f"blockd cannot start: {error}")
        raise typer.Exit(1) from None


def _far(connect: str, certificate: Path | None, key: Path | None, authority: Path | None) -> Any:
    from blockd.egressing import Far
    from blockd.firewall import tls
    from blockd.problems import StartError

    host, colon, port = connect.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise typer.BadParameter(f"--connect: expected HOST:PORT, and found {connect}")
    if certificate is None or key is None or authority is None:
        raise typer.BadParameter("--connect needs --certificate, --key and --authority")
    try:
        context = tls(False, certificate, key, authority)
    except OSError as error:
        raise StartError(f"egress: the certificates cannot be read: {os_text(error)}") from None
    return Far(host.strip("[]"), int(port), context)


def plan(context: typer.Context, config: Config = None, socket: Socket = None) -> None:
    """Print what the firewall is to do, as nft reads it; nothing is changed."""
    from blockd.egress.ruleset import ruleset
    from blockd.egress.wanted import read_wanted

    answer = _ask(context, config, socket, False, "plan")
    if answer["wanted"] is None:
        refuse("egress plan", "nothing is wanted yet", as_json=False)
    say(ruleset(read_wanted(answer["wanted"]), time.time()).rstrip())


def status(context: typer.Context, config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Show what is enforced: sets, counts, drift, shared addresses. Exit code 1: no firewall enforces all of it."""
    as_json = as_json or context.obj[2]
    answer = _ask(context, config, socket, as_json, "status")
    if as_json:
        print_json(answer)
    else:
        _print(answer)
    firewalls = answer["firewalls"]
    if not firewalls or not all(_is_current(one, answer["generation"]) for one in firewalls):
        raise typer.Exit(1)


def off(context: typer.Context, config: Config = None, socket: Socket = None) -> None:
    """Take everything of ours out of the packet filter, and nothing else, until `on`; it needs no daemon.

    Exit code 1: a firewall did not do it.
    """
    from blockd.egress.nftables import Nftables, NftError

    try:
        for file in _off_files(context, config):
            file.touch()
        removed = Nftables().remove()
    except (NftError, OSError) as error:
        refuse("egress off", os_text(error) if isinstance(error, OSError) else str(error), as_json=False)
    say("off: the table inet blockd is gone" if removed else "off: nothing of ours is there")
    with contextlib.suppress(ControlError):
        # Firewalls of other machines are told, too.
        answer = ask(socket_path(*_of(context, config, socket)), "egress", do="off")
        if not answer["ok"]:
            complain(f"the firewalls of other machines were not told: {answer['error']}")
            return
        firewalls = answer["firewalls"]
        left = [one for one in firewalls if one.get("generation") is not None or not answer["is_settled"]]
        if left:
            refuse("egress off", f"{len(left)} of {len(firewalls)} firewalls did not confirm it", as_json=False)
        if firewalls:
            say(f"off: {len(firewalls)} firewalls have removed the table")


def _off_files(context: typer.Context, config: Path | None) -> list[Path]:
    """Give the files that keep this machine's firewall off: beside the socket, and where its unit keeps its state."""
    from blockd.settings.load import load_settings
    from blockd.settings.source import Disk
    from blockd.settings.usual import EGRESS_OFF, EGRESS_OFF_KEPT, EGRESS_SOCKET, EGRESS_STATE

    place = Path(EGRESS_SOCKET)
    with contextlib.suppress(typer.BadParameter, InputError):
        file = Path(os.path.abspath(config_path(config or (context.obj or (None,))[0])))
        settings, _ = load_settings(file, Disk())
        place = file.parent / settings.egress.socket
    place.parent.mkdir(parents=True, exist_ok=True)
    state = Path(EGRESS_STATE)
    return [Path(f"{place}{EGRESS_OFF}"), *([state / EGRESS_OFF_KEPT] if state.is_dir() else [])]


def on(context: typer.Context, config: Config = None, socket: Socket = None) -> None:
    """Enforce again. Exit code 1: a firewall does not, or none is connected."""
    try:
        for file in _off_files(context, config):
            file.unlink(missing_ok=True)
    except OSError as error:
        refuse("egress on", os_text(error), as_json=False)
    answer = _ask(context, config, socket, False, "on")
    firewalls = answer["firewalls"]
    failing = [one for one in firewalls if not _is_current(one, answer["generation"])]
    if not firewalls:
        refuse("egress on", "no firewall is connected: start `blockd egress` on the gateway", as_json=False)
    if failing:
        problem = next((one["problem"] for one in failing if one.get("problem")), "no confirmation yet")
        text = (
            f"{len(failing)} of {len(firewalls)} firewalls do not enforce generation {answer['generation']}: {problem}"
        )
        refuse("egress on", text, as_json=False)
    say(f"on: {len(firewalls)} firewalls enforce generation {answer['generation']}")


def _is_current(firewall: dict[str, Any], generation: str | None) -> bool:
    """Say whether a firewall enforces the generation in force, without a problem."""
    return firewall.get("generation") == generation and not firewall.get("problem")


def _print(answer: dict[str, Any]) -> None:
    from blockd.egress.ruleset import CONNECTIONS

    if answer["is_off"]:
        say("off: nothing is enforced, by `blockd egress off`")
    if not answer["firewalls"]:
        say("no firewall is connected: nothing is enforced, or what was enforced last")
    for one in answer["firewalls"]:
        if one.get("problem"):
            say(f"problem: {one['problem']}")
        if one.get("generation") is None:
            say("a firewall is connected, and enforces nothing yet")
            continue
        is_current = one["generation"] == answer["generation"]
        say(
            f"generation {one['generation']}{'' if is_current else ', which is not the one in force'}; "
            f"sources: {one['ranges']} networks, {one['sources']} addresses, {one['macs']} MACs; "
            f"last transaction {one['took'] * 1000:.0f} ms; "
            f"repaired {one['drift']} times"
        )
        apps = sorted(one["learned"])
        rows = [[app, one["networks"].get(app, 0), one["learned"][app], one["exempt"].get(app, 0)] for app in apps]
        say()
        print_table(["APP", "NETWORKS", "LEARNED", "EXEMPT"], rows, right=["NETWORKS", "LEARNED", "EXEMPT"])
        begun = {(row["group"], row["app"]): row["packets"] for row in one["counters"] if row["what"] == CONNECTIONS}
        counted = [row for row in one["counters"] if row["packets"] and row["what"] != CONNECTIONS]
        if counted:
            say()
            rows = [[row["group"], row["app"], row["what"], row["packets"], ""] for row in counted]
            for row in rows:
                row[4] = begun.get((row[0], row[1]), 0) if row[2] == "blocked" else ""
            print_table(["GROUP", "APP", "WHAT", "PACKETS", "CONNECTIONS"], rows, right=["PACKETS", "CONNECTIONS"])
    for source, packets in list(answer["silent"].items())[:20]:
        say(f"{source} sent {packets} packets to apps, and asks us nothing: it has another resolver")
    if answer["shared"]:
        say()
        rows = [
            [address, ", ".join(one["apps"]), ", ".join(one["names"][:3])] for address, one in answer["shared"].items()
        ]
        print_table(["SHARED", "APPS", "ALSO FOR"], rows[:20], right=[])


def _of(context: typer.Context, config: Path | None, socket: Path | None) -> tuple[Path | None, Path | None]:
    above = context.obj or (None, None, False)
    return config or above[0], socket or above[1]


def _ask(context: typer.Context, config: Path | None, socket: Path | None, as_json: bool, do: str) -> dict[str, Any]:
    return ask_daemon(f"egress {do}", socket_path(*_of(context, config, socket)), "egress", as_json, do=do)
