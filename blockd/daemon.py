"""The composition root: the only module that knows all the others."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry
from twisted.internet import asyncioreactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError

from blockd.control import ControlFactory
from blockd.fastpath import Fastpath, Snapshot, load
from blockd.generations import CURRENT, Generations
from blockd.observe.health import AliveCheck, admin_site
from blockd.observe.metrics import DecisionCounts, Metrics, ReloadCounts, wall_clock
from blockd.policy.compile import SNAPSHOT
from blockd.policy.explain import explain, read_client, read_meta, read_question
from blockd.policy.inputs import Inputs, read_inputs
from blockd.problems import InputError, Problem
from blockd.resolver.routes import LOOK_INTERVAL, Routes
from blockd.resolver.streams import Streams
from blockd.settings import Settings
from blockd.settings.document import find_scalar
from blockd.settings.load import changed_restart_keys
from blockd.settings.schema import State
from blockd.settings.source import MANIFEST, Kept
from blockd.settings.values import show_endpoint
from blockd.transport.tcp import TcpListener

log = logging.getLogger("blockd")

#: Seconds; ten million names take well below one hundred.
COMPILE_PATIENCE = 600


class StartError(Exception):
    """The daemon cannot start; the message says what to do."""


class _Live:
    """What is in force now, for those who read it at each use."""

    def __init__(self, settings: Settings, generation: Path, snapshot: Snapshot) -> None:
        self.settings = settings
        self.generation = generation
        self.snapshot = snapshot


class Compiler:
    """Compiles in a process of its own: it holds no lock and no memory of ours."""

    def __init__(self) -> None:
        """Start with nothing under way."""
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ending = False

    def run(self, config: Path, output: Path) -> list[Problem]:
        """Write a generation; give what is wrong, if anything is."""
        # -P: a file in the working directory must not pass for a module of ours.
        command = [sys.executable, "-P", "-m", "blockd", "compile", "--json"]
        command += ["--config", str(config), "--output", str(output)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as self._process:
            process = self._process
            if self._is_ending:
                process.kill()
            try:
                out, err = process.communicate(timeout=COMPILE_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                text = f"blockd compile did not end within {COMPILE_PATIENCE} s"
                return [Problem(str(config), 0, "", text)]
        code = process.returncode
        if code == 0:
            return []
        try:
            return [Problem(**problem) for problem in json.loads(out)["problems"]]
        except (ValueError, KeyError, TypeError):
            last = err.decode(errors="replace").strip().splitlines()[-1:]
            return [Problem(str(config), 0, "", f"blockd compile ended with {code}: {' '.join(last)}")]

    def kill(self) -> None:
        """End what is under way, and what was about to be: the daemon stops."""
        self._is_ending = True
        if self._process is not None:
            self._process.kill()


class Daemon:
    """One running blockd."""

    def __init__(self, config: Path) -> None:
        """Read what to run. StartError or InputError when there is nothing that could be run."""
        self.config = Path(os.path.abspath(config))
        self._compiler = Compiler()
        #: Why the config as it stands is not in force; empty when it is.
        self.not_loaded: list[Problem] = []
        inputs, self._generations, generation = self._first_generation()
        snapshot = load(str(generation / SNAPSHOT))
        self._live = _Live(inputs.settings, generation, snapshot)
        self._reload_running: Deferred[list[Problem]] | None = None
        self._reload_wanted: Deferred[list[Problem]] | None = None

    def _first_generation(self) -> tuple[Inputs, Generations, Path]:
        try:
            inputs = read_inputs(self.config)
        except InputError as error:
            return self._last_good(error, _possible_states(self.config))
        generations = _open_state(self.config, inputs.settings)
        current = generations.current(self.config)
        if current is not None and _digest(current) == inputs.digest() and _is_whole(current):
            return inputs, generations, current
        generation = generations.new()
        problems = self._compiler.run(self.config, generation)
        if problems:
            generations.reject(generation)
            return self._last_good(InputError(problems), [generations])
        generations.accept(generation)
        return read_inputs(self.config, Kept(generation)), generations, generation

    def _last_good(self, error: InputError, states: Iterable[Generations]) -> tuple[Inputs, Generations, Path]:
        for generations in states:
            current = generations.current(self.config)
            if current is not None and _is_whole(current):
                inputs = read_inputs(self.config, Kept(current))
                self.not_loaded = error.problems
                for problem in error.problems:
                    log.error("%s", problem)
                log.error("THE CONFIG IS NOT IN FORCE: running the last good inputs, kept in %s", current)
                return inputs, generations, current
        raise error

    def run(self) -> None:
        """Open the sockets, serve until SIGINT or SIGTERM. StartError when a socket cannot be opened."""
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        asyncioreactor.install(loop)
        from twisted.internet import reactor

        self._serve(reactor, loop)

    def _serve(self, reactor: Any, loop: asyncio.AbstractEventLoop) -> None:
        settings = self._live.settings
        _raise_descriptor_limit()
        threads = os.cpu_count() or 1 if settings.server.threads == "auto" else settings.server.threads
        try:
            fastpath = Fastpath(
                self._live.snapshot, settings.server.listen, threads, settings.cache.size_mb * 1024 * 1024
            )
        except OSError as error:
            raise StartError(_bind_advice(error, "server.listen")) from None
        self._fastpath = fastpath
        self._reactor = reactor
        tcp = TcpListener(reactor, fastpath.answer, fastpath.is_client, lambda: self._live.settings.server.tcp)
        streams = Streams(reactor, fastpath.complete)
        self._routes = Routes(fastpath)
        self._reloads = ReloadCounts()
        self._decisions = DecisionCounts()
        self._metrics = Metrics(fastpath, tcp, streams, self._routes, self._reloads, self._decisions)
        self._published(*self._generation_numbers(), _lists(self._live.generation))
        self._reloads.last_success = (self._live.generation / MANIFEST).stat().st_mtime
        if self.not_loaded:
            self._reloads.was_last_successful = False
        registry = CollectorRegistry()
        registry.register(self._metrics)
        self._alive = AliveCheck(fastpath.beats)
        ports = []
        try:
            for host, port in settings.server.listen:
                ports.append(_listen(reactor, port, tcp, str(host), "server.listen"))
            host, port = settings.admin.listen
            site = admin_site(registry, self._alive, self._ready)
            ports.append(_listen(reactor, port, site, str(host), "admin.listen"))
            ports.append(self._listen_control(reactor))
        except StartError:
            fastpath.stop()
            raise
        loop.add_reader(fastpath.work_fd, self._work, fastpath, tcp, streams)
        fastpath.start()
        self._every(reactor, LOOK_INTERVAL, self._look)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        for ending in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(ending, self._on_ending)
        for endpoint in settings.server.listen:
            log.info("answering on %s, UDP and TCP, with %d threads", show_endpoint(endpoint), threads)
        log.info("metrics on http://%s/metrics", show_endpoint(settings.admin.listen))
        for line in hints(settings):
            log.info("%s", line)
        try:
            reactor.run(installSignalHandlers=False)
        finally:
            fastpath.stop()
            self._control_path().unlink(missing_ok=True)
        log.info("stopped")

    def _control_path(self) -> Path:
        return Path(os.path.abspath(self.config.parent / self._live.settings.admin.socket))

    def _listen_control(self, reactor: Any) -> Any:
        path = self._control_path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_socket():
                raise StartError(f"admin.socket: {path}: is there and is no socket; name another path")
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise StartError(f"admin.socket: {path}: another blockd answers there")
            # Nobody answers: what is there was left by one that was killed.
            path.unlink(missing_ok=True)
            return reactor.listenUNIX(str(path), ControlFactory(self._commands()), mode=0o600)
        except (OSError, CannotListenError) as error:
            cause = getattr(error, "socketError", error)
            text = getattr(cause, "strerror", None) or cause
            raise StartError(f"admin.socket: {path}: {text}; name another path") from None

    def _commands(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {"reload": self._command_reload, "explain": self._command_explain, "ready": lambda _: self._ready()}

    def _work(self, fastpath: Fastpath, tcp: TcpListener, streams: Streams) -> None:
        for item in fastpath.take_work():
            if item[0] == "reply":
                tcp.reply(item[1], item[2])
            else:
                streams.ask(item[1], item[2], item[3], item[4])

    def _every(self, reactor: Any, interval: float, call: Callable[[], None]) -> None:
        def again() -> None:
            reactor.callLater(interval, again)
            call()

        reactor.callLater(interval, again)

    def _look(self) -> None:
        self._alive.look()
        for server in self._routes.look():
            is_dead = server in self._routes.dead
            log.log(
                logging.WARNING if is_dead else logging.INFO,
                "upstream %s %s",
                show_endpoint(server),
                "does not answer: others are asked first" if is_dead else "answers again",
            )

    def _on_ending(self) -> None:
        self._compiler.kill()
        if self._reactor.running:
            self._reactor.stop()

    # Reloading

    def _on_hangup(self) -> None:
        self.reload()

    def reload(self) -> Deferred[list[Problem]]:
        """Take the config in as it stands; fires with what is wrong, and then nothing has changed."""
        done: Deferred[list[Problem]] = Deferred()
        if self._reload_running is not None:
            # One that runs may have read the files before they changed: one more follows, for all who ask meanwhile.
            if self._reload_wanted is None:
                self._reload_wanted = Deferred()
            _also(self._reload_wanted, done)
            return done
        self._start_reload(done)
        return done

    def _start_reload(self, done: Deferred[list[Problem]]) -> None:
        from twisted.internet.threads import deferToThreadPool

        self._reload_running = done

        def finished(problems: list[Problem]) -> None:
            self._reload_running = None
            wanted, self._reload_wanted = self._reload_wanted, None
            done.callback(problems)
            if wanted is not None:
                self._start_reload(wanted)

        prepared: Deferred[Any] = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._prepare)
        prepared.addCallback(lambda parts: self._take_in(*parts))
        # Whatever went wrong, it is a refusal with a reason, and the next reload runs.
        prepared.addErrback(lambda failure: self._refuse(None, [_unexpected(self.config, failure)]))
        prepared.addCallback(finished)

    def _prepare(self) -> tuple[Path, list[Problem], Inputs | None, Snapshot | None]:
        generation = self._generations.new()
        problems = self._compiler.run(self.config, generation)
        if problems:
            return generation, problems, None, None
        try:
            return generation, [], read_inputs(self.config, Kept(generation)), load(str(generation / SNAPSHOT))
        except (InputError, OSError, ValueError) as error:
            text = f"was written and cannot be read back: {error}"
            return generation, [Problem(str(generation), 0, "", text)], None, None

    def _take_in(
        self, generation: Path, problems: list[Problem], inputs: Inputs | None, snapshot: Snapshot | None
    ) -> list[Problem]:
        if inputs is None or snapshot is None:
            return self._refuse(generation, problems)
        for key in changed_restart_keys(self._live.settings, inputs.settings):
            section, name = key.split(".")
            text = "changed, and only a restart takes it in: nothing was reloaded"
            problems.append(inputs.document.problem((section, name), text))
        if problems:
            return self._refuse(generation, problems)
        try:
            lists = _lists(generation)
            self._generations.accept(generation)
        except OSError as error:
            return self._refuse(generation, [Problem(str(generation), 0, "", f"cannot be kept: {error.strerror}")])
        self._live.settings, self._live.generation, self._live.snapshot = inputs.settings, generation, snapshot
        rules, views = self._fastpath.publish(snapshot)
        self._routes.publish()
        self.not_loaded = []
        self._published(rules, views, lists)
        self._reloads.success(wall_clock())
        log.info("reloaded: rules generation %d, views generation %d", rules, views)
        return []

    def _refuse(self, generation: Path | None, problems: list[Problem]) -> list[Problem]:
        if generation is not None:
            self._generations.reject(generation)
        self.not_loaded = problems
        self._reloads.failure()
        for problem in problems:
            log.error("%s", problem)
        log.error("the reload changed nothing: the policy before it is in force")
        return problems

    def _published(self, rules: int, views: int, lists: list[dict[str, Any]]) -> None:
        meta = read_meta(self._live.snapshot)
        self._decisions.published(views, meta)
        # Folds the counts of views that were replaced: unread, they would stay.
        self._decisions.read(self._fastpath)
        self._metrics.lists = lists
        for report in lists:
            for sample in report["samples"]:
                log.warning("%s:%d: skipped, %s: %s", report["file"], sample["line"], sample["reason"], sample["text"])

    def _generation_numbers(self) -> tuple[int, int]:
        sizes = self._fastpath.sizes()
        return sizes["rules.generation"], sizes["views.generation"]

    # Commands

    def _command_reload(self, request: dict[str, Any]) -> Deferred[dict[str, Any]]:
        def answer(problems: list[Problem]) -> dict[str, Any]:
            rules, views = self._generation_numbers()
            listed = [problem.as_json() for problem in problems]
            return {"ok": not problems, "problems": listed, "rules_generation": rules, "views_generation": views}

        return self.reload().addCallback(answer)

    def _command_explain(self, request: dict[str, Any]) -> Deferred[dict[str, Any]]:
        try:
            client = read_client(str(request["client"]))
            name, qtype = read_question(str(request["name"]), str(request["type"]))
        except (KeyError, ValueError) as error:
            return succeed({"ok": False, "error": str(error)})
        live = self._live
        decision = self._fastpath.decide(client, name, qtype)
        meta = read_meta(live.snapshot)
        generation = live.generation

        def reason() -> dict[str, Any]:
            inputs = read_inputs(self.config, Kept(generation))
            explanation = explain(inputs, decision, meta, client, name, str(request["type"]).upper())
            return {"ok": True, "explanation": explanation.as_json(), "lines": explanation.lines()}

        from twisted.internet.threads import deferToThreadPool

        # A list of millions of lines is searched for the rule: not on the reactor's time.
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), reason)

    def _ready(self) -> dict[str, Any]:
        rules, views = self._generation_numbers()
        return {
            "ok": True,
            "config": str(self.config),
            "config_in_force": not self.not_loaded,
            "problems": [str(problem) for problem in self.not_loaded],
            "rules_generation": rules,
            "views_generation": views,
            "generation": self._live.generation.name,
            "dead_upstreams": [show_endpoint(server) for server in sorted(self._routes.dead)],
        }


def _also(first: Deferred[list[Problem]], then: Deferred[list[Problem]]) -> None:
    def tell(problems: list[Problem]) -> list[Problem]:
        then.callback(problems)
        return problems

    first.addCallback(tell)


def _unexpected(config: Path, failure: Any) -> Problem:
    return Problem(str(config), 0, "", f"the reload failed: {failure.getErrorMessage()}")


def _open_state(config: Path, settings: Settings) -> Generations:
    state = Path(os.path.abspath(config.parent / settings.state.directory))
    try:
        return Generations(state)
    except BlockingIOError:
        raise StartError(f"state.directory: {state}: another blockd is running with it") from None
    except OSError as error:
        raise StartError(f"state.directory: {state}: {error.strerror}; make it, or name another") from None


def _possible_states(config: Path) -> Iterator[Generations]:
    """Open the state of a config that cannot be read: where its own words say that it is, or where it usually is."""
    usual = str(State.model_fields["directory"].default)
    for place in dict.fromkeys((find_scalar(config, "state", "directory") or usual, usual)):
        state = Path(os.path.abspath(config.parent / place))
        if (state / CURRENT).exists():
            try:
                yield Generations(state)
            except OSError as error:
                log.error("state.directory: %s: %s", state, error.strerror)


def _lists(generation: Path) -> list[dict[str, Any]]:
    """Read what became of each list."""
    lists: list[dict[str, Any]] = json.loads((generation / MANIFEST).read_text())["lists"]
    return lists


def _digest(generation: Path) -> str:
    return str(json.loads((generation / MANIFEST).read_text())["digest"])


def _is_whole(generation: Path) -> bool:
    try:
        load(str(generation / SNAPSHOT))
    except (OSError, ValueError) as error:
        log.error("%s: %s", generation, error)
        return False
    return True


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _listen(reactor: Any, port: int, factory: Any, host: str, key: str) -> Any:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # Or [::]:53 would take 0.0.0.0:53 too, and stand in its own way.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, port))
            listener.listen(1024)
            listener.setblocking(False)
            return reactor.adoptStreamPort(listener.fileno(), family, factory)
    except OSError as error:
        text = f"{show_endpoint((host, port))} (TCP): {error.strerror}"
        raise StartError(_bind_advice(OSError(error.errno, text), key)) from None


def _bind_advice(error: OSError, key: str) -> str:
    advice = {
        errno.EADDRINUSE: "the port is in use: stop what listens there (ss -lnptu shows it), or choose another",
        errno.EACCES: "a port below 1024 needs root or CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this machine has no such address",
    }.get(error.errno or 0)
    return f"{key}: {error.strerror or error}" + (f"; {advice}" if advice else "")


def hints(settings: Settings) -> list[str]:
    """Give the lines to try on this machine, when groups have loopback addresses and a usual server listens."""
    server = next(((h, p) for h, p in settings.server.listen if str(h) == "127.0.0.1"), None)
    lines = []
    for group, members in settings.groups.items():
        for network in members.networks:
            if server is not None and network.version == 4 and network.is_loopback:
                dig = f"dig -b {network.network_address} @127.0.0.1 -p {server[1]} www.tiktok.com"
                lines.append(f"try as {group}: {dig}")
    return lines
