"""The firewall's half, in namespaces with packets: what walks round the resolver is refused as the names are."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.daemon import BLOCKD, Blockd, free_port
from tests.support.internet import unbound
from tests.support.lan import GATEWAY, Host, Lan, run
from tests.support.people import ALICE, CAROL, ask_as, socket_for_all
from tests.unit.test_exemptions import EXEMPTIONS, soon, wish

LAPTOP, PHONE = "00:16:3e:00:47:11", "00:16:3e:00:99:01"
PORT = 5300
#: By name alone, by a network of ByteDance's, on an edge that others are on, elsewhere; and a resolver of Google's.
EDGE, BARE, SHARED, OTHER, GOOGLE = "151.101.2.73", "71.18.5.5", "151.101.2.99", "151.101.3.1", "8.8.8.8"
EDGE6, BARE6, SHARED6, OTHER6 = "2a04:4e42::73", "2404:9dc0:4000::5", "2a04:4e42::99", "2a04:4e42:1::1"
FOREIGN, FOREIGN6 = "185.12.64.1", "2a01:4ff:ff00::add:1"
WEB, RESOLVERS = [EDGE, BARE, SHARED, OTHER, EDGE6, BARE6, SHARED6, OTHER6], [GOOGLE, FOREIGN, FOREIGN6]
#: Of datagrams that are no QUIC.
PLAIN = 4433
NAMES = {
    "www.tiktok.com": (EDGE, EDGE6),
    "p16.tiktokcdn.com": (SHARED, SHARED6),
    "shop.example": (SHARED, SHARED6),
    "fine.example": (OTHER, OTHER6),
    "evil.tiktok.com": ("127.0.0.1", "::1"),
    "sly.tiktok.com": (GATEWAY, "fd77::1"),
}
SCRIPT = str(Path(__file__).parent.parent / "support" / "internet.py")


class Scene:
    """A laptop and a phone, a gateway that runs blockd, and the Internet behind it."""

    def __init__(self, lan: Lan, blockd: Blockd, place: Path) -> None:
        """`place` is the control socket."""
        self.lan, self.blockd, self.place = lan, blockd, place
        self.laptop, self.phone = self.host(LAPTOP, 11), self.host(PHONE, 12)
        self.process: subprocess.Popen[str] | None = None

    def host(self, mac: str, last: int) -> Host:
        """Plug a host in."""
        host = self.lan.host(mac)
        for words in (
            ["address", "add", f"10.77.0.{last}/24", "dev", "eth0"],
            ["address", "add", f"fd77::{last}/64", "dev", "eth0", "nodad"],
            ["route", "add", "default", "via", GATEWAY],
            ["-6", "route", "add", "default", "via", "fd77::1"],
        ):
            run("ip", "-n", host.space, *words)
        return host

    def enforce(self) -> None:
        """Run the firewall's process on the gateway."""
        with (self.lan.directory / "egress.log").open("a") as log:
            words = [*self.lan.prefix(self.lan.gateway), *BLOCKD, "egress", "--config", str(self.blockd.file)]
            state = self.lan.directory / "firewall"
            state.mkdir(exist_ok=True)
            environment = {**os.environ, "STATE_DIRECTORY": str(state)}
            self.process = subprocess.Popen(words, stdout=log, stderr=log, text=True, env=environment)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def log(self) -> str:
        """Give what it said, and what is in force."""
        return (self.lan.directory / "egress.log").read_text() + self.nft("list", "ruleset")

    def nft(self, *words: str) -> str:
        """Run nft on the gateway."""
        return run(*self.lan.prefix(self.lan.gateway), "nft", *words)

    def reach(self, host: Host, *wanted: str) -> list[str]:
        """Say of each `tcp/443/ADDRESS` whether it answers a host."""
        return run(*self.lan.prefix(host.space), sys.executable, SCRIPT, "reach", *wanted).split()

    @contextmanager
    def opened(self, host: Host, how: str, address: str) -> Iterator[subprocess.Popen[str]]:
        """Open a connection to an address, to stay or to be poured to; its next line says when that ended."""
        words = [
            *self.lan.prefix(host.space),
            sys.executable,
            SCRIPT,
            how,
            address,
            str(443 if how == "stay" else PLAIN),
        ]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "open\n"
                yield process
            finally:
                process.kill()

    def until(self, host: Host, wanted: str, outcome: str, seconds: float = 15) -> float:
        """Try until this comes of it; give the seconds that it took."""
        return wait_for(lambda: self.reach(host, wanted) == [outcome], seconds, self.log)

    def metric(self, name: str, **labels: str) -> float:
        """Give the sum of a metric's samples that have these labels."""
        page = run(*self.lan.prefix(self.lan.gateway), "curl", "-s", f"http://127.0.0.1:{self.blockd.admin}/metrics")
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        rows = [line.rpartition(" ") for line in page.splitlines() if re.match(rf"{name}[ {{]", line)]
        return sum(float(value) for head, _, value in rows if all(label in head for label in wanted))

    def current(self, seconds: float = 20) -> None:
        """Wait until all of it is enforced."""
        wait_for(lambda: self.blockd.run("egress", "status").returncode == 0, seconds, self.log)

    def look_up(self, host: Host, name: str) -> None:
        """Ask for both kinds of addresses."""
        for qtype in ("A", "AAAA"):
            words = ["dig", f"@{GATEWAY}", "-p", str(PORT), name, qtype, "+tries=2", "+time=3", "+short"]
            run(*self.lan.prefix(host.space), *words)


