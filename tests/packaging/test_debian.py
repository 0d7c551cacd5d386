"""The Debian package and its units on a machine with systemd: installed, run, reloaded, watched, upgraded, purged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from tests.support.builds import one_build
from tests.support.machine import Machine

ROOT = Path(__file__).parents[2]
EGRESS = (ROOT / "docs" / "egress.md").read_text()
#: Highest exposure that `systemd-analyze security` may give; a tenth of it is setpriority, by which threads give way.
WORST_EXPOSURE = 1.7

CONFIG = """\
server: {listen: ["127.0.0.1:53", "[::1]:53"], threads: 2}
admin: {listen: "127.0.0.1:9153"}
upstream: {servers: ["127.0.0.53"]}
apps: {directory: apps/}
groups:
  corporate: {networks: [127.0.0.1/32]}
policies:
  corporate: {block: [tiktok, bytedance-platform]}
  unidentified: {}
records: {intranet.dept.example: ["A 10.0.0.5"]}
"""


@pytest.fixture(scope="module")
def package() -> Path:
    """Build it, as `make deb` does."""
    with one_build():
        subprocess.run([ROOT / "systemd" / "debian" / "build"], check=True, capture_output=True, timeout=600)
    (found,) = (ROOT / "build").glob("blockd_0.1.0_*.deb")
    return found


@pytest.fixture(scope="module")
def machine(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Boot a machine, and install the package there."""
    with Machine(tmp_path_factory.mktemp("machine")) as machine:
        machine.copy(package, "/blockd.deb")
        machine.run("dpkg -i /blockd.deb")
        yield machine


def write_config(machine: Machine, text: str) -> None:
    """Write the config as an administrator would: in place."""
    machine.run(f"cat > /etc/blockd/blockd.yaml <<'END'\n{text}END")


def wait_until(machine: Machine, command: str, wanted: str, seconds: float = 60) -> None:
    """Wait until a command prints this."""
    deadline = time.monotonic() + seconds
    while machine.run(command, check=False).stdout.strip() != wanted:
        assert time.monotonic() < deadline, (machine.run(command, check=False), machine.log())
        time.sleep(0.1)


DIG = "dig +tries=1 +timeout=3 @127.0.0.1"
#: Inside the machine the tests' own Python is where it is outside.
LOAD = f"PYTHONPATH={ROOT} {sys.executable} -m tests.support.load 127.0.0.1 53"


@pytest.mark.timeout(900)
def test_it_is_installed_and_answers(machine: Machine) -> None:
    """Active as its own user, ready when it says so, port 53 by two threads, without root's rights."""
    assert machine.out("systemctl is-active blockd; systemctl is-enabled blockd") == "active\nenabled"
    assert machine.out("ps -o user= -C blockd") == "blockd"
    assert machine.out(f"{DIG} localhost +short") == "127.0.0.1"
    assert "tiktok" in machine.out("blockd check")
    write_config(machine, CONFIG)
    machine.run("systemctl restart blockd")
    assert machine.out("systemctl is-active blockd") == "active"
    assert "status: NXDOMAIN" in machine.out(f"{DIG} www.tiktok.com")
    assert machine.out(f"{DIG} intranet.dept.example +short") == "10.0.0.5"
    sockets = machine.out("ss -Hlnup 'sport = :53'")
    assert len(sockets.splitlines()) == 4, "two threads on two addresses"
    assert "rules generation 1" in machine.out("systemctl show blockd -p StatusText --value")
    status = machine.out("cat /proc/$(systemctl show blockd -p MainPID --value)/status")
    assert re.search(r"^CapEff:\s+0*400$", status, re.MULTILINE), "CAP_NET_BIND_SERVICE alone"
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    machine.run("blockd status")
    stranger = machine.run("runuser -u nobody -- blockd status", check=False)
    assert stranger.returncode == 1, "the socket is not for everybody"


