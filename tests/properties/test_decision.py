"""The native decision equals the oracle over random policies whose names do meet the rules."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import dns.message
import pytest

from blockd.fastpath import Fastpath, load
from blockd.policy.compile import compile_snapshot
from blockd.policy.inputs import read_inputs
from blockd.settings.source import Source
from tests.properties.oracle import CDN_ZONES, App, Oracle
from tests.support.upstream import answer

POLICIES = 250
QUESTIONS = 60
#: Each branch must be met so often, or the policies do not meet their rules.
FEWEST = 100
BRANCHES = {
    "hole",
    "tie to the hole",
    "suffix",
    "host",
    "list",
    "cleared by a hole",
    "allow by asked",
    "block by asked",
    "block by found",
    "monitor by asked",
    "monitor by found",
    "pass",
    "nodata",
    "pattern",
    "embedded",
    "exception",
    "cut",
    "important",
    "important exception",
}
MUTATIONS = (
    "no patterns",
    "no label between",
    "tie to the block",
    "list beats hole",
    "no exceptions",
    "nothing is important",
    "a line for one name covers more",
    "what is below a name covers it",
    "host blocks below",
    "hole clears no needs",
    "target opens",
    "ds as any type",
)
CONFIG = Path("/memory/blockd.yaml")
#: Effects and scopes that lines of lists have.
LINES = [
    ("block", "alone"),
    ("block", "below"),
    ("except", "alone"),
    ("except", "below"),
    ("block!", "all"),
    ("block!", "alone"),
    ("except!", "all"),
    ("except!", "alone"),
]


class Memory(Source):
    """Inputs that are in no file system, but for the lists."""

    def __init__(self, contents: dict[Path, str], spool: Path) -> None:
        super().__init__()
        self._contents = contents
        self._spool = spool

    def _read(self, path: Path) -> bytes:
        return self._contents[path].encode()

    def _has(self, path: Path) -> bool:
        return path in self._contents

    def _list_file(self, path: Path, may_lack: bool) -> tuple[Path, str]:
        file = self._spool / path.name
        file.write_bytes(self._read(path))
        return file, hashlib.sha256(self._read(path)).hexdigest()

    def yaml_files(self, directory: Path) -> list[Path]:
        """List what is there."""
        return sorted(path for path in self._contents if path.parent == directory and path.suffix == ".yaml")

    def list_files(self, directory: Path) -> list[Path]:
        """List nothing: no policy here has a directory of lists."""
        return []


def random_name(rng: random.Random) -> str:
    """Draw from so few names that rules and questions meet."""
    labels = [rng.choice("abc") for _ in range(rng.randint(1, 3))]
    return ".".join([*labels, rng.choice(["x", "y"]), "example"])


def random_question(rng: random.Random) -> str:
    """Draw a name, at times inside a CDN's zone, with a label between or without."""
    name = random_name(rng)
    if rng.random() < 0.25:
        name = ".".join([name, *rng.choice([[], [], ["a"], ["a", "b"]]), rng.choice(sorted(CDN_ZONES))])
    return name


def random_apps(rng: random.Random) -> dict[str, App]:
    """Draw a few apps with rules that nest and tie."""
    names = [f"app{at}" for at in range(rng.randint(1, 5))]
    apps = {}
    for name in names:
        draw = {key: {random_name(rng) for _ in range(rng.randint(0, 3))} for key in ("s", "h", "o", "d", "l")}
        ties = {n for n in draw["s"] if rng.random() < 0.15}
        networks = {IPv4Network((0xC0000200 | rng.randrange(16) << 4, 28)) for _ in range(rng.randint(0, 1))}
        # Only to those before: a circle of needs is refused.
        needs = {other for other in names if other < name and rng.random() < 0.3}
        apps[name] = App(
            suffixes=draw["s"] | {random_name(rng)},
            hosts=draw["h"],
            holes=draw["o"] | ties,
            domains=draw["d"],
            hosts_list=draw["l"],
            networks=networks,
            needs=needs,
        )
        if rng.random() < 0.4:
            apps[name].patterns = {"^" + random_name(rng).replace(".", "[.]").replace("a", "[ab]") + "$"}
        apps[name].embedded = rng.random() < 0.5
        # Some of its holes stand in a list: they are holes like the others.
        apps[name].listed_holes = {hole for hole in apps[name].holes if rng.random() < 0.3}
        apps[name].exceptions = {random_name(rng) for _ in range(rng.choice([0, 0, 1, 2]))}
        apps[name].lines = {(*rng.choice(LINES), random_name(rng)) for _ in range(rng.choice([0, 0, 4, 8]))}
        if apps[name].lines:
            # An exception that matters, and an important line that it does not touch.
            both = random_name(rng)
            apps[name].lines |= {("except", "all", both), ("block!", rng.choice(["all", "alone"]), both)}
    if rng.random() < 0.4:
        # Lists of single names alone are read once: another way through the compile.
        for app in apps.values():
            app.domains, app.listed_holes, app.exceptions, app.lines = set(), set(), set(), set()
    return apps


def write_line(effect: str, scope: str, name: str) -> str:
    """Write what a list says as Adblock, or as dnsmasq where Adblock has no word for it."""
    if scope == "below":
        return f"server=/*.{name}/#" if effect == "except" else f"address=/*.{name}/"
    sign = "@@" if effect.startswith("except") else ""
    return f"{sign}{'||' if scope == 'all' else '|'}{name}^{'$important' if effect.endswith('!') else ''}"


