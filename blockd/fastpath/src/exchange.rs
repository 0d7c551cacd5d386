//! Questions to upstreams over UDP, from one thread: random ports and IDs, answers checked before they are believed.

use crate::cache::Key;
use crate::counters::Counter;
use crate::edns::{Edns, Opt};
use crate::inspect::Problem;
use crate::resolve::{ANSWER_WITHIN_MS, Command, Core, Failure, Server};
use crate::sockets::{Entropy, Inbound, LocalAddress, Outbound, Poller, open_source};
use crate::wire::{self, FoldedName, rtype};
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Sockets that a thread may have open for each of `source_sockets`: two families, and as many worn ones with exchanges
/// under way.
pub const SOCKETS_A_SOURCE: usize = 4;
/// Exchanges after which a socket is replaced.
const MAX_USES: u32 = 100;
/// Milliseconds after which a socket is replaced, when it is next picked.
const MAX_AGE_MS: u64 = 5_000;
/// Most questions that leave from one socket together. More would save less and less; each still has a random ID, and a
/// port that nobody can tell among [`Exchanger::source_sockets`].
const GROUP: usize = 8;
/// Ports are drawn from here to 65535: 49,152 of them.
const FIRST_PORT: u16 = 16_384;
/// How long a server has.
const PATIENCE_MS: u64 = 400;
/// How long a late answer is still taken: a resolver that has to walk the tree may need longer than our patience.
const LATEST_MS: u64 = 2_000;
/// Tries that a question gets, over its servers in turn: 1.6 s in all.
const ATTEMPTS: usize = 4;
/// The system's error (ENODEV) for an address whose interface is not there.
const NO_SUCH_DEVICE: i32 = libc::ENODEV;
/// The mark of exchange sockets among the poller's tokens.
pub const TOKEN_MARK: u64 = 1 << 63;

struct Source {
    socket: OwnedFd,
    is_ipv4: bool,
    port: u16,
    uses: u32,
    opened_ms: u64,
    /// IDs of the exchanges under way.
    flying: Vec<u16>,
    is_retired: bool,
}

struct Flight {
    /// The question and its serial number; none for a probe.
    question: Option<(Arc<Key>, u64)>,
    server: Arc<Server>,
    /// Where it was sent, with the number that the server's interface had.
    peer: SocketAddr,
    attempt: usize,
    /// Whether it has OPT, and why not.
    opt: Opt,
    /// Why this server is asked and not the one before: it decides what is said when nobody is left.
    reason: Failure,
    sent_us: u64,
    number: u64,
    /// Patience is over, and the next server is asked already.
    is_late: bool,
    /// Somebody guesses IDs: a stream asks too, and this one is not tried again.
    is_suspected: bool,
}

/// What an answer to a probe must match.
fn probe_key() -> Key {
    Key {
        hash: 0,
        name: FoldedName::ROOT,
        qtype: rtype::NS,
        dnssec_ok: false,
        checking_disabled: false,
        without_ech: false,
        route: 0,
    }
}

/// One thread's exchanges.
pub struct Exchanger {
    lane: usize,
    /// Open sockets of a family that each exchange picks among.
    source_sockets: usize,
    sources: HashMap<u32, Source>,
    active: [Vec<u32>; 2],
    next_source: u32,
    flights: HashMap<(u32, u16), Flight>,
    /// When patience with each exchange ends, and the next server is asked.
    deadlines: VecDeque<(u64, (u32, u16), u64)>,
    /// When a late answer is no longer of use.
    endings: VecDeque<(u64, (u32, u16), u64)>,
    /// Questions with no server left to ask, and when those who were asked are given up.
    last_hopes: VecDeque<(u64, Arc<Key>, u64)>,
    next_number: u64,
    entropy: Entropy,
    /// Questions that leave together: the socket, whether it is of IPv4, and the exchanges in the order of `outgoing`.
    group: (u32, bool, Vec<(u32, u16)>),
    outgoing: Outbound,
    /// When this turn began, microseconds: one reading of the clock for all that is sent in it.
    now_us: u64,
}

