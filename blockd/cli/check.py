"""``blockd check``: would this config be taken, what would be enforced, and what looks wrong."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import typer

from blockd.cli.options import Config, Json, config_path
from blockd.cli.output import complain, say
from blockd.devices.inventory import lines_of
from blockd.feeds import unread_leases
from blockd.lists.gate import limits, refusals
from blockd.policy.compile import compile_snapshot, inventory_reports, unmet
from blockd.policy.inputs import MAX_LIVE_APPS, decided_file, read_inputs
from blockd.policy.review import review
from blockd.policy.views import brief, group_views
from blockd.problems import InputError, Problem, os_text, skipped_lines


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(check)


def _unwritten(config: Path, error: OSError) -> Problem:
    return Problem(str(config), 0, "", f"a snapshot cannot be written to try it: {os_text(error)}")


def check(config: Config = None, as_json: Json = False) -> None:
    """Validate a config, print what it would enforce and what looks wrong; changes nothing. Exit code 1: refused."""
    path = config_path(config)
    try:
        inputs = read_inputs(path)
        with tempfile.NamedTemporaryFile() as file:
            compiled = compile_snapshot(inputs, Path(file.name))
            must = [problem.as_json() for problem in unmet(inputs, Path(file.name))]
        inventories = inventory_reports(inputs)
        manifest = {"lists": compiled.lists, "must": must, "inventories": inventories}
        against = refusals(None, manifest, limits(inputs.settings), str(path))
        if against:
            raise InputError(against)
    except (InputError, OSError) as problem:
        error = problem if isinstance(problem, InputError) else InputError([_unwritten(path, problem)])
        if not as_json:
            raise error from None
        print(json.dumps({"ok": False, "problems": [problem.as_json() for problem in error.problems]}))
        raise typer.Exit(1) from None
    groups = group_views(inputs)
    views = {view.group: {key: sorted(getattr(view, key)) for key in ("block", "monitor", "allow")} for view in groups}
    used = sorted({name for view in groups for name in view.sets.values()} | set(inputs.set_of.values()))
    sets = {name: list(inputs.sets.apps[name]) for name in used}
    live = len(inputs.live_apps())
    doubts = [*review(inputs), *unread_leases(inputs)]
    if as_json:
        listed = [doubt.as_json() for doubt in doubts]
        counts = {"used": live, "limit": MAX_LIVE_APPS}
        said = {"ok": True, "groups": views, "sets": sets, "live_apps": counts, "lists": compiled.lists}
        print(json.dumps({**said, "inventories": inventories, "doubts": listed}))
        return
    for view in groups:
        parts = [f"{key} {', '.join(brief(apps, view.sets))}" for key, apps in views[view.group].items() if apps]
        say(f"{view.group}: {'; '.join(parts) or 'nothing is blocked, monitored or allowed by name'}")
    for name, apps in sets.items():
        say(f"{name}: {', '.join(apps)}")
    say(f"{live} of {MAX_LIVE_APPS} live apps are used")
    for group, devices in inputs.devices.items():
        if devices:
            say(f"{group}: {lines_of(devices)} devices in its inventory")
    for _, _, inventory in inputs.inventories:
        for line in skipped_lines(str(inventory.file), inventory.skipped.as_json()):
            complain(line)
    for line in skipped_lines(str(decided_file(inputs.config, inputs.settings)), inputs.skipped_decided.as_json()):
        complain(line)
    for report in compiled.lists:
        skipped = sum(report["skipped"].values())
        say(f"{report['file']}: {report['kept']} names for {report['app']}, {skipped} lines skipped")
        for sample in report["samples"]:
            complain(f"{report['file']}:{sample['line']}: skipped, {sample['reason']}: {sample['text']}")
    for doubt in doubts:
        complain(f"{doubt} ?")
