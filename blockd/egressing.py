"""The firewall's process: holds the right to change rules, parses no packet, and does what the daemon says.

When the daemon is gone the last rules stand. What was wanted last is kept where the unit has a state directory, so that
a machine which starts anew is not open until the daemon is there.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import ssl
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockd.egress import connections
from blockd.egress.nftables import Nftables, NftError
from blockd.egress.reconcile import Reconciler
from blockd.egress.wanted import read_exempt, read_learned, read_macs, read_places, read_wanted
from blockd.firewall import keep_alive
from blockd.observe.repeated import RepeatedFailure
from blockd.problems import StartError
from blockd.settings.usual import EGRESS_OFF, EGRESS_OFF_KEPT, EGRESS_SOCKET
from blockd.stopping import end_process
from blockd.supervisor import Supervisor

log = logging.getLogger("blockd")

#: Octets of a line: what is wanted for a million sources.
LINE = 256 << 20
#: Seconds between two attempts to reach the daemon, two looks at the kernel, and two words about how it stands.
AGAIN, LOOK, TELL = 1.0, 2.0, 5.0
#: Seconds after a repair until the next: whoever changes our rules all the time does not keep us from the daemon.
REST = 0.5
#: Seconds for a connection to another machine.
PATIENCE = 10.0
#: Seconds that one thread keeps the others waiting, for answers wait for one of them.
TURN = 0.0005
#: Seconds that a transaction may take when the process ends.
END_SECONDS = 3.0
#: In the state directory.
KEPT = "wanted.json"


@dataclass(frozen=True)
class Far:
    """A daemon of another machine."""

    host: str
    port: int
    context: ssl.SSLContext

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Egress:
    """One process, one table."""

    def __init__(self, place: Path | Far, nft: Nftables) -> None:
        """`place` is where the daemon is."""
        self._place, self._nft, self._reconciler = place, nft, Reconciler(nft)
        # One thread: a transaction after the other, and the loop goes on meanwhile.
        self._worker = ThreadPoolExecutor(1, "nft")
        #: One for what may take seconds, and nobody waits for: to list, and to end connections.
        self._aside = ThreadPoolExecutor(1, "aside")
        #: Connections that were ended with an exemption.
        self._ended = 0
        directory = os.environ.get("STATE_DIRECTORY")
        self._kept = Path(directory) / KEPT if directory else None
        self._problem: str | None = None
        #: What keeps rules from being in force, and the daemon from being reached.
        self._failure, self._way = RepeatedFailure(), RepeatedFailure()
        #: Put there by `blockd egress off`, which needs no daemon.
        self._off_files = [Path(f"{place if isinstance(place, Path) else EGRESS_SOCKET}{EGRESS_OFF}")]
        if directory:
            # The other one is gone with the socket's directory, when the machine starts anew.
            self._off_files.append(Path(directory) / EGRESS_OFF_KEPT)
        else:
            log.info("egress: nothing is kept for another start: STATE_DIRECTORY is not set")
        self._was_off = False
        self._table = _table_name()
        self._writer: asyncio.StreamWriter | None = None
        self._looks: set[asyncio.Task[bool]] = set()

    async def run(self) -> None:
        """Do it until it is told to end; rules stay."""
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[Any]] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._look_at_all)
        await self._restore()
        tasks += [asyncio.create_task(self._follow()), asyncio.create_task(self._watch())]
        tasks.append(asyncio.create_task(self._hear()))
        # What is there by now is no garbage, and is not looked through.
        gc.freeze()
        gc.enable()
        supervisor = Supervisor(os.environ)
        supervisor.ready("enforcing what the daemon says")
        waiting = [asyncio.create_task(ending.wait()), *tasks]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        supervisor.stopping()
        failures = [task.exception() for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        # What is being changed is changed whole, if the kernel answers; nobody else is waited for.
        last = loop.run_in_executor(self._worker, int)
        await asyncio.wait([last], timeout=END_SECONDS)
        log.info("egress: stopped; the rules stand. `blockd egress off` takes them away")
        for failure in failures:
            if failure is not None:
                # Started anew by the supervisor: half of it must not go on.
                log.error("egress: ended by an unexpected failure", exc_info=failure)
                end_process(1)
        end_process()

    def _look_at_all(self) -> None:
        task = asyncio.create_task(self._look(is_all=True))
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def _work(self, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, call, *arguments)

    async def _end_connections(self) -> None:
        ended = await self._work(self._reconciler.take_ended)
        if not ended:
            return

        def end() -> None:
            try:
                self._ended += connections.end(ended)
            except Exception as error:  # noqa: BLE001  the kernel's or a library's: the rules stand all the same
                log.error("egress: open connections of what ended were not ended, and only meet the rules: %s", error)

        self._aside.submit(end)

    async def _restore(self) -> None:
        if self._kept is None or not self._kept.exists() or self._is_off():
            return
        try:
            wanted = read_wanted(json.loads(self._kept.read_text()))
            await self._work(self._reconciler.want, wanted, [])
            log.info("egress: what was wanted before is in force, until the daemon says more")
        except (OSError, ValueError, NftError) as error:
            self._complain(f"what was wanted before is not in force: {error}")

    def _complain(self, problem: str | None) -> None:
        if problem is not None:
            self._failure.failed(f"egress: {problem}")
        else:
            self._failure.worked("egress: it works again")
        self._problem = problem

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            await self._look()

    async def _hear(self) -> None:
        """Repair what others change as it happens."""
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        while True:
            loop.add_reader(self._nft.fileno(), heard.set)
            await heard.wait()
            loop.remove_reader(self._nft.fileno())
            heard.clear()
            if await self._look():
                await asyncio.sleep(REST)

    async def _look(self, is_all: bool = False) -> bool:
        """See to it that what is wanted is in force; True when somebody else had changed it."""
        is_repaired = False
        try:
            if self._is_off():
                if self._reconciler.wanted is not None:
                    await self._work(self._reconciler.off)
                    log.warning("egress: it is off: everything of ours was taken away")
                await self._work(self._nft.changes)
                self._was_off = True
                return False
            if self._was_off and self._writer is not None:
                # What is wanted is told anew to whoever connects.
                self._writer.close()
            self._was_off = False
            is_repaired = await self._work(self._reconciler.look, is_all)
            await self._end_connections()
            if self._reconciler.has_strangers:
                found = await asyncio.get_running_loop().run_in_executor(self._aside, self._reconciler.strangers)
                await self._work(self._reconciler.evict, found)
            if self._reconciler.wanted is not None and not self._reconciler.is_due:
                self._complain(self._reconciler.problem)
        except NftError as error:
            self._complain(str(error))
        except Exception:
            log.exception("egress: looking at what is in force failed")
        return is_repaired

    def _is_off(self) -> bool:
        return any(file.exists() for file in self._off_files)

    async def _follow(self) -> None:
        is_first = True
        while True:
            try:
                reader, writer = await self._connect()
            except (OSError, TimeoutError) as error:
                text = f"egress: no daemon at {self._place}: {error}; the rules stand as they are"
                self._way.failed(text, logging.WARNING)
                await asyncio.sleep(AGAIN)
                continue
            self._writer = writer
            if is_first:
                log.info("egress: connected to %s", self._place)
            self._way.worked(f"egress: connected to {self._place} again")
            is_first = False
            telling = asyncio.create_task(self._tell(writer))
            keep_alive(writer)
            try:
                while line := await reader.readline():
                    await self._obey(json.loads(line), writer)
            except OSError as error:
                self._way.failed(f"egress: {error}", logging.WARNING)
            except Exception as error:  # noqa: BLE001  whatever it said: the next connection begins anew
                self._complain(f"what the daemon says is not understood: {type(error).__name__}: {error}")
            finally:
                telling.cancel()
                writer.close()
            self._way.failed("egress: the daemon is gone; the rules stand as they are", logging.WARNING)
            await asyncio.sleep(AGAIN)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._place, Path):
            return await asyncio.open_unix_connection(str(self._place), limit=LINE)
        far = self._place
        connecting = asyncio.open_connection(far.host, far.port, ssl=far.context, limit=LINE)
        return await asyncio.wait_for(connecting, PATIENCE)

    async def _obey(self, said: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Do one thing; what does not work is told, and not confirmed."""
        own, outcome = self._reconciler, "done"
        try:
            if self._is_off():
                await self._look()
            elif said.get("off"):
                await self._work(own.off)
                if self._kept is not None:
                    self._kept.unlink(missing_ok=True)
                log.warning("egress: everything of ours was taken away, as it was said")
            elif "wanted" in said:
                wanted, gone = read_wanted(said["wanted"]), read_gone(said.get("forget", []))
                await self._work(own.want, wanted, read_learned(said.get("learn", [])), gone)
                # Back from being off: there is nothing that it would have to be told anew.
                self._was_off = False
                self._keep()
                log.info("egress: in force: generation %s", wanted.generation)
            else:
                if said.get("forget"):
                    await self._work(own.forget, read_gone(said["forget"]))
                if said.get("learn"):
                    await self._work(own.learn, read_learned(said["learn"]))
                if "places" in said and own.wanted is not None:
                    await self._work(own.move, read_moves(said["places"], own.wanted.groups))
                if "exempt" in said:
                    await self._work(own.exempt, read_exempt(said["exempt"]), read_macs(said["exempt_macs"]))
                    self._keep()
            await self._end_connections()
            if not own.is_due:
                self._complain(own.problem)
        except NftError as error:
            self._complain(str(error))
            outcome = "failed"
        writer.write(json.dumps({outcome: int(said["serial"])}).encode() + b"\n")
        if "off" in said or "wanted" in said:
            await self._say(writer)

    def _keep(self) -> None:
        if self._kept is None or self._reconciler.wanted is None:
            return
        # With the ends of exemptions: what ended while nobody was there is not granted anew.
        wanted = self._reconciler.wanted.as_json()
        new = self._kept.with_suffix(".new")
        try:
            new.write_text(json.dumps(wanted))
            new.replace(self._kept)
        except OSError as error:
            self._failure.failed(f"egress: {self._kept} cannot be written: {error.strerror}")

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._say(writer)
            await asyncio.sleep(TELL)

    def _status(self) -> dict[str, Any]:
        return self._reconciler.status(self._nft.counted())

    async def _say(self, writer: asyncio.StreamWriter) -> None:
        try:
            # Beside the other thread, for answers wait for that one.
            status = await asyncio.get_running_loop().run_in_executor(self._aside, self._status)
        except Exception as error:  # noqa: BLE001  whatever it is: an old status must not be taken for that of now
            self._complain(str(error) or type(error).__name__)
            status = {"generation": None}
        status["ended"] = self._ended
        status["problem"] = self._problem or status.get("problem")
        if self._is_off():
            status = {"generation": None, "problem": f"it is off: `blockd egress on`, or remove {self._off_files[0]}"}
        status["table"] = self._table
        writer.write(json.dumps({"status": status}).encode() + b"\n")


