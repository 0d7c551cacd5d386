"""Sets of apps: what "@NAME" stands for, what counts more than a set, and where a set is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from blockd.apps.catalogue import BUILTIN, OWNERS, load_catalogue
from blockd.fastpath import Fastpath, load
from blockd.policy.app_sets import owner_sets
from blockd.policy.compile import SNAPSHOT, compile_snapshot, write_inputs
from blockd.policy.explain import read_meta
from blockd.policy.inputs import Inputs, read_inputs
from blockd.policy.review import review
from blockd.policy.views import group_views
from blockd.problems import InputError
from blockd.settings.source import INPUTS, MANIFEST, Disk, Kept
from tests.support.daemon import Blockd, free_port
from tests.support.people import ALICE, CAROL, ask_as, socket_for_all
from tests.support.questions import CORPORATE, GUEST, PERSONAL, ask, rcode
from tests.support.upstream import Upstream
from tests.support.warm import run
from tests.unit.test_block_page import get
from tests.unit.test_catalogue import LARK, WELL_KNOWN
from tests.unit.test_decisions_log import lines

#: By hand, so that an app that leaves the set is seen; one that joins it is added here.
BYTEDANCE = {
    "bytedance",
    "bytedance-games",
    "bytedance-platform",
    "byteplus",
    "capcut",
    "lark",
    "lemon8",
    "pico",
    "tiktok",
    "tokopedia",
    "volcengine",
}


def config(directory: Path, sections: str, apps: dict[str, dict[str, Any]] | None = None) -> Path:
    """Write a config with these sections as they are, and a site's apps."""
    (directory / "apps").mkdir(exist_ok=True)
    for name, values in (apps or {}).items():
        own = {"app": name, "title": name.title(), "suffixes": [f"{name}.example"], **values}
        (directory / "apps" / f"{name}.yaml").write_text(yaml.safe_dump(own))
    file = directory / "blockd.yaml"
    text = sections if "\napps:" in f"\n{sections}" else f"apps: {{directory: apps}}\n{sections}"
    file.write_text(
        'server: {listen: ["127.0.0.1:53"]}\nadmin: {listen: "127.0.0.1:9153"}\nupstream: {servers: ["192.0.2.1"]}\n'
        + text
    )
    return file


def inputs_of(directory: Path, sections: str, apps: dict[str, dict[str, Any]] | None = None) -> Inputs:
    """Read such a config."""
    return read_inputs(config(directory, sections, apps))


def problems_of(directory: Path, sections: str, apps: dict[str, dict[str, Any]] | None = None) -> list[str]:
    """Give what is wrong with such a config."""
    with pytest.raises(InputError) as raised:
        inputs_of(directory, sections, apps)
    return [str(problem) for problem in raised.value.problems]


def test_every_shipped_app_is_in_the_set_of_its_owner() -> None:
    """An owner that is spelled in a way nobody listed would leave an app out of its set without a word."""
    catalogue = load_catalogue(True, None, Disk())
    sets = owner_sets(catalogue)
    for name, entry in catalogue.entries.items():
        assert len(sets.of(name)) == (1 if entry.app.owner else 0), f"{name}: {entry.app.owner}: see {OWNERS}"
    assert set(sets.apps["@bytedance"]) == BYTEDANCE
    text = {name: entry.document.file.read_text() for name, entry in catalogue.entries.items()}
    owned = {name for name, said in text.items() if re.search(r"^owner: .*(ByteDance|TikTok)", said, re.MULTILINE)}
    assert owned == BYTEDANCE
    needed = {name for name in catalogue.entries if "bytedance-platform" in catalogue.needs(name)}
    assert needed <= BYTEDANCE


def test_the_set_of_an_owner_blocks_its_names(tmp_path: Path) -> None:
    """The names that three independent list families have, with all that ByteDance runs beside TikTok."""
    inputs = inputs_of(tmp_path, 'policies: {unidentified: {block: ["@bytedance"]}}')
    file = tmp_path / "snapshot"
    compile_snapshot(inputs, file)
    fastpath = Fastpath(load(str(file)), [], 0, 0)
    names = [*" ".join(WELL_KNOWN.values()).split(), *LARK.split(), "www.volcengine.com", "a.tokopedia.com"]
    passed = [name for name in names if fastpath.decide("192.0.2.1", name, 1)["action"] != "block"]
    assert passed == []


