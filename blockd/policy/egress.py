"""What the firewall is to do, as the policy has it: the same groups, apps, devices and exemptions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from blockd.egress.wanted import Verdicts, Wanted
from blockd.exemptions.schedule import HORIZON
from blockd.policy.inputs import Inputs
from blockd.policy.views import group_views
from blockd.settings.schema import UNIDENTIFIED
from blockd.settings.values import Address, Network


def wanted_of(inputs: Inputs, generation: str) -> Wanted:
    """Give all but where devices are by evidence, and who is exempt.

    Unidentified sources are left alone: they are the Internet, too.
    """
    settings = inputs.settings
    groups = {
        view.group: Verdicts(
            tuple(sorted(view.block)), tuple(sorted(view.monitor)), tuple(sorted(view.allow)), view.is_logged
        )
        for view in group_views(inputs)
        if view.group != UNIDENTIFIED and (view.block or view.monitor)
    }
    networks: dict[Network, str | None] = {}
    places: dict[Address, str | None] = {}
    macs: dict[str, str | None] = {}
    for name, group in settings.groups.items():
        own = name if name in groups else None
        networks |= dict.fromkeys(group.networks, own)
        for device in inputs.devices.get(name, ()):
            if device.address is not None:
                places[device.address] = own
            if device.mac:
                macs[device.mac] = own
    apps = {app for one in groups.values() for app in one.apps}
    return Wanted(
        generation=generation,
        groups=groups,
        networks=networks,
        places=places,
        macs=macs,
        apps={app: tuple(inputs.catalogue.entries[app].app.networks) for app in sorted(apps)},
        resolvers=tuple(dict.fromkeys((*settings.egress.resolvers, *map(ip_network, own_addresses(inputs))))),
        answer=settings.egress.answer,
        spares=settings.egress.shared != "block",
    )


def own_addresses(inputs: Inputs) -> list[Address]:
    """Give the addresses on which this resolver answers."""
    return [address for address, _ in inputs.settings.server.listen if not address.is_unspecified]


def protected(inputs: Inputs) -> frozenset[Address]:
    """Give what must never be refused, whatever an answer says."""
    addresses = [server.address for servers in inputs.routes().values() for server in servers]
    resolvers = [one.network_address for one in inputs.settings.egress.resolvers if one.num_addresses == 1]
    return frozenset((*addresses, *resolvers, *own_addresses(inputs)))


def names_of(inputs: Inputs, apps: Iterable[str]) -> list[str]:
    """Name what of apps can be looked up."""
    entries = [inputs.catalogue.entries[app].app for app in apps]
    return list(dict.fromkeys(name for app in entries for name in (*app.suffixes, *app.hosts)))


def exempt_at(
    devices: Sequence[tuple[Address | int, int]],
    slots: Sequence[Sequence[tuple[float, int]]],
    first_view: int,
    apps: Sequence[frozenset[str]],
    now: float,
) -> tuple[dict[str, dict[Address, float]], dict[str, dict[str, float]], float | None]:
    """Give who is exempt from what at a moment, by address and by MAC, each until when, and when that changes next.

    `devices` and `slots` are as the hot path is told: a view's number, or that of a slot behind all views.
    """
    addresses: dict[str, dict[Address, float]] = {}
    macs: dict[str, dict[str, float]] = {}
    moments: list[float] = []
    for whose, number in devices:
        view, later = number, list[tuple[float, int]]()
        if number >= first_view + len(apps):
            slot = slots[number - first_view - len(apps)]
            view = max((step for step in slot if step[0] <= now), default=(0.0, 0))[1]
            later = sorted(step for step in slot if step[0] > now)
            moments += [moment for moment, _ in later]
        for app in _apps_of(view, first_view, apps):
            # Not where another one's exemption ends: this goes on though nobody says so.
            ends = (moment for moment, to in later if app not in _apps_of(to, first_view, apps))
            end = next(ends, now + HORIZON)
            if isinstance(whose, int):
                digits = f"{whose:012x}"
                macs.setdefault(app, {})[":".join(digits[at : at + 2] for at in range(0, 12, 2))] = end
            else:
                addresses.setdefault(app, {})[whose] = end
    return addresses, macs, min(moments, default=None)


def _apps_of(view: int, first_view: int, apps: Sequence[frozenset[str]]) -> frozenset[str]:
    return apps[view - first_view] if first_view <= view < first_view + len(apps) else frozenset()
