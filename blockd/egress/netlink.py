"""Messages of the kernel's packet filter and connection tracking, as far as blockd reads them. linux/netlink.h."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

NETLINK_NETFILTER = 12
#: Octets before a message's attributes: of netlink, and of netfilter.
HEADERS = 20
#: Of a request: what it is, that an answer is wanted, that all there is is wanted.
REQUEST, ACKNOWLEDGE, DUMP = 1, 4, 0x300
#: Messages that end an answer, the first with an error's number, which may be none.
ERROR, DONE = 2, 3


def request(kind: int, flags: int = 0, family: int = 0, attributes: bytes = b"", resource: int = 0) -> bytes:
    """Write a request: `kind` is the subsystem in its upper octet, and the message."""
    head = struct.pack("=IHHIIBB", HEADERS + len(attributes), kind, REQUEST | flags, 1, 0, family, 0)
    return head + struct.pack("!H", resource) + attributes


def ask(netlink: socket.socket, wanted: bytes) -> Iterator[tuple[int, bytes]]:
    """Give the messages of the answer to a request that has an end. OSError for an error."""
    netlink.send(wanted)
    while True:
        for kind, message in messages(netlink.recv(1 << 20)):
            if kind == ERROR and (number := -struct.unpack_from("=i", message, 16)[0]):
                raise OSError(number, os.strerror(number))
            if kind in (DONE, ERROR):
                return
            yield kind, message


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give the messages in what was read: kind, and all of it."""
    at = 0
    while at + HEADERS <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        yield kind, data[at : at + length]
        at += max(HEADERS, (length + 3) & ~3)


def attributes(data: bytes, at: int = HEADERS) -> dict[int, bytes]:
    """Give the attributes from there on by kind."""
    found = {}
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """Write an attribute."""
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nest(kind: int, value: bytes) -> bytes:
    """Write an attribute that holds others."""
    return attribute(0x8000 | kind, value)
