"""The servers that are compared: each with an equal policy and one thread, in front of the same NSD.

A rival's configuration is a file below ``rivals/`` that names the vendor's page on tuning.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any, ClassVar

import dns.exception
import dns.message
import dns.query
import yaml

from blockd.control.client import ask
from tests.support.daemon import config, free_port

SERVER_CORE, LOAD_CORE = "0", "1"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
CACHED_NAMES = 5_000
BLOCKED = "tiktok.com"
RIVALS = Path(__file__).parent / "rivals"
CRATE = Path(__file__).parent / "load"
BUILT = Path(__file__).parent.parent / "build" / "cargo" / "release"
SOA = "$ORIGIN policy.\n@ 30 IN SOA ns.invalid. host.invalid. 1 3600 600 86400 30\n@ 30 IN NS ns.invalid.\n"


class BenchmarkError(Exception):
    """There is no figure, and this is why."""


class Server:
    """One server process, pinned to the server's core."""

    name = ""
    program = ""
    #: Configuration files below ``rivals/``, the main one first.
    files: tuple[str, ...] = ()
    cores = SERVER_CORE
    #: Whether it resolves; one that does not has no policy of its own to compare.
    is_resolver = True

    def __init__(self, directory: Path, upstream: int, extra: Path | None = None) -> None:
        """Write its configuration; `extra` are names, one a line, that are blocked beside the usual ones."""
        if self.program and not shutil.which(self.program):
            raise BenchmarkError(f"{self.program} is missing: make bench-packages installs it")
        self.directory = directory / (self.name + ("" if extra is None else "-" + extra.name))
        self.directory.mkdir(parents=True)
        self.upstream = upstream
        self.extra = extra
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def words(self) -> dict[str, Any]:
        """Give what stands for the ``$words`` of the configuration files."""
        return {"port": self.port, "upstream": self.upstream, "directory": self.directory, "blocked": BLOCKED}

    def write_files(self) -> Path:
        """Write policy zone and configuration; give the main file."""
        with (self.directory / "policy.zone").open("w") as zone:
            zone.write(f"{SOA}{BLOCKED} CNAME .\n*.{BLOCKED} CNAME .\n")
            if self.extra is not None:
                with self.extra.open() as names:
                    zone.writelines(f"{name.rstrip()} CNAME .\n" for name in names)
        for file in self.files:
            (self.directory / file).write_text(Template((RIVALS / file).read_text()).substitute(self.words()))
        return self.directory / self.files[0]

    def command(self) -> list[str]:
        """Write the configuration and give the command line."""
        raise NotImplementedError

    def version(self) -> str:
        """Say which version runs."""
        raise NotImplementedError

    def start(self, name: str = "c0.example", patience: float = 60) -> float:
        """Run it and wait until it answers; give the seconds that took."""
        command = ["taskset", "-c", self.cores, *self.command()]
        begun = time.monotonic()
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)
        while time.monotonic() < begun + patience:
            try:
                dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", timeout=0.05, port=self.port)
                return time.monotonic() - begun
            except (dns.exception.Timeout, OSError):
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        self.stop()
        raise BenchmarkError(f"{self.name} does not answer: {(self.directory / 'log').read_text()[-800:]}")

    def reload(self) -> float:
        """Take in one name more; give the seconds that took. BenchmarkError when it could not."""
        raise NotImplementedError

    def reload_zone(self, *command: object) -> float:
        """Add a name to the policy zone, and have the server read it by its own command."""
        zone = self.directory / "policy.zone"
        text = zone.read_text().replace(" 1 3600 600", " 2 3600 600", 1)
        # Another file in its place: a server that maps the old one keeps it.
        new = zone.with_suffix(".new")
        new.write_text(f"{text}one-more.invalid CNAME .\n")
        new.replace(zone)
        begun = time.monotonic()
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise BenchmarkError(f"{self.name} does not reload: {done.stdout}{done.stderr}")
        return time.monotonic() - begun

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None
        return self.process.pid

    def cpu_seconds(self) -> float:
        """Give user and system time of the process so far, all threads, from outside."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def first_line(*command: str) -> str:
    """Give the first line that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0]


