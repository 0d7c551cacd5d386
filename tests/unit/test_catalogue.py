"""The catalogue that is shipped: what it blocks, what it leaves alone, and what a site may do to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.message
import pytest
import yaml

from blockd.apps.catalogue import BUILTIN, Catalogue, load_catalogue
from blockd.fastpath import Fastpath, load
from blockd.policy.compile import compile_snapshot
from blockd.policy.explain import read_meta
from blockd.policy.inputs import read_inputs
from blockd.problems import InputError
from blockd.settings.source import Disk
from tests.conftest import Serve
from tests.support.questions import CORPORATE, GUEST, PERSONAL, ask, ede, rcode
from tests.support.upstream import Upstream, answer

#: Named by three list families or more that do not copy each other, app by app.
WELL_KNOWN = {
    "tiktok": """
        tiktok.com tiktokv.com tiktokv.us tiktokv.eu tiktokw.us tiktokw.eu tik-tokapi.com tiktok-row.net tiktokd.org
        tiktoklb.eu musical.ly tiktokcdn.com tiktokcdn-us.com tiktokcdn-eu.com tiktokcdn-eu.net tiktokcdn-in.com
        tiktokrow-cdn.com tiktokeu-cdn.com ttwstatic.com ttlivecdn.com ttcdn-us.com ttoverseaus.net muscdn.com
        pitaya-clientai.com tiktokshop.com tiktokglobalshopv.com tiktokpangle.us tiktokpangle-b.us
        tiktokpangle-cdn-us.com p16-tiktokcdn-com.akamaized.net v16-tiktokcdn-com.akamaized.net
        tiktokcdn-com.akamaized.net""",
    "bytedance-platform": """
        byteoversea.com byteoversea.net ibytedtos.com ibyteimg.com isnssdk.com sgsnssdk.com ipstatp.com sgpstatp.com
        snssdk.com pstatp.com byteimg.com bytecdn.cn bytedapm.com bytedance.com bytedance.net byted.org bytedanceapi.com
        byteintl.net bytegoofy.com bytescm.com bdurl.net ttdns2.com ttdns3.com bytefcdn-oversea.com bytefcdn-ttpeu.com
        bytetcdn.com worldfcdn.com worldfcdn2.com byteglb.com bytedns.net bytedns1.com bytelb.com bytelb.net bdgslb.com
        bytedance.map.fastly.net bytegeo.akadns.net bytewlb.akadns.net bytedance.akadns.net""",
    "capcut": "capcut.com capcutcdn-us.com",
    "bytedance": "douyin.com amemv.com ixigua.com toutiao.com huoshan.com jinritemai.com",
}

NOBODYS = """
    nottiktok.com aaatiktok.com tiktok.com.example.org gondola.com tiktok.example notcapcut.com mytiktokv.com
    akamaized.net edgesuite.net edgekey.net akadns.net map.fastly.net cdn.cloudflare.net w.cdngslb.com appsflyersdk.com
    www.apple.com.edgekey.net www.bbc.co.uk.edgesuite.net img.alicdn.com.w.kunluncan.com gov.map.fastly.net
    e35058.api3.akamaiedge.net a1240.b.akamai.net whoami.akamai.net app-measurement.com ttvnw.net api.omtrdc.net
    nottiktok.com.edgesuite.net tiktok.com.example.edgesuite.net.example fly.io eth.link
    dns.uk-london-1.oraclecloud.com www.icloud.com google.com one.one www.opendns.com"""

#: Whose they are is not established, or they may belong to anybody tomorrow.
HELD = """
    tiktok.tv tiktok.org business-tiktok.com moonton.com mobilelegends.com rsc.cdn77.org cloudfront.net
    apps.googleusercontent.com elb.us-east-1.amazonaws.com akamai.net"""

LARK = """
    larksuite.com open.larksuite.com www.feishu.cn p3-lark-file.larksuitecdn.com internal-api.feishu.cn
    lark-frontier-sg.byteoversea.com lark-frontier.snssdk.com feishu-tos.pstatp.com www.larksuite.com.ttdns2.com
    www.larksuite.com.ttdns1.com mail.larkoffice.com.bytedns1.com a.lark-frontier-va.bytelb.net
    www.larksuite.com.edgekey.net"""


def compiled(
    tmp_path: Path, policy: dict[str, Any], files: dict[str, Any] | None = None, *, builtin: bool = True
) -> tuple[Fastpath, list[str]]:
    """Compile a policy over the shipped catalogue, and a site's files; give the hot path, and the apps by bit."""
    apps = tmp_path / "apps"
    apps.mkdir(exist_ok=True)
    for name, values in (files or {}).items():
        (apps / name).write_text(yaml.safe_dump(values))
    config = tmp_path / "blockd.yaml"
    values = {
        "server": {"listen": ["127.0.0.1:53"]},
        "admin": {"listen": "127.0.0.1:9153"},
        "upstream": {"servers": ["127.0.0.53:53"]},
        "apps": {"directory": "apps", "builtin": builtin},
        "policies": {"unidentified": policy},
    }
    config.write_text(yaml.safe_dump(values))
    file = tmp_path / "snapshot"
    compile_snapshot(read_inputs(config), file)
    snapshot = load(str(file))
    return Fastpath(snapshot, [], 0, 0), read_meta(snapshot)["apps"]


