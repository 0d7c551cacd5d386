"""Reads the config file; what one key says about another is checked here, with both places known."""

from __future__ import annotations

import re
from pathlib import Path

from blockd.problems import InputError, Problem
from blockd.settings.document import Document
from blockd.settings.schema import RESTART_KEYS, UNIDENTIFIED, Secondary, Settings
from blockd.settings.source import Source
from blockd.settings.values import Network, read_name, show_endpoint

#: Group and app names become metric labels and file names.
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def load_settings(path: Path, source: Source) -> tuple[Settings, Document]:
    """Read and check a config file. InputError has every problem with its line."""
    document = Document(path, source.read(path))
    settings = document.validate(Settings)
    problems = [*_check_groups(settings, document), *_check_policies(settings, document)]
    problems += _check_states(settings, document)
    problems += _check_zones(settings, document)
    problems += _check_transfer(settings, document)
    problems += _check_egress(settings, document)
    problems += _check_twice(document, ("records",))
    if problems:
        raise InputError(problems)
    return settings, document


def _check_groups(settings: Settings, document: Document) -> list[Problem]:
    problems = []
    seen: dict[Network, tuple[str, int]] = {}
    for group, members in settings.groups.items():
        place = ("groups", group)
        if not NAME.fullmatch(group):
            problems.append(document.problem(place, "a group's name is lower-case letters, digits and '-'"))
        if group == UNIDENTIFIED:
            problems.append(document.problem(place, "everybody else is unidentified: it has a policy, but no members"))
        if group not in settings.policies:
            text = f"this group has no policy; write policies: {{{group}: {{}}}} if it gets no blocks"
            problems.append(document.problem(place, text))
        for at, network in enumerate(members.networks):
            here = (*place, "networks", at)
            if network in seen:
                other, line = seen[network]
                text = f"{network} is in group {other} already (line {line}); inside one another is meant, equal is not"
                problems.append(document.problem(here, text))
            seen[network] = (group, document.line(here))
    return problems


#: States of an address that may have an outcome of their own.
STATES = ("unknown", "randomised", "conflict", "stale")


def _check_states(settings: Settings, document: Document) -> list[Problem]:
    problems = []
    for state, group in settings.devices.states.items():
        place = ("devices", "states", state)
        if state not in STATES:
            problems.append(document.problem(place, f"there is no such state; there are {', '.join(STATES)}"))
        elif group != "networks" and group not in settings.groups:
            problems.append(document.problem(place, f"expected networks or a group, and found {group}"))
    return problems


def _check_policies(settings: Settings, document: Document) -> list[Problem]:
    problems = []
    for name, policy in settings.policies.items():
        place = ("policies", name)
        if name != UNIDENTIFIED and name not in settings.groups:
            problems.append(document.problem(place, "no group has this name; groups are defined under groups:"))
        for app in sorted(set(policy.block) & set(policy.monitor)):
            problems.append(document.problem((*place, "monitor"), f"{app} is blocked and monitored; keep one"))
        for app in sorted(set(policy.allow) & {*policy.block, *policy.monitor}):
            problems.append(document.problem((*place, "allow"), f"{app} is allowed and blocked or monitored; keep one"))
    if UNIDENTIFIED not in settings.policies:
        text = f"the policy of {UNIDENTIFIED} is missing; write {UNIDENTIFIED}: {{}} if it gets no blocks"
        problems.append(document.problem(("policies",), text))
    return problems


def _check_zones(settings: Settings, document: Document) -> list[Problem]:
    problems = []
    for zone, servers in settings.upstream.zones.items():
        if not servers:
            problems.append(document.problem(("upstream", "zones", zone), "expected at least one server"))
    problems += _check_twice(document, ("upstream", "zones"))
    for at, endpoint in enumerate(settings.server.listen):
        if endpoint in settings.server.listen[:at]:
            text = f"{show_endpoint(endpoint)} stands here twice; keep one"
            problems.append(document.problem(("server", "listen", at), text))
    return problems