class Blockd(Server):
    """blockd in its default configuration, with one thread and one corporate network: the loopback."""

    name = "blockd"
    threads = 1
    devices: Path | None = None
    #: Apps of the site, by name.
    apps: Mapping[str, dict[str, Any]] = MappingProxyType({})
    cache_mb = 256
    #: More of the config's section `server`.
    server_options: ClassVar[dict[str, int]] = {}

    def values(self) -> dict[str, Any]:
        """Give the config."""
        self.admin = free_port()
        values = config([f"127.0.0.1:{self.upstream}"], self.port, self.admin)
        values["server"] |= {"listen": [f"127.0.0.1:{self.port}", f"[::1]:{self.port}"], "threads": self.threads}
        values["server"] |= {"clients": ["127.0.0.0/8", "::1/128"], **self.server_options}
        values["cache"] = {"size_mb": self.cache_mb}
        values["groups"] = {"corporate": {"networks": ["127.0.0.0/8", "::1/128"]}}
        block = ["tiktok", "bytedance-platform", *self.apps]
        if self.extra is not None:
            block.append("listed")
        values["policies"] = {"corporate": {"block": block}, "unidentified": {}}
        if self.devices is not None:
            values["groups"] = {"corporate": {"networks": ["::1/128"], "inventory": [{"file": str(self.devices)}]}}
        return values

    def command(self) -> list[str]:
        """Write blockd.yaml."""
        apps = self.directory / "apps"
        apps.mkdir(exist_ok=True)
        for name, app in self.apps.items():
            (apps / f"{name}.yaml").write_text(yaml.safe_dump({"app": name, "title": name, "owner": "nobody", **app}))
        if self.extra is not None:
            hosts = self.directory / "listed.hosts"
            with hosts.open("w") as lines, self.extra.open() as names:
                lines.writelines(f"0.0.0.0 {name}" for name in names)
            # From one name to a million is what the gate is there for.
            growth = 100_000_000
            lists = [{"file": str(hosts), "format": "hosts", "kind": "block", "largest_growth": growth}]
            app = {"app": "listed", "title": "Listed", "owner": "nobody", "lists": lists}
            (apps / "listed.yaml").write_text(yaml.safe_dump(app))
        file = self.directory / "blockd.yaml"
        file.write_text(yaml.safe_dump(self.values()))
        return self.serve(file)

    def serve(self, file: Path) -> list[str]:
        """Give the command line."""
        return [sys.executable, "-P", "-m", "blockd", "serve", "--config", str(file)]

    def reload(self) -> float:
        """Compile and publish; give the seconds that took."""
        if self.extra is not None:
            with (self.directory / "listed.hosts").open("a") as lines:
                lines.write("0.0.0.0 one-more.invalid\n")
        begun = time.monotonic()
        reply = ask(self.directory / "control.sock", "reload")
        if not reply["ok"]:
            raise BenchmarkError(f"blockd reload: {reply['problems']}")
        return time.monotonic() - begun

    def version(self) -> str:
        """Say which version runs."""
        return first_line(sys.executable, "-P", "-m", "blockd", "--version")


class ChangingBlockd(Blockd):
    """blockd, with a thousand devices a second that change."""

    def serve(self, file: Path) -> list[str]:
        """Give the command line."""
        return [sys.executable, str(Path(__file__).parent / "changing.py"), str(file)]


class Unbound(Server):
    """Unbound with the policy as a response policy zone."""

    name, program, files = "Unbound", "unbound", ("unbound.conf",)

    def command(self) -> list[str]:
        """Write unbound.conf and the zone."""
        return ["unbound", "-d", "-c", str(self.write_files())]

    def reload(self) -> float:
        """Read the policy zone again."""
        config = self.directory / self.files[0]
        return self.reload_zone("unbound-control", "-c", config, "auth_zone_reload", "policy.")

    def version(self) -> str:
        """Say which version runs."""
        return first_line("unbound", "-V").replace("Version", "Unbound")


