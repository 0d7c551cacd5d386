"""Runs a session's commands inside the namespaces that it was started in; prints commands and output.

``python -m tests.support.session DIRECTORY`` reads a JSON list of commands. `make run &` starts the daemon from a
copy of the sample config, as `make run` does, and prints what it says until it answers.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.servers import Nsd

ROOT = Path(__file__).parents[2]
ZONES = {
    "tiktok.com": "www A 192.0.2.7\n",
    "tiktokcdn.com": "p16 A 192.0.2.8\n",
    "example": "news CNAME p16.tiktokcdn.com.\nwww.games A 192.0.2.9\n",
}


def run(directory: Path, commands: list[str]) -> None:
    """Play the session."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resolv = directory / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.53\n")
    subprocess.run(["mount", "--bind", str(resolv), "/etc/resolv.conf"], check=True)
    shutil.copytree(ROOT / "config", directory / "config")
    nsd = Nsd(directory / "nsd", ZONES)
    nsd.host, nsd.port = "127.0.0.53", 53
    daemon: subprocess.Popen[bytes] | None = None
    log = directory / "log"
    with nsd:
        try:
            for command in commands:
                print(f"$ {command}")
                if command == "make run &":
                    start = [sys.executable, "-m", "blockd", "serve", "--config", "config/blockd.yaml"]
                    with log.open("wb") as file:
                        daemon = subprocess.Popen(start, cwd=directory, stdout=file, stderr=file)
                    while "try as personal" not in log.read_text():
                        assert daemon.poll() is None, log.read_text()
                        time.sleep(0.05)
                    print(log.read_text(), end="")
                    continue
                words = command.replace(".venv/bin/blockd", f"{sys.executable} -m blockd")
                done = subprocess.run(
                    ["bash", "-c", words], cwd=directory, capture_output=True, text=True, check=False, timeout=30
                )
                text = done.stdout + done.stderr
                print(text.replace(f"{ROOT}/", "").replace(f"{directory}/", "").lstrip("\n"), end="")
        finally:
            if daemon is not None:
                daemon.send_signal(signal.SIGINT)
                daemon.wait(10)
    assert daemon is not None
    assert daemon.returncode == 0, log.read_text()


if __name__ == "__main__":
    run(Path(sys.argv[1]), json.load(sys.stdin))
