"""The composition root: the only module that knows all the others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import logging
import os
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.python.failure import Failure

from blockd import __version__
from blockd.compiler import Compiler
from blockd.control.caller import Caller
from blockd.control.server import Command, ControlFactory, OpenCommand
from blockd.descriptors import raise_limit, share_out
from blockd.devices.inventory import lines_of, mac_number
from blockd.egress.ruleset import ABSENT
from blockd.fastpath import Fastpath, Snapshot, _native, load, proxy_header
from blockd.feeds import Feeds
from blockd.fetches import Fetches
from blockd.firewall import Firewall, tls
from blockd.generations import CURRENT, Generations, HeldError
from blockd.guard import Guard
from blockd.lists.gate import RELOAD, limits, moved, refusals
from blockd.lists.remote import State as FetchState
from blockd.lists.remote import Task
from blockd.memory import LOAD_FACTOR, too_large
from blockd.observe import log_format, log_writer
from blockd.observe.decisions_log import DecisionsLog
from blockd.observe.forwarders import network_text
from blockd.observe.health import AdminPages, AliveCheck, lists_page, metrics_page
from blockd.observe.lag import ReactorLag
from blockd.observe.metrics import DecisionCounts, Metrics, ReloadCounts, wall_clock
from blockd.observe.rendering import SharedPage
from blockd.observe.repeated import RepeatedFailure
from blockd.observe.status import status
from blockd.policy.app_sets import MARK
from blockd.policy.compile import CHANGES, SNAPSHOT, fetch_tasks, inventory_reports
from blockd.policy.egress import exempt_at, names_of, protected, wanted_of
from blockd.policy.explain import explain, read_client, read_meta, read_question
from blockd.policy.inputs import FETCHED, Inputs, decided_file, read_inputs
from blockd.policy.views import group_views, sets_of
from blockd.policy.who import devices_of, network_group, place_text
from blockd.priority import PYTHON, give_way
from blockd.problems import InputError, Problem, StartError, skipped_lines
from blockd.resolver.nat64 import Discovery
from blockd.resolver.routes import LOOK_INTERVAL, Routes
from blockd.resolver.streams import Streams
from blockd.review.decisions import write_decided
from blockd.review.usage import Part, Usage
from blockd.settings.document import find_scalar
from blockd.settings.load import changed_restart_keys
from blockd.settings.schema import Settings, State, Tcp
from blockd.settings.source import MANIFEST, Kept
from blockd.settings.usual import EGRESS_OFF
from blockd.settings.values import Address, show_endpoint
from blockd.stopping import Signals, Work
from blockd.supervisor import Supervisor
from blockd.transfers import Transfers
from blockd.transport.block_page import Blocked, BlockPage
from blockd.transport.http import HttpListener
from blockd.transport.listen import (
    Endpoint,
    Inherited,
    UnixPath,
    bind_advice,
    listen_tcp,
    listen_unix,
    usable_loopback,
    with_family,
)
from blockd.transport.tcp import TcpListener
from blockd.transport.turns import install_reactor
from blockd.watch import LOOK_INTERVAL as WATCH_INTERVAL
from blockd.watch import Signature, Watch, signature

if TYPE_CHECKING:
    from blockd.desk import Desk, Folded, Site
    from blockd.egress.wanted import Wanted
    from blockd.review.store import Store

log = logging.getLogger("blockd")

#: Seconds that written answers have to leave.
FLUSH_PATIENCE = 0.1
#: Seconds that queries which wait for an upstream have, when the daemon stops.
DRAIN_PATIENCE = 2.0
#: Seconds after a reload until its leavings are given back.
MOMENT = 0.5
#: Seconds between two looks at which lists are due.
FETCH_INTERVAL = 1.0
#: Seconds between two looks at whether the ledger of exemptions changed: somebody else may write to it.
LEDGER_INTERVAL = 1.0
#: Seconds between two looks at lease files.
LEASES_INTERVAL = 0.5
#: Seconds between two times that what is known of devices' addresses is kept.
KEEP_INTERVAL = 300.0
#: Seconds between two times that usage is kept.
USAGE_INTERVAL = 60.0
#: Seconds of which it is said who asked for very many names.
BUSY_INTERVAL = 60.0
#: Seconds between two looks at whether names of apps are to be looked up for firewalls.
LOOK_UP_INTERVAL = 2.0
#: Seconds until a thread that computes lets another have the interpreter's lock.
SWITCH_SECONDS = 0.0001
#: Seconds until firewalls are told of exemptions again, after that failed.
EXEMPT_RETRY_SECONDS = 5.0
#: Seconds that firewalls have to do what `blockd egress on` and `off` say, before the command says what is so.
EGRESS_SETTLED_SECONDS = 10.0
#: Kinds of what a forwarder may say, as the hot path knows them.
SAYS = {"mac": 1, "subnet": 2, "proxy": 4}
#: In the state directory: the ledger, where no database is named.
LEDGER = "exemptions.db"
#: In the state directory: how apps are used, likewise.
USAGE = "usage.db"
#: In the state directory: zones as they were given to others.
ZONES = "zones"
#: In the state directory: where apps are, for firewalls.
LEARNED = "egress.json"


class _Live:
    """What is in force now, for those who read it at each use."""

    def __init__(self, inputs: Inputs, generation: Path, snapshot: Snapshot) -> None:
        self.settings = inputs.settings
        self.generation = generation
        self.snapshot = snapshot
        self.meta = read_meta(snapshot)
        #: The same with the views of exemptions behind those of groups.
        self.folded_meta = self.meta
        self.inputs = inputs
        #: The servers of each route; the default route has no name.
        self.routes = inputs.routes()
        self.devices = {group: lines_of(devices) for group, devices in inputs.devices.items()}
        self.tasks = fetch_tasks(inputs)
        #: Addresses of those whose word about others is believed.
        self.forwarders = {str(one.address.network_address): one.says for one in inputs.settings.server.forwarders}
        #: MACs of inventories, for what they convey, and the group of each.
        self.macs = {
            mac_number(device.mac): group
            for group, devices in inputs.devices.items()
            for device in devices
            if device.mac
        }
        self.decided_file = decided_file(inputs.config, inputs.settings)
        #: What is watched: the files it was made of, and the directory where new apps appear. Whoever fetches says so.
        fetched = {task.remote.path for task in self.tasks}
        self.files = [path for path in inputs.source.paths if path not in {*fetched, self.decided_file}]
        apps = inputs.settings.apps.directory
        self.directories = [] if apps is None else [Path(os.path.abspath(inputs.config.parent / apps))]
        self.list_directories = list(inputs.catalogue.directories)


#: Skipped records of one inventory that are logged with their place.
MAX_LOGGED_RECORDS = 5
#: Rules whose apps are known beside those in force: what was judged by them may be on its way.
RULES_KNOWN = 4


class Daemon:
    """One running blockd."""

    def __init__(self, config: Path, supervisor: Supervisor) -> None:
        """Read what to run. StartError or InputError when there is nothing that could be run."""
        self.config = Path(os.path.abspath(config))
        self._supervisor = supervisor
        self._compiler = Compiler()
        self._fetches = Fetches(wall_clock)
        #: Path of a list that could not be fetched when it was wanted -> why.
        self._lacking: dict[str, str] = {}
        #: Why the config as it stands is not in force; empty when it is.
        self.not_loaded: list[Problem] = []
        inputs, self._generations, generation = self._first_generation()
        self._live = _Live(inputs, generation, load(str(generation / SNAPSHOT)))
        self._guard = Guard()
        self._guard.know("tcp_reply", "decisions_log", "learned_addresses", "upstream_stream")
        self._guard.know("http", "fetch", "egress_exempt")
        log_format.set_up(self._live.settings.log.format == "json")
        self._reload_running: Deferred[list[Problem]] | None = None
        self._reload_wanted: Deferred[list[Problem]] | None = None
        self._accepts_loss = False
        #: Digests of candidates that somebody was told of what speaks against: these alone can be accepted.
        self._shown: deque[str] = deque(maxlen=16)
        self._is_ending = False
        #: Whether all sockets are open, and the hot path answers.
        self._is_serving = False
        self._last_work = Work()
        #: By what is tried again and again.
        self._failures: defaultdict[str, RepeatedFailure] = defaultdict(RepeatedFailure)
        #: Where exemptions are granted, if they are.
        self._desk: Desk | None = None
        self._site: Site | None = None
        self._desk_lock = threading.Lock()
        self._desk_pool: Any = None
        self._is_reading_ledger = False
        self._exempt_addresses: set[Address] = set()
        #: What firewalls are told, if there may be any.
        self._firewall: Firewall | None = None
        #: What the hot path was told of exemptions, likewise told to firewalls.
        self._folded: Folded | None = None
        self._exempt_timer: Any = None
        self._fixed_places: dict[Address, str | None] = {}
        self._looked_up = 0.0
        #: Apps by the number that the hot path gives to rules, for a few of the last.
        self._apps_by_rules: dict[int, list[str]] = {}
        #: Where devices are by what DHCP says, if anything does.
        self._feeds = Feeds(
            self._generations.root, lambda changed: self._reactor.callFromThread(self._devices_moved, changed)
        )
        self._views = 0
        #: How apps are used, and where that is kept once there is something to keep.
        self._usage = Usage()
        self._store: Store | None = None
        self._store_lock = threading.Lock()
        self._usage_problem: str | None = None
        self._is_keeping = False
        #: What was decided of apps and could not be put in force: not tried again before a reload.
        self._refused_decided: set[tuple[str, tuple[str, str] | None]] = set()

    def _first_generation(self) -> tuple[Inputs, Generations, Path]:
        try:
            inputs = read_inputs(self.config)
        except InputError as error:
            return self._last_good(error, _possible_states(self.config))
        generations = _open_state(self.config, inputs.settings)
        current = generations.current(self.config)
        if current is not None:
            # A daemon that was killed put a generation in force, and did not come to put its lists in their place.
            tasks = _tasks_if_whole(self.config, current)
            self._fetches.publish(tasks)
            self._fetches.settle(_list_digests(_manifest(current)))
        if current is not None and generations.is_held and _is_whole(current):
            self._fetches.restore(_kept_lists(self.config, current))
            self.not_loaded = [_held(self.config, current)]
            log.warning("%s", self.not_loaded[0])
            return read_inputs(self.config, Kept(current)), generations, current
        if current is not None and _digest(current) == inputs.digest() and _is_whole(current):
            return inputs, generations, current
        wanted = fetch_tasks(inputs)
        if current is not None:
            kept = {task.remote.path for task in wanted}
            moving = {task.remote.app for task in tasks if task.remote.path not in kept}
            wanted = [task for task in wanted if task.remote.app in moving]
        fetched = self._fetch_lacking(wanted)
        generation = generations.new()
        problems = self._compiler.run(self.config, generation)
        if not problems:
            # A restart must not be the way by which an emptied list gets in.
            before = _manifest(current) if current is not None and _is_whole(current) else None
            manifest = _manifest(generation)
            problems = self._moved(before, manifest)
            if not generations.is_accepted(_digest(generation)):
                # Nobody is there to tell a daemon that does not start.
                how = None if current is None else RELOAD
                problems += refusals(before, manifest, limits(inputs.settings), str(self.config), how)
        if problems:
            generations.stage(generation, problems)
            self._fetches.forget(fetched)
            return self._last_good(InputError(problems), [generations])
        generations.accept(generation)
        generations.unstage()
        return read_inputs(self.config, Kept(generation)), generations, generation

    def _fetch_lacking(self, tasks: Iterable[Task]) -> list[Task]:
        """Fetch what was never there; give what is there now."""
        lacking = [task for task in tasks if not task.remote.path.exists()]
        try:
            self._lacking = self._fetches.fetch_lacking(lacking)
        except OSError as error:
            log.error("%s: what was fetched cannot be kept: %s", self.config, error.strerror)
        return [task for task in lacking if task.remote.path.exists()]

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
        log_writer.hear_twisted()
        loop = install_reactor()
        from twisted.internet import reactor

        self._serve(reactor, loop)

    def _serve(self, reactor: Any, loop: asyncio.AbstractEventLoop) -> None:
        settings = self._live.settings
        threads = os.cpu_count() or 1 if settings.server.threads == "auto" else settings.server.threads
        self._shares = share_out(raise_limit(), threads, len(settings.server.listen), settings.server.tcp.connections)
        if self._shares.warning is not None:
            log.warning("%s", self._shares.warning)
        inherited = Inherited(self._supervisor.sockets)
        inherited.check([*settings.server.listen, *settings.block_page.listen])
        self._listen = _with_family(settings.server.listen, "server.listen")
        page_listen = _with_family(settings.block_page.listen, "block_page.listen")
        transfer_listen = _with_family(settings.transfer.listen, "transfer.listen")
        admin_listen = usable_loopback(settings.admin.listen)
        if admin_listen != settings.admin.listen:
            instead = f"{show_endpoint(admin_listen)} instead of {show_endpoint(settings.admin.listen)}"
            log.warning("admin.listen: using %s, because this host lacks the address family", instead)
        handed_over = [inherited.datagrams(endpoint) for endpoint in self._listen]
        own = [e for e, sockets in zip(self._listen, handed_over, strict=True) if not sockets]
        try:
            octets = settings.cache.size_mb * 1024 * 1024
            adopted = [sockets for sockets in handed_over if sockets]
            fastpath = Fastpath(self._live.snapshot, own, threads, octets, adopted, self._shares.source_sockets)
        except OSError as error:
            raise StartError(bind_advice(error, "server.listen")) from None
        self._fastpath = fastpath
        self._started = time.monotonic()
        self._reactor = reactor
        tcp = TcpListener(
            reactor,
            fastpath.answer,
            fastpath.is_client,
            self._tcp_limits,
            lambda host: "proxy" in self._live.forwarders.get(host, ()),
            proxy_header,
        )
        self._tcp = tcp
        streams = Streams(reactor, fastpath.complete)
        self._nat64 = Discovery(self._found_nat64)
        self._routes = Routes(fastpath, lambda: self._live.routes.values())
        self._reloads = ReloadCounts()
        self._decisions = DecisionCounts()
        self._decisions_log = DecisionsLog()
        self._decisions_log.exempting = self._exempting
        page = BlockPage(self._look_up_page)
        self._metrics = Metrics(
            fastpath, tcp, streams, self._routes, self._reloads, self._decisions, self._decisions_log, page
        )
        self._metrics.fetches = self._fetches
        self._metrics.nat64 = self._nat64_prefixes
        self._metrics.internal_errors = self._guard.failures
        self._lag = self._metrics.lag = ReactorLag(reactor)
        page.listener.guard = self._guard
        self._metrics.http["block_page"] = page.listener
        self._likely = self._metrics.likely_forwarders
        self._transfers = Transfers(transfer_listen, self._generations.root / ZONES, self._hear_of_zone, self._guard)
        self._metrics.transfers = self._transfers
        self._note_numbers(self._generation_numbers())
        self._open_placement()
        self._feeds.start()
        self._open_desk()
        if settings.egress.enabled:
            self._open_firewall(loop)
        if self._desk is not None:
            self._desk.read()
        if self._desk is not None or self._feeds.placement is not None or self._live.forwarders:
            self._fold_and_publish()
        self._want_firewall()
        self._published(*self._generation_numbers(), _lists(self._live.generation))
        self._reloads.last_success = (self._live.generation / MANIFEST).stat().st_mtime
        if self.not_loaded:
            self._reloads.was_last_successful = False
        self._alive = AliveCheck(fastpath.beats)
        ports = []
        try:
            for endpoint in self._listen:
                ports += listen_tcp(reactor, endpoint, tcp, "server.listen", inherited.streams(endpoint))
            self._dns_ports = list(ports)
            ports += listen_tcp(reactor, admin_listen, self._open_admin(reactor), "admin.listen")
            for endpoint in page_listen:
                ports += listen_tcp(reactor, endpoint, page.listener, "block_page.listen", inherited.streams(endpoint))
            ports.append(self._listen_control(reactor))
        except StartError:
            fastpath.stop()
            raise
        loop.add_reader(fastpath.work_fd, self._work, fastpath, tcp, streams)
        # Until here SIGTERM ends the process as it is: nobody is served yet, and a start cleans up what was begun.
        Signals(
            lambda: loop.call_soon_threadsafe(self._on_hangup),
            lambda: loop.call_soon_threadsafe(self._on_ending),
            self._last_work.unfinished,
        ).start()
        fastpath.start()
        self._is_serving = True
        # A thread that computes holds the interpreter's lock for so long after the reactor asks for it, which it does
        # after every system call: with Python's 5 ms an import in a thread made one turn half a second late.
        sys.setswitchinterval(SWITCH_SECONDS)
        # From here on: the serve threads were started before, and keep the niceness that the daemon was given.
        give_way(0, PYTHON)
        self._compiler.gives_way = True
        self._every(reactor, LOOK_INTERVAL, "upstream_health", self._look)
        self._every(reactor, LOOK_INTERVAL, "nat64_discovery", self._look_for_nat64)
        self._watch = Watch(self._signature())
        self._is_watching = False
        #: Inventories in force whose files are missing.
        self._missing: list[str] = []
        self._every(reactor, LOOK_INTERVAL, "transfers", self._transfers.look)
        self._every(reactor, WATCH_INTERVAL, "watch", self._look_at_files)
        self._every(reactor, FETCH_INTERVAL, "fetches", self._fetch_what_is_due)
        self._every(reactor, LEDGER_INTERVAL, "ledger", self._look_at_ledger)
        self._every(reactor, LEASES_INTERVAL, "leases", self._feeds.look)
        self._every(reactor, KEEP_INTERVAL, "keep_leases", self._keep_leases)
        self._every(reactor, USAGE_INTERVAL, "usage", self._keep_usage)
        self._every(reactor, BUSY_INTERVAL, "busy_clients", self._look_at_busy)
        self._every(reactor, LOOK_UP_INTERVAL, "look_up_apps", self._look_up_apps)
        for endpoint, sockets in zip(self._listen, handed_over, strict=True):
            whose = f", {len(sockets)} sockets of the supervisor" if sockets else ""
            log.info("answering on %s, UDP and TCP, with %d threads%s", show_endpoint(endpoint), threads, whose)
        for endpoint in page_listen:
            log.info("block page on http://%s/", show_endpoint(endpoint))
        log.info("metrics on http://%s/metrics", show_endpoint(admin_listen))
        for line in hints(settings, self._listen):
            log.info("%s", line)
        self._transfers.start()
        # UDP is answered already. Imported a minute later, in a thread, this made the reactor late by up to a second: a
        # thread that imports holds the interpreter's lock in long calls, which the reactor needs all the time.
        importlib.import_module("blockd.review.store")
        # What is there now stays: it need not be looked at again and again.
        gc.freeze()
        gc.enable()
        self._tell_ready()
        self._lag.start()
        try:
            reactor.run(installSignalHandlers=False)
        finally:
            self._lag.stop()
            fastpath.stop()
            self._control_socket.remove()
            if self._firewall is not None:
                self._firewall.close()
                self._firewall_socket.remove()
        log.info("stopped")

    def _open_admin(self, reactor: Any) -> HttpListener:
        def max_age() -> float:
            return self._live.settings.admin.metrics_max_age

        metrics = SharedPage(
            reactor, max_age, self._metrics.gather, lambda gathered: metrics_page(self._metrics.families(gathered))
        )
        lists = SharedPage(reactor, max_age, self._egress_lists, lambda write: lists_page(write()))
        pages = AdminPages(metrics, lists, self._alive, self._ready, lambda: frozenset(self._live.settings.admin.hosts))
        pages.listener.guard = self._guard
        self._metrics.http["admin"] = pages.listener
        return pages.listener

    def _tcp_limits(self) -> Tcp:
        """Give the bounds of DNS over TCP, within what the limit of descriptors allows."""
        wanted = self._live.settings.server.tcp
        allowed = self._shares.tcp_connections
        return wanted if wanted.connections <= allowed else wanted.model_copy(update={"connections": allowed})

    def _control_path(self) -> Path:
        return Path(os.path.abspath(self.config.parent / self._live.settings.admin.socket))

    def _listen_control(self, reactor: Any) -> Any:
        path = self._control_path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._control_socket = UnixPath(path, "admin.socket")
            commands, reading = self._commands(), self._reading_commands()
            open_commands = {name: self._for_people(name, command) for name, command in reading.items()}
            factory = ControlFactory(commands, {**open_commands, "exempt": self._command_exempt})
            port = listen_unix(reactor, path, factory, self._control_mode())
            self._control_socket.bound()
            return port
        except (OSError, CannotListenError) as error:
            cause = getattr(error, "socketError", error)
            text = getattr(cause, "strerror", None) or cause
            raise StartError(f"admin.socket: {path}: {text}; name another path") from None

    def _commands(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {
            "reload": self._command_reload,
            "ready": lambda _: self._ready(),
            "status": lambda _: self._status(),
            "lists": self._command_lists,
            "fetch": self._command_fetch,
            "accept": self._command_accept,
            "rollback": self._command_rollback,
            "egress": self._command_egress,
        }

    def _reading_commands(self) -> dict[str, Command]:
        """Give the commands that change nothing and keep to privacy classes, for those who decide on exemptions."""
        return {"explain": self._command_explain, "devices": self._command_devices, "report": self._command_report}

    def _for_people(self, name: str, command: Command) -> OpenCommand:
        """Open a command to the users that exemptions name, beside operators."""

        def run(request: dict[str, Any], caller: Caller) -> dict[str, Any] | Deferred[dict[str, Any]]:
            if caller.is_operator:
                return command(request)

            def judged(is_among: bool) -> dict[str, Any] | Deferred[dict[str, Any]]:
                error = f"{name} is for root, and for the users that exemptions.teams and exemptions.requesters name"
                return command(request) if is_among else {"ok": False, "error": error}

            # The names of a user's groups may come from a directory server that hangs.
            from twisted.internet.threads import deferToThreadPool

            people = self._live.settings.exemptions.people()
            asking = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), caller.is_among, people)
            return cast("Deferred[dict[str, Any]]", asking.addCallback(judged))

        return run

    def _tell_ready(self) -> None:
        rules, views = self._generation_numbers()
        state = "the config is not in force" if self.not_loaded else "the config is in force"
        self._supervisor.ready(f"rules generation {rules}, views generation {views}; {state}")

    def _look_up_page(self, host: str, client: str) -> Blocked | None:
        """Say what a browser's host name is for its device; ValueErrors are hosts that are no names."""
        try:
            name, qtype = read_question(host, "A")
            decision = self._fastpath.decide(read_client(client), name, qtype)
        except ValueError:
            return None
        if decision["action"] != "block" or decision["app"] is None:
            return None
        meta, answers = self._live.meta, self._live.settings.answers
        about = meta["about"][decision["app"]]
        exemption = self._live.settings.block_page.exemption
        return Blocked(
            name,
            about["title"],
            about["owner"],
            about["takes"],
            answers.organization,
            answers.contact,
            exemption,
            self._live.inputs.sets.describe(sets_of(meta, decision["view"]).get(meta["apps"][decision["app"]])),
        )

    def _work(self, fastpath: Fastpath, tcp: TcpListener, streams: Streams) -> None:
        """Do what the hot path handed over: pieces of many clients, none of which may cost another."""
        for item in fastpath.take_work():
            if item[0] == "reply":
                self._guard.run("tcp_reply", tcp.reply, item[1], item[2])
            elif item[0] == "log":
                self._guard.run("decisions_log", self._log_decision, item[1])
            elif item[0] == "learned":
                self._guard.run("learned_addresses", self._learned, *item[1:])
            else:
                is_asked = self._guard.run("upstream_stream", streams.ask, item[1], item[2], item[3])
                if not is_asked:
                    # Those who wait for it must not wait for their own deadline.
                    self._guard.run("upstream_stream", fastpath.complete, item[1], 0, None)

    def _log_decision(self, row: _native.LogRow) -> None:
        if (fields := self._decisions_log.write(row)) is not None and row["more"] is None:
            self._saw(fields, row["qtype"])

    def _every(self, reactor: Any, interval: float, work: str, call: Callable[[], object]) -> None:
        """Call it again and again, also after it raised."""
        self._guard.know(work)

        def again() -> None:
            reactor.callLater(interval, again)
            self._guard.run(work, call)

        reactor.callLater(interval, again)

    def _look(self) -> None:
        self._alive.look()
        if self._alive.is_alive:
            # A thread that stands still is not fed for: the supervisor starts us anew.
            self._supervisor.alive()
        for server, state in self._routes.look(time.monotonic()).items():
            error = self._routes.health[server].error
            what = {
                "up": "is well again",
                "unreachable": (
                    f"cannot be reached ({os.strerror(error or 0)}): others, if there are any, are asked first"
                ),
                "slow": "is slow: others, if there are any, are asked first",
                "failing": "fails: others, if there are any, are asked first",
                "dead": "does not answer: others, if there are any, are asked first",
            }[state]
            log.log(logging.INFO if state == "up" else logging.WARNING, "upstream %s %s", server, what)

    def _look_for_nat64(self) -> None:
        """Ask the servers of the default route for their NAT64 prefixes, where that is not turned off."""
        asks = self._live.settings.upstream.nat64_discovery
        self._nat64.look(self._live.routes[None] if asks else (), time.monotonic())

    def _found_nat64(self, prefixes: list[IPv6Network]) -> None:
        self._fastpath.set_nat64([(prefix.network_address, prefix.prefixlen) for prefix in prefixes])
        self._note_numbers(self._generation_numbers())
        log.info("NAT64 prefixes by upstream servers: %s", ", ".join(map(str, prefixes)) or "none any more")

    def _nat64_prefixes(self) -> list[tuple[str, str]]:
        """Give the prefixes that are looked through, and where each is from."""
        own = [(str(prefix), "config") for prefix in self._live.settings.upstream.nat64_prefixes]
        return [*own, *((str(prefix), "upstream") for prefix in self._nat64.prefixes)]

    def _signature(self) -> Signature:
        """Take the state of what the policy was made of, and of what a refused one would have been made of."""
        fetched = {task.remote.path for task in self._live.tasks}
        files = {*self._live.files, *self._compiler.files} - fetched
        return signature(files, self._live.directories, self._live.list_directories)

    def _look_at_files(self) -> None:
        """Reload when files changed, if the config says so; see in any case whether inventories are still there."""
        if self._is_watching or self._reload_running is not None:
            return
        is_watched = self._live.settings.reload.watch and not self._generations.is_held
        inventories = {str(inventory.file) for _, _, inventory in self._live.inputs.inventories}
        if not is_watched and not inventories:
            return
        from twisted.internet.threads import deferToThreadPool

        def look() -> Signature:
            return self._signature() if is_watched else signature(map(Path, inventories), ())

        def looked(state: Signature) -> None:
            self._is_watching = False
            missing = sorted(file for file in inventories if file in state and state[file] is None)
            for file in missing:
                if file not in self._missing:
                    log.warning("%s: this inventory is missing; the last good one is in force", file)
            self._missing = missing
            if is_watched and self._reload_running is None and self._watch.look(state, time.monotonic()):
                log.info("files changed: reloading")
                self.reload()

        def failed(failure: Any) -> None:
            self._is_watching = False
            self._failures["watch"].failed(f"watching files failed: {failure.getErrorMessage()}")

        # A file server that hangs must not hang us.
        self._is_watching = True
        looking = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), look)
        looking.addCallbacks(looked, failed)

    def _fetch_what_is_due(self) -> None:
        """Begin the fetches that are due; a list that changed is taken in by a reload of its own."""
        from twisted.internet.threads import deferToThreadPool

        def fail(failure: Failure) -> None:
            self._guard.failed("fetch", cast(Exception, failure.value))

        def begin(task: Task) -> None:
            def end(state: FetchState) -> None:
                self._fetches.end(task, state)
                self._look_at_arrived()

            self._fetches.begin(task)
            running = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._fetches.run, task)
            running.addCallback(end)
            running.addErrback(fail)

        self._guard.each("fetch", begin, [] if self._is_ending else self._fetches.due())
        # One that was left waiting by a daemon that was killed, or by a rollback.
        self._look_at_arrived()

    def _look_at_arrived(self) -> None:
        """Take lists in that were fetched; what was rolled back stays so, until somebody says otherwise."""
        if self._is_ending or self._reload_running is not None:
            return
        if self._look_at_decided() or self._generations.is_held:
            return
        self._fetches.settle({report["file"]: report["sha256"] for report in self._metrics.lists})
        if tasks := self._fetches.arrived():
            self._reload_arrived(tasks, accepts_loss=False)

    def _hear_of_zone(self, zone: str) -> None:
        """Fetch a list that is a zone at once: its primary has news. Called from a thread of its own."""

        def fetch() -> None:
            self._fetches.hear_of(zone)
            self._fetch_what_is_due()

        self._reactor.callFromThread(fetch)

    def _on_ending(self) -> None:
        """Write what is kept over a restart, while queries are answered; then take no more, and stop."""
        if self._is_ending:
            return
        self._is_ending = True
        self._supervisor.stopping()
        self._compiler.kill()
        self._fetches.kill()
        self._transfers.stop()
        self._last_work.begin(self._last_parts())

        def drain_when_written() -> None:
            if self._last_work.is_over():
                self._drain()
            else:
                self._reactor.callLater(0.02, drain_when_written)

        drain_when_written()

    def _last_parts(self) -> dict[str, Callable[[], object]]:
        """Give what is written at the end, by name; each part may wait for a disk or a database."""
        self._count_usage()
        part = self._usage.take()
        parts: dict[str, Callable[[], object]] = {"the addresses of devices": self._feeds.keep}
        if not part.is_empty or self._store is not None:
            parts["the last counts of apps"] = lambda: self._keep_the_rest(part)
        if self._firewall is not None:
            file, kept = self._generations.root / LEARNED, self._firewall.book.keep(time.monotonic())
            firewall = self._firewall
            parts["the addresses of apps"] = lambda: firewall.keep(file, kept)
        return parts

    def _drain(self) -> None:
        """Take no more queries, answer those that were taken, and end the loop."""
        self._fastpath.drain()
        for port in self._dns_ports:
            port.stopListening()
        deadline = time.monotonic() + DRAIN_PATIENCE

        def stop_when_done() -> None:
            sizes = self._fastpath.sizes()
            is_done = not sizes["pending.waiters"] and not sizes["ring.waiting"]
            if self._reactor.running and (is_done or time.monotonic() >= deadline):
                self._tcp.close()
                # Not its stop: that waits for every thread, and one may wait for a database.
                self._reactor.callLater(FLUSH_PATIENCE, self._reactor.crash)
            else:
                self._reactor.callLater(0.02, stop_when_done)

        # One turn at least: what the serve threads hold in hand is answered in it.
        self._reactor.callLater(0.02, stop_when_done)

    # Reloading

    def _on_hangup(self) -> None:
        self.reload()

    def reload(self, accepts_loss: bool = False) -> Deferred[list[Problem]]:
        """Take the config in as it stands; fires with what is wrong, and then nothing has changed.

        ``accepts_loss``: what the gate has against it is logged, and it is taken in.
        """
        done: Deferred[list[Problem]] = Deferred()
        self._accepts_loss = self._accepts_loss or accepts_loss
        if self._reload_running is not None:
            # One that runs may have read the files before they changed: one more follows, for all who ask meanwhile.
            if self._reload_wanted is None:
                self._reload_wanted = Deferred()
            _also(self._reload_wanted, done)
            return done
        self._start_reload(done)
        return done

    def _start_reload(self, done: Deferred[list[Problem]]) -> None:
        accepts_loss, self._accepts_loss = self._accepts_loss, False
        self._supervisor.reloading()
        # Whatever went wrong, it is a refusal with a reason, and the next reload runs.
        self._run(
            done,
            lambda: self._prepare(accepts_loss),
            lambda parts: self._take_in(accepts_loss, [], *parts),
            lambda problem: self._refuse(None, [problem]),
        )

    def _reload_arrived(self, tasks: list[Task], accepts_loss: bool) -> Deferred[list[Problem]]:
        """Take these lists in, with all else as it is in force: nobody's broken file keeps them out, nor goes in with
        them.
        """
        done: Deferred[list[Problem]] = Deferred()

        is_judged = False

        def judge(
            parts: tuple[Path, list[Problem], Inputs | None, Snapshot | None],
        ) -> list[Problem]:
            nonlocal is_judged
            _, problems, inputs, _ = parts
            # What could not be compiled for another reason than what they say is no fault of theirs.
            is_judged = inputs is not None or {problem.file for problem in problems} <= {
                str(task.remote.path) for task in tasks
            }
            return self._take_in(accepts_loss, tasks, *parts)

        def ended(problems: list[Problem]) -> list[Problem]:
            if not self._is_ending:
                self._fetches.tried(tasks, str(problems[0]) if problems else None, is_judged)
            return problems

        done.addCallback(ended)
        self._fetches.trying(tasks)
        self._run(
            done,
            lambda: self._prepare_arrived({task.remote.path: task.remote.arrived for task in tasks}),
            judge,
        )
        return done

    # Apps under review

    def _look_at_decided(self) -> bool:
        """Put in force what the ledger says was decided of apps, an app at a time; say whether that began.

        One that is refused keeps no other out, and is tried again after a reload.
        """
        desk, now = self._desk, self._live.inputs.decided
        decided = None if desk is None else desk.decided()
        if desk is None or decided is None:
            return False
        desk.applied = now
        differing = [app for app in sorted({*decided, *now}) if decided.get(app) != now.get(app)]
        app = next((app for app in differing if (app, decided.get(app)) not in self._refused_decided), None)
        if app is None:
            return False
        held, file = decided.get(app), self._live.decided_file
        wanted = {key: value for key, value in {**now, app: held}.items() if value is not None}
        new = file.with_suffix(".new")
        try:
            new.write_bytes(write_decided(wanted))
        except OSError as error:
            self._failures["decided"].failed(f"{new}: cannot be written: {error.strerror}")
            return False
        done: Deferred[list[Problem]] = Deferred()

        def ended(problems: list[Problem]) -> list[Problem]:
            desk.applied = self._live.inputs.decided
            if problems:
                self._refused_decided.add((app, held))
                for problem in problems:
                    log.error("what was decided of %s is not in force: %s", app, problem)
                return problems
            try:
                # In force already: a start that comes before this judges the file before, and is told by the ledger.
                new.replace(file)
            except OSError as error:
                self._failures["decided"].failed(f"{file}: cannot be written: {error.strerror}")
            return problems

        done.addCallback(ended)
        self._run(
            done,
            lambda: self._prepare_arrived({file: new}),
            lambda parts: self._take_in(False, [], *parts, is_decided=True),
        )
        return True

    def _saw(self, fields: dict[str, Any], qtype: int) -> None:
        """Count a device of a group that logs decisions, and a name that led it to an app without being known."""
        client, name, now = fields["client"], fields["name"], wall_clock()
        # By its MAC, where a forwarder conveyed one: the address may be the forwarder's then.
        mac, _, host = client.rpartition(" by ")
        address = read_client(host)
        place = None if self._feeds.placement is None or mac else self._feeds.placement.places.get(address)
        device = mac or (place.lease.mac if place is not None else "") or _counted(address, client)
        self._usage.saw(fields["app"], fields["group"], fields["action"], device, now)
        with contextlib.suppress(ValueError):
            if not self._fastpath.decide(address, name, qtype)["asked"]:
                self._usage.led(name, fields["app"], device, self._live.settings.report.min_devices, now)

    def _show_address(self, address: Address) -> str:
        """Write an address for a log: of a group that is not logged by device, its network alone."""
        view = self._fastpath.decide(address, "a.invalid", 1)["view"]
        group = self._live.folded_meta["groups"][view]
        is_logged = any(one.group == group and one.is_logged for one in group_views(self._live.inputs))
        return f"{address} ({group})" if is_logged else f"{network_text(address)} ({group})"

    def _look_at_busy(self) -> None:
        forwarders = self._live.forwarders
        self._likely.look(self._fastpath.busy(), lambda address: str(address) in forwarders, self._show_address)

    def _count_usage(self) -> None:
        self._usage.count(self._decisions.read(self._fastpath), wall_clock())

    def _keep(self, part: Part) -> None:
        """Write a part where it is kept; in a thread, for a database may hang."""
        from blockd.review.store import Store

        with self._store_lock:
            if self._store is None:
                self._store = Store(self._database(USAGE))
            logged = [view.group for view in group_views(self._live.inputs) if view.is_logged]
            self._store.keep(part, wall_clock() - self._live.settings.report.keep, logged)

    def _keep_usage(self) -> Deferred[None]:
        """Keep what was counted; what cannot be kept now is kept later."""
        from twisted.internet.threads import deferToThreadPool

        self._count_usage()
        if self._is_keeping:
            # A database that hangs holds one thread, and not one more each minute.
            return succeed(None)
        part = self._usage.take()
        if part.is_empty:
            return succeed(None)
        self._is_keeping = True

        def kept(_: object) -> None:
            self._is_keeping = False
            self._failures["usage"].worked("report: counts are kept again")
            self._usage_problem = None

        def failed(failure: Any) -> None:
            self._is_keeping = False
            self._usage.give_back(part)
            self._usage_problem = failure.getErrorMessage()
            self._failures["usage"].failed(f"report: counts are not kept, and tried again: {self._usage_problem}")

        keeping: Deferred[None] = deferToThreadPool(
            self._reactor, self._reactor.getThreadPool(), lambda: self._keep(part)
        )
        return keeping.addCallbacks(kept, failed)

    def _keep_the_rest(self, part: Part) -> None:
        """Write what was counted since it was kept last, at the end."""
        from blockd.exemptions.ledger import LedgerError

        try:
            self._keep(part)
        except LedgerError as error:
            log.error("report: the last counts are lost: %s", error)
        if self._store is not None:
            self._store.close()

    def _command_report(self, request: dict[str, Any]) -> Deferred[dict[str, Any]]:
        from twisted.internet.threads import deferToThreadPool

        seconds = min(max(float(request.get("seconds") or 0), 3_600.0), 10 * 366 * 86_400.0)
        apps = self._live.inputs.sets.expand(str(app) for app in request.get("apps", []))
        if unknown := [app for app in apps if app not in self._live.inputs.catalogue.entries]:
            kind = "set" if unknown[0].startswith(MARK) else "app"
            return succeed({"ok": False, "error": f"there is no {kind} {unknown[0]}"})
        until = wall_clock()
        live, desk = self._live, self._desk

        def read() -> dict[str, Any]:
            from blockd.review.report import facts_of, report
            from blockd.review.store import Store

            with self._store_lock:
                if self._store is None:
                    self._store = Store(self._database(USAGE))
                kept = self._store.read(until - seconds, until)
            found = report(kept, facts_of(live.inputs), until - seconds, until, apps)
            if desk is not None:
                with self._desk_lock:
                    found["exemptions"] = desk.used(until - seconds, until)
                    found["decisions"] = desk.all_decisions()
            return {"ok": True, "problem": self._usage_problem, **found}

        def look(_: object) -> Deferred[dict[str, Any]]:
            return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), read)

        return self._keep_usage().addCallback(look)

    def _database(self, file: str) -> str:
        """Name the database of the config; else a file of its own, so that none waits for the other."""
        return self._live.settings.exemptions.database or f"sqlite:///{self._generations.root / file}"

    def _run(
        self,
        done: Deferred[Any],
        prepare: Callable[[], Any],
        then: Callable[[Any], list[Problem]],
        failed: Callable[[Problem], list[Problem]] = lambda problem: [problem],
    ) -> None:
        """Prepare in a thread, then act on the reactor's; whatever reload is wanted meanwhile comes after."""
        from twisted.internet.threads import deferToThreadPool

        self._reload_running = done

        def finished(problems: list[Problem]) -> None:
            self._reload_running = None
            if not self._is_ending:
                self._tell_ready()
            wanted, self._reload_wanted = self._reload_wanted, None
            done.callback(problems)
            # In a thread, for it walks the heap; a moment later, when nobody holds what was replaced any more.
            self._reactor.callLater(MOMENT, self._reactor.callInThread, self._fastpath.give_back_memory)
            if wanted is not None and not self._is_ending:
                self._start_reload(wanted)
            self._look_at_arrived()

        prepared: Deferred[Any] = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), prepare)
        prepared.addCallback(then)
        prepared.addErrback(lambda failure: failed(_unexpected(self.config, failure)))
        prepared.addCallback(finished)

    def _rehearse(self, arrived: dict[Path, Path] | None = None) -> tuple[list[Problem], list[dict[str, Any]] | None]:
        """Compile what a reload would, and forget it: what speaks against it, and what it would change; None where it
        cannot be compiled.

        With `arrived`, a reload that takes these lists in from where they lie.
        """
        generation, watched = self._generations.new(), self._compiler.files
        live = self._live.generation
        try:
            base = live if arrived else None
            problems = self._compiler.run(self.config, generation, against=live, base=base, arrived=arrived)
            if problems:
                return problems, None
            manifest, inputs = _manifest(generation), read_inputs(self.config, Kept(generation))
            if not arrived and self._fetch_new_sources(inputs, manifest):
                # As a reload would; what was fetched lies there, and nothing is in force of it.
                self._generations.reject(generation)
                problems = self._compiler.run(self.config, generation, against=live)
                if problems:
                    return problems, None
                manifest, inputs = _manifest(generation), read_inputs(self.config, Kept(generation))
            self._shown.append(manifest["digest"])
            how = None if arrived else RELOAD
            problems = _restart_problems(self._live.settings, inputs)
            problems += self._moved(_manifest(live), manifest)
            problems += refusals(_manifest(live), manifest, limits(inputs.settings), str(self.config), how)
            changes: list[dict[str, Any]] = json.loads((generation / CHANGES).read_text())
            return problems, changes
        finally:
            self._compiler.files = watched
            self._generations.reject(generation)

    def rollback(self) -> Deferred[list[Problem]]:
        """Go back to the generation before the one in force, and stay there until somebody reloads."""
        done: Deferred[list[Problem]] = Deferred()
        previous = self._generations.previous(self._live.generation)
        if previous is None:
            done.callback([Problem(str(self._live.generation), 0, "", "there is no generation before this one")])
        elif self._reload_running is not None:
            done.callback([Problem(str(self.config), 0, "", "a reload is under way: try again when it has ended")])
        else:
            self._run(done, lambda: self._read_back(previous), lambda parts: self._go_back(previous, *parts))
        return done

    def _read_back(self, generation: Path) -> tuple[list[Problem], Inputs | None, Snapshot | None]:
        try:
            inputs = read_inputs(self.config, Kept(generation))
            return [], inputs, load(str(generation / SNAPSHOT))
        except (InputError, OSError, ValueError) as error:
            return [Problem(str(generation), 0, "", f"cannot be read back: {error}")], None, None

    def _go_back(
        self, generation: Path, problems: list[Problem], inputs: Inputs | None, snapshot: Snapshot | None
    ) -> list[Problem]:
        if inputs is None or snapshot is None:
            return problems
        for key in changed_restart_keys(self._live.settings, inputs.settings):
            problems.append(Problem(str(generation), 0, key, "was another then, and only a restart changes it"))
        if problems:
            return problems
        try:
            lists = _lists(generation)
            abandoned = self._live.generation
            self._generations.hold(True)
            self._generations.accept(generation)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._generations.hold(False)
            return [Problem(str(generation), 0, "", f"cannot be put in force: {error.strerror}")]
        self._put_in_force(inputs, generation, snapshot, lists)
        self._fetches.restore(_kept_lists(self.config, generation))
        # The next rollback goes further back, and not to what was left.
        self._generations.stage(abandoned, [Problem(str(self.config), 0, "", f"{abandoned.name} was rolled back")])
        self.not_loaded = [_held(self.config, generation)]
        self._note_candidates()
        log.warning("%s", self.not_loaded[0])
        return []

    def _prepare(
        self, accepts_loss: bool, is_again: bool = False
    ) -> tuple[Path, list[Problem], Inputs | None, Snapshot | None]:
        generation = self._generations.new()
        try:
            self._fetches.restore_the_rest()
        except OSError as error:
            text = f"cannot be put back as it was before the rollback: {error.strerror}"
            return generation, [Problem(str(error.filename), 0, "", text)], None, None
        before = self._signature()
        self._compiler.files = []
        problems = self._compiler.run(self.config, generation)
        try:
            inputs = None if problems else read_inputs(self.config, Kept(generation))
            files = {*self._live.files, *self._compiler.files, *(inputs.source.paths if inputs else ())}
            # What changed while it ran may have been read or not: it counts as a change.
            now = signature(files, self._live.directories, self._live.list_directories)
            self._watch.taken_in({path: before.get(path, state) for path, state in now.items()})
            if inputs is None:
                return generation, problems, None, None
            if not is_again and self._fetch_new_sources(inputs, _manifest(generation)):
                self._generations.reject(generation)
                return self._prepare(accepts_loss, is_again=True)
            self._compiler.files = list(inputs.source.paths)
            return self._loaded(generation, inputs)
        except (InputError, OSError, ValueError) as error:
            return generation, [_unreadable(generation, error)], None, None

    def _prepare_arrived(self, arrived: dict[Path, Path]) -> tuple[Path, list[Problem], Inputs | None, Snapshot | None]:
        """Compile what is in force anew, with these files in the place of its own."""
        generation, watched = self._generations.new(), self._compiler.files
        try:
            problems = self._compiler.run(self.config, generation, base=self._live.generation, arrived=arrived)
            if problems:
                return generation, problems, None, None
            return self._loaded(generation, read_inputs(self.config, Kept(generation)))
        except (InputError, OSError, ValueError) as error:
            return generation, [_unreadable(generation, error)], None, None
        finally:
            self._compiler.files = watched

    def _loaded(self, generation: Path, inputs: Inputs) -> tuple[Path, list[Problem], Inputs | None, Snapshot | None]:
        file = generation / SNAPSHOT
        if problems := too_large(str(file), "the snapshot", LOAD_FACTOR * file.stat().st_size):
            return generation, problems, None, None
        return generation, [], inputs, load(str(file))

    def _fetch_new_sources(self, inputs: Inputs, manifest: dict[str, Any]) -> bool:
        """Fetch what takes the place of a list in force: another URL must not empty it meanwhile.

        A list that is new waits for its turn, as a reload does not wait for it; unless something speaks against the
        candidate that the list may mend, such as a name of `must_block`.
        """
        tasks = fetch_tasks(inputs)
        kept = {task.remote.path for task in tasks}
        moving = {task.remote.app for task in self._live.tasks if task.remote.path not in kept}
        wanted = [task for task in tasks if task.remote.app in moving or manifest.get("must")]
        return not self._is_ending and bool(self._fetch_lacking(wanted))

    def _take_in(
        self,
        accepts_loss: bool,
        arrived: list[Task],
        generation: Path,
        problems: list[Problem],
        inputs: Inputs | None,
        snapshot: Snapshot | None,
        *,
        is_decided: bool = False,
    ) -> list[Problem]:
        """Put a candidate in force, or refuse it.

        `arrived` are the lists that it is about, if it is about some and not about the files as they stand;
        `is_decided`, if it is about what was decided of apps.
        """
        is_ours = bool(arrived) or is_decided

        def refuse(against: list[Problem]) -> list[Problem]:
            if not is_ours:
                return self._refuse(generation, against)
            # The config is in force as it stands: whoever fetches says what became of these.
            self._generations.reject(generation)
            return against

        if inputs is None or snapshot is None:
            return refuse(problems)
        digest, before = _digest(generation), _manifest_if_there(self._live.generation)
        problems = [*problems, *_restart_problems(self._live.settings, inputs)]
        not_there = self._moved(before, _manifest(generation))
        how = f"blockd lists accept {arrived[0].remote.app}" if arrived else RELOAD
        judged = before, _manifest(generation), limits(inputs.settings), str(self.config)
        against = refusals(*judged, None if accepts_loss else how)
        if accepts_loss and not self._was_told(digest, against, arrived):
            text = "nobody was told of this before, or it changed since: if it is meant, say it again"
            against.append(Problem(str(self.config), 0, "", text))
            accepts_loss = False
        self._shown.append(digest)
        if problems and accepts_loss:
            # The restart must not be refused for what was accepted here.
            self._generations.remember_accepted(digest)
        problems += not_there
        if problems or (against and not accepts_loss):
            return refuse(problems if accepts_loss else [*problems, *against])
        for problem in against:
            log.warning("accepted by an operator: %s", problem)
        # What says the same is no generation of its own: the way back must not lead to where one is.
        is_same = before is not None and digest == before["digest"]
        try:
            lists = _lists(generation)
            if not is_same:
                self._generations.accept(generation)
            if not is_ours:
                self._generations.hold(False)
                self._generations.unstage()
        except OSError as error:
            return refuse([Problem(str(generation), 0, "", f"cannot be kept: {error.strerror}")])
        if is_same:
            self._generations.reject(generation)
            generation = self._live.generation
        rules, views = self._put_in_force(inputs, generation, snapshot, lists)
        if arrived:
            self._fetches.settle(_list_digests(_manifest(generation)))
        if not is_ours:
            self.not_loaded = []
            self._refused_decided.clear()
        self._fetches.forget_others(self._generations.root / FETCHED)
        if not self.not_loaded:
            self._reloads.success(wall_clock())
        log.info("reloaded: rules generation %d, views generation %d, generation %s", rules, views, generation.name)
        return []

    def _moved(self, before: dict[str, Any] | None, after: dict[str, Any]) -> list[Problem]:
        """Give the lists that moved to where they are not, each with what came of the fetch."""
        return [
            replace(problem, text=f"{problem.text}; the fetch: {why}")
            if (why := self._lacking.get(problem.file))
            else problem
            for problem in moved(before, after)
        ]

    def _was_told(self, digest: str, against: list[Problem], arrived: list[Task]) -> bool:
        """Say whether somebody was told of all that speaks against a candidate, and of this candidate."""
        told = {self._fetches.reason(task) for task in arrived}
        return (
            digest in self._shown
            or digest == self._generations.staged_digest()
            or all(any(problem.text in reason for reason in told) for problem in against)
        )

    def _put_in_force(
        self, inputs: Inputs, generation: Path, snapshot: Snapshot, lists: list[dict[str, Any]]
    ) -> tuple[int, int]:
        before = self._live
        self._live = _Live(inputs, generation, snapshot)
        try:
            self._open_placement()
            self._open_desk()
            rules, views = self._fold_and_publish()
            self._want_firewall()
        except Exception:
            # What the numbers of the views in force mean is what they meant before.
            self._live = before
            self._open_placement()
            self._open_desk()
            raise
        log_format.set_up(self._live.settings.log.format == "json")
        with contextlib.suppress(OSError):
            self._control_path().chmod(self._control_mode())
        self._published(rules, views, lists)
        return rules, views

    def _refuse(self, generation: Path | None, problems: list[Problem]) -> list[Problem]:
        if self._is_ending:
            if generation is not None:
                self._generations.reject(generation)
            return problems
        if generation is not None:
            self._generations.stage(generation, problems)
        self.not_loaded = problems
        self._note_candidates()
        self._reloads.failure()
        for problem in problems:
            log.error("%s", problem)
        log.error("the reload changed nothing: the policy before it is in force")
        return problems

    def _note_candidates(self) -> None:
        # Read when it changes: /readyz and metrics must not wait for a disk.
        self._staged = len(self._generations.staged())
        self._metrics.is_held, self._metrics.is_staged = self._generations.is_held, bool(self._staged)
        self._metrics.generation = int(self._live.generation.name)

    def _published(self, rules: int, views: int, lists: list[dict[str, Any]]) -> None:
        self._note_candidates()
        self._learn(views)
        known = {(report["file"], report["sha256"]) for report in self._metrics.lists}
        self._metrics.lists = lists
        self._fetches.publish(self._live.tasks)
        self._transfers.publish(self.config, self._live.generation, self._fetches.zones())
        for report in lists:
            # A list that is the same as before was told of then.
            for sample in [] if (report["file"], report["sha256"]) in known else report["samples"]:
                log.warning("%s:%d: skipped, %s: %s", report["file"], sample["line"], sample["reason"], sample["text"])
        self._published_inventories()

    def _published_inventories(self) -> None:
        """Log what each inventory skips, and what somebody should look at; not again while a file is as it was."""
        before = self._metrics.inventories
        self._metrics.inventories = inventory_reports(self._live.inputs)
        for report in self._metrics.inventories:
            if report not in before:
                for line in skipped_lines(report["file"], report, MAX_LOGGED_RECORDS):
                    log.warning("%s", line)
                for note in report["notes"]:
                    log.warning("%s", Problem(**note))
        # Put back in force by the ledger, so that it is not there any more at the next look.
        self._metrics.skipped_decisions = self._live.inputs.skipped_decided.total
        for line in skipped_lines(str(self._live.decided_file), self._live.inputs.skipped_decided.as_json()):
            log.warning("%s", line)

    def _learn(self, views: int) -> None:
        """Learn what the numbers of a new generation of views mean."""
        meta = self._live.folded_meta
        self._decisions.published(views, meta)
        self._decisions_log.published(views, meta)
        # Folds the counts of views that were replaced: unread, they would stay.
        self._decisions.read(self._fastpath)

    # The firewall

    def _firewall_path(self) -> Path:
        return self._live.inputs.relative(self._live.settings.egress.socket)

    def _firewall_off(self) -> Path:
        """Give the file that says that nothing is to be enforced, whoever put it there."""
        return Path(f"{self._firewall_path()}{EGRESS_OFF}")

    def _open_firewall(self, loop: asyncio.AbstractEventLoop) -> None:
        path = self._firewall_path()
        self._firewall = self._metrics.firewall = Firewall(
            self._fastpath.let_go, self._fastpath.look_up, self._fastpath.asked_within, self._addresses_beside
        )
        self._firewall.is_off = self._firewall_off().exists()
        self._firewall_socket = UnixPath(path, "egress.socket")
        try:
            loop.run_until_complete(self._firewall.listen(path))
            self._firewall_socket.bound()
        except OSError as error:
            raise StartError(f"egress.socket: {path}: {error.strerror}: its directory has to be there") from None
        wanted, relative = self._live.settings.egress, self._live.inputs.relative
        if wanted.listen is not None:
            files = [relative(file or "") for file in (wanted.certificate, wanted.key, wanted.authority)]
            try:
                context = tls(True, *files)
                loop.run_until_complete(self._firewall.listen_far(str(wanted.listen[0]), wanted.listen[1], context))
            except OSError as error:
                text = f"egress.listen: {error.strerror or error}: is the address ours, and are the files certificates?"
                raise StartError(text) from None

    def _want_firewall(self) -> None:
        """Have firewalls enforce the generation in force, with devices where they are and exemptions as they are."""
        if self._firewall is None:
            return
        inputs = self._live.inputs
        settings = inputs.settings.egress
        wanted = wanted_of(inputs, self._live.generation.name)
        self._fixed_places = dict(wanted.places)
        with self._feeds.lock:
            addresses = () if self._feeds.placement is None else list(self._feeds.placement.places)
            moved = {address: self._group_in_firewall(address, wanted) for address in addresses}
        wanted.places |= {address: group for address, group in moved.items() if group != ABSENT}
        wanted.exempt, wanted.exempt_macs, _ = self._exempt_now()
        self._fastpath.learn(settings.wait_ms)
        is_first = self._firewall.wanted() is None
        self._firewall.want(wanted, settings, protected(inputs))
        if is_first:
            self._firewall.recall(self._generations.root / LEARNED)
        self._looked_up = 0.0

    def _group_in_firewall(self, address: Address, wanted: Wanted) -> str | None:
        view = self._view_of_place(address)
        if view is None:
            return self._fixed_places.get(address, ABSENT)
        group = self._live.meta["groups"][view]
        return group if group in wanted.groups else None

    def _move_sources(self, changed: Iterable[Address]) -> None:
        wanted = None if self._firewall is None else self._firewall.wanted()
        if self._firewall is None or wanted is None:
            return
        with self._feeds.lock:
            moved = {address: self._group_in_firewall(address, wanted) for address in changed}
        self._firewall.move(moved)

    def _exempt_now(self) -> tuple[dict[str, dict[Address, float]], dict[str, dict[str, float]], float | None]:
        folded = self._folded
        if folded is None:
            return {}, {}, None
        return exempt_at(
            [*folded.devices, *folded.macs],
            folded.slots,
            len(self._live.meta["groups"]),
            folded.apps,
            self._fastpath.wall(),
        )

    def _tell_exempt(self) -> None:
        """Tell firewalls who is exempt now, and again when that changes by the clock."""
        if self._firewall is None or self._is_ending:
            return
        if self._exempt_timer is not None and self._exempt_timer.active():
            self._exempt_timer.cancel()
        addresses, macs, change = self._exempt_now()
        self._firewall.exempt(addresses, macs)
        if change is not None:
            # A clock that is set is looked at anew within the minute.
            patience = min(60.0, max(0.05, change - self._fastpath.wall() + 0.01))
            self._tell_exempt_later(patience)

    def _tell_exempt_later(self, seconds: float) -> None:
        def again() -> None:
            # An exemption that ends must end in firewalls, too: try again, whatever went wrong.
            if not self._guard.run("egress_exempt", self._tell_exempt):
                self._tell_exempt_later(EXEMPT_RETRY_SECONDS)

        self._exempt_timer = self._reactor.callLater(seconds, again)

    def _addresses_beside(self, sources: Collection[str]) -> dict[str, set[str]]:
        """Give all addresses of the devices that have these, by the MACs that feeds know."""
        placement = self._feeds.placement
        if placement is None or not sources:
            return {}
        with self._feeds.lock:
            places = [(str(address), place.lease.mac) for address, place in placement.places.items() if place.lease.mac]
        mac_of = {address: mac for address, mac in places if address in sources}
        by_mac: dict[str, set[str]] = {mac: set() for mac in mac_of.values()}
        for address, mac in places:
            if mac in by_mac:
                by_mac[mac].add(address)
        return {address: by_mac[mac] for address, mac in mac_of.items()}

    def _note_numbers(self, numbers: tuple[int, int]) -> None:
        rules, self._views = numbers
        self._apps_by_rules[rules] = self._live.meta["apps"]
        for older in sorted(self._apps_by_rules)[:-RULES_KNOWN]:
            del self._apps_by_rules[older]

    def _learned(
        self, serial: int, generation: int, name: str, apps: int, addresses: list[Address], seconds: int
    ) -> None:
        # Where it was judged by rules of before a reload, their names of apps are meant; what is an app's since then is
        # judged anew when its entry is used.
        live = self._apps_by_rules.get(generation)
        if self._firewall is None or live is None:
            if serial:
                self._fastpath.let_go([serial])
            return
        named = [live[at] for at in range(apps.bit_length()) if apps >> at & 1 and at < len(live)]
        self._firewall.learned(serial, name, named, addresses, seconds)

    def _look_up_apps(self) -> None:
        """Ask where apps are, though nobody asks us: who walks round us does not."""
        now = time.monotonic()
        if self._firewall is not None and self._firewall.is_off != self._firewall_off().exists():
            self._firewall.turn(not self._firewall.is_off)
        wanted = None if self._firewall is None else self._firewall.wanted()
        if self._firewall is None or wanted is None or self._is_ending:
            return
        if now - self._looked_up >= self._live.settings.egress.resolve:
            self._looked_up = now
            self._firewall.look_up(names_of(self._live.inputs, wanted.apps))

    def _egress_lists(self) -> Callable[[], dict[str, list[str]]]:
        return dict if self._firewall is None else self._firewall.lists()

    def _command_egress(self, request: dict[str, Any]) -> dict[str, Any] | Deferred[dict[str, Any]]:
        firewall = self._firewall
        if firewall is None:
            return {"ok": False, "error": "egress.enabled is false: no firewall is told anything"}
        do = str(request.get("do"))
        if do in ("on", "off"):
            log.warning("egress: turned %s by a command", do)
            file = self._firewall_off()
            try:
                if do == "on":
                    file.unlink(missing_ok=True)
                elif not file.exists():
                    # Where it is there, the command put it there: as root, whose file is not ours to touch.
                    file.touch()
            except OSError as error:
                return {"ok": False, "error": f"{file}: {error.strerror}"}
            firewall.turn(do == "off")

            def answer(is_settled: bool) -> dict[str, Any]:
                return {"ok": True, "is_settled": is_settled, **firewall.status()}

            # A firewall that was told is not yet one that did it.
            settled = asyncio.ensure_future(firewall.settled(EGRESS_SETTLED_SECONDS))
            return Deferred.fromFuture(settled).addCallback(answer)
        elif do == "plan":
            wanted = firewall.wanted()
            return {"ok": True, "wanted": None if wanted is None else wanted.as_json()}
        return {"ok": True, **firewall.status()}

    # Exemptions

    def _open_desk(self) -> None:
        """Have a desk when the config in force has somebody who approves, and none else."""
        wanted = self._live.settings.exemptions
        if not wanted.teams:
            desk, self._desk = self._desk, None
            if desk is not None:
                desk.close()
        elif self._desk is None:
            # Sites without exemptions need not wait for what a database takes to import.
            from blockd.desk import Desk

            self._desk = Desk(self._database(LEDGER), self._generations.root, wall_clock)
            self._desk.must_have_entries = bool(self._live.inputs.decided)
            self._desk.listen(lambda: self._reactor.callFromThread(self._look_at_ledger))
        self._metrics.desk = self._desk
        self._site = None

    def _control_mode(self) -> int:
        # People who request and approve are no operators: each command is judged by who calls.
        return 0o666 if self._live.settings.exemptions.teams else 0o600

    def _site_now(self) -> Site:
        from blockd.desk import site_of

        if self._site is None:
            self._site = site_of(self._live.inputs)
        return self._site

    def _fold_and_publish(self) -> tuple[int, int]:
        """Put the snapshot in force, with the devices where they are and the exemptions that hold."""
        live = self._live
        with self._feeds.lock:
            placed = self._placed()
            server, groups = live.settings.server, live.meta["groups"]
            forwarders = [(address, sum(SAYS[kind] for kind in says)) for address, says in live.forwarders.items()]
            macs = [(mac, groups.index(group)) for mac, group in live.macs.items()] if forwarders else []
            more: dict[str, Any] = {"forwarders": forwarders, "forwarder_rate": server.forwarder_rate, "macs": macs}
            self._folded = None
            if self._desk is None:
                live.folded_meta, self._exempt_addresses = live.meta, set()
                numbers = self._fastpath.publish(live.snapshot, devices=placed, **more)
            else:
                now, site = self._fastpath.wall(), self._site_now()
                folded = self._desk.fold(site, live.meta["groups"], live.meta["apps"], now, self._feeds.placement)
                live.folded_meta = folded.meta(live.meta)
                self._exempt_addresses = {address for address, _ in folded.devices}
                devices = [*placed, *folded.devices]
                with_exempt = {**more, "macs": [*macs, *folded.macs]} if forwarders else more
                try:
                    numbers = self._fastpath.publish(
                        live.snapshot, folded.views, folded.slots, devices, folded.floor, **with_exempt
                    )
                    self._folded = folded
                except ValueError as error:
                    # More of them than there is room for: the policy is in force without any.
                    log.error("exemptions: none holds: %s", error)
                    live.folded_meta, self._exempt_addresses = live.meta, set()
                    numbers = self._fastpath.publish(live.snapshot, devices=placed, **more)
        self._note_numbers(numbers)
        self._routes.publish()
        self._tell_exempt()
        return numbers

    # Devices

    def _open_placement(self) -> None:
        """Have what DHCP says in the form that the config in force asks for; what was read stays."""
        self._feeds.open(self._live.inputs)
        self._metrics.placement = self._feeds.placement

    def _placed(self) -> list[tuple[Address, int]]:
        if self._feeds.placement is None:
            return []
        return [
            (address, view)
            for address in self._feeds.placement.places
            if (view := self._view_of_place(address)) is not None
        ]

    def _view_of_place(self, address: Address) -> int | None:
        """Give the view of an address by what DHCP says; None where that says nothing that networks do not."""
        assert self._feeds.placement is not None
        place = self._feeds.placement.places.get(address)
        if place is None:
            return None
        groups: list[str] = self._live.meta["groups"]
        if place.group is not None:
            return groups.index(place.group)
        # An inventory's address that another device has now: neither that inventory's group, nor nobody's.
        return (
            groups.index(network_group(self._live.inputs, address))
            if self._feeds.placement.is_elsewhere(address)
            else None
        )

    def _devices_moved(self, changed: set[Address]) -> None:
        """Tell the hot path of addresses that are somebody else's: it obeys from the next query on."""
        placement = self._feeds.placement
        if self._is_ending or placement is None:
            return
        with self._feeds.lock:
            exempt = self._desk is not None and any(self._desk.concerns(placement, address) for address in changed)
            changes = [(address, self._view_of_place(address)) for address in changed]
        self._move_sources(changed)
        if exempt or changed & self._exempt_addresses:
            self._fold_anew()
            return
        try:
            self._fastpath.set_devices(self._views, changes)
        except ValueError as error:
            log.error("leases: %s", error)

    def _keep_leases(self) -> None:
        from twisted.internet.threads import deferToThreadPool

        pool = self._reactor.getThreadPool()
        deferToThreadPool(self._reactor, pool, self._feeds.keep)
        if self._firewall is not None:
            kept = self._firewall.book.keep(time.monotonic())
            deferToThreadPool(self._reactor, pool, self._firewall.keep, self._generations.root / LEARNED, kept)

    def _command_devices(self, request: dict[str, Any]) -> dict[str, Any]:
        self._look_at_busy()
        with self._feeds.lock:
            found = devices_of(self._live.inputs, self._feeds.placement, str(request.get("who") or ""), wall_clock())
        return {**found, "likely_forwarders": [self._show_address(address) for address in self._likely.found]}

    def _exempting(self, client: str, app: str) -> list[str]:
        """Name the exemptions by which a client may use an app; the client as the decisions log has it."""
        if self._folded is None:
            return []
        mac, _, address = client.rpartition(" by ")
        whose = mac_number(mac) if mac else read_client(address)
        return self._folded.exempting(whose, app, self._fastpath.wall())

    def _fold_anew(self) -> None:
        if not self._is_ending:
            self._learn(self._fold_and_publish()[1])

    def _look_at_ledger(self) -> None:
        """See in a thread whether the ledger changed; tell the hot path what follows, and of the next days in time.

        What follows is seen here even when the ledger does not answer: then nobody is exempt after a while.
        """
        desk = self._desk
        if desk is None:
            return
        self._fold_news(desk)
        if self._is_reading_ledger:
            return

        def read() -> None:
            with self._desk_lock:
                desk.read()

        def done(_: object) -> None:
            self._is_reading_ledger = False
            self._fold_news(desk)
            self._look_at_arrived()

        def failed(failure: Any) -> None:
            self._is_reading_ledger = False
            self._failures["ledger"].failed(f"exemptions: reading the ledger failed: {failure.getErrorMessage()}")

        self._is_reading_ledger = True
        self._at_the_desk(read).addCallbacks(done, failed)

    def _fold_news(self, desk: Desk) -> None:
        stands = self._live.settings.exemptions.stands
        if desk is self._desk and (desk.is_news(stands) or desk.is_due(self._fastpath.wall())):
            self._fold_anew()

    def _at_the_desk(self, call: Callable[[], Any]) -> Deferred[Any]:
        """Do it in the desk's own thread: a database that hangs keeps no lease and no reload waiting."""
        from twisted.internet.threads import deferToThreadPool
        from twisted.python.threadpool import ThreadPool

        if self._desk_pool is None:
            self._desk_pool = ThreadPool(0, 1, "desk")
            self._desk_pool.start()
        return deferToThreadPool(self._reactor, self._desk_pool, call)

    def _command_exempt(self, request: dict[str, Any], caller: Caller) -> Deferred[dict[str, Any]]:
        desk = self._desk
        if desk is None:
            return succeed(
                {"ok": False, "error": "there are no exemptions: exemptions.teams names nobody who approves"}
            )
        site = self._site_now()

        def act() -> dict[str, Any]:
            with self._desk_lock:
                return desk.command(site, caller, request)

        def tell(answer: Any) -> Any:
            # In force before anybody is told that it is, whatever became of the command.
            self._fold_news(desk)
            return self._when_decided(desk, answer) if request.get("do") == "agree" else answer

        return self._at_the_desk(act).addBoth(tell)

    def _when_decided(self, desk: Desk, answer: dict[str, Any]) -> Deferred[dict[str, Any]]:
        """Answer when what was decided of apps is in force, or is known not to be."""
        done: Deferred[dict[str, Any]] = Deferred()

        def look() -> None:
            self._look_at_arrived()
            if self._reload_running is not None and not self._is_ending:
                self._reactor.callLater(0.05, look)
                return
            if answer.get("ok") and (app := answer["decision"]["app"]):
                decided, now = desk.decided() or {}, self._live.inputs.decided
                if decided.get(app) != now.get(app):
                    error = "it is in the ledger, and not in force: the log says why"
                    done.callback({"ok": False, "error": error})
                    return
                to = answer["decision"]["to"]
                answer["decision"]["state"] = "approved" if to == "config" else "in force"
            done.callback(answer)

        look()
        return done

    def _generation_numbers(self) -> tuple[int, int]:
        sizes = self._fastpath.sizes()
        return sizes["rules.generation"], sizes["views.generation"]

    # Commands

    def _command_reload(self, request: dict[str, Any]) -> Deferred[dict[str, Any]]:
        def answer(problems: list[Problem]) -> dict[str, Any]:
            rules, views = self._generation_numbers()
            listed = [problem.as_json() for problem in problems]
            return {"ok": not problems, "problems": listed, "rules_generation": rules, "views_generation": views}

        if request.get("dry_run") is True:
            return self._command_rehearse()
        return self.reload(request.get("accept") is True).addCallback(answer)

    def _command_rehearse(self, arrived: dict[Path, Path] | None = None) -> Deferred[dict[str, Any]]:
        if self._reload_running is not None:
            return succeed({"ok": False, "error": "a reload is under way: try again when it has ended"})
        rehearsed: list[Any] = [[], None]

        def keep(parts: tuple[list[Problem], list[dict[str, Any]] | None]) -> list[Problem]:
            rehearsed[:] = parts
            return parts[0]

        def answer(problems: list[Problem]) -> dict[str, Any]:
            listed = [problem.as_json() for problem in problems]
            # What was refused and would be accepted is not refused for what the gate says of it.
            is_taken = not problems or (arrived is not None and rehearsed[1] is not None)
            return {"ok": is_taken, "problems": listed, "changes": rehearsed[1] or []}

        done: Deferred[list[Problem]] = Deferred()
        done.addCallback(answer)
        self._run(done, lambda: self._rehearse(arrived), keep)
        return cast("Deferred[dict[str, Any]]", done)

    def _command_rollback(self, _: dict[str, Any]) -> Deferred[dict[str, Any]]:
        def answer(problems: list[Problem]) -> dict[str, Any]:
            listed = [problem.as_json() for problem in problems]
            return {"ok": not problems, "problems": listed, "generation": self._live.generation.name}

        return self.rollback().addCallback(answer)

    def _command_lists(self, request: dict[str, Any]) -> dict[str, Any]:
        staged = [problem.as_json() for problem in self._generations.staged()]
        keys = ("app", "file", "kind", "format", "kept", "sha256")
        lists = [
            {**{key: report.get(key) for key in keys}, "skipped": sum(report["skipped"].values())}
            for report in self._metrics.lists
        ]
        for row in lists:
            with contextlib.suppress(OSError):
                row["age"] = max(0.0, wall_clock() - Path(row["file"]).stat().st_mtime)
            row["source"] = self._fetches.known(Path(row["file"]))
        if request.get("is_shown") is True:
            self._fetches.show(self._live.tasks)
        ready = self._ready()
        return {"ok": True, "lists": lists, "staged": staged, **{k: ready[k] for k in ("generation", "is_held")}}

    def _command_fetch(self, request: dict[str, Any]) -> Deferred[dict[str, Any]]:
        apps = [str(app) for app in request.get("apps", [])]
        paths = self._fetches.wanted(apps)
        if not paths:
            named = ", ".join(apps) or "any app in force"
            return succeed({"ok": False, "error": f"no list of {named} comes from elsewhere"})
        done: Deferred[dict[str, Any]] = Deferred()

        def look() -> None:
            known = [self._fetches.known(path) for path in paths]
            # Those that a reload took out meanwhile are not waited for.
            rows = [row for row in known if row is not None]
            is_held = self._generations.is_held
            is_under_way = any(row["result"] == "fetching" or row["next_in"] == 0 for row in rows)
            is_waiting = any(row["is_waiting"] for row in rows)
            will_be_tried = any(row["is_waiting"] and not row["put_off"] for row in rows) and not is_held
            if is_under_way or will_be_tried or self._reload_running is not None:
                self._reactor.callLater(0.05, look)
                return
            good = all(row["result"] in ("new", "unchanged") for row in rows) and not is_waiting
            if request.get("is_shown") is True:
                self._fetches.show(task for task in self._live.tasks if task.remote.path in paths)
            done.callback({"ok": good, "sources": rows, "is_held": is_held and is_waiting})

        self._fetch_what_is_due()
        look()
        return done

    def _command_accept(self, request: dict[str, Any]) -> Deferred[dict[str, Any]]:
        """Take lists in that were fetched and refused, or say what that would change."""
        apps = [str(app) for app in request.get("apps", [])]
        if self._reload_running is not None:
            return succeed({"ok": False, "error": "a reload is under way: try again when it has ended"})
        if self._generations.is_held:
            return succeed({"ok": False, "error": str(_held(self.config, self._live.generation))})
        if not (tasks := self._fetches.refused(apps)):
            text = f"no refused list is stored for {', '.join(apps)}, or a fetch is in progress"
            return succeed({"ok": False, "error": text})
        if len(tasks) > 1:
            urls = ", ".join(task.remote.url for task in tasks)
            text = f"{len(tasks)} lists were refused, each for its own reason: name one by its URL: {urls}"
            return succeed({"ok": False, "error": text})
        if request.get("dry_run") is True:
            self._fetches.show(tasks)
            return self._command_rehearse({task.remote.path: task.remote.refused for task in tasks})
        if not self._fetches.is_as_shown(tasks[0]):
            text = "what was refused was not shown yet, or changed since: see blockd lists, and say it again"
            self._fetches.show(tasks)
            return succeed({"ok": False, "error": text})
        rows = [self._fetches.known(task.remote.path) for task in tasks]
        try:
            tasks = self._fetches.accept([tasks[0].remote.url])
        except OSError as error:
            return succeed({"ok": False, "error": f"{error.filename}: {error.strerror}"})

        def answer(problems: list[Problem]) -> dict[str, Any]:
            return {"ok": not problems, "problems": [problem.as_json() for problem in problems], "sources": rows}

        for task in tasks:
            log.warning("accepted by an operator: what was fetched from %s", task.remote.url)
        return self._reload_arrived(tasks, accepts_loss=True).addCallback(answer)

    def _command_explain(self, request: dict[str, Any]) -> Deferred[dict[str, Any]]:
        if missing := [key for key in ("client", "name", "type") if not isinstance(request.get(key), str)]:
            return succeed({"ok": False, "error": f"expected a text as {missing[0]!r}"})
        try:
            client = read_client(request["client"])
            name, qtype = read_question(request["name"], request["type"])
        except ValueError as error:
            return succeed({"ok": False, "error": str(error)})
        live = self._live
        decision = self._fastpath.decide(client, name, qtype)
        meta = live.folded_meta
        generation = live.generation
        with self._feeds.lock:
            known = (
                None
                if self._feeds.placement is None
                else place_text(live.inputs, self._feeds.placement, client, wall_clock())
            )

        exempting: list[str] = []
        if decision["action"] == "exempt" and decision["app"] is not None:
            exempting = self._exempting(str(client), meta["apps"][decision["app"]])

        def reason() -> dict[str, Any]:
            inputs = read_inputs(self.config, Kept(generation))
            explanation = explain(inputs, decision, meta, client, name, str(request["type"]).upper(), known, exempting)
            return {"ok": True, "explanation": explanation.as_json(), "rows": explanation.rows()}

        from twisted.internet.threads import deferToThreadPool

        # A list of millions of lines is searched for the rule: not on the reactor's time.
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), reason)

    def _status(self) -> dict[str, Any]:
        return status(
            fastpath=self._fastpath,
            routes=self._routes,
            route_servers=self._live.routes,
            nat64=self._nat64_prefixes(),
            decisions=self._decisions,
            reloads=self._reloads,
            ready=self._ready(),
            meta=self._live.meta,
            devices=self._live.devices,
            lists=self._metrics.lists,
            missing=self._missing,
            leases=self._feeds.standing(),
            version=__version__,
            listen=[show_endpoint(endpoint) for endpoint in self._listen],
            uptime=time.monotonic() - self._started,
            now=wall_clock(),
        )

    def _not_ready(self) -> list[str]:
        """Say why no query should be sent here. A config that was refused is no reason: the last good one serves."""
        reasons = [] if self._is_serving else ["the sockets are not open yet"]
        if self._is_ending:
            reasons.append("blockd is stopping")
        if self._live.settings.admin.ready_needs_upstream and not self._routes.is_any_usable:
            reasons.append("no upstream is usable")
        return reasons

    def _ready(self) -> dict[str, Any]:
        rules, views = self._generation_numbers()
        not_ready = self._not_ready()
        return {
            "ok": not self.not_loaded,
            "is_ready": not not_ready,
            "not_ready": not_ready,
            "config": str(self.config),
            "config_in_force": not self.not_loaded,
            "problems": [str(problem) for problem in self.not_loaded],
            "rules_generation": rules,
            "views_generation": views,
            "generation": self._live.generation.name,
            "is_held": self._metrics.is_held,
            "staged": self._staged,
            **({} if self._desk is None else {"ledger": self._desk.standing()}),
            "dead_upstreams": sorted(map(str, self._routes.dead)),
        }


