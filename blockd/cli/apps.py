"""``blockd apps``: what the catalogue has, what is live, who blocks it, and why a name belongs to an app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from blockd.apps.catalogue import BUILTIN, RULE_KEYS, Catalogue, Entry, load_catalogue
from blockd.cli.options import USUAL_CONFIG, Config, Json, Socket, socket_path
from blockd.cli.output import ask_daemon, complain, print_json, print_rows, print_table, refuse, say
from blockd.policy.app_sets import AppSets, owner_sets, unknown
from blockd.policy.compile import app_rules
from blockd.policy.inputs import Inputs, read_inputs
from blockd.policy.views import group_views
from blockd.policy.which import which as find_rules
from blockd.settings.source import Disk


def register(app: typer.Typer) -> None:
    """Add the commands."""
    apps = typer.Typer(help="Show the catalogue: apps, their rules, and which of them a name belongs to.")
    apps.callback(invoke_without_command=True)(list_apps)
    apps.command()(show)
    apps.command()(which)
    apps.command()(sets)
    apps.command()(decide)
    apps.command()(approve)
    apps.command()(decisions)
    app.add_typer(apps, name="apps")


def _names() -> list[str]:
    """Name the apps that are shipped, for a shell to offer."""
    return sorted(file.stem for file in BUILTIN.glob("*.yaml"))


def _read(config: Path | None) -> tuple[Inputs | None, Catalogue]:
    """Read the catalogue of a config; without one, what blockd ships."""
    if config is None and not USUAL_CONFIG.exists():
        return None, load_catalogue(True, None, Disk())
    inputs = read_inputs(config or USUAL_CONFIG)
    return inputs, inputs.catalogue


def _sets(inputs: Inputs | None, catalogue: Catalogue) -> AppSets:
    return owner_sets(catalogue) if inputs is None else inputs.sets


def _policies(inputs: Inputs | None) -> dict[str, dict[str, list[str]]]:
    """Say which groups block, monitor and allow each app."""
    found: dict[str, dict[str, list[str]]] = {}
    for view in group_views(inputs) if inputs is not None else ():
        for key in ("block", "monitor", "allow"):
            for app in getattr(view, key):
                found.setdefault(app, {}).setdefault(key, []).append(view.group)
    return found


def list_apps(context: typer.Context, config: Config = None, as_json: Json = False) -> None:
    """List every app: its rules, whether a policy names it, and who blocks, monitors or allows it."""
    context.obj = (config, as_json)
    if context.invoked_subcommand is not None:
        return
    inputs, catalogue = _read(config)
    policies, known = _policies(inputs), _sets(inputs, catalogue)
    if as_json:
        print_json([_as_json(entry, policies, known) for _, entry in sorted(catalogue.entries.items())])
        return
    rows = []
    for name, entry in sorted(catalogue.entries.items()):
        groups = policies.get(name, {})
        listed = f"{entry.rule_count()}" + (f" + {len(entry.app.lists)} lists" if entry.app.lists else "")
        live = "live" if groups else ""
        rows.append(
            [
                name,
                entry.app.title,
                listed,
                live,
                *(", ".join(groups.get(k, [])) for k in ("block", "monitor", "allow")),
            ]
        )
    print_table(["APP", "TITLE", "RULES", "LIVE", "BLOCKED FOR", "MONITORED FOR", "ALLOWED FOR"], rows, right=["RULES"])
    for app, (to, name) in (inputs.decided if inputs is not None else {}).items():
        say(f"{app}: {to} by decision {name}, whatever the config says")


def _as_json(entry: Entry, policies: dict[str, dict[str, list[str]]], known: AppSets) -> dict[str, Any]:
    groups = policies.get(entry.app.app, {})
    values = entry.app.model_dump(mode="json")
    return {
        **values,
        "sets": known.of(entry.app.app),
        "rules": entry.rule_count(),
        "file": str(entry.document.file),
        "live": bool(groups),
        "groups": groups,
    }


def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="APP", help="The app.", autocompletion=_names)],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Print one app: what it takes, what it needs, every rule with its evidence."""
    config, as_json = config or context.obj[0], as_json or context.obj[1]
    inputs, catalogue = _read(config)
    known = _sets(inputs, catalogue)
    entry = catalogue.entries.get(name)
    if entry is None:
        text = unknown(name, known, catalogue) or f"{name} is a set of apps; it has {', '.join(known.apps[name])}"
        refuse("apps", text, as_json)
    policies = _policies(inputs)
    if as_json:
        print_json(_as_json(entry, policies, known))
        return
    app = entry.app
    groups = policies.get(name, {})
    rows = [("app", app.app), ("title", app.title), ("owner", app.owner or "-")]
    if not app.takes:
        rows.append(("takes", "not said: no source is at hand"))
    rows += [("takes" if at == 0 else "", f"{what} ({who})") for at, (what, who) in enumerate(app.takes.items())]
    if inputs is not None and name in inputs.decided:
        rows.append(("decided", "{} by decision {}, whatever the config says".format(*inputs.decided[name])))
    rows.append(("sets", ", ".join(known.of(name)) or "none"))
    rows += [("needs", ", ".join(app.needs) or "nothing"), ("file", str(entry.document.file))]
    rows += [(key, ", ".join(groups[key])) for key in ("block", "monitor", "allow") if key in groups]
    print_rows(rows, {"app": "bold"})
    for key in RULE_KEYS:
        rules = app_rules(entry, key)
        if rules:
            say()
            embedded = ", also inside the zones of CDNs" if app.embedded and key in ("suffixes", "hosts") else ""
            say(f"{key} ({len(rules)}{embedded})")
            for rule, place in rules:
                where = "" if place.document is entry.document else f"  [{place.document.file}:{place.line}]"
                why = app.evidence.get(rule)
                say(f"  {rule}{where}" + (f"  # {why}" if why else ""))
    for at, item in enumerate(app.lists):
        say()
        say(f"list {entry.list_path(at)} ({item.format}, {item.kind})")


