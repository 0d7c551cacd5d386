"""From inputs to a snapshot: the one place where names become bits and numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blockd.apps.catalogue import Entry, Origin
from blockd.devices.inventory import lines_of
from blockd.fastpath import Fastpath, _native, check_patterns, compile_rules, load
from blockd.lists.gate import limits, samples
from blockd.lists.remote import KeyFile, Remote, Task
from blockd.policy import answers
from blockd.policy.app_sets import owner_sets
from blockd.policy.inputs import Inputs
from blockd.policy.local_records import local_names
from blockd.policy.views import GroupView, client_prefixes, device_prefixes, group_views
from blockd.problems import InputError, Problem
from blockd.settings.records import record_data
from blockd.settings.schema import Answer, Policy
from blockd.settings.source import INPUTS, MANIFEST, Source
from blockd.settings.values import to_ascii

SNAPSHOT = "snapshot"
#: Beside a candidate that is compared: what it would change.
CHANGES = "changes.json"


@dataclass(frozen=True)
class Compiled:
    """What was noticed on the way to a snapshot."""

    lists: list[dict[str, Any]]
    #: Rules of each live app, names from its lists among them.
    rules: dict[str, int]


def compile_snapshot(inputs: Inputs, output: Path, generation: str = "") -> Compiled:
    """Write the snapshot of these inputs, as this generation, to a file. InputError says what is wrong with them.

    OSError when it cannot be written.
    """
    live = inputs.live_apps()
    records, problems = local_names(inputs.settings, inputs.document)
    problems += _check_patterns(inputs, live)
    if problems:
        raise InputError(problems)
    bits = {app: 1 << at for at, app in enumerate(live)}
    views = group_views(inputs)
    templates = _Templates()
    view_specs = [_view_spec(inputs, view, live, bits, templates, generation) for view in views]
    special_templates, special_zones = answers.special_use()
    first_special = templates.extend(special_templates)
    rules: _native.Rules = {
        "digest": b"",
        "apps": [
            native_app(
                inputs.catalogue.entries[app],
                inputs.source,
                _mask(inputs.catalogue.needs(app), bits),
                _zone_answers(inputs, app, templates, generation),
            )
            for app in live
        ],
        "any_template": templates.add(answers.any_refused()),
        "templates": templates.all,
        "local_zones": [
            (zone, first_special + a, first_special + b) for zone, (a, b) in _local_zones(inputs, special_zones)
        ],
        "routed_zones": [(zone, at + 1) for at, zone in enumerate(inputs.settings.upstream.zones)],
        "routes": list(inputs.routes().values()),
        "nat64": [(prefix.network_address, prefix.prefixlen) for prefix in inputs.settings.upstream.nat64_prefixes],
        "cdn_zones": inputs.catalogue.cdn_zones,
        "guarded": _guarded(inputs, records),
        "local_names": [(name, templates.add(template)) for name, template in records.items()],
    }
    rules["digest"] = _digest(live, rules, inputs.source)
    settings = inputs.settings
    spec: _native.Views = {
        "views": view_specs,
        "devices": [(n.network_address, n.prefixlen, view) for n, view in device_prefixes(inputs)],
        "unidentified": len(views) - 1,
        "clients": [(n.network_address, n.prefixlen) for n in client_prefixes(inputs)],
        "tuning": {
            "live_ttl": settings.answers.live_ttl,
            "ttl_floor": settings.cache.ttl_floor,
            "ttl_ceiling": settings.cache.ttl_ceiling,
            "negative_ttl_ceiling": settings.cache.negative_ttl_ceiling,
            "stale": settings.cache.stale,
            "trust_ad": settings.upstream.trust_ad,
            "client_rate": settings.server.client_rate,
            "client_burst": settings.server.client_burst,
            "pending_in_all": settings.upstream.pending,
            "pending_a_client": settings.upstream.pending_a_client,
        },
    }
    meta = {
        "config": str(inputs.config),
        "inputs": inputs.digest(),
        "apps": live,
        "about": [_about(inputs, app) for app in live],
        "groups": [view.group for view in views],
        "views": [{k: sorted(getattr(view, k)) for k in ("block", "monitor", "allow")} for view in views],
        # App -> set, of each view: for people, who named a set.
        "sets": [dict(view.sets) for view in views],
        "masks": [{k: spec[k] for k in ("block", "monitor", "allow", "exempt")} for spec in view_specs],
    }
    try:
        reports = compile_rules(rules, spec, json.dumps(meta).encode(), to_ascii, record_data, str(output))
    except ValueError as error:
        # A bound on all rules together: no single place is at fault.
        raise InputError([inputs.document.problem(("policies",), str(error))]) from None
    lists = list(_list_reports(inputs, live, reports))
    # An error page, or another encoding, has lines and no name. An empty file is somebody's decision.
    junk = [report for report in lists if report["skipped"] and not report["kept"]]
    if junk:
        raise InputError([_is_no_list(report) for report in junk])
    counts = {app: inputs.catalogue.entries[app].rule_count() for app in live}
    for report in lists:
        if report["kind"] == "block":
            counts[report["app"]] += report["kept"]
    return Compiled(lists, counts)


def _local_zones(inputs: Inputs, special: dict[str, tuple[int, int]]) -> Iterable[tuple[str, tuple[int, int]]]:
    """Leave out what lies in a zone with servers of its own that is, or is inside, a locally served zone around it."""
    for zone, at in special.items():
        above = [zone.split(".", labels)[labels] for labels in range(1, zone.count(".") + 1)]
        outermost = max((at for at, name in enumerate(above) if name in special), default=-1)
        if not any(name in inputs.settings.upstream.zones for name in above[: outermost + 1]):
            yield zone, at


def _digest(live: list[str], rules: _native.Rules, source: Source) -> bytes:
    """Tell rules apart by what they say; a list by the digest of its octets, wherever its copy is."""
    sums = {str(source.list_file(path)): source.sha256(path) for path in source.lists}
    apps = [{**app, "lists": [{**item, "file": sums[item["file"]]} for item in app["lists"]]} for app in rules["apps"]]
    return hashlib.sha256(repr((live, {**rules, "apps": apps})).encode()).digest()[:16]


def _check_patterns(inputs: Inputs, live: list[str]) -> list[Problem]:
    """Build the automaton of all patterns once, so that the one at fault is known by its place."""
    entries = [inputs.catalogue.entries[app] for app in live]
    places = [(entry, pattern) for entry in entries for pattern in entry.app.patterns]
    found = check_patterns([pattern for _, pattern in places])
    if found is None:
        return []
    at, text = found
    entry, pattern = places[at]
    return [entry.places["patterns", pattern].problem(f"{pattern}: {text}")]


def app_rules(entry: Entry, key: str) -> list[tuple[str, Origin]]:
    """Give an app's rules of one key, with their places, in order."""
    return [(str(rule), entry.places[key, str(rule)]) for rule in getattr(entry.app, key)]