impl Exchanger {
    /// For the thread of a lane.
    pub fn new(lane: usize, source_sockets: usize) -> Self {
        Self {
            lane,
            source_sockets,
            sources: HashMap::new(),
            active: [Vec::new(), Vec::new()],
            next_source: 0,
            flights: HashMap::new(),
            deadlines: VecDeque::new(),
            endings: VecDeque::new(),
            last_hopes: VecDeque::new(),
            next_number: 0,
            entropy: Entropy::default(),
            group: (0, false, Vec::with_capacity(GROUP)),
            outgoing: Outbound::default(),
            now_us: 0,
        }
    }

    /// Carries a command out.
    pub fn obey(&mut self, core: &Core, poller: &Poller, command: Command, replies: &mut Outbound) {
        match command {
            Command::Ask(key, serial) => self.ask(core, poller, vec![(key, serial)], replies),
            Command::Probe(server) => {
                self.now_us = core.now_us();
                self.send(core, poller, None, server, 0, None, Failure::Network, replies);
                self.depart(core, poller, replies);
            }
        }
    }

    /// Starts the exchanges of pending questions.
    pub fn ask(&mut self, core: &Core, poller: &Poller, questions: Vec<(Arc<Key>, u64)>, replies: &mut Outbound) {
        if questions.is_empty() {
            return;
        }
        self.now_us = core.now_us();
        for (key, serial) in questions {
            self.attempt(core, poller, key, serial, 0, Failure::Network, replies);
        }
        self.depart(core, poller, replies);
    }

    /// Asks the server whose turn it is, or the next that can be sent to; gives up after the last.
    fn attempt(
        &mut self,
        core: &Core,
        poller: &Poller,
        key: Arc<Key>,
        serial: u64,
        first: usize,
        failure: Failure,
        replies: &mut Outbound,
    ) {
        let mut attempts = ATTEMPTS;
        if first > 0 {
            // Answered meanwhile, or asked anew since: that question has tries of its own.
            let Some(since_ms) = core.pending.since(&key, serial) else { return };
            // Behind an alias a question is as old as the one that led to it, and may have no time for another try.
            if self.now_us / 1000 >= since_ms + ANSWER_WITHIN_MS {
                attempts = first;
            }
        }
        for attempt in first..attempts {
            let pair = core.pair.load();
            let servers = pair.servers(key.route);
            let Some(server) = attempt.checked_rem(servers.len()).map(|at| servers[at].clone()) else { break };
            drop(pair);
            if self.send(core, poller, Some((&key, serial)), server, attempt, None, failure, replies) {
                return;
            }
        }
        core.lanes[self.lane].count(Counter::UpstreamExhausted);
        if failure == Failure::Unreachable {
            // Nobody is left to ask, but those who were asked may still answer.
            let Some(since_ms) = core.pending.since(&key, serial) else { return };
            self.last_hopes.push_back((since_ms + ANSWER_WITHIN_MS, key, serial));
        } else {
            core.fail(self.lane, &key, serial, failure, replies);
        }
    }

    /// Puts a question among those that leave together next; false when there is no socket.
    ///
    /// `repeats` is for a query that the server refused with OPT: whether it was late, so that another server is asked
    /// already.
    fn send(
        &mut self,
        core: &Core,
        poller: &Poller,
        question: Option<(&Arc<Key>, u64)>,
        server: Arc<Server>,
        attempt: usize,
        repeats: Option<bool>,
        reason: Failure,
        replies: &mut Outbound,
    ) -> bool {
        let now_us = self.now_us;
        let opt = if repeats.is_some() { Opt::AfterRefusal } else { server.edns.choose(now_us / 1000) };
        let Some(peer) = server.endpoint.socket_address() else {
            server.not_sent(NO_SUCH_DEVICE);
            core.lanes[self.lane].count(Counter::UpstreamNotSent);
            return false;
        };
        let is_ipv4 = peer.is_ipv4();
        if self.group.2.len() == GROUP || (self.group.1 != is_ipv4 && !self.group.2.is_empty()) {
            self.depart(core, poller, replies);
        }
        if self.group.2.is_empty() {
            let Some(at) = self.pick(core, poller, is_ipv4, now_us / 1000) else {
                core.lanes[self.lane].count(Counter::UpstreamNotSent);
                return false;
            };
            (self.group.0, self.group.1) = (at, is_ipv4);
        }
        let at = self.group.0;
        let id = loop {
            let id = self.entropy.draw_short();
            if !self.flights.contains_key(&(at, id)) {
                break id;
            }
        };
        let probe;
        let asked = match question {
            Some((key, _)) => &**key,
            None => {
                probe = probe_key();
                &probe
            }
        };
        let query = self.outgoing.buffer();
        let (name, has_opt) = (asked.name.as_wire(), opt == Opt::With);
        wire::write_query(query, id, name, asked.qtype, asked.dnssec_ok, asked.checking_disabled, has_opt);
        self.outgoing.push(&peer, LocalAddress::Unknown);
        self.group.2.push((at, id));
        let Some(source) = self.sources.get_mut(&at) else { return false };
        source.uses += 1;
        source.flying.push(id);
        let number = self.next_number;
        self.next_number += 1;
        self.flights.insert(
            (at, id),
            Flight {
                question: question.map(|(key, serial)| (Arc::clone(key), serial)),
                server,
                peer,
                attempt,
                opt,
                reason,
                sent_us: now_us,
                number,
                is_late: repeats == Some(true),
                is_suspected: false,
            },
        );
        self.deadlines.push_back((now_us / 1000 + PATIENCE_MS, (at, id), number));
        self.endings.push_back((now_us / 1000 + LATEST_MS, (at, id), number));
        true
    }

