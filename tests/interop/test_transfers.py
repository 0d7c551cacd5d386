"""Lists that are zones of other servers: BIND as the primary, with TSIG, differences and NOTIFY."""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query
import pytest

from tests.support.daemon import Blockd, free_port
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.servers import Bind, write_key
from tests.support.upstream import Asked, Reply, Upstream, answer

ZONE = "rpz.supplier.test"
SECRET = base64.b64encode(b"the secret of a supplier of lists").decode()


def any_address(query: Any, asked: Asked) -> Reply:
    """Answer every question: what is blocked is told apart."""
    return answer(query, f"{asked.name}. 300 IN A 192.0.2.1")


class Supplier(Bind):
    """A primary of one zone, that tells blockd of changes."""

    def __init__(self, directory: Path, notify: int) -> None:
        """Write the first zone; `notify` is blockd's port for transfers."""
        rest = [
            f'key "supplier" {{ algorithm hmac-sha256; secret "{SECRET}"; }};',
            f'zone "{ZONE}" {{ type primary; file "{{directory}}/policy.zone"; ixfr-from-differences yes;',
            f"  allow-transfer {{ key supplier; }}; also-notify {{ 127.0.0.1 port {notify} key supplier; }};",
            "  notify explicit; notify-delay 0; };",
        ]
        super().__init__(directory, 9, [], rest)
        self._options.remove("  notify no;") if "  notify no;" in self._options else None
        self.file = directory / "policy.zone"
        self.serial = 100
        self.write(["one.example", "two.example"])

    def write(self, names: list[str], serial: int | None = None) -> None:
        """Write the zone anew, under the next serial or this one."""
        self.serial = self.serial + 1 if serial is None else serial
        if self.process is not None:
            # BIND tells a changed file by the second.
            time.sleep(1.1)
        rows = [f"@ 60 SOA ns.invalid. host.invalid. {self.serial} 60 60 86400 60", "@ 60 NS ns.invalid."]
        rows += [row for name in names for row in (f"{name} 60 CNAME .", f"*.{name} 60 CNAME .")]
        self.file.write_text("\n".join(rows) + "\n")

    def reload(self) -> None:
        """Have it read its zone again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)


@pytest.fixture
def pair(tmp_path: Path, upstream: Upstream) -> Iterator[tuple[Blockd, Supplier]]:
    """Give a daemon with a list that is a zone, and its primary."""
    upstream.script = any_address
    port = free_port()
    home = tmp_path / "blockd"
    home.mkdir()
    write_key(home / "supplier.key", SECRET)
    with Supplier(tmp_path / "bind", port) as supplier:
        assert isinstance(supplier, Supplier)
        blockd = Blockd(home, [upstream.address], reload={"largest_shrink": "40%"})
        blockd.values["transfer"] = {"listen": [f"127.0.0.1:{port}"], "keys": {"supplier": {"file": "supplier.key"}}}
        listed = {"zone": ZONE, "server": supplier.address, "key": "supplier", "every": "30d"}
        blockd.write_app("supplied", lists=[listed])
        blockd.values["policies"]["corporate"]["block"].append("supplied")
        blockd.write()
        with blockd:
            # A NOTIFY that nobody hears comes again after a quarter of a minute.
            deadline = time.monotonic() + 30
            while True:
                try:
                    dns.query.udp(dns.message.make_query(ZONE, "SOA"), "127.0.0.1", timeout=0.2, port=port)
                    break
                except (dns.exception.Timeout, OSError):
                    assert time.monotonic() < deadline, blockd.log.read_text()
            yield blockd, supplier


def source(blockd: Blockd) -> dict[str, Any]:
    """Say what is known of the list's source."""
    known: dict[str, Any] = json.loads(blockd.run("lists", "--json").stdout)["lists"][0]["source"]
    return known


def wait_for(name: str, wanted: str, blockd: Blockd, seconds: float) -> None:
    """Ask until the answer is this."""
    deadline = time.monotonic() + seconds
    while rcode(ask(blockd, name, client=CORPORATE)) != wanted:
        assert time.monotonic() < deadline, blockd.log.read_text()
        time.sleep(0.1)


def test_a_zone_of_another_server_is_a_list(pair: tuple[Blockd, Supplier]) -> None:
    """Whole before the first answer, then at once by what changed, when its primary says so."""
    blockd, supplier = pair
    assert rcode(ask(blockd, "www.one.example", client=CORPORATE)) == "NXDOMAIN"
    assert rcode(ask(blockd, "three.example", client=CORPORATE)) == "NOERROR"
    assert source(blockd)["url"] == f"dns://{supplier.address}/{ZONE}"
    supplier.write(["one.example", "two.example", "three.example"])
    supplier.reload()
    wait_for("www.three.example", "NXDOMAIN", blockd, 20)
    log = (supplier.directory / "log").read_text()
    assert "AXFR started: TSIG supplier" in log
    assert "IXFR started: TSIG supplier" in log
    assert "unchanged" in blockd.run("lists", "fetch").stdout


def test_what_does_not_fit_is_fetched_whole_and_what_is_older_is_not(pair: tuple[Blockd, Supplier]) -> None:
    """Differences to another zone than ours; a serial that goes back; a zone that lost most; another key."""
    blockd, supplier = pair
    kept = next(file for file in (blockd.directory / "state" / "lists").iterdir() if file.suffix == ".test")
    # Somebody changed what we hold: its differences cannot be applied.
    kept.write_text(kept.read_text().replace("one.example", "won.example"))
    supplier.write(["two.example", "three.example"])
    supplier.reload()
    wait_for("www.three.example", "NXDOMAIN", blockd, 20)
    assert rcode(ask(blockd, "one.example", client=CORPORATE)) == "NOERROR"
    held = kept.read_text()
    supplier.write(["four.example", "five.example"], serial=50)
    (supplier.directory / "policy.zone.jnl").unlink(missing_ok=True)
    supplier.__exit__()
    with supplier:
        failed = blockd.run("lists", "fetch")
        assert failed.returncode == 1
        assert "its serial goes back, from 102 to 50" in failed.stderr, failed.stderr
        assert kept.read_text() == held
        supplier.write(["two.example"], serial=200)
        supplier.reload()
        deadline = time.monotonic() + 20
        while source(blockd)["result"] != "refused":
            assert time.monotonic() < deadline, source(blockd)
        assert "would lose 2 of its 4 rules (50%)" in source(blockd)["reason"]
        write_key(blockd.directory / "supplier.key", base64.b64encode(b"x" * 32).decode())
        failed = blockd.run("lists", "fetch")
        assert failed.returncode == 1
        assert "the transfer failed: " in failed.stderr, failed.stderr
        assert kept.read_text() == held
    assert rcode(ask(blockd, "www.three.example", client=CORPORATE)) == "NXDOMAIN"
