//! The way of one query, in its only order: parse, admit, who, cache, name, decide, answer or wait.

use crate::admission::{Admission, Buckets};
use crate::busy::{self, Busy};
use crate::cache::{self, Cache, Entry, Hashed, Key};
use crate::chain::{Act, Chain, Met};
use crate::counters::{Counter, DecisionCount, Decisions, Lane, Took};
use crate::decide::{
    Action, AppMask, Rules, Sections, Template, Verdict, Views, Zone, decide, is_empty_non_terminal, is_live,
};
use crate::edns::{Edns, Opt};
use crate::endpoint::Endpoint;
use crate::identity::{Address, Conveyed, Identity};
use crate::inspect::{self, Answer, Meaning, OpenEnd, Part, Problem, Target, Targets, TtlBounds, Ttls};
use crate::journal::{Journal, Kind, Noted, Row};
use crate::learn::{Learned, Learner};
use crate::lock;
use crate::nat64::Nat64Prefix;
use crate::pending::{Followed, Follower, Joined, Origin, Pending, Taken, Through, Waiter};
use crate::prefixes::{Overlay, PrefixTable};
use crate::slots::{self, Folded, Slot, Wall};
use crate::sockets::{Bell, Outbound};
use crate::wire::{
    self, Asker, Counts, ExtendedError, FoldedName, HEADER_OCTETS, Question, Reject, error_code, rcode, rtype,
};
use arc_swap::ArcSwap;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Seconds that a failure is remembered (RFC 9520 3.2: at least one).
const FAILURE_TTL: u32 = 1;
/// Milliseconds within which a question is answered, if only with a failure.
pub const ANSWER_WITHIN_MS: u64 = 1_800;
/// Milliseconds after which nobody waits any more: no answers pile up for later (DNSBomb, CVE-2024-33655).
pub const GIVEN_UP_MS: u64 = 5_000;
/// How long a stale answer is served before anybody is asked anew, milliseconds (RFC 8767 5: at least 30 s).
const STALE_AGAIN_MS: u64 = 30_000;
/// TTL of a stale answer, seconds (RFC 8767 4).
const STALE_TTL: u32 = 30;
/// Work for Python that may wait; more is refused and counted.
const RING_BOUND: usize = 65_536;
/// Octets of replies to streams that may wait; a long reply beyond them is a failure instead.
const REPLY_OCTETS: usize = 64 << 20;
/// Rows of the decisions log that may wait, and that Python takes at once: each costs it about 50 us.
const LOG_BOUND: usize = RING_BOUND / 4;
const LOG_AT_ONCE: usize = 64;
/// REFUSED that one stranger gets a second.
const REFUSALS_A_SECOND: u32 = 10;
const BUCKETS: usize = 1 << 17;
/// Lanes beside those of the serve threads.
const LANES_BESIDE: usize = 3;
/// How long the addresses of the interfaces are believed, microseconds.
const OWN_ADDRESSES_US: u64 = 1_000_000;

/// One upstream server and how it does.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Queries sent.
    pub sent: AtomicU64,
    /// Usable answers.
    pub answered: AtomicU64,
    /// Exchanges that ran out of time.
    pub timed_out: AtomicU64,
    /// Answers that say it failed.
    pub failed: AtomicU64,
    /// Time-outs since the last answer.
    pub silent_in_a_row: AtomicU32,
    /// Microseconds from query to answer, added up.
    pub waited_us: AtomicU64,
    /// Queries that the system refused to send to it, for another reason than a full queue.
    pub not_sent: AtomicU64,
    /// The system's error of the last of these.
    pub send_error: AtomicI32,
    /// Whether it understands EDNS.
    pub edns: Edns,
}

impl Server {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            sent: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            silent_in_a_row: AtomicU32::new(0),
            waited_us: AtomicU64::new(0),
            not_sent: AtomicU64::new(0),
            send_error: AtomicI32::new(0),
            edns: Edns::default(),
        }
    }

    /// A query could not be sent.
    pub fn not_sent(&self, error: i32) {
        // A full queue says nothing of the way to this server.
        if !matches!(error, libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) {
            self.send_error.store(error, Relaxed);
            self.not_sent.fetch_add(1, Relaxed);
        }
    }
}

/// Views with their counters: what a count means is known by these views alone.
#[derive(Debug)]
pub struct PublishedViews {
    /// The views.
    pub views: Views,
    /// Decisions by them.
    pub decisions: Decisions,
    /// The generation.
    pub generation: u64,
    /// What devices get by the clock; numbers of slots come behind those of views.
    pub slots: Vec<Slot>,
    /// Devices with a view or a slot of their own.
    pub overlay: Overlay,
    /// Those whose word about others is believed.
    pub forwarders: HashMap<Address, u8>,
    /// How many queries a second one of them may bring.
    pub forwarder_rate: u32,
    /// MACs with a view or a slot.
    pub macs: HashMap<u64, u16>,
}

impl PublishedViews {
    /// The view of whoever asks, now: by the MAC that is conveyed where it is known, by the address else.
    pub fn view_of_identity(&self, identity: &Identity, wall: &Wall) -> u16 {
        match self.macs.get(&identity.mac) {
            Some(&own) if identity.mac != 0 => self.at(own, wall),
            _ => self.view_of(identity.address, wall),
        }
    }

    /// The view of an address now.
    pub fn view_of(&self, address: Address, wall: &Wall) -> u16 {
        let Some(own) = self.overlay.find(address) else { return self.views.view_of(address) };
        self.at(own, wall)
    }

    /// The view that a number of a view or a slot gives now.
    fn at(&self, own: u16, wall: &Wall) -> u16 {
        // The clock is read for those alone whose view it may change.
        match usize::from(own).checked_sub(self.views.views.len()).and_then(|at| self.slots.get(at)) {
            Some(slot) => slot.at(wall.now_ms()),
            None => own,
        }
    }

    /// How many views and slots there are.
    fn numbers(&self) -> usize {
        self.views.views.len() + self.slots.len()
    }
}

/// What is in force: one pointer to an immutable pair, and the order of upstreams.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Names, networks, answers.
    pub rules: Arc<Rules>,
    /// Their generation.
    pub rules_generation: u64,
    /// Policies and devices.
    pub views: Arc<PublishedViews>,
    /// Servers of each route, by its tag, the preferred first.
    pub order: Order,
    /// Those of the pairs before, with the time until when, milliseconds: questions that were under way when one was
    /// replaced are finished with its servers.
    pub former: Vec<(u64, Order)>,
}

/// Servers of each route, by its tag.
pub type Order = Vec<(u32, Vec<Arc<Server>>)>;

impl Pair {
    fn bounds(&self) -> TtlBounds {
        let tuning = &self.views.views.tuning;
        TtlBounds {
            floor: tuning.ttl_floor,
            ceiling: tuning.ttl_ceiling,
            negative_ceiling: tuning.negative_ttl_ceiling,
        }
    }

    /// Servers of a route; none when a reload removed it.
    pub fn servers(&self, tag: u32) -> &[Arc<Server>] {
        let former = self.former.iter().rev().flat_map(|(_, order)| order);
        self.order.iter().chain(former).find(|(route, _)| *route == tag).map_or(&[], |(_, servers)| servers)
    }
}

/// Work that waits for Python. The log has a queue of its own: a flood of decisions must not delay a client's reply.
#[derive(Default)]
struct Ring {
    urgent: VecDeque<Work>,
    log: VecDeque<Work>,
    /// Octets of the replies in `urgent`.
    reply_octets: usize,
}

impl Ring {
    fn waiting(&self) -> usize {
        self.urgent.len() + self.log.len()
    }
}

impl Work {
    fn reply_octets(&self) -> usize {
        if let Self::Reply { reply: Some(reply), .. } = self { reply.len() } else { 0 }
    }
}

/// What Python is asked to do.
#[derive(Debug)]
pub enum Work {
    /// Ask one of these servers over a stream.
    Stream {
        /// For `complete`.
        exchange: u64,
        /// In order, each with its query.
        servers: Vec<(Arc<Server>, Vec<u8>)>,
        /// What is left of the time in which clients want an answer.
        patience_ms: u64,
    },
    /// Write a line of the decisions log.
    Log(Row),
    /// Know where a name leads.
    Learned(Learned),
    /// Send this reply to the client of a stream.
    Reply {
        /// The token that came with the query.
        token: u64,
        /// The reply; none when policy is silence.
        reply: Option<Vec<u8>>,
    },
}

/// What a serve thread is asked to do by another thread.
#[derive(Debug)]
pub enum Command {
    /// Start the exchange of a question that is pending, by its serial number.
    Ask(Arc<Key>, u64),
    /// Ask a server for the root's name servers, to see whether it lives.
    Probe(Arc<Server>),
}

/// The way to a serve thread.
#[derive(Debug)]
pub struct Inbox {
    /// What it is asked.
    pub commands: Mutex<Vec<Command>>,
    /// Wakes it.
    pub bell: Bell,
    /// Turns of its loop, for the watchdog.
    pub beats: AtomicU64,
}

/// The ports that our exchanges leave from, to know our own questions when they come back.
#[derive(Debug)]
pub struct SourcePorts([Box<[AtomicU16]>; 2]);

impl Default for SourcePorts {
    fn default() -> Self {
        let ports = || (0..=u16::MAX).map(|_| AtomicU16::new(0)).collect();
        Self([ports(), ports()])
    }
}

impl SourcePorts {
    /// A socket was opened.
    pub fn opened(&self, is_ipv4: bool, port: u16) {
        self.0[usize::from(is_ipv4)][usize::from(port)].fetch_add(1, Relaxed);
    }
    /// A socket was closed.
    pub fn closed(&self, is_ipv4: bool, port: u16) {
        self.0[usize::from(is_ipv4)][usize::from(port)].fetch_sub(1, Relaxed);
    }
    fn is_ours(&self, identity: &Identity, is_own: impl FnOnce(IpAddr) -> bool) -> bool {
        let address = IpAddr::from(identity.address);
        self.0[usize::from(address.is_ipv4())][usize::from(identity.port)].load(Relaxed) != 0 && is_own(address)
    }
}

/// A stream exchange that Python holds.
#[derive(Debug)]
struct Stream {
    key: Arc<Key>,
    serial: u64,
    id: u16,
    since_ms: u64,
    is_backup: bool,
    /// Who may be asked, and whether with OPT.
    servers: Vec<(Arc<Server>, Opt)>,
}

/// What came of a stream exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Streamed {
    /// It is over.
    Done,
    /// Nothing of use: another server may be asked.
    Next,
    /// The same server is to be asked this.
    Again(Vec<u8>),
}

/// Everything that threads share.
pub struct Core {
    /// What is in force.
    pub pair: ArcSwap<Pair>,
    /// Answers.
    pub cache: Cache,
    /// Questions under way.
    pub pending: Pending,
    /// Counters, each lane written by one thread: one a serve thread, one for queries on streams, one for who publishes,
    /// and a last one for what is only explained.
    pub lanes: Vec<Lane>,
    /// One a serve thread.
    pub inboxes: Vec<Inbox>,
    /// Rung when there is work for Python.
    pub work_bell: Bell,
    /// Our exchanges' ports.
    pub source_ports: SourcePorts,
    /// Ends the serve threads.
    pub is_stopping: AtomicBool,
    /// Nothing more is read from clients; what was read is answered.
    pub is_draining: AtomicBool,
    /// Who asks for very many names.
    pub busy: Busy,
    /// Answers that a firewall is to know first.
    pub learner: Learner,
    journal: Journal,
    clients: Buckets,
    refusals: Buckets,
    work: Mutex<Ring>,
    streams: Mutex<HashMap<u64, Stream>>,
    next_exchange: AtomicU64,
    next_inbox: AtomicU64,
    servers: Mutex<HashMap<Endpoint, Arc<Server>>>,
    /// Views that were replaced, until nobody counts with them any more and Python has read them.
    retired: Mutex<Vec<Arc<PublishedViews>>>,
    /// When they were read, microseconds, and the addresses of this machine's interfaces.
    own_addresses: Mutex<(u64, Vec<IpAddr>)>,
    started: Instant,
    /// By which exemptions begin and end.
    pub wall: Wall,
}

/// What becomes of a query.
#[derive(Debug)]
pub enum Outcome {
    /// The reply is in the buffer.
    Reply,
    /// There is none.
    Silence,
    /// It comes later.
    Waiting,
    /// It comes later, and the exchange of the question of this serial number is to be started.
    Ask(Arc<Key>, u64),
}

/// A packet, read.
#[derive(Debug)]
pub enum Asked<'a> {
    /// A question, and where the cache has its answer.
    Question(Question<'a>, Hashed<'a>),
    /// No question.
    Reject(Reject<'a>),
    /// Reading it panicked.
    Panic,
}

