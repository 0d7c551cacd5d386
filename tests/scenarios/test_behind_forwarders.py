"""Devices behind real forwarders: dnsmasq that conveys MACs and addresses, dnsdist that speaks the PROXY protocol."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.daemon import Blockd
from tests.support.lan import GATEWAY, Host, Lan, run

LAPTOP, PHONE, TABLET = "00:16:3e:00:47:11", "00:16:3e:00:99:01", "00:16:3e:00:99:02"
PORT, DNSMASQ, DNSDIST = 5300, 5353, 5354
NAME = "www.tiktok.com"
SUBNET = ["--add-subnet=32,128", "--strip-subnet"]
#: As two of one host: neither passes on what its clients say.
FORWARDERS = {"address": "127.0.0.1", "says": ["mac", "subnet", "proxy"]}


def plugged(lan: Lan, mac: str, address: str) -> Host:
    """Plug a host in that has an address of its own."""
    host = lan.host(mac)
    run("ip", "-n", host.space, "address", "add", f"{address}/24", "dev", "eth0")
    return host


@pytest.mark.timeout(120)
def test_a_device_without_a_lease_is_known_by_the_kernels_word(tmp_path: Path) -> None:
    """Addresses that nobody gave, IPv4 and IPv6, on a link of ours; a conflict goes where the config says."""
    with Lan(tmp_path) as lan:
        run("ip", "-n", lan.gateway, "address", "add", "fd77::1/64", "dev", "lan", "nodad")
        quiet = [
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--bind-interfaces",
        ]
        lan.serve("dnsmasq", *quiet, "--address=/#/192.0.2.1", "--port=5301", "--listen-address=127.0.0.1")
        home = tmp_path / "blockd"
        home.mkdir()
        (home / "devices.csv").write_text(f"mac,hostname,serial\n{LAPTOP},laptop-7,SER-4711\n")
        blockd = Blockd(
            home,
            ["127.0.0.1:5301"],
            server={"listen": [f"{GATEWAY}:{PORT}", f"[fd77::1]:{PORT}"], "threads": 1},
            groups={
                "corporate": {"networks": ["10.99.0.0/24"], "inventory": [{"file": "devices.csv"}]},
                "personal": {"networks": ["10.77.0.0/24", "fd77::/64"]},
            },
            devices={"neighbours": True},
        )
        del blockd.values["groups"]["guest"], blockd.values["policies"]["guest"]
        blockd.write()
        blockd.start(prefix=lan.prefix(lan.gateway))
        try:
            laptop, phone = plugged(lan, LAPTOP, "10.77.0.11"), plugged(lan, PHONE, "10.77.0.12")
            for at, host in enumerate((laptop, phone), start=11):
                run("ip", "-n", host.space, "address", "add", f"fd77::{at}/64", "dev", "eth0", "nodad")
            assert laptop.asks_until(NAME, PORT, "NXDOMAIN") < 15
            assert phone.asks(NAME, PORT) == "NOERROR"
            dig = ["dig", "@fd77::1", "-p", str(PORT), NAME, "+tries=2", "+time=2"]
            deadline = time.monotonic() + 15
            while "status: NXDOMAIN" not in run(*lan.prefix(laptop.space), *dig, check=False):
                assert time.monotonic() < deadline
            assert "status: NOERROR" in run(*lan.prefix(phone.space), *dig, check=False)
            shown = blockd.run("devices", "who", "SER-4711").stdout
            assert "10.77.0.11" in shown
            assert "fd77::11" in shown
            assert "neighbours" in blockd.run("devices").stdout
        finally:
            blockd.stop()


@pytest.mark.timeout(120)
def test_whoever_asks_through_a_forwarder_is_himself(tmp_path: Path) -> None:
    """A laptop by its MAC behind dnsmasq, another by its address behind dnsdist, over UDP and TCP; a phone is free."""
    with Lan(tmp_path) as lan:
        quiet = [
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--bind-interfaces",
        ]
        lan.serve("dnsmasq", *quiet, "--address=/#/192.0.2.1", "--port=5301", "--listen-address=127.0.0.1")
        home = tmp_path / "blockd"
        home.mkdir()
        (home / "devices.csv").write_text(f"mac,hostname,serial\n{LAPTOP},laptop-7,SER-4711\n")
        blockd = Blockd(
            home,
            ["127.0.0.1:5301"],
            server={
                "listen": [f"127.0.0.1:{PORT}", f"[::1]:{PORT}"],
                "forwarders": [FORWARDERS, {"address": "::1", "says": [*FORWARDERS["says"]]}],
                "threads": 1,
            },
            groups={
                "corporate": {"networks": ["10.77.0.13/32", "fd77::13/128"], "inventory": [{"file": "devices.csv"}]},
                "personal": {"networks": ["10.77.0.0/24", "fd77::/64"]},
                "guest": {"networks": ["127.0.0.3/32"]},
            },
        )
        blockd.start(prefix=lan.prefix(lan.gateway))
        try:
            behind = [f"--server=127.0.0.1#{PORT}", f"--port={DNSMASQ}", f"--listen-address={GATEWAY}"]
            lan.serve("dnsmasq", *quiet, *behind, "--add-mac", "--strip-mac", *SUBNET, "--cache-size=0")
            run("ip", "-n", lan.gateway, "address", "add", "fd77::1/64", "dev", "lan", "nodad")
            behind = [f"--server=::1#{PORT}", f"--port={DNSMASQ}", "--listen-address=fd77::1"]
            lan.serve("dnsmasq", *quiet, *behind, "--add-mac", "--strip-mac", *SUBNET, "--cache-size=0")
            (tmp_path / "dnsdist.conf").write_text(
                f'newServer({{address="127.0.0.1:{PORT}", useProxyProtocol=true, checkInterval=60}})\n'
                f'setLocal("{GATEWAY}:{DNSDIST}")\nsetACL("0.0.0.0/0")\nsetSecurityPollSuffix("")\n'
            )
            lan.serve("dnsdist", "--supervised", "--disable-syslog", "-C", str(tmp_path / "dnsdist.conf"))
            laptop, phone = plugged(lan, LAPTOP, "10.77.0.11"), plugged(lan, PHONE, "10.77.0.12")
            tablet = plugged(lan, TABLET, "10.77.0.13")
            assert laptop.asks_until("fine.example", DNSMASQ, "NOERROR") < 15
            assert (laptop.asks(NAME, DNSMASQ), phone.asks(NAME, DNSMASQ)) == ("NXDOMAIN", "NOERROR")
            # Who would be somebody else is not, though the forwarder is believed.
            forged = ["+subnet=10.77.0.12/32", f"+ednsopt=65001:{PHONE.replace(':', '')}"]
            for option in forged:
                dig = ["dig", f"@{GATEWAY}", "-p", str(DNSMASQ), NAME, option, "+tries=2", "+time=3"]
                assert "status: NXDOMAIN" in run(*lan.prefix(laptop.space), *dig, check=False), option
            assert tablet.asks(NAME, DNSMASQ) == "NXDOMAIN", "by the address that is conveyed beside its MAC"
            assert tablet.asks_until("fine.example", DNSDIST, "NOERROR") < 15
            assert (tablet.asks(NAME, DNSDIST), phone.asks(NAME, DNSDIST)) == ("NXDOMAIN", "NOERROR")
            dig = ["dig", "+tcp", f"@{GATEWAY}", "-p", str(DNSDIST), NAME, "+tries=1", "+time=5"]
            assert "status: NXDOMAIN" in run(*lan.prefix(tablet.space), *dig, check=False)
            assert "status: NOERROR" in run(*lan.prefix(phone.space), *dig, check=False)
            for at, (host, wanted) in enumerate(((laptop, "NXDOMAIN"), (phone, "NOERROR"), (tablet, "NXDOMAIN")), 11):
                run("ip", "-n", host.space, "address", "add", f"fd77::{at}/64", "dev", "eth0", "nodad")
                dig = ["dig", "@fd77::1", "-p", str(DNSMASQ), NAME, "+tries=3", "+time=2"]
                assert f"status: {wanted}" in run(*lan.prefix(host.space), *dig, check=False), (at, wanted)
            assert f"{LAPTOP} by fd77::11" in blockd.log.read_text()
            assert f"{LAPTOP} by 10.77.0.11" in blockd.log.read_text()
            time.sleep(0.1)
        finally:
            blockd.stop()
