//! Asks a resolver as fast as it answers, or at a rate, and checks ID, question and rcode of every answer.
//!
//! Queries come from a file, `NAME TYPE RCODE` a line, in its order and over again; RCODE is the number that the answer
//! must have. In the closed loop each socket keeps its share of questions in flight; in the open loop questions are due
//! by the clock, and latency counts from when a question was due, so that a stall is seen by all that it held up.

use blockd_load::{BATCH, Batch, open, question_end, raw_address};
use hdrhistogram::Histogram;
use lexopt::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// IDs that one socket uses at a time: the upper half of an ID tells a late answer from the next question's.
const SLOTS: usize = 256;
/// Most wrong answers that the report shows.
const SHOWN: usize = 3;

struct Options {
    server: SocketAddr,
    file: String,
    sockets: usize,
    sources: u32,
    in_flight: usize,
    rate: f64,
    seconds: f64,
    once: bool,
    edns: bool,
    patience: Duration,
    /// Sleep when nothing is to be done: for a second generator on the same core.
    nap: Duration,
    /// Every so often, a line on what happened since the last one, seconds; 0 is never.
    every: f64,
}

fn options() -> Result<Options, lexopt::Error> {
    let mut options = Options {
        server: SocketAddr::from(([127, 0, 0, 1], 53)),
        file: String::new(),
        sockets: 16,
        sources: 1,
        in_flight: 1024,
        rate: 0.0,
        seconds: 5.0,
        once: false,
        edns: false,
        patience: Duration::from_millis(2_500),
        nap: Duration::ZERO,
        every: 0.0,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("server") => options.server = parser.value()?.parse()?,
            Long("queries") => options.file = parser.value()?.string()?,
            Long("sockets") => options.sockets = parser.value()?.parse()?,
            Long("sources") => options.sources = parser.value()?.parse()?,
            Long("in-flight") => options.in_flight = parser.value()?.parse()?,
            Long("rate") => options.rate = parser.value()?.parse()?,
            Long("seconds") => options.seconds = parser.value()?.parse()?,
            Long("patience-ms") => options.patience = Duration::from_millis(parser.value()?.parse()?),
            Long("nap-us") => options.nap = Duration::from_micros(parser.value()?.parse()?),
            Long("every") => options.every = parser.value()?.parse()?,
            Long("once") => options.once = true,
            Long("edns") => options.edns = true,
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(options)
}

struct Query {
    at: u32,
    octets: u16,
    question_octets: u16,
    rcode: u8,
}

/// All queries, as they are sent but for the ID.
struct Queries {
    wire: Vec<u8>,
    all: Vec<Query>,
}

fn read_queries(options: &Options) -> Result<Queries, String> {
    let text = std::fs::read_to_string(&options.file).map_err(|error| format!("{}: {error}", options.file))?;
    let mut queries = Queries { wire: Vec::new(), all: Vec::new() };
    for (number, line) in text.lines().enumerate() {
        let wrong = |why: &str| format!("{}:{}: {why}: NAME TYPE RCODE is expected", options.file, number + 1);
        let words: Vec<&str> = line.split(' ').collect();
        let [name, rtype, rcode] = words[..] else { return Err(wrong("three words")) };
        let rtype: u16 = match rtype {
            "A" => 1,
            "AAAA" => 28,
            "HTTPS" => 65,
            "TXT" => 16,
            _ => return Err(wrong("no type that is known here")),
        };
        let at = queries.wire.len();
        queries.wire.extend_from_slice(&[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(options.edns)]);
        for label in name.trim_end_matches('.').split('.') {
            if label.is_empty() || label.len() > 63 {
                return Err(wrong("no name"));
            }
            queries.wire.push(label.len() as u8);
            queries.wire.extend_from_slice(label.as_bytes());
        }
        queries.wire.push(0);
        queries.wire.extend_from_slice(&rtype.to_be_bytes());
        queries.wire.extend_from_slice(&[0, 1]);
        let question_octets = (queries.wire.len() - at - 12) as u16;
        if options.edns {
            queries.wire.extend_from_slice(&[0, 0, 41, 0x04, 0xD0, 0, 0, 0, 0, 0, 0]);
        }
        queries.all.push(Query {
            at: at as u32,
            octets: (queries.wire.len() - at) as u16,
            question_octets,
            rcode: rcode.parse().map_err(|_| wrong("no number"))?,
        });
    }
    if queries.all.is_empty() { Err(format!("{}: no query", options.file)) } else { Ok(queries) }
}

#[derive(Clone, Copy, Default)]
struct Slot {
    query: u32,
    generation: u8,
    is_used: bool,
    due_ns: u64,
}

struct Source {
    socket: UdpSocket,
    slots: [Slot; SLOTS],
    free: Vec<u8>,
    next_source: u32,
}

#[derive(Default)]
struct Tally {
    sent: u64,
    answered: u64,
    lost: u64,
    late: u64,
    wrong: u64,
    /// SERVFAIL where an answer was expected: what a server says that sheds.
    failed: u64,
    not_sent: u64,
    shown: Vec<String>,
}

struct Load<'a> {
    options: &'a Options,
    queries: &'a Queries,
    peer: (libc::sockaddr_storage, libc::socklen_t),
    next: usize,
    /// Questions under way on all sockets.
    open: usize,
    tally: Tally,
    latency: Histogram<u64>,
    since_line: Histogram<u64>,
    started: Instant,
}

