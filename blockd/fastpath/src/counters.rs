//! Native counters: one lane a thread, written by it alone without locks or locked instructions, summed when read. Names
//! become metrics in Python.

use crate::decide::{Action, AppMask};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($variant:ident = $name:literal,)*) => {
        /// One thing that is counted; the name is a path that `observe/metrics.py` maps to a metric.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        #[allow(missing_docs)]
        pub enum Counter { $($variant,)* }

        impl Counter {
            /// The names, in the order of their numbers.
            pub const NAMES: &'static [&'static str] = &[$($name,)*];
        }
    };
}

counters! {
    QueriesUdp = "queries.udp",
    QueriesTcp = "queries.tcp",
    QueriesNotRead = "not_read",
    TypeA = "types.A",
    TypeAaaa = "types.AAAA",
    TypeHttps = "types.HTTPS",
    TypeSvcb = "types.SVCB",
    TypePtr = "types.PTR",
    TypeTxt = "types.TXT",
    TypeMx = "types.MX",
    TypeNs = "types.NS",
    TypeSoa = "types.SOA",
    TypeSrv = "types.SRV",
    TypeCname = "types.CNAME",
    TypeAny = "types.ANY",
    TypeDs = "types.DS",
    TypeDnskey = "types.DNSKEY",
    TypeOther = "types.other",
    UdpNoerror = "replies.udp.noerror",
    UdpFormerr = "replies.udp.formerr",
    UdpServfail = "replies.udp.servfail",
    UdpNxdomain = "replies.udp.nxdomain",
    UdpNotimp = "replies.udp.notimp",
    UdpRefused = "replies.udp.refused",
    UdpOther = "replies.udp.other",
    TcpNoerror = "replies.tcp.noerror",
    TcpFormerr = "replies.tcp.formerr",
    TcpServfail = "replies.tcp.servfail",
    TcpNxdomain = "replies.tcp.nxdomain",
    TcpNotimp = "replies.tcp.notimp",
    TcpRefused = "replies.tcp.refused",
    TcpOther = "replies.tcp.other",
    RepliesTruncated = "replies.truncated",
    RepliesNotSent = "replies.not_sent",
    DroppedNoQuery = "dropped.no_query",
    DroppedRate = "dropped.client_rate",
    DroppedRefusalRate = "dropped.refusal_rate",
    DroppedPolicy = "dropped.policy",
    DroppedRepeated = "dropped.repeated",
    DroppedPanic = "dropped.panic",
    DroppedForged = "dropped.forged",
    DroppedForwarderRate = "dropped.forwarder_rate",
    ConveyedMac = "conveyed.believed.mac",
    ConveyedSubnet = "conveyed.believed.subnet",
    ConveyedProxy = "conveyed.believed.proxy",
    IgnoredMac = "conveyed.ignored.mac",
    IgnoredSubnet = "conveyed.ignored.subnet",
    IgnoredProxy = "conveyed.ignored.proxy",
    RefusedClient = "refused.client",
    RefusedLoop = "refused.loop",
    RefusedRecursion = "refused.recursion_not_desired",
    RefusedKind = "refused.kind",
    BucketsEvicted = "admission.buckets_evicted",
    CacheHits = "cache.hits",
    CacheMisses = "cache.misses",
    CacheInserted = "cache.inserted",
    CacheRejudged = "cache.rejudged",
    CacheStale = "cache.stale",
    PendingCoalesced = "pending.coalesced",
    PendingShedAll = "pending.shed.in_all",
    PendingShedClient = "pending.shed.client",
    PendingShedOverload = "pending.shed.overload",
    PendingExpired = "pending.expired",
    UpstreamBlocked = "upstream.blocks.blocked",
    UpstreamCensored = "upstream.blocks.censored",
    UpstreamFiltered = "upstream.blocks.filtered",
    UpstreamNullAddress = "upstream.blocks.null_address",
    UpstreamSent = "upstream.sent",
    UpstreamAnswered = "upstream.answered",
    UpstreamTimedOut = "upstream.timed_out",
    UpstreamNotSent = "upstream.not_sent",
    UpstreamNoSocket = "upstream.no_socket",
    UpstreamFailed = "upstream.failed",
    UpstreamMalformed = "upstream.malformed",
    UpstreamChain = "upstream.chain",
    UpstreamWrongId = "upstream.wrong_id",
    UpstreamUnexpected = "upstream.unexpected",
    UpstreamTruncated = "upstream.truncated",
    UpstreamStreams = "upstream.streams",
    UpstreamExhausted = "upstream.exhausted",
    RingPushed = "ring.pushed",
    RingFull = "ring.full",
    JournalFull = "journal.lost.table_full",
    JournalRingFull = "journal.lost.ring_full",
    LearnLost = "learn.lost",
    LearnNotHeld = "learn.not_held",
    LearnLate = "learn.late",
}

/// Adds where nobody else writes: a locked instruction for each of a dozen counts would be a tenth of a hit.
fn add(cell: &AtomicU64, count: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(count), Relaxed);
}

