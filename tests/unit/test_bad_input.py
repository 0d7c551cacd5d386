"""Bad input is a clear error with file, line and key, and nothing is lost."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from blockd.problems import InputError
from blockd.settings.document import Document
from blockd.settings.schema import Settings
from tests.conftest import Serve
from tests.support import warm
from tests.support.daemon import Blockd, config
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.upstream import Upstream


def check(directory: Path, values: dict[str, Any] | str) -> subprocess.CompletedProcess[str]:
    """Run `blockd check` on a config."""
    file = directory / "blockd.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False))
    (directory / "apps").mkdir(exist_ok=True)
    return warm.run(["check", "--config", str(file)])


def sample() -> dict[str, Any]:
    """Give a good config."""
    return config(["127.0.0.1:53"], 5353, 9153)


Change = Callable[[dict[str, Any]], Any]
FAR = {"enabled": True, "listen": "127.0.0.1:8530", "certificate": "c", "key": "k", "authority": "a"}

CASES: dict[str, tuple[Change, str]] = {
    "unknown-key": (lambda c: c["server"].update(lisen=1), r"server\.lisen: unknown key; known here: listen, threads"),
    "firewalls-without-certificates": (
        lambda c: c.update(egress={"enabled": True, "listen": "127.0.0.1:8530", "key": "k"}),
        r"egress\.listen: it needs egress\.certificate, egress\.authority",
    ),
    "firewalls-that-would-cut-us-off": (
        lambda c: (
            c["server"].update(listen=["0.0.0.0:53"]),
            c["policies"]["corporate"].update(block=["encrypted-dns"]),
            c.update(egress=FAR),
        ),
        r"egress\.listen: .* where server\.listen says 0\.0\.0\.0, .* name them under egress\.resolvers",
    ),
    "unknown-section": (lambda c: c.update(sever={}), r"sever: unknown key; known here: server, admin"),
    "unknown-policy-key": (
        lambda c: c["policies"]["personal"].update(blok=[]),
        r"policies\.personal\.blok: unknown key; known here: block, monitor",
    ),
    "wrong-type": (lambda c: c["cache"].update(size_mb="big"), r"cache\.size_mb: .*integer.*'big'"),
    "bool-for-number": (lambda c: c["cache"].update(size_mb=True), r"cache\.size_mb: "),
    "out-of-bounds": (
        lambda c: c["cache"].update(size_mb=0),
        r"cache\.size_mb: .*greater than or equal to 1.*0 stands",
    ),
    "missing-key": (lambda c: c["server"].pop("listen"), r"server\.listen: this key is missing"),
    "bad-cidr": (
        lambda c: c["groups"]["corporate"].update(networks=["10.20.0.1/16"]),
        r"groups\.corporate\.networks\.0: '10\.20\.0\.1/16' is no network: .*did you mean 10\.20\.0\.0/16\?",
    ),
    "no-cidr": (lambda c: c["groups"]["corporate"].update(networks=["ten"]), r"networks\.0: 'ten' is no network"),
    "mapped-cidr": (
        lambda c: c["groups"]["corporate"].update(networks=["::ffff:10.0.0.0/104"]),
        r"write them as IPv4",
    ),
    "same-prefix-twice": (
        lambda c: c["groups"]["personal"].update(networks=["127.0.0.1/32"]),
        r"groups\.personal\.networks\.0: 127\.0\.0\.1/32 is in group corporate already \(line \d+\)",
    ),
    "group-without-policy": (lambda c: c["policies"].pop("guest"), r"groups\.guest: this group has no policy"),
    "no-policy-for-the-rest": (
        lambda c: c["policies"].pop("unidentified"),
        r"policies: the policy of unidentified is missing",
    ),
    "policy-without-group": (lambda c: c["policies"].update(boss={}), r"policies\.boss: no group has this name"),
    "group-called-unidentified": (
        lambda c: c["groups"].update(unidentified={}),
        r"groups\.unidentified: everybody else is unidentified",
    ),
    "bad-group-name": (
        lambda c: (c["groups"].update({'a"b': {}}), c["policies"].update({'a"b': {}})),
        r"a group's name is lower-case",
    ),
    "no-such-app": (
        lambda c: c["policies"]["corporate"].update(block=["tictoc"]),
        r"policies\.corporate\.block\.0: there is no app tictoc; there are .*tiktok",
    ),
    "allowed-and-blocked": (
        lambda c: c["policies"]["corporate"].update(allow=["tiktok"]),
        r"policies\.corporate\.allow: tiktok is allowed and blocked or monitored",
    ),
    "sinkhole-without-address": (
        lambda c: c["policies"]["corporate"].update(answer="sinkhole"),
        r"policies\.corporate: answer: sinkhole needs",
    ),
    "bad-answer": (lambda c: c["policies"]["corporate"].update(answer="nx"), r"policies\.corporate\.answer: "),
    "answer-for-no-block": (
        lambda c: c["policies"]["personal"].update(answer_by_app={"tiktok": "drop"}),
        r"answer_by_app\.tiktok: tiktok is not blocked by this policy",
    ),
    "bad-upstream": (lambda c: c["upstream"].update(servers=["dns.example"]), r"upstream\.servers.*: .*no address"),
    "no-upstream": (lambda c: c["upstream"].update(servers=[]), r"upstream\.servers: expected at least one server"),
    "bad-zone": (lambda c: c["upstream"].update(zones={"a b": ["127.0.0.1"]}), r"zones\.a b: 'a b' is no domain name"),
    "empty-zone": (lambda c: c["upstream"].update(zones={"a.b": []}), r"zones\.a\.b: expected at least one server"),
    "bad-listen": (lambda c: c["server"].update(listen=["127.0.0.1"]), r"server\.listen\.0: .*needs a port"),
    "no-such-directory": (lambda c: c["apps"].update(directory="nowhere"), r"nowhere: there is no such directory"),
    "blocked-and-monitored": (
        lambda c: c["policies"]["corporate"].update(monitor=["tiktok"]),
        r"policies\.corporate\.monitor: tiktok is blocked and monitored; keep one",
    ),
    "listen-twice": (
        lambda c: c["server"].update(listen=["127.0.0.1:5353", "127.0.0.1:5353"]),
        r"server\.listen\.1: 127\.0\.0\.1:5353 stands here twice",
    ),
    "zone-twice": (
        lambda c: c["upstream"].update(zones={"A.b": ["127.0.0.1"], "a.b.": ["127.0.0.1"]}),
        r"zones\.A\.b: a\.b stands here twice",
    ),
    "odd-endpoint": (lambda c: c["server"].update(listen=["[::1]5353"]), r"server\.listen\.0: .*is no address"),
    "far-too-many": (
        lambda c: c["upstream"].update(pending_a_client=5_000_000_000),
        r"upstream\.pending_a_client: .*less than or equal to 1000000",
    ),
    "control-characters": (lambda c: c["answers"].update(contact="a\x1b[31m"), r"answers\.contact: .*printable"),
    "section-is-a-list": (lambda c: c.update(cache=[]), r"cache: "),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_config_says_what_and_where(case: str, tmp_path: Path) -> None:
    """File, line, key, what was expected; exit code 1, no traceback."""
    change, wanted = CASES[case]
    values = sample()
    change(values)
    done = check(tmp_path, values)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(wanted, done.stderr), done.stderr
    assert done.stderr.startswith(str(tmp_path)), done.stderr


TEXTS = {
    "bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", r"blockd\.yaml:1: anchors and aliases"),
    "no-yaml": ("server: [\n", r"blockd\.yaml:2: this is no YAML"),
    "twice": ("cache: {}\nserver: {}\ncache: {}\n", r"blockd\.yaml:3: cache: the key stands twice, first in line 1"),
    "no-mapping": ("- a\n- b\n", r"expected keys and values at the top"),
    "deep": ("a: " + "[" * 50 + "]" * 50, r"nested more than 20 deep"),
    # PyYAML 6.0.3 has a bound of its own, which may bite first.
    "very-deep": ("x: " + "[" * 5000, r"blockd\.yaml:1: (nested more than 20 deep|.*exceeded maximum nesting depth)"),
    "no-date": ("answers: {contact: 2024-02-30}\n", r"blockd\.yaml:1: answers\.contact: this value cannot be read"),
    "no-int": ("cache: {size_mb: !!int abc}\n", r"blockd\.yaml:1: cache\.size_mb: this value cannot be read"),
    "huge-number": ("cache: {size_mb: " + "9" * 5000 + "}\n", r"blockd\.yaml:1: cache\.size_mb: this value cannot"),
    "tag": ("server: !!python/object/apply:os.system [id]\n", r"blockd\.yaml"),
    "empty": ("", r"server: this key is missing"),
    "binary": ("\x00\x01", r"this is no YAML"),
}


def test_alternatives_are_one_error() -> None:
    """What may be a word or something else: one line says both, and none of it where the value is the other one."""
    servers = ["localhost", "10.1.1.1:99999"]
    for section, change, expected in (
        ("server", {"threads": "many"}, ["threads: input should be 'auto' or a valid integer, but 'many' stands here"]),
        ("server", {"threads": [1]}, ["threads: input should be 'auto' or a valid integer"]),
        ("server", {"threads": -1}, ["threads: expected auto or a number from 1 to 256"]),
        (
            "upstream",
            {"servers": "systm"},
            ["servers: input should be 'system' or a valid list, but 'systm' stands here"],
        ),
        ("upstream", {"servers": [1]}, ["servers.0: expected "]),
        ("upstream", {"servers": servers}, ["servers.0: 'localhost' is ", "servers.1: '10.1.1.1:99999' needs a port "]),
        ("upstream", {}, ["servers: this key is missing"]),
    ):
        values = sample() | {section: sample()[section] | change if change else {}}
        with pytest.raises(InputError) as error:
            Document(Path("x.yaml"), yaml.safe_dump(values).encode()).validate(Settings)
        found = [f"{problem.key}: {problem.text}" for problem in error.value.problems]
        assert len(found) == len(expected), found
        for line, begin in zip(found, expected, strict=True):
            assert line.startswith(f"{section}.{begin}"), line


@pytest.mark.parametrize("case", TEXTS)
def test_a_file_that_is_no_config_says_so(case: str, tmp_path: Path) -> None:
    """Whatever the bytes are."""
    text, wanted = TEXTS[case]
    done = check(tmp_path, text)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(wanted, done.stderr), done.stderr


APPS: dict[str, tuple[dict[str, Any], str]] = {
    "public-suffix": ({"suffixes": ["co.uk"]}, r"x\.yaml:\d+: suffixes\.0: co\.uk is a public suffix"),
    "no-name": ({"suffixes": ["not a name"]}, r"suffixes\.0: 'not a name' is no domain name: a character"),
    "long-label": ({"hosts": ["a" * 64 + ".example"]}, r"hosts\.0: .* a label of more than 63 octets"),
    "long-name": ({"hosts": [".".join(["a" * 60] * 5)]}, r"a name of more than 255 octets"),
    "empty-label": ({"holes": ["a..b"], "hosts": ["a.b"]}, r"holes\.0: .* an empty label"),
    "no-rule": ({}, r"the app has no rule"),
    "needs-nobody": ({"hosts": ["a.example"], "needs": ["ghost"]}, r"needs\.0: there is no app ghost"),
    "bad-network": ({"networks": ["71.18.0.1/16"]}, r"networks\.0: .*did you mean 71\.18\.0\.0/16"),
    "unknown-key": ({"hosts": ["a.example"], "sufixes": []}, r"sufixes: unknown key; known here: app, title"),
    "bad-list": ({"lists": [{"file": "l", "format": "xml"}]}, r"lists\.0\.format: "),
    "list-is-gone": (
        {"lists": [{"file": "l", "format": "hosts"}]},
        r"lists\.0\.file: .*/l cannot be read: No such file",
    ),
    "name-of-another": ({"app": "tiktok", "hosts": ["a.example"]}, r"app: the file of tiktok is called tiktok\.yaml"),
}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("policies: {unidentified: {block: [@bytedance]}}", "@bytedance"),
        ("policies: {unidentified: {block: [vk, @bytedance, temu]}}", "@bytedance"),
        ("policies:\n  unidentified:\n    block:\n      - @shops # all of them", "@shops"),
        ("policies: {unidentified: {block: [vk], answer_by_app: {@vk: drop}}}", "@vk"),
        ("sets:\r\n  é: ['ü', @x-y]", "@x-y"),
        ("sets:\n  a: `b`", "`b`"),
    ],
)
def test_a_word_that_yaml_reserves_is_to_be_quoted(text: str, word: str, tmp_path: Path) -> None:
    """YAML keeps "@" for itself, and its own text for that does not say what to write."""
    with pytest.raises(InputError) as raised:
        Document(tmp_path / "blockd.yaml", text.encode())
    line = 1 + text[: text.index(word)].count("\n")
    wanted = f'blockd.yaml:{line}: this is no YAML: {word[0]} cannot begin a value; quote it: "{word}"'
    assert str(raised.value).endswith(wanted)


@pytest.mark.parametrize("case", APPS)
def test_a_bad_app_says_what_and_where(case: str, tmp_path: Path) -> None:
    """The app's file, its line and key."""
    app, wanted = APPS[case]
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "x.yaml").write_text(yaml.safe_dump({"app": "x", "title": "X", **app}, sort_keys=False))
    values = sample()
    values["policies"]["corporate"]["block"] = ["x"]
    done = check(tmp_path, values)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(wanted, done.stderr), done.stderr