@pytest.mark.parametrize(
    ("owner", "is_in"),
    [
        ("ByteDance Ltd.", True),
        ("bytedance  ltd", True),
        ("Byte Dance, LTD.", True),
        ("ＢｙｔｅＤａｎｃｅ", True),  # noqa: RUF001  as an input method writes it
        ("Somebody Else (ByteDance Ltd.)", True),
        ("A (B) C (ByteDance)", True),
        ("TikTok Pte. Ltd.", True),
        ("Not ByteDance Ltd.", False),
        ("ByteDance Ltd. (Oracle)", True),
        ("X (Y (ByteDance))", True),
        ("ByteDancer", False),
        (None, False),
    ],
)
def test_an_app_that_is_added_belongs_to_its_owner(owner: str | None, is_in: bool, tmp_path: Path) -> None:
    """A file alone is enough, with the owner's whole name or in parentheses at its end; a part of a name is not."""
    inputs = inputs_of(tmp_path, 'policies: {unidentified: {block: ["@bytedance"]}}', {"added": {"owner": owner}})
    assert ("added" in inputs.live_apps()) == is_in
    doubts = [str(doubt) for doubt in review(inputs)]
    if not is_in and owner is not None and owner != "ByteDancer":
        assert doubts == [
            f"{tmp_path}/apps/added.yaml:2: owner: added is not in @bytedance, for {owner!r} is not one of its names; "
            f'if ByteDance owns it, write "{owner} (ByteDance)"'
        ]
    else:
        assert doubts == []


def shown(apps: set[str], *beside: str, without: tuple[str, ...] = ()) -> list[str]:
    """Sort apps."""
    return sorted({*apps, *beside} - set(without))


#: Sections, what is blocked, what is monitored, what is allowed.
POLICIES = {
    "an owner's set": ('{block: ["@bytedance"]}', shown(BYTEDANCE, "canary-names"), [], []),
    "one app is allowed": (
        '{block: ["@bytedance"], allow: [lark]}',
        shown(BYTEDANCE, "canary-names", without=("lark",)),
        [],
        ["lark"],
    ),
    "what is allowed opens what it needs": (
        '{block: ["@bytedance"], allow: [capcut]}',
        shown(BYTEDANCE, "canary-names", without=("capcut", "bytedance-platform")),
        [],
        ["bytedance-platform", "capcut"],
    ),
    "one app is monitored": (
        '{block: ["@bytedance", temu], monitor: [pico, vk]}',
        shown(BYTEDANCE, "canary-names", "temu", without=("pico",)),
        ["pico", "vk"],
        [],
    ),
    "one app of a monitored set is blocked": (
        '{monitor: ["@bytedance"], block: [tiktok]}',
        ["canary-names", "tiktok"],
        shown(BYTEDANCE, without=("tiktok",)),
        [],
    ),
    "named itself as well as by its set": (
        '{block: ["@bytedance", tiktok, "@bytedance"]}',
        shown(BYTEDANCE, "canary-names"),
        [],
        [],
    ),
    "a set of sets": ('{block: ["@unwanted"]}', ["canary-names", "shein", "temu", "vk", "wechat"], [], []),
    "sets that overlap in one key": (
        '{block: ["@unwanted", "@shops"]}',
        ["canary-names", *["shein", "temu", "vk", "wechat"]],
        [],
        [],
    ),
    "an overlap that is settled": (
        '{block: ["@unwanted"], monitor: ["@shops"], allow: [temu, shein]}',
        ["canary-names", "vk", "wechat"],
        [],
        ["shein", "temu"],
    ),
    "companions that a set names": ('{block: ["@dns"]}', ["canary-names", "encrypted-dns"], [], []),
    "companions that a set lets through": (
        '{block: [vk], monitor: ["@dns"]}',
        ["vk"],
        ["canary-names", "encrypted-dns"],
        [],
    ),
    "a set that is all taken out blocks nothing": (
        '{block: ["@shops"], monitor: [temu, shein]}',
        [],
        ["shein", "temu"],
        [],
    ),
}
SETS = """sets:
  shops: [temu, "@shein"]
  unwanted: ["@shops", wechat, "@vk"]
  dns: [canary-names, encrypted-dns]
"""


