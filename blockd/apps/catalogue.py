"""Reads the apps that blockd ships and a site's own, one YAML file an app; a site's file may extend one of ours."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import normalize
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from blockd.fastpath import is_public_suffix
from blockd.problems import InputError, Problem
from blockd.settings.document import Document
from blockd.settings.load import NAME
from blockd.settings.schema import Answer, Section
from blockd.settings.source import Source
from blockd.settings.values import (
    DomainName,
    Duration,
    Growth,
    HttpsUrl,
    NetworkValue,
    Percent,
    Printable,
    Upstream,
    show_endpoint,
)

BUILTIN = Path(__file__).parent / "builtin"
#: Zones of content delivery networks: beside the apps, and a site's own beside its apps.
CDN_ZONES = "cdn_zones.yaml"
#: Owners whose apps a config may name as one set: beside the apps.
OWNERS = "owners.yaml"

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

    file: str | None = Field(None, description="Path, relative to the app's file.")
    directory: str | None = Field(
        None, description="In place of `file`: every file in it, but those that begin with a dot or are YAML."
    )
    url: HttpsUrl | None = Field(None, description="In place of `file`: where it is fetched, over HTTPS.")
    zone: DomainName | None = Field(None, description="In place of `file`: a zone, transferred from `server`.")
    server: Upstream | None = Field(None, description="The primary of `zone`.")
    key: str | None = Field(None, description="The key of `transfer.keys` that the primary of `zone` signs with.")
    every: Duration = Field(
        6 * 3_600.0,
        ge=30,
        le=30 * 86_400,
        description="Time between fetches of `url` or `zone`.",
        json_schema_extra={"default": "6h"},
    )
    ca: str | None = Field(
        None, description="Certificates to trust for `url` in place of the system's: a PEM file, relative to the app's."
    )
    patience: Duration = Field(
        300.0, ge=1, le=3_600, description="Time for all of a fetch.", json_schema_extra={"default": "5min"}
    )
    largest_mb: int = Field(64, ge=1, le=4_096, description="Largest size of what is fetched, MiB, uncompressed.")
    format: Literal["auto", "domains", "hosts", "adblock", "dnsmasq", "rpz", "regex"] = Field(
        "auto",
        description="How it is written: `domains` block a name and all below, `hosts` that name alone, `adblock`, "
        "`dnsmasq`, `rpz` and `regex` as they say; `auto` tells all but the last by the first lines.",
    )
    kind: Literal["block", "hole"] = Field("block", description="What its names are.")
    largest_shrink: Percent | None = Field(None, description="In place of `reload.largest_shrink`, for this list.")
    largest_growth: Growth | None = Field(None, description="In place of `reload.largest_growth`, for this list.")

    @property
    def source(self) -> str | None:
        """Where it comes from, if it is fetched; what it is told apart by."""
        if self.zone is not None and self.server is not None:
            return f"dns://{show_endpoint(self.server)}/{self.zone}"
        return self.url

    @model_validator(mode="after")
    def _one_place(self) -> AppList:
        given = [key for key in ("file", "directory", "url", "zone") if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"expected one of file, directory, url and zone, and found {found}")
        if self.format in ("rpz", "regex") and self.kind == "hole":
            raise ValueError("kind: hole is for lists of names; what passes is CNAME rpz-passthru. in a zone")
        for keys, is_used, kind in (
            ({"every", "patience", "largest_mb"}, self.url or self.zone, "url or zone"),
            ({"ca"}, self.url, "url"),
            ({"server", "key"}, self.zone, "zone"),
        ):
            idle = sorted(self.model_fields_set & keys)
            if idle and not is_used:
                raise ValueError(f"{idle[0]} is for lists with {kind}: a {given[0]} has none")
        if self.zone is not None and self.server is None:
            raise ValueError("zone needs the server that it is transferred from: server: 10.0.0.9")
        return self


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


class Owner(Section):
    """An owner, and how files write its name."""

    title: Printable = Field(min_length=1, max_length=80, description="Its name as people write it.")
    names: list[Printable] = Field(min_length=1, description="How `owner` of an app names it.")


class Owners(Section):
    """The owners that the catalogue knows, by the names of their sets."""

    owners: dict[str, Owner]


def owner_words(text: str) -> list[str]:
    """Give the words of an owner's name in the form in which spellings of it are equal."""
    return re.sub("[.,()]", " ", normalize("NFKC", text).casefold()).split()


def fold_owner(name: str) -> str:
    """Give the form in which two spellings of an owner's name are equal."""
    return "".join(owner_words(name))


def owner_names(text: str) -> set[str]:
    """Give the folded names in the `owner` of an app: "Pico Technology (ByteDance Ltd.)" has two."""
    before, bracket, parent = text.rstrip().removesuffix(")").rpartition("(")
    found = {before, parent} if bracket and text.rstrip().endswith(")") else {text}
    return {fold_owner(name) for name in found} - {""}


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
    #: Where lists lie that were fetched.
    fetched: Path = Path()

    def list_path(self, at: int) -> Path:
        """Give the path of one of its lists; where a URL is kept, whether it was fetched yet or not."""
        item = self.app.lists[at]
        if item.source is not None:
            return self.fetched / _key(self.app.app, item.source)
        return self.list_places[at].document.file.parent / (item.file or item.directory or "")

    def ca_path(self, at: int) -> Path | None:
        """Give the path of the certificates that a fetched list's server is known by, when it names any."""
        ca = self.app.lists[at].ca
        return None if ca is None else self.list_places[at].document.file.parent / ca

    def rule_count(self) -> int:
        """Count what blocks, lists not among it."""
        return sum(len(getattr(self.app, key)) for key in RULE_KEYS if key != "holes")


