"""All that a policy is made of, read once: settings, catalogue, lists, and the bytes of every file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from blockd import __version__
from blockd.apps.catalogue import Catalogue, load_catalogue
from blockd.devices import Device, Inventory, are_several, read_inventory
from blockd.endpoint import Endpoint
from blockd.fastpath import interface_index, own_addresses
from blockd.policy.app_sets import AppSets, Named, Resolved, read_sets, resolve, unknown
from blockd.problems import InputError, Problem, Skipped
from blockd.review.decisions import Decided, read_decided
from blockd.settings.document import Document
from blockd.settings.load import check_gateways, load_settings
from blockd.settings.schema import Policy, Settings
from blockd.settings.source import Disk, Source
from blockd.settings.upstreams import read_upstream
from blockd.settings.values import Address, show_endpoint

#: In the state directory: lists that come from elsewhere.
FETCHED = "lists"
#: In the state directory: what was decided of apps.
DECIDED = "decided.json"
RESOLV_CONF = Path("/etc/resolv.conf")


@dataclass
class Inputs:
    """Settings and catalogue with the files that they came from."""

    config: Path
    #: With every set of apps replaced by its apps.
    settings: Settings
    document: Document
    catalogue: Catalogue
    system_servers: tuple[Endpoint, ...]
    source: Source
    #: The devices of each group's inventory.
    devices: dict[str, list[Device]]
    #: Each inventory with its group, and its file as the config names it.
    inventories: list[tuple[str, str, Inventory]]
    #: What was decided of apps, over what policies say of them.
    decided: Decided
    #: What of the file with decisions cannot be used.
    skipped_decided: Skipped
    #: App -> groups that a decision on it concerns, by their policies as they were written.
    decidable: dict[str, list[str]]
    sets: AppSets
    #: Group -> app that its policy names -> how.
    named: dict[str, dict[str, Named]]
    #: App -> the first set by which a policy, or exemptions.apps, names it: one for all groups.
    set_of: dict[str, str]

    def relative(self, path: str) -> Path:
        """Find a path that the config gives: relative to the config file."""
        return self.config.parent / path

    def default_servers(self) -> tuple[Endpoint, ...]:
        """Give the servers of the default route."""
        servers = self.settings.upstream.servers
        return self.system_servers if servers == "system" else tuple(servers)

    def routes(self) -> dict[str | None, tuple[Endpoint, ...]]:
        """Give the servers of each route: the default one, which has no name, and those of zones."""
        return {
            None: self.default_servers(),
            **{zone: tuple(own) for zone, own in self.settings.upstream.zones.items()},
        }

    def blocked_apps(self, policy: Policy) -> list[str]:
        """Name the apps that a policy blocks: its own, and those that come with any block."""
        return [*policy.block, *_companions(policy, self.catalogue)]

    def live_apps(self) -> list[str]:
        """Name the apps that a policy names or brings along, or that may be exempt, in order; each is one bit."""
        policies = self.settings.policies.values()
        named = {app for p in policies for app in (*self.blocked_apps(p), *p.monitor, *p.allow)}
        return sorted({*named, *self.settings.exemptions.apps})

    def digest(self) -> str:
        """Tell inputs apart by content and path."""
        digest = hashlib.sha256(__version__.encode())
        for path in sorted(self.source.paths):
            digest.update(f"{path}\0{self.source.sha256(path)}\0".encode())
        return digest.hexdigest()


def read_inputs(config: Path, source: Source | None = None) -> Inputs:
    """Read everything that a config names. InputError has every problem that was found."""
    config = Path(os.path.abspath(config))
    source = Disk() if source is None else source
    settings, document = load_settings(config, source)
    apps = settings.apps
    directory = None if apps.directory is None else Path(os.path.abspath(config.parent / apps.directory))
    try:
        fetched = Path(os.path.abspath(config.parent / settings.state.directory)) / FETCHED
        catalogue = load_catalogue(apps.builtin, directory, source, fetched)
    except InputError as error:
        raise InputError([_in_config(problem, directory, document) for problem in error.problems]) from None
    sets, problems = read_sets(settings, document, catalogue)
    problems += _check_app_names(settings, document, catalogue, sets)
    resolved = resolve(settings, document, sets)
    settings = resolved.settings
    if not problems:
        # Of names that mean nothing, nothing more can be said.
        problems += [*resolved.problems, *_check_live_apps(resolved, document, catalogue)]
    problems += check_gateways(settings, document)
    system: tuple[Endpoint, ...] = ()
    if settings.upstream.servers == "system":
        lines = _system_servers(source.read(RESOLV_CONF))
        system = tuple(lines)
        if not system:
            text = f"servers: system, but {RESOLV_CONF} names no server; write their addresses"
            problems.append(document.problem(("upstream", "servers"), text))
        if source.is_current:
            problems += [
                Problem(str(RESOLV_CONF), line, "nameserver", why)
                for server, line in lines.items()
                if (why := _unusable(server, settings)) is not None
            ]
    if source.is_current:
        problems += _check_upstreams(settings, document)
    devices, inventories = _read_devices(settings, document, config, source, problems)
    file = decided_file(config, settings)
    data = source.read_if_there(file)
    decided, skipped_decided = ({}, Skipped()) if data is None else read_decided(file, data)
    decidable = _decidable(settings)
    settings = _as_decided(settings, decided)
    inputs = Inputs(
        config,
        settings,
        document,
        catalogue,
        system,
        source,
        devices,
        inventories,
        decided,
        skipped_decided,
        decidable,
        sets,
        resolved.policies,
        {app: one.set for app, one in reversed(list(resolved.all())) if one.set is not None},
    )
    for name in inputs.live_apps():
        entry = catalogue.entries.get(name)
        for at in range(len(entry.app.lists) if entry else 0):
            assert entry is not None
            item = entry.app.lists[at]
            if item.key is not None and item.key not in settings.transfer.keys:
                problems.append(entry.list_places[at].problem(f"there is no key {item.key} under transfer.keys"))
            try:
                source.list_file(entry.list_path(at), may_lack=item.source is not None)
            except InputError as error:
                text = f"{error.problems[0].file} {error.problems[0].text}"
                problems.append(entry.list_places[at].problem(text))
    if problems:
        raise InputError(problems)
    return inputs


def decided_file(config: Path, settings: Settings) -> Path:
    """Say where the daemon writes what was decided of apps: for a start when the ledger does not answer."""
    return Path(os.path.abspath(config.parent / settings.state.directory)) / DECIDED


def _as_decided(settings: Settings, decided: Decided) -> Settings:
    """Give policies in which what names a decided app does with it as was decided."""
    if not decided:
        return settings

    def policy(own: Policy) -> Policy:
        named = {*own.block, *own.monitor} & decided.keys()
        if not own.block:
            # A policy that blocks nothing is for devices that no decision may ban anything from.
            named -= {app for app in named if decided[app][0] == "block"}
        block = [app for app in own.block if app not in named]
        monitor = [app for app in own.monitor if app not in named]
        for app in sorted(named):
            (block if decided[app][0] == "block" else monitor).append(app)
        return own.model_copy(update={"block": block, "monitor": monitor})

    policies = {group: policy(own) for group, own in settings.policies.items()}
    return settings.model_copy(update={"policies": policies})


def _decidable(settings: Settings) -> dict[str, list[str]]:
    """Give, by app, the groups whose policy names it and blocks something: no decision bans an app from the others."""
    found: dict[str, list[str]] = {}
    for group, policy in settings.policies.items():
        for app in {*policy.block, *policy.monitor} if policy.block else ():
            found.setdefault(app, []).append(group)
    return found


def _in_config(problem: Problem, directory: Path | None, document: Document) -> Problem:
    """Give a problem with the directory itself the place in the config that names it."""
    if problem.file != str(directory):
        return problem
    return document.problem(("apps", "directory"), f"{directory}: {problem.text}")


def _companions(policy: Policy, catalogue: Catalogue) -> list[str]:
    if not policy.block:
        return []
    named = {*policy.block, *policy.monitor, *policy.allow}
    return [name for name, entry in catalogue.entries.items() if entry.app.with_any_block and name not in named]


def _read_devices(
    settings: Settings, document: Document, config: Path, source: Source, problems: list[Problem]
) -> tuple[dict[str, list[Device]], list[tuple[str, str, Inventory]]]:
    """Read every inventory; an address, and a MAC, belong to one group."""
    inventories: list[tuple[str, str, Inventory]] = []
    owner: dict[Address, str] = {}
    macs: dict[str, tuple[str, list[Device]]] = {}
    conflicts: dict[Problem, None] = {}
    single = {n.network_address: g for g, m in settings.groups.items() for n in m.networks if n.num_addresses == 1}
    for group, members in settings.groups.items():
        for at, item in enumerate(members.inventory):
            file = Path(os.path.abspath(config.parent / item.file))
            try:
                data = source.read(file)
            except InputError as error:
                text = (
                    f"{error.problems[0].file} {error.problems[0].text}; nothing is loaded without it, since the "
                    f"devices of {group} would become unidentified"
                )
                problems.append(document.problem(("groups", group, "inventory", at, "file"), text))
                continue
            try:
                inventory = read_inventory(file, data, item.only)
            except InputError as error:
                problems += error.problems
                continue
            inventories.append((group, item.file, inventory))
            for device in inventory.devices:
                if device.mac:
                    rival = macs.setdefault(device.mac, (group, []))
                    if rival[0] != group:
                        text = f"this MAC is in the inventory of {rival[0]} already; a device has one group"
                        conflicts[Problem(str(file), device.line, "mac", text)] = None
                    elif not rival[1] or rival[1][-1].names != device.names:
                        rival[1].append(device)
                other = group if device.address is None else owner.setdefault(device.address, group)
                if other != group:
                    text = f"this address is in the inventory of {other} already; a device has one group"
                    conflicts[Problem(str(file), device.line, "address", text)] = None
                other = group if device.address is None else single.get(device.address, group)
                if other != group:
                    text = f"groups.{other}.networks names this address alone; a device has one group"
                    conflicts[Problem(str(file), device.line, "address", text)] = None
    problems += list(conflicts)[:MAX_CONFLICTS]
    if len(conflicts) > MAX_CONFLICTS:
        text = f"and {len(conflicts) - MAX_CONFLICTS} more such conflicts between inventories"
        problems.append(Problem(str(config), 0, "groups", text))
    shared = {mac: devices for mac, (_, devices) in macs.items() if len(devices) > 1 and are_several(devices)}
    _mark_shared([inventory for _, _, inventory in inventories], shared)
    devices: dict[str, list[Device]] = {group: [] for group in settings.groups}
    for group, _, inventory in inventories:
        devices[group] += inventory.devices
    return devices, inventories


def _mark_shared(inventories: Sequence[Inventory], shared: dict[str, list[Device]]) -> None:
    """Note that a MAC is of several devices of one group: it shows the group, and not which of them it is."""
    for inventory in inventories if shared else ():
        first: Device | None = None
        found: set[str] = set()
        for at, device in enumerate(inventory.devices):
            if device.mac in shared:
                inventory.devices[at] = replace(device, is_shared=True)
                found.add(device.mac)
                first = first or device
        if first is not None:
            place = first.file, first.line
            other = next((one for one in shared[first.mac] if (one.file, one.line) != place), first)
            text = (
                f"more than one device has this MAC, as a dock's is shared (also {other.file.name}:{other.line}; "
                f"{len(found)} such MACs in this file): it shows the group, and no exemption of a device follows it"
            )
            inventory.notes.append(Problem(str(inventory.file), first.line, "mac", text))


def _check_app_names(settings: Settings, document: Document, catalogue: Catalogue, sets: AppSets) -> list[Problem]:
    """Find words of the config that name neither an app nor a set."""
    places: list[tuple[tuple[str | int, ...], str]] = [
        (("policies", name, key, at), word)
        for name, policy in settings.policies.items()
        for key in ("block", "monitor", "allow")
        for at, word in enumerate(getattr(policy, key))
    ]
    places += [(("exemptions", "apps", at), word) for at, word in enumerate(settings.exemptions.apps)]
    texts = ((place, unknown(word, sets, catalogue)) for place, word in places)
    return [document.problem(place, text) for place, text in texts if text is not None]


def _check_live_apps(resolved: Resolved, document: Document, catalogue: Catalogue) -> list[Problem]:
    """Find the places from which on there are more live apps than bits."""
    policies = resolved.settings.policies
    live: set[str] = {app for policy in policies.values() for app in _companions(policy, catalogue)}
    if len(live) > MAX_LIVE_APPS:
        text = f"{len(live)} apps come with any block, at most {MAX_LIVE_APPS} can be live"
        return [document.problem(("policies",), text)]
    named = list(resolved.all())
    beyond: dict[tuple[Named, str], None] = {}
    for app, one in named:
        if app not in live and len(live) >= MAX_LIVE_APPS:
            beyond.setdefault((one, one.set or app))
        else:
            live.add(app)
    wanted = len(live | {app for app, _ in named})
    return [
        document.problem(
            one.place,
            f"{word} would be the {MAX_LIVE_APPS + 1}th live app; at most {MAX_LIVE_APPS} can be"
            if one.set is None
            else f"with the apps of {word}, {wanted} would be live; at most {MAX_LIVE_APPS} can be",
        )
        for one, word in beyond
    ]


#: Of devices that two groups claim, those that are told: the same export twice has as many as it has lines.
MAX_CONFLICTS = 20
#: One bit each in the hot path's masks.
MAX_LIVE_APPS = 64


def _system_servers(resolv_conf: bytes) -> dict[Endpoint, int]:
    """Read the servers that a resolv.conf names, and the line of each; a line that cannot be used is none."""
    servers: dict[Endpoint, int] = {}
    for number, line in enumerate(resolv_conf.decode(errors="replace").splitlines(), 1):
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with suppress(ValueError):
                servers.setdefault(read_upstream(f"[{words[1]}]:53" if ":" in words[1] else f"{words[1]}:53"), number)
    return servers


def _check_upstreams(settings: Settings, document: Document) -> list[Problem]:
    """Find servers of the config that this machine cannot ask."""
    upstream = settings.upstream
    named: list[tuple[tuple[str | int, ...], Endpoint]] = []
    if upstream.servers != "system":
        named += [(("upstream", "servers", at), server) for at, server in enumerate(upstream.servers)]
    for zone, own in upstream.zones.items():
        named += [(("upstream", "zones", zone, at), server) for at, server in enumerate(own)]
    return [document.problem(at, text) for at, server in named if (text := _unusable(server, settings)) is not None]


def _unusable(server: Endpoint, settings: Settings) -> str | None:
    """Say why this machine cannot ask a server: its interface is not there, or it is this resolver itself."""
    if server.scope and interface_index(server.scope) is None:
        return f'{server}: there is no interface "{server.scope}"; "ip link" lists them: correct the name or the server'
    # The kernel sends what is for the unspecified address to the loopback address.
    loopback = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}[server.address.version]
    asked = loopback if server.address.is_unspecified else server.address
    for address, port in settings.server.listen:
        is_same = address == asked or (address.is_unspecified and address.version == asked.version and _is_own(asked))
        if is_same and port == server.port:
            listener = show_endpoint((address, port))
            return (
                f"{server} is this resolver itself (server.listen {listener}), so it would ask itself; "
                "write the addresses of the resolvers that it is to ask, such as servers: [10.0.0.53]"
            )
    return None


def _is_own(address: Address) -> bool:
    return address.is_loopback or address in own_addresses()
