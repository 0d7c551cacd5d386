"""blockd in front of real servers, asked by the tools that everybody has."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.support.questions import CORPORATE, GUEST, PERSONAL, addresses, ask, rcode
from tests.support.servers import Nsd, RealServer, Unbound

ZONES = {
    "tiktok.com": "www A 192.0.2.7\nwww AAAA 2001:db8::7\nbig TXT "
    + "\nbig TXT ".join(f'"{"x" * 200}{at}"' for at in range(20)),
    "tiktokcdn.com": "p16 A 192.0.2.8\n",
    "example": """plain A 192.0.2.9
news CNAME p16.tiktokcdn.com.
old DNAME tiktokcdn.com.
*.wild A 192.0.2.10
svc HTTPS 1 p16.tiktokcdn.com. alpn=h2
""",
}


@pytest.fixture(params=["nsd", "unbound"])
def real(request: pytest.FixtureRequest, tmp_path: Path) -> RealServer:
    """Give NSD itself, or Unbound that forwards to nobody and has the same data."""
    if request.param == "nsd":
        return Nsd(tmp_path / "nsd", ZONES)
    lines = []
    for zone, text in ZONES.items():
        lines.append(f'local-zone: "{zone}." static')
        for row in text.splitlines():
            name, rest = row.split(maxsplit=1)
            if not name.startswith("*"):
                lines.append(f"local-data: '{name}.{zone}. 300 IN {rest}'")
    return Unbound(tmp_path / "unbound", lines, [])


def dig(blockd: object, client: str, *words: str) -> str:
    """Ask with dig."""
    command = ["dig", "-b", client, "@127.0.0.1", "-p", str(blockd.port), "+tries=1", *words]  # type: ignore[attr-defined]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_one_is_blocked_and_the_other_is_not(real: RealServer, serve: Serve) -> None:
    """The sentence of the mission, over UDP and TCP."""
    with real:
        blockd = serve([real.address])
        for words in ((), ("+tcp",)):
            blocked = dig(blockd, CORPORATE, "www.tiktok.com", *words)
            assert "status: NXDOMAIN" in blocked
            assert "EDE: 15 (Blocked)" in blocked
            assert "192.0.2.7" in dig(blockd, PERSONAL, "www.tiktok.com", *words)
        assert "192.0.2.7" in dig(blockd, GUEST, "www.tiktok.com")


def test_aliases_of_a_real_server_are_followed(tmp_path: Path, serve: Serve) -> None:
    """CNAME over zones, DNAME and HTTPS as NSD writes them."""
    with Nsd(tmp_path / "nsd", ZONES) as nsd:
        blockd = serve([nsd.address])
        for name, qtype in (("news.example", "A"), ("p16.old.example", "A"), ("svc.example", "HTTPS")):
            assert rcode(ask(blockd, name, qtype, client=CORPORATE)) == "NXDOMAIN", name
            assert rcode(ask(blockd, name, qtype, client=PERSONAL)) == "NOERROR", name
        assert addresses(ask(blockd, "x.wild.example", client=CORPORATE)) == ["192.0.2.10"]


def test_a_cut_answer_is_fetched_by_tcp(tmp_path: Path, serve: Serve) -> None:
    """A large answer is whole over TCP, cut over UDP, and one stream exchange served both."""
    with Nsd(tmp_path / "nsd", ZONES) as nsd:
        blockd = serve([nsd.address])
        whole = ask(blockd, "big.tiktok.com", "TXT", client=PERSONAL, tcp=True)
        assert len(whole.answer[0]) == 20
        assert "Truncated, retrying in TCP" in dig(blockd, PERSONAL, "big.tiktok.com", "TXT")
        assert blockd.metric("blockd_upstream_streams_total") == 1


def test_kdig_reads_the_reason(tmp_path: Path, serve: Serve) -> None:
    """Another client reads the same Extended DNS Error."""
    with Nsd(tmp_path / "nsd", ZONES) as nsd:
        blockd = serve([nsd.address])
        command = ["kdig", "-b", CORPORATE, "@127.0.0.1", "-p", str(blockd.port), "+edns", "www.tiktok.com"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "NXDOMAIN" in text
        assert "TikTok is blocked by policy on this network; ask mailto:security@dept.example" in text


def test_a_list_changes_under_load_and_no_query_is_lost(tmp_path: Path, serve: Serve) -> None:
    """While dnsperf asks, a list gains a name: the next answer obeys, a broken config changes nothing, none is lost."""
    assert shutil.which("dnsperf")
    with Nsd(tmp_path / "nsd", ZONES) as nsd:
        blockd = serve([nsd.address], server={"client_rate": 1_000_000, "client_burst": 1_000_000})
        listed = blockd.directory / "apps" / "extra.txt"
        listed.write_text("nothing.example\n")
        blockd.write_app("extra", lists=[{"file": "extra.txt", "format": "domains"}])
        blockd.values["policies"]["corporate"]["block"].append("extra")
        assert blockd.reload().returncode == 0
        queries = tmp_path / "queries"
        queries.write_text("plain.example A\nwww.tiktok.com A\nnews.example A\nx.wild.example A\n")
        command = ["dnsperf", "-s", "127.0.0.1", "-p", str(blockd.port), "-a", CORPORATE, "-d", str(queries)]
        command += ["-l", "6", "-Q", "4000", "-c", "4", "-t", "3"]
        load = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(0.7)
        assert rcode(ask(blockd, "plain.example", client=CORPORATE)) == "NOERROR"
        listed.write_text("plain.example\n")
        assert blockd.run("reload").returncode == 0
        assert rcode(ask(blockd, "plain.example", client=CORPORATE)) == "NXDOMAIN"
        assert rcode(ask(blockd, "plain.example", client=PERSONAL)) == "NOERROR"
        good = blockd.file.read_text()
        blockd.file.write_text(good.replace("corporate:", "corporate: [", 1))
        broken = blockd.run("reload")
        assert broken.returncode == 1
        assert f"{blockd.file}:" in broken.stderr
        assert rcode(ask(blockd, "plain.example", client=CORPORATE)) == "NXDOMAIN"
        blockd.file.write_text(good)
        listed.write_text("")
        blockd.hangup()
        deadline = time.monotonic() + 10
        while rcode(ask(blockd, "plain.example", client=CORPORATE)) != "NOERROR":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        output = load.communicate(timeout=30)[0]
        assert "Queries lost:         0 (0.00%)" in output, output
        assert "SERVFAIL" not in output, output
