"""Connections that are open when an exemption ends: the kernel forgets them.

The rules refuse their next packet. With the entry goes what would not come by the rules any more: a flow that the
gateway forwards past them (flow offload), and answers to a translated address. linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from blockd.egress.netlink import ACKNOWLEDGE, DUMP, NETLINK_NETFILTER, ask, attribute, attributes, nest, request
from blockd.egress.ruleset import ENCRYPTED_DNS
from blockd.settings.values import Address, Network

#: Messages: all entries, one that goes. Attributes: the direction that began it, therein addresses and ports; the zone.
GET, DELETE = 1 << 8 | 1, 1 << 8 | 2
ORIGINAL, ADDRESSES, PORTS, ZONE = 1, 1, 2, 18
#: Source and destination of each version; the destination's port.
PLACES, PORT = {int(socket.AF_INET): (1, 2), int(socket.AF_INET6): (3, 4)}, 3
DNS = (53, 853)
#: Seconds for an answer; connections that are ended at once.
PATIENCE, MOST = 5.0, 10_000


@dataclass(frozen=True)
class Destinations:
    """Where an app is."""

    app: str
    addresses: Collection[Address]
    networks: Collection[Network]

    def hold(self, address: Address, port: int) -> bool:
        """Say whether a connection leads there."""
        return (
            address in self.addresses
            or any(address in network for network in self.networks)
            or (self.app == ENCRYPTED_DNS and port in DNS)
        )


def end(ended: Mapping[Address | str, Collection[Destinations]]) -> int:
    """End the connections of sources, or MACs, to these destinations; give how many. OSError when it cannot be done."""
    wanted: dict[bytes, list[Destinations]] = {}
    for source, there in _by_address(ended):
        wanted.setdefault(source.packed, []).extend(there)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as netlink:
        netlink.settimeout(PATIENCE)
        netlink.bind((0, 0))
        doomed = [one for _, entry in ask(netlink, request(GET, DUMP)) if (one := _doomed(entry, wanted)) is not None]
        for family, entry in doomed[:MOST]:
            # One that is gone by itself is as good.
            with contextlib.suppress(FileNotFoundError):
                list(ask(netlink, request(DELETE, ACKNOWLEDGE, family, entry)))
    return len(doomed[:MOST])


def _by_address(
    ended: Mapping[Address | str, Collection[Destinations]],
) -> Iterator[tuple[Address, Collection[Destinations]]]:
    yield from ((source, there) for source, there in ended.items() if not isinstance(source, str))
    if not any(isinstance(source, str) for source in ended):
        return
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        for message in netlink.get_neighbours():
            there, address = ended.get(str(message.get_attr("NDA_LLADDR"))), message.get_attr("NDA_DST")
            if there is not None and address is not None:
                yield ip_address(address), there


def _doomed(entry: bytes, wanted: Mapping[bytes, Collection[Destinations]]) -> tuple[int, bytes] | None:
    """Give an entry's family, and what names it, if it is to go."""
    family = entry[16]
    if family not in PLACES:
        return None
    found = attributes(entry)
    both = attributes(found[ORIGINAL], 0)
    addresses = attributes(both[ADDRESSES], 0)
    source, destination = (addresses[kind] for kind in PLACES[family])
    if source not in wanted:
        return None
    port = int.from_bytes(attributes(both[PORTS], 0).get(PORT, b""), "big")
    address = ip_address(destination)
    if not any(there.hold(address, port) for there in wanted[source]):
        return None
    zone = attribute(ZONE, found[ZONE]) if ZONE in found else b""
    return family, nest(ORIGINAL, found[ORIGINAL]) + zone