def test_the_units_are_sound(machine: Machine) -> None:
    """`systemd-analyze verify` has nothing to say, `security` at most 1.7."""
    for unit in ("blockd.service", "blockd.socket", "blockd-egress.service"):
        verified = machine.run(f"systemd-analyze verify /lib/systemd/system/{unit}", check=False)
        assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    for unit, worst in (("blockd", WORST_EXPOSURE), ("blockd-egress", 1.5)):
        text = machine.out(f"systemd-analyze security --no-pager --offline=true /lib/systemd/system/{unit}.service")
        exposure = re.search(rf"Overall exposure level for {unit}\.service: ([\d.]+)", text)
        assert exposure is not None
        assert float(exposure[1]) <= worst, text


def test_a_reload_is_told_whatever_comes_of_it(machine: Machine) -> None:
    """`systemctl reload` takes a change in; a broken config fails it, and the policy before it stands."""
    write_config(machine, CONFIG.replace("bytedance-platform]", "bytedance-platform, temu]"))
    machine.run("systemctl reload blockd")
    assert "status: NXDOMAIN" in machine.out(f"{DIG} temu.com")
    assert "views generation 2" in machine.out("systemctl show blockd -p StatusText --value")
    write_config(machine, CONFIG + "nonsense: 1\n")
    assert machine.run("systemctl reload blockd", check=False).returncode != 0
    assert machine.out("systemctl is-active blockd") == "active"
    assert "not in force" in machine.out("systemctl show blockd -p StatusText --value")
    assert "status: NXDOMAIN" in machine.out(f"{DIG} temu.com")
    machine.run("systemctl restart blockd")
    assert "status: NXDOMAIN" in machine.out(f"{DIG} temu.com"), "a restart runs the last good inputs"
    write_config(machine, CONFIG)
    machine.run("systemctl reload blockd")


def test_a_second_one_does_not_disturb_the_first(machine: Machine) -> None:
    """Starting the unit twice is one daemon; one started by hand says what stands in its way."""
    first = machine.out("systemctl show blockd -p MainPID --value")
    machine.run("systemctl start blockd")
    assert machine.out("systemctl show blockd -p MainPID --value") == first
    second = machine.run("runuser -u blockd -- blockd serve", check=False)
    assert second.returncode == 1
    assert "blockd cannot start: state.directory: /var/lib/blockd: another blockd is running with it" in second.stderr
    assert "status: NXDOMAIN" in machine.out(f"{DIG} www.tiktok.com")