/// Who asks and how: what the decision needs beside the bytes.
pub struct Arrival<'a> {
    /// The thread's lane.
    pub lane: usize,
    /// Who asks.
    pub identity: Identity,
    /// Where the reply goes, made only when the query has to wait.
    pub origin: &'a dyn Fn() -> Origin,
    /// Whether it came by TCP.
    pub is_stream: bool,
    /// Whether more comes than can be answered: then the question is not asked upstream.
    pub is_overloaded: bool,
}

/// To whom a reply goes, and what it needs of the query.
struct Recipient<'a> {
    lane: usize,
    view: u16,
    identity: &'a Identity,
    asker: &'a Asker,
    echo: &'a [u8],
    name: &'a FoldedName,
    qtype: u16,
    is_stream: bool,
}

/// What came of an attempt to answer.
#[derive(Debug)]
enum Said {
    /// The reply is written.
    Reply,
    /// There is none, by policy.
    Silence,
    /// The answer is this name's, behind these aliases.
    Alias(FoldedName, Box<Through>),
}

/// What an answer has from the one that it is made of.
#[derive(Debug, Clone, Copy, Default)]
struct Life {
    stale_until_ms: u64,
    error: Option<(u16, &'static str)>,
}

impl Life {
    fn of(entry: &Entry) -> Self {
        Self { stale_until_ms: entry.stale_until_ms(), error: entry.error }
    }
}

/// The query that asks a pending question over a stream.
fn stream_query(key: &Key, id: u16, opt: Opt) -> Vec<u8> {
    let mut query = Vec::new();
    let (name, has_opt) = (key.name.as_wire(), opt == Opt::With);
    wire::write_query(&mut query, id, name, key.qtype, key.dnssec_ok, key.checking_disabled, has_opt);
    query
}

/// An entry's records, for joining.
fn part_of(entry: &Entry, now_ms: u64) -> Part<'_> {
    let ttls = if entry.is_stale(now_ms) { Ttls::Stale(STALE_TTL) } else { Ttls::Aged(entry.age(now_ms)) };
    Part { rcode: entry.rcode, counts: entry.counts, body: entry.body(), ttls }
}

/// The error of an answer that has ended.
fn stale_error(rcode: u16) -> (u16, &'static str) {
    let code = if rcode == rcode::NXDOMAIN { 19 } else { 3 };
    (code, "no upstream server answers: this is the last answer that is known")
}

/// The answer to a name in a zone that is answered here, which has so many octets: response code and records.
fn prepared_part(rules: &Rules, zone: Zone, octets: usize, name: &FoldedName, qtype: u16) -> (u16, Counts, Vec<u8>) {
    let inside = name.wire_length() - octets;
    let template = &rules.templates[usize::from(zone.template(inside == 0))];
    let Sections { answer, authority, mut body } = template.sections(qtype).clone();
    let counts = Counts { answer, authority };
    own_soa(&mut body, counts, inside);
    (template.rcode, counts, body)
}

/// Has the SOA of a negative answer belong to the zone, which begins so many octets inside the question's name.
fn own_soa(body: &mut [u8], counts: Counts, inside: usize) {
    if inside == 0 || counts.answer > 0 || counts.authority == 0 {
        return;
    }
    let pointer = (0xC000u16 | (HEADER_OCTETS + inside) as u16).to_be_bytes();
    // The owner, and the first name of the data, where they are the zone's.
    for at in [0, 12] {
        if let Some(place) = body.get_mut(at..at + 2).filter(|place| **place == QUESTION_POINTER) {
            place.copy_from_slice(&pointer);
        }
    }
}

/// Why a query without RD gets nothing that is not in the cache (RFC 8914 4.21).
const NO_RECURSION: ExtendedError<'_> = ExtendedError {
    code: error_code::NOT_AUTHORITATIVE,
    text: b"the query does not ask for recursion, and the answer is not in the cache",
};

/// Why a type is refused.
fn error_of_kind(qtype: u16) -> ExtendedError<'static> {
    match qtype {
        rtype::IXFR | rtype::AXFR => {
            ExtendedError { code: error_code::NOT_AUTHORITATIVE, text: b"this resolver transfers no zone" }
        }
        _ => ExtendedError { code: error_code::NOT_SUPPORTED, text: b"" },
    }
}

/// The pointer to the question's name in a prepared answer.
const QUESTION_POINTER: [u8; 2] = [0xC0, HEADER_OCTETS as u8];

/// Runs what reads hostile bytes; a panic in there costs this packet and no more.
pub fn guarded<R>(work: impl FnOnce() -> R) -> Option<R> {
    GUARDED.with(|flag| flag.set(true));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok();
    GUARDED.with(|flag| flag.set(false));
    result
}

thread_local! {
    static GUARDED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Makes a panic anywhere but in [`guarded`] end the process: shared state may be torn, a supervisor restarts us.
pub fn abort_on_unguarded_panic() {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let trace = std::backtrace::Backtrace::capture();
        let has_trace = trace.status() == std::backtrace::BacktraceStatus::Captured;
        let trace = if has_trace { trace.to_string() } else { String::new() };
        // The usual hook would wait for whoever reads the log, and with it every client of this thread.
        crate::sockets::complain(&format!("thread '{}' {panic}\n{trace}\n", thread.name().unwrap_or("unnamed")));
        if !GUARDED.with(std::cell::Cell::get) {
            std::process::abort();
        }
    }));
}

impl Core {
    /// With this pair in force.
    pub fn new(threads: usize, cache_octets: usize, rules: Arc<Rules>, views: Views) -> std::io::Result<Self> {
        let inbox = || Ok(Inbox { commands: Mutex::default(), bell: Bell::new()?, beats: AtomicU64::new(0) });
        let core = Self {
            pair: ArcSwap::from_pointee(Pair {
                rules: Arc::new(Rules::default()),
                rules_generation: 0,
                views: Arc::new(PublishedViews {
                    decisions: Decisions::new(threads + LANES_BESIDE, 0),
                    views: Views {
                        views: Vec::new(),
                        devices: PrefixTable::default(),
                        unidentified: 0,
                        clients: PrefixTable::default(),
                        tuning: views.tuning.clone(),
                    },
                    generation: 0,
                    slots: Vec::new(),
                    overlay: Overlay::default(),
                    forwarders: HashMap::new(),
                    forwarder_rate: 0,
                    macs: HashMap::new(),
                }),
                order: Order::new(),
                former: Vec::new(),
            }),
            cache: Cache::new(cache_octets),
            pending: Pending::default(),
            lanes: (0..threads + LANES_BESIDE).map(|_| Lane::default()).collect(),
            inboxes: (0..threads).map(|_| inbox()).collect::<std::io::Result<_>>()?,
            work_bell: Bell::new()?,
            source_ports: SourcePorts::default(),
            is_stopping: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            busy: Busy::default(),
            learner: Learner::default(),
            journal: Journal::default(),
            clients: Buckets::new(BUCKETS),
            refusals: Buckets::new(BUCKETS / 16),
            work: Mutex::default(),
            streams: Mutex::default(),
            next_exchange: AtomicU64::new(1),
            next_inbox: AtomicU64::new(0),
            servers: Mutex::default(),
            retired: Mutex::default(),
            own_addresses: Mutex::default(),
            started: Instant::now(),
            wall: Wall::default(),
        };
        core.publish(rules, views, Folded::default()).map_err(std::io::Error::other)?;
        Ok(core)
    }

    /// Microseconds since the start.
    pub fn now_us(&self) -> u64 {
        // One second ahead of zero: a bucket at time zero is an empty one.
        self.started.elapsed().as_micros() as u64 + 1_000_000
    }