def test_what_looks_bad_but_is_meant_is_taken(tmp_path: Path) -> None:
    """A public suffix with `public_suffix: true`, an IDN, nested prefixes, an app twice needed."""
    (tmp_path / "apps").mkdir()
    app = {"app": "x", "title": "X", "suffixes": ["zip", "bücher.example"], "public_suffix": True, "needs": ["tiktok"]}
    (tmp_path / "apps" / "x.yaml").write_text(yaml.safe_dump(app))
    values = sample()
    values["policies"]["corporate"]["block"] = ["x"]
    values["groups"]["corporate"]["networks"] = ["127.0.0.0/24", "::1/128"]
    done = check(tmp_path, values)
    assert done.returncode == 0, done.stderr
    assert "corporate: block canary-names, x" in done.stdout


def test_odd_but_good_values_are_taken(tmp_path: Path) -> None:
    """A zone with an umlaut, `answer: null` without quotes, contacts that make no mailbox, an editor's lock file."""
    values = sample()
    values["upstream"]["zones"] = {"bücher.example": ["127.0.0.1"]}
    values["policies"]["corporate"]["answer"] = None
    for contact in ("x" * 70 + "@dept.example", "mailto:a@b..c", "//[x", "https://intranet/ask"):
        values["answers"]["contact"] = contact
        (tmp_path / "apps").mkdir(exist_ok=True)
        (tmp_path / "apps" / ".#lock.yaml").write_text("{")
        done = check(tmp_path, values)
        assert done.returncode == 0, done.stderr


