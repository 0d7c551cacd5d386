"""All that a policy is made of, read once: settings, catalogue, lists, and the bytes of every file."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from blockd import __version__
from blockd.apps.catalogue import Catalogue, Entry, load_catalogue
from blockd.problems import InputError, Problem
from blockd.settings import Settings, load_settings
from blockd.settings.document import Document
from blockd.settings.source import Disk, Source
from blockd.settings.values import Address, read_endpoint

RESOLV_CONF = Path("/etc/resolv.conf")


@dataclass
class Inputs:
    """Settings and catalogue with the files that they came from."""

    config: Path
    settings: Settings
    document: Document
    catalogue: Catalogue
    system_servers: tuple[tuple[Address, int], ...]
    source: Source

    def relative(self, path: str) -> Path:
        """Find a path that the config gives: relative to the config file."""
        return self.config.parent / path

    def default_servers(self) -> tuple[tuple[Address, int], ...]:
        """Give the servers of the default route."""
        servers = self.settings.upstream.servers
        return self.system_servers if servers == "system" else tuple(servers)

    def live_apps(self) -> list[str]:
        """Name the apps that a policy names, in order; each is one bit."""
        policies = self.settings.policies.values()
        return sorted({app for p in policies for app in (*p.block, *p.monitor, *p.allow)})

    def list_octets(self, entry: Entry, at: int) -> bytes:
        """Give the bytes of one of an app's lists."""
        return self.source.files[entry.list_path(at)]

    def digest(self) -> str:
        """Tell inputs apart by content and path."""
        digest = hashlib.sha256(__version__.encode())
        for path, data in sorted(self.source.files.items()):
            digest.update(f"{path}\0{len(data)}\0".encode())
            digest.update(data)
        return digest.hexdigest()


def read_inputs(config: Path, source: Source | None = None) -> Inputs:
    """Read everything that a config names. InputError has every problem that was found."""
    config = Path(os.path.abspath(config))
    source = Disk() if source is None else source
    settings, document = load_settings(config, source)
    apps = settings.apps
    directory = None if apps.directory is None else Path(os.path.abspath(config.parent / apps.directory))
    try:
        catalogue = load_catalogue(apps.builtin, directory, source)
    except InputError as error:
        raise InputError([_in_config(problem, directory, document) for problem in error.problems]) from None
    problems = _check_app_names(settings, document, catalogue)
    system: tuple[tuple[Address, int], ...] = ()
    if settings.upstream.servers == "system":
        system = _system_servers(source.read(RESOLV_CONF))
        if not system:
            text = f"servers: system, but {RESOLV_CONF} names no server; write their addresses"
            problems.append(document.problem(("upstream", "servers"), text))
    inputs = Inputs(config, settings, document, catalogue, system, source)
    for name in inputs.live_apps():
        entry = catalogue.entries.get(name)
        for at in range(len(entry.app.lists) if entry else 0):
            assert entry is not None
            try:
                source.read(entry.list_path(at))
            except InputError as error:
                text = f"{error.problems[0].file} {error.problems[0].text}"
                problems.append(entry.document.problem(("lists", at, "file"), text))
    if problems:
        raise InputError(problems)
    return inputs


def _in_config(problem: Problem, directory: Path | None, document: Document) -> Problem:
    """Give a problem with the directory itself the place in the config that names it."""
    if problem.file != str(directory):
        return problem
    return document.problem(("apps", "directory"), f"{directory}: {problem.text}")


def _check_app_names(settings: Settings, document: Document, catalogue: Catalogue) -> list[Problem]:
    problems = []
    live: set[str] = set()
    for policy_name, policy in settings.policies.items():
        for key in ("block", "monitor", "allow"):
            for at, app in enumerate(getattr(policy, key)):
                place = ("policies", policy_name, key, at)
                if app not in catalogue.entries:
                    known = ", ".join(sorted(catalogue.entries)) or "none"
                    problems.append(document.problem(place, f"there is no app {app}; there are {known}"))
                elif app not in live and len(live) == MAX_LIVE_APPS:
                    text = f"{app} would be the {MAX_LIVE_APPS + 1}th live app; at most {MAX_LIVE_APPS} can be"
                    problems.append(document.problem(place, text))
                else:
                    live.add(app)
        for app in policy.answer_by_app:
            if app not in policy.block:
                text = f"{app} is not blocked by this policy, so it has no answer"
                problems.append(document.problem(("policies", policy_name, "answer_by_app", app), text))
    return problems


#: One bit each in the hot path's masks.
MAX_LIVE_APPS = 64


def _system_servers(resolv_conf: bytes) -> tuple[tuple[Address, int], ...]:
    servers = []
    for line in resolv_conf.decode(errors="replace").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            host = words[1].split("%")[0]
            try:
                servers.append(read_endpoint(f"[{host}]:53" if ":" in host else f"{host}:53"))
            except ValueError:
                continue
    return tuple(servers)
