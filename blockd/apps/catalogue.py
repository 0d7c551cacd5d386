"""Reads the apps that blockd ships and a site's own, one YAML file an app; a site's file may extend one of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from blockd.fastpath import is_public_suffix
from blockd.problems import InputError, Problem
from blockd.settings.document import Document
from blockd.settings.load import NAME
from blockd.settings.schema import Answer, Section
from blockd.settings.source import Source
from blockd.settings.values import DomainName, Growth, NetworkValue, Percent, Printable

BUILTIN = Path(__file__).parent / "builtin"
#: Zones of content delivery networks: beside the apps, and a site's own beside its apps.
CDN_ZONES = "cdn_zones.yaml"

#: The keys of an app's rules, in the order that people read them.
RULE_KEYS = ("suffixes", "hosts", "patterns", "holes", "networks")
MAX_PATTERN_CHARACTERS = 200


def _read_pattern(text: Any) -> str:
    if not isinstance(text, str) or not (text.startswith("^") and text.endswith("$")):
        raise ValueError('a pattern says the whole name, "^...$": a part alone would catch names of others')
    if not text.isascii() or not text.isprintable() or len(text) > MAX_PATTERN_CHARACTERS:
        raise ValueError(f"expected at most {MAX_PATTERN_CHARACTERS} printable ASCII characters")
    return text


def _read_answer(answer: Any) -> Any:
    # YAML reads `answer: null` as nothing; here it can mean one thing alone.
    return "null" if answer is None else answer


class AppList(Section):
    """Somebody else's list, read as part of an app."""

    file: str = Field(description="Path, relative to the app's file.")
    format: Literal["auto", "domains", "hosts", "adblock", "dnsmasq"] = Field(
        "auto",
        description="How it is written: `domains` block a name and all below, `hosts` that name alone, `adblock` and "
        "`dnsmasq` as they say; `auto` tells by the first lines.",
    )
    kind: Literal["block", "hole"] = Field("block", description="What its names are.")
    largest_shrink: Percent | None = Field(None, description="In place of `reload.largest_shrink`, for this list.")
    largest_growth: Growth | None = Field(None, description="In place of `reload.largest_growth`, for this list.")


class RuleLists(Section):
    """The rules that a file gives."""

    suffixes: list[DomainName] = Field(default_factory=list, description="Names, with all below.")
    hosts: list[DomainName] = Field(default_factory=list, description="Names alone.")
    patterns: list[Annotated[str, BeforeValidator(_read_pattern)]] = Field(
        default_factory=list, description="Regular expressions over the whole name: `^...$`, linear time."
    )
    holes: list[DomainName] = Field(default_factory=list, description="Names taken out, with all below.")
    networks: list[NetworkValue] = Field(default_factory=list, description="Networks, for what an answer leads to.")
    lists: list[AppList] = Field(default_factory=list, description="Lists that add names.")
    evidence: dict[str, str] = Field(default_factory=dict, description="Why a rule is there.")


class About(Section):
    """What an app is, beside its rules."""

    app: str = Field(description="Its name; the file is called the same.")
    title: Printable = Field(
        min_length=1, max_length=80, description="Its name as people write it; users read it in a refusal."
    )
    owner: Printable | None = Field(None, description="Who runs it.")
    takes: dict[str, str] = Field(default_factory=dict, description="What it takes from a device, and who says so.")
    needs: list[str] = Field(default_factory=list, description="Apps that it cannot work without.")
    embedded: bool = Field(
        False, description="Its suffixes and hosts are also seen as `<name>[.<label>].<zone of cdn_zones.yaml>`."
    )
    answer: Annotated[Answer | None, BeforeValidator(_read_answer)] = Field(
        None, description="How it is answered where it is blocked, unless `answer_by_app` says otherwise."
    )
    with_any_block: bool = Field(
        False, description="Blocked for every group whose policy blocks anything and does not name it."
    )
    public_suffix: bool = Field(False, description="Allow rules that are public suffixes, such as a whole TLD.")


class App(RuleLists, About):
    """One app, as its file says."""


class Extends(Section):
    """Which app is changed."""

    extends: str = Field(description="The app that this adds to.")
    remove: list[str] = Field(default_factory=list, description="Rules of the app, as it writes them, to take out.")


