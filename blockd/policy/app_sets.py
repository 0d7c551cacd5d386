"""Sets of apps: what "@NAME" in a config stands for. Everything behind :func:`resolve` sees apps alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from blockd.apps.catalogue import Catalogue
from blockd.problems import Problem
from blockd.settings.document import Document
from blockd.settings.load import NAME
from blockd.settings.schema import Answer, Policy, Settings

#: What the name of a set begins with where apps are named.
MARK = "@"
KEYS = ("block", "monitor", "allow")
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class AppSets:
    """The apps of every set, by the word that a config names it with, such as `@bytedance`."""

    apps: Mapping[str, tuple[str, ...]]
    #: Names for people; a set of the site has none.
    titles: Mapping[str, str]

    def expand(self, words: Iterable[str]) -> list[str]:
        """Give the apps that words name, each once; a word that is neither a set nor an app stays."""
        return list(dict.fromkeys(app for word in words for app in self.apps.get(word, (word,))))

    def describe(self, word: str | None) -> str | None:
        """Give a set's name for people who do not know the config, such as `ByteDance (@bytedance)`."""
        return word if word is None or word not in self.titles else f"{self.titles[word]} ({word})"

    def of(self, app: str) -> list[str]:
        """Name the sets that have an app, in order."""
        return sorted(name for name, apps in self.apps.items() if app in apps)


@dataclass(frozen=True)
class Named:
    """Where a config names an app, and the set by which it does, if any."""

    place: Path
    set: str | None = None


@dataclass
class Resolved:
    """Settings that name apps alone, and how the config named each."""

    settings: Settings
    #: Group -> app.
    policies: dict[str, dict[str, Named]] = field(default_factory=dict)
    #: App that may be exempt.
    exemptions: dict[str, Named] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def all(self) -> Iterator[tuple[str, Named]]:
        """Give every app that the config names, as often as it does, in order."""
        for named in (*self.policies.values(), self.exemptions):
            yield from named.items()


def owner_sets(catalogue: Catalogue) -> AppSets:
    """Give the sets of owners that have apps."""
    owned = {f"{MARK}{key}": apps for key in sorted(catalogue.owners) if (apps := catalogue.owned(key))}
    return AppSets(owned, {word: catalogue.owners[word.removeprefix(MARK)].title for word in owned})


def read_sets(settings: Settings, document: Document, catalogue: Catalogue) -> tuple[AppSets, list[Problem]]:
    """Give the sets of owners and those of the site, with what is wrong with the latter."""
    owned = owner_sets(catalogue)
    own = {f"{MARK}{name}": words for name, words in settings.sets.items()}
    known = AppSets({**owned.apps, **dict.fromkeys(own, ())}, owned.titles)
    problems: list[Problem] = []
    for name, words in settings.sets.items():
        place = ("sets", name)
        if not NAME.fullmatch(name):
            text = f'a set\'s name is lower-case letters, digits and "-"; "{MARK}" is written where a set is used'
            problems.append(document.problem(place, text))
        elif name in catalogue.owners:
            text = f"{MARK}{name} is the set of an owner's apps already; choose another name"
            problems.append(document.problem(place, text))
        elif name in catalogue.entries:
            problems.append(document.problem(place, f"{name} is the name of an app; choose another name for the set"))
        if not words:
            problems.append(document.problem(place, "the set is empty; name one app or set at least"))
        for at, word in enumerate(words):
            if (wrong := unknown(word, known, catalogue)) is not None:
                problems.append(document.problem((*place, at), wrong))
    problems += _cycles(own, document)
    apps = {name: tuple(sorted(_members(name, own, owned.apps))) for name in known.apps}
    return AppSets(apps, owned.titles), problems


def unknown(word: str, sets: AppSets, catalogue: Catalogue) -> str | None:
    """Say what is wrong with a word that should name an app or a set; None if it names one."""
    if word in sets.apps or word in catalogue.entries:
        return None
    if word.startswith(MARK):
        if word[1:] in catalogue.entries:
            return f'{word[1:]} is an app, not a set; write it without "{MARK}"'
        if word[1:] in catalogue.owners:
            return f"{word} has no apps: no app of the catalogue has this owner"
        return _no_set(word, sets)
    if f"{MARK}{word}" in sets.apps:
        return f'there is no app {word}, but a set: write "{MARK}{word}"'
    return f"there is no app {word}; there are {', '.join(sorted(catalogue.entries)) or 'none'}"


def _no_set(word: str, sets: AppSets) -> str:
    return f"there is no set {word}; there are {', '.join(sorted(sets.apps)) or 'none'}"


