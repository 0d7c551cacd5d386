"""Compiles in a process of its own: it holds no lock and no memory of the daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockd.priority import COMPILE, give_way
from blockd.problems import Problem

#: Seconds; ten million names take well below one hundred.
PATIENCE = 600


class Compiler:
    """Runs ``blockd.compiling``, one at a time."""

    def __init__(self) -> None:
        """Start with nothing under way, and nobody to give way to."""
        #: Whether queries are answered meanwhile. Until then nobody is served before a compile ends: it must not wait.
        self.gives_way = False
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ending = False
        #: The files of a refused compile, those that could not be read among them.
        self.files: list[Path] = []

    def run(
        self,
        config: Path,
        output: Path,
        against: Path | None = None,
        base: Path | None = None,
        arrived: Mapping[Path, Path] | None = None,
    ) -> list[Problem]:
        """Write a generation; give what is wrong, if anything is. The rest is as in `write_generation`."""
        rest: dict[str, Any] = {key: str(path) for key, path in (("against", against), ("base", base)) if path}
        if arrived:
            rest["arrived"] = {str(path): str(file) for path, file in arrived.items()}
        if not self.gives_way:
            return self._run_forked(config, output, json.dumps(rest))
        # -P: a file in the working directory must not pass for a module of ours.
        command = [sys.executable, "-P", "-m", "blockd.compiling", str(os.getpid()), str(config), str(output)]
        with subprocess.Popen(
            [*command, json.dumps(rest)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as self._process:
            process = self._process
            if self.gives_way:
                give_way(process.pid, COMPILE)
            if self._is_ending:
                process.kill()
            try:
                out, err = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                return [Problem(str(config), 0, "", f"the compile did not end within {PATIENCE} s")]
        last = err.decode(errors="replace").strip().splitlines()[-1:]
        return self._said(config, process.returncode, out, " ".join(last))

    def _run_forked(self, config: Path, output: Path, rest: str) -> list[Problem]:
        """Do it before anything else runs: a copy of this process has all imports, which take as long as a compile."""
        from blockd import compiling

        parent = os.getpid()
        reading, writing = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(writing, 1)
                code = compiling.main([str(parent), str(config), str(output), rest])
                sys.stdout.flush()
            except Exception:  # noqa: BLE001  what it was is said, and the parent hears that it failed
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        clock = threading.Timer(PATIENCE, os.kill, [child, signal.SIGKILL])
        clock.daemon = True
        clock.start()
        with os.fdopen(reading, "rb") as pipe:
            out = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not clock.is_alive():
            return [Problem(str(config), 0, "", f"the compile did not end within {PATIENCE} s")]
        clock.cancel()
        return self._said(config, code, out, "see the lines above")

    def _said(self, config: Path, code: int, out: bytes, otherwise: str) -> list[Problem]:
        if code == 0:
            return []
        try:
            said = json.loads(out)
            self.files = [Path(file) for file in said["files"]]
            return [Problem(**problem) for problem in said["problems"]]
        except (ValueError, KeyError, TypeError):
            return [Problem(str(config), 0, "", f"the compile ended with {code}: {otherwise}")]

    def kill(self) -> None:
        """End what is under way, and what was about to be: the daemon stops."""
        self._is_ending = True
        if self._process is not None:
            self._process.kill()