/// The counters of one thread, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub struct Lane {
    values: [AtomicU64; Counter::NAMES.len()],
    latencies: [[AtomicU64; LATENCY_CELLS]; 2],
}

/// How long answers took: out of what is here already, or from upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Took {
    /// A hit, a block, anything answered at once: until the batch it came in was sent.
    Hit = 0,
    /// Somebody had to be asked.
    Miss = 1,
}

/// Upper bounds of the buckets, microseconds; one more is for what took longer.
pub const LATENCY_BOUNDS_US: [u64; 16] = [
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
];

/// The buckets, what took longer, and the microseconds of all.
const LATENCY_CELLS: usize = LATENCY_BOUNDS_US.len() + 2;

impl Default for Lane {
    fn default() -> Self {
        Self {
            values: [const { AtomicU64::new(0) }; Counter::NAMES.len()],
            latencies: [const { [const { AtomicU64::new(0) }; LATENCY_CELLS] }; 2],
        }
    }
}

impl Lane {
    /// Counts one.
    pub fn count(&self, counter: Counter) {
        add(&self.values[counter as usize], 1);
    }

    /// Counts so many.
    pub fn count_many(&self, counter: Counter, count: u64) {
        add(&self.values[counter as usize], count);
    }

    /// What was counted.
    pub fn read(&self, counter: usize) -> u64 {
        self.values[counter].load(Relaxed)
    }

    /// Counts so many answers that took so long.
    pub fn observe(&self, took: Took, us: u64, count: u64) {
        let cells = &self.latencies[took as usize];
        add(&cells[LATENCY_BOUNDS_US.partition_point(|&bound| bound < us)], count);
        add(&cells[LATENCY_CELLS - 1], us * count);
    }

    /// Answers in each bucket, and, last, the microseconds of all.
    pub fn latencies(&self, took: Took) -> impl Iterator<Item = u64> {
        self.latencies[took as usize].iter().map(|cell| cell.load(Relaxed))
    }

    /// Counts a question's type, rare ones folded.
    pub fn count_type(&self, qtype: u16) {
        self.count(match qtype {
            1 => Counter::TypeA,
            2 => Counter::TypeNs,
            5 => Counter::TypeCname,
            6 => Counter::TypeSoa,
            12 => Counter::TypePtr,
            15 => Counter::TypeMx,
            16 => Counter::TypeTxt,
            28 => Counter::TypeAaaa,
            33 => Counter::TypeSrv,
            43 => Counter::TypeDs,
            48 => Counter::TypeDnskey,
            64 => Counter::TypeSvcb,
            65 => Counter::TypeHttps,
            255 => Counter::TypeAny,
            _ => Counter::TypeOther,
        });
    }

    /// Counts a reply by transport and the rcode in its header.
    pub fn count_reply(&self, is_stream: bool, rcode: u8) {
        use Counter::*;
        const CODES: [[Counter; 7]; 2] = [
            [UdpNoerror, UdpFormerr, UdpServfail, UdpNxdomain, UdpNotimp, UdpRefused, UdpOther],
            [TcpNoerror, TcpFormerr, TcpServfail, TcpNxdomain, TcpNotimp, TcpRefused, TcpOther],
        ];
        self.count(CODES[usize::from(is_stream)][usize::from(rcode.min(6))]);
    }
}

/// View, app bit or none, action, count.
pub type DecisionCount = (usize, Option<usize>, &'static str, u64);

/// Decisions by view, app and action; they belong to one set of views, since only those say what a number means.
#[derive(Debug)]
pub struct Decisions {
    lanes: Vec<Box<[AtomicU64]>>,
}

const ACTIONS: usize = Action::NAMES.len();
const CELLS_A_VIEW: usize = (AppMask::WIDTH + 1) * ACTIONS;

impl Decisions {
    /// For so many lanes and views.
    pub fn new(lanes: usize, views: usize) -> Self {
        let lane = || (0..views * CELLS_A_VIEW).map(|_| AtomicU64::new(0)).collect();
        Self { lanes: (0..lanes).map(|_| lane()).collect() }
    }

    /// Counts one decision.
    pub fn count(&self, lane: usize, view: u16, app: Option<u8>, action: Action) {
        let app = app.map_or(0, |bit| usize::from(bit) + 1);
        let cell = usize::from(view) * CELLS_A_VIEW + app * ACTIONS + action as usize;
        add(&self.lanes[lane][cell], 1);
    }

    /// All that is not zero: view, app bit or none, action, count.
    pub fn read(&self) -> Vec<DecisionCount> {
        let cells = self.lanes.first().map_or(0, |lane| lane.len());
        (0..cells)
            .filter_map(|cell| {
                let sum: u64 = self.lanes.iter().map(|lane| lane[cell].load(Relaxed)).sum();
                let (view, rest) = (cell / CELLS_A_VIEW, cell % CELLS_A_VIEW);
                let app = (rest / ACTIONS).checked_sub(1);
                (sum > 0).then(|| (view, app, Action::NAMES[rest % ACTIONS], sum))
            })
            .collect()
    }
}
