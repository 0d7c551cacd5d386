"""The servers that are compared: each with an equal policy and one thread, in front of the same NSD."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import yaml

from tests.support.daemon import config, free_port

SERVER_CORE, LOAD_CORE = "0", "1"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
CACHED_NAMES = 5_000
BLOCKED = "tiktok.com"


class BenchmarkError(Exception):
    """There is no figure, and this is why."""


class Server:
    """One server process, pinned to the server's core."""

    name = ""
    program = ""

    def __init__(self, directory: Path, upstream: int) -> None:
        """Write its configuration."""
        if self.program and not shutil.which(self.program):
            raise BenchmarkError(f"{self.program} is missing: make test-packages installs it")
        self.directory = directory / self.name
        self.directory.mkdir(parents=True)
        self.upstream = upstream
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Give the command line."""
        raise NotImplementedError

    def version(self) -> str:
        """Say which version runs."""
        raise NotImplementedError

    def start(self) -> None:
        """Run it and wait until it answers."""
        with (self.directory / "log").open("wb") as log:
            command = ["taskset", "-c", SERVER_CORE, *self.command()]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                query = dns.message.make_query("c0.example", "A")
                if dns.query.udp(query, "127.0.0.1", timeout=0.3, port=self.port).answer:
                    return
            except (dns.exception.Timeout, OSError):
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.stop()
        raise BenchmarkError(f"{self.name} does not answer: {(self.directory / 'log').read_text()[-800:]}")

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

    def cpu_seconds(self) -> float:
        """Give user and system time of the process so far, all threads, from outside."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0]


class Blockd(Server):
    """blockd in its default configuration, but for one thread and a rate limit that lets one load generator through."""

    name = "blockd"

    def command(self) -> list[str]:
        """Write blockd.yaml."""
        values = config([f"127.0.0.1:{self.upstream}"], self.port, free_port())
        values["server"] |= {"listen": [f"127.0.0.1:{self.port}"], "threads": 1}
        values["server"] |= {"client_rate": 1_000_000, "client_burst": 1_000_000}
        values["cache"] = {"size_mb": 256}
        values["apps"] = {}
        values["upstream"]["pending_a_client"] = 10_000
        file = self.directory / "blockd.yaml"
        file.write_text(yaml.safe_dump(values))
        return [sys.executable, "-m", "blockd", "serve", "--config", str(file)]

    def version(self) -> str:
        """Say which version runs."""
        return _first_line(sys.executable, "-m", "blockd", "--version")


class Unbound(Server):
    """Unbound with the policy as a response policy zone; tuned as its "Performance Tuning" page says."""

    name = "Unbound"
    program = "unbound"

    def command(self) -> list[str]:
        """Write unbound.conf and the zone."""
        zone = self.directory / "policy.zone"
        soa = "$ORIGIN policy.\n@ 30 IN SOA ns.invalid. host.invalid. 1 3600 600 86400 30\n@ 30 IN NS ns.invalid.\n"
        zone.write_text(f"{soa}{BLOCKED} CNAME .\n*.{BLOCKED} CNAME .\n")
        conf = self.directory / "unbound.conf"
        # https://unbound.docs.nlnetlabs.nl/en/latest/topics/core/performance.html
        conf.write_text(f"""server:
  interface: 127.0.0.1@{self.port}
  access-control: 127.0.0.0/8 allow
  num-threads: 1
  msg-cache-size: 100m
  rrset-cache-size: 200m
  so-rcvbuf: 4m
  so-sndbuf: 4m
  so-reuseport: yes
  outgoing-range: 8192
  num-queries-per-thread: 4096
  do-not-query-localhost: no
  module-config: "respip iterator"
  username: ""
  chroot: ""
  directory: "{self.directory}"
  pidfile: ""
  use-syslog: no
  verbosity: 0
rpz:
  name: policy.
  zonefile: "{zone}"
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@{self.upstream}
remote-control:
  control-enable: no
""")
        return ["unbound", "-d", "-c", str(conf)]

    def version(self) -> str:
        """Say which version runs."""
        return _first_line("unbound", "-V").replace("Version", "Unbound")


class Dnsdist(Server):
    """dnsdist with a suffix rule and a packet cache, as its "Performance" page has them; a proxy, no resolver."""

    name = "dnsdist"
    program = "dnsdist"

    def command(self) -> list[str]:
        """Write dnsdist.conf."""
        conf = self.directory / "dnsdist.conf"
        # https://dnsdist.org/advanced/tuning.html
        conf.write_text(f"""setLocal("127.0.0.1:{self.port}")
setACL({{"127.0.0.0/8"}})
newServer({{address="127.0.0.1:{self.upstream}", sockets=16, healthCheckMode="up"}})
getPool(""):setCache(newPacketCache(200000))
blocked = newSuffixMatchNode()
blocked:add(newDNSName("{BLOCKED}."))
addAction(SuffixMatchNodeRule(blocked), RCodeAction(DNSRCode.NXDOMAIN))
setMaxUDPOutstanding(65535)
""")
        return ["dnsdist", "--supervised", "--disable-syslog", "-C", str(conf)]

    def version(self) -> str:
        """Say which version runs."""
        return _first_line("dnsdist", "--version")


SERVERS: tuple[type[Server], ...] = (Blockd, Unbound, Dnsdist)
