"""What docs/fleet.md says of many resolvers: a server in between that takes zones by their catalog, and one address."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.exception
import dns.name
import dns.query
import dns.tsig
import dns.xfr
import dns.zone

from tests.support.daemon import Blockd, free_port
from tests.support.lan import Lan
from tests.support.servers import Bind, write_key

PAGE = Path(__file__).parents[2] / "docs" / "fleet.md"
SECRET = base64.b64encode(b"a secret of thirty-two octets...").decode()
KEY = dns.tsig.Key(dns.name.from_text("fleet"), SECRET, "hmac-sha256")


def block(beginning: str) -> str:
    """Give the block of the page that begins so."""
    blocks = re.findall(
        r"<!-- commands: tests/interop/test_fleet.py -->\n\n```\w*\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
    (found,) = [text for text in blocks if text.startswith(beginning)]
    return str(found)


def wait(until: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def names(port: int, origin: str) -> set[str]:
    """Transfer a zone; give its names, none where there is none."""
    zone = dns.zone.Zone(origin)
    query, _ = dns.xfr.make_query(zone, keyring=KEY, keyname=KEY.name)
    try:
        dns.query.inbound_xfr("127.0.0.1", zone, query, port, timeout=5, lifetime=5)
    except (dns.exception.DNSException, OSError, EOFError):
        return set()
    return {name.to_text() for name in zone}


def test_a_server_in_between_takes_what_the_catalog_names(tmp_path: Path) -> None:
    """The zone of a group, and of one that comes later, without a word of its own config; one that goes is gone."""
    port = free_port()
    text = block('key "fleet"').replace("...", SECRET).replace("10.0.0.5", "127.0.0.1").replace("5300", str(port))
    options, rest = text.split("\noptions {\n")[1].split("\n};\n", 1)
    kept = [line for line in options.splitlines() if not line.strip().startswith(("directory", "recursion"))]
    between = Bind(tmp_path / "bind", 9, kept, [text.split("\noptions {")[0], rest])
    home = tmp_path / "blockd"
    home.mkdir()
    write_key(home / "fleet.key", SECRET)
    blockd = Blockd(home, ["127.0.0.1:9"])

    def given(name: str) -> dict[str, Any]:
        return {"zone": f"{name}.rpz.dept.example", "secondaries": [{"address": between.address, "key": "fleet"}]}

    zones = {"corporate": given("corporate")}
    blockd.values["transfer"] = {
        "listen": [f"127.0.0.1:{port}"],
        "keys": {"fleet": {"file": "fleet.key"}},
        "zones": zones,
        "catalog": given("catalog"),
    }
    blockd.write()
    with blockd, between:
        wait(lambda: "*.tiktok.com" in names(between.port, "corporate.rpz.dept.example"))
        blockd.values["policies"]["guest"] = {"block": ["tiktok"]}
        zones["guest"] = given("guest")
        assert blockd.reload().returncode == 0
        wait(lambda: "*.tiktok.com" in names(between.port, "guest.rpz.dept.example"))
        del zones["guest"]
        assert blockd.reload().returncode == 0
        wait(lambda: not names(between.port, "guest.rpz.dept.example"))


def test_an_address_is_there_while_the_resolver_refuses_what_it_must(tmp_path: Path) -> None:
    """Gone when it does not answer, and when it answers without its policy; back by itself."""
    home = tmp_path / "blockd"
    home.mkdir()
    script = tmp_path / "anycast"
    # Not every kernel of a test machine has dummies; a bridge without ports is as good a place for an address.
    script.write_text(block("#!/bin/sh").replace("type dummy", "type bridge"))
    with Lan(tmp_path) as lan:
        inside = ["ip", "netns", "exec", lan.gateway]
        blockd = Blockd(home, ["127.0.0.1:9"], server={"listen": ["127.0.0.1:53"]})

        def is_up() -> bool:
            shown = subprocess.run(
                [*inside, "ip", "-brief", "address", "show", "dev", "anycast0", "up"], capture_output=True, text=True
            ).stdout
            return "10.9.9.9/32" in shown

        blockd.start(prefix=inside)
        service = subprocess.Popen([*inside, "sh", str(script)], start_new_session=True)
        try:
            wait(is_up)
            blockd.values["policies"]["corporate"] = {}
            assert blockd.reload().returncode == 0
            wait(lambda: not is_up())
            blockd.values["policies"]["corporate"] = {"block": ["tiktok"]}
            assert blockd.reload().returncode == 0
            wait(is_up)
            blockd.stop()
            wait(lambda: not is_up())
        finally:
            os.killpg(service.pid, signal.SIGKILL)
            service.wait()
            blockd.stop()


def test_routers_are_told(tmp_path: Path) -> None:
    """BIRD reads what the page has."""
    file = tmp_path / "bird.conf"
    file.write_text(block("router id"))
    done = subprocess.run(["bird", "-p", "-c", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