def _check_transfer(settings: Settings, document: Document) -> list[Problem]:
    problems = []
    transfer = settings.transfer
    wanted: dict[tuple[str | int, ...], list[Secondary]]
    seen: dict[str, str] = {}
    for group, zone in transfer.zones.items():
        place = ("transfer", "zones", group)
        if group != UNIDENTIFIED and group not in settings.groups:
            problems.append(document.problem(place, "no group has this name; groups are defined under groups:"))
        if zone.zone in seen:
            text = f"{zone.zone} is the zone of {seen[zone.zone]} already; each group has its own"
            problems.append(document.problem((*place, "zone"), text))
        seen[zone.zone] = group
    wanted = {("transfer", "zones", group): zone.secondaries for group, zone in transfer.zones.items()}
    if transfer.catalog is not None:
        wanted["transfer", "catalog"] = transfer.catalog.secondaries
        if transfer.catalog.zone in seen:
            text = f"{transfer.catalog.zone} is the zone of {seen[transfer.catalog.zone]} already"
            problems.append(document.problem(("transfer", "catalog", "zone"), text))
    for zone_place, secondaries in wanted.items():
        for at, secondary in enumerate(secondaries):
            if secondary.key is not None and secondary.key not in transfer.keys:
                here = (*zone_place, "secondaries", at, "key")
                problems.append(document.problem(here, f"there is no key {secondary.key} under transfer.keys"))
    if (transfer.zones or transfer.catalog) and not transfer.listen:
        text = "zones are given on addresses of their own: listen: [10.0.0.5:5300]"
        problems.append(document.problem(("transfer",), text))
    for at, endpoint in enumerate(transfer.listen):
        if endpoint in settings.server.listen:
            text = f"{show_endpoint(endpoint)} is where queries are answered; transfers have an address of their own"
            problems.append(document.problem(("transfer", "listen", at), text))
    return problems


def _check_egress(settings: Settings, document: Document) -> list[Problem]:
    egress = settings.egress
    if egress.listen is None:
        return []
    lacking = [key for key in ("certificate", "key", "authority") if getattr(egress, key) is None]
    if lacking:
        needed = ", ".join(f"egress.{key}" for key in lacking)
        text = f"it needs {needed}: who is told where devices are shows a certificate"
        return [document.problem(("egress", "listen"), text)]
    return []


def check_gateways(settings: Settings, document: Document) -> list[Problem]:
    """Find a config by which another machine's gateway would cut devices off; its policies name apps alone."""
    egress = settings.egress
    everywhere = [str(address) for address, _ in settings.server.listen if address.is_unspecified]
    takes_dns = any("encrypted-dns" in one.block for one in settings.policies.values())
    if egress.listen is not None and everywhere and takes_dns and not egress.resolvers:
        text = (
            f"another machine's gateway cannot know which addresses are ours where server.listen says {everywhere[0]}, "
            "and would refuse devices to ask us, for encrypted-dns is blocked: name them under egress.resolvers"
        )
        return [document.problem(("egress", "listen"), text)]
    return []


def _check_twice(document: Document, place: tuple[str, ...]) -> list[Problem]:
    """Find names that are one when they are folded: only the last would count."""
    written = document.values
    for step in place:
        written = written.get(step) or {}
    names = [read_name(key) for key in written]
    return [
        document.problem((*place, key), f"{name} stands here twice; keep one")
        for key, name in zip(written, names, strict=True)
        if names.count(name) > 1
    ]


def changed_restart_keys(old: Settings, new: Settings) -> list[str]:
    """Name the keys that differ and that only a restart takes in."""

    def value(settings: Settings, key: str) -> object:
        section, name = key.split(".")
        return getattr(getattr(settings, section), name)

    return [key for key in RESTART_KEYS if value(old, key) != value(new, key)]
