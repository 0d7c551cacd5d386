"""Which apps of the whole catalogue a name belongs to, live or not: the hot path's own search, sixty-four at a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address
from typing import Any

from blockd.apps.catalogue import Catalogue, Entry
from blockd.endpoint import Endpoint
from blockd.fastpath import Fastpath, _native, compile_rules, load
from blockd.policy import answers
from blockd.policy.compile import native_app
from blockd.policy.explain import Place, locate, read_client, read_question
from blockd.policy.inputs import MAX_LIVE_APPS, Inputs
from blockd.problems import InputError, Problem
from blockd.settings.records import record_data
from blockd.settings.source import Disk, Source
from blockd.settings.values import Address, to_ascii


@dataclass(frozen=True)
class RuleMatch:
    """A rule that matches, where it stands, and why it is there."""

    place: Place
    why: str | None

    def as_json(self) -> dict[str, Any]:
        """Give the fields by name."""
        return {**asdict(self.place), "why": self.why}


def which(catalogue: Catalogue, inputs: Inputs | None, name: str) -> tuple[str, list[RuleMatch], list[Problem]]:
    """Give the name as it is asked for, what matches, and which apps' lists could not be read.

    An address is looked for among the apps' networks. ValueError when it is neither.
    """
    entries = [entry for _, entry in sorted(catalogue.entries.items())]
    try:
        address = read_client(name)
    except ValueError:
        pass
    else:
        return str(address), list(_networks(entries, address)), []
    question, qtype = read_question(name, "A")
    source: Source = Disk() if inputs is None else inputs.source
    problems: list[Problem] = []
    for at, entry in enumerate(entries):
        try:
            for place in range(len(entry.app.lists)):
                source.list_file(entry.list_path(place), may_lack=entry.app.lists[place].source is not None)
        except InputError as error:
            # An app that no policy names may have a list that is not there: its own rules are looked at all the same.
            problems += error.problems
            entries[at] = replace(entry, app=entry.app.model_copy(update={"lists": []}), list_places=())
    matches = []
    for first in range(0, len(entries), MAX_LIVE_APPS):
        some = entries[first : first + MAX_LIVE_APPS]
        fastpath = _compile(some, catalogue.cdn_zones, source)
        for bit, entry in enumerate(some):
            decision = fastpath.decide(f"127.0.0.{bit + 1}", question, qtype)
            if decision["asked"] >> bit & 1 and decision["rule"] is not None:
                found = locate(source, entry, *decision["rule"])
                matches.append(RuleMatch(found, entry.app.evidence.get(found.rule)))
    return question, matches, problems


def _networks(entries: Iterable[Entry], address: Address) -> Iterable[RuleMatch]:
    for entry in entries:
        for network in entry.app.networks:
            if address.version == network.version and address in network:
                origin = entry.places["networks", str(network)]
                place = Place(entry.app.app, "network", str(network), str(origin.document.file), origin.line)
                yield RuleMatch(place, entry.app.evidence.get(str(network)))


def _compile(entries: Sequence[Entry], cdn_zones: Iterable[str], source: Source) -> Fastpath:
    """Compile apps alone: each is blocked for one address, so that each is asked about by itself."""
    rules: _native.Rules = {
        "digest": bytes(16),
        "apps": [native_app(entry, source, 0) for entry in entries],
        "any_template": 0,
        "templates": [answers.any_refused()],
        "local_zones": [],
        "routed_zones": [],
        "routes": [[Endpoint(IPv4Address("127.0.0.1"), 53)]],
        "nat64": [],
        "cdn_zones": list(cdn_zones),
        "guarded": [],
        "local_names": [],
    }
    count = len(entries)
    views: _native.Views = {
        "views": [
            {
                "block": 1 << bit,
                "monitor": 0,
                "allow": 0,
                "exempt": 0,
                "answers": [0] * count,
                "is_logged": False,
                "strip_ech": False,
            }
            for bit in range(count)
        ],
        "devices": [(f"127.0.0.{bit + 1}", 32, bit) for bit in range(count)],
        "unidentified": 0,
        "clients": [("127.0.0.0", 8)],
        "tuning": {
            "live_ttl": 0,
            "ttl_floor": 0,
            "ttl_ceiling": 1,
            "negative_ttl_ceiling": 1,
            "stale": 0,
            "trust_ad": False,
            "client_rate": 1,
            "client_burst": 1,
            "pending_in_all": 1,
            "pending_a_client": 1,
        },
    }
    with tempfile.NamedTemporaryFile() as file:
        compile_rules(rules, views, json.dumps({}).encode(), to_ascii, record_data, file.name)
        return Fastpath(load(file.name), [], 0, 0)
