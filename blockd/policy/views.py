"""What each group gets: four disjoint sets of apps, and which prefixes are whose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from blockd.policy.inputs import Inputs
from blockd.settings.schema import UNIDENTIFIED, Policy
from blockd.settings.values import Network, read_network

#: Who may ask when the config does not say: this machine and private networks (RFC 1918, 4193, 3927, 4291).
USUAL_CLIENTS: tuple[Network, ...] = tuple(
    read_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


@dataclass(frozen=True)
class GroupView:
    """One group's policy as sets of app names; no app is in two."""

    group: str
    policy: Policy
    block: frozenset[str]
    monitor: frozenset[str]
    allow: frozenset[str]
    is_logged: bool
    #: App -> the set by which the policy names it.
    sets: Mapping[str, str] = field(default_factory=dict)


def brief(apps: Iterable[str], sets: Mapping[str, str]) -> list[str]:
    """Name apps in few words: those that a set brings by the set, with their number, before those by themselves."""
    by_set = Counter(sets[app] for app in apps if app in sets)
    numbers = (f"{name} ({count} {'app' if count == 1 else 'apps'})" for name, count in sorted(by_set.items()))
    return [*numbers, *sorted(app for app in apps if app not in sets)]


def sets_of(meta: dict[str, Any], view: int) -> dict[str, str]:
    """Give the sets by which a view's policy names apps; a snapshot of a release without sets has none."""
    found: list[dict[str, str]] = meta.get("sets", [])
    return found[view] if view < len(found) else {}


def group_views(inputs: Inputs) -> list[GroupView]:
    """Give each group's view, unidentified last; the place in the list is the ViewId."""
    groups = [*inputs.settings.groups, UNIDENTIFIED]
    return [_view(inputs, group) for group in groups]


def _view(inputs: Inputs, group: str) -> GroupView:
    policy, catalogue = inputs.settings.policies[group], inputs.catalogue
    # What is allowed opens what it needs: an app that is let in but cannot work is blocked with extra steps.
    allow = frozenset().union(*(catalogue.needs(app) for app in policy.allow))
    block = frozenset(inputs.blocked_apps(policy)) - allow
    monitor = frozenset(policy.monitor) - allow - block
    # An app that an allowed one opens is named by that, and by no set.
    sets = {
        app: one.set
        for app, one in inputs.named[group].items()
        if one.set is not None and app in block | monitor | frozenset(policy.allow)
    }
    return GroupView(group, policy, block, monitor, allow, _is_logged(inputs, group), sets)


def _is_logged(inputs: Inputs, group: str) -> bool:
    """Say whether the log may name devices. Nobody knows whose unidentified ones are: they never appear by address."""
    if group == UNIDENTIFIED:
        return False
    said = inputs.settings.groups[group].log
    return bool(inputs.settings.policies[group].block) if said is None else said == "decisions"


def device_prefixes(inputs: Inputs) -> list[tuple[Network, int]]:
    """Give every prefix of every group, and every device of its inventory, with the ViewId that it leads to."""
    prefixes: dict[Network, int] = {}
    for view, (name, group) in enumerate(inputs.settings.groups.items()):
        prefixes |= dict.fromkeys(group.networks, view)
        prefixes |= {
            ip_network(device.address): view for device in inputs.devices.get(name, ()) if device.address is not None
        }
    return list(prefixes.items())


def client_prefixes(inputs: Inputs) -> Sequence[Network]:
    """Give the networks that may ask at all."""
    if inputs.settings.server.clients is not None:
        return list(dict.fromkeys(inputs.settings.server.clients))
    devices = (network for network, _ in device_prefixes(inputs))
    return list(dict.fromkeys((*USUAL_CLIENTS, *devices)))