def compile_policy(apps: dict[str, App], policy: dict[str, list[str]]) -> Fastpath:
    """Take the whole way from YAML to a snapshot file."""
    contents = {
        CONFIG: json.dumps(
            {
                "server": {"listen": ["127.0.0.1:53"]},
                "admin": {"listen": "127.0.0.1:9153"},
                "upstream": {"servers": ["127.0.0.1:53"]},
                "apps": {"builtin": False, "directory": "apps"},
                "policies": {"unidentified": policy},
            }
        )
    }
    directory = CONFIG.parent / "apps"
    for name, app in apps.items():
        values = {
            "app": name,
            "title": name,
            "needs": sorted(app.needs),
            "suffixes": sorted(app.suffixes),
            "hosts": sorted(app.hosts),
            "holes": sorted(app.holes - app.listed_holes),
            "networks": sorted(map(str, app.networks)),
            "patterns": sorted(app.patterns),
            "embedded": app.embedded,
            "lists": [
                *([{"file": f"{name}.d", "format": "domains"}] if app.domains else []),
                *([{"file": f"{name}.o", "format": "domains", "kind": "hole"}] if app.listed_holes else []),
                {"file": f"{name}.h", "format": "hosts"},
                *([{"file": f"{name}.e", "format": "adblock"}] if app.exceptions or app.lines else []),
                *([{"file": f"{name}.b", "format": "dnsmasq"}] if app.lines else []),
            ],
        }
        contents[directory / f"{name}.yaml"] = json.dumps(values)
        contents[directory / f"{name}.d"] = "\n".join(sorted(app.domains))
        contents[directory / f"{name}.o"] = "\n".join(sorted(app.listed_holes))
        contents[directory / f"{name}.h"] = "\n".join(f"0.0.0.0 {n}" for n in sorted(app.hosts_list))
        lines = sorted(app.lines | {("except", "all", excepted) for excepted in app.exceptions})
        for end, is_dnsmasq in (("e", False), ("b", True)):
            of_format = [write_line(*line) for line in lines if (line[1] == "below") == is_dnsmasq]
            contents[directory / f"{name}.{end}"] = "\n".join(of_format)
    contents[directory / "cdn_zones.yaml"] = json.dumps({"zones": sorted(CDN_ZONES)})
    with tempfile.TemporaryDirectory() as spool:
        file = Path(spool) / "snapshot"
        compile_snapshot(read_inputs(CONFIG, Memory(contents, Path(spool))), file)
        return Fastpath(load(str(file)), [], 0, 0)


def mismatches(mutation: str, met: Counter[str]) -> Iterator[str]:
    """Compare policy after policy; give each difference."""
    rng = random.Random(20230316)
    for _ in range(POLICIES):
        apps = random_apps(rng)
        policy: dict[str, list[str]] = {"block": [], "monitor": [], "allow": []}
        for name in apps:
            policy[rng.choice(["block", "block", "monitor", "allow"])].append(name)
        native = compile_policy(apps, policy)
        oracle = Oracle(apps, set(policy["block"]), set(policy["monitor"]), set(policy["allow"]), mutation)
        for _ in range(QUESTIONS):
            name = random_question(rng)
            chain = [random_question(rng) for _ in range(rng.choice([0, 0, 1, 2]))]
            chain = [link for at, link in enumerate(chain) if link not in [name, *chain[:at]]]
            address = IPv4Address(0xC0000200 | rng.randrange(256))
            links = zip([name, *chain], chain, strict=False)
            records = [f"{owner}. 60 IN CNAME {target}." for owner, target in links]
            records.append(f"{chain[-1] if chain else name}. 60 IN A {address}")
            wire = answer(dns.message.make_query(name, "A"), *records)
            got = native.decide("192.0.2.1", name, 1, wire)
            wanted = oracle.decide(name, chain, [address])
            app = None if got["app"] is None else sorted(apps)[got["app"]]
            if (got["action"], app) != wanted:
                yield f"{policy} {apps} {name} {chain} {address}: {(got['action'], app)} is not {wanted}"
            if not chain:
                got, wanted = native.decide("192.0.2.1", name, 43), oracle.decide(name, [], [], is_ds=True)
                app = None if got["app"] is None else sorted(apps)[got["app"]]
                if (got["action"], app) != wanted:
                    yield f"{policy} {apps} {name} DS: {(got['action'], app)} is not {wanted}"
            elif got["action"] == "block" and got["reply"] is not None:
                is_nodata = got["reply"][3] & 15 == 0
                if is_nodata:
                    oracle.met["nodata"] += 1
                if is_nodata != oracle.exists(name):
                    yield f"{policy} {apps} {name}: nodata is {is_nodata}"
        met.update(oracle.met)


def test_the_native_decision_equals_the_oracle() -> None:
    """Every branch is met often enough, and there is no difference."""
    met: Counter[str] = Counter()
    assert next(mismatches("", met), None) is None
    assert set(met) == BRANCHES
    assert min(met.values()) >= FEWEST, met


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_planted_mistake_is_noticed(mutation: str) -> None:
    """A comparison that cannot fail shows nothing."""
    assert next(mismatches(mutation, Counter()), None) is not None
