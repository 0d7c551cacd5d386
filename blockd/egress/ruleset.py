"""What is wanted, as nftables reads it: one table, `inet blockd`, put in force by one transaction.

A source is looked for by its MAC, by its address, by its network; the first that knows it leads to its group. There the
order is that of names: what is exempt or allowed, then what is blocked, then what is counted. Sets of learned addresses
and counters stay over changes, all else is made anew. nft(8).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from blockd.egress.wanted import Verdicts, Wanted, ranges
from blockd.settings.values import Address

TABLE = "inet blockd"
#: A counter that says whose the table is.
MARK = "made-by-blockd"
#: The app that stands for resolvers which are not ours: with it go DNS, and DNS over TLS and QUIC (RFC 7858, 9250).
ENCRYPTED_DNS = "encrypted-dns"
DNS_PORTS = "{ 53, 853 }"
#: The kind of a counter of TCP connections that are refused as they begin.
CONNECTIONS = "connections"
#: Addresses of a set of learned ones; it is a hash, whose size is a bound and takes no memory before.
LEARNED = 65_535
#: Seconds for which sources are remembered that wanted what is an app's, and how many: a sample, not a list of all.
SEEN, SEEN_SOURCES = 900, 4_096
#: Seconds that an exempt source stays beyond its end, so that one which goes on is not cut off before that is said.
GRACE = 0.5
#: Of a set whose elements end by themselves.
TIMED = " flags timeout;"
#: Elements of one command.
ELEMENTS = 5_000
#: Of a source that has no place of its own; networks decide.
ABSENT = ""
#: Key of a set and expression of a packet by version.
TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}
WORDS = {4: "ip", 6: "ip6"}


@dataclass(frozen=True)
class Objects:
    """Names of what the table holds."""

    chains: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    maps: frozenset[str] = frozenset()
    counters: frozenset[str] = frozenset()


def learned(app: str, version: int) -> str:
    """Name the set of an app's learned addresses."""
    return f"learned{version}-{app}"


def counter(kind: str, group: str, app: str) -> str:
    """Name a counter: what was blocked, monitored or exempt of an app in a group, and connections of the blocked."""
    return f"{kind}/{group}/{app}"


def ruleset(wanted: Wanted, now: float, there: Objects = Objects(), before: Wanted | None = None) -> str:
    """Write the transaction that puts it in force at a time in seconds since 1970; what is `there` beside it goes.

    Sources that are the same as `before`, which is in force for certain, stay as they are: they may be 100,000.
    """
    stays = before is not None and before.groups.keys() <= wanted.groups.keys()
    lines = [f"add table {TABLE}", f"add counter {TABLE} {MARK}"]
    lines.append(f"add chain {TABLE} forward {{ type filter hook forward priority -5; policy accept; }}")
    apps = sorted({app for one in wanted.groups.values() for app in one.apps})
    chains, sets, maps, counters = {"forward"}, set(), set(), {MARK}
    for group, verdicts in wanted.groups.items():
        chains |= {_group(group), *(_refusal(group, app) for app in verdicts.block)}
        counters |= {counter(kind, group, app) for kind, app in _counted(verdicts)}
    lines += [f"add counter {TABLE} {name}" for name in sorted(counters - {MARK})]
    lines += [f"add chain {TABLE} {name}" for name in sorted(chains - {"forward"})]
    # What was there leads nowhere from here on, so that whatever is not wanted can go.
    lines += [f"flush chain {TABLE} {name}" for name in sorted(chains | there.chains)]
    for version, kind in TYPES.items():
        places = [(one, group) for one, group in wanted.places.items() if one.version == version]
        stay = stays and before is not None and before.places == wanted.places
        lines += _map(f"sources{version}", kind, places, stay)
        spans = [(f"{first}-{last}", group) for first, last, group in ranges(wanted.networks, version) if group]
        lines += _map(f"ranges{version}", kind, spans, False, "; flags interval")
        maps |= {f"sources{version}", f"ranges{version}"}
        resolvers = [str(network) for network in wanted.resolvers if network.version == version]
        lines += _set(f"resolvers{version}", kind, " flags interval; auto-merge;", resolvers)
        # Full, it takes no more in; the rule goes on.
        flags = f"flags dynamic,timeout; timeout {SEEN}s; size {SEEN_SOURCES};"
        lines.append(f"add set {TABLE} seen{version} {{ type {kind}; {flags} }}")
        sets |= {f"resolvers{version}", f"seen{version}"}
        for app in apps:
            lines.append(f"add set {TABLE} {learned(app, version)} {{ type {kind}; flags timeout; size {LEARNED}; }}")
            networks = [str(network) for network in wanted.apps[app] if network.version == version]
            lines += _set(f"networks{version}-{app}", kind, " flags interval; auto-merge;", networks)
            lines += _set(f"exempt{version}-{app}", kind, TIMED, _exempt(wanted, app, version, now))
            sets |= {learned(app, version), f"networks{version}-{app}", f"exempt{version}-{app}"}
    for app in apps:
        lines += _set(f"exemptmac-{app}", "ether_addr", TIMED, _timed(wanted.exempt_macs.get(app, {}), now))
        sets.add(f"exemptmac-{app}")
    lines += _map(
        "macs", "ether_addr", wanted.macs.items(), stays and before is not None and before.macs == wanted.macs
    )
    maps.add("macs")
    lines += [f"add rule {TABLE} forward {rule}" for rule in _forward(wanted)]
    for group, verdicts in wanted.groups.items():
        lines += [f"add rule {TABLE} {_group(group)} {rule}" for rule in _rules(wanted, group, verdicts)]
        for app in verdicts.block:
            rules = _refusals(wanted, group, app, verdicts.is_named)
            lines += [f"add rule {TABLE} {_refusal(group, app)} {rule}" for rule in rules]
    lines += [f"delete chain {TABLE} {name}" for name in sorted(there.chains - chains)]
    lines += [f"delete set {TABLE} {name}" for name in sorted(there.sets - sets)]
    lines += [f"delete map {TABLE} {name}" for name in sorted(there.maps - maps)]
    lines += [f"delete counter {TABLE} {name}" for name in sorted(there.counters - counters)]
    return "\n".join(lines) + "\n"


