"""What the packet filter is to do, as the daemon says it and the firewall's process reads it.

The daemon parses packets of strangers and is believed in nothing that could be text of nftables: names are checked, and
addresses and networks are values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from blockd.settings.values import Address, Network

#: Names of groups and apps.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
#: Who is exempt: app -> source, or MAC -> until when, seconds since 1970.
Exempt = Mapping[str, Mapping[Address, float]]
ExemptMacs = Mapping[str, Mapping[str, float]]
#: Of everything that is listed; more is a mistake.
MOST = 2_000_000


@dataclass(frozen=True)
class Verdicts:
    """What a group gets: names of apps, none in two."""

    block: tuple[str, ...] = ()
    monitor: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    #: Whether its devices may be named: then refused sources are kept for a while.
    is_named: bool = False

    @property
    def apps(self) -> tuple[str, ...]:
        """Give all of them."""
        return (*self.block, *self.monitor, *self.allow)


@dataclass
class Wanted:
    """All of it."""

    generation: str
    #: Groups that meet anything at all; of others nothing is touched.
    groups: dict[str, Verdicts] = field(default_factory=dict)
    #: The longest that holds a source wins; None is a group of which nothing is touched.
    networks: dict[Network, str | None] = field(default_factory=dict)
    #: Sources that evidence puts elsewhere than their network.
    places: dict[Address, str | None] = field(default_factory=dict)
    #: The same by MAC, for links of the gateway.
    macs: dict[str, str | None] = field(default_factory=dict)
    #: App -> its networks.
    apps: dict[str, tuple[Network, ...]] = field(default_factory=dict)
    #: App -> sources that are exempt now -> until when without another word, seconds since 1970.
    exempt: dict[str, dict[Address, float]] = field(default_factory=dict)
    #: App -> MACs of those, likewise.
    exempt_macs: dict[str, dict[str, float]] = field(default_factory=dict)
    #: Who may be asked for names.
    resolvers: tuple[Network, ...] = ()
    #: `reject` or `drop`.
    answer: str = "reject"
    #: Whether an address that another app has, too, is let through for a group that may reach that one.
    spares: bool = True

    def as_json(self) -> dict[str, Any]:
        """Write it for the other side."""
        return {
            "generation": self.generation,
            "groups": {
                name: {"block": one.block, "monitor": one.monitor, "allow": one.allow, "named": one.is_named}
                for name, one in self.groups.items()
            },
            "networks": [[str(network), group] for network, group in self.networks.items()],
            "places": [[str(address), group] for address, group in self.places.items()],
            "macs": [[mac, group] for mac, group in self.macs.items()],
            "apps": {app: [str(network) for network in networks] for app, networks in self.apps.items()},
            **exempt_json(self.exempt, self.exempt_macs),
            "resolvers": [str(network) for network in self.resolvers],
            "answer": self.answer,
            "spares": self.spares,
        }


def exempt_json(exempt: Exempt, macs: ExemptMacs) -> dict[str, Any]:
    """Write who is exempt, the part that changes by itself."""
    return {
        "exempt": {app: [[str(one), end] for one, end in own.items()] for app, own in exempt.items()},
        "exempt_macs": {app: [[mac, end] for mac, end in own.items()] for app, own in macs.items()},
    }


def read_wanted(value: Any) -> Wanted:
    """Read what `as_json` wrote. ValueError when it is something else."""
    try:
        groups = {
            _name(name): Verdicts(
                _names(one["block"]), _names(one["monitor"]), _names(one["allow"]), bool(one["named"])
            )
            for name, one in value["groups"].items()
        }
        wanted = Wanted(
            generation=str(value["generation"])[:200],
            groups=groups,
            networks={_network(network): _group(group, groups) for network, group in _some(value["networks"])},
            places=read_places(value["places"], groups),
            macs={_mac(mac): _group(group, groups) for mac, group in _some(value["macs"])},
            apps={_name(app): tuple(map(_network, own)) for app, own in value["apps"].items()},
            exempt=read_exempt(value["exempt"]),
            exempt_macs=read_macs(value["exempt_macs"]),
            resolvers=tuple(map(_network, value["resolvers"])),
            answer=str(value["answer"]),
            spares=bool(value["spares"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"what the daemon says is not whole: {type(error).__name__}: {error}") from None
    if wanted.answer not in ("reject", "drop"):
        raise ValueError("expected reject or drop")
    if lacking := {app for one in groups.values() for app in one.apps} - wanted.apps.keys():
        raise ValueError(f"of {sorted(lacking)[0]} nothing is said")
    return wanted


def read_places(value: Any, groups: Mapping[str, Verdicts]) -> dict[Address, str | None]:
    """Read sources and their groups. ValueError when it is something else."""
    return {_address(address): _group(group, groups) for address, group in _some(value)}


def read_exempt(value: Any) -> dict[str, dict[Address, float]]:
    """Read who is exempt from what, and until when. ValueError when it is something else."""
    return {_name(app): {_address(one): _moment(end) for one, end in _some(own)} for app, own in value.items()}


def read_macs(value: Any) -> dict[str, dict[str, float]]:
    """Read MACs that are exempt, and until when. ValueError when it is something else."""
    return {_name(app): {_mac(mac): _moment(end) for mac, end in _some(own)} for app, own in value.items()}


def read_status(value: Any) -> dict[str, Any]:
    """Read how a firewall stands. ValueError when it is something else: a peer must not break what others show."""
    try:
        generation = value["generation"]
        table = str(value.get("table") or "")[:100]
        if generation is None:
            return {"generation": None, "problem": _text(value.get("problem")), "table": table}
        rows = [
            {"what": _name(row["what"]), "group": _name(row["group"]), "app": _name(row["app"])}
            | {key: int(row[key]) for key in ("packets", "octets")}
            for row in _some(value["counters"])[:10_000]
        ]
        counts = {
            key: {_name(app): int(count) for app, count in value[key].items()}
            for key in ("refused", "learned", "networks", "exempt")
        }
        sources = list(value["seen"].items())[:1_000]
        return {
            "generation": str(generation)[:200],
            "problem": _text(value.get("problem")),
            "table": table,
            **{key: int(value[key]) for key in ("drift", "applied", "sources", "ranges", "macs", "ended")},
            "took": float(value["took"]),
            **counts,
            "counters": rows,
            "seen": {str(_address(source)): int(packets) for source, packets in sources},
        }
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"this is no status: {type(error).__name__}: {error}") from None


def read_learned(value: Any) -> list[tuple[str, Address, int]]:
    """Read app, address and seconds. ValueError when it is something else."""
    return [(_name(app), _address(address), min(max(int(seconds), 1), 15 * 86_400)) for app, address, seconds in value]


def ranges(networks: Mapping[Network, str | None], version: int) -> list[tuple[Address, Address, str | None]]:
    """Give networks of one version as ranges that do not overlap: the longest network wins."""
    make = IPv4Address if version == 4 else IPv6Address
    found: list[tuple[int, int, str | None]] = []

    def put(first: int, last: int, group: str | None) -> None:
        if first > last:
            return
        if found and found[-1][2] == group and found[-1][1] + 1 == first:
            found[-1] = (found[-1][0], last, group)
        else:
            found.append((first, last, group))

    #: Networks that hold the place that is looked at: end and group, and where what is not said yet begins.
    around: list[tuple[int, str | None]] = []
    at = 0
    ordered = sorted(
        (
            (int(one.network_address), int(one.broadcast_address), group)
            for one, group in networks.items()
            if one.version == version
        ),
        key=lambda one: (one[0], -one[1]),
    )
    for first, last, group in ordered:
        while around and around[-1][0] < first:
            end, own = around.pop()
            put(at, end, own)
            at = end + 1
        if around:
            put(at, first - 1, around[-1][1])
        at = first
        around.append((last, group))
    while around:
        end, own = around.pop()
        put(at, end, own)
        at = max(at, end + 1)
    return [(make(first), make(last), group) for first, last, group in found]


def _moment(value: Any) -> float:
    # Beyond it is a mistake; and what is not a number is not before anything.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise ValueError("expected seconds since 1970")
    return float(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)[:500]


def _some(value: Any) -> Any:
    if not isinstance(value, list) or len(value) > MOST:
        raise ValueError(f"expected a list of at most {MOST}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(f"{value!r:.50} is no name")
    return value


def _names(value: Any) -> tuple[str, ...]:
    return tuple(map(_name, _some(list(value) if isinstance(value, tuple) else value)))


def _group(value: Any, groups: Mapping[str, Verdicts]) -> str | None:
    if value is not None and value not in groups:
        raise ValueError(f"{value!r:.50} is no group")
    return None if value is None else str(value)


def _mac(value: Any) -> str:
    if not isinstance(value, str) or not MAC.fullmatch(value):
        raise ValueError(f"{value!r:.50} is no MAC")
    return value


def _address(value: Any) -> Address:
    address = ip_address(str(value))
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError("an address with an interface")
    return address


def _network(value: Any) -> IPv4Network | IPv6Network:
    return ip_network(str(value))