class Extension(RuleLists, Extends):
    """What a site adds to an app, and takes from it."""


class CdnZones(Section):
    """Zones of content delivery networks, in which customers' names are embedded."""

    zones: list[DomainName] = Field(min_length=1, description="Zones of CDNs; never blocked themselves.")
    evidence: dict[str, str] = Field(default_factory=dict, description="Whose they are.")


@dataclass(frozen=True)
class Origin:
    """Where something stands."""

    document: Document
    path: tuple[str | int, ...]

    def problem(self, text: str) -> Problem:
        """Complain about it."""
        return self.document.problem(self.path, text)

    @property
    def line(self) -> int:
        """Its line."""
        return self.document.line(self.path)


@dataclass(frozen=True)
class Entry:
    """An app as all files together say it, and where each part stands."""

    app: App
    document: Document
    is_builtin: bool
    #: (key of the rule, rule as text) -> where.
    places: Mapping[tuple[str, str], Origin] = field(default_factory=dict)
    #: Beside ``app.lists``.
    list_places: tuple[Origin, ...] = ()

    def list_path(self, at: int) -> Path:
        """Give the path of one of its lists."""
        return self.list_places[at].document.file.parent / self.app.lists[at].file

    def rule_count(self) -> int:
        """Count what blocks, lists not among it."""
        return sum(len(getattr(self.app, key)) for key in RULE_KEYS if key != "holes")


@dataclass(frozen=True)
class Catalogue:
    """All apps by name, and the zones of CDNs."""

    entries: Mapping[str, Entry]
    cdn_zones: tuple[str, ...] = ()

    def needs(self, name: str) -> frozenset[str]:
        """Give an app and all that it needs, transitively."""
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            app = waiting.pop()
            if app not in reached:
                reached.add(app)
                waiting.extend(self.entries[app].app.needs)
        return frozenset(reached)


def load_catalogue(builtin: bool, directory: Path | None, source: Source) -> Catalogue:
    """Read every app. InputError has every problem of every file."""
    problems: list[Problem] = []
    entries: dict[str, Entry] = {}
    extensions: list[tuple[Extension, Document]] = []
    files = source.yaml_files(BUILTIN) if builtin else []
    zone_files = [BUILTIN.parent / CDN_ZONES] if builtin else []
    if directory is not None:
        own = source.yaml_files(directory)
        zone_files += [file for file in own if file.name == CDN_ZONES]
        files += [file for file in own if file.name != CDN_ZONES]
    zones: dict[str, Origin] = {}
    for file in zone_files:
        try:
            document = Document(file, source.read(file))
            for at, zone in enumerate(document.validate(CdnZones).zones):
                zones.setdefault(zone, Origin(document, ("zones", at)))
        except InputError as error:
            problems += error.problems
    problems += [
        place.problem(f"{zone} is a public suffix, no CDN's zone")
        for zone, place in zones.items()
        if is_public_suffix(zone)
    ]
    for file in files:
        try:
            document = Document(file, source.read(file))
            if isinstance(document.values, dict) and "extends" in document.values:
                extensions.append((document.validate(Extension), document))
                continue
            app = document.validate(App)
        except InputError as error:
            problems += error.problems
            continue
        problems += _check_name(app, document)
        if app.app in entries:
            other = entries[app.app].document.file
            problems.append(document.problem(("app",), f"{app.app} is defined in {other} already; choose another name"))
        entries[app.app] = _entry(app, document)
    for extension, document in extensions:
        extended = _extend(entries, extension, document)
        problems += extended
    for entry in entries.values():
        problems += _check_rules(entry, zones)
    # What is needed can be looked for only when every app is there.
    unknown = [problem for entry in entries.values() for problem in _check_needs(entry, entries)]
    problems += unknown or _find_cycles(entries)
    if problems:
        raise InputError(problems)
    return Catalogue(entries, tuple(zones))


def _entry(app: App, document: Document) -> Entry:
    places = {
        (key, str(rule)): Origin(document, (key, at)) for key in RULE_KEYS for at, rule in enumerate(getattr(app, key))
    }
    lists = tuple(Origin(document, ("lists", at, "file")) for at in range(len(app.lists)))
    return Entry(app, document, document.file.parent == BUILTIN, places, lists)


