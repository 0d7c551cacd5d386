"""From inputs to a snapshot: the one place where names become bits and numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockd.apps.catalogue import Entry
from blockd.fastpath import _native, compile_rules
from blockd.policy import answers
from blockd.policy.inputs import Inputs
from blockd.policy.views import GroupView, client_prefixes, device_prefixes, group_views
from blockd.problems import InputError, Problem
from blockd.settings.source import INPUTS, MANIFEST
from blockd.settings.values import to_ascii

SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class Compiled:
    """A snapshot and what was noticed on the way."""

    snapshot: bytes
    lists: list[dict[str, Any]]


def compile_snapshot(inputs: Inputs) -> Compiled:
    """Make the snapshot of these inputs. ValueError only for what the checks before should have caught."""
    live = inputs.live_apps()
    bits = {app: 1 << at for at, app in enumerate(live)}
    views = group_views(inputs)
    templates = _Templates()
    view_specs = [_view_spec(inputs, view, live, bits, templates) for view in views]
    special_templates, special_zones = answers.special_use(inputs.settings)
    first_special = templates.extend(special_templates)
    routes = [inputs.default_servers(), *inputs.settings.upstream.zones.values()]
    rules: _native.Rules = {
        "digest": b"",
        "apps": [_app_spec(inputs, inputs.catalogue.entries[app], bits) for app in live],
        "any_template": templates.add(answers.any_refused()),
        "templates": templates.all,
        "local_zones": [(zone, first_special + a, first_special + b) for zone, (a, b) in special_zones.items()],
        "routed_zones": [(zone, at + 1) for at, zone in enumerate(inputs.settings.upstream.zones)],
        "routes": [list(route) for route in routes],
    }
    rules["digest"] = hashlib.sha256(repr((live, rules)).encode()).digest()[:16]
    settings = inputs.settings
    spec: _native.Views = {
        "views": view_specs,
        "devices": [(n.network_address, n.prefixlen, view) for n, view in device_prefixes(inputs)],
        "unidentified": len(views) - 1,
        "clients": [(n.network_address, n.prefixlen) for n in client_prefixes(inputs)],
        "live_ttl": settings.answers.live_ttl,
        "ttl_floor": settings.cache.ttl_floor,
        "ttl_ceiling": settings.cache.ttl_ceiling,
        "negative_ttl_ceiling": settings.cache.negative_ttl_ceiling,
        "trust_ad": settings.upstream.trust_ad,
        "client_rate": settings.server.client_rate,
        "client_burst": settings.server.client_burst,
        "pending_in_all": settings.upstream.pending,
        "pending_a_client": settings.upstream.pending_a_client,
    }
    meta = {
        "config": str(inputs.config),
        "inputs": inputs.digest(),
        "apps": live,
        "titles": [inputs.catalogue.entries[app].app.title for app in live],
        "groups": [view.group for view in views],
        "views": [{k: sorted(getattr(view, k)) for k in ("block", "monitor", "allow")} for view in views],
    }
    snapshot, reports = compile_rules(rules, spec, json.dumps(meta).encode(), to_ascii)
    lists = list(_list_reports(inputs, live, reports))
    # An error page, or another encoding, has lines and no name. An empty file is somebody's decision.
    junk = [report for report in lists if report["skipped"] and not report["kept"]]
    if junk:
        raise InputError([_is_no_list(report) for report in junk])
    return Compiled(snapshot, lists)


def _is_no_list(report: dict[str, Any]) -> Problem:
    first = report["samples"][0]
    count = sum(report["skipped"].values())
    text = f"none of {count} lines gives a name, so this is no list; the first: {first['reason']}: {first['text']}"
    return Problem(report["file"], first["line"], "", text)


class _Templates:
    """Answers by index, equal ones once."""

    def __init__(self) -> None:
        self.all: list[_native.Template] = []

    def add(self, template: _native.Template) -> int:
        if template not in self.all:
            self.all.append(template)
        return self.all.index(template)

    def extend(self, templates: Iterable[_native.Template]) -> int:
        """Add them one after the other, equal or not; give the first one's index."""
        first = len(self.all)
        self.all.extend(templates)
        return first


def _mask(apps: Iterable[str], bits: dict[str, int]) -> int:
    return sum(bits[app] for app in set(apps) if app in bits)


def _app_spec(inputs: Inputs, entry: Entry, bits: dict[str, int]) -> _native.App:
    app = entry.app
    return {
        "suffixes": app.suffixes,
        "hosts": app.hosts,
        "holes": app.holes,
        "lists": [
            {
                "octets": inputs.list_octets(entry, at),
                "format": item.format,
                "is_hole": item.kind == "hole",
                "public_suffix": app.public_suffix,
            }
            for at, item in enumerate(app.lists)
        ],
        "networks": [(n.network_address, n.prefixlen) for n in app.networks],
        "needs": _mask(inputs.catalogue.needs(app.app), bits),
    }


def _view_spec(
    inputs: Inputs, view: GroupView, live: list[str], bits: dict[str, int], templates: _Templates
) -> _native.View:
    def answer(app: str) -> int:
        kind = view.policy.answer_by_app.get(app, view.policy.answer)
        title = inputs.catalogue.entries[app].app.title
        return templates.add(answers.blocked(inputs.settings, view.policy, kind, title))

    return {
        "block": _mask(view.block, bits),
        "monitor": _mask(view.monitor, bits),
        "allow": _mask(view.allow, bits),
        "exempt": 0,
        "answers": [answer(app) for app in live],
    }


def _list_reports(inputs: Inputs, live: list[str], reports: list[list[_native.ListReport]]) -> Iterable[dict[str, Any]]:
    for app, lists in zip(live, reports, strict=True):
        entry = inputs.catalogue.entries[app]
        for at, report in enumerate(lists):
            samples = [{"line": n, "reason": why, "text": repr(text)[2:-1]} for n, why, text in report["samples"]]
            yield {
                "app": app,
                "file": str(entry.list_path(at)),
                "kept": report["kept"],
                "skipped": report["skipped"],
                "samples": samples,
            }


def write_generation(inputs: Inputs, compiled: Compiled, directory: Path) -> None:
    """Write snapshot, inputs and manifest into a new directory, and make sure that they are on the disk."""
    kept = directory / INPUTS
    kept.mkdir(parents=True)
    items = []
    for at, (path, data) in enumerate(sorted(inputs.source.files.items())):
        name = f"{at:04}-{path.name}"
        _write(kept / name, data)
        items.append({"path": str(path), "kept": name, "sha256": hashlib.sha256(data).hexdigest()})
    _write(directory / SNAPSHOT, compiled.snapshot)
    manifest = {
        "config": str(inputs.config),
        "digest": inputs.digest(),
        "inputs": items,
        "lists": compiled.lists,
    }
    _write(directory / MANIFEST, json.dumps(manifest, indent=1).encode())


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