@pytest.mark.parametrize("case", POLICIES)
def test_what_a_policy_is_made_of(case: str, tmp_path: Path) -> None:
    """Every app is in one of block, monitor and allow, and an app's own name counts more than a set's."""
    text, *wanted = POLICIES[case]
    [view] = group_views(inputs_of(tmp_path, f"{SETS}policies: {{unidentified: {text}}}"))
    assert [sorted(getattr(view, key)) for key in ("block", "monitor", "allow")] == wanted


#: Sections that begin in line 5 (`of` is the policy of everybody), the place that is named, and what is said of it.
ERRORS = [
    ('of: {block: ["@bytedanse"]}', "5: OF.block.0", "there is no set @bytedanse; there are @bytedance, @deepseek"),
    ('of: {monitor: ["@tiktok"]}', "5: OF.monitor.0", 'tiktok is an app, not a set; write it without "@"'),
    ('of: {allow: ["@"]}', "5: OF.allow.0", "there is no set @; there are"),
    (
        "sets: {shops: [temu]}\nof: {block: [shops]}",
        "6: OF.block.0",
        'there is no app shops, but a set: write "@shops"',
    ),
    ("sets: {shops: [temu, tému]}\nof: {}", "5: sets.shops.1", "there is no app tému; there are"),
    ('sets: {shops: [temu, "@none"]}\nof: {}', "5: sets.shops.1", "there is no set @none; there are"),
    ("sets: {shops: []}\nof: {}", "5: sets.shops", "the set is empty; name one app or set at least"),
    ("sets: {temu: [shein]}\nof: {}", "5: sets.temu", "temu is the name of an app; choose another name for the set"),
    ("sets: {pdd: [shein]}\nof: {}", "5: sets.pdd", "@pdd is the set of an owner's apps already; choose another name"),
    ('sets: {"@shops": [shein]}\nof: {}', "5: sets.@shops", "a set's name is lower-case letters"),
    ("sets: {Shops: [shein]}\nof: {}", "5: sets.Shops", "a set's name is lower-case letters"),
    ('sets: {a: ["", "@a"]}\nof: {}', "5: sets.a.0", "there is no app ; there are"),
    ('sets: {a: ["@a"]}\nof: {}', "5: sets.a.0", "the set contains itself: @a → @a; take one of them out"),
    (
        'sets:\n  a: [temu, "@b"]\n  b: ["@c"]\n  c: [shein, "@b"]\nof: {block: ["@a"]}',
        "8: sets.c.1",
        "the set contains itself: @b → @c → @b",
    ),
    ('of: {block: ["@vk"], monitor: ["@vk"]}', "5: OF.monitor", "@vk is blocked and monitored; keep one"),
    ("of: {block: [vk], allow: [vk]}", "5: OF.allow", "vk is allowed and blocked or monitored; keep one"),
    (
        'sets: {office: [lark, volcengine]}\nof: {block: ["@bytedance"], allow: [pico, "@office"]}',
        "6: OF.allow.1",
        "@office and @bytedance (in block) both have lark, volcengine; name each of these apps itself in block or ",
    ),
    (
        'of: {block: [vk], answer_by_app: {"@pdd": nodata}}',
        "5: OF.answer_by_app.@pdd",
        "no app of @pdd is blocked by this policy, so it has no answer",
    ),
    ('of: {block: [vk], answer_by_app: {"@no": drop}}', "5: OF.answer_by_app.@no", "there is no set @no; there are"),
    (
        "of: {block: [vk], answer_by_app: {temu: drop}}",
        "5: OF.answer_by_app.temu",
        "temu is not blocked by this policy",
    ),
    (
        'sets: {two: [vk, temu]}\nof: {block: ["@two"], answer_by_app: {"@two": drop, "@vk": null}}',
        "6: OF.answer_by_app.@vk",
        "@vk and @two both have vk, with another answer; name vk itself as well",
    ),
    ('of: {}\nexemptions: {apps: ["@nobody"]}', "6: exemptions.apps.0", "there is no set @nobody; there are"),
    (
        'apps: {builtin: false}\nof: {block: ["@bytedance"]}',
        "5: OF.block.0",
        "@bytedance has no apps: no app of the catalogue has this owner",
    ),
]