    /// Puts a pair in force, with what is folded into its views; equal rules keep their generation. Returns both
    /// generations, or what is wrong, and then nothing has changed.
    pub fn publish(&self, rules: Arc<Rules>, mut views: Views, folded: Folded) -> Result<(u64, u64), &'static str> {
        for (base, apps) in folded.views {
            let view = views.views.get(usize::from(base)).ok_or("there is no such view")?;
            views.views.push(slots::exempt(view, apps));
        }
        let count = views.views.len();
        if count + folded.slots.len() > usize::from(u16::MAX) {
            return Err("there are too many views and slots");
        }
        let is_known = |view: u16| usize::from(view) < count;
        if !folded.slots.iter().all(|slot| slot.views().all(is_known)) {
            return Err("there is no such view");
        }
        let numbers = count + folded.slots.len();
        if folded.macs.iter().any(|&(_, own)| usize::from(own) >= numbers)
            || folded.devices.iter().any(|&(_, own)| own.is_some_and(|own| usize::from(own) >= numbers))
        {
            return Err("there is no such view or slot");
        }
        let overlay = Overlay::default();
        if !overlay.change(&folded.devices) {
            return Err("there are too many devices of their own");
        }
        self.wall.seen(folded.floor_ms);
        let now = self.pair.load_full();
        let is_same = now.rules_generation > 0 && now.rules.digest == rules.digest;
        rules.nat64.learned.store(now.rules.nat64.learned.load_full());
        let (rules, rules_generation) =
            if is_same { (now.rules.clone(), now.rules_generation) } else { (rules, now.rules_generation + 1) };
        let generation = now.views.generation + 1;
        let order = self.configured_order(&rules);
        let now_ms = self.now_us() / 1000;
        let mut former: Vec<_> = now.former.iter().filter(|(until_ms, _)| *until_ms > now_ms).cloned().collect();
        former.push((now_ms + GIVEN_UP_MS, now.order.clone()));
        let decisions = Decisions::new(self.lanes.len(), views.views.len());
        lock(&self.retired).push(now.views.clone());
        self.pair.store(Arc::new(Pair {
            rules,
            rules_generation,
            views: Arc::new(PublishedViews {
                views,
                decisions,
                generation,
                slots: folded.slots,
                overlay,
                forwarders: folded.forwarders.into_iter().collect(),
                forwarder_rate: folded.forwarder_rate,
                macs: folded.macs.into_iter().collect(),
            }),
            order,
            former,
        }));
        drop(now);
        // What the rows' numbers mean is forgotten with the views they were decided by.
        self.write_rows(self.lanes.len() - 2, self.journal.close());
        // A server that no route names any more is forgotten with its last question.
        lock(&self.servers).retain(|_, server| Arc::strong_count(server) > 1);
        Ok((rules_generation, generation))
    }

    /// Looks through these prefixes from now on, beside those of the config; answers that are cached are judged anew.
    pub fn set_nat64(&self, prefixes: Vec<Nat64Prefix>) {
        let learned = Arc::new(prefixes);
        // First the prefixes, then the generation: whatever is judged by the new one has seen them.
        self.pair.load().rules.nat64.learned.store(learned);
        self.pair.rcu(|pair| Pair { rules_generation: pair.rules_generation + 1, ..Pair::clone(pair) });
    }

    fn configured_order(&self, rules: &Rules) -> Order {
        rules.routes.iter().map(|route| (route.tag, route.servers.iter().map(|s| self.server(s)).collect())).collect()
    }

    /// Puts each route's servers into a new order.
    pub fn set_order(&self, order: &HashMap<Endpoint, u32>) {
        self.pair.rcu(|pair| {
            let mut routes = self.configured_order(&pair.rules);
            for (_, servers) in &mut routes {
                // Stable: equals stay as the config has them.
                servers.sort_by_key(|s| order.get(&s.endpoint).copied().unwrap_or(0));
            }
            Pair { order: routes, ..Pair::clone(pair) }
        });
    }

    /// Gives addresses other views than the prefixes do, from the next query on, until the next publish: numbers of views
    /// mean something in one generation alone. The error says what is wrong; nothing is changed then.
    pub fn set_devices(&self, generation: u64, changes: &[(Address, Option<u16>)]) -> Result<(), &'static str> {
        let pair = self.pair.load();
        if pair.views.generation != generation {
            return Err("these are not the views in force");
        }
        if changes.iter().any(|&(_, own)| own.is_some_and(|own| usize::from(own) >= pair.views.numbers())) {
            return Err("there is no such view or slot");
        }
        if pair.views.overlay.change(changes) { Ok(()) } else { Err("there are too many devices of their own") }
    }

    /// Whether an address is this machine's, by its interfaces; asked only when a port is that of one of our exchanges.
    fn is_own_address(&self, address: IpAddr, now_us: u64) -> bool {
        let mut own = lock(&self.own_addresses);
        if now_us >= own.0 + OWN_ADDRESSES_US {
            *own = (now_us, crate::sockets::own_addresses());
        }
        address.is_loopback() || own.1.contains(&address)
    }

    /// The one record of a server, whatever routes name it.
    pub fn server(&self, endpoint: &Endpoint) -> Arc<Server> {
        let mut servers = lock(&self.servers);
        Arc::clone(servers.entry(endpoint.clone()).or_insert_with_key(|key| Arc::new(Server::new(key.clone()))))
    }

    /// The servers of all routes in force.
    pub fn all_servers(&self) -> Vec<Arc<Server>> {
        let pair = self.pair.load();
        let mut all: Vec<Arc<Server>> = pair.order.iter().flat_map(|(_, servers)| servers).cloned().collect();
        all.sort_by(|one, other| one.endpoint.cmp(&other.endpoint));
        all.dedup_by(|one, other| Arc::ptr_eq(one, other));
        all
    }

    /// Reads a query, and what stands before it; the name is written to `name`.
    pub fn read<'a>(&self, packet: &'a [u8], name: &'a mut FoldedName) -> Asked<'a> {
        let (packet, proxied) = wire::strip_proxy(packet);
        self.read_behind(proxied, packet, name)
    }

    /// Reads a query of a stream, whose PROXY header, if there was one, said this.
    pub fn read_behind<'a>(
        &self,
        proxied: Option<Option<Address>>,
        packet: &'a [u8],
        name: &'a mut FoldedName,
    ) -> Asked<'a> {
        match guarded(|| wire::parse_question(packet, name)) {
            Some(Ok(mut question)) => {
                question.conveyed.proxied = proxied;
                Asked::Question(question, self.cache.locate(&question, false))
            }
            Some(Err(reject)) => Asked::Reject(reject),
            None => Asked::Panic,
        }
    }

    /// Answers a query, refuses it, drops it or lets it wait.
    pub fn answer(
        &self,
        pair: &Pair,
        arrival: &Arrival<'_>,
        asked: &Asked<'_>,
        now_us: u64,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let lane = &self.lanes[arrival.lane];
        lane.count(if arrival.is_stream { Counter::QueriesTcp } else { Counter::QueriesUdp });
        match asked {
            Asked::Panic => {
                lane.count(Counter::DroppedPanic);
                return Outcome::Silence;
            }
            Asked::Reject(Reject::Silence) => {
                lane.count(Counter::DroppedNoQuery);
                return Outcome::Silence;
            }
            _ => {}
        }
        let told;
        let arrival = match asked {
            Asked::Question(question, _) if question.conveyed.is_some() => {
                let Some(identity) = self.told(pair, arrival, &question.conveyed, now_us) else {
                    return Outcome::Silence;
                };
                told = Arrival { identity, ..*arrival };
                &told
            }
            _ => arrival,
        };
        let views = &pair.views.views;
        let identity = &arrival.identity;
        let is_client = views.clients.find(identity.address) != PrefixTable::NONE;
        if !is_client {
            if self.refusals.admit(identity.bucket(), now_us, REFUSALS_A_SECOND, REFUSALS_A_SECOND)
                == Admission::Refused
            {
                lane.count(Counter::DroppedRefusalRate);
                return Outcome::Silence;
            }
        } else {
            let tuning = &views.tuning;
            match self.clients.admit(identity.bucket(), now_us, tuning.client_rate, tuning.client_burst) {
                Admission::Admitted => {}
                Admission::AdmittedByEviction => lane.count(Counter::BucketsEvicted),
                Admission::Refused => {
                    lane.count(Counter::DroppedRate);
                    return Outcome::Silence;
                }
            }
        }
        let (question, hashed) = match asked {
            Asked::Question(question, hashed) => (question, hashed),
            &Asked::Reject(Reject::Header { id, first_flags, rcode }) => {
                wire::write_header_alone(out, id, first_flags, rcode);
                return self.replied(lane, arrival.is_stream, out);
            }
            Asked::Reject(Reject::BadVersion(question)) => {
                return self.plain_reply(arrival, question, rcode::BADVERS, None, out);
            }
            Asked::Reject(Reject::Silence) | Asked::Panic => return Outcome::Silence,
        };
        if !is_client {
            lane.count(Counter::RefusedClient);
            // Without a text: a stranger's answer must not be much longer than what came.
            let error = ExtendedError { code: error_code::PROHIBITED, text: b"" };
            return self.plain_reply(arrival, question, rcode::REFUSED, Some(error), out);
        }
        if !arrival.is_stream && self.source_ports.is_ours(identity, |address| self.is_own_address(address, now_us)) {
            lane.count(Counter::RefusedLoop);
            let error =
                ExtendedError { code: 0, text: b"this query came from this resolver itself: a forwarding loop" };
            return self.plain_reply(arrival, question, rcode::SERVFAIL, Some(error), out);
        }
        lane.count_type(question.qtype);
        let counted = if arrival.is_stream { Counter::QueriesTcp } else { Counter::QueriesUdp };
        if lane.read(counted as usize) % busy::ONE_OF == 0 {
            self.busy.note(identity.address, hashed.hash);
        }
        if question.qtype == rtype::OPT {
            wire::write_header_alone(out, question.id, u8::from(question.recursion_desired), rcode::FORMERR);
            return self.replied(lane, arrival.is_stream, out);
        }
        // Zone transfers, transaction keys and mail agents' types are no questions for a resolver.
        if question.qclass != wire::CLASS_IN || (rtype::TKEY..=rtype::MAILA).contains(&question.qtype) {
            lane.count(Counter::RefusedKind);
            let error = error_of_kind(question.qtype);
            return self.plain_reply(arrival, question, rcode::REFUSED, Some(error), out);
        }
        self.decide_and_answer(pair, arrival, question, hashed, now_us, out)
    }

    /// Who asks, by what is conveyed: believed of a listed forwarder, and counted and forgotten of anybody else (who would
    /// be another device by it). None where nothing is to be answered.
    fn told(&self, pair: &Pair, arrival: &Arrival<'_>, conveyed: &Conveyed, now_us: u64) -> Option<Identity> {
        let lane = &self.lanes[arrival.lane];
        let kinds = pair.views.forwarders.get(&arrival.identity.address).copied().unwrap_or(0);
        let believed = conveyed.of_kinds(kinds);
        for (said, is_believed, yes, no) in [
            (conveyed.mac.is_some(), believed.mac.is_some(), Counter::ConveyedMac, Counter::IgnoredMac),
            (conveyed.subnet.is_some(), believed.subnet.is_some(), Counter::ConveyedSubnet, Counter::IgnoredSubnet),
            (conveyed.proxied.is_some(), believed.proxied.is_some(), Counter::ConveyedProxy, Counter::IgnoredProxy),
        ] {
            if said {
                lane.count(if is_believed { yes } else { no });
            }
        }
        if conveyed.proxied.is_some() && believed.proxied.is_none() {
            // Whoever writes such a header expects to be believed: an answer would be for somebody else.
            lane.count(Counter::DroppedForged);
            return None;
        }
        if kinds == 0 {
            return Some(arrival.identity);
        }
        // Its bucket is no address's: all bits are the other way round. One ceiling for all that a forwarder brings, whatever it says of whom; clients have their own beneath it.
        let (rate, whole) = (pair.views.forwarder_rate, !arrival.identity.bucket());
        if self.clients.admit(whole, now_us, rate, rate) == Admission::Refused {
            lane.count(Counter::DroppedForwarderRate);
            return None;
        }
        Some(believed.identity(arrival.identity))
    }

    fn decide_and_answer(
        &self,
        pair: &Pair,
        arrival: &Arrival<'_>,
        question: &Question<'_>,
        hashed: &Hashed<'_>,
        now_us: u64,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let lane = &self.lanes[arrival.lane];
        let rules = &pair.rules;
        let asker = Asker::of(question, arrival.is_stream);
        let view_id = pair.views.view_of_identity(&arrival.identity, &self.wall);
        let view = &pair.views.views.views[usize::from(view_id)];
        let name = question.name;
        let to = Recipient {
            lane: arrival.lane,
            view: view_id,
            identity: &arrival.identity,
            asker: &asker,
            echo: question.echo,
            name,
            qtype: question.qtype,
            is_stream: arrival.is_stream,
        };
        let now_ms = now_us / 1000;
        // A variant has a place of its own; few questions have one, so its place is not fetched ahead.
        let without_ech = view.strip_ech && matches!(question.qtype, rtype::SVCB | rtype::HTTPS);
        let of_variant = without_ech.then(|| self.cache.locate(question, true));
        let hashed = of_variant.as_ref().unwrap_or(hashed);
        let guard = cache::pin();
        if let Some(entry) = self.cached(pair, lane, name, hashed, now_ms, &guard) {
            lane.count(Counter::CacheHits);
            return match self.reply_from(pair, &to, entry, now_ms, out) {
                Said::Reply => Outcome::Reply,
                Said::Silence => Outcome::Silence,
                Said::Alias(target, through) => {
                    self.follow_asked(pair, arrival, &to, question, (&target, through), now_us, out)
                }
            };
        }
        drop(guard);
        let suffixes = rules.key.suffixes(name);
        let no_targets = Targets::NONE;
        let question_match = rules.find_for(&suffixes, name, question.qtype);
        let mut meaning = inspect::meaning(rules, question_match, &no_targets);
        let mut verdict = decide(view, meaning.asked, AppMask::EMPTY);
        if let Some(step) = self.walked(pair, &to, &mut meaning, &mut verdict, None::<&Targets>) {
            self.decided(pair, &to, &meaning, &no_targets, &verdict);
            return match self.take_step(pair, &to, &meaning, &step, None, out) {
                Said::Reply => Outcome::Reply,
                Said::Silence => Outcome::Silence,
                Said::Alias(target, through) => {
                    self.follow_asked(pair, arrival, &to, question, (&target, through), now_us, out)
                }
            };
        }
        let count = || self.decided(pair, &to, &meaning, &no_targets, &verdict);
        if verdict.action == Action::Block {
            count();
            let said = self.write_block(pair, &to, &meaning, &verdict, out);
            return if matches!(said, Said::Silence) { Outcome::Silence } else { Outcome::Reply };
        }
        let zone = rules.zone_for(&suffixes, name, question.qtype);
        let template = match zone {
            Some((zone, octets)) if zone.is_answered_here() => {
                Some((zone.template(octets == name.wire_length()), octets))
            }
            _ if question.qtype == rtype::ANY => Some((rules.any_template, question.name.wire_length())),
            _ => None,
        };
        if let Some((template, zone_octets)) = template {
            count();
            self.write_template(rules, &to, question, template, zone_octets, out);
            return Outcome::Reply;
        }
        if !question.recursion_desired {
            count();
            lane.count(Counter::RefusedRecursion);
            return self.plain_reply(arrival, question, rcode::REFUSED, Some(NO_RECURSION), out);
        }
        lane.count(Counter::CacheMisses);
        if arrival.is_overloaded {
            lane.count(Counter::PendingShedOverload);
            count();
            let error = ExtendedError { code: 0, text: b"this resolver is asked more than it can answer" };
            return self.plain_reply(arrival, question, rcode::SERVFAIL, Some(error), out);
        }
        let route = if let Some((Zone::Route(route), _)) = zone { usize::from(route) } else { 0 };
        let key = Arc::new(Key {
            hash: hashed.hash,
            name: *name,
            qtype: question.qtype,
            dnssec_ok: asker.is_dnssec_ok(),
            checking_disabled: asker.checking_disabled,
            without_ech,
            route: rules.routes[route].tag,
        });
        let waiter = Waiter {
            asker: asker.clone(),
            echo: question.echo.into(),
            identity: arrival.identity,
            origin: (arrival.origin)(),
            received_us: now_us,
            through: None,
        };
        let outcome = self.join(pair, &to, key, waiter, now_ms, out);
        if matches!(outcome, Outcome::Reply) {
            // Shed: it is a decision all the same.
            count();
        }
        outcome
    }

    /// Has a question wait for its answer; when too many do, the reply says so.
    fn join(
        &self,
        pair: &Pair,
        to: &Recipient<'_>,
        key: Arc<Key>,
        waiter: Waiter,
        now_ms: u64,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let (lane, tuning) = (&self.lanes[to.lane], &pair.views.views.tuning);
        match self.pending.join(&key, waiter, tuning.pending_in_all, tuning.pending_a_client, now_ms) {
            Joined::First(serial) => Outcome::Ask(key, serial),
            Joined::Coalesced => {
                lane.count(Counter::PendingCoalesced);
                Outcome::Waiting
            }
            Joined::Repeated => {
                lane.count(Counter::DroppedRepeated);
                Outcome::Silence
            }
            over @ (Joined::OverAll | Joined::OverClient) => {
                lane.count(if over == Joined::OverAll { Counter::PendingShedAll } else { Counter::PendingShedClient });
                self.failure(to, b"too many questions are under way", out)
            }
        }
    }

    /// SERVFAIL, and why.
    fn failure(&self, to: &Recipient<'_>, text: &[u8], out: &mut Vec<u8>) -> Outcome {
        let error = Some(ExtendedError { code: 0, text });
        wire::write_reply(out, to.asker, to.echo, rcode::SERVFAIL, false, Counts::default(), &[], error);
        self.replied(&self.lanes[to.lane], to.is_stream, out)
    }

    /// Walks the response policy zones where no app has decided; gives the rule to obey, and puts its app in the verdict.
    fn walked(
        &self,
        pair: &Pair,
        to: &Recipient<'_>,
        meaning: &mut Meaning,
        verdict: &mut Verdict,
        targets: Option<&Targets<impl AsRef<[u8]>>>,
    ) -> Option<Met> {
        let chain = pair.rules.chain.as_deref()?;
        if !matches!(verdict.action, Action::Pass | Action::Monitor) {
            return None;
        }
        // Names that are answered here, or asked of servers of their own, are ours: no zone has a word about them. The root
        // is everybody's, whoever is asked.
        let own = pair.rules.zone_of(&pair.rules.key.suffixes(to.name), to.name);
        if own.is_some_and(|(_, octets)| octets > 1) {
            return None;
        }
        let view = &pair.views.views.views[usize::from(to.view)];
        let walked =
            chain.walk(pair.rules.key, view, to.identity.address, to.name, to.qtype, targets, &pair.rules.nat64);
        meaning.asked = meaning.asked.or(walked.watched);
        *verdict = decide(view, meaning.asked, meaning.found);
        let met = walked.met?;
        match chain.acts[usize::from(met.act)] {
            Act::Pass => return None,
            Act::TcpOnly if to.is_stream => return None,
            _ => {}
        }
        let bit = AppMask::of(met.app.into());
        let side = if met.behind.is_none() { &mut meaning.asked } else { &mut meaning.found };
        *side = side.or(bit);
        *verdict = Verdict { action: Action::Block, app: Some(met.app), touched: verdict.touched.or(bit) };
        Some(met)
    }

    /// Applies a rule of a zone. `known` is the answer whose aliases lead to the name that met the rule; they are kept.
    fn take_step(
        &self,
        pair: &Pair,
        to: &Recipient<'_>,
        meaning: &Meaning,
        step: &Met,
        known: Option<Part<'_>>,
        out: &mut Vec<u8>,
    ) -> Said {
        const NOTHING: Part<'_> =
            Part { rcode: rcode::NOERROR, counts: Counts { answer: 0, authority: 0 }, body: &[], ttls: Ttls::Aged(0) };
        let acts = pair.rules.chain.as_deref().map_or(&[][..], |chain| &chain.acts);
        let question = (to.qtype, to.asker.is_dnssec_ok());
        let at = step.behind.unwrap_or(*to.name);
        let head = known.filter(|_| step.behind.is_some()).unwrap_or(NOTHING);
        match acts.get(usize::from(step.act)) {
            Some(Act::Template(template)) => {
                let prepared = &pair.rules.templates[usize::from(*template)];
                let Sections { answer, authority, body } = prepared.sections(to.qtype);
                let counts = Counts { answer: *answer, authority: *authority };
                let tail = Part { rcode: prepared.rcode, counts, body, ttls: Ttls::Aged(0) };
                // Where no alias leads to the name (a target of HTTPS does not), the answer is the question's.
                let joined = step.behind.filter(|_| !prepared.is_silent).and_then(|at| {
                    guarded(|| inspect::join(to.name, question, head, &at, tail, pair.bounds())).and_then(Result::ok)
                });
                match joined {
                    Some(Answer { rcode, counts, body, .. }) => {
                        self.write_prepared_parts(to, prepared, (rcode, counts, &body), out)
                    }
                    None => self.write_prepared(pair, to, meaning, *template, out),
                }
            }
            Some(Act::Alias(target, is_prefixed, ttl)) => {
                let Some(target) = Chain::alias(target, *is_prefixed, &at) else {
                    // As of a DNAME (RFC 6672 2.2).
                    let (code, none) = (rcode::YXDOMAIN, Counts::default());
                    wire::write_reply(out, to.asker, to.echo, code, false, none, &[], None);
                    self.replied(&self.lanes[to.lane], to.is_stream, out);
                    return Said::Reply;
                };
                let aliased =
                    |head, at: &FoldedName| inspect::alias(to.name, question, head, at, (&target, *ttl), pair.bounds());
                let made = guarded(|| aliased(head, &at).or_else(|_| aliased(NOTHING, to.name))).and_then(Result::ok);
                let Some(head) = made else {
                    self.failure(to, b"the name that policy leads to cannot be given", out);
                    return Said::Reply;
                };
                if to.qtype == rtype::CNAME {
                    // The alias is what was asked for.
                    let (code, counts) = (rcode::NOERROR, head.counts);
                    if wire::write_reply(out, to.asker, to.echo, code, false, counts, &head.body, None) {
                        self.lanes[to.lane].count(Counter::RepliesTruncated);
                    }
                    self.replied(&self.lanes[to.lane], to.is_stream, out);
                    return Said::Reply;
                }
                Said::Alias(target, Box::new(Through { name: *to.name, head }))
            }
            Some(Act::TcpOnly) => {
                wire::write_reply(out, to.asker, to.echo, rcode::NOERROR, false, Counts::default(), &[], None);
                wire::set_truncated(out);
                self.lanes[to.lane].count(Counter::RepliesTruncated);
                self.replied(&self.lanes[to.lane], to.is_stream, out);
                Said::Reply
            }
            Some(Act::Pass) | None => Said::Silence,
        }
    }

    /// Answers a question by another name's answer, as far as questions of its kind are answered at all.
    fn follow_asked(
        &self,
        pair: &Pair,
        arrival: &Arrival<'_>,
        to: &Recipient<'_>,
        question: &Question<'_>,
        (target, through): (&FoldedName, Box<Through>),
        now_us: u64,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if question.qtype == rtype::ANY {
            self.write_template(&pair.rules, to, question, pair.rules.any_template, to.name.wire_length(), out);
            return Outcome::Reply;
        }
        if !question.recursion_desired {
            self.lanes[to.lane].count(Counter::RefusedRecursion);
            return self.plain_reply(arrival, question, rcode::REFUSED, Some(NO_RECURSION), out);
        }
        let times = (now_us, now_us);
        self.follow(pair, to, target, through, (arrival.origin)(), times, arrival.is_overloaded, out)
    }

    /// Answers a question by another name's answer, at once or when there is one; no zone has a word about that name.
    fn follow(
        &self,
        pair: &Pair,
        to: &Recipient<'_>,
        target: &FoldedName,
        through: Box<Through>,
        origin: Origin,
        (received_us, now_us): (u64, u64),
        is_overloaded: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let (asker, now_ms) = (to.asker, now_us / 1000);
        let key = match self.follow_at_once(pair, to, target, &through, now_ms, out) {
            Ok(outcome) => return outcome,
            Err(key) => Arc::new(key),
        };
        if is_overloaded {
            self.lanes[to.lane].count(Counter::PendingShedOverload);
            return self.failure(to, b"this resolver is asked more than it can answer", out);
        }
        let waiter = Waiter {
            asker: asker.clone(),
            echo: to.echo.into(),
            identity: *to.identity,
            origin,
            received_us,
            through: Some(through),
        };
        self.join(pair, to, key, waiter, now_ms, out)
    }

    /// Answers a question by another name's answer that is known; gives the question to ask where none is.
    fn follow_at_once(
        &self,
        pair: &Pair,
        to: &Recipient<'_>,
        target: &FoldedName,
        through: &Through,
        now_ms: u64,
        out: &mut Vec<u8>,
    ) -> Result<Outcome, Key> {
        let (rules, asker) = (&pair.rules, to.asker);
        let view = &pair.views.views.views[usize::from(to.view)];
        let without_ech = view.strip_ech && matches!(to.qtype, rtype::SVCB | rtype::HTTPS);
        let route = match rules.zone_for(&rules.key.suffixes(target), target, to.qtype) {
            Some((zone, octets)) if zone.is_answered_here() => {
                let (rcode, counts, body) = prepared_part(rules, zone, octets, target, to.qtype);
                let tail = Part { rcode, counts, body: &body, ttls: Ttls::Aged(0) };
                return Ok(self.write_through(pair, to, through, target, tail, Life::default(), out));
            }
            Some((Zone::Route(route), _)) => usize::from(route),
            _ => 0,
        };
        let hashed =
            self.cache.locate_name(target, to.qtype, asker.is_dnssec_ok(), asker.checking_disabled, without_ech);
        let guard = cache::pin();
        if let Some(entry) = self.cached(pair, &self.lanes[to.lane], target, &hashed, now_ms, &guard) {
            return Ok(self.write_through(pair, to, through, target, part_of(entry, now_ms), Life::of(entry), out));
        }
        Err(Key {
            hash: hashed.hash,
            name: *target,
            qtype: to.qtype,
            dnssec_ok: asker.is_dnssec_ok(),
            checking_disabled: asker.checking_disabled,
            without_ech,
            route: rules.routes[route].tag,
        })
    }

    /// Writes another name's answer behind the aliases that lead to it.
    fn write_through(
        &self,
        pair: &Pair,
        to: &Recipient<'_>,
        through: &Through,
        target: &FoldedName,
        tail: Part<'_>,
        life: Life,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let (question, head) = ((to.qtype, to.asker.is_dnssec_ok()), through.head.as_part());
        let joined = guarded(|| inspect::join(to.name, question, head, target, tail, pair.bounds()));
        let Some(Ok(answer)) = joined else {
            return self.failure(to, b"the name that policy leads to cannot be given", out);
        };
        let key = Key {
            hash: 0,
            name: *to.name,
            qtype: to.qtype,
            dnssec_ok: to.asker.is_dnssec_ok(),
            checking_disabled: to.asker.checking_disabled,
            without_ech: false,
            route: 0,
        };
        let now_ms = self.now_us() / 1000;
        let nothing = inspect::judge(&pair.rules, target, to.qtype, &Targets::NONE);
        let mut entry = Entry::new(&key, answer, nothing, pair.rules_generation, now_ms);
        entry.error = life.error.or(entry.error);
        entry.serve_stale_until(life.stale_until_ms);
        self.write_entry(pair, to, &entry, now_ms, out);
        Outcome::Reply
    }

    /// What the cache holds for a question, judged by the rules in force.
    ///
    /// An entry of another generation is looked at once: a name that is answered here by now, or whose questions take
    /// another route, has none.
    fn cached<'g>(
        &self,
        pair: &Pair,
        lane: &Lane,
        name: &FoldedName,
        hashed: &Hashed<'_>,
        now_ms: u64,
        guard: &'g cache::Guard,
    ) -> Option<&'g Entry> {
        let entry = self.cache.get(hashed, now_ms, guard)?;
        if entry.rules_generation == pair.rules_generation {
            return Some(entry);
        }
        let route = pair.rules.route_for(&pair.rules.key.suffixes(name), name, hashed.qtype());
        if route != Some(entry.route) {
            return None;
        }
        lane.count(Counter::CacheRejudged);
        let entry = self.cache.judge_anew(entry, name, &pair.rules, pair.rules_generation, guard);
        if self.learner.is_on.load(Relaxed) {
            self.teach_again(lane, name, entry);
        }
        Some(entry)
    }

    /// Decides on an entry and writes the reply, or says whose answer it is.
    fn reply_from(&self, pair: &Pair, to: &Recipient<'_>, entry: &Entry, now_ms: u64, out: &mut Vec<u8>) -> Said {
        let view = &pair.views.views.views[usize::from(to.view)];
        let mut verdict = decide(view, entry.meaning.asked, entry.meaning.found);
        if pair.rules.chain.is_some() {
            let mut meaning = entry.meaning;
            let step = self.walked(pair, to, &mut meaning, &mut verdict, Some(&entry.targets()));
            if let Some(step) = step {
                self.decided(pair, to, &meaning, &entry.targets(), &verdict);
                return self.take_step(pair, to, &meaning, &step, Some(part_of(entry, now_ms)), out);
            }
        }
        self.decided(pair, to, &entry.meaning, &entry.targets(), &verdict);
        if verdict.action == Action::Block {
            return self.write_block(pair, to, &entry.meaning, &verdict, out);
        }
        self.write_entry(pair, to, entry, now_ms, out);
        Said::Reply
    }

    /// Writes what an entry says, to a view that may have it.
    fn write_entry(&self, pair: &Pair, to: &Recipient<'_>, entry: &Entry, now_ms: u64, out: &mut Vec<u8>) {
        let (lane, views) = (&self.lanes[to.lane], &pair.views.views);
        let Meaning { asked, found, .. } = entry.meaning;
        let is_authentic =
            entry.is_authentic && views.tuning.trust_ad && (to.asker.authentic_data || to.asker.is_dnssec_ok());
        let is_stale = entry.is_stale(now_ms);
        let error = match entry.error {
            _ if is_stale => {
                lane.count(Counter::CacheStale);
                Some(stale_error(entry.rcode))
            }
            error => error,
        };
        let error = error.map(|(code, text)| ExtendedError { code, text: text.as_bytes() });
        let is_cut =
            wire::write_reply(out, to.asker, to.echo, entry.rcode, is_authentic, entry.counts, entry.body(), error);
        if is_cut {
            lane.count(Counter::RepliesTruncated);
        } else {
            let view = &views.views[usize::from(to.view)];
            // What a zone's rule would do is not in the masks: where any are watched, all is short.
            let is_watched = pair.rules.chain.is_some() && !view.monitor.is_empty();
            let most = if is_watched || is_live(view, asked, found) { views.tuning.live_ttl } else { u32::MAX };
            let age = entry.age(now_ms);
            let body_at = HEADER_OCTETS + to.echo.len();
            for place in entry.ttl_places() {
                let at = body_at + place;
                if let Some(octets) = out.get_mut(at..at + 4) {
                    let stored = u32::from_be_bytes([octets[0], octets[1], octets[2], octets[3]]);
                    let left = if is_stale { STALE_TTL } else { stored.saturating_sub(age) };
                    octets.copy_from_slice(&left.min(most).to_be_bytes());
                }
            }
        }
        self.replied(lane, to.is_stream, out);
    }

    /// Writes the answer of the view for the app that decided; false is silence.
    fn write_block(
        &self,
        pair: &Pair,
        to: &Recipient<'_>,
        meaning: &Meaning,
        verdict: &Verdict,
        out: &mut Vec<u8>,
    ) -> Said {
        let view = &pair.views.views.views[usize::from(to.view)];
        let app = usize::from(verdict.app.unwrap_or(0));
        self.write_prepared(pair, to, meaning, view.answers[app], out)
    }

    /// Writes a prepared answer.
    fn write_prepared(
        &self,
        pair: &Pair,
        to: &Recipient<'_>,
        meaning: &Meaning,
        template: u16,
        out: &mut Vec<u8>,
    ) -> Said {
        let lane = &self.lanes[to.lane];
        let rules = &pair.rules;
        let view = &pair.views.views.views[usize::from(to.view)];
        let template = &rules.templates[usize::from(template)];
        if template.is_silent {
            lane.count(Counter::DroppedPolicy);
            return Said::Silence;
        }
        let exists = template.rcode == rcode::NXDOMAIN
            && meaning.exact.is_some_and(|set| is_empty_non_terminal(view, &rules.sets[set as usize]));
        let code = if exists { rcode::NOERROR } else { template.rcode };
        let Sections { answer, authority, body } = template.sections(to.qtype);
        let counts = Counts { answer: *answer, authority: *authority };
        self.write_prepared_parts(to, template, (code, counts, body), out)
    }

    /// Writes these records with the error of a prepared answer.
    fn write_prepared_parts(
        &self,
        to: &Recipient<'_>,
        template: &Template,
        (code, counts, body): (u16, Counts, &[u8]),
        out: &mut Vec<u8>,
    ) -> Said {
        let wants_structured = to.asker.edns.is_some_and(|edns| edns.wants_structured);
        let error = template.error.as_ref().map(|(code, text)| {
            let structured = template.structured_error.as_ref().filter(|_| wants_structured);
            ExtendedError { code: *code, text: structured.unwrap_or(text) }
        });
        let lane = &self.lanes[to.lane];
        if wire::write_reply(out, to.asker, to.echo, code, false, counts, body, error) {
            lane.count(Counter::RepliesTruncated);
        }
        self.replied(lane, to.is_stream, out);
        Said::Reply
    }

    /// Writes a prepared answer; the SOA of a local zone belongs to the zone's own name.
    fn write_template(
        &self,
        rules: &Rules,
        to: &Recipient<'_>,
        question: &Question<'_>,
        template: u16,
        zone_octets: usize,
        out: &mut Vec<u8>,
    ) {
        let template = &rules.templates[usize::from(template)];
        let Sections { answer, authority, body } = template.sections(question.qtype);
        let counts = Counts { answer: *answer, authority: *authority };
        let error = template.error.as_ref().map(|(code, text)| ExtendedError { code: *code, text });
        let is_cut = wire::write_reply(out, to.asker, question.echo, template.rcode, false, counts, body, error);
        if !is_cut {
            own_soa(&mut out[HEADER_OCTETS + question.echo.len()..], counts, question.name.wire_length() - zone_octets);
        }
        self.replied(&self.lanes[to.lane], to.is_stream, out);
    }

    fn plain_reply(
        &self,
        arrival: &Arrival<'_>,
        question: &Question<'_>,
        rcode: u16,
        error: Option<ExtendedError<'_>>,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let asker = Asker::of(question, arrival.is_stream);
        wire::write_reply(out, &asker, question.echo, rcode, false, Counts::default(), &[], error);
        self.replied(&self.lanes[arrival.lane], arrival.is_stream, out)
    }

    fn replied(&self, lane: &Lane, is_stream: bool, out: &[u8]) -> Outcome {
        lane.count_reply(is_stream, out[3] & 0x0F);
        Outcome::Reply
    }

    /// A question's answer is here, from whatever transport: stores it and replies to all who wait.
    pub fn finish(&self, lane_at: usize, key: &Key, answer: Answer, replies: &mut Outbound) {
        let is_open = answer.open_end.is_some_and(|end| {
            let pair = self.pair.load();
            is_elsewhere(&pair.rules, Some(key.route), key.qtype, &end)
        });
        if is_open { self.go_on(lane_at, key, answer, replies) } else { self.conclude(lane_at, key, answer, replies) }
    }

    /// Finishes a complete answer: the firewall learns its addresses, then it is stored and sent to all waiting clients.
    fn conclude(&self, lane_at: usize, key: &Key, answer: Answer, replies: &mut Outbound) {
        let answer = if self.learner.is_on.load(Relaxed) { self.teach(lane_at, key, answer) } else { Some(answer) };
        if let Some(answer) = answer {
            self.settle(lane_at, key, answer, replies);
        }
    }

    /// Has the servers of the name asked to which an answer leads, and of which it has no data.
    fn go_on(&self, lane_at: usize, key: &Key, answer: Answer, replies: &mut Outbound) {
        let answer = Arc::new(answer);
        let Some((followers, own)) = self.pending.turn(key, &answer) else { return };
        let answered_by = Some(key.route);
        for of in followers {
            let tail = (answer.as_part(), answer.is_authentic);
            match self.joined(&self.pair.load(), &of, tail, answer.extended_error()) {
                Ok(answer) => self.advance(lane_at, Follower { answer, answered_by, ..of }, replies),
                Err(failure) => self.fail_waiting(lane_at, &of, failure, replies),
            }
        }
        if let Some(of) = own {
            self.advance(lane_at, of, replies);
        }
    }

    /// Follows a question's aliases until the answer is complete or an exchange is needed.
    fn advance(&self, lane_at: usize, mut of: Follower, replies: &mut Outbound) {
        loop {
            let pair = self.pair.load();
            let rules = &pair.rules;
            let open = of.answer.open_end.filter(|end| is_elsewhere(rules, of.answered_by, of.key.qtype, end));
            let Some(OpenEnd { name, .. }) = open else {
                let answer = Arc::try_unwrap(of.answer).unwrap_or_else(|shared| Answer::clone(&shared));
                return self.conclude(lane_at, &of.key, answer, replies);
            };
            let key = &of.key;
            let route = match rules.zone_for(&rules.key.suffixes(&name), &name, key.qtype) {
                Some((zone, octets)) if zone.is_answered_here() => {
                    let (rcode, counts, body) = prepared_part(rules, zone, octets, &name, key.qtype);
                    let tail = Part { rcode, counts, body: &body, ttls: Ttls::Aged(0) };
                    match self.joined(&pair, &of, (tail, false), None) {
                        Ok(answer) => of = Follower { answer, answered_by: None, ..of },
                        Err(failure) => return self.fail_waiting(lane_at, &of, failure, replies),
                    }
                    continue;
                }
                Some((Zone::Route(route), _)) => usize::from(route),
                _ => 0,
            };
            let tag = rules.routes[route].tag;
            let hashed =
                self.cache.locate_name(&name, key.qtype, key.dnssec_ok, key.checking_disabled, key.without_ech);
            let now_ms = self.now_us() / 1000;
            let guard = cache::pin();
            let answer = if let Some(entry) = self.cached(&pair, &self.lanes[lane_at], &name, &hashed, now_ms, &guard) {
                self.joined_entry(&pair, &of, entry, now_ms)
            } else {
                let next = Arc::new(Key { hash: hashed.hash, name, route: tag, ..Key::clone(key) });
                match self.pending.follow(&next, &of) {
                    Followed::First(serial) => return self.ask_elsewhere(Command::Ask(next, serial)),
                    Followed::Joined => return,
                    Followed::Part(part) => {
                        self.joined(&pair, &of, (part.as_part(), part.is_authentic), part.extended_error())
                    }
                }
            };
            drop(guard);
            match answer {
                Ok(answer) => of = Follower { answer, answered_by: Some(tag), ..of },
                Err(failure) => return self.fail_waiting(lane_at, &of, failure, replies),
            }
        }
    }

    /// Joins the part that is known of a question's answer with an answer about the name at which its aliases end.
    fn joined(
        &self,
        pair: &Pair,
        of: &Follower,
        (tail, is_authentic): (Part<'_>, bool),
        error: Option<(u16, &'static str)>,
    ) -> Result<Arc<Answer>, Failure> {
        let (key, head) = (&of.key, &of.answer);
        let Some(end) = head.open_end else { return Ok(Arc::clone(head)) };
        let question = (key.qtype, key.dnssec_ok);
        let joined = guarded(|| inspect::join(&key.name, question, head.as_part(), &end.name, tail, pair.bounds()));
        let mut answer = joined.and_then(Result::ok).ok_or(Failure::Chain)?;
        answer.is_authentic = head.is_authentic && is_authentic;
        answer.error = error.or(head.extended_error());
        Ok(Arc::new(answer))
    }

    /// [`Core::joined`] with an entry; a remembered failure fails the question.
    fn joined_entry(&self, pair: &Pair, of: &Follower, entry: &Entry, now_ms: u64) -> Result<Arc<Answer>, Failure> {
        if matches!(entry.rcode, rcode::SERVFAIL | rcode::REFUSED) {
            // A block or a failed validation of the target is one of the question: another server would bypass it.
            let targets = of.answer.targets.clone();
            let ttl = entry.ttl.saturating_sub(entry.age(now_ms));
            let refusal =
                || Arc::new(Answer { rcode: entry.rcode, ttl, targets, error: entry.error, ..Answer::default() });
            return Failure::of(entry.error).map_or_else(|| Ok(refusal()), Err);
        }
        let error = if entry.is_stale(now_ms) { Some(stale_error(entry.rcode)) } else { entry.error };
        self.joined(pair, of, (part_of(entry, now_ms), entry.is_authentic), error)
    }

    /// Fails a question that waits for other servers.
    fn fail_waiting(&self, lane_at: usize, of: &Follower, failure: Failure, replies: &mut Outbound) {
        if self.pending.is_open(&of.key, of.serial) {
            if failure == Failure::Chain {
                self.lanes[lane_at].count(Counter::UpstreamChain);
            }
            let entry = self.keep(lane_at, &of.key, Err(failure));
            self.release(lane_at, &of.key, entry, self.pending.take_serial(&of.key, of.serial), replies);
        }
    }

    /// Stores an answer and replies to all who wait.
    pub fn settle(&self, lane_at: usize, key: &Key, answer: Answer, replies: &mut Outbound) {
        let entry = self.keep(lane_at, key, Ok(answer));
        // Stored before anybody is let go: who asks in between finds it.
        self.release(lane_at, key, entry, self.pending.take(key), replies);
    }

    /// Nobody could answer the question of this serial number; a newer one of the same name goes on.
    pub fn fail(&self, lane_at: usize, key: &Key, serial: u64, failure: Failure, replies: &mut Outbound) {
        if self.pending.since(key, serial).is_some() {
            let entry = self.keep(lane_at, key, Err(failure));
            self.release(lane_at, key, entry, self.pending.take_serial(key, serial), replies);
        }
    }

    /// Stores an answer, or a failure where nothing better is there, and gives what is to be said.
    fn keep(&self, lane_at: usize, key: &Key, result: Result<Answer, Failure>) -> Entry {
        let now_ms = self.now_us() / 1000;
        let (answer, error) = match result {
            Ok(answer) => (answer, None),
            Err(failure) => {
                // Another exchange of the same question may have succeeded meanwhile, or a former answer is at hand. A
                // chain that cannot be followed is an answer: an old one in its place would be somebody's way round.
                let is_silence = failure != Failure::Chain;
                let stale_ms = u64::from(self.pair.load().views.views.tuning.stale) * 1000 * u64::from(is_silence);
                if let Some(entry) = self.cache.revive(key, now_ms, stale_ms, STALE_AGAIN_MS) {
                    return entry;
                }
                let answer = Answer { rcode: rcode::SERVFAIL, ttl: FAILURE_TTL, ..Answer::default() };
                (answer, failure.error())
            }
        };
        let pair = self.pair.load();
        let meaning = inspect::judge(&pair.rules, &key.name, key.qtype, &answer.targets);
        let mut entry = Entry::new(key, answer, meaning, pair.rules_generation, now_ms);
        entry.error = error.or(entry.error);
        // The answer to a question that was under way when a reload gave its name another route is for its waiters alone.
        let suffixes = pair.rules.key.suffixes(&key.name);
        let is_current = pair.rules.route_for(&suffixes, &key.name, key.qtype) == Some(key.route);
        if is_current && self.cache.insert(key, entry.copy(), now_ms) {
            self.lanes[lane_at].count(Counter::CacheInserted);
        }
        entry
    }

    fn release(&self, lane_at: usize, key: &Key, mut entry: Entry, taken: Taken, replies: &mut Outbound) {
        if taken.is_empty() {
            return;
        }
        let Taken { waiters, followers } = taken;
        // Loaded after the waiters were taken: a policy that was published before any of them asked is seen.
        let pair = self.pair.load();
        entry.rejudge(&key.name, &pair.rules, pair.rules_generation);
        let now_us = self.now_us();
        for waiter in waiters {
            self.reply_to(&pair, lane_at, key, waiter, &entry, now_us, replies);
        }
        for of in followers {
            match self.joined_entry(&pair, &of, &entry, now_us / 1000) {
                Ok(answer) => self.advance(lane_at, Follower { answer, answered_by: Some(key.route), ..of }, replies),
                Err(failure) => self.fail_waiting(lane_at, &of, failure, replies),
            }
        }
    }

    fn reply_to(
        &self,
        pair: &Pair,
        lane_at: usize,
        key: &Key,
        waiter: Waiter,
        entry: &Entry,
        now_us: u64,
        replies: &mut Outbound,
    ) {
        let lane = &self.lanes[lane_at];
        let to = Recipient {
            lane: lane_at,
            view: pair.views.view_of_identity(&waiter.identity, &self.wall),
            identity: &waiter.identity,
            asker: &waiter.asker,
            echo: &waiter.echo,
            name: waiter.through.as_deref().map_or(&key.name, |through| &through.name),
            qtype: key.qtype,
            is_stream: matches!(waiter.origin, Origin::Stream(_)),
        };
        let out = replies.buffer();
        let said = if let Some(through) = &waiter.through {
            let (tail, life) = (part_of(entry, now_us / 1000), Life::of(entry));
            self.write_through(pair, &to, through, &key.name, tail, life, out);
            Said::Reply
        } else {
            self.reply_from(pair, &to, entry, now_us / 1000, out)
        };
        let has_reply = match said {
            Said::Reply => true,
            Said::Silence => false,
            Said::Alias(target, through) => {
                let (origin, times) = (waiter.origin.clone(), (waiter.received_us, now_us));
                match self.follow(pair, &to, &target, through, origin, times, false, out) {
                    Outcome::Reply => true,
                    Outcome::Silence => false,
                    Outcome::Waiting => return,
                    Outcome::Ask(key, serial) => return self.ask_elsewhere(Command::Ask(key, serial)),
                }
            }
        };
        match waiter.origin {
            Origin::Datagram(path) => {
                if has_reply {
                    for _ in 0..replies.reply(&path) {
                        lane.count(Counter::RepliesNotSent);
                    }
                    lane.observe(Took::Miss, now_us.saturating_sub(waiter.received_us), 1);
                }
            }
            Origin::Stream(token) => {
                let reply = has_reply.then(|| out.clone());
                self.push_work(lane, Work::Reply { token, reply });
            }
        }
    }

    /// Sends the late replies of a turn.
    pub fn send_late(&self, lane_at: usize, replies: &mut Outbound) {
        for _ in replies.flush() {
            self.lanes[lane_at].count(Counter::RepliesNotSent);
        }
    }

    /// Hands a question over to a stream: the server whose datagram was not enough comes first.
    ///
    /// A *backup* runs beside a datagram exchange that somebody tries to forge: its failure is no answer while the real
    /// one may still come.
    pub fn want_stream(
        &self,
        lane_at: usize,
        key: &Arc<Key>,
        serial: u64,
        first: &Arc<Server>,
        id: u16,
        is_backup: bool,
        replies: &mut Outbound,
    ) {
        let lane = &self.lanes[lane_at];
        let Some(asked_ms) = self.pending.since(key, serial) else { return };
        // One stream a question: a second server that cuts its answer has nothing to add.
        if self.rely_on_stream(serial, is_backup) {
            return;
        }
        lane.count(Counter::UpstreamStreams);
        let exchange = self.next_exchange.fetch_add(1, Relaxed);
        let since_ms = self.now_us() / 1000;
        let pair = self.pair.load();
        let others = pair.servers(key.route).iter().filter(|other| !Arc::ptr_eq(other, first));
        // Silence is no reason to go without OPT here: a connection says by itself whether somebody is there.
        let opt = |server: &Server| if server.edns.is_plain(since_ms) { Opt::Without } else { Opt::With };
        let asked: Vec<_> = std::iter::once(first).chain(others).map(|s| (Arc::clone(s), opt(s))).collect();
        let servers = asked.iter().map(|(s, opt)| (Arc::clone(s), stream_query(key, id, *opt))).collect();
        let patience_ms = (asked_ms + ANSWER_WITHIN_MS).saturating_sub(since_ms);
        let stream = Stream { key: Arc::clone(key), serial, id, since_ms, is_backup, servers: asked };
        lock(&self.streams).insert(exchange, stream);
        if !self.push_work(lane, Work::Stream { exchange, servers, patience_ms }) {
            lock(&self.streams).remove(&exchange);
            if !is_backup {
                self.fail(lane_at, key, serial, Failure::Unreachable, replies);
            }
        }
    }

    /// Whether a stream is under way for a question; unless it may stay a backup, its failure is the question's.
    pub fn rely_on_stream(&self, serial: u64, may_stay_backup: bool) -> bool {
        let mut streams = lock(&self.streams);
        let stream = streams.values_mut().find(|stream| stream.serial == serial);
        stream.map(|stream| stream.is_backup &= may_stay_backup).is_some()
    }

    /// What came of a stream exchange, and from which of its servers; no packet is the end.
    pub fn complete(
        &self,
        lane_at: usize,
        exchange: u64,
        server: usize,
        packet: Option<&[u8]>,
        replies: &mut Outbound,
    ) -> Streamed {
        let stream = |stream: &Stream| (Arc::clone(&stream.key), stream.id, stream.servers.get(server).cloned());
        let Some((key, id, asked)) = lock(&self.streams).get(&exchange).map(stream) else { return Streamed::Done };
        let result = match packet {
            None => Err(Failure::Unreachable),
            Some(packet) if packet.get(..2) != Some(&id.to_be_bytes()) => return Streamed::Next,
            Some(packet) => {
                let read = self.read_answer(lane_at, packet, &key);
                if asked.as_ref().is_some_and(|(_, opt)| Edns::is_refusal(*opt, &read)) {
                    if let Some(asked) = lock(&self.streams).get_mut(&exchange).and_then(|s| s.servers.get_mut(server))
                    {
                        asked.1 = Opt::AfterRefusal;
                    }
                    return Streamed::Again(stream_query(&key, id, Opt::AfterRefusal));
                }
                match read {
                    Ok(answer) => Ok(answer),
                    Err(Problem::Chain) => Err(Failure::Chain),
                    Err(_) => return Streamed::Next,
                }
            }
        };
        let Some(stream) = lock(&self.streams).remove(&exchange) else { return Streamed::Done };
        if let (true, Some((server, opt))) = (packet.is_some(), asked) {
            server.edns.answered(opt, self.now_us() / 1000);
        }
        match result {
            Ok(answer) => {
                self.lanes[lane_at].count(Counter::UpstreamAnswered);
                self.finish(lane_at, &key, answer, replies);
            }
            Err(_) if stream.is_backup => {}
            Err(failure) => self.fail(lane_at, &key, stream.serial, failure, replies),
        }
        Streamed::Done
    }

    /// Reads an upstream's answer, guarded, and counts what is wrong with it.
    pub fn read_answer(&self, lane_at: usize, packet: &[u8], key: &Key) -> Result<Answer, Problem> {
        let lane = &self.lanes[lane_at];
        let bounds = self.pair.load().bounds();
        let read =
            guarded(|| inspect::read_answer(packet, &key.name, key.qtype, key.dnssec_ok, key.without_ech, bounds));
        let result = read.unwrap_or_else(|| {
            lane.count(Counter::DroppedPanic);
            Err(Problem::Malformed)
        });
        match result {
            Err(Problem::NotOurs) => lane.count(Counter::UpstreamUnexpected),
            Err(Problem::Truncated) => lane.count(Counter::UpstreamTruncated),
            Err(Problem::Failed(_)) => lane.count(Counter::UpstreamFailed),
            Err(Problem::Malformed) => lane.count(Counter::UpstreamMalformed),
            Err(Problem::Chain) => lane.count(Counter::UpstreamChain),
            Ok(ref answer) => {
                use Counter::{UpstreamBlocked, UpstreamCensored, UpstreamFiltered, UpstreamNullAddress};
                const BLOCKS: [Counter; 4] = [UpstreamBlocked, UpstreamCensored, UpstreamFiltered, UpstreamNullAddress];
                answer.upstream_block.inspect(|&block| lane.count(BLOCKS[block as usize]));
            }
        }
        result
    }

    /// Lets those go who wait for something that nobody answers any more.
    pub fn sweep(&self, lane_at: usize, replies: &mut Outbound) {
        let now_ms = self.now_us() / 1000;
        self.write_rows(lane_at, self.journal.close_minute(now_ms));
        let before = now_ms.saturating_sub(GIVEN_UP_MS);
        lock(&self.streams).retain(|_, stream| stream.since_ms >= before);
        for key in self.pending.older_than(before) {
            // Taken only if it is still the old one: a newer question of the same name has an exchange of its own.
            let taken = self.pending.take_older(&key, before);
            if !taken.is_empty() {
                self.lanes[lane_at].count(Counter::PendingExpired);
                let entry = self.keep(lane_at, &key, Err(Failure::Unreachable));
                self.release(lane_at, &key, entry, taken, replies);
            }
        }
    }

    /// Whether anybody of this address, or of its /64, asked within so many microseconds.
    pub fn asked_within(&self, address: Address, period_us: u64) -> bool {
        let identity = Identity { address, port: 0, mac: 0 };
        self.clients.took_since(identity.bucket(), self.now_us().saturating_sub(period_us))
    }

    /// Asks an upstream for a name that nobody asks for, so that it is known where it leads.
    pub fn look_up(&self, name: &FoldedName, qtype: u16) {
        let pair = self.pair.load();
        let (rules, now_ms) = (&pair.rules, self.now_us() / 1000);
        let route = match rules.zone_for(&rules.key.suffixes(name), name, qtype) {
            Some((Zone::Local { .. } | Zone::Host(_), _)) => return,
            Some((Zone::Route(route), _)) => usize::from(route),
            None => 0,
        };
        let hashed = self.cache.locate_name(name, qtype, false, false, false);
        let tag = rules.routes[route].tag;
        let (hash, name) = (hashed.hash, *name);
        let key = Key { hash, name, qtype, dnssec_ok: false, checking_disabled: false, without_ech: false, route: tag };
        let key = Arc::new(key);
        if let Some(serial) = self.pending.begin(&key, now_ms) {
            self.ask_elsewhere(Command::Ask(key, serial));
        }
    }

    /// Asks some serve thread to start an exchange.
    pub fn ask_elsewhere(&self, command: Command) {
        let at = self.next_inbox.fetch_add(1, Relaxed) as usize % self.inboxes.len();
        let inbox = &self.inboxes[at];
        lock(&inbox.commands).push(command);
        inbox.bell.ring();
    }

    fn write_rows(&self, lane_at: usize, rows: Vec<Row>) {
        let lane = &self.lanes[lane_at];
        for row in rows {
            if !self.push_work(lane, Work::Log(row)) {
                lane.count(Counter::JournalRingFull);
            }
        }
    }

    /// Counts a decision, and tells Python of it where the view's devices are logged.
    fn decided(
        &self,
        pair: &Pair,
        to: &Recipient<'_>,
        meaning: &Meaning,
        targets: &Targets<impl AsRef<[u8]>>,
        verdict: &Verdict,
    ) {
        pair.views.decisions.count(to.lane, to.view, verdict.app, verdict.action);
        let is_logged = pair.views.views.views[usize::from(to.view)].is_logged;
        let Some(app) = verdict.app.filter(|_| is_logged) else { return };
        let is_asked = !meaning.asked.and(AppMask::of(app.into())).is_empty();
        let kind = Kind {
            address: to.identity.address,
            mac: to.identity.mac,
            generation: pair.views.generation,
            rule: if is_asked {
                meaning.asked_rule
            } else {
                meaning.found_rule.wrapping_add(self.journal.led_by(to.name.as_wire()))
            },
            view: to.view,
            app,
            action: verdict.action as u8,
        };
        match self.journal.note(&kind) {
            Noted::Again => {}
            Noted::Full => self.lanes[to.lane].count(Counter::JournalFull),
            noted @ (Noted::First | Noted::Second) => {
                let rule = rule_text(&pair.rules, to.name, targets, app, is_asked);
                let row =
                    Row { kind, name: to.name.to_string().into(), qtype: to.qtype, rule: rule.into(), more: None };
                if noted == Noted::First {
                    self.write_rows(to.lane, vec![row]);
                } else {
                    self.journal.open(row);
                }
            }
        }
    }

    /// Hands Python a piece of work; false when the ring has no room.
    pub fn push_work(&self, lane: &Lane, mut work: Work) -> bool {
        {
            let mut ring = lock(&self.work);
            if let Work::Reply { reply: Some(reply), .. } = &mut work {
                if ring.reply_octets + reply.len() > REPLY_OCTETS {
                    lane.count(Counter::RingFull);
                    wire::set_failed(reply);
                }
                ring.reply_octets += reply.len();
            }
            // A reply always finds room: those who wait are bounded already, and a lost one would hang its client.
            let (queue, bound) = match work {
                Work::Reply { .. } => (&mut ring.urgent, usize::MAX),
                Work::Log(_) => (&mut ring.log, LOG_BOUND),
                Work::Learned(_) => (&mut ring.urgent, RING_BOUND / 2),
                Work::Stream { .. } => (&mut ring.urgent, RING_BOUND),
            };
            if queue.len() >= bound {
                lane.count(Counter::RingFull);
                return false;
            }
            queue.push_back(work);
        }
        lane.count(Counter::RingPushed);
        self.work_bell.ring();
        true
    }

    /// Takes at most `most` pieces of work, few rows of the log among them; the bell stays rung while there is more.
    pub fn take_work(&self, most: usize) -> Vec<Work> {
        self.work_bell.hush();
        let mut ring = lock(&self.work);
        let rows = ring.log.len().min(LOG_AT_ONCE).min(most);
        let count = ring.urgent.len().min(most - rows);
        let mut taken: Vec<Work> = ring.urgent.drain(..count).collect();
        ring.reply_octets -= taken.iter().map(Work::reply_octets).sum::<usize>();
        taken.extend(ring.log.drain(..rows));
        if ring.waiting() > 0 {
            self.work_bell.ring();
        }
        taken
    }

    /// The latencies of one kind: answers in each bucket, and, last, the microseconds of all.
    pub fn latencies(&self, took: Took) -> Vec<u64> {
        let add =
            |sums: Vec<u64>, lane: &Lane| sums.into_iter().zip(lane.latencies(took)).map(|(a, b)| a + b).collect();
        self.lanes[1..].iter().fold(self.lanes[0].latencies(took).collect(), add)
    }

    /// Reads no more from clients; what was read is answered.
    pub fn drain(&self) {
        self.is_draining.store(true, Relaxed);
        self.write_rows(self.lanes.len() - 2, self.journal.close());
        self.inboxes.iter().for_each(|inbox| inbox.bell.ring());
    }

    /// Every counter by name; what was only explained is not among them.
    pub fn counters(&self) -> HashMap<&'static str, u64> {
        let counted = &self.lanes[..self.lanes.len() - 1];
        Counter::NAMES
            .iter()
            .enumerate()
            .map(|(at, &name)| (name, counted.iter().map(|lane| lane.read(at)).sum()))
            .collect()
    }

    /// Sizes now, by name.
    pub fn sizes(&self) -> HashMap<&'static str, u64> {
        let (entries, octets, evicted) = self.cache.sizes();
        let (questions, waiters) = self.pending.sizes();
        let pair = self.pair.load();
        [
            ("cache.entries", entries as u64),
            ("cache.octets", octets as u64),
            ("cache.evicted", evicted),
            ("pending.questions", questions as u64),
            ("pending.waiters", waiters as u64),
            ("ring.waiting", lock(&self.work).waiting() as u64),
            ("ring.streams", lock(&self.streams).len() as u64),
            ("rules.generation", pair.rules_generation),
            ("rules.names", pair.rules.names),
            ("views.generation", pair.views.generation),
            ("devices.changed", pair.views.overlay.addresses() as u64),
        ]
        .into()
    }

    /// The decisions of each set of views: generation, whether it is the last time they are given, the counts.
    pub fn read_decisions(&self) -> Vec<(u64, bool, Vec<DecisionCount>)> {
        let mut all = Vec::new();
        lock(&self.retired).retain(|views| {
            // Nobody else holds them: no query counts with them any more.
            let is_final = Arc::strong_count(views) == 1;
            all.push((views.generation, is_final, views.decisions.read()));
            !is_final
        });
        let now = self.pair.load();
        all.push((now.views.generation, false, now.views.decisions.read()));
        all
    }

    /// What a view's policy says of a name by itself, whoever asks and wherever its answer leads; counts nothing.
    pub fn policy_of(&self, pair: &Pair, view: u16, name: &FoldedName) -> Policy {
        let (rules, view) = (&pair.rules, &pair.views.views.views[usize::from(view)]);
        let suffixes = rules.key.suffixes(name);
        let meaning = inspect::meaning(rules, rules.find_by(&suffixes, name), &Targets::NONE);
        match decide(view, meaning.asked, AppMask::EMPTY) {
            Verdict { action: Action::Block, app, .. } => return Policy::Block(app.unwrap_or(0)),
            Verdict { action: Action::Pass | Action::Monitor, .. } => {}
            _ => return Policy::Open,
        }
        let own = rules.zone_of(&suffixes, name).is_some_and(|(_, octets)| octets > 1);
        let Some(chain) = rules.chain.as_deref().filter(|_| !own) else { return Policy::Open };
        let nobody = Address::V4(0);
        let met = chain.walk(rules.key, view, nobody, name, rtype::A, Some(&Targets::NONE), &rules.nat64).met;
        met.map_or(Policy::Open, |met| Policy::Act(met.act))
    }

    /// What would be done with a question, and why; counts nothing and asks nobody.
    ///
    /// With an answer, as if the upstream had said that; else with what the cache holds.
    pub fn explain(
        &self,
        client: IpAddr,
        view: Option<u16>,
        name: &FoldedName,
        qtype: u16,
        answer: Option<&[u8]>,
    ) -> Result<Explanation, Problem> {
        let pair = self.pair.load_full();
        let views = &pair.views.views;
        let address = Address::from(client);
        let view_id = view.filter(|&id| usize::from(id) < views.views.len());
        let view_id = view_id.unwrap_or_else(|| pair.views.view_of(address, &self.wall));
        let view = &views.views[usize::from(view_id)];
        let zone = pair.rules.zone_for(&pair.rules.key.suffixes(name), name, qtype);
        let now_ms = self.now_us() / 1000;
        let spare = self.lanes.len() - 1;
        let mut query = Vec::new();
        wire::write_query(&mut query, 0, name.as_wire(), qtype, false, false, true);
        let mut folded = FoldedName::ROOT;
        let asked = self.read(&query, &mut folded);
        let guard = cache::pin();
        let cached = match &asked {
            Asked::Question(question, _) => {
                let hashed = self.cache.locate(question, view.strip_ech && matches!(qtype, rtype::SVCB | rtype::HTTPS));
                self.cached(&pair, &self.lanes[spare], name, &hashed, now_ms, &guard)
            }
            _ => None,
        };
        let read = match answer {
            Some(packet) => {
                let read = guarded(|| inspect::read_answer(packet, name, qtype, false, view.strip_ech, pair.bounds()));
                Some(read.unwrap_or(Err(Problem::Malformed))?)
            }
            None => None,
        };
        let known = read.as_ref().map(Answer::as_part).or(cached.map(|entry| part_of(entry, now_ms)));
        let targets =
            read.as_ref().map(|answer| answer.targets.clone()).or(cached.map(|entry| entry.targets().to_owned()));
        let mut meaning = inspect::judge(&pair.rules, name, qtype, targets.as_ref().unwrap_or(&Targets::NONE));
        let mut verdict = decide(view, meaning.asked, meaning.found);
        let mut out = Vec::new();
        let question = if let Asked::Question(question, _) = asked { Some(question) } else { None };
        let reply = question.and_then(|question| {
            let asker = Asker::of(&question, true);
            let identity = Identity { address, port: 0, mac: 0 };
            let echo = question.echo;
            let to = Recipient {
                lane: spare,
                view: view_id,
                identity: &identity,
                asker: &asker,
                echo,
                name,
                qtype,
                is_stream: true,
            };
            let step = self.walked(&pair, &to, &mut meaning, &mut verdict, targets.as_ref());
            let plain = |code, error, out: &mut Vec<u8>| {
                wire::write_reply(out, &asker, question.echo, code, false, Counts::default(), &[], error);
                true
            };
            let template = |template, octets, out: &mut Vec<u8>| {
                self.write_template(&pair.rules, &to, &question, template, octets, out);
                true
            };
            // The same order as for a packet.
            let has_reply = match zone {
                _ if qtype == rtype::OPT => plain(rcode::FORMERR, None, &mut out),
                _ if (rtype::TKEY..=rtype::MAILA).contains(&qtype) => {
                    plain(rcode::REFUSED, Some(error_of_kind(qtype)), &mut out)
                }
                _ if step.is_some() => {
                    step.is_some_and(|step| match self.take_step(&pair, &to, &meaning, &step, known, &mut out) {
                        Said::Reply => true,
                        Said::Silence => false,
                        Said::Alias(target, through) => {
                            self.follow_at_once(&pair, &to, &target, &through, now_ms, &mut out).is_ok()
                        }
                    })
                }
                _ if verdict.action == Action::Block => {
                    matches!(self.write_block(&pair, &to, &meaning, &verdict, &mut out), Said::Reply)
                }
                Some((zone, octets)) if zone.is_answered_here() => {
                    template(zone.template(octets == name.wire_length()), octets, &mut out)
                }
                _ if qtype == rtype::ANY => template(pair.rules.any_template, name.wire_length(), &mut out),
                _ => cached.is_some_and(|entry| {
                    self.write_entry(&pair, &to, entry, now_ms, &mut out);
                    true
                }),
            };
            has_reply.then_some(out)
        });
        let zone = zone.map(|(zone, octets)| {
            let start = name.wire_length() - octets;
            let origin = FoldedName::from_wire(&name.as_wire()[start..]).unwrap_or(*name);
            let what = match zone {
                Zone::Route(_) => "routed",
                Zone::Local { .. } => "local",
                Zone::Host(_) => "record",
            };
            (what, origin.to_string())
        });
        Ok(Explanation {
            view: view_id,
            is_client: views.clients.find(address) != PrefixTable::NONE,
            meaning,
            verdict,
            targets,
            zone,
            reply,
            pair: pair.clone(),
        })
    }
}

