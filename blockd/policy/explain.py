"""Why a name gets what it gets: the hot path's own decision, with names for its numbers and places for its rules."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any

from dnslib import QTYPE, RCODE, DNSError, DNSRecord

from blockd.apps.catalogue import Entry
from blockd.fastpath import _native, line_of
from blockd.policy.inputs import Inputs
from blockd.policy.views import brief, device_prefixes, group_views, sets_of
from blockd.settings.schema import UNIDENTIFIED
from blockd.settings.source import Source
from blockd.settings.values import Address, read_name, read_presented_name, to_ascii


@dataclass(frozen=True)
class Place:
    """A rule and where it stands."""

    app: str
    kind: str
    rule: str
    file: str
    line: int

    def __str__(self) -> str:
        """Give rule and place in one line."""
        return f"{self.app}: {self.kind} {self.rule} ({self.file}:{self.line})"


@dataclass(frozen=True)
class Explanation:
    """The whole reasoning for one question."""

    client: str
    name: str
    qtype: str
    group: str
    device: str
    view: dict[str, list[str]]
    asked: list[str]
    found: list[str]
    is_cached: bool
    rule: Place | None
    target: str | None
    action: str
    app: str | None
    answer: list[str]
    masks: dict[str, int]
    zone: str | None
    #: By which it passes, where that is the verdict.
    exemptions: list[str]
    #: The set by which the policy names the app, if it does.
    set: str | None
    #: App -> set, of the whole view.
    sets: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Give the fields by name."""
        return asdict(self)

    def _found(self) -> str:
        if self.app in self.asked:
            return "not looked for: the name decides"
        if self.zone and not self.zone.startswith("routed"):
            return "not looked for: the name is answered here"
        return (", ".join(self.found) or "-") if self.is_cached else "not known: the answer is not in the cache"

    def rows(self) -> list[tuple[str, str]]:
        """Give the text that a person reads: a label and what is said, a line each."""

        def names(apps: list[str]) -> str:
            return ", ".join(apps) or "-"

        rows = [
            ("question", f"{self.name} {self.qtype}"),
            ("device", f"{self.client}: {self.device}"),
            ("group", self.group),
            ("view", "; ".join(f"{key} {names(brief(apps, self.sets))}" for key, apps in self.view.items())),
            ("masks", ", ".join(f"{key} {mask:#x}" for key, mask in self.masks.items())),
            ("asked", names(self.asked)),
            ("found", self._found()),
        ]
        if self.rule is not None:
            rows.append(("rule", str(self.rule)))
        if self.target is not None:
            rows.append(("target", self.target))
        if self.zone is not None:
            rows.append(("zone", self.zone))
        if self.set is not None:
            rows.append(("set", self.set))
        rows.append(("verdict", f"{self.action} ({self.app})" if self.app else self.action))
        if self.exemptions:
            rows.append(("exemption", ", ".join(self.exemptions)))
        rows += [("answer" if at == 0 else "", line) for at, line in enumerate(self.answer)]
        return rows


def explain(
    inputs: Inputs,
    decision: _native.Decision,
    meta: dict[str, Any],
    client: Address,
    name: str,
    qtype: str,
    known: str | None = None,
    exemptions: Collection[str] = (),
) -> Explanation:
    """Give names to a native decision, and places in the inputs that it was compiled from.

    `known` says who has the address, where that is known by other evidence than the inputs; `exemptions` names those
    by which the device may use the app.
    """
    apps: list[str] = meta["apps"]

    def of_mask(mask: int) -> list[str]:
        return [app for at, app in enumerate(apps) if mask >> at & 1]

    app = None if decision["app"] is None else apps[decision["app"]]
    rule, target = decision["rule"], None
    # Where the name itself decided, nobody looked at where its answer leads.
    if decision["app"] is not None and not decision["asked"] >> decision["app"] & 1:
        if decision["target_rule"] is not None:
            target, rule = decision["target_rule"]
        else:
            target = ", ".join(decision["target_addresses"]) or None
    place = None
    if app is not None and rule is not None:
        place = locate(inputs.source, inputs.catalogue.entries[app], *rule)
    group = meta["groups"][decision["view"]]
    sets = sets_of(meta, decision["view"])
    return Explanation(
        client=str(client),
        name=name,
        qtype=qtype,
        group=group,
        device=known or _device(inputs, client, group),
        view=meta["views"][decision["view"]],
        asked=of_mask(decision["asked"]),
        found=of_mask(decision["found"]),
        is_cached=decision["is_cached"],
        rule=place,
        target=target,
        action=decision["action"],
        app=app,
        answer=_answer(decision),
        zone=_zone(inputs, decision),
        exemptions=list(exemptions),
        set=None if app is None else sets.get(app),
        sets=sets,
        masks={"asked": decision["asked"], "found": decision["found"], **meta["masks"][decision["view"]]},
    )


