"""Runs a session's commands inside the namespaces that it was started in; prints commands and output.

``python -m tests.support.session DIRECTORY`` reads a JSON list of commands. `make run &` starts the daemon from a
copy of the sample config, as `make run` does, and prints what it says until it answers; other commands that end in `&`
run beside it. `export NAME=VALUE` holds for the commands after it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.support.servers import Nsd

ROOT = Path(__file__).parents[2]
ZONES = {
    "tiktok.com": "www A 192.0.2.7\n",
    "tiktokcdn.com": "p16 A 192.0.2.8\n",
    "example": "news CNAME p16.tiktokcdn.com.\nwww.games A 192.0.2.9\nwww.casino A 192.0.2.10\n",
}


class Session:
    """One shell of one user."""

    def __init__(self, directory: Path) -> None:
        """Begin in a directory that holds a copy of config/."""
        self._directory = directory
        self._environment = dict(os.environ)
        self._beside: list[tuple[subprocess.Popen[bytes], Path]] = []
        shutil.copytree(ROOT / "config", directory / "config")

    def play(self, command: str) -> None:
        """Run one command, print it and what it says."""
        print(f"$ {command}")
        # What people read beside a command is no part of it.
        words = command.split("    #")[0].strip()
        if words.startswith("export "):
            name, _, value = words.removeprefix("export ").partition("=")
            self._environment[name] = value
        elif words == "make run &":
            start = [sys.executable, "-m", "blockd", "serve", "--config", "config/blockd.yaml"]
            log = self._start(start)
            while "try as personal" not in log.read_text():
                assert self._beside[-1][0].poll() is None, log.read_text()
                time.sleep(0.05)
            print(log.read_text(), end="")
        elif words.endswith(" &"):
            self._start(["bash", "-c", f"exec {words.removesuffix(' &')}"])
            self._wait_for_prometheus()
        else:
            self._run(words)

    def _start(self, command: list[str]) -> Path:
        log = self._directory / f"log{len(self._beside)}"
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=self._directory, stdout=file, stderr=file, env=self._environment)
        self._beside.append((process, log))
        return log

    def _wait_for_prometheus(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                url = "http://127.0.0.1:9090/api/v1/query?query=blockd_build_info"
                with urllib.request.urlopen(url, timeout=2) as reply:
                    if json.loads(reply.read())["data"]["result"]:
                        return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(self._beside[-1][1].read_text())

    def _run(self, words: str) -> None:
        words = words.replace(".venv/bin/blockd", f"{sys.executable} -m blockd")
        done = subprocess.run(
            ["bash", "-c", words],
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=30,
        )
        print(done.stdout.replace(f"{ROOT}/", "").replace(f"{self._directory}/", "").lstrip("\n"), end="")

    def end(self) -> None:
        """End what runs beside, the last first; the daemon must end well."""
        for process, log in reversed(self._beside):
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0, log.read_text()


def run(directory: Path, commands: list[str]) -> None:
    """Play the session."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resolv = directory / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.53\n")
    subprocess.run(["mount", "--bind", str(resolv), "/etc/resolv.conf"], check=True)
    nsd = Nsd(directory / "nsd", ZONES)
    nsd.host, nsd.port = "127.0.0.53", 53
    with nsd:
        session = Session(directory)
        try:
            for command in commands:
                session.play(command)
        finally:
            session.end()


if __name__ == "__main__":
    run(Path(sys.argv[1]), json.load(sys.stdin))
