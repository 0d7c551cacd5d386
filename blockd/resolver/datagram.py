"""One question to one upstream server from a socket of its own, which the system tells of errors on the way."""

from __future__ import annotations

import errno
import socket

from blockd.endpoint import Endpoint
from blockd.fastpath import interface_index

#: Of linux/in.h and linux/in6.h: ICMP errors of every kind reach the socket, not only those the system calls fatal.
_IP_RECVERR, _IPV6_RECVERR = 11, 25
MAX_REPLY_OCTETS = 4096


def connect(server: Endpoint) -> socket.socket:
    """Open a socket that talks to a server alone, and send nothing. OSError when there is no way to it."""
    address: tuple[str, int] | tuple[str, int, int, int] = (str(server.address), server.port)
    if server.scope:
        index = interface_index(server.scope)
        if index is None:
            raise OSError(errno.ENODEV, f"there is no interface {server.scope}")
        address = (str(server.address), server.port, 0, index)
    one = socket.socket(server.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if server.family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            one.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        one.connect(address)
    except OSError:
        one.close()
        raise
    return one


class Datagram:
    """A query that was sent, and what came of it so far."""

    def __init__(self, server: Endpoint, query: bytes) -> None:
        """Send it. OSError when the system does not."""
        self._query = query
        self._socket = connect(server)
        try:
            self._socket.send(query)
        except OSError:
            self.close()
            raise

    def reply(self) -> bytes | None:
        """Give the reply with the query's ID, if it is there. OSError is what the system was told instead."""
        try:
            # A bound: noise must not keep the caller.
            for _ in range(8):
                reply = self._socket.recv(MAX_REPLY_OCTETS)
                if len(reply) >= 12 and reply[:2] == self._query[:2] and reply[2] & 0x80:
                    return reply
        except BlockingIOError:
            pass
        return None

    def close(self) -> None:
        """Wait no longer."""
        self._socket.close()