def _about(inputs: Inputs, name: str) -> dict[str, Any]:
    app = inputs.catalogue.entries[name].app
    return {"title": app.title, "owner": app.owner, "takes": app.takes, "set": inputs.set_of.get(name)}


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


def _zone_answers(inputs: Inputs, app: str, templates: _Templates, generation: str) -> _native.ZoneAnswers | None:
    """Prepare how an app's response policy zones answer, if it may have any."""
    own = inputs.catalogue.entries[app].app
    if not any(item.format in ("auto", "rpz") for item in own.lists):
        return None

    def template(kind: Answer) -> int:
        return templates.add(answers.blocked(inputs.settings, Policy(), kind, own.title, generation))

    return {"nxdomain": template("nxdomain"), "nodata": template("nodata"), "silence": template("drop")}


def _mask(apps: Iterable[str], bits: dict[str, int]) -> int:
    return sum(bits[app] for app in set(apps) if app in bits)


def _guarded(inputs: Inputs, records: Iterable[str]) -> list[str]:
    """Give the names that no list may block: what a site says, its own zones and records."""
    return sorted({*inputs.settings.reload.never_block, *inputs.settings.upstream.zones, *records})


def fetch_tasks(inputs: Inputs) -> list[Task]:
    """Give the lists of live apps that come from elsewhere, and what each of them is judged by."""
    records, _ = local_names(inputs.settings, inputs.document)
    guarded, for_all = _guarded(inputs, records), limits(inputs.settings)
    tasks = []
    for app in inputs.live_apps():
        entry = inputs.catalogue.entries[app]
        for at, item in enumerate(entry.app.lists):
            if item.source is None:
                continue
            own = {"largest_shrink": item.largest_shrink, "largest_growth": item.largest_growth}
            judged_by = replace(for_all, **{key: value for key, value in own.items() if value is not None})
            remote = Remote(
                app,
                item.source,
                entry.list_path(at),
                entry.ca_path(at),
                item.largest_mb << 20,
                item.patience,
                item.zone,
                None if item.server is None else (str(item.server[0]), item.server[1]),
                _key_file(inputs, item.key),
            )
            tasks.append(Task(remote, dict(_native_list(entry, at, remote.path)), guarded, judged_by, item.every))
    return tasks


def _key_file(inputs: Inputs, name: str | None) -> KeyFile | None:
    if name is None:
        return None
    key = inputs.settings.transfer.keys[name]
    return KeyFile(name, key.algorithm, inputs.relative(key.file))


def _native_list(entry: Entry, at: int, file: Path) -> _native.List:
    item = entry.app.lists[at]
    return {
        "file": str(file),
        "format": item.format,
        "is_hole": item.kind == "hole",
        "public_suffix": entry.app.public_suffix,
    }


def native_app(
    entry: Entry, source: Source, needs: int, zone_answers: _native.ZoneAnswers | None = None
) -> _native.App:
    """Give an app as the crate takes it; lists that were not read yet are."""
    app = entry.app
    return {
        "suffixes": app.suffixes,
        "hosts": app.hosts,
        "holes": app.holes,
        "lists": [_native_list(entry, at, source.list_file(entry.list_path(at))) for at in range(len(app.lists))],
        "networks": [(n.network_address, n.prefixlen) for n in app.networks],
        "needs": needs,
        "zone_answers": zone_answers or {"nxdomain": 0, "nodata": 0, "silence": 0},
        "embedded": app.embedded,
        "patterns": app.patterns,
    }