impl Load<'_> {
    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn is_all_asked(&self) -> bool {
        self.options.once && self.next >= self.queries.all.len()
    }

    /// The address that the next query leaves from: 127.1.0.0 and up, or fd00:b10c:: and up; 1 is the plain loopback.
    fn source_address(&self, number: u32) -> IpAddr {
        let number = number % self.options.sources.max(1);
        match (self.options.server, self.options.sources) {
            (SocketAddr::V4(_), 0 | 1) => Ipv4Addr::LOCALHOST.into(),
            (SocketAddr::V6(_), 0 | 1) => Ipv6Addr::LOCALHOST.into(),
            (SocketAddr::V4(_), _) => Ipv4Addr::from_bits(0x7F01_0000 + number).into(),
            (SocketAddr::V6(_), _) => {
                Ipv6Addr::from_bits((0xFD00_B10C_u128 << 96) + (u128::from(number) << 64) + 1).into()
            }
        }
    }

    /// Sends up to `count` queries from one socket; `due_ns` gives when the nth was due.
    fn send(&mut self, source: &mut Source, batch: &mut Batch, count: usize, due_ns: impl Fn(usize) -> u64) -> usize {
        let count = count.min(BATCH);
        for number in 0..count {
            if self.is_all_asked() {
                break;
            }
            let Some(at) = source.free.pop() else { break };
            let query = self.next % self.queries.all.len();
            self.next += 1;
            let slot = &mut source.slots[usize::from(at)];
            *slot = Slot {
                query: query as u32,
                generation: slot.generation.wrapping_add(1),
                is_used: true,
                due_ns: due_ns(number),
            };
            self.open += 1;
            let generation = slot.generation;
            let Query { at: start, octets, .. } = self.queries.all[query];
            let wire = &self.queries.wire[start as usize..start as usize + usize::from(octets)];
            let buffer = batch.buffer();
            buffer[..wire.len()].copy_from_slice(wire);
            (buffer[0], buffer[1]) = (generation, at);
            source.next_source = source.next_source.wrapping_add(1);
            let address = self.source_address(source.next_source);
            batch.push_query(wire.len(), &self.peer, address);
        }
        let wanted = batch.len();
        let sent = batch.send(&source.socket);
        // What the kernel did not take is still in its slot, and will be counted as lost.
        self.tally.not_sent += (wanted - sent) as u64;
        self.tally.sent += wanted as u64;
        wanted
    }

    /// Reads what came to one socket.
    fn receive(&mut self, source: &mut Source, batch: &mut Batch) -> usize {
        let count = batch.receive(&source.socket, false, false);
        let now_ns = if count > 0 { self.now_ns() } else { 0 };
        for at in 0..count {
            let answer = batch.datagram(at);
            if answer.len() < 12 {
                self.show("too short", answer);
                continue;
            }
            let slot = &mut source.slots[usize::from(answer[1])];
            if !slot.is_used || slot.generation != answer[0] {
                self.tally.late += 1;
                continue;
            }
            let query = &self.queries.all[slot.query as usize];
            let start = query.at as usize + 12;
            let question = &self.queries.wire[start..start + usize::from(query.question_octets)];
            let is_question = question_end(answer).is_some_and(|end| &answer[12..end] == question);
            // An answer that is cut, or that is positive and empty, is none.
            let is_whole = answer[2] & 0x82 == 0x80 && (query.rcode != 0 || answer[6..8] != [0, 0]);
            let is_right = is_question && is_whole && answer[3] & 0x0F == query.rcode;
            slot.is_used = false;
            source.free.push(answer[1]);
            self.open -= 1;
            if is_question && query.rcode == 0 && answer[3] & 0x0F == 2 {
                self.tally.failed += 1;
                continue;
            }
            if !is_right {
                self.show(if is_question { "another rcode" } else { "another question" }, answer);
                continue;
            }
            self.tally.answered += 1;
            let took_us = now_ns.saturating_sub(slot.due_ns) / 1000;
            self.latency.saturating_record(took_us.max(1));
            if self.options.every > 0.0 {
                self.since_line.saturating_record(took_us.max(1));
            }
        }
        count
    }

    fn show(&mut self, why: &str, answer: &[u8]) {
        self.tally.wrong += 1;
        if self.tally.shown.len() < SHOWN {
            self.tally.shown.push(format!("{why}: {:02x?}", &answer[..answer.len().min(80)]));
        }
    }

    /// Gives up what waits too long.
    fn expire(&mut self, source: &mut Source) {
        let now_ns = self.now_ns();
        let patience_ns = self.options.patience.as_nanos() as u64;
        for (at, slot) in source.slots.iter_mut().enumerate() {
            if slot.is_used && now_ns > slot.due_ns + patience_ns {
                slot.is_used = false;
                source.free.push(at as u8);
                self.open -= 1;
                self.tally.lost += 1;
            }
        }
    }
}

