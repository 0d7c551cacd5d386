"""Every metric, declared here: native counters under names that operators rely on. Labels are bounded."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from blockd import __version__
from blockd.egress.ruleset import CONNECTIONS
from blockd.egress.totals import Totals
from blockd.endpoint import Endpoint
from blockd.fastpath import LATENCY_BOUNDS, Fastpath
from blockd.observe import log_writer
from blockd.observe.decisions_log import DecisionsLog
from blockd.observe.forwarders import LikelyForwarders
from blockd.observe.lag import BOUNDS as LAG_BOUNDS
from blockd.observe.lag import ReactorLag
from blockd.observe.log_writer import QUEUE_OCTETS
from blockd.observe.rendering import paced
from blockd.problems import Skipped
from blockd.resolver.routes import STATES, UNUSABLE_STATES, Health, Routes
from blockd.resolver.streams import Streams
from blockd.transport.block_page import BlockPage
from blockd.transport.http import HttpListener
from blockd.transport.tcp import TcpListener

#: Metric -> help, labels, and the native counters that feed it: prefix of the counter's name -> label values.
#: A counter `a.b.c` under the prefix `a` gives the label values `b` and `c`.
COUNTERS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "blockd_queries": ("Queries received, by transport.", ("proto",), "queries"),
    "blockd_queries_not_read": (
        "Datagrams that the kernel dropped, most of them because the receive buffer was full.",
        (),
        "not_read",
    ),
    "blockd_questions": ("Well-formed questions, by type; rare types are other.", ("qtype",), "types"),
    "blockd_replies": ("Replies, by transport and response code.", ("proto", "rcode"), "replies"),
    "blockd_replies_truncated": ("Replies that did not fit and were sent with TC.", (), "replies.truncated"),
    "blockd_replies_not_sent": ("Replies that the kernel did not take.", (), "replies.not_sent"),
    "blockd_conveyed": (
        "Queries that say who asked first: believed of listed forwarders, ignored of others.",
        ("outcome", "kind"),
        "conveyed",
    ),
    "blockd_dropped": ("Queries without a reply.", ("reason",), "dropped"),
    "blockd_refused": ("Queries refused before any policy.", ("reason",), "refused"),
    "blockd_admission_buckets_evicted": (
        "Rate-limit buckets in use that had to make room.",
        (),
        "admission.buckets_evicted",
    ),
    "blockd_cache_hits": ("Questions answered from the cache.", (), "cache.hits"),
    "blockd_cache_misses": ("Questions that had to be asked upstream.", (), "cache.misses"),
    "blockd_cache_inserted": ("Answers stored.", (), "cache.inserted"),
    "blockd_cache_rejudged": ("Entries judged anew because the rules moved on.", (), "cache.rejudged"),
    "blockd_pending_coalesced": ("Questions that joined one under way.", (), "pending.coalesced"),
    "blockd_pending_shed": (
        "Questions not asked: too many wait, or more comes than can be answered.",
        ("bound",),
        "pending.shed",
    ),
    "blockd_pending_expired": ("Questions that nobody answered in any way.", (), "pending.expired"),
    "blockd_cache_stale": ("Questions answered with what has ended, since no upstream answered.", (), "cache.stale"),
    "blockd_upstream_blocks": ("Answers by which an upstream itself blocks a name.", ("reason",), "upstream.blocks"),
    "blockd_upstream_queries": ("Queries sent upstream over UDP.", (), "upstream.sent"),
    "blockd_upstream_answers": ("Usable answers, over UDP and TCP.", (), "upstream.answered"),
    "blockd_upstream_timeouts": (
        "Exchanges that took longer than 400 ms, answered later or not.",
        (),
        "upstream.timed_out",
    ),
    "blockd_upstream_streams": ("Questions moved to TCP.", (), "upstream.streams"),
    "blockd_upstream_exhausted": ("Questions for which every server failed.", (), "upstream.exhausted"),
    "blockd_ring_pushed": ("Pieces of work handed to Python.", (), "ring.pushed"),
    "blockd_ring_full": ("Pieces of work that found the ring full.", (), "ring.full"),
    "blockd_egress_not_told": (
        "Answers that led to an app and left before every firewall knew: late, not_held, lost.",
        ("reason",),
        "learn",
    ),
    "blockd_decisions_log_lost": ("Lines of the decisions log that were not written.", ("reason",), "journal.lost"),
}

#: What was wrong with a message from upstream, or with sending one: native name -> label.
UPSTREAM_FAULTS = {
    "upstream.not_sent": "not_sent",
    "upstream.no_socket": "no_socket",
    "upstream.failed": "failed",
    "upstream.malformed": "malformed",
    "upstream.chain": "chain",
    "upstream.wrong_id": "wrong_id",
    "upstream.unexpected": "unexpected",
    "upstream.truncated": "truncated",
}

GAUGES = {
    "blockd_cache_entries": ("Answers in the cache.", "cache.entries"),
    "blockd_cache_bytes": ("Memory that they take.", "cache.octets"),
    "blockd_pending_questions": ("Questions under way.", "pending.questions"),
    "blockd_pending_queries": ("Queries that wait for them.", "pending.waiters"),
    "blockd_ring_waiting": ("Pieces of work that Python has not taken yet.", "ring.waiting"),
    "blockd_rules_generation": ("Generation of the rules in force.", "rules.generation"),
    "blockd_rules_names": ("Names in the domain table.", "rules.names"),
    "blockd_views_generation": ("Generation of the views in force.", "views.generation"),
    "blockd_devices_changed": ("Addresses whose group changed since the views were published.", "devices.changed"),
}


@dataclass
class ReloadCounts:
    """What became of reloads."""

    succeeded: int = 0
    failed: int = 0
    was_last_successful: bool = True
    last_success: float = 0.0

    def success(self, now: float) -> None:
        """Count one that took."""
        self.succeeded += 1
        self.was_last_successful = True
        self.last_success = now

    def failure(self) -> None:
        """Count one that changed nothing."""
        self.failed += 1
        self.was_last_successful = False


@dataclass
class DecisionCounts:
    """Decisions by names, over all generations: numbers mean something within one alone."""

    folded: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    #: Generation of views -> (groups, apps) by number.
    names: dict[int, tuple[list[str], list[str]]] = field(default_factory=dict)
    #: Held where these two are used: metrics are rendered in a thread.
    _lock: threading.Lock = field(default_factory=threading.Lock)
    #: Live app -> the set by which a policy names it, or nothing; replaced as a whole.
    sets: dict[str, str] = field(default_factory=dict)

    def published(self, generation: int, meta: dict[str, Any]) -> None:
        """Learn what the numbers of a new generation mean."""
        with self._lock:
            self.names[generation] = (meta["groups"], meta["apps"])
        about = zip(meta["apps"], meta["about"], strict=True)
        self.sets = {app: said.get("set") or "" for app, said in about}

    def read(self, fastpath: Fastpath) -> Counter[tuple[str, str, str]]:
        """Give the sums by (group, app, action); the counts of generations that ended are folded in."""
        with self._lock:
            rows = fastpath.decisions()
            final = [row for row in rows if row[1] and row[0] in self.names]
            live = [(self.names[row[0]], row[2]) for row in rows if not row[1] and row[0] in self.names]
            for generation, _, cells in final:
                # Rare, and short of a pause: the reactor may wait for the lock.
                _add(self.folded, self.names.pop(generation), cells)
            total = Counter(self.folded)
        for names, cells in live:
            _add(total, names, paced(cells))
        return total


def _add(
    total: Counter[tuple[str, str, str]],
    names: tuple[list[str], list[str]],
    cells: Iterable[tuple[int, int | None, str, int]],
) -> None:
    groups, apps = names
    for view, bit, action, count in cells:
        total[groups[view], "" if bit is None else apps[bit], action] += count


class Sources(Protocol):
    """Lists from elsewhere, as they are counted."""

    counts: Counter[tuple[str, str]]

    def oldest(self) -> dict[str, float]:
        """Give, by app, when the list that was longest not confirmed was."""


class LeaseFeed(Protocol):
    """A lease file, as it is counted."""

    file: Path
    problem: str | None
    skipped: Skipped


class Placing(Protocol):
    """Devices placed by their leases, as they are counted."""

    @property
    def feeds(self) -> Sequence[LeaseFeed]:
        """Lease files."""

    def counts(self) -> Counter[tuple[str, str, str]]:
        """Count addresses by group, source and state."""


class Exempting(Protocol):
    """Exemptions, as they are counted."""

    problem: str | None
    skipped: Skipped

    def states(self, now: float) -> Counter[str]:
        """Count them by how they stand."""

    def expiring(self, now: float) -> int:
        """Count granted exemptions of more than two weeks that end within a week."""

    def standing(self) -> dict[str, Any]:
        """Give entries and head of the ledger."""


class Enforcing(Protocol):
    """Firewalls, as they are counted."""

    totals: Totals

    def status(self) -> dict[str, Any]:
        """Say how they stand."""


class Zones(Protocol):
    """Response policy zones, as they are counted."""

    zones: dict[str, dict[str, Any]]
    problem: str | None

    def transfers(self) -> Counter[tuple[str, str]]:
        """Count transfers by group and kind."""

    def refused(self) -> Counter[str]:
        """Count by reason what was refused."""


@dataclass
class Gathered:
    """What is read on the reactor for one rendering; the rest is read by whoever renders."""

    families: list[Metric]
    desk: Exempting | None
    placement: Placing | None
    #: How firewalls stand, if there may be any.
    firewall: dict[str, Any] | None
    #: What they counted.
    totals: Totals


class Metrics(Collector):
    """Reads everything at each scrape; nothing is counted twice or kept between."""

    def __init__(
        self,
        fastpath: Fastpath,
        tcp: TcpListener,
        streams: Streams,
        routes: Routes,
        reloads: ReloadCounts,
        decisions: DecisionCounts,
        decisions_log: DecisionsLog,
        page: BlockPage,
    ) -> None:
        """Take what counts."""
        self._decisions_log = decisions_log
        self._page = page
        self._fastpath = fastpath
        self._tcp = tcp
        self._streams = streams
        self._routes = routes
        self._reloads = reloads
        self._decisions = decisions
        self.lists: list[dict[str, Any]] = []
        #: What became of each inventory, as a manifest has it.
        self.inventories: list[dict[str, Any]] = []
        #: Decisions on apps, in the file beside the ledger, that cannot be used.
        self.skipped_decisions = 0
        self.likely_forwarders = LikelyForwarders()
        #: Lists from elsewhere, once there may be any.
        self.fetches: Sources | None = None
        #: Zones for other resolvers, likewise.
        self.transfers: Zones | None = None
        self.desk: Exempting | None = None
        self.placement: Placing | None = None
        self.firewall: Enforcing | None = None
        #: Listeners of HTTP, by name.
        self.http: dict[str, HttpListener] = {}
        #: How late the reactor is.
        self.lag: ReactorLag | None = None
        #: Pieces of work that failed inside the daemon, by kind.
        self.internal_errors: Counter[str] = Counter()
        #: Gives the NAT64 prefixes, and where each is from.
        self.nat64: Callable[[], list[tuple[str, str]]] = list
        #: The number of the generation in force, as it is on the disk.
        self.generation = 0
        #: Whether a refused candidate lies there, and whether an older generation is held.
        self.is_staged = self.is_held = False

    def describe(self) -> Iterable[Metric]:
        """Declare nothing beforehand: names are checked by a test."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Give every metric."""
        return self.families(self.gather())

    def gather(self) -> Gathered:
        """Read what the reactor's thread changes, on that thread, and all of it small."""
        small = [*self._daemon_families(), *self._stream_families(), *self._http_families()]
        small += [*self._reload_families(), *self._list_families()]
        firewall = None if self.firewall is None else self.firewall.status()
        totals = Totals() if self.firewall is None else self.firewall.totals.copy()
        return Gathered(small, self.desk, self.placement, firewall, totals)

    def families(self, gathered: Gathered) -> Iterator[Metric]:
        """Give every metric, on any thread: what grows with apps, groups and devices is read here."""
        yield from self._native_families()
        yield self._decision_family()
        yield self._app_family()
        yield self._latency_family()
        yield from self._server_families()
        yield from gathered.families
        yield from _exemption_families(gathered.desk)
        yield from _device_families(gathered.placement)
        yield from _egress_families(gathered.firewall, gathered.totals)

    def _native_families(self) -> Iterator[Metric]:
        counters = self._fastpath.counters()
        taken = {prefix for _, labels, prefix in COUNTERS.values() if not labels}
        for name, (text, labels, prefix) in COUNTERS.items():
            family = CounterMetricFamily(name, text, labels=labels)
            if not labels:
                family.add_metric([], counters[prefix])
            else:
                for counter, value in sorted(counters.items()):
                    if counter.startswith(prefix + ".") and counter not in taken:
                        family.add_metric(counter[len(prefix) + 1 :].split("."), value)
            yield family
        faults = CounterMetricFamily("blockd_upstream_faults", "What went wrong with upstreams.", labels=["reason"])
        for counter, reason in UPSTREAM_FAULTS.items():
            faults.add_metric([reason], counters[counter])
        yield faults
        sizes = self._fastpath.sizes()
        yield _counter("blockd_cache_evicted", "Answers that made room.", sizes["cache.evicted"])
        for name, (text, size) in GAUGES.items():
            yield GaugeMetricFamily(name, text, value=sizes[size])

    def _daemon_families(self) -> Iterator[Metric]:
        yield _counter("blockd_decisions_log_lines", "Lines written to the decisions log.", self._decisions_log.written)
        lost = CounterMetricFamily(
            "blockd_log_lines_dropped",
            "Lines of the log that were dropped because stderr did not accept them in time, by kind.",
            labels=["kind"],
        )
        for kind in QUEUE_OCTETS:
            lost.add_metric([kind], log_writer.dropped()[kind])
        yield lost
        pages = CounterMetricFamily("blockd_block_page_requests", "Requests to the block page.", labels=["result"])
        for result, count in self._page.seen.items():
            pages.add_metric([result], count)
        yield pages
        errors = CounterMetricFamily(
            "blockd_internal_errors",
            "Pieces of work that failed by a bug, by kind; the others went on. The log has the first of each kind.",
            labels=["work"],
        )
        for work, count in sorted(self.internal_errors.items()):
            errors.add_metric([work], count)
        yield errors
        text = "Seconds that a timer of the event loop of Python was late, counted every 20 ms, through stalls too."
        lag = HistogramMetricFamily("blockd_reactor_lag_seconds", text)
        if self.lag is not None:
            bounds = [*(format(bound, "g") for bound in LAG_BOUNDS), "+Inf"]
            lag.add_metric([], list(zip(bounds, itertools.accumulate(self.lag.counts), strict=True)), self.lag.total)
        yield lag

    def _http_families(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily(
            "blockd_http_connections", "Open connections over HTTP, by listener.", labels=["listener"]
        )
        answers = CounterMetricFamily("blockd_http_answers", "Answers over HTTP.", labels=["listener", "status"])
        closed = CounterMetricFamily(
            "blockd_http_closed", "Connections over HTTP that a bound closed.", labels=["listener", "reason"]
        )
        for name, listener in self.http.items():
            connections.add_metric([name], listener.open_connections)
            for status, count in sorted(listener.counts.answers.items()):
                answers.add_metric([name, str(status)], count)
            for reason, count in sorted(listener.counts.closed.items()):
                closed.add_metric([name, reason], count)
        yield from (connections, answers, closed)

    def _decision_family(self) -> Metric:
        labels = ["group", "app", "action"]
        family = CounterMetricFamily("blockd_decisions", "Decisions, by group, app and action.", labels=labels)
        for key, count in sorted(self._decisions.read(self._fastpath).items()):
            family.add_metric(list(key), count)
        return family

    def _app_family(self) -> Metric:
        text = "1 for each live app, with the set of apps by which a policy names it first; empty where none does."
        family = GaugeMetricFamily("blockd_app_info", text, labels=["app", "set"])
        for app, name in sorted(self._decisions.sets.items()):
            family.add_metric([app, name], 1)
        return family

    def _latency_family(self) -> Metric:
        text = "Seconds from receiving a datagram to having sent its reply; of a hit, until its batch was sent."
        family = HistogramMetricFamily("blockd_answer_seconds", text, labels=["path"])
        for path, (counts, total) in self._fastpath.latencies().items():
            sums = list(itertools.accumulate(counts))
            bounds = [*(format(bound, "g") for bound in LATENCY_BOUNDS), "+Inf"]
            family.add_metric([path], list(zip(bounds, sums, strict=True)), total)
        return family

    def _server_families(self) -> Iterator[Metric]:
        sent = CounterMetricFamily("blockd_upstream_server_queries", "Queries to each upstream.", labels=["server"])
        answered = CounterMetricFamily("blockd_upstream_server_answers", "Answers of each upstream.", labels=["server"])
        waited = CounterMetricFamily(
            "blockd_upstream_server_wait_seconds", "Seconds from query to answer, added up.", labels=["server"]
        )
        faults = CounterMetricFamily(
            "blockd_upstream_server_faults", "Late and failed exchanges of each upstream.", labels=["server", "reason"]
        )
        up = GaugeMetricFamily("blockd_upstream_server_up", "Whether each upstream answers.", labels=["server"])
        states = GaugeMetricFamily(
            "blockd_upstream_server_state",
            "How each upstream does: those that are not up are asked after the others.",
            labels=["server", "state"],
        )
        speed = GaugeMetricFamily(
            "blockd_upstream_server_latency_seconds",
            "Seconds from query to answer, the latest counting most.",
            labels=["server"],
        )
        edns = GaugeMetricFamily(
            "blockd_upstream_server_edns",
            "Whether each upstream is asked with EDNS; one that lacks it is tried again after 15 minutes.",
            labels=["server"],
        )
        for server in self._fastpath.servers():
            endpoint = Endpoint.from_native(server["endpoint"])
            label = [str(endpoint)]
            health = self._routes.health.get(endpoint) or Health()
            sent.add_metric(label, server["sent"])
            answered.add_metric(label, server["answered"])
            waited.add_metric(label, server["waited_us"] / 1e6)
            faults.add_metric([*label, "late"], server["timed_out"])
            faults.add_metric([*label, "failed"], server["failed"])
            edns.add_metric(label, server["has_edns"])
            up.add_metric(label, health.state not in UNUSABLE_STATES)
            for state in STATES:
                states.add_metric([*label, state], health.state == state)
            if health.latency is not None:
                speed.add_metric(label, health.latency)
        yield from (sent, answered, waited, faults, up, states, speed, edns)
        prefixes = GaugeMetricFamily(
            "blockd_nat64_prefix",
            "NAT64 prefixes in which IPv4 addresses are recognised: 1 for each, by the config or by upstream servers.",
            labels=["prefix", "source"],
        )
        for prefix, source in self.nat64():
            prefixes.add_metric([prefix, source], 1)
        yield prefixes

    def _stream_families(self) -> Iterator[Metric]:
        counts = self._tcp.counts
        yield GaugeMetricFamily("blockd_tcp_connections", "Open connections.", value=self._tcp.open_connections)
        yield _counter("blockd_tcp_accepted", "Connections accepted.", counts.accepted)
        closed = CounterMetricFamily(
            "blockd_tcp_closed", "Connections refused or closed by a bound.", labels=["reason"]
        )
        closed.add_metric(["client"], counts.refused_client)
        closed.add_metric(["stranger"], counts.refused_stranger)
        closed.add_metric(["for_another"], counts.closed_for_another)
        closed.add_metric(["idle"], counts.closed_idle)
        closed.add_metric(["slow_reader"], counts.closed_slow_reader)
        closed.add_metric(["many_queries"], counts.closed_many_queries)
        closed.add_metric(["forged"], counts.closed_forged)
        yield closed
        yield GaugeMetricFamily("blockd_streams", "Questions under way over TCP.", value=self._streams.under_way)
        yield _counter("blockd_streams_refused", "Questions not asked over TCP: too many.", self._streams.refused)

    def _reload_families(self) -> Iterator[Metric]:
        reloads = CounterMetricFamily("blockd_config_reloads", "Reloads, by result.", labels=["result"])
        reloads.add_metric(["success"], self._reloads.succeeded)
        reloads.add_metric(["failure"], self._reloads.failed)
        yield reloads
        yield GaugeMetricFamily(
            "blockd_config_last_reload_successful",
            "Whether the last reload, or the start, took the config as it stands.",
            value=self._reloads.was_last_successful,
        )
        yield GaugeMetricFamily(
            "blockd_config_last_reload_success_timestamp_seconds",
            "When the policy in force was taken in.",
            value=self._reloads.last_success,
        )
        yield GaugeMetricFamily(
            "blockd_generation", "Number of the generation in force, as it is on the disk.", value=self.generation
        )
        yield GaugeMetricFamily(
            "blockd_generation_staged",
            "Whether a candidate lies there, refused or rolled back.",
            value=self.is_staged,
        )
        yield GaugeMetricFamily(
            "blockd_generation_held", "Whether an older generation is held since a rollback.", value=self.is_held
        )
        info = GaugeMetricFamily("blockd_build_info", "Version, as a label.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info

    def _list_families(self) -> Iterator[Metric]:
        kept = GaugeMetricFamily("blockd_list_names", "Names kept of an app's lists.", labels=["app"])
        skipped = GaugeMetricFamily("blockd_list_lines_skipped", "Lines skipped.", labels=["app", "reason"])
        names: Counter[str] = Counter()
        lines: Counter[tuple[str, str]] = Counter()
        for report in self.lists:
            names[report["app"]] += report["kept"]
            for reason, count in report["skipped"].items():
                lines[report["app"], reason] += count
        for app in names:
            kept.add_metric([app], names[app])
        for labels, count in sorted(lines.items()):
            skipped.add_metric(labels, count)
        yield from (kept, skipped)
        fetches = CounterMetricFamily(
            "blockd_list_fetches",
            "Fetches of an app's lists: new, unchanged, failed, refused.",
            labels=["app", "result"],
        )
        confirmed = GaugeMetricFamily(
            "blockd_list_confirmed_timestamp_seconds",
            "When the list of an app that was longest not seen to be current was; 0 for never.",
            labels=["app"],
        )
        if self.fetches is not None:
            for result, count in sorted(self.fetches.counts.items()):
                fetches.add_metric(result, count)
            for app, when in self.fetches.oldest().items():
                confirmed.add_metric([app], when)
        yield from (fetches, confirmed)
        yield from _zone_families(self.transfers)
        yield _skipped_family(self.placement, self.inventories, self.desk, self.skipped_decisions)
        yield GaugeMetricFamily(
            "blockd_likely_forwarders",
            "Addresses that asked for so many names in a minute that many devices are behind them.",
            len(self.likely_forwarders.found),
        )


def _device_families(placement: Placing | None) -> Iterator[Metric]:
    placed = GaugeMetricFamily(
        "blockd_device_leases",
        "Addresses with a lease, by the group that it puts them in, source and state.",
        labels=["group", "source", "state"],
    )
    current = GaugeMetricFamily("blockd_lease_file_current", "Whether a lease file is read.", labels=["file"])
    if placement is not None:
        for labels, count in sorted(placement.counts().items()):
            placed.add_metric(labels, count)
        for feed in placement.feeds:
            current.add_metric([str(feed.file)], feed.problem is None)
    yield from (placed, current)


def _skipped_family(
    placement: Placing | None, inventories: list[dict[str, Any]], desk: Exempting | None, decisions: int
) -> Metric:
    family = GaugeMetricFamily(
        "blockd_records_skipped",
        "Records of a file that cannot be used and were left out; the others count.",
        labels=["source", "file"],
    )
    for feed in placement.feeds if placement is not None else ():
        family.add_metric(["leases", str(feed.file)], feed.skipped.total)
    counts: Counter[str] = Counter()
    for report in inventories:
        counts[report["name"]] += sum(report["skipped"].values())
    for file, count in counts.items():
        family.add_metric(["inventory", file], count)
    if desk is not None:
        family.add_metric(["ledger", "ledger"], desk.skipped.total)
    if decisions:
        family.add_metric(["decisions", "decided.json"], decisions)
    return family


def _egress_families(status: dict[str, Any] | None, totals: Totals) -> Iterator[Metric]:
    connected = GaugeMetricFamily("blockd_egress_firewalls", "Firewalls that are connected.")
    current = GaugeMetricFamily(
        "blockd_egress_current",
        "Whether a firewall is connected, and every one enforces the generation in force without a problem.",
    )
    packets = CounterMetricFamily(
        "blockd_egress_packets",
        "Packets to apps, of all firewalls, by what became of them.",
        labels=["group", "app", "action"],
    )
    connections = CounterMetricFamily(
        "blockd_egress_connections",
        "TCP connections to apps that firewalls refused as they began.",
        labels=["group", "app"],
    )
    ended = CounterMetricFamily("blockd_egress_ended", "Open connections that were ended with an exemption.")
    elements = GaugeMetricFamily(
        "blockd_egress_elements",
        "What the largest firewall has in its sets of an app: learned, networks, exempt.",
        labels=["app", "set"],
    )
    learned = GaugeMetricFamily("blockd_egress_learned", "Addresses that answers said are an app's.", labels=["app"])
    drift = CounterMetricFamily("blockd_egress_drift", "Changes of our rules by somebody else that were repaired.")
    apply = GaugeMetricFamily("blockd_egress_apply_seconds", "How long the slowest firewall's last transaction took.")
    shared = GaugeMetricFamily("blockd_egress_shared", "Addresses of apps that names of nobody's apps lead to, too.")
    silent = GaugeMetricFamily(
        "blockd_egress_silent", "Devices that want what is an app's, as a firewall sees it, and that ask us nothing."
    )
    refused = CounterMetricFamily(
        "blockd_egress_refused", "Addresses that are not learned: reserved, protected, full.", labels=["reason"]
    )
    turned_away = CounterMetricFamily(
        "blockd_egress_turned_away",
        "Connections that were refused: share (of handshakes, one address), busy (the oldest handshake made room), "
        "certificate, firewalls (too many).",
        labels=["reason"],
    )
    if status is not None:
        for reason, count in sorted(status["turned_away"].items()):
            turned_away.add_metric([reason], count)
        peers = status["firewalls"]
        enforced = [one.get("generation") == status["generation"] and not one.get("problem") for one in peers]
        connected.add_metric([], len(peers))
        current.add_metric([], bool(peers) and all(enforced))
        for (what, group, app), count in totals.by("packets").items():
            if what == CONNECTIONS:
                connections.add_metric([group, app], count)
            else:
                packets.add_metric([group, app, what], count)
        ended.add_metric([], totals.sum("ended"))
        sizes: dict[tuple[str, str], int] = {}
        for kind in ("learned", "networks", "exempt"):
            for one in peers:
                for app, size in one.get(kind, {}).items():
                    sizes[app, kind] = max(size, sizes.get((app, kind), 0))
        for key, size in sorted(sizes.items()):
            elements.add_metric(key, size)
        for app, count in sorted(status["learned"].items()):
            learned.add_metric([app], count)
        drift.add_metric([], totals.sum("drift"))
        apply.add_metric([], max((one.get("took", 0.0) for one in peers), default=0.0))
        shared.add_metric([], len(status["shared"]))
        silent.add_metric([], len(status["silent"]))
        reasons = Counter(status["refused"])
        reasons.update({reason: count for (reason,), count in totals.by("refused").items()})
        for reason, count in sorted(reasons.items()):
            refused.add_metric([reason], count)
    # Samples only where firewalls are told anything: elsewhere none is missing.
    yield from (connected, current, packets, connections, ended, elements)
    yield from (learned, drift, apply, shared, silent, refused, turned_away)


def _exemption_families(desk: Exempting | None) -> Iterator[Metric]:
    states = GaugeMetricFamily("blockd_exemptions", "Exemptions by how they stand.", labels=["state"])
    expiring = GaugeMetricFamily(
        "blockd_exemptions_expiring", "Granted exemptions of more than 14 days that end within 7 days."
    )
    current = GaugeMetricFamily("blockd_ledger_current", "Whether the ledger of exemptions is read, and whole.")
    entries = GaugeMetricFamily("blockd_ledger_entries", "Entries in the ledger of exemptions.")
    if desk is not None:
        now = wall_clock()
        counts = desk.states(now)
        for state in ("requested", "approved", "active", "expired", "revoked"):
            states.add_metric([state], counts[state])
        expiring.add_metric([], desk.expiring(now))
        standing = desk.standing()
        current.add_metric([], standing["problem"] is None)
        entries.add_metric([], standing["entries"])
    yield from (states, expiring, current, entries)


def _zone_families(zones: Zones | None) -> Iterator[Metric]:
    serial = GaugeMetricFamily("blockd_zone_serial", "Serial of a group's response policy zone.", labels=["group"])
    records = GaugeMetricFamily("blockd_zone_records", "Its records.", labels=["group"])
    left_out = GaugeMetricFamily(
        "blockd_zone_not_expressed", "Rules that have no form in the zone.", labels=["group", "reason"]
    )
    transfers = CounterMetricFamily(
        "blockd_zone_transfers", "Transfers of the zone: AXFR, IXFR, refused.", labels=["group", "kind"]
    )
    known = [] if zones is None else [zone for zone in zones.zones.values() if "serial" in zone]
    for zone in known:
        serial.add_metric([zone["group"]], zone["serial"])
        records.add_metric([zone["group"]], zone["records"])
        for reason, count in sorted(zone["not_expressed"].items()):
            left_out.add_metric([zone["group"], reason], count)
    for labels, count in sorted(zones.transfers().items() if zones is not None else ()):
        transfers.add_metric(labels, count)
    is_current = GaugeMetricFamily(
        "blockd_zones_current",
        "Whether the zones for other resolvers say what is in force.",
        value=zones is None or zones.problem is None,
    )
    refused = CounterMetricFamily(
        "blockd_transfers_refused",
        "Connections, transfers and messages of zone transfers that were refused: stranger, share, busy, rate, "
        "signature, key, zone, secondary, notify, malformed, error.",
        labels=["reason"],
    )
    for reason, count in sorted(zones.refused().items() if zones is not None else ()):
        refused.add_metric([reason], count)
    yield from (serial, records, left_out, transfers, is_current, refused)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def wall_clock() -> float:
    """Seconds since 1970."""
    return time.time()