def _table_name() -> str:
    """Name this machine's packet filter for the daemon, the same after a restart of this process: its counts go on."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = uuid.uuid4().hex
    return f"{machine}/{os.stat('/proc/self/ns/net').st_ino}"


def read_gone(value: Any) -> list[tuple[str, Any]]:
    """Read app and address. ValueError when it is something else."""
    return [one[:2] for one in read_learned([[*each, 1] for each in value])]


def read_moves(value: Any, groups: Any) -> dict[Any, str | None]:
    """Read sources that move; an empty group leaves networks to decide. ValueError when it is something else."""
    moved = read_places([one for one in value if one[1] != ""], groups)
    return {**moved, **dict.fromkeys(read_places([[one[0], None] for one in value if one[1] == ""], groups), "")}


def run(place: Path | Far) -> None:
    """Run it. StartError when it cannot work at all."""
    # Of this network namespace: two would take each other's changes for somebody's, and repair them for ever.
    alone = socket.socket(socket.AF_UNIX)
    try:
        alone.bind("\0blockd-egress")
    except OSError:
        raise StartError("egress: another `blockd egress` is at work on this machine's packet filter") from None
    try:
        nft = Nftables()
        nft.objects()
    except NftError as error:
        raise StartError(f"egress: {error}") from None
    sys.setswitchinterval(TURN)
    asyncio.run(Egress(place, nft).run())
