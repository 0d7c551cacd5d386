"""A PostgreSQL of Debian's, in a temporary directory, as its own user."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.daemon import free_port

USER = "postgres"


class Postgres:
    """A cluster that trusts whoever comes from this machine; use it as a context."""

    def __init__(self) -> None:
        """Make the cluster: pytest's own directories are root's alone."""
        self._directory = Path(tempfile.mkdtemp(prefix="blockd-postgres-"))
        shutil.chown(self._directory, USER, USER)
        self.port = free_port()
        self._tools = max(Path("/usr/lib/postgresql").glob("*/bin"))
        self._run("initdb", "--auth=trust", "--no-sync", "--username=blockd", str(self._directory / "data"))

    @property
    def url(self) -> str:
        """Give the URL of its database."""
        return f"postgresql+psycopg://blockd@127.0.0.1:{self.port}/postgres"

    def _run(self, tool: str, *words: str) -> None:
        command = ["runuser", "-u", USER, "--", str(self._tools / tool), *words]
        subprocess.run(command, check=True, capture_output=True, cwd="/", timeout=60)

    def start(self) -> None:
        """Run it, and wait until it answers."""
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._directory} -c fsync=off"
        )
        data, log = str(self._directory / "data"), str(self._directory / "log")
        self._run("pg_ctl", "start", "--wait", "--pgdata", data, "--log", log, "--options", options)

    def stop(self) -> None:
        """End it at once, with whoever is connected."""
        self._run("pg_ctl", "stop", "--wait", "--mode", "immediate", "--pgdata", str(self._directory / "data"))

    def __enter__(self) -> Postgres:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and leave nothing."""
        if (self._directory / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._directory)