/// Whether another route, or blockd itself, answers for the name at which an answer's aliases end.
///
/// A denial by the servers that were asked counts only outside the zones of `upstream.zones`: a general resolver denies the
/// names of a zone that only its own servers know.
fn is_elsewhere(rules: &Rules, answered_by: Option<u32>, qtype: u16, end: &OpenEnd) -> bool {
    let Some(answered_by) = answered_by else { return false };
    let (route, octets) = match rules.zone_for(&rules.key.suffixes(&end.name), &end.name, qtype) {
        Some((Zone::Host(_), _)) => return true,
        Some((Zone::Local { .. }, _)) => return !end.is_denied,
        Some((Zone::Route(route), octets)) => (usize::from(route), octets),
        None => (0, 1),
    };
    rules.routes[route].tag != answered_by && (octets > 1 || !end.is_denied)
}

/// The rule that decided about an app, and by what it was reached when that was not the question's name.
fn rule_text(rules: &Rules, name: &FoldedName, targets: &Targets<impl AsRef<[u8]>>, app: u8, is_asked: bool) -> String {
    let bit = AppMask::of(app.into());
    let text = |name: &FoldedName| rules.deciding_rule(name, app).map(|r| format!("{} {}", r.kind, r.rule));
    // Rules of zones that are about no name.
    let of_zone = |what: &str| if rules.chain.is_some() { format!("zone rule about {what}") } else { String::new() };
    if is_asked {
        return text(name).unwrap_or_else(|| of_zone("who asks"));
    }
    let reached = targets.iter().find_map(|target| match target {
        Target::Name(target) if !rules.find(&target).apps.and(bit).is_empty() => {
            Some(format!("{} by {target}", text(&target)?))
        }
        Target::Address(address) if !rules.apps_at(address).and(bit).is_empty() => {
            Some(format!("network by {}", IpAddr::from(address)))
        }
        _ => None,
    });
    reached.unwrap_or_else(|| of_zone("an address"))
}