def test_a_page_that_is_no_list_is_refused(tmp_path: Path) -> None:
    """HTML, or another encoding: not one name, so the list before stays. An empty file is somebody's decision."""
    (tmp_path / "apps").mkdir()
    app = {"app": "x", "title": "X", "lists": [{"file": "l", "format": "domains"}]}
    (tmp_path / "apps" / "x.yaml").write_text(yaml.safe_dump(app))
    values = sample()
    values["policies"]["corporate"]["block"] = ["x"]
    for data in (b"<html><body>502</body></html>\n", "a.example\n".encode("utf-16")):
        (tmp_path / "apps" / "l").write_bytes(data)
        done = check(tmp_path, values)
        assert done.returncode == 1
        assert re.search(r"apps/l:1: none of \d+ lines gives a name, so this is no list", done.stderr), done.stderr
    (tmp_path / "apps" / "l").write_text("# nothing now\n")
    assert check(tmp_path, values).returncode == 0


def test_a_pipe_and_a_wrong_ending_are_no_files(tmp_path: Path) -> None:
    """What would hang or be overlooked is named."""
    (tmp_path / "apps").mkdir()
    os.mkfifo(tmp_path / "apps" / "x.yaml")
    done = check(tmp_path, sample())
    assert done.returncode == 1
    assert "apps/x.yaml: cannot be read: it is no regular file" in done.stderr
    (tmp_path / "apps" / "x.yaml").unlink()
    (tmp_path / "apps" / "y.yml").write_text("app: y\n")
    done = check(tmp_path, sample())
    assert done.returncode == 1
    assert "apps/y.yml: is not read: rename it to .yaml" in done.stderr


