"""What looks wrong in a config that can be taken: for `blockd check`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from blockd.apps.catalogue import owner_words
from blockd.devices import Device
from blockd.policy.app_sets import MARK
from blockd.policy.inputs import Inputs
from blockd.policy.views import GroupView, group_views
from blockd.problems import Problem
from blockd.settings.schema import UNIDENTIFIED
from blockd.settings.values import Address

#: Names that have nothing in common.
PROBES = ("q7.example", "www.a-b.test")
#: Hostnames behind one address from which on it is probably not a device.
MANY_NAMES = 8


def review(inputs: Inputs) -> Iterable[Problem]:
    """Give what somebody should look at; none of it stops a reload."""
    views = {view.group: view for view in group_views(inputs)}
    yield from _empty_groups(inputs)
    for _, _, inventory in inputs.inventories:
        yield from inventory.notes
    yield from _forwarders(inputs)
    yield from _wide_patterns(inputs)
    yield from _empty_lists(inputs)
    yield from _outside_sets(inputs)
    contact = inputs.settings.answers.contact
    if contact is not None and not contact.startswith(("mailto:", "https:", "http:", "tel:", "sip:", "sips:")):
        text = "the contact is no URI, such as mailto:security@dept.example: programs that read it will not"
        yield inputs.document.problem(("answers", "contact"), text)
    for group, view in views.items():
        yield from _half_open(inputs, group, view)
    for group in [*inputs.settings.groups, UNIDENTIFIED]:
        policy = inputs.settings.policies[group]
        for app in dict.fromkeys(policy.block):
            missing = sorted(inputs.catalogue.needs(app) - {app} - views[group].block)
            if missing and not set(missing) & views[group].allow:
                text = f"{app} is blocked, and {', '.join(missing)}, which it needs, is not: parts of it may be reached"
                yield inputs.document.problem(inputs.named[group][app].place, text)


def _empty_groups(inputs: Inputs) -> Iterable[Problem]:
    for group, members in inputs.settings.groups.items():
        if not members.networks and not inputs.devices.get(group):
            text = "nobody is in this group: it has no networks and no devices"
            yield inputs.document.problem(("groups", group), text)


def _wide_patterns(inputs: Inputs) -> Iterable[Problem]:
    """Find patterns that names of nobody in particular fit."""
    for app in inputs.live_apps():
        entry = inputs.catalogue.entries[app]
        for pattern in entry.app.patterns:
            try:
                is_wide = all(re.fullmatch(pattern, name, re.IGNORECASE) for name in PROBES)
            except re.error:
                # The crate's own engine took it: what that means, this one cannot say.
                continue
            if is_wide:
                yield entry.places["patterns", pattern].problem(f"{pattern} fits names of anybody")


def _empty_lists(inputs: Inputs) -> Iterable[Problem]:
    for app in inputs.live_apps():
        entry = inputs.catalogue.entries[app]
        for at in range(len(entry.app.lists)):
            path = entry.list_path(at)
            with inputs.source.list_file(path).open("rb") as file:
                is_empty = not any(line.strip() for line in file)
            if is_empty:
                is_lacking = path in inputs.source.lacking
                text = "the list was not fetched yet" if is_lacking else "the list is empty"
                yield entry.list_places[at].problem(text)


def _outside_sets(inputs: Inputs) -> Iterable[Problem]:
    """Find apps that somebody may believe to be in a set."""
    catalogue, known = inputs.catalogue, inputs.sets
    for group, named in inputs.named.items():
        for app in inputs.settings.policies[group].block:
            word = f"{MARK}{app}"
            if not named.keys() >= set(known.apps.get(word, ())):
                text = f'{app} is one app; the {len(known.apps[word])} apps of {known.titles[word]} are "{word}"'
                yield inputs.document.problem(named[app].place, text)
    used = {*inputs.set_of.values(), *(word for words in inputs.settings.sets.values() for word in words)}
    for name, entry in catalogue.entries.items():
        own = entry.app.owner or ""
        for key, owner in catalogue.owners.items():
            is_alike = set(owner_words(owner.title)) <= set(owner_words(own))
            if is_alike and f"{MARK}{key}" in used and name not in catalogue.owned(key):
                text = (
                    f"{name} is not in {MARK}{key}, for {own!r} is not one of its names; "
                    f'if {owner.title} owns it, write "{own} ({owner.title})"'
                )
                yield entry.document.problem(("owner",), text)


def _forwarders(inputs: Inputs) -> Iterable[Problem]:
    for devices in inputs.devices.values():
        names: defaultdict[Address, set[str]] = defaultdict(set)
        first: dict[Address, Device] = {}
        for device in devices:
            if device.address is None:
                continue
            names[device.address].add(device.hostname or device.serial)
            first.setdefault(device.address, device)
        for address, behind in names.items():
            if len(behind) >= MANY_NAMES:
                device = first[address]
                text = f"{len(behind)} devices are behind this one address: a forwarder?"
                yield Problem(str(device.file), device.line, "address", text)


def _half_open(inputs: Inputs, group: str, view: GroupView) -> Iterable[Problem]:
    policy = inputs.settings.policies[group]
    for key in ("monitor", "allow"):
        for app in getattr(policy, key):
            place = inputs.named[group][app].place
            needed = inputs.catalogue.needs(app) - {app}
            if key == "monitor" and needed & view.block:
                blocked = ", ".join(sorted(needed & view.block))
                text = f"{app} is monitored, and {blocked}, which it needs, is blocked: it will not work"
                yield inputs.document.problem(place, text)
            opened = sorted(needed & {*policy.block, *policy.monitor})
            if key == "allow" and opened:
                text = f"{app} is allowed, and with it {', '.join(opened)}, which this policy names otherwise"
                yield inputs.document.problem(place, text)