def test_a_daemon_that_stands_still_is_started_anew(machine: Machine) -> None:
    """The watchdog is fed while it turns, and not when it does not."""
    machine.run("mkdir -p /run/systemd/system/blockd.service.d")
    machine.run("printf '[Service]\\nWatchdogSec=3\\n' > /run/systemd/system/blockd.service.d/tests.conf")
    machine.run("systemctl daemon-reload && systemctl restart blockd")
    first = machine.out("systemctl show blockd -p MainPID --value")
    time.sleep(5)
    assert machine.out("systemctl show blockd -p MainPID --value") == first, "it turns, and is left alone"
    machine.run(f"kill -STOP {first}")
    deadline = time.monotonic() + 20
    while machine.out("systemctl show blockd -p MainPID --value") in (first, "0"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    wait_until(machine, "systemctl is-active blockd", "active")
    assert "status: NXDOMAIN" in machine.out(f"{DIG} www.tiktok.com")
    machine.run("rm -r /run/systemd/system/blockd.service.d && systemctl daemon-reload && systemctl restart blockd")


def test_a_restart_loses_no_query_where_sockets_are_activated(machine: Machine) -> None:
    """2,000 queries a second for five seconds while it restarts twice: all are answered, two threads serve."""
    machine.run("systemctl stop blockd && systemctl enable --now blockd.socket && systemctl start blockd")
    assert "2 sockets of the supervisor" in machine.log()
    load = f"({LOAD} 5 2000 www.tiktok.com > /load.json) & sleep 1; systemctl restart blockd; sleep 1.5;"
    machine.run(f"{load} systemctl restart blockd; wait")
    result = json.loads(machine.out("cat /load.json"))
    assert result["sent"] > 9_000
    assert result["lost"] == 0, result
    assert result["codes"] == {"3": result["sent"]}, result
    sockets = machine.out("ss -Hlnup 'sport = :53'")
    assert len(sockets.splitlines()) == 4
    assert machine.out(f"{DIG} +tcp intranet.dept.example +short") == "10.0.0.5"
    machine.run("systemctl disable --now blockd.socket; systemctl restart blockd")


def test_sockets_that_are_not_in_the_config_are_refused(machine: Machine) -> None:
    """An address that systemd opened and nobody would answer is an error that says what to do."""
    machine.run("mkdir -p /run/systemd/system/blockd.socket.d")
    machine.run("printf '[Socket]\\nListenStream=127.0.0.9:53\\n' > /run/systemd/system/blockd.socket.d/tests.conf")
    machine.run("systemctl daemon-reload && systemctl stop blockd && systemctl start blockd.socket")
    machine.run("systemctl start blockd", check=False)
    wait_until(machine, "journalctl -q | grep -c 'the supervisor opened 127.0.0.9:53' | grep -c [1-9]", "1")
    machine.run("rm -r /run/systemd/system/blockd.socket.d; systemctl daemon-reload; systemctl stop blockd.socket")
    machine.run("systemctl reset-failed blockd; systemctl restart blockd")
    wait_until(machine, f"{DIG} intranet.dept.example +short", "10.0.0.5")


def commands(page: str, heading: str) -> list[str]:
    """Give the commands of a page's block, as root runs them."""
    text = (ROOT / page).read_text()
    block = re.search(
        rf"## {heading}\n.*?<!-- commands: tests/packaging/test_debian.py -->\n\n```sh\n(.*?)```", text, re.DOTALL
    )
    assert block is not None
    return [line.removeprefix("sudo ") for line in block[1].splitlines()]


def test_the_commands_of_the_docs_work(machine: Machine) -> None:
    """Deploying, upgrading, and handing the sockets to systemd, line by line; the package was built by the first."""
    for page, heading in (
        ("README.md", "Deploy"),
        ("docs/operations.md", "Upgrading"),
        ("docs/placement.md", "Ports, and restarts without loss"),
    ):
        for command in commands(page, heading):
            if command != "make deb":
                machine.run(f"cd {ROOT} && {command.replace('apt-get install', 'apt-get install -y --reinstall')}")
        wait_until(machine, f"{DIG} intranet.dept.example +short", "10.0.0.5")
    assert machine.out("systemctl is-active blockd.socket") == "active"
    machine.run("systemctl disable --now blockd.socket; systemctl restart blockd")


EXEMPTIONS = """\
exemptions:
  teams: {cyber-security: [alice]}
  requesters: [carol]
  mitigations: [dedicated device]
"""


def shown_time(found: re.Match[str]) -> str:
    """Give one time for what is now, and one for what is in days."""
    is_far = datetime.fromisoformat(found[0]) > datetime.now(UTC) + timedelta(days=1)
    return "2026-12-02T09:00:00+00:00" if is_far else "2026-11-27T09:00:00+00:00"


def people_session(machine: Machine, page: Path) -> None:
    """Run the session of a page by people of the machine: the page shows it, but for times and hashes."""
    session = re.search(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    assert session is not None
    happened = ""
    for user, command in re.findall(r"^(carol|alice|root)\$ (.*)$", session[1], re.MULTILINE):
        script = "/tmp/command"
        machine.run(f"cat > {script} <<'END'\n{command}\nEND")
        done = machine.run(f"chmod 644 {script}; runuser -u {user} -- bash {script}", check=False)
        happened += f"{user}$ {command}\n{done.stdout}{done.stderr}"
    happened = re.sub(r"\d{4}-\d\d-\d\dT[0-9:]{8}\+00:00", shown_time, happened)
    happened = re.sub(r"\d{4}-\d\d-\d\dT[0-9:]{5}(?!:)", "2026-11-27T09:00", happened)
    happened = re.sub(r"(?m)^\d{4}-\d\d-\d\d to \d{4}-\d\d-\d\d$", "2026-11-26 to 2026-11-27", happened)
    happened = re.sub(r"\b[0-9a-f]{64}\b", "5c0e...", happened)
    if os.environ.get("BLOCKD_RECORD"):
        page.write_text(page.read_text().replace(session[1], happened))
    else:
        assert session[1] == happened


@pytest.fixture(scope="module")
def people(machine: Machine) -> Iterator[None]:
    """Have two people in the machine who are not root."""
    machine.run("useradd -M carol && useradd -M alice")
    yield
    machine.run("userdel carol && userdel alice; rm -f /tmp/command")


@pytest.mark.usefixtures("people")
def test_an_exemption_from_request_to_revocation(machine: Machine) -> None:
    """The session of docs/exemptions.md."""
    inventory = "address,hostname,serial,owner\\n127.0.0.41,laptop-7,SER-4711,ministry\\n"
    machine.run(f"printf '{inventory}' > /etc/blockd/devices.csv")
    with_device = CONFIG.replace("[127.0.0.1/32]}", "[127.0.0.1/32], inventory: [{file: devices.csv}]}")
    write_config(machine, with_device + EXEMPTIONS)
    machine.run("systemctl restart blockd")
    people_session(machine, ROOT / "docs" / "exemptions.md")
    write_config(machine, CONFIG)
    machine.run("systemctl restart blockd && rm /etc/blockd/devices.csv")


@pytest.mark.usefixtures("people")
def test_a_decision_about_an_app(machine: Machine) -> None:
    """The session of docs/review.md."""
    write_config(machine, CONFIG.replace("platform]}", "platform], monitor: [temu]}") + EXEMPTIONS)
    # As on a new machine: the test before had an inventory, whose loss the gate would refuse.
    forget = "rm -rf /var/lib/blockd/*"
    machine.run(f"systemctl stop blockd && {forget} && systemctl start blockd")
    people_session(machine, ROOT / "docs" / "review.md")
    write_config(machine, CONFIG)
    machine.run(f"systemctl stop blockd && {forget} && systemctl start blockd")


def test_the_firewalls_unit_enforces_and_repairs(machine: Machine, tmp_path: Path) -> None:
    """Started as it is shipped, by the socket; then for another machine, by the drop-in of the docs."""
    authority = trustme.CA()
    machine.run("mkdir -p /etc/blockd")
    files = {"authority": tmp_path / "ca.pem"}
    authority.cert_pem.write_to_path(files["authority"])
    issued = authority.issue_cert("127.0.0.1")
    for name, text in (("crt", issued.cert_chain_pems[0].bytes()), ("key", issued.private_key_pem.bytes())):
        (tmp_path / name).write_bytes(text)
        for who in ("resolver", "gateway"):
            machine.copy(tmp_path / name, f"/etc/blockd/{who}.{name}")
    for name in ("firewalls.crt", "resolvers.crt"):
        machine.copy(files["authority"], f"/etc/blockd/{name}")
    machine.run("chown blockd /etc/blockd/resolver.key && chown blockd-egress /etc/blockd/gateway.key")
    machine.run("chmod 600 /etc/blockd/*.key")
    far = re.search(r"(?m)^egress:\n  enabled: true\n  listen: .*\n(?:  .*\n)+", EGRESS)
    assert far is not None, "the docs say how a gateway of another machine is let in"
    write_config(machine, CONFIG + far[0].replace("10.0.0.53", "127.0.0.1"))
    machine.run("systemctl restart blockd && systemctl start blockd-egress")
    wait_until(machine, "blockd egress status >/dev/null && echo enforced", "enforced")
    main = machine.out("systemctl show blockd-egress -p MainPID --value")
    status = machine.out(f"cat /proc/{main}/status")
    assert re.search(r"^CapEff:\s+0*1000$", status, re.MULTILINE), "CAP_NET_ADMIN alone"
    assert machine.out(f"stat -c %U /proc/{main}") == "blockd-egress"
    machine.run("nft flush ruleset")
    wait_until(machine, "nft list tables", "table inet blockd")
    assert "the table was removed by nft: repaired" in machine.out("journalctl -q -u blockd-egress")
    drop_in = re.search(r"```ini\n(.*?)```", EGRESS, re.DOTALL)
    assert drop_in is not None
    place = "/etc/systemd/system/blockd-egress.service.d"
    machine.run(f"mkdir -p {place}")
    (tmp_path / "drop-in").write_text(drop_in[1].replace("10.0.0.53", "127.0.0.1"))
    machine.copy(tmp_path / "drop-in", f"{place}/override.conf")
    machine.run("systemctl daemon-reload && systemctl stop blockd-egress && nft delete table inet blockd")
    machine.run("systemctl start blockd-egress")
    wait_until(machine, "blockd egress status >/dev/null && echo enforced", "enforced")
    assert "connected to 127.0.0.1:8530" in machine.out("journalctl -q -u blockd-egress")
    assert "table inet blockd" in machine.out("nft list tables")
    assert "firewalls have removed the table" in machine.out("blockd egress off")
    assert machine.out("nft list tables") == ""
    assert "1 firewalls enforce generation" in machine.out("blockd egress on")
    machine.run(f"systemctl stop blockd-egress && rm -r {place} && systemctl daemon-reload")
    assert machine.run("blockd egress on", check=False).returncode == 1, "no firewall is connected"
    machine.run("nft delete table inet blockd")
    machine.run("rm /etc/blockd/*.key /etc/blockd/*.crt")
    write_config(machine, CONFIG)
    machine.run("systemctl restart blockd")


def test_an_upgrade_keeps_what_was_changed(machine: Machine, package: Path, tmp_path: Path) -> None:
    """The administrator's config stays, the new daemon runs, the policy is the same."""
    subprocess.run(["dpkg-deb", "-R", package, tmp_path / "new"], check=True)
    control = tmp_path / "new" / "DEBIAN" / "control"
    control.write_text(control.read_text().replace("Version: 0.1.0", "Version: 0.1.1"))
    shipped = tmp_path / "new" / "etc" / "blockd" / "blockd.yaml"
    shipped.write_text(shipped.read_text() + "# a new version\n")
    newer = tmp_path / "newer.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", "-Zgzip", tmp_path / "new", newer], check=True, capture_output=True
    )
    machine.copy(newer, "/newer.deb")
    before = machine.out("systemctl show blockd -p MainPID --value")
    machine.run("dpkg --force-confold -i /newer.deb")
    assert machine.out("dpkg-query -W -f '${Version}' blockd") == "0.1.1"
    assert machine.out("cat /etc/blockd/blockd.yaml") == CONFIG.strip()
    assert "a new version" in machine.out("cat /etc/blockd/blockd.yaml.dpkg-dist")
    wait_until(machine, "systemctl is-active blockd", "active")
    assert machine.out("systemctl show blockd -p MainPID --value") != before
    assert "status: NXDOMAIN" in machine.out(f"{DIG} www.tiktok.com")


def test_a_purge_while_it_runs_leaves_nothing(machine: Machine) -> None:
    """No process, no unit, no state, no config; and it can be installed again."""
    machine.run("dpkg --purge blockd")
    assert machine.run("pgrep blockd", check=False).returncode == 1
    for place in (
        "/etc/blockd",
        "/var/lib/blockd",
        "/run/blockd",
        "/usr/lib/blockd",
        "/lib/systemd/system/blockd.service",
    ):
        assert machine.run(f"ls -R {place}", check=False).returncode == 2, place
    assert machine.run("systemctl cat blockd", check=False).returncode != 0
    machine.run("dpkg -i /blockd.deb")
    assert machine.out("systemctl is-active blockd") == "active"
    machine.run("dpkg --remove blockd")
    assert machine.out("ls /etc/blockd/blockd.yaml") == "/etc/blockd/blockd.yaml", "a removal keeps the config"
    machine.run("dpkg --purge blockd")
