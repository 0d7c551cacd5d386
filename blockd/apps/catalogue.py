"""Reads the apps that blockd ships and a site's own, one YAML file an app."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from blockd.fastpath import is_public_suffix
from blockd.problems import InputError, Problem
from blockd.settings.document import Document
from blockd.settings.load import NAME
from blockd.settings.schema import Section
from blockd.settings.source import Source
from blockd.settings.values import DomainName, NetworkValue

BUILTIN = Path(__file__).parent / "builtin"


class AppList(Section):
    """Somebody else's list, read as part of an app."""

    file: str = Field(description="Path, relative to the app's file.")
    format: Literal["domains", "hosts"] = Field(description="domains: a name and all below; hosts: that name alone.")
    kind: Literal["block", "hole"] = Field("block", description="What its names are.")


class App(Section):
    """One app, as its file says."""

    app: str = Field(description="Its name; the file is called the same.")
    title: str = Field(description="Its name as people write it; users read it in a refusal.")
    owner: str | None = Field(None, description="Who runs it.")
    takes: list[str] = Field(default_factory=list, description="What it takes from a device.")
    needs: list[str] = Field(default_factory=list, description="Apps that it cannot work without.")
    suffixes: list[DomainName] = Field(default_factory=list, description="Names, with all below.")
    hosts: list[DomainName] = Field(default_factory=list, description="Names alone.")
    holes: list[DomainName] = Field(default_factory=list, description="Names taken out, with all below.")
    networks: list[NetworkValue] = Field(default_factory=list, description="Networks, for what an answer leads to.")
    lists: list[AppList] = Field(default_factory=list, description="Lists that add names.")
    evidence: dict[str, str] = Field(default_factory=dict, description="Why a rule is there.")
    public_suffix: bool = Field(False, description="Allow rules that are public suffixes, such as a whole TLD.")


@dataclass(frozen=True)
class Entry:
    """An app and where it stands."""

    app: App
    document: Document

    def list_path(self, at: int) -> Path:
        """Give the path of one of its lists."""
        return self.document.file.parent / self.app.lists[at].file


@dataclass(frozen=True)
class Catalogue:
    """All apps by name."""

    entries: Mapping[str, Entry]

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
    files = source.yaml_files(BUILTIN) if builtin else []
    if directory is not None:
        files += source.yaml_files(directory)
    for file in files:
        try:
            document = Document(file, source.read(file))
            app = document.validate(App)
        except InputError as error:
            problems += error.problems
            continue
        problems += _check(app, document)
        if app.app in entries:
            other = entries[app.app].document.file
            problems.append(document.problem(("app",), f"{app.app} is defined in {other} already; choose another name"))
        entries[app.app] = Entry(app, document)
    for entry in entries.values():
        for at, need in enumerate(entry.app.needs):
            if need not in entries:
                problems.append(entry.document.problem(("needs", at), f"there is no app {need}"))
    if problems:
        raise InputError(problems)
    return Catalogue(entries)


def _check(app: App, document: Document) -> list[Problem]:
    problems = []
    if not NAME.fullmatch(app.app):
        problems.append(document.problem(("app",), "an app's name is lower-case letters, digits and '-'"))
    if app.app != document.file.stem:
        problems.append(document.problem(("app",), f"the file of {app.app} is called {app.app}.yaml"))
    if not (app.suffixes or app.hosts or app.networks or app.lists):
        problems.append(document.problem((), "the app has no rule: give it suffixes, hosts, networks or lists"))
    for kind in ("suffixes", "hosts", "holes"):
        for at, name in enumerate(getattr(app, kind)):
            if not app.public_suffix and kind != "holes" and is_public_suffix(name):
                text = f"{name} is a public suffix: everybody's names are below it; public_suffix: true if it is meant"
                problems.append(document.problem((kind, at), text))
    return problems