    /// Sends the questions that leave together; one that the kernel does not take is asked of the next server.
    fn depart(&mut self, core: &Core, poller: &Poller, replies: &mut Outbound) {
        while !self.group.2.is_empty() {
            let places = std::mem::take(&mut self.group.2);
            let fd = self.sources.get(&self.group.0).map_or(-1, |source| source.socket.as_raw_fd());
            let unsent = self.outgoing.send(fd);
            for (at, place) in places.iter().enumerate() {
                let error = unsent.iter().find(|(lost, _)| *lost == at).map(|&(_, error)| error);
                let is_sent = error.is_none();
                let lane = &core.lanes[self.lane];
                lane.count(if is_sent { Counter::UpstreamSent } else { Counter::UpstreamNotSent });
                if is_sent {
                    if let Some(flight) = self.flights.get(place) {
                        flight.server.sent.fetch_add(1, Relaxed);
                    }
                } else if let Some(flight) = self.land(core, *place) {
                    flight.server.not_sent(error.unwrap_or(0));
                    let Some((key, serial)) = flight.question else { continue };
                    self.attempt(core, poller, key, serial, flight.attempt + 1, flight.reason, replies);
                }
            }
        }
    }

    /// A random socket among the open ones, replaced first when it is worn.
    fn pick(&mut self, core: &Core, poller: &Poller, is_ipv4: bool, now_ms: u64) -> Option<u32> {
        let family = usize::from(is_ipv4);
        while self.active[family].len() < self.source_sockets {
            match self.open(core, poller, is_ipv4, now_ms) {
                Some(at) => self.active[family].push(at),
                None => break,
            }
        }
        if self.active[family].is_empty() {
            return None;
        }
        let place = self.entropy.draw() as usize % self.active[family].len();
        let at = self.active[family][place];
        let source = self.sources.get(&at)?;
        if source.uses < MAX_USES && now_ms < source.opened_ms + MAX_AGE_MS {
            return Some(at);
        }
        // Out of descriptors, a worn socket is better than none; the counter says so.
        let Some(fresh) = self.open(core, poller, is_ipv4, now_ms) else {
            core.lanes[self.lane].count(Counter::UpstreamNoSocket);
            return Some(at);
        };
        self.active[family][place] = fresh;
        if let Some(worn) = self.sources.get_mut(&at) {
            worn.is_retired = true;
        }
        self.close_if_done(core, at);
        Some(fresh)
    }

    fn open(&mut self, core: &Core, poller: &Poller, is_ipv4: bool, now_ms: u64) -> Option<u32> {
        if self.sources.len() >= SOCKETS_A_SOURCE * self.source_sockets {
            return None;
        }
        for _ in 0..16 {
            let span = u64::from(u16::MAX - FIRST_PORT) + 1;
            let port = FIRST_PORT + (self.entropy.draw() % span) as u16;
            let Ok(socket) = open_source(is_ipv4, port) else { continue };
            let at = self.next_source;
            self.next_source = self.next_source.wrapping_add(1);
            poller.watch(socket.as_raw_fd(), TOKEN_MARK | u64::from(at)).ok()?;
            core.source_ports.opened(is_ipv4, port);
            let source =
                Source { socket, is_ipv4, port, uses: 0, opened_ms: now_ms, flying: Vec::new(), is_retired: false };
            self.sources.insert(at, source);
            return Some(at);
        }
        None
    }

