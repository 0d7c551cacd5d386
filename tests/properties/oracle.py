"""The decision in its plainest form: what the hot path must equal, written from docs/architecture.md alone.

`mutation` plants one mistake, so that a test can show that it would be noticed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network


@dataclass
class App:
    """Rules of one app."""

    suffixes: set[str] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    holes: set[str] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    hosts_list: set[str] = field(default_factory=set)
    #: Those of its holes that a list has.
    listed_holes: set[str] = field(default_factory=set)
    exceptions: set[str] = field(default_factory=set)
    #: More lines of its lists: effect (`block`, `except`; `!` if important), scope (`all`, `alone`, `below`), name.
    lines: set[tuple[str, str, str]] = field(default_factory=set)
    networks: set[IPv4Network] = field(default_factory=set)
    needs: set[str] = field(default_factory=set)
    patterns: set[str] = field(default_factory=set)
    embedded: bool = False

    def listed(self) -> set[tuple[str, str, str]]:
        """Give all that its lists say."""
        return (
            self.lines
            | {("block", "all", name) for name in self.domains}
            | {("block", "alone", name) for name in self.hosts_list}
            | {("except", "all", name) for name in self.exceptions}
        )


#: The zones in which names are embedded, the one inside the other too.
CDN_ZONES = {"cdn.example", "w.cdn.example"}


def path(name: str) -> list[str]:
    """Give a name and all above it, the name first."""
    labels = name.split(".")
    return [".".join(labels[at:]) for at in range(len(labels))]


class Oracle:
    """One policy over some apps."""

    def __init__(self, apps: dict[str, App], block: set[str], monitor: set[str], allow: set[str], mutation: str = ""):
        """Fold the view; count each branch that is met."""
        self.apps, self.mutation, self.met = apps, mutation, Counter[str]()
        self.allow = self.closure(allow)
        self.block = block - self.allow
        self.monitor = monitor - self.allow - self.block

    def closure(self, names: set[str]) -> set[str]:
        """Give apps and all that they need."""
        more = set(names).union(*(self.apps[name].needs for name in names))
        return more if more == names else self.closure(more)

    def matches(self, app: App, name: str) -> str:
        """Say `in`, `hole` or nothing."""
        own = self.matches_own(app, name)
        if own:
            return own
        if any(re.fullmatch(pattern, name) for pattern in app.patterns) and self.mutation != "no patterns":
            self.met["pattern"] += 1
            return "in"
        zone = next((above for above in path(name)[1:] if above in CDN_ZONES), None)
        if app.embedded and zone is not None:
            front = name.removesuffix(f".{zone}")
            behind = front.rpartition(".")[0] if self.mutation != "no label between" else ""
            if any(inner and self.matches_own(app, inner, with_lists=False) == "in" for inner in (front, behind)):
                self.met["embedded"] += 1
                return "in"
        return ""

    def matches_own(self, app: App, name: str, with_lists: bool = True) -> str:
        """Say the same of its rules at the name's path, and of its lists."""
        for at, above in enumerate(path(name)):
            is_host = above in app.hosts and (at == 0 or self.mutation == "host blocks below")
            is_in = above in app.suffixes or is_host
            if above in app.holes and not (is_in and self.mutation == "tie to the block"):
                self.met["tie to the hole" if is_in else "hole"] += 1
                is_listed = app.domains & set(path(name)) and self.mutation == "list beats hole"
                return "in" if is_listed else "hole"
            if is_in:
                self.met["host" if above not in app.suffixes else "suffix"] += 1
                return "in"
        said = (
            {effect for effect, scope, rule in app.listed() if self.covers(scope, rule, name)} if with_lists else set()
        )
        if self.mutation == "nothing is important":
            said = {effect.rstrip("!") for effect in said}
        if not said & {"block", "block!"}:
            return ""
        if "except!" in said:
            self.met["important exception"] += 1
            return ""
        if "block!" not in said and "except" in said and self.mutation != "no exceptions":
            self.met["exception"] += 1
            return ""
        self.met["important" if {"block!", "except"} <= said else "list"] += 1
        return "in"

    def covers(self, scope: str, rule: str, name: str) -> bool:
        """Say whether a line of a list is about a name."""
        if scope == "alone":
            return name == rule or (self.mutation == "a line for one name covers more" and rule in path(name))
        if scope == "below":
            return rule in path(name)[self.mutation != "what is below a name covers it" :]
        return rule in path(name)

    def begins(self, app: App, name: str) -> bool:
        """Say whether a name is the app's by a rule that begins at it: another child of its parent is not the app's."""
        parent = name.partition(".")[2]
        found = self.matches(replace(app, patterns=set()), f"sibling.{parent}")
        is_match = any(re.fullmatch(pattern, parent) for pattern in app.patterns) and self.mutation != "no patterns"
        return found != "in" and (found == "hole" or not is_match)

    def decide(
        self, name: str, targets: list[str], addresses: list[IPv4Address], is_ds: bool = False
    ) -> tuple[str, str | None]:
        """Give action and app."""
        asked = {key for key, app in self.apps.items() if self.matches(app, name) == "in"}
        if is_ds and self.mutation != "ds as any type":
            cut = {key for key in asked if self.begins(self.apps[key], name)}
            self.met["cut"] += bool(cut)
            asked -= cut
        holes = {key for key, app in self.apps.items() if self.matches(app, name) == "hole"}
        cleared = holes if self.mutation == "hole clears no needs" else self.closure(holes)
        led = {key for key, app in self.apps.items() if any(self.matches(app, target) == "in" for target in targets)}
        led |= {key for key, app in self.apps.items() if any(a in n for n in app.networks for a in addresses)}
        if led & cleared:
            self.met["cleared by a hole"] += 1
        found = led - cleared
        opened = asked | found if self.mutation == "target opens" else asked
        for action, bits in (
            ("allow", opened & self.allow),
            ("block", asked & self.block),
            ("block", found & self.block),
            ("monitor", (asked | found) & self.monitor),
        ):
            if bits:
                self.met[f"{action} by {'asked' if bits & asked else 'found'}"] += 1
                return action, min(bits)
        self.met["pass"] += 1
        return "pass", None

    def exists(self, name: str) -> bool:
        """Say whether something open lies below a blocked name (RFC 8020)."""
        for key, app in self.apps.items():
            own = {("block", "all", rule) for rule in app.suffixes | app.hosts}
            own |= {("except", "all", rule) for rule in app.holes}
            for effect, scope, rule in own | app.listed():
                # What is below a rule's name without it is below that name, too.
                if name not in path(rule)[scope != "below" :]:
                    continue
                covering = {k for k, a in self.apps.items() if self.names_covering(a) & set(path(name))}
                if effect.startswith("except") and key in self.block and key in covering:
                    return True
                if effect.startswith("block") and key in self.allow and covering - {key}:
                    return True
        return False

    def names_covering(self, app: App) -> set[str]:
        """Give the names below which an app blocks everything, exceptions aside."""
        listed = {rule for effect, scope, rule in app.listed() if effect.startswith("block") and scope != "alone"}
        return app.suffixes | listed