/// Takes as many descriptors as the hard limit allows: 1,000 sockets are more than the usual soft one.
fn allow_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives through both calls; on failure the limit stays as it is.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000, 3).expect("the bounds are constants")
}

fn quantiles(histogram: &Histogram<u64>) -> serde_json::Value {
    serde_json::json!({
        "p50": histogram.value_at_quantile(0.5),
        "p99": histogram.value_at_quantile(0.99),
        "p99.9": histogram.value_at_quantile(0.999),
        "max": histogram.max(),
    })
}

fn run() -> Result<(), String> {
    let options = options().map_err(|error| error.to_string())?;
    let queries = read_queries(&options)?;
    allow_many_files();
    let any: IpAddr =
        if options.server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut sources = Vec::new();
    for at in 0..options.sockets.max(1) {
        let socket = open(SocketAddr::new(any, 0)).map_err(|error| format!("a socket: {error}"))?;
        socket.set_nonblocking(true).map_err(|error| error.to_string())?;
        let next_source = (at as u32) * (options.sources / options.sockets.max(1) as u32);
        sources.push(Source { socket, slots: [Slot::default(); SLOTS], free: (0..=255).rev().collect(), next_source });
    }
    let window = (options.in_flight / sources.len()).clamp(1, SLOTS);
    let mut load = Load {
        options: &options,
        queries: &queries,
        peer: raw_address(options.server),
        next: 0,
        open: 0,
        tally: Tally::default(),
        latency: histogram(),
        since_line: histogram(),
        started: Instant::now(),
    };
    let (mut outbound, mut inbound) = (Batch::default(), Batch::default());
    let end_ns = (options.seconds * 1e9) as u64;
    let step_ns = if options.rate > 0.0 { 1e9 / options.rate } else { 0.0 };
    let (mut due, mut missed) = (0u64, 0u64);
    let (mut expired_ns, mut line_ns, mut at) = (0u64, 0u64, 0usize);
    let mut line_answered = 0;
    loop {
        let now_ns = load.now_ns();
        let is_over = load.is_all_asked() || (!options.once && now_ns >= end_ns);
        let source = &mut sources[at];
        at = (at + 1) % options.sockets.max(1);
        let received = load.receive(source, &mut inbound);
        if received == 0 && at == 0 && !options.nap.is_zero() {
            std::thread::sleep(options.nap);
        }
        if !is_over && options.rate > 0.0 {
            let wanted = (now_ns as f64 / step_ns) as u64;
            // A socket's turn comes often: what is due is sent in the order in which it was due.
            let count = (wanted.saturating_sub(due) as usize).min(BATCH);
            let first = due;
            let sent =
                load.send(source, &mut outbound, count, |number| ((first + number as u64) as f64 * step_ns) as u64);
            due += sent as u64;
            // With no ID free anywhere the server is far behind: the question is not asked, and counted.
            if sent < count && wanted.saturating_sub(due) > 4 * BATCH as u64 {
                let skipped = wanted - due;
                missed += skipped;
                due += skipped;
            }
        } else if !is_over {
            let used = SLOTS - source.free.len();
            // With more sockets than questions in flight, some sockets wait for their turn.
            let room = window.saturating_sub(used).min(options.in_flight.saturating_sub(load.open));
            if room > 0 {
                // In whole batches where there is room: a system call for one query would cost more than the query.
                let now_ns = load.now_ns();
                load.send(source, &mut outbound, room, |_| now_ns);
            }
        }
        if now_ns > expired_ns + 50_000_000 {
            expired_ns = now_ns;
            sources.iter_mut().for_each(|source| load.expire(source));
            if is_over && sources.iter().all(|source| source.free.len() == SLOTS) {
                break;
            }
        }
        if options.every > 0.0 && now_ns > line_ns + (options.every * 1e9) as u64 {
            let line = serde_json::json!({
                "at": now_ns as f64 / 1e9,
                "answered": load.tally.answered - line_answered,
                "latency_us": quantiles(&load.since_line),
            });
            println!("{line}");
            line_ns = now_ns;
            line_answered = load.tally.answered;
            load.since_line.reset();
        }
    }
    let elapsed = load.started.elapsed().as_secs_f64().min(if options.once { f64::MAX } else { options.seconds });
    let tally = &load.tally;
    let report = serde_json::json!({
        "sent": tally.sent,
        "answered": tally.answered,
        "lost": tally.lost,
        "late": tally.late,
        "wrong": tally.wrong,
        "failed": tally.failed,
        "not_sent": tally.not_sent,
        "not_asked": missed,
        "seconds": elapsed,
        "rate": tally.answered as f64 / elapsed,
        "latency_us": quantiles(&load.latency),
        "shown": tally.shown,
    });
    println!("{report}");
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("load: {error}");
        std::process::exit(2);
    }
}