def _extend(entries: dict[str, Entry], extension: Extension, document: Document) -> list[Problem]:
    """Put an extension into its app's entry; give what is wrong with it."""
    name = extension.extends
    entry = entries.get(name)
    if entry is None:
        known = ", ".join(sorted(entries)) or "none"
        return [document.problem(("extends",), f"there is no app {name} to extend; there are {known}")]
    added = {key: getattr(extension, key) for key in (*RULE_KEYS, "lists")}
    if not any(added.values()) and not extension.remove:
        return [document.problem((), f"this adds nothing to {name} and removes nothing from it")]
    problems = []
    places = dict(entry.places)
    for at, text in enumerate(extension.remove):
        found = [place for place in places if place[1] in (text, text.strip().rstrip(".").lower())]
        if not found:
            problems.append(
                document.problem(("remove", at), f"{name} has no rule {text}; `blockd apps show {name}` has all")
            )
        for place in found:
            del places[place]
    for key in RULE_KEYS:
        for at, rule in enumerate(added[key]):
            places.setdefault((key, str(rule)), Origin(document, (key, at)))
    values: dict[str, Any] = {}
    for key in RULE_KEYS:
        rules = dict.fromkeys((*getattr(entry.app, key), *added[key]))
        values[key] = [rule for rule in rules if (key, str(rule)) in places]
    values["lists"] = [*entry.app.lists, *extension.lists]
    values["evidence"] = {**entry.app.evidence, **extension.evidence}
    lists = tuple(Origin(document, ("lists", at, "file")) for at in range(len(extension.lists)))
    entries[name] = replace(
        entry, app=entry.app.model_copy(update=values), places=places, list_places=entry.list_places + lists
    )
    return problems


def _check_name(app: App, document: Document) -> list[Problem]:
    problems = []
    if not NAME.fullmatch(app.app):
        problems.append(document.problem(("app",), "an app's name is lower-case letters, digits and '-'"))
    if app.app != document.file.stem:
        problems.append(document.problem(("app",), f"the file of {app.app} is called {app.app}.yaml"))
    return problems


def _check_rules(entry: Entry, cdn_zones: Mapping[str, Origin]) -> Iterable[Problem]:
    app = entry.app
    if not (entry.rule_count() or app.lists):
        text = "the app has no rule: give it suffixes, hosts, patterns, networks or lists"
        yield entry.document.problem((), text)
    for (key, rule), place in entry.places.items():
        if key not in ("suffixes", "hosts") or app.public_suffix:
            continue
        if is_public_suffix(rule):
            yield place.problem(
                f"{rule} is a public suffix: everybody's names are below it; public_suffix: true if it is meant"
            )
        elif key == "suffixes" and any(zone == rule or zone.endswith(f".{rule}") for zone in cdn_zones):
            yield place.problem(
                f"{rule} is a CDN's zone: names of many others are below it; name hosts, or what is in front"
            )
    # A name that means two things is a slip of the pen; the tie would go to the hole in silence.
    for hole in app.holes:
        for key in ("suffixes", "hosts"):
            if (
                (key, hole) in entry.places
                and entry.is_builtin
                and entry.places[(key, hole)].document is entry.document
            ):
                yield entry.places[(key, hole)].problem(f"{hole} is a hole too; keep one")


def _check_needs(entry: Entry, entries: Mapping[str, Entry]) -> Iterable[Problem]:
    for at, need in enumerate(entry.app.needs):
        if need not in entries:
            yield entry.document.problem(("needs", at), f"there is no app {need}")


def _find_cycles(entries: Mapping[str, Entry]) -> Iterable[Problem]:
    """Find apps that need each other: each would be the other, and they should be one."""
    done: set[str] = set()
    for start in entries:
        path = [start]
        waiting = [iter(entries[start].app.needs)]
        while waiting:
            need = next(waiting[-1], None)
            if need is None:
                done.add(path.pop())
                waiting.pop()
            elif need in path:
                entry = entries[path[-1]]
                way = " → ".join([*path[path.index(need) :], need])
                yield entry.document.problem(
                    ("needs", entry.app.needs.index(need)), f"needs goes round: {way}; make them one app"
                )
            elif need not in done:
                path.append(need)
                waiting.append(iter(entries[need].app.needs))