def action(fastpath: Fastpath, name: str, *records: str) -> str:
    """Say what is done with a name, as if the upstream answered with these records."""
    wire = answer(dns.message.make_query(name, "A"), *(records or (f"{name}. 60 IN A 192.0.2.1",)))
    return fastpath.decide("192.0.2.1", name, 1, wire)["action"]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """Give what is shipped."""
    return load_catalogue(True, None, Disk())


def test_every_app_that_is_promised_is_there(catalogue: Catalogue) -> None:
    """One file an app, each with title, owner, rules and evidence for rules that exist."""
    promised = """tiktok bytedance bytedance-platform capcut lemon8 lark volcengine byteplus pico tokopedia
        bytedance-games wechat temu shein deepseek rednote vk telegram kaspersky kuaishou encrypted-dns canary-names"""
    assert set(catalogue.entries) == set(promised.split())
    for name, entry in catalogue.entries.items():
        assert entry.app.title, name
        assert entry.app.owner or name in ("encrypted-dns", "canary-names"), name
        rules = {rule for _, rule in entry.places}
        assert set(entry.app.evidence) <= rules, name
        names = {rule for key, rule in entry.places if key in ("suffixes", "hosts", "patterns", "networks")}
        assert names <= set(entry.app.evidence), name
    assert catalogue.entries["tiktok"].app.takes.keys() == {"contacts", "content", "location"}
    assert catalogue.needs("tiktok") == {"tiktok", "bytedance-platform"}
    assert catalogue.needs("lark") == {"lark"}


def test_what_is_well_known_is_blocked(tmp_path: Path) -> None:
    """Each name, a name below it, and what hides behind an alias to it."""
    apps = [*WELL_KNOWN]
    fastpath, live = compiled(tmp_path, {"block": apps})
    for app, names in WELL_KNOWN.items():
        for name in names.split():
            decision = fastpath.decide("192.0.2.1", name, 1)
            assert (decision["action"], live[decision["app"] or 0]) == ("block", app), name
            is_host = name.endswith(".akamaized.net")
            assert (action(fastpath, f"x.{name}") == "block") is not is_host, name
            assert action(fastpath, "plain.example", f"plain.example. 60 IN CNAME {name}.") == "block", name


def test_names_inside_a_cdn_are_recognised(tmp_path: Path) -> None:
    """With and without one label of the CDN's; behind an alias too."""
    fastpath, _ = compiled(tmp_path, {"block": ["tiktok", "bytedance-platform"]})
    for name in (
        "www.tiktok.com.edgesuite.net",
        "api16.tiktokv.com.akadns.net",
        "p16.tiktokcdn.com.230b2a2545cfa773.w.cdngslb.com",
        "v16.tiktokcdn-eu.com.c.footprint.net",
        "log.byteoversea.com.w.kunlunle.com",
    ):
        assert action(fastpath, name) == "block", name
        assert action(fastpath, "plain.example", f"plain.example. 60 IN CNAME {name}.") == "block", name