def _members(name: str, own: Mapping[str, list[str]], owned: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Collect the apps of a set and of all sets in it; each is visited once, so that a cycle ends."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        word = waiting.pop()
        if word in seen:
            continue
        seen.add(word)
        if word in own:
            waiting.extend(own[word])
        elif word.startswith(MARK):
            found.update(owned.get(word, ()))
        else:
            found.add(word)
    return found


def _cycles(own: Mapping[str, list[str]], document: Document) -> Iterator[Problem]:
    """Find sets that contain themselves; each cycle is reported once, where it closes."""
    done: set[str] = set()
    for start in own:
        path, waiting = [start], [iter(enumerate(own[start]))]
        while waiting and start not in done:
            at, word = next(waiting[-1], (0, None))
            if word is None:
                done.add(path.pop())
                waiting.pop()
            elif word in path:
                way = " → ".join([*path[path.index(word) :], word])
                text = f"the set contains itself: {way}; take one of them out"
                yield document.problem(("sets", path[-1].removeprefix(MARK), at), text)
            elif word in own and word not in done:
                path.append(word)
                waiting.append(iter(enumerate(own[word])))


def resolve(settings: Settings, document: Document, sets: AppSets) -> Resolved:
    """Replace sets by their apps. An app that a policy names itself is not part of the sets that it names."""
    found = Resolved(settings)
    policies = {}
    for group, policy in settings.policies.items():
        place = ("policies", group)
        named, problems = _named(policy, place, document, sets)
        found.policies[group] = {app: one for apps in named.values() for app, one in apps.items()}
        answers, more = _answers(policy, list(named["block"]), (*place, "answer_by_app"), document, sets)
        found.problems += [*problems, *more]
        policies[group] = policy.model_copy(
            update={**{key: list(apps) for key, apps in named.items()}, "answer_by_app": answers}
        )
    words = settings.exemptions.apps
    for at, word in sorted(enumerate(words), key=lambda item: item[1] in sets.apps):
        for app in sets.apps.get(word, (word,)):
            found.exemptions.setdefault(app, Named(("exemptions", "apps", at), word if word in sets.apps else None))
    exemptions = settings.exemptions.model_copy(update={"apps": sets.expand(words)})
    found.settings = settings.model_copy(update={"policies": policies, "exemptions": exemptions})
    return found


def _named(
    policy: Policy, place: Path, document: Document, sets: AppSets
) -> tuple[dict[str, dict[str, Named]], list[Problem]]:
    """Give the apps of `block`, `monitor` and `allow` with their places, and sets that contradict each other."""
    words = [(key, at, word) for key in KEYS for at, word in enumerate(getattr(policy, key))]
    named: dict[str, dict[str, Named]] = {key: {} for key in KEYS}
    for key, at, word in words:
        if word not in sets.apps:
            named[key].setdefault(word, Named((*place, key, at)))
    alone = {app for apps in named.values() for app in apps}
    by_set: dict[str, tuple[str, str]] = {}
    problems = []
    for key, at, word in words:
        both: dict[tuple[str, str], list[str]] = {}
        for app in sets.apps.get(word, ()):
            if app in alone:
                continue
            first = by_set.setdefault(app, (key, word))
            if first[0] != key:
                both.setdefault(first, []).append(app)
            else:
                named[key].setdefault(app, Named((*place, key, at), word))
        for (other_key, other), apps in both.items():
            text = (
                f"{word} and {other} (in {other_key}) both have {', '.join(apps)}; "
                f"name each of these apps itself in {other_key} or {key}, which counts more than a set"
            )
            problems.append(document.problem((*place, key, at), text))
    # In the order of the config, so that what is said first is about what stands first.
    order = {word: at for at, (_, _, word) in reversed(list(enumerate(words)))}
    ordered = {
        key: dict(sorted(found.items(), key=lambda item: order[item[1].set or item[0]])) for key, found in named.items()
    }
    return ordered, problems


def _answers(
    policy: Policy, block: list[str], place: Path, document: Document, sets: AppSets
) -> tuple[dict[str, Answer], list[Problem]]:
    """Give the answer of each app: one that is named itself counts more than one of a set."""
    problems = []
    answers: dict[str, Answer] = {}
    by_set: dict[str, str] = {}
    for word, answer in policy.answer_by_app.items():
        apps = [app for app in sets.apps.get(word, (word,)) if app in block]
        if not apps:
            text = f"{word} is not blocked by this policy, so it has no answer"
            if word in sets.apps:
                text = f"no app of {word} is blocked by this policy, so it has no answer"
            elif word.startswith(MARK):
                text = _no_set(word, sets)
            problems.append(document.problem((*place, word), text))
        for app in apps:
            if word not in sets.apps:
                answers[app] = answer
            elif app not in policy.answer_by_app:
                other = by_set.setdefault(app, word)
                if answers.setdefault(app, answer) != answer:
                    text = f"{word} and {other} both have {app}, with another answer; name {app} itself as well"
                    problems.append(document.problem((*place, word), text))
    return answers, problems
