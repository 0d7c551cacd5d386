"""Where an upstream server is reached: one value from the config to the hot path, its metrics and its streams."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal, TypeAlias

#: How a server is spoken to. ``dns`` is UDP, and TCP where a datagram is not enough.
Transport: TypeAlias = Literal["dns"]
#: An endpoint as the hot path gives it: transport, address, scope, port, name.
Native: TypeAlias = tuple[str, str, str, int, str]


@dataclass(frozen=True)
class Endpoint:
    """A server; the hot path reads these fields by their names."""

    address: IPv4Address | IPv6Address
    port: int
    #: The interface of a link-local address, by name or number (RFC 4007 11); empty for any other address.
    scope: str = ""
    transport: Transport = "dns"
    #: The name that its certificate must have; empty for a transport without certificates.
    name: str = ""

    def __str__(self) -> str:
        """Give it as the config has it."""
        return f"[{self.host}]:{self.port}" if self.address.version == 6 else f"{self.host}:{self.port}"

    @property
    def host(self) -> str:
        """Give the address with its scope, as sockets take it."""
        return f"{self.address}%{self.scope}" if self.scope else str(self.address)

    @property
    def family(self) -> socket.AddressFamily:
        """Give the family of its sockets."""
        return socket.AF_INET6 if self.address.version == 6 else socket.AF_INET

    @classmethod
    def from_native(cls, native: Native) -> Endpoint:
        """Read what the hot path gives."""
        _, address, scope, port, name = native
        return cls(ip_address(address), port, scope, "dns", name)