def _device(inputs: Inputs, client: Address, group: str) -> str:
    if group == UNIDENTIFIED:
        return "in no group's networks"
    names = [device for device in inputs.devices.get(group, ()) if device.address == client]
    if names:
        # Where nothing is said by address, nothing says which device an address is either.
        who = str(names[0]) if next(v for v in group_views(inputs) if v.group == group).is_logged else "a device"
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"{who}{more} ({names[0].file}:{names[0].line})"
    held = [n for n, _ in device_prefixes(inputs) if n.version == client.version and client in n]
    network = max(held, key=lambda n: n.prefixlen)
    at = inputs.settings.groups[group].networks.index(network)
    line = inputs.document.line(("groups", group, "networks", at))
    return f"in {network} ({inputs.config}:{line})"


def _zone(inputs: Inputs, decision: _native.Decision) -> str | None:
    """Say which words of the config, or of an RFC, answer a name or route it."""
    if decision["zone"] is None:
        return None
    kind, name = decision["zone"]
    section = {"record": ("records",), "routed": ("upstream", "zones")}.get(kind)
    if section is None:
        return f"{name}: a special name, answered here and never forwarded"
    values = inputs.document.values
    for step in section:
        values = values[step]
    key = next(key for key in values if read_name(key) == name)
    place = f"{'.'.join(section)} ({inputs.config}:{inputs.document.line((*section, key))})"
    return f"{'routed' if kind == 'routed' else 'a local record'}: {name} of {place}"


def _answer(decision: _native.Decision) -> list[str]:
    if not decision["is_client"]:
        return ["REFUSED: the address is not among server.clients"]
    reply = decision["reply"]
    if reply is not None:
        shown = _show(reply)
        return [f"{shown[0]}, from the cache", *shown[1:]] if decision["is_cached"] and _passes(decision) else shown
    if decision["action"] == "block":
        return ["none: the policy drops the query"]
    if decision["zone"] is not None and decision["zone"][0] == "routed":
        return [f"from the servers of upstream.zones {decision['zone'][1]}"]
    return ["from the cache" if decision["is_cached"] else "from upstream"]


def _passes(decision: _native.Decision) -> bool:
    return decision["action"] != "block" and (decision["zone"] is None or decision["zone"][0] == "routed")


def _show(reply: bytes) -> list[str]:
    """Show a reply that the crate wrote; dnslib never reads what came from the network as it came."""
    try:
        record = DNSRecord.parse(reply)
    except (DNSError, ValueError, IndexError, RecursionError) as error:
        return [f"unreadable: {error}"]
    lines = [str(rr) for rr in (*record.rr, *record.auth)]
    for additional in record.ar:
        for option in getattr(additional, "rdata", None) or []:
            if getattr(option, "code", None) == 15:
                data = bytes(option.data)
                code = int.from_bytes(data[:2], "big")
                lines.append(f"EDE {code}: {data[2:].decode(errors='replace')}")
    return [str(RCODE.get(record.header.rcode)), *lines]


#: Where rules of each kind are written.
KEYS_OF_KIND = {
    "suffix": ("suffixes",),
    "host": ("hosts",),
    "hole": ("holes",),
    "embedded": ("suffixes", "hosts"),
    "pattern": ("patterns",),
}


def locate(source: Source, entry: Entry, kind: str, rule: str) -> Place:
    """Find file and line of a rule in the inputs; lists are searched as the compiler reads them."""
    app = entry.app
    for key in KEYS_OF_KIND.get(kind, ()):
        origin = entry.places.get((key, rule))
        if origin is not None:
            return Place(app.app, kind, rule, str(origin.document.file), origin.line)
    # A pattern that is not the app's own is a list's, as it was written or around it.
    for at, item in enumerate(app.lists if kind != "pattern" else ()):
        if (item.kind == "hole") == (kind == "hole"):
            found = line_of(str(source.list_file(entry.list_path(at))), item.format, rule, to_ascii)
            if found is not None:
                return Place(app.app, kind, rule, str(entry.list_path(at)), found)
    return Place(app.app, kind, rule, str(entry.document.file), 0)


def read_client(text: str) -> Address:
    """Read a client's address; IPv4 inside IPv6 is that IPv4 device. ValueError when it is none."""
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def read_question(name: str, qtype: str) -> tuple[str, int]:
    """Read a question from a command line, its name in presentation form. ValueError says what is wrong with it."""
    number = QTYPE.reverse.get(qtype.upper())
    if number is None and qtype.upper().startswith("TYPE") and qtype[4:].isdigit():
        number = int(qtype[4:])
    if number is None or not 0 < number < 65536:
        raise ValueError(f"{qtype!r} is no query type, such as A, AAAA, HTTPS or TYPE65")
    return read_presented_name(name), number


def read_meta(snapshot: _native.Snapshot) -> dict[str, Any]:
    """Read what :mod:`blockd.policy.compile` kept with a snapshot."""
    meta: dict[str, Any] = json.loads(snapshot.meta)
    return meta
