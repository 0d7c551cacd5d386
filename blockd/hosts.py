"""Host names and addresses as URLs and `Host` fields have them, in one form that can be compared."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

#: A name, an IPv4 address or an IPv6 address in brackets, and perhaps a port (RFC 3986 section 3.2, without users).
_AUTHORITY = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,254}))(?::(?P<port>[0-9]{0,5}))?"
)


def read_authority(text: str) -> tuple[str, int | None] | None:
    """Give the host, folded and without the root's dot, and the port; None where it is malformed."""
    found = _AUTHORITY.fullmatch(text)
    if found is None or (found["name"] and (".." in found["name"] or found["name"].startswith("."))):
        return None
    port = int(found["port"]) if found["port"] else None
    if port is not None and port > 65_535:
        return None
    try:
        host = str(IPv6Address(found["six"])) if found["six"] else found["name"].lower().removesuffix(".")
    except ValueError:
        return None
    return host, port


def read_host(text: str) -> str:
    """Read a host without a port, IPv6 with or without brackets. ValueError says what was expected."""
    try:
        return str(ip_address(text))
    except ValueError:
        found = read_authority(text)
    if found is None or found[1] is not None or text.endswith(":"):
        raise ValueError(f"expected a host name or an address, without a port; found {text!r}")
    return found[0]