@pytest.mark.parametrize(("sections", "place", "text"), ERRORS)
def test_what_cannot_be_a_set_is_said_with_its_place(sections: str, place: str, text: str, tmp_path: Path) -> None:
    """Line and key, what is wrong, and what to write."""
    sections = re.sub(r"^of: (.*)$", r"policies: {unidentified: \1}", sections, flags=re.MULTILINE)
    place = place.replace("OF", "policies.unidentified")
    assert problems_of(tmp_path, sections)[0].startswith(f"{tmp_path}/blockd.yaml:{place}: {text}")


def test_an_answer_of_a_set_yields_to_an_apps_own(tmp_path: Path) -> None:
    """Apps of the set that are not blocked have none."""
    answers_of = '{tiktok: drop, "@bytedance": nodata}'
    policy = f'{{block: ["@bytedance"], allow: [lark], answer_by_app: {answers_of}}}'
    inputs = inputs_of(tmp_path, f"policies: {{unidentified: {policy}}}")
    answers = inputs.settings.policies["unidentified"].answer_by_app
    assert answers == {app: "drop" if app == "tiktok" else "nodata" for app in BYTEDANCE - {"lark"}}


def test_what_may_be_exempt_may_be_a_set(tmp_path: Path) -> None:
    """Each app of it is live."""
    inputs = inputs_of(
        tmp_path, 'policies: {unidentified: {block: [vk]}}\nexemptions: {apps: ["@bytedance", vk, temu]}'
    )
    assert set(inputs.live_apps()) == {*BYTEDANCE, "vk", "temu", "canary-names"}
    assert inputs.set_of == dict.fromkeys(BYTEDANCE, "@bytedance")


def test_a_set_that_is_too_large_is_refused_where_it_is_named(tmp_path: Path) -> None:
    """One bit an app: 64 are live at most, and `check` says how many are."""
    many = {f"own{at}": {"owner": "ByteDance Ltd."} for at in range(52)}
    sections = 'policies:\n  unidentified:\n    block:\n      - "@bytedance"'
    inputs = inputs_of(tmp_path, sections, many)
    assert len(inputs.live_apps()) == 64
    place = "policies.unidentified.block"
    assert problems_of(tmp_path, f'{sections}\n      - "@vk"\n      - temu') == [
        f"{tmp_path}/blockd.yaml:9: {place}.1: with the apps of @vk, 66 would be live; at most 64 can be",
        f"{tmp_path}/blockd.yaml:10: {place}.2: temu would be the 65th live app; at most 64 can be",
    ]
    more = {f"own{at}": {"owner": "ByteDance Ltd."} for at in range(53)}
    [problem] = problems_of(tmp_path, sections, more)
    assert problem.endswith(
        ":8: policies.unidentified.block.0: with the apps of @bytedance, 65 would be live; at most 64 can be"
    )


def test_a_gateway_is_asked_about_by_what_a_set_brings(tmp_path: Path) -> None:
    """The check for encrypted-dns on another machine's gateway sees it in a set, too."""
    for name in ("certificate", "key", "authority"):
        (tmp_path / name).write_text("")
    egress = 'egress: {listen: "192.0.2.1:99", certificate: certificate, key: key, authority: authority}'
    sections = f'sets: {{ways: [encrypted-dns]}}\npolicies: {{unidentified: {{block: ["@ways"]}}}}\n{egress}'
    file = config(tmp_path, sections)
    file.write_text(file.read_text().replace('["127.0.0.1:53"]', '["0.0.0.0:53"]'))
    with pytest.raises(InputError, match=r"encrypted-dns is blocked: name them under egress\.resolvers"):
        read_inputs(file)