def _counted(address: Address, client: str) -> str:
    """Name who asked, for a count: an IPv6 host picks addresses freely inside its network, and is one device."""
    return f"{network_text(address)}" if address.version == 6 else client


def _also(first: Deferred[list[Problem]], then: Deferred[list[Problem]]) -> None:
    def tell(problems: list[Problem]) -> list[Problem]:
        then.callback(problems)
        return problems

    first.addCallback(tell)


def _restart_problems(before: Settings, inputs: Inputs) -> list[Problem]:
    """Give the keys that changed and that a reload cannot take in."""
    text = "changed, and only a restart takes it in: nothing was reloaded"
    keys = [key.split(".") for key in changed_restart_keys(before, inputs.settings)]
    return [inputs.document.problem((section, name), text) for section, name in keys]


def _list_digests(manifest: dict[str, Any]) -> dict[str, str]:
    """Say what each list of a generation is."""
    return {report["file"]: report["sha256"] for report in manifest["lists"]}


def _kept_lists(config: Path, generation: Path) -> dict[Path, tuple[Path, int, float]]:
    """Say where a generation has its lists that come from elsewhere, their names, and since when it is."""
    try:
        source, since = Kept(generation), (generation / MANIFEST).stat().st_mtime
        ours = {task.remote.path for task in _tasks_if_whole(config, generation)}
        rows = [
            report for report in _lists(generation) if not report.get("is_lacking") and Path(report["file"]) in ours
        ]
        return {Path(row["file"]): (source.list_file(Path(row["file"])), row["kept"], since) for row in rows}
    except (InputError, OSError, ValueError, KeyError) as error:
        log.error("%s: its lists cannot be put back: %s", generation, error)
        return {}