def sets(context: typer.Context, config: Config = None, as_json: Json = False) -> None:
    """List the sets of apps, of owners and of the config, that a policy can name as @NAME."""
    config, as_json = config or context.obj[0], as_json or context.obj[1]
    inputs, catalogue = _read(config)
    known = _sets(inputs, catalogue)
    if as_json:
        print_json([{"set": name, "title": known.titles.get(name), "apps": apps} for name, apps in known.apps.items()])
        return
    rows = [
        [name, known.titles.get(name, "of the config"), len(apps), ", ".join(apps)] for name, apps in known.apps.items()
    ]
    print_table(["SET", "TITLE", "COUNT", "APPS"], rows, right=["COUNT"])


def which(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A domain name, as a device would ask for it, or an address.")
    ],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Say which rules of which file match a name, of every app in the catalogue, and why they are there."""
    config, as_json = config or context.obj[0], as_json or context.obj[1]
    inputs, catalogue = _read(config)
    try:
        question, matches, problems = find_rules(catalogue, inputs, name)
    except ValueError as error:
        refuse("apps", str(error), as_json)
    policies = _policies(inputs)
    if as_json:
        found = [{**match.as_json(), "groups": policies.get(match.place.app, {})} for match in matches]
        print_json({"name": question, "matches": found, "problems": [problem.as_json() for problem in problems]})
        return
    for problem in problems:
        complain(problem)
    if not matches:
        say(f"{question}: no rule of any app matches")
        return
    for match in matches:
        groups = policies.get(match.place.app, {})
        said = "; ".join(f"{key} for {', '.join(names)}" for key, names in groups.items()) or "no policy names it"
        say(str(match.place))
        say(f"  {match.why or 'no evidence is written beside this rule'}")
        say(f"  {said}")


def decide(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="APP", help="An app that a policy blocks or monitors.")],
    to: Annotated[str, typer.Argument(metavar="block|monitor|config", help="config: what policies say, again.")],
    reason: Annotated[str, typer.Option("--reason", help="Why.")],
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Decide what becomes of an app, for every group whose policy names it; somebody else has to approve it."""
    answer = _ask(context, "decide", config, socket, as_json, app=name, to=to, reason=reason)
    _tell(answer, as_json or context.obj[1])


def approve(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="DECISION", help="Such as D7, as `decide` names it.")],
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Approve what somebody else decided: it is in force when this returns. Exit code 1: it is not."""
    _tell(_ask(context, "agree", config, socket, as_json, decision=name), as_json or context.obj[1])


def decisions(context: typer.Context, config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Show what was decided of apps, by whom, and what is in force."""
    answer = _ask(context, "decisions", config, socket, as_json)
    if as_json or context.obj[1]:
        print_json(answer)
        return
    keys = ("name", "state", "app", "to", "by", "approver", "at", "reason")
    if answer["decisions"]:
        rows = [[row[key] or "" for key in keys] for row in answer["decisions"]]
        print_table(["NAME", "STATE", "APP", "TO", "BY", "APPROVER", "AT", "REASON"], rows)
    else:
        say("nothing was decided")


def _ask(
    context: typer.Context, do: str, config: Path | None, socket: Path | None, as_json: bool, **values: Any
) -> dict[str, Any]:
    as_json = as_json or context.obj[1]
    return ask_daemon("apps", socket_path(config or context.obj[0], socket), "exempt", as_json, do=do, **values)


def _tell(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        labels = {"approved_at": "approved"}
        shown = answer["decision"].items()
        cells = ((key, ", ".join(value) if isinstance(value, list) else str(value)) for key, value in shown if value)
        print_rows((labels.get(key, key), value) for key, value in cells)
