"""``blockd check``: would this config be taken, and what would be enforced."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from blockd.policy.compile import compile_snapshot
from blockd.policy.inputs import read_inputs
from blockd.policy.views import group_views
from blockd.problems import InputError

HELP = "validate a config and print what it would enforce; changes nothing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--config", type=Path, required=True, help="the config file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Check; 1 when the config would be refused."""
    try:
        inputs = read_inputs(arguments.config)
        compiled = compile_snapshot(inputs)
    except InputError as error:
        if not arguments.json:
            raise
        print(json.dumps({"ok": False, "problems": [problem.as_json() for problem in error.problems]}))
        return 1
    views = {
        view.group: {key: sorted(getattr(view, key)) for key in ("block", "monitor", "allow")}
        for view in group_views(inputs)
    }
    if arguments.json:
        print(json.dumps({"ok": True, "groups": views, "lists": compiled.lists}))
        return 0
    for group, view in views.items():
        parts = [f"{key} {', '.join(apps)}" for key, apps in view.items() if apps]
        print(f"{group}: {'; '.join(parts) or 'nothing is blocked, monitored or allowed by name'}")
    for report in compiled.lists:
        skipped = sum(report["skipped"].values())
        print(f"{report['file']}: {report['kept']} names for {report['app']}, {skipped} lines skipped")
        for sample in report["samples"]:
            print(f"{report['file']}:{sample['line']}: skipped, {sample['reason']}: {sample['text']}", file=sys.stderr)
    return 0