def _tasks_if_whole(config: Path, generation: Path) -> list[Task]:
    """Give the lists of a generation that come from elsewhere; none where it cannot be read any more."""
    try:
        return fetch_tasks(read_inputs(config, Kept(generation)))
    except (InputError, OSError, ValueError):
        return []


def _held(config: Path, generation: Path) -> Problem:
    text = f"generation {generation.name} is held since a rollback: blockd reload takes the files in as they stand"
    return Problem(str(config), 0, "", text)


def _unreadable(generation: Path, error: Exception) -> Problem:
    return Problem(str(generation), 0, "", f"was written and cannot be read back: {error}")


def _unexpected(config: Path, failure: Any) -> Problem:
    return Problem(str(config), 0, "", f"the reload failed: {failure.getErrorMessage()}")


def _open_state(config: Path, settings: Settings) -> Generations:
    state = Path(os.path.abspath(config.parent / settings.state.directory))
    try:
        return Generations(state)
    except HeldError as error:
        raise StartError(f"state.directory: {state}: another blockd is running with it: {error.strerror}") from None
    except OSError as error:
        where = error.filename or state
        raise StartError(f"state.directory: {where}: {error.strerror}; correct it, or name another directory") from None


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


def _manifest(generation: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((generation / MANIFEST).read_text())
    return manifest


def _manifest_if_there(generation: Path) -> dict[str, Any] | None:
    """Read the manifest of what is in force; None when somebody removed it from the disk meanwhile."""
    try:
        return _manifest(generation)
    except FileNotFoundError:
        return None


def _lists(generation: Path) -> list[dict[str, Any]]:
    """Read what became of each list."""
    lists: list[dict[str, Any]] = _manifest(generation)["lists"]
    return lists


def _digest(generation: Path) -> str:
    return str(_manifest(generation)["digest"])


def _is_whole(generation: Path) -> bool:
    try:
        load(str(generation / SNAPSHOT))
    except (OSError, ValueError) as error:
        log.error("%s: %s", generation, error)
        return False
    return True


def _with_family(listen: list[Endpoint], key: str) -> list[Endpoint]:
    """Leave out, with a warning, the addresses whose family this host does not have."""
    found, left_out = with_family(listen, key)
    for text in left_out:
        log.warning("%s", text)
    return found


def hints(settings: Settings, listen: list[Endpoint]) -> list[str]:
    """Give the lines to try on this machine, when groups have loopback addresses and a usual server listens."""
    server = next(((h, p) for h, p in listen if str(h) == "127.0.0.1"), None)
    lines = []
    for group, members in settings.groups.items():
        for network in members.networks:
            if server is not None and network.version == 4 and network.is_loopback:
                dig = f"dig -b {network.network_address} @127.0.0.1 -p {server[1]} www.tiktok.com"
                lines.append(f"try as {group}: {dig}")
    return lines
