"""Values of the config about upstream servers: where one is reached, and what IPv6 addresses it writes."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from blockd.endpoint import Endpoint
from blockd.settings.values import read_network, read_scoped


def read_upstream(text: Any) -> Endpoint:
    """Read an upstream server: ``address:port``, port 53 by default, a link-local address with its interface."""
    address, scope, port = read_scoped(text, 53)
    needs_scope = address.version == 6 and address.is_link_local
    if needs_scope and not scope:
        raise ValueError(f"{text!r} is link-local and needs its interface, such as [{address}%eth0]:{port}")
    if scope and not needs_scope:
        raise ValueError(f"{text!r} is not link-local; leave out %{scope}")
    return Endpoint(address, port, scope)


#: The prefix lengths of RFC 6052 2.2.
NAT64_LENGTHS = (32, 40, 48, 56, 64, 96)


def _read_nat64_prefix(text: Any) -> IPv6Network:
    network = read_network(text)
    if network.version != 6 or network.prefixlen not in NAT64_LENGTHS:
        lengths = ", ".join(f"/{length}" for length in NAT64_LENGTHS)
        raise ValueError(f"{text!r} is not a NAT64 prefix; expected IPv6 with one of the lengths {lengths} (RFC 6052)")
    if network.network_address.packed[8]:
        raise ValueError(f"{text!r} is not a NAT64 prefix; its bits 64 to 71 must be zero (RFC 6052 2.2)")
    return network


UpstreamServer = Annotated[
    Endpoint, BeforeValidator(read_upstream), WithJsonSchema({"type": "string", "examples": ["10.0.0.53"]})
]
Nat64Prefix = Annotated[
    IPv6Network,
    BeforeValidator(_read_nat64_prefix),
    WithJsonSchema({"type": "string", "examples": ["2001:db8:64::/96"]}),
]
