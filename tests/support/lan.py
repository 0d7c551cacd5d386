"""A network of namespaces: a gateway with a bridge, and hosts that ask it for addresses by DHCP."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

GATEWAY = "10.77.0.1"
_names = itertools.count()
#: Of linux/sched.h.
CLONE_NEWNET = 0x40000000

#: In place of dhclient's own script, which writes to the machine's resolv.conf.
SCRIPT = """#!/bin/sh
case "$reason" in
  BOUND|REBOOT|RENEW|REBIND) ip address flush dev "$interface" scope global
    ip address add "$new_ip_address/24" dev "$interface" ;;
  RELEASE|EXPIRE|FAIL|STOP) ip address flush dev "$interface" scope global ;;
esac
"""


def run(*words: str, check: bool = True) -> str:
    """Run a command; give what it printed."""
    return subprocess.run(words, check=check, capture_output=True, text=True, timeout=60).stdout


@contextlib.contextmanager
def inside(space: str) -> Iterator[None]:
    """Have this thread in a namespace: sockets that it opens are in there, and stay."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{space}") as there:
        assert setns(there.fileno(), CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert setns(before.fileno(), CLONE_NEWNET) == 0


class Lan:
    """The gateway's namespace; use it as a context."""

    def __init__(self, directory: Path) -> None:
        """`directory` is for files of its servers."""
        self.directory = directory
        self._stack = ExitStack()
        self._hosts = 0
        self.gateway = self.space()

    def space(self) -> str:
        """Make a namespace that goes with the rest."""
        name = f"blockd-{os.getpid()}-{next(_names)}"
        run("ip", "netns", "add", name)
        self._stack.callback(run, "ip", "netns", "delete", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def __enter__(self) -> Lan:
        """Make the bridge."""
        run("ip", "-n", self.gateway, "link", "add", "lan", "type", "bridge")
        run("ip", "-n", self.gateway, "address", "add", f"{GATEWAY}/24", "dev", "lan")
        run("ip", "-n", self.gateway, "link", "set", "lan", "up")
        return self

    def __exit__(self, *_: object) -> None:
        """End its servers, then the namespaces."""
        self._stack.close()

    def prefix(self, space: str) -> list[str]:
        """Give the words that run a command in a namespace."""
        return ["ip", "netns", "exec", space]

    def serve(self, *command: str, environment: dict[str, str] | None = None, space: str | None = None) -> None:
        """Run a server on the gateway, or in another namespace, until the end."""
        log = (self.directory / f"{Path(command[0]).name}.log").open("w")
        self._stack.callback(log.close)
        words = [*self.prefix(space or self.gateway), *command]
        process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **(environment or {})})
        self._stack.callback(process.wait, 20)
        self._stack.callback(process.terminate)

    def host(self, mac: str) -> Host:
        """Plug a host in."""
        self._hosts += 1
        space, port = self.space(), f"port{self._hosts}"
        run("ip", "-n", self.gateway, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", self.gateway, "link", "set", port, "master", "lan", "up")
        run("ip", "-n", space, "link", "set", "eth0", "address", mac, "up")
        return Host(self, space, self.directory / space)


class Host:
    """A host on the network."""

    def __init__(self, lan: Lan, space: str, directory: Path) -> None:
        """`directory` is for its DHCP client's files."""
        self.lan, self.space, self.directory = lan, space, directory
        directory.mkdir()
        (directory / "script").write_text(SCRIPT)
        (directory / "script").chmod(0o755)

    def dhclient(self, *words: str) -> None:
        """Run Debian's DHCP client once."""
        files = ["-sf", str(self.directory / "script"), "-cf", str(self.directory / "conf")]
        files += ["-lf", str(self.directory / "leases"), "-pf", str(self.directory / "pid")]
        run(*self.lan.prefix(self.space), "dhclient", "-4", *files, *words, "eth0")

    @contextlib.contextmanager
    def lease(self, wanted: str) -> Iterator[str]:
        """Have an address, this one if the server pleases, and give it back; gives the address."""
        (self.directory / "conf").write_text(f"send dhcp-requested-address {wanted};\ntimeout 20;\n")
        (self.directory / "leases").unlink(missing_ok=True)
        self.dhclient("-1")
        try:
            shown = run("ip", "-n", self.space, "-4", "address", "show", "dev", "eth0")
            found = re.search(r"inet ([\d.]+)/", shown)
            assert found is not None, shown
            yield found[1]
        finally:
            self.dhclient("-r")

    def asks(self, name: str, port: int) -> str:
        """Ask the gateway; give the response code."""
        words = ["dig", f"@{GATEWAY}", "-p", str(port), name, "+tries=2", "+time=3"]
        found = re.search(r"status: (\w+)", run(*self.lan.prefix(self.space), *words, check=False))
        return "none" if found is None else found[1]

    def asks_until(self, name: str, port: int, wanted: str, seconds: float = 15) -> float:
        """Ask until the response code is this; give the seconds that it took."""
        began = time.monotonic()
        while (got := self.asks(name, port)) != wanted:
            assert time.monotonic() - began < seconds, got
            time.sleep(0.05)
        return time.monotonic() - began