    fn close_if_done(&mut self, core: &Core, at: u32) {
        if self.sources.get(&at).is_some_and(|s| s.is_retired && s.flying.is_empty()) {
            if let Some(source) = self.sources.remove(&at) {
                core.source_ports.closed(source.is_ipv4, source.port);
            }
        }
    }

    fn land(&mut self, core: &Core, place: (u32, u16)) -> Option<Flight> {
        let flight = self.flights.remove(&place)?;
        if let Some(source) = self.sources.get_mut(&place.0) {
            source.flying.retain(|&id| id != place.1);
        }
        self.close_if_done(core, place.0);
        Some(flight)
    }

    /// Reads what came to one of our sockets.
    pub fn receive(&mut self, core: &Core, poller: &Poller, token: u64, inbound: &mut Inbound, replies: &mut Outbound) {
        let at = token as u32;
        let Some(source) = self.sources.get(&at) else { return };
        let count = inbound.receive(source.socket.as_raw_fd());
        self.now_us = core.now_us();
        for index in 0..count {
            if let Some(peer) = inbound.peer(index) {
                let datagram = inbound.datagram(index);
                self.consider(core, poller, at, datagram.octets, datagram.is_cut, peer, replies);
            }
        }
        self.depart(core, poller, replies);
    }

    fn consider(
        &mut self,
        core: &Core,
        poller: &Poller,
        at: u32,
        packet: &[u8],
        is_cut: bool,
        peer: SocketAddr,
        replies: &mut Outbound,
    ) {
        let lane = &core.lanes[self.lane];
        let Some(&[high, low]) = packet.first_chunk() else {
            lane.count(Counter::UpstreamUnexpected);
            return;
        };
        let place = (at, u16::from_be_bytes([high, low]));
        let Some(flight) = self.flights.get(&place).filter(|f| f.peer == peer) else {
            self.suspect(core, at, packet, peer, replies);
            return;
        };
        let probe;
        let key = match &flight.question {
            Some((key, _)) => key,
            None => {
                probe = probe_key();
                &probe
            }
        };
        let mut result = core.read_answer(self.lane, packet, key);
        if matches!(result, Err(Problem::NotOurs)) {
            // Not the question that is pending: the real answer may still come.
            return;
        }
        if is_cut && result.is_err() {
            result = Err(Problem::Truncated);
        }
        let Some(flight) = self.land(core, place) else { return };
        let server = &flight.server;
        server.silent_in_a_row.store(0, Relaxed);
        if let (true, Some((key, serial))) = (Edns::is_refusal(flight.opt, &result), &flight.question) {
            // No failure yet: the same server may answer the same question without OPT.
            let (again, repeats) = (Some((key, *serial)), Some(flight.is_late));
            let is_pending = core.pending.since(key, *serial).is_some();
            if !is_pending
                || self.send(core, poller, again, server.clone(), flight.attempt, repeats, flight.reason, replies)
            {
                return;
            }
        }
        // Of a probe any answer is one: servers of a zone alone refuse to speak of the root.
        let is_answer = matches!(result, Ok(_) | Err(Problem::Truncated | Problem::Chain)) || flight.question.is_none();
        if is_answer {
            server.edns.answered(flight.opt, self.now_us / 1000);
            server.answered.fetch_add(1, Relaxed);
            server.waited_us.fetch_add(self.now_us.saturating_sub(flight.sent_us), Relaxed);
            lane.count(Counter::UpstreamAnswered);
        } else {
            server.failed.fetch_add(1, Relaxed);
        }
        let Some((key, serial)) = flight.question else { return };
        match result {
            Ok(answer) => core.finish(self.lane, &key, answer, replies),
            Err(Problem::Truncated) => {
                let id = self.entropy.draw_short();
                core.want_stream(self.lane, &key, serial, &flight.server, id, false, replies);
            }
            Err(Problem::Chain) => core.fail(self.lane, &key, serial, Failure::Chain, replies),
            // Late, another server is being asked already.
            Err(_) if flight.is_late => {}
            Err(_) => self.attempt(core, poller, key, serial, flight.attempt + 1, Failure::Refused, replies),
        }
    }