def test_names_of_others_pass(tmp_path: Path, catalogue: Catalogue) -> None:
    """Look-alikes, CDN zones and their other customers, with every app blocked that there is; and what is on hold."""
    fastpath, _ = compiled(tmp_path, {"block": sorted(catalogue.entries)})
    for name in [*NOBODYS.split(), *HELD.split()]:
        assert action(fastpath, name) == "pass", name
    text = "".join(file.read_text() for file in BUILTIN.glob("*.yaml"))
    rules = set(re.findall(r"^  - (\S+)$", text, re.MULTILINE))
    assert not rules & set(HELD.split())


def test_an_allowed_lark_works_whole(tmp_path: Path) -> None:
    """While bytedance and its platform are blocked: names in platform zones and CNAME targets there included."""
    fastpath, _ = compiled(tmp_path, {"block": ["tiktok", "bytedance", "bytedance-platform"], "allow": ["lark"]})
    for name in LARK.split():
        assert action(fastpath, name) == "allow", name
        target = "x.bytelb.net"
        records = (f"{name}. 60 IN CNAME {target}.", f"{target}. 60 IN A 71.18.0.1")
        assert action(fastpath, name, *records) == "allow", name
    for name in ("log.byteoversea.com", "x.bytelb.net", "tiktok.com", "www.tiktok.com.ttdns2.com"):
        assert action(fastpath, name) == "block", name


def test_what_opens_tiktok_opens_what_it_needs(tmp_path: Path, catalogue: Catalogue) -> None:
    """Every name and network of the app and the platform; CapCut stays blocked."""
    fastpath, _ = compiled(tmp_path, {"block": ["capcut", "bytedance-platform", "encrypted-dns"], "allow": ["tiktok"]})
    for app in ("tiktok", "bytedance-platform"):
        for key, rule in catalogue.entries[app].places:
            if key in ("suffixes", "hosts"):
                assert action(fastpath, rule) == "allow", rule
    assert action(fastpath, "www.tiktok.com", "www.tiktok.com. 60 IN A 71.18.9.9") == "allow"
    assert action(fastpath, "capcut.com") == "block"
    assert action(fastpath, "dns.google") == "block"
    for name in ("dig.bdurl.net", "httpdns.volcengineapi.com"):
        assert action(fastpath, name) == "block", "a way round is no part of the app"


def test_allowing_a_cloud_does_not_open_a_way_round(tmp_path: Path) -> None:
    """ByteDance's DNS over HTTP stays blocked when Volcengine is allowed; Lemon8's names in TikTok's zones open."""
    fastpath, _ = compiled(tmp_path, {"block": ["tiktok", "encrypted-dns"], "allow": ["volcengine", "lemon8"]})
    assert action(fastpath, "open.volcengineapi.com") == "allow"
    assert action(fastpath, "httpdns.volcengineapi.com") == "block"
    assert action(fastpath, "lemon8-api.tiktokv.com") == "allow"
    assert action(fastpath, "lemonapi16-normal-useast5.tiktokv.com") == "allow"
    assert action(fastpath, "api16.tiktokv.com") == "block"


def test_canary_names_say_for_each_group_whether_it_is_filtered(serve: Serve, upstream: Upstream) -> None:
    """NXDOMAIN where anything is blocked, whatever the policy's answer; resolved where nothing is; DDR is NODATA."""
    for name in ("use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com"):
        upstream.records[name] = [f"{name}. 60 IN A 192.0.2.1"]
    policies = {"corporate": {"block": ["tiktok"], "answer": "drop"}, "guest": {"block": ["tiktok"], "answer": "null"}}
    policies["personal"] = {"monitor": ["tiktok"]}
    blockd = serve([upstream.address], policies=policies)
    for name in ("use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com"):
        for qtype in ("A", "AAAA", "HTTPS"):
            assert rcode(ask(blockd, name, qtype, client=CORPORATE)) == "NXDOMAIN", name
            assert rcode(ask(blockd, name, qtype, client=GUEST)) == "NXDOMAIN", name
        assert rcode(ask(blockd, name, client=PERSONAL)) == "NOERROR"
        assert ask(blockd, name, client=PERSONAL).answer
    for client in (CORPORATE, PERSONAL, GUEST):
        got = ask(blockd, "_dns.resolver.arpa", "SVCB", client=client)
        assert (rcode(got), got.answer) == ("NOERROR", [])
    assert "resolver.arpa" not in " ".join(upstream.names())
    blockd.values["policies"]["corporate"]["allow"] = ["canary-names"]
    assert blockd.reload().returncode == 0
    assert rcode(ask(blockd, "mask.icloud.com", client=CORPORATE)) == "NOERROR", "a policy that names them decides"


