"""Who has an address, and why: networks, inventories and leases side by side, for people."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address
from typing import Any

from blockd.devices.inventory import Device, lines_of, read_mac
from blockd.devices.placement import Place, Placement
from blockd.policy.inputs import Inputs
from blockd.policy.views import group_views
from blockd.settings.schema import UNIDENTIFIED
from blockd.settings.values import Address

#: Of an answer about a name that many devices have.
MOST = 100


def network_group(inputs: Inputs, address: Address) -> str:
    """Give the group that networks put an address in, the longest one first."""
    held = [
        (network.prefixlen, group)
        for group, members in inputs.settings.groups.items()
        for network in members.networks
        if network.version == address.version and address in network
    ]
    return max(held)[1] if held else UNIDENTIFIED


def place_text(inputs: Inputs, placement: Placement, address: Address, now: float) -> str | None:
    """Say who has an address by its lease; None when no lease places it."""
    place = placement.places.get(address)
    if place is None or (place.group is None and not placement.is_elsewhere(address)):
        return None
    return f"{_who(inputs, place)}, {_by(place, now)}"


def _logged(inputs: Inputs) -> set[str]:
    """Name the groups whose devices may be named: of others nothing is said by address, by nobody to nobody."""
    return {view.group for view in group_views(inputs) if view.is_logged}


def _who(inputs: Inputs, place: Place) -> str:
    if place.device is None:
        return "a device of no inventory"
    if place.device.is_shared:
        return "one of several devices that share its MAC"
    return str(place.device) if place.group in _logged(inputs) else "a device"


def _by(place: Place, now: float) -> str:
    return f"by {_source(place)}, {_left(place, now)}, {place.state}"


def _source(place: Place) -> str:
    return "the neighbour table" if place.feed.format == "neighbours" else f"its lease ({place.feed.file})"


def _left(place: Place, now: float) -> str:
    left = place.lease.expires - now
    if left == float("inf"):
        return "without end"
    return f"for {left:.0f} s more" if left > 0 else f"ended {-left:.0f} s ago"


def devices_of(inputs: Inputs, placement: Placement | None, who: str, now: float) -> dict[str, Any]:
    """Count devices and feeds; with `who`, an address, a MAC, a serial or a hostname, give all that is known of it."""
    if who:
        return _found(inputs, placement, who, now)
    groups = [
        {
            "group": group,
            "networks": len(members.networks),
            "inventory": lines_of(inputs.devices.get(group, ())),
            "leased": 0 if placement is None else sum(place.group == group for place in placement.places.values()),
        }
        for group, members in inputs.settings.groups.items()
    ]
    feeds = [
        {
            "file": str(feed.file),
            "format": feed.format,
            "leases": len(feed.leases),
            "skipped": feed.skipped.total,
            "records": feed.skipped.as_json(),
            "age": None if not feed.confirmed else now - feed.confirmed,
            "problem": feed.problem,
        }
        for feed in (placement.feeds if placement is not None else ())
    ]
    inventories = [
        {
            "group": group,
            "file": str(inventory.file),
            "devices": inventory.used,
            "records": inventory.records,
            **inventory.skipped.as_json(),
        }
        for group, _, inventory in inputs.inventories
    ]
    states = Counter(place.state for place in placement.places.values()) if placement is not None else {}
    return {"ok": True, "groups": groups, "inventories": inventories, "feeds": feeds, "states": dict(states)}


def _found(inputs: Inputs, placement: Placement | None, who: str, now: float) -> dict[str, Any]:
    devices: list[tuple[str, Device]] = []
    addresses: set[Address] = set()
    places = {} if placement is None else placement.places
    logged = _logged(inputs)
    everybody = [(group, device) for group in logged for device in inputs.devices.get(group, ())]
    try:
        address = ip_address(who)
        addresses.add(getattr(address, "ipv4_mapped", None) or address)
    except ValueError:
        try:
            mac = read_mac(who)
            devices = [(group, device) for group, device in everybody if device.mac == mac]
            addresses |= {
                address
                for address, place in places.items()
                if place.lease.mac == mac and (place.group or network_group(inputs, address)) in logged
            }
        except ValueError:
            devices = [(group, device) for group, device in everybody if who in device.names]
    macs = {device.mac for _, device in devices if device.mac}
    addresses |= {device.address for _, device in devices if device.address is not None}
    addresses |= {address for address, place in places.items() if place.lease.mac in macs}
    for address in list(addresses):
        place = places.get(address)
        if place is not None and place.device is not None and place.group in logged:
            addresses |= {
                other for other, held in places.items() if held.device and held.device.is_one_with(place.device)
            }
    rows = [_row(inputs, placement, address, now) for address in sorted(addresses, key=lambda a: (a.version, int(a)))]
    untied = [
        str(device.mac)
        for _, device in devices
        if device.mac and not any(p.lease.mac == device.mac for p in places.values())
    ]
    if not rows and not devices:
        return {"ok": False, "error": f"nothing is known of {who!r}: it is in no inventory and no lease"}
    return {"ok": True, "addresses": rows[:MOST], "more": max(0, len(rows) - MOST), "without_lease": untied[:MOST]}


def _row(inputs: Inputs, placement: Placement | None, address: Address, now: float) -> dict[str, Any]:
    place = None if placement is None else placement.places.get(address)
    elsewhere = placement is not None and placement.is_elsewhere(address)
    group, logged = network_group(inputs, address), _logged(inputs)
    evidence = [{"source": "networks", "says": group}]
    for name, members in inputs.devices.items():
        # A line with several MACs is several entries with one address.
        lines = {(device.file, device.line): device for device in members if device.address == address}
        for device in lines.values():
            what = str(device) if name in logged else "a device"
            why = "; another device has the address now" if elsewhere else ""
            evidence.append({"source": f"inventory {device.file}:{device.line}", "says": f"{name}: {what}{why}"})
            group = group if elsewhere else name
    if place is not None:
        mac = f"MAC {place.lease.mac or 'unknown'}" if (place.group or group) in logged else "its MAC"
        said = f"{mac} is in no inventory" if place.device is None else f"{place.group}: {_who(inputs, place)}"
        source = "neighbours" if place.feed.format == "neighbours" else f"lease {place.feed.file}"
        evidence.append({"source": source, "says": f"{said}; {place.state}, {_left(place, now)}"})
        group = place.group or group
    return {"address": str(address), "group": group, "evidence": evidence}