/// What policy says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Nothing.
    Open,
    /// It is blocked, as this app.
    Block(u8),
    /// A rule of a response policy zone: an index of its chain's `acts`.
    Act(u16),
}

/// Why a question gets what it gets.
pub struct Explanation {
    /// What was in force.
    pub pair: Arc<Pair>,
    /// The client's view.
    pub view: u16,
    /// Whether the client may ask at all.
    pub is_client: bool,
    /// What the name, and the answer if it is cached, mean.
    pub meaning: Meaning,
    /// What is done.
    pub verdict: Verdict,
    /// Where the cached answer leads; none when it is not cached.
    pub targets: Option<Targets>,
    /// `routed` or `local`, and the zone, when the name is in one.
    pub zone: Option<(&'static str, String)>,
    /// The reply, when it is made here.
    pub reply: Option<Vec<u8>>,
}

/// Why nobody could answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No server of the route answered in time.
    Unreachable,
    /// None could be sent to.
    Network,
    /// Servers answered that they failed, or nothing that could be read.
    Refused,
    /// The alias chain loops or is too long.
    Chain,
}

impl Failure {
    /// The failure that is remembered with this error, if it is one of ours.
    fn of(error: Option<(u16, &'static str)>) -> Option<Self> {
        [Self::Unreachable, Self::Network, Self::Refused, Self::Chain]
            .into_iter()
            .find(|failure| failure.error() == error)
    }

    fn error(self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::Unreachable => (22, "no upstream server answered in time"),
            Self::Network => (23, "no upstream server could be reached"),
            Self::Refused => (0, "the upstream servers answered with an error"),
            Self::Chain => (0, "the alias chain loops or is too long"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Route, Tuning, View, Zones};
    use crate::domains::HashKey;
    use proptest::prelude::*;

    const BOUND: usize = 4;

    fn name(text: &str) -> FoldedName {
        FoldedName::from_rule_text(text.as_bytes()).unwrap()
    }

    /// Three routes: of everything, of `one` and of `two`.
    fn core() -> Core {
        let route =
            |tag| Route { servers: vec![std::net::SocketAddr::from(([127, 0, 0, 1], 5300 + tag as u16)).into()], tag };
        let rules = Rules {
            routes: vec![route(10), route(11), route(12)],
            zones: Zones::new(HashKey::default(), vec![(name("one"), Zone::Route(1)), (name("two"), Zone::Route(2))]),
            ..Rules::default()
        };
        let tuning = Tuning {
            live_ttl: 60,
            ttl_floor: 0,
            ttl_ceiling: 86_400,
            negative_ttl_ceiling: 3_600,
            stale: 0,
            trust_ad: false,
            client_rate: 1_000_000,
            client_burst: 1_000_000,
            pending_in_all: 1_000,
            pending_a_client: BOUND as u32,
        };
        let views = Views {
            views: vec![View::default()],
            devices: PrefixTable::default(),
            unidentified: 0,
            clients: PrefixTable::build(
                &[crate::prefixes::Prefix { address: Address::V4(0), length: 0, value: 0 }],
                |_, inner| inner,
            ),
            tuning,
        };
        Core::new(1, 1 << 20, Arc::new(rules), views).unwrap()
    }

    fn zone_of(name: &str) -> usize {
        ["one", "two"].iter().position(|zone| name.ends_with(zone)).map_or(0, |at| at + 1)
    }

    /// What servers say: an alias, or two that hang on one another, or an address.
    fn said(links: &HashMap<String, String>, key: &Key, is_eager: bool) -> Vec<u8> {
        let mut packet = vec![0, 1, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
        packet.extend_from_slice(key.name.as_wire());
        packet.extend_from_slice(&[0, 1, 0, 1]);
        let mut at = key.name.to_string();
        let own = zone_of(&at);
        for _ in 0..40 {
            let (kind, data) = match links.get(&at) {
                Some(next) => (5u8, name(next).as_wire().to_vec()),
                None => (1, vec![192, 0, 2, 1]),
            };
            packet[7] += 1;
            packet.extend_from_slice(name(&at).as_wire());
            packet.extend_from_slice(&[0, kind, 0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
            packet.extend_from_slice(&data);
            let Some(next) = links.get(&at) else { break };
            if zone_of(next) != own && !is_eager {
                break;
            }
            at.clone_from(next);
        }
        packet
    }

    /// The replies to clients: the tokens that came with their queries.
    fn answered(core: &Core) -> Vec<(u64, u8)> {
        let work = core.take_work(1_000);
        let reply = |work| match work {
            Work::Reply { token, reply: Some(reply) } => Some((token, reply[3] & 0x0F)),
            _ => None,
        };
        work.into_iter().filter_map(reply).collect()
    }

    /// However many decisions are logged, a reply is taken next, and one turn takes few rows.
    #[test]
    fn a_flood_of_log_rows_delays_no_reply() {
        let core = core();
        let kind = Kind { address: Address::V4(7), mac: 0, generation: 1, rule: 0, view: 0, app: 0, action: 0 };
        let row = || Row { kind, name: "a.".into(), qtype: 1, rule: "".into(), more: None };
        let pushed = (0..LOG_BOUND + 5).filter(|_| core.push_work(&core.lanes[0], Work::Log(row()))).count();
        assert_eq!(pushed, LOG_BOUND);
        assert!(core.push_work(&core.lanes[0], Work::Reply { token: 9, reply: None }));
        let taken = core.take_work(1_000);
        assert!(matches!(taken[0], Work::Reply { token: 9, .. }));
        assert_eq!(taken.len(), 1 + LOG_AT_ONCE);
        let rest: usize = std::iter::repeat_with(|| core.take_work(1_000).len()).take_while(|&count| count > 0).sum();
        assert_eq!(rest, LOG_BOUND - LOG_AT_ONCE);
    }

    /// Long replies to many waiters at once: those that find no room are failures, and short ones always find it.
    #[test]
    fn replies_that_wait_for_python_take_a_bounded_size() {
        let core = core();
        let mut long = vec![0, 1, 0x85, 0xA0, 0, 1, 0, 9, 0, 0, 0, 1, 1, b'a', 0, 0, 16, 0, 1];
        let failed = [0, 1, 0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 16, 0, 1];
        long.resize(60_000, 7);
        for round in 0..2 {
            for token in 0..2_000 {
                assert!(core.push_work(&core.lanes[0], Work::Reply { token, reply: Some(long.clone()) }));
            }
            let replies =
                std::iter::repeat_with(|| core.take_work(128)).take_while(|taken| !taken.is_empty()).flatten();
            let (whole, short): (Vec<_>, Vec<_>) = replies.partition(|work| work.reply_octets() == long.len());
            assert_eq!(
                (whole.len(), short.len()),
                (REPLY_OCTETS / long.len(), 2_000 - REPLY_OCTETS / long.len()),
                "{round}"
            );
            assert!(
                short.iter().all(|work| matches!(work, Work::Reply { reply: Some(reply), .. } if *reply == failed))
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Whatever aliases lead to what over three routes, every client is answered once, after no more exchanges than
        /// there are names for each question, in whatever order servers answer; nothing is left.
        #[test]
        fn chains_over_routes_end(
            // Mostly to a name of the next zone: so there are circles of all three.
            links in prop::collection::vec(prop_oneof![4 => Just(Some(1)), 2 => Just(Some(4)), 1 => (0usize..6).prop_map(Some), 1 => Just(None)], 6),
            asked in prop::collection::vec(0usize..6, 1..6),
            order in prop::collection::vec(any::<u8>(), 200),
            eager: [bool; 3],
        ) {
            let all: Vec<String> = (0..6).map(|at| format!("n{at}.{}", ["example", "one", "two"][at % 3])).collect();
            let link = |(from, by): (usize, Option<usize>)| Some((all[from].clone(), all[(from + by?) % 6].clone()));
            let links: HashMap<String, String> = links.into_iter().enumerate().filter_map(link).collect();
            let core = core();
            let mut replies = Outbound::default();
            for (token, &at) in asked.iter().enumerate() {
                let mut query = Vec::new();
                wire::write_query(&mut query, token as u16, name(&all[at]).as_wire(), 1, false, false, true);
                let mut folded = FoldedName::ROOT;
                let read = core.read(&query, &mut folded);
                let arrival = Arrival {
                    lane: 0,
                    identity: Identity { address: Address::V4(7 + token as u32), port: 1, mac: 0 },
                    origin: &|| Origin::Stream(token as u64),
                    is_stream: true,
                    is_overloaded: false,
                };
                let mut out = Vec::new();
                if let Outcome::Ask(key, serial) = core.answer(&core.pair.load(), &arrival, &read, core.now_us(), &mut out) {
                    core.ask_elsewhere(Command::Ask(key, serial));
                }
            }
            let mut under_way: Vec<(Arc<Key>, u64)> = Vec::new();
            let mut exchanges = 0;
            for turn in order.iter().cycle() {
                for command in std::mem::take(&mut *lock(&core.inboxes[0].commands)) {
                    if let Command::Ask(key, serial) = command {
                        prop_assert_eq!(key.route as usize, 10 + zone_of(&key.name.to_string()));
                        under_way.push((key, serial));
                    }
                }
                if under_way.is_empty() {
                    break;
                }
                exchanges += 1;
                prop_assert!(exchanges <= 6 * asked.len(), "{} exchanges", exchanges);
                let (key, serial) = under_way.swap_remove(usize::from(*turn) % under_way.len());
                let packet = said(&links, &key, eager[zone_of(&key.name.to_string())]);
                match core.read_answer(0, &packet, &key) {
                    Ok(answer) => core.finish(0, &key, answer, &mut replies),
                    Err(_) => {
                        core.fail(0, &key, serial, Failure::Chain, &mut replies);
                    }
                }
            }
            let got = answered(&core);
            prop_assert_eq!(core.pending.sizes(), (0, 0));
            for (token, &at) in asked.iter().enumerate() {
                // Where the aliases end, followed plainly.
                let (mut here, mut hops) = (&all[at], 0);
                while let Some(next) = links.get(here).filter(|_| hops < 20) {
                    (here, hops) = (next, hops + 1);
                }
                let codes: Vec<u8> = got.iter().filter(|(of, _)| *of == token as u64).map(|(_, code)| *code).collect();
                prop_assert_eq!(codes, vec![if hops < 20 { 0 } else { 2 }]);
            }
        }
    }

    #[test]
    fn chains_over_routes_are_followed_to_the_limit_and_keep_to_the_bounds() {
        let core = core();
        let mut replies = Outbound::default();
        let of = |at: usize| format!("n{at}.{}", ["one", "two"][at % 2]);
        for (first, code) in [(1, 0), (0, 2)] {
            // From the second of eighteen names there are sixteen aliases to the last, from the first one more.
            let links: HashMap<String, String> = (0..17).map(|at| (of(at), of(at + 1))).collect();
            let mut query = Vec::new();
            wire::write_query(&mut query, 7, name(&of(first)).as_wire(), 1, false, false, true);
            let mut outcomes = Vec::new();
            for token in 0..6 {
                let mut folded = FoldedName::ROOT;
                let read = core.read(&query, &mut folded);
                let arrival = Arrival {
                    lane: 0,
                    identity: Identity { address: Address::V4(1), port: 1, mac: 0 },
                    origin: &|| Origin::Stream(token),
                    is_stream: true,
                    is_overloaded: false,
                };
                outcomes.push(core.answer(&core.pair.load(), &arrival, &read, core.now_us(), &mut Vec::new()));
            }
            let Outcome::Ask(key, serial) = outcomes.swap_remove(0) else { panic!("it is asked") };
            core.ask_elsewhere(Command::Ask(key, serial));
            let shed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Reply)).count();
            assert_eq!(shed, 6 - BOUND, "the bound of a client holds");
            let mut exchanges = 0;
            loop {
                let commands = std::mem::take(&mut *lock(&core.inboxes[0].commands));
                let Some(Command::Ask(key, _)) = commands.into_iter().next() else { break };
                exchanges += 1;
                assert_eq!(core.pending.sizes().1, BOUND, "each client is counted once until it is answered");
                let answer = core.read_answer(0, &said(&links, &key, false), &key).unwrap();
                core.finish(0, &key, answer, &mut replies);
            }
            assert!(exchanges <= 17, "{exchanges}");
            let codes: Vec<u8> = answered(&core).into_iter().map(|(_, code)| code).collect();
            assert_eq!(codes, vec![code; BOUND]);
            assert_eq!(core.counters()["upstream.chain"], u64::from(code > 0));
            assert_eq!(core.pending.sizes(), (0, 0));
        }
    }

    #[test]
    fn a_panic_while_reading_a_packet_costs_that_packet() {
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let result = guarded(|| -> u32 { panic!("a parser's mistake") });
        std::panic::set_hook(quiet);
        assert_eq!(result, None);
        assert_eq!(guarded(|| 7), Some(7));
    }
}