def test_the_65th_live_app_is_refused(tmp_path: Path) -> None:
    """64 are taken, the canary names that come with any block among them; one more is named with its place."""
    (tmp_path / "apps").mkdir()
    names = [f"a{at}" for at in range(65)]
    for name in names:
        (tmp_path / "apps" / f"{name}.yaml").write_text(f"{{app: {name}, title: A, hosts: [{name}.example]}}")
    values = sample()
    values["policies"] = {group: {} for group in (*values["groups"], "unidentified")}
    values["policies"]["corporate"]["block"] = names[:63]
    assert check(tmp_path, values).returncode == 0
    values["policies"]["personal"]["monitor"] = names[63:64]
    done = check(tmp_path, values)
    assert done.returncode == 1
    assert "policies.personal.monitor.0: a63 would be the 65th live app; at most 64 can be" in done.stderr


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """A config that is a directory, and one that is not there."""
    for path in (tmp_path, tmp_path / "none.yaml"):
        done = warm.run(["serve", "--config", str(path)])
        assert done.returncode == 1
        assert done.stderr.startswith(f"{path}: cannot be read")


@pytest.mark.parametrize(
    ("kind", "key"), [("udp", "server.listen"), ("tcp", "server.listen"), ("admin", "admin.listen")]
)
def test_a_port_in_use_is_fatal_and_named(kind: str, key: str, tmp_path: Path, upstream: Upstream) -> None:
    """The message has the key, the address and what to do; nothing is left running."""
    blockd = Blockd(tmp_path, [upstream.address])
    port = blockd.admin if kind == "admin" else blockd.port
    with socket.socket(type=socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", port))
        if kind != "udp":
            taken.listen()
        with pytest.raises(AssertionError, match=rf"{re.escape(key)}: 127.0.0.1:{port}.*the port is in use"):
            blockd.start()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("precious.txt", "is there and is not a socket"), ("/proc/x.sock", "admin.socket: /proc/x.sock")],
)
def test_a_socket_path_that_cannot_be_is_fatal_and_named(
    name: str, wanted: str, tmp_path: Path, upstream: Upstream
) -> None:
    """A file that stands there stays; the key and the path are in the message."""
    (tmp_path / "precious.txt").write_text("mine")
    blockd = Blockd(tmp_path, [upstream.address], admin={"socket": name})
    with pytest.raises(AssertionError, match=wanted) as failed:
        blockd.start()
    assert "Traceback" not in str(failed.value)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_second_daemon_is_refused_and_the_first_stays(serve: Serve, upstream: Upstream) -> None:
    """The same config started twice: the second ends with a reason."""
    blockd = serve([upstream.address])
    done = blockd.run("serve")
    assert done.returncode == 1
    assert "blockd cannot start: state.directory" in done.stderr
    assert "another blockd is running with it" in done.stderr
    assert rcode(ask(blockd, "tiktok.com", client=CORPORATE)) == "NXDOMAIN"
    assert blockd.run("reload").returncode == 0


def test_check_gives_json(tmp_path: Path) -> None:
    """The same, for machines."""
    file = tmp_path / "blockd.yaml"
    values = sample()
    values["apps"] = {}
    file.write_text(yaml.safe_dump(values))
    command = ["check", "--json", "--config", str(file)]
    done = warm.run(command)
    assert json.loads(done.stdout)["groups"]["guest"]["monitor"] == ["tiktok"]
    file.write_text("cache: 1\n")
    done = warm.run(command)
    assert done.returncode == 1
    problems = json.loads(done.stdout)["problems"]
    assert problems[0]["file"] == str(file)
    assert {"line", "key", "text"} <= set(problems[0])
