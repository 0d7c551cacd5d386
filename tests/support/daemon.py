"""Starts the real daemon as a process, with a config of the test's own, and ends it cleanly."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path, PosixPath
from typing import Any

import yaml

from tests.support import warm

BLOCKD = [sys.executable, "-m", "blockd"]


#: Below the ports that exchanges leave from, and those that the kernel gives away; each test process has its own.
FIRST_PORT, PORTS_A_PROCESS = 10_000, 700
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 9
_ports = itertools.cycle(range(FIRST_PORT + _process * PORTS_A_PROCESS, FIRST_PORT + (_process + 1) * PORTS_A_PROCESS))


def free_port() -> int:
    """Find a port that is free for UDP and TCP on every loopback address."""
    for port in itertools.islice(_ports, PORTS_A_PROCESS):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tcp.bind(("0.0.0.0", port))
                udp.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def config(upstreams: list[str], port: int, admin_port: int, **sections: Any) -> dict[str, Any]:
    """Make a config: 127.0.0.1 corporate, 127.0.0.2 personal, 127.0.0.3 guest; others unidentified."""
    base: dict[str, Any] = {
        "server": {"listen": [f"127.0.0.1:{port}", f"[::1]:{port}"], "threads": 2},
        # Tests compare what was counted before and after: none may see what was rendered for another.
        "admin": {"listen": f"127.0.0.1:{admin_port}", "socket": "control.sock", "metrics_max_age": "0s"},
        "state": {"directory": "state"},
        "upstream": {"servers": upstreams},
        "cache": {"size_mb": 8},
        # Tests say themselves when a change is taken in, and what was meant.
        "reload": {"watch": False, "largest_shrink": "100%"},
        "apps": {"directory": "apps"},
        "groups": {
            "corporate": {"networks": ["127.0.0.1/32"]},
            "personal": {"networks": ["127.0.0.2/32"]},
            "guest": {"networks": ["127.0.0.3/32"]},
        },
        "policies": {
            "corporate": {"block": ["tiktok", "bytedance-platform"]},
            "personal": {},
            "guest": {"monitor": ["tiktok"]},
            "unidentified": {},
        },
        "answers": {"contact": "mailto:security@dept.example"},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return base


class Log(PosixPath):
    """A daemon's log. A thread of the daemon's writes it: a line comes a moment after what it tells of."""

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Read it when nothing more is written to it."""
        text = super().read_text(encoding, errors)
        while True:
            time.sleep(0.05)
            before, text = text, super().read_text(encoding, errors)
            if text == before:
                return text


class Blockd:
    """One daemon and its files; use it as a context."""

    def __init__(self, directory: Path, upstreams: list[str], apps: dict[str, Any] | None = None, **sections: Any):
        """Write the config and the site's apps; `start` or entering the context runs the daemon."""
        self.directory = directory
        self.port, self.admin = free_port(), free_port()
        self.file = directory / "blockd.yaml"
        self.values = config(upstreams, self.port, self.admin, **sections)
        (directory / "apps").mkdir(exist_ok=True)
        for name, app in (apps or {}).items():
            self.write_app(name, **app)
        self.write()
        self.process: subprocess.Popen[str] | warm.Process | None = None
        self.log = Log(directory / "log")

    def write_app(self, name: str, **app: Any) -> None:
        """Write one of the site's apps."""
        text = yaml.safe_dump({"app": name, "title": name.title(), **app})
        (self.directory / "apps" / f"{name}.yaml").write_text(text)

    def write(self) -> None:
        """Write the config as `values` has it now."""
        self.file.write_text(yaml.safe_dump(self.values, sort_keys=False))

    def start(self, *, prefix: list[str] | None = None) -> Blockd:
        """Run the daemon and wait until it answers."""
        words = ["serve", "--config", str(self.file)]
        with self.log.open("w") as log:
            if prefix or "PYTHONPATH" in os.environ:
                self.process = subprocess.Popen([*(prefix or []), *BLOCKD, *words], stderr=log, stdout=log, text=True)
            else:
                self.process = warm.start(words, log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log.read_text()}")
            if "metrics on" in self.log.read_text():
                return self
            time.sleep(0.02)
        raise AssertionError(f"the daemon did not start:\n{self.log.read_text()}")

    def stop(self) -> None:
        """End it, and see that it ends well."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the daemon did not end:\n{self.log.read_text()}") from None
        text = self.log.read_text()
        self.process = None
        assert code == 0, text
        assert "Traceback" not in text, text
        assert "panicked" not in text, text

    def __enter__(self) -> Blockd:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command that finds this daemon by its config."""
        return warm.run([command, "--config", str(self.file), *arguments])

    def reload(self) -> subprocess.CompletedProcess[str]:
        """Write the config and reload; the result says whether it took."""
        self.write()
        return self.run("reload")

    def hangup(self) -> None:
        """Send SIGHUP."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGHUP)

    def http(self, path: str) -> str:
        """Get a page of the admin address."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as page:
            text: str = page.read().decode()
            return text

    def ready(self) -> dict[str, Any]:
        """Get /readyz."""
        state: dict[str, Any] = json.loads(self.http("/readyz"))
        return state

    def metrics(self) -> dict[str, float]:
        """Get /metrics: `name{labels}` as it is written -> value."""
        rows = re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", self.http("/metrics"), re.MULTILINE)
        return {name: float(value) for name, value in rows}

    def metric(self, name: str, **labels: str) -> float:
        """Get one metric, summed over the labels that are not given."""
        total = 0.0
        for row, value in self.metrics().items():
            if row.split("{")[0] == name and all(f'{key}="{text}"' in row for key, text in labels.items()):
                total += value
        return total

    def memory(self) -> int:
        """Give the resident set, octets."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found.group(1)) * 1024
