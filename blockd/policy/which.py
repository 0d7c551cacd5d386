"""Which apps of the whole catalogue a name belongs to, live or not: the hot path's own search, sixty-four at a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from blockd.apps.catalogue import Catalogue, Entry
from blockd.fastpath import Fastpath, _native, compile_rules, load
from blockd.policy import answers
from blockd.policy.compile import native_app
from blockd.policy.explain import Place, locate, read_question
from blockd.policy.inputs import MAX_LIVE_APPS, Inputs
from blockd.settings.source import Disk, Source
from blockd.settings.values import to_ascii


@dataclass(frozen=True)
class RuleMatch:
    """A rule that matches, where it stands, and why it is there."""

    place: Place
    why: str | None

    def as_json(self) -> dict[str, Any]:
        """Give the fields by name."""
        return {**asdict(self.place), "why": self.why}


def which(catalogue: Catalogue, inputs: Inputs | None, name: str) -> tuple[str, list[RuleMatch]]:
    """Give the name as it is asked for, and what matches. ValueError when it is no name."""
    question, qtype = read_question(name, "A")
    source: Source = Disk() if inputs is None else inputs.source
    entries = [entry for _, entry in sorted(catalogue.entries.items())]
    matches = []
    for first in range(0, len(entries), MAX_LIVE_APPS):
        some = entries[first : first + MAX_LIVE_APPS]
        fastpath = _compile(some, catalogue.cdn_zones, source)
        for bit, entry in enumerate(some):
            decision = fastpath.decide(f"127.0.0.{bit + 1}", question, qtype)
            if decision["asked"] >> bit & 1 and decision["rule"] is not None:
                place = locate(source, entry, *decision["rule"])
                matches.append(RuleMatch(place, entry.app.evidence.get(place.rule)))
    return question, matches


def _compile(entries: Sequence[Entry], cdn_zones: Iterable[str], source: Source) -> Fastpath:
    """Compile apps alone: each is blocked for one address, so that each is asked about by itself."""
    rules: _native.Rules = {
        "digest": bytes(16),
        "apps": [native_app(entry, source, 0) for entry in entries],
        "any_template": 0,
        "templates": [answers.any_refused()],
        "local_zones": [],
        "routed_zones": [],
        "routes": [[("127.0.0.1", 53)]],
        "cdn_zones": list(cdn_zones),
        "local_names": [],
    }
    count = len(entries)
    views: _native.Views = {
        "views": [
            {"block": 1 << bit, "monitor": 0, "allow": 0, "exempt": 0, "answers": [0] * count, "is_logged": False}
            for bit in range(count)
        ],
        "devices": [(f"127.0.0.{bit + 1}", 32, bit) for bit in range(count)],
        "unidentified": 0,
        "clients": [("127.0.0.0", 8)],
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
    }
    with tempfile.NamedTemporaryFile() as file:
        file.write(compile_rules(rules, views, json.dumps({}).encode(), to_ascii)[0])
        file.flush()
        return Fastpath(load(file.name), [], 0, 0)
