"""Addresses behind which many devices seem to be: by how many names they ask for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from ipaddress import ip_network

from blockd.settings.values import Address

log = logging.getLogger("blockd")

#: Names that are looked at in a minute, of one query in 64: about twenty a second, which no device keeps up.
MANY_NAMES = 20.0
#: Addresses that are remembered.
MOST = 1_000
#: Looks without many names after which an address is forgotten: an hour.
FORGOTTEN = 60


class LikelyForwarders:
    """Remembers them, and tells of each once."""

    def __init__(self) -> None:
        """Start with none."""
        #: Address -> names of the last minute in which it asked for many, of those that were looked at.
        self.found: dict[Address, float] = {}
        #: Looks since.
        self._quiet: dict[Address, int] = {}

    def look(
        self,
        busy: Iterable[tuple[Address, int, float]],
        listed: Callable[[Address], bool],
        shown: Callable[[Address], str],
    ) -> None:
        """Take a minute in. `listed` says whose word about others is believed; `shown` writes an address for people."""
        for address, queries, names in busy:
            if names < MANY_NAMES or listed(address):
                continue
            self._quiet[address] = 0
            if address not in self.found and len(self.found) < MOST:
                log.warning(
                    "%s asked for very many names (about %d queries in a minute): a forwarder? All devices behind it "
                    "get what it gets; have it say who asks, and list it under server.forwarders",
                    shown(address),
                    queries,
                )
                self.found[address] = names
        for address in list(self.found):
            self._quiet[address] = self._quiet.get(address, 0) + 1
            if listed(address) or self._quiet[address] > FORGOTTEN:
                del self.found[address], self._quiet[address]
        self._quiet = {address: looks for address, looks in self._quiet.items() if address in self.found}


def network_text(address: Address) -> str:
    """Write an address that is nobody's to know: its network alone."""
    return f"somebody in {ip_network((address, 24 if address.version == 4 else 48), strict=False)}"