def forgetting(addresses: Iterable[tuple[str, Address]]) -> str:
    """Write the transaction that takes learned addresses out, there or not."""
    lines: list[str] = []
    for app, address in addresses:
        name = learned(app, address.version)
        lines += [f"{verb} element {TABLE} {name} {{ {address} }}" for verb in ("add", "delete")]
    return "\n".join(lines) + "\n"


def moving(places: Iterable[tuple[Address, str | None, str | None]]) -> str:
    """Write the transaction that moves sources: address, the group before and after, each `ABSENT` for no place."""
    lines: list[str] = []
    for address, before, after in places:
        name = f"sources{address.version}"
        # It cannot be added with another verdict before it is gone.
        if before != ABSENT:
            lines.append(f"delete element {TABLE} {name} {{ {address} : {lead(before)} }}")
        if after != ABSENT:
            lines.append(f"add element {TABLE} {name} {{ {address} : {lead(after)} }}")
    return "\n".join(lines) + "\n"


def exempting(wanted: Wanted, now: float) -> str:
    """Write the transaction that has just these sources exempt."""
    lines: list[str] = []
    for app in sorted({app for one in wanted.groups.values() for app in one.apps}):
        for version in TYPES:
            exempt = _exempt(wanted, app, version, now)
            lines += [f"flush set {TABLE} exempt{version}-{app}", *_elements(f"exempt{version}-{app}", exempt)]
        macs = _timed(wanted.exempt_macs.get(app, {}), now)
        lines += [f"flush set {TABLE} exemptmac-{app}", *_elements(f"exemptmac-{app}", macs)]
    return "\n".join(lines) + "\n"


def _exempt(wanted: Wanted, app: str, version: int, now: float) -> list[str]:
    return _timed({one: end for one, end in wanted.exempt.get(app, {}).items() if one.version == version}, now)


def _timed(ends: Mapping[Any, float], now: float) -> list[str]:
    """Give what has not ended, each with the time that is left: it ends in the kernel though nobody says so."""
    return [f"{one} timeout {duration(end - now + GRACE)}" for one, end in ends.items() if end > now]


def duration(seconds: float) -> str:
    """Write a time as nft reads it: a number of more than eight digits is an error there, such as 28 hours in ms."""
    left, milliseconds = divmod(int(seconds * 1000), 1000)
    days, left = divmod(left, 86_400)
    return f"{days}d{left}s{milliseconds}ms"


def _group(group: str) -> str:
    return f"group-{group}"


def _refusal(group: str, app: str) -> str:
    return f"refuse/{group}/{app}"


