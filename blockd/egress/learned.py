"""Where apps are, as answers say it: addresses with an end, and those that others have, too.

What an answer says is the word of whoever runs the zone. So nothing that is not on the public Internet is ever learned,
nor what the network itself needs; and an address that answers for names of nobody's apps is shared, and by default left
alone.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Literal

from blockd.egress.ends import Ends
from blockd.egress.ruleset import LEARNED
from blockd.settings.values import Address, Network

#: Addresses of names of nobody's apps that are remembered, and names of one.
OTHERS, NAMES = 200_000, 8
#: Seconds: an address stands at least so long, and at most.
LEAST, MOST = 300, 14 * 86_400
#: What is left of a bound for the kernel, whose own count is of elements that have ended, too.
ROOM = LEARNED - 5_000


@dataclass
class News:
    """What the firewall is to be told."""

    add: list[tuple[str, Address, int]] = field(default_factory=list)
    drop: list[tuple[str, Address]] = field(default_factory=list)
    #: Addresses that turned out to be others', too.
    shared: list[Address] = field(default_factory=list)


class Book:
    """Addresses by app; one thread at a time."""

    def __init__(self) -> None:
        """Start with nothing."""
        #: What is done with addresses that others have, too.
        self.shared_is: Literal["allow", "block", "log"] = "allow"
        #: Never learned: upstreams, resolvers, ourselves.
        self.protected: frozenset[Address] = frozenset()
        #: Likewise, as the config says.
        self.never: tuple[Network, ...] = ()
        #: What was learned and must not be any more, as of the last `follow`.
        self.not_ours: list[tuple[str, Address]] = []
        self.apps: dict[str, Ends] = {}
        #: Shared addresses: the names of nobody's apps that they answer for.
        self.shared: OrderedDict[Address, list[str]] = OrderedDict()
        #: Refusals by reason.
        self.refused: Counter[str] = Counter()
        self._others: OrderedDict[Address, list[str]] = OrderedDict()

    def hear(self, name: str, apps: Iterable[str], addresses: Sequence[Address], seconds: int, now: float) -> News:
        """Take an answer in: a name of these apps, or of none, leads to addresses for so long."""
        news, wanted = News(), [app for app in apps if app in self.apps]
        self._end(now)
        for address in addresses:
            if not wanted:
                self._hear_of_others(name, address, news)
                continue
            is_known = any(address in self.apps[app] for app in wanted)
            if not is_known and (why := self._why_not(address)) is not None:
                self.refused[why] += 1
                continue
            if address in self._others and address not in self.shared:
                self._share(address, news)
            is_spared = address in self.shared and self.shared_is != "block"
            for app in wanted:
                if is_spared and address not in self.apps[app]:
                    # A firewall may have it of before.
                    news.drop.append((app, address))
                self._learn(app, address, seconds, now, news)
        return news

    def _why_not(self, address: Address) -> str | None:
        plain = _plain(address)
        if not plain.is_global or plain.is_multicast or plain.is_reserved:
            return "reserved"
        return "protected" if self._is_ours(plain) else None

    def _is_ours(self, plain: Address) -> bool:
        return plain in self.protected or any(plain in network for network in self.never)

    def _learn(self, app: str, address: Address, seconds: int, now: float, news: News) -> None:
        known, until = self.apps[app], now + min(max(seconds, LEAST), MOST)
        if address not in known and len(known) >= ROOM:
            self.refused["full"] += 1
            return
        if until <= known.get(address):
            return
        known.put(address, until)
        if address not in self.shared or self.shared_is == "block":
            news.add.append((app, address, int(until - now)))

    def _hear_of_others(self, name: str, address: Address, news: News) -> None:
        names = self._others.pop(address, [])
        if name not in names and len(names) < NAMES:
            names.append(name)
        self._others[address] = names
        while len(self._others) > OTHERS:
            self._others.popitem(last=False)
        if address not in self.shared and any(address in known for known in self.apps.values()):
            self._share(address, news)

    def _share(self, address: Address, news: News) -> None:
        self.shared[address] = self._others[address]
        news.shared.append(address)
        while len(self.shared) > OTHERS:
            self.shared.popitem(last=False)
        if self.shared_is != "block":
            news.drop += [(app, address) for app, known in self.apps.items() if address in known]

    def _end(self, now: float) -> None:
        for known in self.apps.values():
            for address in known.tidy(now):
                if not any(address in other for other in self.apps.values()):
                    self.shared.pop(address, None)

    def follow(self, apps: Iterable[str]) -> None:
        """Learn of these apps from now on, and of no others."""
        self.apps = {app: self.apps.get(app) or Ends() for app in apps}
        # What is ours by now is left alone from now on.
        self.not_ours = [(app, a) for app, known in self.apps.items() for a in known if self._is_ours(_plain(a))]
        for app, address in self.not_ours:
            self.apps[app].drop(address)

    def left_alone(self) -> list[tuple[str, Address]]:
        """Give what a firewall may have of before and is to let go: shared addresses, and what is ours."""
        shared = [] if self.shared_is == "block" else self.shared
        ours = [(app, address) for app in self.apps for address in self.protected]
        spared = [(app, a) for a in shared for app, known in self.apps.items() if a in known]
        return [*self.not_ours, *ours, *spared]

    def keep(self, now: float) -> dict[str, Any]:
        """Give what is known, as JSON, for a start later on: seconds left, and names of shared addresses."""
        self._end(now)
        learned = {app: [[str(a), int(end - now)] for a, end in known.items()] for app, known in self.apps.items()}
        return {"learned": learned, "shared": [[str(a), names] for a, names in self.shared.items()]}

    def recall(self, kept: Any, passed: float, now: float) -> int:
        """Know again what was kept so many seconds ago, of apps that are followed; give how many rows cannot be used.

        ValueError when it is not what `keep` gives.
        """
        shared, learned = (kept.get(key) if isinstance(kept, dict) else None for key in ("shared", "learned"))
        if not isinstance(shared, list) or not isinstance(learned, dict):
            raise ValueError("expected what was learned, and what is shared")
        skipped = 0
        for row in shared:
            address, names = _kept_row(row)
            if address is None or not isinstance(names, list):
                skipped += 1
                continue
            self._others[address] = self.shared[address] = [str(name) for name in names[:NAMES]]
        for app, known in self.apps.items():
            rows = learned.get(app, [])
            for row in rows if isinstance(rows, list) else [rows]:
                address, left = _kept_row(row)
                if address is None or type(left) is not int:
                    skipped += 1
                elif left > passed and address not in known and len(known) < ROOM:
                    known.put(address, now + min(left - passed, MOST))
        return skipped

    def enforced(self, now: float) -> list[tuple[str, Address, int]]:
        """Give all that the firewall is to have: app, address, seconds left."""
        self._end(now)
        return [
            (app, address, max(1, int(until - now)))
            for app, known in self.apps.items()
            for address, until in known.items()
            if self.shared_is == "block" or address not in self.shared
        ]


def _plain(address: Address) -> Address:
    """Give the IPv4 address inside an IPv6 one, where there is one. RFC 4291 section 2.5.5.2."""
    return getattr(address, "ipv4_mapped", None) or address


def _kept_row(row: Any) -> tuple[Address | None, Any]:
    """Read an address and what is kept of it; no address where a row is something else."""
    if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str):
        return None, None
    try:
        return ip_address(row[0]), row[1]
    except ValueError:
        return None, None