def test_inputs_that_an_older_release_kept_are_read(tmp_path: Path) -> None:
    """A generation without a file of owners, and a snapshot that says nothing of sets, stay good."""
    inputs = inputs_of(tmp_path, "policies: {unidentified: {block: [tiktok]}}")
    kept = tmp_path / "kept"
    (kept / INPUTS).mkdir(parents=True)
    write_inputs(inputs, compile_snapshot(inputs, kept / SNAPSHOT), kept)
    manifest = json.loads((kept / MANIFEST).read_text())
    manifest["inputs"] = [item for item in manifest["inputs"] if not item["path"].endswith(OWNERS)]
    (kept / MANIFEST).write_text(json.dumps(manifest))
    again = read_inputs(inputs.config, Kept(kept))
    assert again.live_apps() == inputs.live_apps()
    assert again.sets.apps == {}
    assert (BUILTIN.parent / OWNERS).is_file()


def test_check_prints_what_sets_bring(tmp_path: Path) -> None:
    """Which apps, how many of the live ones, and a name that is easily taken for a set."""
    text = (
        'sets: {shops: [temu, shein], all: ["@bytedance", temu]}\n'
        "groups: {corporate: {networks: [192.0.2.0/24]}, lab: {networks: [198.51.100.0/24]},"
        " guests: {networks: [203.0.113.0/24]}}\n"
        'policies:\n  corporate: {block: ["@bytedance", "@shops", vk], allow: [lark]}\n'
        "  lab: {block: [bytedance, bytedance-platform]}\n"
        '  guests: {block: ["@all"], monitor: [lark]}\n'
        '  unidentified: {monitor: ["@bytedance"]}\n'
    )
    file = config(tmp_path, text)
    done = run(["check", "--config", str(file)])
    assert done.returncode == 0, done.stderr
    apps = ", ".join(sorted(BYTEDANCE))
    assert done.stdout.splitlines() == [
        "corporate: block @bytedance (10 apps), @shops (2 apps), canary-names, vk; allow lark",
        "lab: block bytedance, bytedance-platform, canary-names",
        "guests: block @all (11 apps), canary-names; monitor lark",
        "unidentified: monitor @bytedance (11 apps)",
        f"@all: {', '.join(sorted([*BYTEDANCE, 'temu']))}",
        f"@bytedance: {apps}",
        "@shops: shein, temu",
        "15 of 64 live apps are used",
    ]
    # Of the policies that name bytedance, one misses other apps of its owner.
    remarks = [line for line in done.stderr.splitlines() if "is one app" in line]
    text = f'{file}:9: policies.lab.block.0: bytedance is one app; the 11 apps of ByteDance are "@bytedance" ?'
    assert remarks == [text]
    found = json.loads(run(["check", "--json", "--config", str(file)]).stdout)
    assert found["sets"] == {
        "@all": sorted([*BYTEDANCE, "temu"]),
        "@bytedance": sorted(BYTEDANCE),
        "@shops": ["shein", "temu"],
    }
    assert found["live_apps"] == {"used": 15, "limit": 64}
    assert found["groups"]["corporate"]["block"] == shown(
        BYTEDANCE, "canary-names", "shein", "temu", "vk", without=("lark",)
    )


def test_sets_are_listed(tmp_path: Path) -> None:
    """Those of owners without a config; a site's own beside them."""
    assert re.search(r"^@bytedance +ByteDance +11 +bytedance, ", run(["apps", "sets"]).stdout, re.MULTILINE)
    file = config(tmp_path, 'sets: {shops: [temu, "@shein"]}\npolicies: {unidentified: {}}')
    listed = json.loads(run(["apps", "sets", "--json", "--config", str(file)]).stdout)
    assert {row["set"]: row["apps"] for row in listed}["@shops"] == ["shein", "temu"]
    assert re.search(r"^sets +@pdd, @shops$", run(["apps", "show", "temu", "--config", str(file)]).stdout, re.MULTILINE)
    done = run(["apps", "show", "@shops", "--config", str(file)])
    assert (done.returncode, done.stderr) == (1, "blockd apps: @shops is a set of apps; it has shein, temu\n")