def lead(group: str | None) -> str:
    """Write the verdict that leads a source to its group."""
    # To somewhere that no other source comes back from: what follows is for those who are not known by this.
    return "accept" if group is None else f"goto {_group(group)}"


def _counted(verdicts: Verdicts) -> Iterator[tuple[str, str]]:
    for app in verdicts.block:
        yield from (("blocked", app), (CONNECTIONS, app), ("exempt", app))
    for app in verdicts.monitor:
        yield "monitored", app


def _set(name: str, kind: str, flags: str, elements: list[str]) -> list[str]:
    return [
        f"add set {TABLE} {name} {{ type {kind};{flags} }}",
        f"flush set {TABLE} {name}",
        *_elements(name, elements),
    ]


def _map(
    name: str, kind: str, leads: Iterable[tuple[object, str | None]], stays: bool, flags: str = ""
) -> Iterator[str]:
    yield f"add map {TABLE} {name} {{ type {kind} : verdict{flags}; }}"
    if not stays:
        yield f"flush map {TABLE} {name}"
        yield from _elements(name, [f"{one} : {lead(group)}" for one, group in leads])


def _elements(name: str, elements: list[str], verb: str = "add") -> list[str]:
    return [
        f"{verb} element {TABLE} {name} {{ {', '.join(elements[at : at + ELEMENTS])} }}"
        for at in range(0, len(elements), ELEMENTS)
    ]


def _forward(wanted: Wanted) -> Iterator[str]:
    # Our resolvers ask others, whoever's network they stand in.
    for version, word in WORDS.items():
        yield f"{word} saddr @resolvers{version} meta l4proto {{ tcp, udp }} th dport {DNS_PORTS} accept"
    yield "ether saddr vmap @macs"
    for version, word in WORDS.items():
        yield f"{word} saddr vmap @sources{version}"
        yield f"{word} saddr vmap @ranges{version}"


def _to(app: str) -> Iterator[tuple[int, str]]:
    """Give the matches that say that a packet goes to an app, with the version that each is about."""
    for version, word in WORDS.items():
        yield version, f"{word} daddr @{learned(app, version)}"
        yield version, f"{word} daddr @networks{version}-{app}"
    if app == ENCRYPTED_DNS:
        for version, protocol in ((4, "ipv4"), (6, "ipv6")):
            yield version, f"meta nfproto {protocol} meta l4proto {{ tcp, udp }} th dport {DNS_PORTS}"


def _rules(wanted: Wanted, group: str, verdicts: Verdicts) -> Iterator[str]:
    for version, word in WORDS.items():
        yield f"{word} daddr @resolvers{version} meta l4proto {{ tcp, udp }} th dport {DNS_PORTS} accept"
    for app in verdicts.block:
        name = counter("exempt", group, app)
        for version, match in _to(app):
            yield f"{WORDS[version]} saddr @exempt{version}-{app} {match} counter name {name} accept"
            yield f"ether saddr @exemptmac-{app} {match} counter name {name} accept"
    for app in verdicts.allow:
        for _, match in _to(app):
            yield f"{match} accept"
    for app in verdicts.block:
        for version, match in _to(app):
            spared = _spared(wanted, verdicts, version) if match.endswith(learned(app, version)) else ""
            yield f"{match}{spared} goto {_refusal(group, app)}"
    for app in verdicts.monitor:
        for version, match in _to(app):
            seen = f" update @seen{version} {{ {WORDS[version]} saddr counter }}" if verdicts.is_named else ""
            yield f"{match}{seen} counter name {counter('monitored', group, app)}"


def _spared(wanted: Wanted, verdicts: Verdicts, version: int) -> str:
    """Match what is no address of an app that this group may reach: it is shared, and let through."""
    others = {app for one in wanted.groups.values() for app in one.apps} - set(verdicts.block) if wanted.spares else ()
    return "".join(f" {WORDS[version]} daddr != @{learned(app, version)}" for app in sorted(others))


def _refusals(wanted: Wanted, group: str, app: str, is_named: bool) -> Iterator[str]:
    for version, word in WORDS.items() if is_named else ():
        yield f"update @seen{version} {{ {word} saddr counter }}"
    yield f"counter name {counter('blocked', group, app)}"
    yield f"tcp flags & (syn | ack) == syn counter name {counter(CONNECTIONS, group, app)}"
    if wanted.answer == "drop":
        yield "drop"
        return
    yield "meta l4proto tcp reject with tcp reset"
    yield "reject with icmpx type admin-prohibited"
