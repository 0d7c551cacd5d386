"""Runs ``blockd`` without the second that Python takes to import it: forked from a process that has all imports.

What runs is the command line as ever, in a process of its own. Tests of how it starts (units, packages, prefixes,
hooks) start it as anybody does.
"""

from __future__ import annotations

import atexit
import codecs
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import pwd
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

import blockd

#: Of prctl(2): whoever is left by its parent becomes a child of this process, which can wait for it.
SET_CHILD_SUBREAPER = 36
MESSAGE_OCTETS = 1 << 20


class Process:
    """One that runs; what is used of `subprocess.Popen`."""

    def __init__(self, words: list[str], pid: int) -> None:
        """Know its process ID."""
        self.args, self.pid = words, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Give the exit code, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. TimeoutExpired after some seconds."""
        if self.poll() is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                if not select.select([descriptor], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
            finally:
                os.close(descriptor)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class _Forks:
    """The process that has all imports, started when it is first wanted."""

    def __init__(self) -> None:
        self._way: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, words: list[str], out: int, error: int, environment: dict[str, str], user: str = "") -> Process:
        if self._way is None:
            ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            self._way, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._way.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_OCTETS)
            command = [sys.executable, "-m", "tests.support.warm", str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
            theirs.close()
            atexit.register(self.close)
        place = {"environment": {**os.environ, **environment}, "directory": os.getcwd(), "user": user}
        socket.send_fds(self._way, [json.dumps({"words": words, **place}).encode()], [out, error])
        return Process(words, int(self._way.recv(64)))

    def close(self) -> None:
        if self._way is not None:
            self._way.close()
            self._way = None
        if self._process is not None:
            self._process.wait()
            self._process = None


_forks = _Forks()
close = _forks.close


def start(words: list[str], log: IO[Any]) -> Process:
    """Run ``blockd`` with these words; what it says goes to a file."""
    return _forks.start(words, log.fileno(), log.fileno(), {})


def run(
    words: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float = 60, user: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``blockd`` with these words to its end, with more in its environment, as a user of this machine.

    TimeoutExpired after some seconds.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        process = _forks.start(list(words), out.fileno(), error.fileno(), dict(environment or {}), user)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        out.seek(0)
        error.seek(0)
        return subprocess.CompletedProcess(words, code, out.read().decode(), error.read().decode())


def _run_forked(request: dict[str, Any], descriptors: list[int], way: socket.socket) -> None:
    """Be what was asked for: with its environment, directory, output, and nothing else of this process."""
    way.close()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for at, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, at)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.argv = ["blockd", *request["words"]]
    if request["words"][:1] == ["serve"]:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from blockd.cli import main

    if request["user"]:
        _become(request["user"])
    raise SystemExit(main())


def _import_all() -> None:
    """Import what an ordinary user may have no right to read: Python and the package may be in root's directories."""
    for module in pkgutil.walk_packages(blockd.__path__, "blockd."):
        if not module.name.endswith(("__main__", "_native")):
            importlib.import_module(module.name)
    for encoding in ("idna", "latin-1", "utf-8-sig", "utf-16", "cp1252"):
        codecs.lookup(encoding)


def _become(user: str) -> None:
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def serve_forks(way: socket.socket) -> None:
    """Fork for each request until the other end is closed."""
    import blockd.__main__
    import blockd.cli.check
    import blockd.cli.lists
    import blockd.cli.reload
    import blockd.cli.serve
    import blockd.cli.status
    import blockd.compiling
    import blockd.daemon
    import blockd.desk  # noqa: F401

    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(way, MESSAGE_OCTETS, 2)
        if not message:
            return
        request = json.loads(message)
        if request["user"]:
            _import_all()
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                os.close(reading)
                os.close(writing)
                return _run_forked(request, descriptors, way)
            os.write(writing, str(child).encode())
            os._exit(0)
        # Whose parent has gone is taken over by the tests, who may wait for it from then on.
        os.waitpid(between, 0)
        way.send(os.read(reading, 64))
        os.close(reading)
        os.close(writing)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    serve_forks(socket.socket(fileno=int(sys.argv[1])))