@dataclass
class Scene:
    """A daemon whose policies name sets."""

    blockd: Blockd
    control: Path
    page: int


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Corporate devices are refused what ByteDance owns, but for Lark; guests are counted."""
    directory, page = tmp_path_factory.mktemp("sets"), free_port()
    with Upstream({}) as upstream, socket_for_all() as control:
        for name in ("www.tiktok.com", "www.capcut.com", "www.larksuite.com", "www.temu.com"):
            upstream.records[name] = [f"{name}. 300 IN A 192.0.2.1"]
        (directory / "devices.csv").write_text("address,hostname,serial\n127.0.0.41,pc-1,SER-1\n")
        with Blockd(
            directory,
            [upstream.address],
            log={"format": "json"},
            admin={"socket": str(control)},
            sets={"shops": ["temu", "shein"]},
            groups={"corporate": {"networks": ["127.0.0.1/32"], "inventory": [{"file": "devices.csv"}]}},
            policies={
                "corporate": {
                    "block": ["@bytedance", "@shops"],
                    "allow": ["lark"],
                    "answer": "sinkhole",
                    "sinkhole": {"ipv4": "127.0.0.1"},
                },
                "guest": {"monitor": ["@bytedance"]},
                "personal": {"block": ["tiktok"]},
            },
            block_page={"listen": [f"127.0.0.1:{page}"]},
            exemptions={"teams": {"cyber": [ALICE, CAROL]}, "requesters": [CAROL], "mitigations": ["x"]},
        ) as blockd:
            yield Scene(blockd, control, page)


def test_a_refusal_names_the_app_and_the_set(scene: Scene) -> None:
    """In the log, in `explain` and on the block page; a policy that names the app itself has no set to show."""
    ask(scene.blockd, "www.tiktok.com", client=CORPORATE)
    ask(scene.blockd, "www.temu.com", client=CORPORATE)
    ask(scene.blockd, "www.tiktok.com", client=PERSONAL)
    ask(scene.blockd, "www.larksuite.com", client=CORPORATE)
    rows = {(row["group"], row["app"]): row for row in lines(scene.blockd, 4)}
    assert {key: row.get("set") for key, row in rows.items()} == {
        ("corporate", "tiktok"): "@bytedance",
        ("corporate", "temu"): "@shops",
        ("personal", "tiktok"): None,
        ("corporate", "lark"): None,
    }
    explained = scene.blockd.run("explain", "--client", CORPORATE, "www.tiktok.com").stdout
    assert "view      block @bytedance (10 apps), @shops (2 apps), canary-names; monitor -; allow lark" in explained
    assert "set       @bytedance\nverdict   block (tiktok)" in explained
    status = scene.blockd.run("status").stdout
    assert re.search(
        r"^corporate +\S+ +@bytedance \(10 apps\), @shops \(2 apps\), canary-names +- +lark$", status, re.M
    )
    other = json.loads(scene.blockd.run("explain", "--json", "--client", PERSONAL, "www.tiktok.com").stdout)
    assert (other["app"], other["set"]) == ("tiktok", None)
    text = get(scene.page, "www.tiktok.com")[2]
    assert "It is one of the apps of ByteDance (@bytedance) that are blocked." in text
    assert "It is one of the apps of @shops that are blocked." in get(scene.page, "www.temu.com")[2]
    assert rcode(ask(scene.blockd, "www.larksuite.com", client=CORPORATE)) == "NOERROR"


def test_a_metric_joins_apps_and_sets(scene: Scene) -> None:
    """One series a live app, so that a sum by set counts nothing twice; decisions keep the labels that they had."""
    rows = [row for row in scene.blockd.metrics() if row.startswith("blockd_app_info{")]
    pairs = [re.findall(r'="([^"]*)"', row) for row in rows]
    found = {app: name for app, name in pairs}
    assert len(rows) == len(found)
    assert found == {
        **dict.fromkeys(BYTEDANCE - {"lark"}, "@bytedance"),
        "lark": "@bytedance",
        "temu": "@shops",
        "shein": "@shops",
        "canary-names": "",
    }
    ask(scene.blockd, "www.tiktok.com", client=CORPORATE)
    decisions = [row for row in scene.blockd.metrics() if row.startswith("blockd_decisions_total{")]
    assert all(re.fullmatch(r'.*\{action="[^"]*",app="[^"]*",group="[^"]*"\}', row) for row in decisions), decisions


def test_a_report_is_about_apps_of_a_set(scene: Scene) -> None:
    """`--app @NAME` is every app of it; each is shown with its set."""
    ask(scene.blockd, "www.capcut.com", client=GUEST)
    found = json.loads(scene.blockd.run("report", "--json", "--app", "@bytedance").stdout)
    assert {app["app"]: app["set"] for app in found["apps"]} == dict.fromkeys(BYTEDANCE, "@bytedance")
    assert "CapCut (capcut, @bytedance): block for corporate; monitor for guest" in scene.blockd.run("report").stdout
    assert "there is no set @nobody" in scene.blockd.run("report", "--app", "@nobody").stderr


def test_an_exemption_of_a_set_is_one_of_its_apps(scene: Scene) -> None:
    """The ledger has the apps that were live when it was asked for: an upgrade adds nothing to an exemption."""
    wish = {
        "device": "SER-1",
        "purpose": "casework",
        "team": "cyber",
        "clearance": "M-1",
        "mitigations": ["x"],
        "expires_at": "2099-01-01T00:00:00+00:00",
    }
    assert "at most (exemptions.longest)" in ask_as(CAROL, scene.control, "request", apps=["@shops"], **wish)["error"]
    wish["expires_at"] = _tomorrow()
    for apps, said in ((["@vk"], "no app of @vk is live"), (["@none"], "@none is not live")):
        assert said in ask_as(CAROL, scene.control, "request", apps=apps, **wish)["error"]
    asked = ask_as(CAROL, scene.control, "request", apps=["@shops", "capcut"], **wish)
    assert asked["exemption"]["apps"] == ["shein", "temu", "capcut"]
    name = asked["exemption"]["name"]
    assert ask_as(ALICE, scene.control, "approve", exemption=name)["ok"]
    for host, wanted in (("www.temu.com", True), ("www.capcut.com", True), ("www.tiktok.com", False)):
        reply = ask(scene.blockd, host, client="127.0.0.41")
        assert ("192.0.2.1" in str(reply.answer)) == wanted, host
    explained = json.loads(scene.blockd.run("explain", "--json", "--client", "127.0.0.41", "www.temu.com").stdout)
    assert (explained["action"], explained["set"]) == ("exempt", "@shops")
    assert ask_as(CAROL, scene.control, "revoke", exemption=name, reason="done")["ok"]


def _tomorrow() -> str:
    return (datetime.now(UTC) + timedelta(days=1)).isoformat()


def test_a_decision_about_one_app_of_a_set_changes_that_app(scene: Scene) -> None:
    """The others stay as the set has them; a decision about a whole set is refused with the apps that it has."""
    refused = ask_as(CAROL, scene.control, "decide", app="@shops", to="monitor", reason="a review")
    assert "a decision is about one app; @shops has shein, temu" in refused["error"]
    name = ask_as(CAROL, scene.control, "decide", app="tiktok", to="monitor", reason="a review")["decision"]["name"]
    assert ask_as(ALICE, scene.control, "agree", decision=name)["ok"]
    told = {host: str(ask(scene.blockd, host, client=CORPORATE).answer) for host in ("www.tiktok.com", "www.temu.com")}
    assert "192.0.2.1" in told["www.tiktok.com"]
    assert "127.0.0.1" in told["www.temu.com"]
    views = json.loads(scene.blockd.run("check", "--json").stdout)["groups"]["corporate"]
    assert views["monitor"] == ["tiktok"]
    assert views["block"] == shown(BYTEDANCE, "canary-names", "temu", "shein", without=("lark", "tiktok"))
    explained = json.loads(scene.blockd.run("explain", "--json", "--client", CORPORATE, "www.tiktok.com").stdout)
    assert (explained["action"], explained["set"]) == ("monitor", "@bytedance")


def test_a_snapshot_keeps_the_sets_of_each_view(tmp_path: Path) -> None:
    """For whoever shows a decision without the inputs at hand."""
    inputs = inputs_of(tmp_path, 'policies: {unidentified: {block: ["@vk", temu]}}')
    file = tmp_path / "snapshot"
    compile_snapshot(inputs, file)
    meta = read_meta(load(str(file)))
    assert meta["sets"] == [{"vk": "@vk"}]
    assert [said["set"] for said in meta["about"]] == [None, None, "@vk"]
