"""Whether there is a way to an upstream server: the system is asked for a route, a silent server for an answer."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from blockd.endpoint import Endpoint
from blockd.resolver.datagram import Datagram, connect

#: A query for the name servers of the root, without EDNS: what follows the ID.
_ROOT_NS = bytes.fromhex("0100 0001 0000 0000 0000 00 0002 0001")
#: Looks for which a probe is waited for: the system gives up the search for a neighbour after three seconds.
_MAX_LOOKS = 4
#: Errors of this process or of its queues, which say nothing of the way.
_LOCAL_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


@dataclass(frozen=True)
class Sign:
    """What was found out of the way to a server."""

    #: The system's error; none where nothing is known to be wrong.
    error: int | None = None
    is_answered: bool = False


class Paths:
    """Looks that never wait: what one sends, a later one receives."""

    def __init__(self) -> None:
        """Start with nothing sent."""
        #: The probe of each suspected server, and for how many looks it is waited for.
        self._probes: dict[Endpoint, tuple[Datagram, int]] = {}

    def look(self, server: Endpoint, is_suspected: bool) -> Sign:
        """Ask for a route; ask a suspected server something, and see what came of what was asked before."""
        try:
            sign = self._received(server)
            if sign is not None:
                return sign
            if server not in self._probes and is_suspected:
                self._probes[server] = Datagram(server, os.urandom(2) + _ROOT_NS), _MAX_LOOKS
            else:
                connect(server).close()
        except OSError as error:
            self.forget(server)
            return Sign() if error.errno in _LOCAL_ERRORS else Sign(error.errno)
        return Sign()

    def _received(self, server: Endpoint) -> Sign | None:
        if server not in self._probes:
            return None
        probe, looks = self._probes[server]
        if probe.reply() is not None:
            self.forget(server)
            return Sign(is_answered=True)
        self._probes[server] = probe, looks - 1
        if looks <= 1:
            self.forget(server)
        return None

    def forget(self, server: Endpoint) -> None:
        """Wait for nothing from a server."""
        if (found := self._probes.pop(server, None)) is not None:
            found[0].close()

    def keep(self, servers: frozenset[Endpoint]) -> None:
        """Forget all other servers."""
        for server in self._probes.keys() - servers:
            self.forget(server)