def test_a_site_extends_and_removes(tmp_path: Path) -> None:
    """A file that `extends:` adds rules of every kind and takes others away; its places are its own."""
    extension = {
        "extends": "tiktok",
        "suffixes": ["more.example"],
        "patterns": ["^v[0-9]+[.]pattern[.]example$"],
        "holes": ["status.tiktok.com"],
        "networks": ["198.51.100.0/24"],
        "remove": ["tiktok.net", "103.136.220.0/22"],
        "evidence": {"more.example": "seen at the gateway"},
    }
    files = {"site.yaml": extension, "cdn_zones.yaml": {"zones": ["cdn.dept.example"]}}
    fastpath, _ = compiled(tmp_path, {"block": ["tiktok"]}, files)
    wanted = {
        "more.example": "block",
        "v7.pattern.example": "block",
        "status.tiktok.com": "pass",
        "www.tiktok.com": "block",
        "tiktok.net": "pass",
        "www.tiktok.com.cdn.dept.example": "block",
    }
    assert {name: action(fastpath, name) for name in wanted} == wanted
    assert action(fastpath, "a.example", "a.example. 60 IN A 198.51.100.77") == "block"
    assert action(fastpath, "a.example", "a.example. 60 IN A 103.136.220.1") == "pass"
    entry = read_inputs(tmp_path / "blockd.yaml").catalogue.entries["tiktok"]
    assert entry.places["suffixes", "more.example"].document.file.name == "site.yaml"
    assert entry.places["suffixes", "tiktok.com"].document.file.name == "tiktok.yaml"