def wait_for(is_so: Callable[[], bool], seconds: float, say: Callable[[], str] = str) -> float:
    """Wait until it is so; give the seconds that it took."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < seconds, say()
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Give all of it, with blockd and its firewall running."""
    with Lan(tmp_path) as lan, ExitStack() as stack:
        gateway, internet = lan.gateway, lan.space()
        run("ip", "-n", gateway, "address", "add", "fd77::1/64", "dev", "lan", "nodad")
        run("ip", "-n", gateway, "link", "add", "wan", "type", "veth", "peer", "name", "eth0", "netns", internet)
        for space, name, words in (
            (gateway, "wan", ["100.64.0.1/30", "fd64::1/64"]),
            (internet, "eth0", ["100.64.0.2/30", "fd64::2/64"]),
        ):
            for address in words:
                run("ip", "-n", space, "address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
            run("ip", "-n", space, "link", "set", name, "up")
        for address in (*WEB, *RESOLVERS):
            run("ip", "-n", internet, "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        run("ip", "-n", gateway, "route", "add", "default", "via", "100.64.0.2")
        run("ip", "-n", gateway, "-6", "route", "add", "default", "via", "fd64::2")
        run("ip", "-n", internet, "route", "add", "10.77.0.0/24", "via", "100.64.0.1")
        run("ip", "-n", internet, "-6", "route", "add", "fd77::/64", "via", "fd64::1")
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            run(*lan.prefix(gateway), "sysctl", "-qw", f"{key}=1")
        # As most gateways do.
        translate = ["chain", "ip", "nat", "out", "{ type nat hook postrouting priority srcnat; }"]
        for words in (["table", "ip", "nat"], translate, ["rule", "ip", "nat", "out", "oifname", "wan", "masquerade"]):
            run(*lan.prefix(gateway), "nft", "add", *words)
        ways = [way for address in WEB for way in (f"tcp/443/{address}", f"udp/{PLAIN}/{address}")]
        lan.serve(sys.executable, SCRIPT, "serve", *ways, space=internet)
        ways = [f"quic/443/{address}" for address in WEB] + [f"quic/853/{OTHER}", f"quic/853/{OTHER6}"]
        lan.serve(sys.executable, SCRIPT, "quic", str(tmp_path), *ways, space=internet)
        records = [f"A {EDGE}", f"AAAA {EDGE6}"]
        lan.serve(*unbound(tmp_path, RESOLVERS, records), space=internet)
        answers = [f"--address=/{name}/{address}" for name, both in NAMES.items() for address in both]
        quiet = [
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--user=root",
        ]
        lan.serve("dnsmasq", *quiet, *answers, "--port=5301", "--listen-address=127.0.0.1", "--local-ttl=60")
        home, place = tmp_path / "blockd", stack.enter_context(socket_for_all())
        home.mkdir()
        (home / "devices.csv").write_text(f"mac,hostname,serial\n{LAPTOP},laptop-7,SER-4711\n")
        block = ["tiktok", "bytedance", "bytedance-platform", "encrypted-dns"]
        blockd = Blockd(
            home,
            ["127.0.0.1:5301"],
            admin={"socket": str(place)},
            groups={"corporate": {"inventory": [{"file": "devices.csv"}]}, "personal": {"networks": ["10.77.0.0/24"]}},
            policies={"corporate": {"block": block, "monitor": ["temu"]}},
            devices={"neighbours": True},
            egress={"enabled": True, "socket": str(place.with_name("egress.sock"))},
            exemptions=EXEMPTIONS,
        )
        blockd.values["groups"]["personal"]["networks"].append("fd77::/64")
        blockd.values["server"]["listen"] = [f"{GATEWAY}:{PORT}"]
        blockd.write()
        stack.callback(blockd.stop)
        blockd.start(prefix=lan.prefix(gateway))
        one = Scene(lan, blockd, place)
        stack.callback(one.stop)
        one.enforce()
        one.current()
        yield one


@pytest.mark.timeout(180)
def test_whatever_way_it_goes_a_corporate_device_is_refused(scene: Scene) -> None:
    """By name, bare address, DoH, DoT, foreign DNS and QUIC, over both versions; a phone goes where it likes."""
    scene.look_up(scene.phone, "www.tiktok.com")
    # At once: the answer left when the kernel knew.
    ways = [f"tcp/443/{EDGE}", f"quic/443/{EDGE}", f"tcp/443/{BARE}", f"quic/443/{BARE}", f"doh/443/{GOOGLE}"]
    ways += [f"dot/853/{FOREIGN}", f"quic/853/{OTHER}", f"dns/53/{FOREIGN}", f"dnstcp/53/{FOREIGN}"]
    ways += [f"tcp/443/{EDGE6}", f"quic/443/{EDGE6}", f"tcp/443/{BARE6}", f"quic/443/{BARE6}", f"udp/{PLAIN}/{BARE}"]
    ways += [f"dns/53/{FOREIGN6}", f"dot/853/{FOREIGN6}", f"quic/853/{OTHER6}"]
    assert scene.reach(scene.laptop, *ways) == ["refused"] * len(ways), scene.nft("list", "ruleset")
    # The last is a resolver that nobody knows, over HTTPS: what it says leads nowhere.
    free = [f"tcp/443/{OTHER}", f"quic/443/{OTHER}", f"tcp/443/{OTHER6}", f"quic/443/{OTHER6}", f"doh/443/{FOREIGN}"]
    assert scene.reach(scene.laptop, *free) == ["answers"] * len(free)
    assert scene.reach(scene.phone, *ways, *free) == ["answers"] * (len(ways) + len(free))
    wait_for(
        lambda: scene.metric("blockd_egress_packets_total", group="corporate", app="tiktok", action="blocked") > 0,
        15,
    )
    shown = scene.blockd.run("egress", "status").stdout
    assert "corporate  tiktok" in shown, shown
    # It never asked our resolver, and wants what is an app's: it has another.
    wait_for(lambda: "10.77.0.11 sent " in scene.blockd.run("egress", "status").stdout, 15)
    assert "10.77.0.11 wants what is an app's, and asked us nothing" in scene.blockd.log.read_text()
    assert scene.metric("blockd_egress_silent") >= 1
    # The same for firewalls that fetch lists.
    page = f"http://127.0.0.1:{scene.blockd.admin}/egress"
    inside = scene.lan.prefix(scene.lan.gateway)
    assert EDGE in run(*inside, "curl", "-s", f"{page}/tiktok.txt").splitlines()
    assert "71.18.0.0/16" in json.loads(run(*inside, "curl", "-s", f"{page}/all.json"))["bytedance-platform"]
    assert "there is no such list" in run(*inside, "curl", "-s", f"{page}/temu.txt"), "counted, and not refused"
    # An address that others have, too, is let through, and listed.
    for name in ("p16.tiktokcdn.com", "shop.example"):
        scene.look_up(scene.phone, name)
    assert scene.until(scene.laptop, f"tcp/443/{SHARED}", "answers") < 5
    shown = json.loads(scene.blockd.run("egress", "status", "--json").stdout)["shared"]
    assert shown[SHARED] == {"names": ["shop.example"], "apps": ["tiktok"]}
    # What an answer says of ourselves is not believed.
    for name in ("evil.tiktok.com", "sly.tiktok.com"):
        scene.look_up(scene.phone, name)
    assert scene.metric("blockd_egress_refused_total", reason="reserved") >= 4
    learned = scene.nft("list", "set", "inet", "blockd", "learned4-tiktok")
    assert "127.0.0.1" not in learned
    assert GATEWAY not in learned


@pytest.mark.timeout(180)
def test_an_exemption_opens_the_way_and_its_end_cuts_it(scene: Scene) -> None:
    """Within a second, both ways, connections that are open included; what the app needs is open, too."""
    way = f"tcp/443/{BARE}"
    assert scene.reach(scene.laptop, way) == ["refused"]
    name = ask_as(CAROL, scene.place, "request", **wish(device="SER-4711", expires_at=soon(days=3)))["exemption"][
        "name"
    ]
    assert ask_as(ALICE, scene.place, "approve", exemption=name)["ok"]
    took = scene.until(scene.laptop, way, "answers")
    assert scene.reach(scene.laptop, f"tcp/443/{BARE6}", f"quic/443/{BARE}") == ["answers"] * 2
    assert scene.reach(scene.laptop, f"dot/853/{FOREIGN}") == ["refused"], "another app's way"
    with ExitStack() as stack:
        # One that sends, and ones that are only sent to: those the kernel has to forget.
        ways = [(scene.laptop, "stay", BARE), (scene.laptop, "pour", BARE), (scene.phone, "pour", BARE)]
        ways.append((scene.laptop, "pour", OTHER))
        opened = [stack.enter_context(scene.opened(*each)) for each in ways]
        time.sleep(0.5)
        revoked = time.time()
        assert ask_as("root", scene.place, "revoke", exemption=name, reason="an incident")["ok"]
        cut, poured, *others = (float(one.stdout.readline()) - revoked for one in opened if one.stdout is not None)
    assert min(others) > 5, "a personal device's connections go on, and those to others"
    wait_for(lambda: scene.metric("blockd_egress_ended_total") >= 2, 15)
    assert scene.reach(scene.laptop, way) == ["refused"]
    asked = ask_as(CAROL, scene.place, "request", **wish(expires_at=soon(seconds=8)))
    ends = time.time() + 8
    assert ask_as(ALICE, scene.place, "approve", exemption=asked["exemption"]["name"])["ok"]
    scene.until(scene.laptop, way, "answers")
    scene.until(scene.laptop, way, "refused")
    assert ends - 2 < time.time() < ends + 3, "it runs out by the clock, in the kernel too"
    assert took < 3, took
    assert cut < 1.5, cut
    assert poured < 1.5, poured
    # Without the daemon it ends all the same.
    asked = ask_as(CAROL, scene.place, "request", **wish(expires_at=soon(seconds=8)))
    ends = time.time() + 8
    assert ask_as(ALICE, scene.place, "approve", exemption=asked["exemption"]["name"])["ok"]
    scene.until(scene.laptop, way, "answers")
    assert scene.blockd.process is not None
    os.kill(scene.blockd.process.pid, signal.SIGKILL)
    scene.blockd.process.wait(20)
    scene.blockd.process = None
    assert scene.reach(scene.laptop, way) == ["answers"]
    scene.until(scene.laptop, way, "refused")
    assert ends - 2 < time.time() < ends + 3


@pytest.mark.timeout(180)
def test_one_whole_generation_whatever_ends_or_is_flushed(scene: Scene) -> None:
    """A flush is repaired; either side is killed and comes back; a reload; off takes ours alone away."""
    way, learned = f"tcp/443/{BARE}", f"tcp/443/{EDGE}"
    scene.look_up(scene.phone, "www.tiktok.com")
    assert scene.reach(scene.laptop, way, learned) == ["refused"] * 2
    for words in (["flush", "ruleset"], ["flush", "set", "inet", "blockd", "learned4-tiktok"]):
        scene.nft(*words)
        took = wait_for(lambda: scene.reach(scene.laptop, way, learned) == ["refused"] * 2, 15, scene.log)
        assert took < 8, took
    wait_for(lambda: scene.metric("blockd_egress_drift_total") >= 1, 15)
    scene.nft("add", "table", "inet", "others")
    scene.stop(signal.SIGKILL)
    assert scene.reach(scene.laptop, way, learned) == ["refused"] * 2, "the rules stand without their process"
    scene.enforce()
    scene.current()
    assert scene.reach(scene.laptop, way, learned) == ["refused"] * 2
    assert scene.blockd.process is not None
    os.kill(scene.blockd.process.pid, signal.SIGKILL)
    scene.blockd.process.wait(20)
    scene.blockd.process = None
    assert scene.reach(scene.laptop, way, learned) == ["refused"] * 2, "and without the daemon"
    scene.stop(signal.SIGKILL)
    scene.enforce()
    time.sleep(2)
    scene.nft("flush", "ruleset")
    wait_for(lambda: scene.reach(scene.laptop, way) == ["refused"], 10, scene.log)
    scene.nft("add", "table", "inet", "others")
    again = [*scene.lan.prefix(scene.lan.gateway), *BLOCKD, "egress", "--config", str(scene.blockd.file)]
    second = subprocess.run(again, capture_output=True, text=True, timeout=30, check=False)
    assert (second.returncode, "another `blockd egress` is at work" in second.stderr) == (1, True), second.stderr
    scene.blockd.start(prefix=scene.lan.prefix(scene.lan.gateway))
    scene.current()
    # Both were killed, and the kernel flushed: where it is, is learned anew.
    scene.look_up(scene.phone, "www.tiktok.com")
    assert scene.reach(scene.laptop, way, learned) == ["refused"] * 2
    scene.blockd.values["policies"]["corporate"] = {"monitor": ["tiktok", "bytedance", "bytedance-platform"]}
    assert scene.blockd.reload().returncode == 0
    scene.until(scene.laptop, way, "answers")
    wait_for(lambda: "monitored" in scene.blockd.run("egress", "status").stdout, 15)
    plan = scene.blockd.run("egress", "plan").stdout
    assert (
        "add rule inet blockd group-corporate ip daddr @networks4-tiktok counter name monitored/corporate/tiktok"
        in plan
    )
    assert "refuse/" not in scene.nft("list", "table", "inet", "blockd")
    off = [*scene.lan.prefix(scene.lan.gateway), *BLOCKD, "egress", "off", "--config", str(scene.blockd.file)]
    assert "1 firewalls have removed the table" in run(*off)
    assert scene.nft("list", "tables").split() == ["table", "inet", "others"]
    drift, packets = (scene.metric(f"blockd_egress_{name}_total") for name in ("drift", "packets"))
    assert packets, "counts outlast the table that they were counted in"
    on = scene.blockd.run("egress", "on")
    assert (on.returncode, on.stdout.startswith("on: 1 firewalls enforce generation ")) == (0, True), on
    assert "table inet blockd" in scene.nft("list", "tables"), "it is so when the command says so"
    assert scene.metric("blockd_egress_current") == 1
    assert scene.metric("blockd_egress_drift_total") >= drift
    assert scene.metric("blockd_egress_packets_total") >= packets
    # Without a daemon, and while its process goes on: it stays off, also for one that starts anew.
    scene.blockd.stop()
    off = [*scene.lan.prefix(scene.lan.gateway), *BLOCKD, "egress", "off", "--config", str(scene.blockd.file)]
    assert "the table inet blockd is gone" in run(*off)
    time.sleep(5)
    scene.stop()
    scene.enforce()
    time.sleep(3)
    assert scene.nft("list", "tables").split() == ["table", "inet", "others"]
    scene.blockd.start(prefix=scene.lan.prefix(scene.lan.gateway))
    assert "it is off" in scene.blockd.run("egress", "status").stdout or not scene.nft("list", "tables").count("blockd")
    # As its status says: without the file it goes on.
    (scene.place.with_name("egress.sock.off")).unlink()
    scene.current()


@pytest.mark.timeout(180)
def test_answers_go_on_whatever_happens_to_the_firewall() -> None:
    """New names at a steady rate, over reloads, flushes and kills: each is answered, and in the end all is enforced."""
    words = ["--alone", "--json", "--known", "1000", "--rate", "400", "--seconds", "6"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.egress", *words], capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    trouble = found["trouble"]
    # Without an answer is what has none within seconds: the wait is 50 ms at most.
    assert (found["blockd"]["lost"], trouble["lost"]) == (0, 0), done.stdout
    assert (trouble["lacking"], trouble["settled"]) == (0, True), done.stdout


@pytest.mark.timeout(120)
def test_a_firewall_of_another_machine_shows_a_certificate(scene: Scene, tmp_path: Path) -> None:
    """Over TLS, both sides: told the same; without a certificate, or with another's, told nothing."""
    names = {}
    for name in ("ours", "theirs"):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / f"{name}.pem")
        for who in ("127.0.0.1", "gateway.example"):
            issued, file = authority.issue_cert(who), tmp_path / f"{name}-{who}"
            issued.private_key_pem.write_to_path(f"{file}.key")
            Path(f"{file}.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
            names[name, who] = file
    own = names["ours", "127.0.0.1"]
    scene.stop()
    scene.blockd.stop()
    port = free_port()
    scene.blockd.values["egress"] |= {
        "listen": f"127.0.0.1:{port}",
        "certificate": f"{own}.crt",
        "key": f"{own}.key",
        "authority": str(tmp_path / "ours.pem"),
    }
    scene.blockd.write()
    scene.blockd.start(prefix=scene.lan.prefix(scene.lan.gateway))
    scene.nft("delete", "table", "inet", "blockd")

    def far(whose: str) -> list[str]:
        file = names[whose, "gateway.example"]
        files = ["--certificate", f"{file}.crt", "--key", f"{file}.key", "--authority", str(tmp_path / "ours.pem")]
        return [*scene.lan.prefix(scene.lan.gateway), *BLOCKD, "egress", "--connect", f"127.0.0.1:{port}", *files]

    # An address has a share of the handshakes; who says nothing loses its place after a while.
    crowd = f"[socket.create_connection(('127.0.0.1', {port})) for _ in range(20)], time.sleep(1)"
    run(*scene.lan.prefix(scene.lan.gateway), sys.executable, "-c", f"import socket, time; print({crowd})")
    with (scene.lan.directory / "egress.log").open("a") as log:
        with subprocess.Popen(far("theirs"), stdout=log, stderr=log, text=True) as stranger:
            time.sleep(4)
            stranger.terminate()
        assert "inet blockd" not in scene.nft("list", "tables")
        scene.process = subprocess.Popen(far("ours"), stdout=log, stderr=log, text=True)
    scene.current()
    assert scene.reach(scene.laptop, f"tcp/443/{BARE}") == ["refused"]
    assert scene.metric("blockd_egress_turned_away_total", reason="share") >= 16
    assert scene.metric("blockd_egress_turned_away_total", reason="certificate") >= 5


@pytest.mark.timeout(60)
def test_what_cannot_work_is_said_and_breaks_nothing(tmp_path: Path) -> None:
    """A table of somebody else's, no right, no nft: an error, and nothing touched."""
    with Lan(tmp_path) as lan:
        (tmp_path / "blockd.yaml").write_text(
            "server: {listen: ['127.0.0.1:5300']}\nadmin: {listen: '127.0.0.1:5302'}\n"
            "upstream: {servers: ['127.0.0.1:5301']}\npolicies: {unidentified: {}}\n"
        )

        def egress(*prefix: str, **environment: str) -> Any:
            words = [*prefix, *BLOCKD, "egress", "--config", str(tmp_path / "blockd.yaml")]
            return subprocess.run(
                words, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, **environment}
            )

        inside = lan.prefix(lan.gateway)
        run(*inside, "nft", "add", "table", "inet", "blockd")
        done = egress(*inside)
        assert done.returncode == 1
        assert "there is a table inet blockd already, which blockd did not make" in done.stderr
        assert run(*inside, "nft", "list", "tables").split() == ["table", "inet", "blockd"]
        done = egress(*inside, "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")
        assert done.returncode == 1
        assert "CAP_NET_ADMIN" in done.stderr, done.stderr
