"""The whole story, in namespaces: a laptop is blocked wherever it goes, a phone is not, an exemption is a record."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Blockd
from tests.support.lan import GATEWAY, Lan
from tests.support.people import ALICE, CAROL, ask_as, socket_for_all
from tests.unit.test_exemptions import EXEMPTIONS, soon, wish

LAPTOP, PHONE = "00:16:3e:00:47:11", "00:16:3e:00:99:01"
PORT = 5300
NAME = "www.tiktok.com"


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    """Give a gateway on which an upstream answers every name."""
    with Lan(tmp_path) as one:
        upstream = ["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--address=/#/192.0.2.1"]
        one.serve("dnsmasq", *upstream, "--port=5301", "--listen-address=127.0.0.1", "--bind-interfaces", "--user=root")
        yield one


def kea(lan: Lan, leases: Path) -> None:
    """Run Kea on the gateway."""
    config: dict[str, Any] = {
        "Dhcp4": {
            "interfaces-config": {"interfaces": ["lan"]},
            "lease-database": {"type": "memfile", "persist": True, "name": str(leases), "lfc-interval": 0},
            "valid-lifetime": 600,
            "subnet4": [{"subnet": "10.77.0.0/24", "pools": [{"pool": "10.77.0.10 - 10.77.0.99"}]}],
        }
    }
    if leases.suffix == ".sock":
        config["Dhcp4"]["control-socket"] = {"socket-type": "unix", "socket-name": str(leases)}
        hook = next(Path("/usr/lib").glob("*/kea/hooks/libdhcp_lease_cmds.so"))
        config["Dhcp4"]["hooks-libraries"] = [{"library": str(hook)}]
        config["Dhcp4"]["lease-database"] = {"type": "memfile", "persist": False}
    file = lan.directory / "kea.json"
    file.write_text(json.dumps(config))
    places = {"KEA_PIDFILE_DIR": str(lan.directory), "KEA_LOCKFILE_DIR": str(lan.directory)}
    lan.serve("kea-dhcp4", "-c", str(file), environment=places)


def kea_by_its_socket(lan: Lan, leases: Path) -> None:
    """Run Kea on the gateway, with its leases nowhere but in its memory."""
    kea(lan, leases)


def dnsmasq(lan: Lan, leases: Path) -> None:
    """Run dnsmasq as a DHCP server on the gateway."""
    words = ["--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=lan", "--user=root"]
    lan.serve("dnsmasq", *words, "--dhcp-range=10.77.0.10,10.77.0.99,10m", f"--dhcp-leasefile={leases}")


def blockd_on(lan: Lan, stack: ExitStack, tmp_path: Path, format: str, leases: Path, place: Path) -> Blockd:
    """Run blockd on the gateway: the network is of personal devices, the inventory has the laptop's MAC."""
    home = tmp_path / "blockd"
    home.mkdir()
    source = {"file": str(leases), "format": format}
    if leases.suffix == ".sock":
        source = {"socket": str(leases), "format": "kea", "every": "1s"}
    (home / "devices.csv").write_text(f"mac,hostname,serial,owner\n{LAPTOP},laptop-7,SER-4711,ministry\n")
    blockd = Blockd(
        home,
        ["127.0.0.1:5301"],
        admin={"socket": str(place)},
        groups={"corporate": {"inventory": [{"file": "devices.csv"}]}, "personal": {"networks": ["10.77.0.0/24"]}},
        devices={"leases": [source]},
        exemptions=EXEMPTIONS,
    )
    blockd.values["server"]["listen"] = [f"{GATEWAY}:{PORT}"]
    blockd.write()
    stack.callback(blockd.stop)
    return blockd.start(prefix=lan.prefix(lan.gateway))


@pytest.mark.parametrize("server", [kea, dnsmasq, kea_by_its_socket])
@pytest.mark.timeout(180)
def test_a_laptop_a_phone_and_an_exemption(lan: Lan, tmp_path: Path, server: Any) -> None:
    """Blocked, followed, exempt for a time, blocked again; the ledger verifies, and an edited one does not."""
    with ExitStack() as stack:
        place = stack.enter_context(socket_for_all())
        leases = lan.directory / "dhcp.leases"
        if server is kea_by_its_socket:
            # The path of a socket is short.
            leases = place.with_name("kea.sock")
        server(lan, leases)
        blockd = blockd_on(lan, stack, tmp_path, server.__name__, leases, place)
        laptop, phone = lan.host(LAPTOP), lan.host(PHONE)
        stack.enter_context(phone.lease("10.77.0.20"))
        with laptop.lease("10.77.0.31") as first:
            laptop.asks_until(NAME, PORT, "NXDOMAIN")
            assert phone.asks(NAME, PORT) == "NOERROR"
        with laptop.lease("10.77.0.32") as second:
            assert first != second, "the laptop has another address"
            laptop.asks_until(NAME, PORT, "NXDOMAIN")
            assert phone.asks(NAME, PORT) == "NOERROR"
            said = blockd.run("devices", "who", "SER-4711").stdout
            assert f"{second} is in corporate" in said, said
            asked = ask_as(CAROL, place, "request", **wish(expires_at=soon(seconds=12)))
            name = asked["exemption"]["name"]
            assert "somebody else has to approve" in ask_as(CAROL, place, "approve", exemption=name)["error"]
            assert laptop.asks(NAME, PORT) == "NXDOMAIN"
            assert ask_as(ALICE, place, "approve", exemption=name)["ok"]
            assert laptop.asks(NAME, PORT) == "NOERROR"
            ends = time.time() + 12
        with laptop.lease("10.77.0.33") as third:
            assert third != second
            laptop.asks_until(NAME, PORT, "NOERROR")
            assert time.time() < ends, "the exemption goes with the laptop"
            laptop.asks_until(NAME, PORT, "NXDOMAIN", 30)
            assert ends - 2 < time.time() < ends + 3
            assert ask_as(ALICE, place, "verify")["ok"]
            with sqlite3.connect(blockd.directory / "state" / "exemptions.db") as ledger:
                ledger.execute("update blockd_ledger set body = replace(body, 'SER-4711', 'SER-4712')")
            ledger.close()
            assert "entry 1 is not what was written" in ask_as(ALICE, place, "verify")["error"]
