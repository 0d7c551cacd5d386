"""Value types of config and catalogue: a bad value fails where it is read, with what would be right."""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import idna
from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from blockd.fastpath import fold_rule_name, read_presentation
from blockd.hosts import read_host

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


#: Of an integer in JSON that others write; no identifier, time or count has more.
MAX_DIGITS = 100


def to_ascii(text: str) -> str:
    """Turn an internationalised name into A-labels (UTS 46, not transitional). ValueError when it is none."""
    return text if text.isascii() else idna.encode(text, uts46=True).decode()


#: A label in presentation form: what an escape stands for is never a dot between labels.
_LABEL = re.compile(r"(?:\\.|[^\\.])+", re.DOTALL)


def read_presented_name(text: str) -> str:
    """Read any name in presentation form (RFC 1035 5.1), as the decisions log writes it: folded, no dot at the end.

    Labels that are not ASCII are internationalised. ValueError says what is wrong.
    """
    return read_presentation(_LABEL.sub(lambda label: to_ascii(label[0]), text))


def read_name(text: Any) -> str:
    """Read a domain name as rules write it: folded, A-labels, no dot at the end."""
    if not isinstance(text, str):
        raise ValueError("expected a domain name, such as tiktok.com")
    try:
        return fold_rule_name(to_ascii(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is no domain name: {error}") from None


def read_digits(text: str) -> int | str:
    """Read an integer of JSON; one of more digits than Python converts stays text, so that it spoils no other value."""
    return int(text) if len(text) <= MAX_DIGITS else text


def read_network(text: Any) -> Network:
    """Read a prefix; bits behind its length are a mistake, and so is a mapped IPv4 address."""
    if not isinstance(text, str):
        raise ValueError('expected a network, such as 10.20.0.0/16 or "2001:db8:20::/48"')
    try:
        network = ip_network(text)
    except ValueError as error:
        hint = ""
        with suppress(ValueError):
            hint = f"; did you mean {ip_network(text, strict=False)}?"
        raise ValueError(f"{text!r} is no network: {error}{hint}") from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError(f"{text!r} maps IPv4 addresses: write them as IPv4")
    return network


#: Brackets are for IPv6; without a port they may be left out. A scope is an interface by name or number (RFC 4007 11).
_SCOPED = r"[0-9a-fA-F:.]+(?:%[^\s/:%\[\]]{1,15})?"
_ENDPOINT = re.compile(rf"(?:\[(?P<six>{_SCOPED})\]|(?P<four>[0-9.]+|{_SCOPED}(?=$)))(?::(?P<port>[0-9]{{1,5}}))?")


def read_endpoint(text: Any, default_port: int | None = None) -> tuple[Address, int]:
    """Read ``address:port``, with brackets around IPv6; the port may go where there is a usual one."""
    address, scope, port = read_scoped(text, default_port)
    if scope:
        raise ValueError(f"{text!r} has a scope, which only upstream servers may have; leave out %{scope}")
    return address, port


def read_scoped(text: Any, default_port: int | None) -> tuple[Address, str, int]:
    """Read address, scope and port; a scope is an interface by name or number."""
    example = "10.0.0.53:53 or [2001:db8::53]:53"
    if not isinstance(text, str):
        raise ValueError(f'expected "address:port", such as {example}')
    found = _ENDPOINT.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        plain, _, scope = (found["six"] or found["four"]).partition("%")
        address = ip_address(plain)
    except ValueError:
        raise ValueError(f"{text!r} is no address and port, such as {example}") from None
    port = int(found["port"]) if found["port"] else default_port
    if port is None or not 0 < port < 65536:
        raise ValueError(f"{text!r} needs a port from 1 to 65535, such as {example}")
    return address, scope, port


def _read_upstream(text: Any) -> tuple[Address, int]:
    return read_endpoint(text, default_port=53)


def _read_percent(text: Any) -> float:
    if isinstance(text, int | float) and not isinstance(text, bool) and 0 <= text <= 1:
        return float(text)
    found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?)\s*%", text) if isinstance(text, str) else None
    if found is None or float(found[1]) > 100:
        raise ValueError("expected a percentage from 0% to 100%, such as 50%, or a share from 0 to 1")
    return float(found[1]) / 100


def _written(example: str) -> WithJsonSchema:
    # What the file has is text, whatever is made of it.
    return WithJsonSchema({"type": "string", "examples": [example]})


def _check_printable(text: str) -> str:
    text = text.strip()  # a YAML block ends with a line break
    if not text.isprintable():
        raise ValueError("expected printable characters: users read it")
    return text


#: Text that users read: no line breaks, no escapes.
Printable = Annotated[str, AfterValidator(_check_printable)]
#: A host as `Host` fields name it, without a port.
HostName = Annotated[str, AfterValidator(read_host)]
DomainName = Annotated[str, BeforeValidator(read_name)]
NetworkValue = Annotated[Network, BeforeValidator(read_network), _written("10.20.0.0/16")]
Endpoint = Annotated[tuple[Address, int], BeforeValidator(read_endpoint), _written("10.0.0.53:53")]


#: A share: written in per cent, kept as 0 to 1.
Percent = Annotated[
    float,
    BeforeValidator(_read_percent),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^[0-9]{1,3}(\.[0-9]+)?\s*%$"},
                {"type": "number", "minimum": 0, "maximum": 1},
            ],
            "examples": ["50%"],
        }
    ),
]


def _read_growth(text: Any) -> float:
    if isinstance(text, int | float) and not isinstance(text, bool) and text >= 0:
        return float(text)
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?)\s*%", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("expected a percentage, such as 200% for three times as many, or a share, such as 2")
    return float(found[1]) / 100


#: A share that may be more than all.
Growth = Annotated[
    float,
    BeforeValidator(_read_growth),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^[0-9]{1,6}(\.[0-9]+)?\s*%$"},
                {"type": "number", "minimum": 0},
            ],
            "examples": ["200%"],
        }
    ),
]


_UNITS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}


def _read_duration(text: Any) -> float:
    found = re.fullmatch(r"([0-9]{1,6})\s*(s|min|h|d)", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("expected a time with its unit, such as 30min, 6h or 1d")
    return float(found[1]) * _UNITS[found[2]]


#: A time: written with its unit, kept in seconds.
Duration = Annotated[
    float,
    BeforeValidator(_read_duration),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]{1,6}\s*(s|min|h|d)$", "examples": ["6h"]}),
]


def _read_https(text: Any) -> str:
    parts = urlsplit(text) if isinstance(text, str) and text.isascii() and text.isprintable() else None
    if parts is None or parts.scheme != "https" or not parts.hostname or " " in text:
        raise ValueError("expected a URL that begins with https://; who is on the way could change a list otherwise")
    if parts.username is not None:
        raise ValueError("expected a URL without a user and password: they would be read in logs")
    return urlunsplit(parts._replace(fragment=""))


HttpsUrl = Annotated[str, BeforeValidator(_read_https), WithJsonSchema({"type": "string", "pattern": "^https://"})]
Upstream = Annotated[tuple[Address, int], BeforeValidator(_read_upstream), _written("10.0.0.53")]
#: One, or a list.
Upstreams = Annotated[
    list[Upstream],
    BeforeValidator(
        lambda value: value if isinstance(value, list) else [value], json_schema_input_type=Upstream | list[Upstream]
    ),
]


def show_endpoint(endpoint: tuple[Address | str, int]) -> str:
    """Write an address and port the way :func:`read_endpoint` reads them."""
    address, port = endpoint
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