class Recursor(Server):
    """PowerDNS Recursor with the policy as a response policy zone."""

    name, program, files = "Recursor", "pdns_recursor", ("recursor.conf", "recursor.lua")

    def command(self) -> list[str]:
        """Write recursor.conf and the zone."""
        return ["pdns_recursor", f"--config-dir={self.write_files().parent}"]

    def reload(self) -> float:
        """Read the policy zone again."""
        return self.reload_zone("rec_control", f"--config-dir={self.directory}", "--timeout=60", "reload-lua-config")

    def version(self) -> str:
        """Say which version runs."""
        return " ".join(first_line("pdns_recursor", "--version").split("(C)")[0].split()[-3:])


class Dnsdist(Server):
    """dnsdist with a suffix rule and a packet cache; a proxy, no resolver.

    As shipped: few ports, IDs that count up. Its options for random ones come with 1.8; Debian 12 has 1.7.
    """

    name, program, files = "dnsdist", "dnsdist", ("dnsdist.conf",)
    is_resolver = False

    def command(self) -> list[str]:
        """Write dnsdist.conf."""
        return ["dnsdist", "--supervised", "--disable-syslog", "-C", str(self.write_files())]

    def version(self) -> str:
        """Say which version runs."""
        return first_line("dnsdist", "--version").split(" (")[0]


class Dnsmasq(Server):
    """dnsmasq with one address rule."""

    name, program, files = "dnsmasq", "dnsmasq", ("dnsmasq.conf",)

    def command(self) -> list[str]:
        """Write dnsmasq.conf."""
        return ["dnsmasq", "-k", "-C", str(self.write_files())]

    def version(self) -> str:
        """Say which version runs."""
        return first_line("dnsmasq", "--version").split("  ")[0].replace("Dnsmasq version", "dnsmasq")


class Kresd(Server):
    """Knot Resolver with the policy as a response policy zone."""

    name, program, files = "Knot Resolver", "kresd", ("kresd.conf",)

    def command(self) -> list[str]:
        """Write kresd.conf and the zone."""
        return ["kresd", "-n", "-c", str(self.write_files()), str(self.directory)]

    def version(self) -> str:
        """Say which version runs."""
        return first_line("kresd", "--version").replace(", version", "")


class Bind(Server):
    """BIND with the policy as a response policy zone."""

    name, program, files = "BIND", "named", ("named.conf",)

    def command(self) -> list[str]:
        """Write named.conf and the zone."""
        return ["named", "-g", "-n", "1", "-c", str(self.write_files())]

    def version(self) -> str:
        """Say which version runs."""
        return " ".join(first_line("named", "-v").split()[:2]).split("-")[0]


class Bare(Server):
    """The floor: a loop with recvmmsg, one hash lookup, sendmmsg; no features."""

    name = "bare loop"
    is_resolver = False

    def command(self) -> list[str]:
        """Write the blocked names."""
        names = self.directory / "names"
        names.write_text("\n".join(f"c{at}.{BLOCKED}" for at in range(CACHED_NAMES)) + f"\n{BLOCKED}\n")
        return [str(BUILT / "bare"), f"127.0.0.1:{self.port}", str(names)]

    def version(self) -> str:
        """It has none."""
        return self.name


ALL: tuple[type[Server], ...] = (Blockd, Unbound, Recursor, Dnsdist, Dnsmasq, Kresd, Bind, Bare)


def build_load() -> None:
    """Build the load generator. BenchmarkError says why it cannot be."""
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--manifest-path", str(CRATE / "Cargo.toml")]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(BUILT.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the load generator cannot be built: {done.stderr[-800:]}")