Files = dict[str, Any]
BAD: dict[str, tuple[Callable[[], Files], str]] = {
    "extends-nothing": (
        lambda: {"x.yaml": {"extends": "tictoc", "hosts": ["a.example"]}},
        r"x\.yaml:1: extends: there is",
    ),
    "extends-with-nothing": (lambda: {"x.yaml": {"extends": "tiktok"}}, r"this adds nothing to tiktok"),
    "removes-what-is-not-there": (
        lambda: {"x.yaml": {"extends": "tiktok", "remove": ["nothing.example"]}},
        r"x\.yaml:\d: remove\.0: tiktok has no rule nothing\.example",
    ),
    "removes-everything": (
        lambda: {"x.yaml": {"extends": "deepseek", "remove": ["deepseek.com"]}},
        r"deepseek\.yaml.*: the app has no rule",
    ),
    "extends-and-app": (
        lambda: {"x.yaml": {"extends": "tiktok", "app": "x", "hosts": ["a.example"]}},
        r"x\.yaml:1: app: unknown key; known here: extends, remove, suffixes",
    ),
    "cycle": (
        lambda: {
            "a.yaml": {"app": "a", "title": "A", "hosts": ["a.example"], "needs": ["b"]},
            "b.yaml": {"app": "b", "title": "B", "hosts": ["b.example"], "needs": ["a"]},
        },
        r"b\.yaml:\d: needs\.0: needs goes round: a → b → a",
    ),
    "needs-itself": (
        lambda: {"a.yaml": {"app": "a", "title": "A", "hosts": ["a.example"], "needs": ["a"]}},
        r"needs goes round: a → a",
    ),
    "two-of-one-name": (
        lambda: {"tiktok.yaml": {"app": "tiktok", "title": "T", "hosts": ["a.example"]}},
        r"tiktok\.yaml:1: app: tiktok is defined in .*builtin/tiktok\.yaml already",
    ),
    "no-rules": (lambda: {"x.yaml": {"app": "x", "title": "X"}}, r"x\.yaml:1: the app has no rule"),
    "a-cdn-zone": (
        lambda: {"x.yaml": {"app": "x", "title": "X", "suffixes": ["edgesuite.net"]}},
        r"x\.yaml:\d: suffixes\.0: edgesuite\.net is a CDN's zone",
    ),
    "cdn-zone-is-public": (
        lambda: {"cdn_zones.yaml": {"zones": ["com"]}},
        r"cdn_zones\.yaml:\d: zones\.0: com is a public",
    ),
    "pattern-of-a-part": (
        lambda: {"x.yaml": {"app": "x", "title": "X", "patterns": ["tiktok"]}},
        r"x\.yaml:\d: patterns\.0: a pattern says the whole name",
    ),
    "takes-without-source": (
        lambda: {"x.yaml": {"app": "x", "title": "X", "hosts": ["a.example"], "takes": ["contacts"]}},
        r"x\.yaml:\d: takes: expected keys and values",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_catalogue_says_what_and_where(case: str, tmp_path: Path) -> None:
    """File, line and key; nothing is compiled."""
    files, wanted = BAD[case]
    with pytest.raises(InputError) as raised:
        compiled(tmp_path, {"block": ["tiktok"]}, files())
    assert re.search(wanted, str(raised.value)), str(raised.value)


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (["^a$", "^(b$"], r"x\.yaml:\d: patterns\.1: \^\(b\$: unclosed group"),
        (["^.*x.{30}$"], r"x\.yaml:\d: patterns\.0: .*would take more than 8 MiB"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_named(patterns: list[str], wanted: str, tmp_path: Path) -> None:
    """Unreadable, or too much for the automaton of all."""
    app = {"app": "x", "title": "X", "patterns": patterns}
    with pytest.raises(InputError) as raised:
        compiled(tmp_path, {"block": ["x"]}, {"x.yaml": app})
    assert re.search(wanted, str(raised.value)), str(raised.value)


def test_a_block_of_an_embedded_name_and_a_pattern_is_explained(serve: Serve, upstream: Upstream) -> None:
    """With the rule that was written, and its line."""
    blockd = serve([upstream.address], apps={"p": {"patterns": ["^v[0-9]+[.]p[.]example$"]}})
    blockd.values["policies"]["corporate"]["block"].append("p")
    assert blockd.reload().returncode == 0
    embedded = json.loads(
        blockd.run("explain", "--json", "--client", CORPORATE, "www.tiktok.com.x.edgesuite.net").stdout
    )
    assert (embedded["rule"]["kind"], embedded["rule"]["rule"]) == ("embedded", "tiktok.com")
    line = (BUILTIN / "tiktok.yaml").read_text().splitlines().index("  - tiktok.com") + 1
    assert embedded["rule"]["line"] == line
    pattern = json.loads(blockd.run("explain", "--json", "--client", CORPORATE, "v17.p.example").stdout)
    assert (pattern["rule"]["kind"], pattern["rule"]["rule"]) == ("pattern", "^v[0-9]+[.]p[.]example$")
    assert pattern["rule"]["file"].endswith("p.yaml")
    assert ede(ask(blockd, "v17.p.example", client=CORPORATE))[0][0] == 15


@pytest.mark.parametrize("own_zones", [False, True])
def test_names_inside_cdn_zones_need_no_shipped_app(own_zones: bool, tmp_path: Path) -> None:
    """`embedded: true` means the same where a site reads none of the apps that are shipped."""
    files: dict[str, Any] = {"mine.yaml": {"app": "mine", "title": "M", "suffixes": ["mine.example"], "embedded": True}}
    if own_zones:
        files["cdn_zones.yaml"] = {"zones": ["cdn.dept.example"]}
    fastpath, live = compiled(tmp_path, {"block": ["mine"]}, files, builtin=False)
    assert live == ["mine"]
    names = ("www.mine.example.edgesuite.net", "mine.example.a.edgekey.net", "other.example.edgesuite.net")
    assert [action(fastpath, name) for name in names] == ["block", "block", "pass"]
    assert action(fastpath, "mine.example.cdn.dept.example") == ("block" if own_zones else "pass")