def _view_spec(
    inputs: Inputs, view: GroupView, live: list[str], bits: dict[str, int], templates: _Templates, generation: str
) -> _native.View:
    def answer(app: str) -> int:
        own = inputs.catalogue.entries[app].app
        kind = view.policy.answer_by_app.get(app, own.answer or view.policy.answer)
        title = own.title
        return templates.add(answers.blocked(inputs.settings, view.policy, kind, title, generation))

    return {
        "block": _mask(view.block, bits),
        "monitor": _mask(view.monitor, bits),
        "allow": _mask(view.allow, bits),
        "exempt": 0,
        "answers": [answer(app) for app in live],
        "is_logged": view.is_logged,
        "strip_ech": view.policy.strip_ech,
    }


def _list_reports(inputs: Inputs, live: list[str], reports: list[list[_native.ListReport]]) -> Iterable[dict[str, Any]]:
    for app, lists in zip(live, reports, strict=True):
        entry = inputs.catalogue.entries[app]
        for at, report in enumerate(lists):
            path, item = entry.list_path(at), entry.app.lists[at]
            yield {
                "app": app,
                "file": str(path),
                "kind": item.kind,
                "format": report["format"],
                "kept": report["kept"],
                "skipped": report["skipped"],
                "samples": samples(report["samples"]),
                "refused": report["refused"],
                "refused_samples": samples(report["refused_samples"]),
                "is_lacking": path in inputs.source.lacking,
                "ends_within_line": path in inputs.source.ending_within_line,
                "largest_shrink": item.largest_shrink,
                "largest_growth": item.largest_growth,
                "sha256": inputs.source.sha256(path),
            }


def unmet(inputs: Inputs, snapshot: Path) -> list[Problem]:
    """Ask a snapshot for the names that the config wants blocked, or not; give those with which it is otherwise."""
    wanted = [(key, at, name) for key in ("must_block", "must_allow") for at, name in enumerate(_names(inputs, key))]
    if not wanted:
        return []
    loaded = load(str(snapshot))
    fastpath, meta = Fastpath(loaded, [], 0, 0), json.loads(loaded.meta)
    problems = []
    for key, at, name in wanted:
        decisions = [fastpath.decide("0.0.0.0", name, 1, view=view) for view in range(len(meta["groups"]))]  # noqa: S104
        blocked = {
            group: decision["app"]
            for group, decision in zip(meta["groups"], decisions, strict=True)
            if decision["action"] == "block"
        }
        place = ("reload", key, at)
        if key == "must_block" and not blocked:
            problems.append(inputs.document.problem(place, f"{name} would be blocked for no group"))
        for group, app in blocked.items() if key == "must_allow" else ():
            text = f"{name} would be blocked for {group}, as {meta['apps'][app or 0]}"
            problems.append(inputs.document.problem(place, text))
    return problems


def _names(inputs: Inputs, key: str) -> list[str]:
    names: list[str] = getattr(inputs.settings.reload, key)
    return names


def inventory_reports(inputs: Inputs) -> list[dict[str, Any]]:
    """Give what became of each inventory, as a manifest has it."""
    return [
        {
            "group": group,
            "file": str(inventory.file),
            "name": name,
            "only": list(inventory.only),
            "devices": inventory.used,
            "records": inventory.records,
            "unusable": inventory.unusable,
            **inventory.skipped.as_json(),
            "notes": [note.as_json() for note in inventory.notes],
            "end": inventory.end,
        }
        for group, name, inventory in inputs.inventories
    ]


def write_inputs(inputs: Inputs, compiled: Compiled, directory: Path) -> None:
    """Write inputs and manifest beside a snapshot, and make sure that they are on the disk.

    The lists were copied to the directory of inputs before they were compiled.
    """
    kept = directory / INPUTS
    lists = inputs.source.lists
    items: list[dict[str, str]] = []
    for path in sorted(inputs.source.paths):
        if path in lists:
            file = inputs.source.list_file(path)
            _sync(file)
        else:
            file = kept / f"{len(lists) + len(items):04}-{path.name}"
            file.write_bytes(inputs.source.files[path])
            _sync(file)
        items.append({"path": str(path), "kept": file.name, "sha256": inputs.source.sha256(path)})
    manifest = {
        "config": str(inputs.config),
        "digest": inputs.digest(),
        "inputs": items,
        "lists": compiled.lists,
        "must": [problem.as_json() for problem in unmet(inputs, directory / SNAPSHOT)],
        "rules": compiled.rules,
        "owners": dict(owner_sets(inputs.catalogue).apps),
        "sets": inputs.set_of,
        "devices": {group: lines_of(devices) for group, devices in inputs.devices.items()},
        "inventories": inventory_reports(inputs),
    }
    (directory / MANIFEST).write_bytes(json.dumps(manifest, indent=1).encode())
    _sync(directory / MANIFEST)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
