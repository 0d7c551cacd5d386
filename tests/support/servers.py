"""Real servers from Debian, run in the foreground from temporary directories."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import dns.exception
import dns.message
import dns.query

from tests.support.daemon import free_port


def write_key(file: Path, secret: str) -> None:
    """Write a TSIG secret as an administrator should: not for everybody."""
    file.write_text(secret + "\n")
    file.chmod(0o640)


class RealServer:
    """A server process on 127.0.0.1; use it as a context."""

    def __init__(self, directory: Path) -> None:
        """Make its directory."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.host, self.port = "127.0.0.1", free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Give address and port, as the config has them."""
        return f"{self.host}:{self.port}"

    def command(self) -> list[str]:
        """Write the configuration, give the command line."""
        raise NotImplementedError

    def __enter__(self) -> RealServer:
        """Run it and wait until it answers."""
        command = self.command()
        assert shutil.which(command[0]), f"{command[0]} is missing: make test-packages installs it"
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 45
        while time.monotonic() < deadline:
            try:
                dns.query.udp(dns.message.make_query(".", "NS"), self.host, timeout=0.2, port=self.port)
                return self
            except (dns.exception.Timeout, OSError):
                if self.process.poll() is not None:
                    break
        self.__exit__()
        raise AssertionError(f"{command[0]} does not answer:\n{(self.directory / 'log').read_text()}")

    def __exit__(self, *_: object) -> None:
        """End it."""
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Nsd(RealServer):
    """NSD with zones from text: origin -> records."""

    def __init__(self, directory: Path, zones: dict[str, str]) -> None:
        """Write the zones."""
        super().__init__(directory)
        self.zones = zones

    def command(self) -> list[str]:
        """Write nsd.conf and the zone files."""
        rows = [
            "server:",
            f"  ip-address: {self.host}@{self.port}",
            '  username: ""',
            '  chroot: ""',
            f'  zonesdir: "{self.directory}"',
            f'  pidfile: "{self.directory}/nsd.pid"',
            '  database: ""',
            f'  xfrdfile: "{self.directory}/xfrd.state"',
            f'  zonelistfile: "{self.directory}/zone.list"',
            "  server-count: 1",
            "  rrl-ratelimit: 0",
            "  minimal-responses: no",
            "remote-control:",
            "  control-enable: no",
        ]
        for at, (origin, records) in enumerate(self.zones.items()):
            file = self.directory / f"{at}.zone"
            head = f"$ORIGIN {origin}.\n$TTL 300\n@ IN SOA ns.invalid. host.invalid. 1 3600 600 86400 30\n"
            file.write_text(f"{head}@ IN NS ns.invalid.\n{records}\n")
            rows += ["zone:", f'  name: "{origin}"', f'  zonefile: "{file}"']
        conf = self.directory / "nsd.conf"
        conf.write_text("\n".join(rows) + "\n")
        return ["nsd", "-d", "-c", str(conf)]


class Unbound(RealServer):
    """Unbound with a server section of the test's own and forwarders or stubs."""

    def __init__(self, directory: Path, server: list[str], rest: list[str]) -> None:
        """Keep the lines."""
        super().__init__(directory)
        self._server, self._rest = server, rest

    def command(self) -> list[str]:
        """Write unbound.conf."""
        rows = [
            "server:",
            f"  interface: 127.0.0.1@{self.port}",
            "  access-control: 127.0.0.0/8 allow_snoop",
            "  do-not-query-localhost: no",
            '  username: ""',
            '  chroot: ""',
            f'  directory: "{self.directory}"',
            '  pidfile: ""',
            "  use-syslog: no",
            "  do-ip6: no",
            *(f"  {line}" for line in self._server),
            *self._rest,
            "remote-control:",
            "  control-enable: no",
        ]
        conf = self.directory / "unbound.conf"
        conf.write_text("\n".join(rows) + "\n")
        return ["unbound", "-d", "-c", str(conf)]


class Bind(RealServer):
    """BIND with options and statements of the test's own; it asks `upstream` for everything."""

    def __init__(self, directory: Path, upstream: int, options: list[str], rest: list[str]) -> None:
        """Keep the lines; a `{directory}` in them is its own."""
        super().__init__(directory)
        self._upstream, self._options, self._rest = upstream, options, rest

    def command(self) -> list[str]:
        """Write named.conf."""
        rows = [
            "options {",
            f"  listen-on port {self.port} {{ {self.host}; }};",
            "  listen-on-v6 { none; };",
            f'  directory "{self.directory}";',
            "  pid-file none;",
            "  session-keyfile none;",
            f"  forwarders port {self._upstream} {{ 127.0.0.1; }};",
            "  forward only;",
            "  recursion yes;",
            "  dnssec-validation no;",
            "  notify no;",
            *self._options,
            "};",
            "controls { };",
            *self._rest,
        ]
        conf = self.directory / "named.conf"
        conf.write_text("\n".join(row.replace("{directory}", str(self.directory)) for row in rows) + "\n")
        return ["named", "-g", "-n", "1", "-c", str(conf)]


class Recursor(RealServer):
    """PowerDNS Recursor with Lua of the test's own; it asks `upstream` for everything."""

    def __init__(self, directory: Path, upstream: int, settings: list[str], lua: str) -> None:
        """Keep the lines."""
        super().__init__(directory)
        self._upstream, self._settings, self._lua = upstream, settings, lua

    def command(self) -> list[str]:
        """Write recursor.conf and recursor.lua."""
        (self.directory / "recursor.lua").write_text(self._lua)
        rows = [
            f"local-address={self.host}",
            f"local-port={self.port}",
            f"forward-zones-recurse=.=127.0.0.1:{self._upstream}",
            "dont-query=",
            "threads=1",
            "dnssec=off",
            f"lua-config-file={self.directory}/recursor.lua",
            f"socket-dir={self.directory}",
            "daemon=no",
            "disable-syslog=yes",
            "security-poll-suffix=",
            *self._settings,
        ]
        (self.directory / "recursor.conf").write_text("\n".join(rows) + "\n")
        return ["pdns_recursor", f"--config-dir={self.directory}"]