    /// A reply with an ID that we did not send: from the right server with a pending question, somebody is guessing,
    /// and a stream asks too, where guessing does not help. The first good answer is served. Anything else is noise.
    fn suspect(&mut self, core: &Core, at: u32, packet: &[u8], peer: SocketAddr, replies: &mut Outbound) {
        let lane = &core.lanes[self.lane];
        // Only what left from this socket: a forged packet must not cost more when more is under way.
        let flying = self.sources.get(&at).map_or(&[][..], |source| &source.flying);
        let guessed = flying.iter().map(|&id| (at, id)).find(|place| {
            let flight = self.flights.get(place).filter(|flight| flight.peer == peer);
            flight.and_then(|flight| flight.question.as_ref()).is_some_and(|(key, _)| is_about(packet, key))
        });
        let Some(flight) = guessed.and_then(|place| self.flights.get_mut(&place)) else {
            lane.count(Counter::UpstreamUnexpected);
            return;
        };
        lane.count(Counter::UpstreamWrongId);
        if flight.is_suspected {
            return;
        }
        flight.is_suspected = true;
        if let Some((key, serial)) = flight.question.clone() {
            let server = Arc::clone(&flight.server);
            core.want_stream(self.lane, &key, serial, &server, self.entropy.draw_short(), true, replies);
        }
    }

    /// Asks the next server where patience is over; says how long the thread may sleep, milliseconds.
    pub fn expire(&mut self, core: &Core, poller: &Poller, replies: &mut Outbound) -> u64 {
        self.now_us = core.now_us();
        let sleep = self.expire_until(core, poller, self.now_us / 1000, replies);
        self.depart(core, poller, replies);
        sleep
    }

    fn expire_until(&mut self, core: &Core, poller: &Poller, now_ms: u64, replies: &mut Outbound) -> u64 {
        while let Some(&(ending, place, number)) = self.endings.front() {
            if ending > now_ms {
                break;
            }
            self.endings.pop_front();
            if self.flights.get(&place).is_some_and(|flight| flight.number == number) {
                // Silent to the end: late is slow, and no more than that.
                if let Some(flight) = self.land(core, place) {
                    flight.server.silent_in_a_row.fetch_add(1, Relaxed);
                }
            }
        }
        while self.last_hopes.front().is_some_and(|&(until_ms, ..)| until_ms <= now_ms) {
            let Some((_, key, serial)) = self.last_hopes.pop_front() else { break };
            core.fail(self.lane, &key, serial, Failure::Unreachable, replies);
        }
        while let Some(&(deadline, place, number)) = self.deadlines.front() {
            let flight = self.flights.get_mut(&place).filter(|flight| flight.number == number);
            if flight.is_some() && deadline > now_ms {
                return deadline - now_ms;
            }
            self.deadlines.pop_front();
            let Some(flight) = flight else { continue };
            if flight.is_late {
                continue;
            }
            core.lanes[self.lane].count(Counter::UpstreamTimedOut);
            flight.server.timed_out.fetch_add(1, Relaxed);
            flight.server.edns.timed_out(flight.opt);
            flight.is_late = true;
            let Some((key, serial)) = flight.question.clone() else { continue };
            let next = flight.attempt + 1;
            // Beside a forger's target, other servers are asked first; where there is none, the stream is all there is.
            let has_others = flight.is_suspected && next < core.pair.load().servers(key.route).len();
            if core.rely_on_stream(serial, has_others) && !has_others {
                continue;
            }
            self.attempt(core, poller, key, serial, next, Failure::Unreachable, replies);
        }
        self.last_hopes.front().map_or(u64::MAX, |&(until_ms, ..)| until_ms.saturating_sub(now_ms).max(1))
    }
}

/// Whether a reply's question is this one, byte for byte but for case.
fn is_about(packet: &[u8], key: &Key) -> bool {
    let mut reader = wire::Reader::new(packet, wire::HEADER_OCTETS);
    packet.get(4..6) == Some(&[0, 1])
        && FoldedName::read(&mut reader) == Some(key.name)
        && reader.short() == Some(key.qtype)
        && reader.short() == Some(wire::CLASS_IN)
}