@dataclass(frozen=True)
class Catalogue:
    """All apps by name, and the zones of CDNs."""

    entries: Mapping[str, Entry]
    cdn_zones: tuple[str, ...] = ()
    #: Whose files are lists, as many as there are.
    directories: tuple[Path, ...] = ()
    owners: Mapping[str, Owner] = field(default_factory=dict)

    def owned(self, owner: str) -> tuple[str, ...]:
        """Name the apps of one of the owners, in order."""
        names = {fold_owner(name) for name in self.owners[owner].names}
        return tuple(sorted(name for name, entry in self.entries.items() if names & owner_names(entry.app.owner or "")))

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


def load_catalogue(builtin: bool, directory: Path | None, source: Source, fetched: Path = Path()) -> Catalogue:
    """Read every app. InputError has every problem of every file. `fetched` is where lists from elsewhere are kept."""
    problems: list[Problem] = []
    entries: dict[str, Entry] = {}
    extensions: list[tuple[Extension, Document]] = []
    files = source.yaml_files(BUILTIN) if builtin else []
    # CDNs are the same whoever writes the apps: `embedded: true` means as much without the apps that are shipped.
    zone_files = [BUILTIN.parent / CDN_ZONES]
    if directory is not None:
        own = source.yaml_files(directory)
        zone_files += [file for file in own if file.name == CDN_ZONES]
        files += [file for file in own if file.name != CDN_ZONES]
    zones: dict[str, Origin] = {}
    for file in zone_files:
        try:
            # Releases before this one kept inputs without it where they did not read it.
            data = source.read(file) if file.parent == directory else source.read_if_there(file)
            if data is None:
                continue
            document = Document(file, data)
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
    directories: list[Path] = []
    for name, entry in entries.items():
        problems += _check_rules(entry, zones)
        try:
            entries[name] = replace(_in_directories(entry, source, directories), fetched=fetched)
        except InputError as error:
            problems += error.problems
    # What is needed can be looked for only when every app is there.
    unknown = [problem for entry in entries.values() for problem in _check_needs(entry, entries)]
    problems += unknown or _find_cycles(entries)
    if problems:
        raise InputError(problems)
    return Catalogue(entries, tuple(zones), tuple(directories), _read_owners(source))


def _read_owners(source: Source) -> Mapping[str, Owner]:
    file = BUILTIN.parent / OWNERS
    data = source.read_if_there(file)
    # Inputs that were kept by a release without owners name none.
    return {} if data is None else Document(file, data).validate(Owners).owners


#: A directory with more is a mistake: somebody named one that is not for lists.
MAX_FILES_A_DIRECTORY = 1_000


def _in_directories(entry: Entry, source: Source, directories: list[Path]) -> Entry:
    """Put the files of a directory in its place among an app's lists. InputError has the place of one that is none."""
    lists: list[AppList] = []
    places: list[Origin] = []
    for at, (item, place) in enumerate(zip(entry.app.lists, entry.list_places, strict=True)):
        files = [item]
        if item.directory is not None:
            directory = entry.list_path(at)
            directories.append(directory)
            try:
                found = source.list_files(directory)
            except InputError as error:
                raise InputError([place.problem(f"{directory}: {error.problems[0].text}")]) from None
            if len(found) > MAX_FILES_A_DIRECTORY:
                text = f"{directory} has {len(found)} files, of {MAX_FILES_A_DIRECTORY} at most: name one for lists"
                raise InputError([place.problem(text)])
            files = [item.model_copy(update={"directory": None, "file": str(path.absolute())}) for path in found]
        lists += files
        places += [place] * len(files)
    return replace(entry, app=entry.app.model_copy(update={"lists": lists}), list_places=tuple(places))


def _key(app: str, url: str) -> str:
    """Name the file of a source: told apart by app and URL, known again by its last part."""
    last = re.sub(r"[^A-Za-z0-9._-]", "", urlsplit(url).path.rpartition("/")[2])[-60:].lstrip(".")
    digest = hashlib.sha256(f"{app}\0{url}".encode()).hexdigest()[:12]
    return f"{app}-{digest}-{last or 'list'}"


def _list_key(item: AppList) -> str:
    return next(key for key in ("url", "zone", "directory", "file") if getattr(item, key) is not None)


def _entry(app: App, document: Document) -> Entry:
    places = {
        (key, str(rule)): Origin(document, (key, at)) for key in RULE_KEYS for at, rule in enumerate(getattr(app, key))
    }
    lists = tuple(Origin(document, ("lists", at, _list_key(item))) for at, item in enumerate(app.lists))
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
    lists = tuple(Origin(document, ("lists", at, _list_key(item))) for at, item in enumerate(extension.lists))
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
