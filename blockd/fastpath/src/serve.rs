//! The serve threads: one a core, each with its own listening sockets and its own exchanges.

use crate::counters::{Counter, Took};
use crate::exchange::{Exchanger, TOKEN_MARK};
use crate::identity::Identity;
use crate::lock;
use crate::pending::Origin;
use crate::resolve::{Arrival, Asked, Core, Outcome};
use crate::sockets::{BATCH, Inbound, Outbound, Poller, Replies, ReturnPath, adopt, dropped, is_half_full, listen};
use crate::wire::FoldedName;
use crate::{cache, wire};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

/// The token of the inbox among the poller's.
const INBOX: u64 = 1 << 62;
/// Longest sleep: how stale a beat may be, and how late a stop.
const LONGEST_SLEEP_MS: u64 = 250;
/// A burst that is over by then is none of overload's business, microseconds: buffers are for that.
const BURST_US: u64 = 20_000;
/// A busy thread comes back to its socket sooner, also one that gets a share of a core only.
const PAUSE_US: u64 = 50_000;
/// Names of a batch that are asked upstream whatever comes: without any, a flood that lasts would let the cache run out.
const ASKED_IN_OVERLOAD: usize = 1;
/// How often a busy thread asks the kernel how full the buffer is.
const LOOK_US: u64 = 1_000;
/// How often those are let go whom nobody will answer, milliseconds.
const SWEEP_MS: u64 = 500;

struct Listener {
    socket: OwnedFd,
    /// What the kernel had dropped when this was last looked at; None at a copy, which another thread counts.
    dropped: Option<u32>,
    /// Since when every batch was full, and when the last one was, microseconds.
    busy_since_us: u64,
    busy_us: u64,
    looked_us: u64,
    is_overloaded: bool,
}

impl Listener {
    fn new(socket: OwnedFd, dropped: Option<u32>) -> Self {
        Self { socket, dropped, busy_since_us: 0, busy_us: 0, looked_us: 0, is_overloaded: false }
    }

    /// Looks at what a batch of so many says: queries came faster than they were read for a while, and half of what the
    /// kernel holds of them is used. Then misses are shed, before the kernel drops what could be answered at once.
    fn look(&mut self, count: usize, now_us: u64) {
        if count < BATCH {
            (self.busy_us, self.is_overloaded) = (0, false);
            return;
        }
        // A batch that was full long ago begins no burst: there was nothing to read in between.
        if now_us > self.busy_us + PAUSE_US {
            (self.busy_since_us, self.is_overloaded) = (now_us, false);
        }
        self.busy_us = now_us;
        if now_us >= self.busy_since_us + BURST_US && now_us >= self.looked_us + LOOK_US {
            self.looked_us = now_us;
            self.is_overloaded = is_half_full(self.socket.as_raw_fd());
        }
    }
}

/// Listening sockets, one set a thread: `sockets[thread][address]`.
pub struct Listeners(Vec<Vec<Listener>>);

impl Listeners {
    /// Opens them all; the error names the address.
    pub fn open(addresses: &[SocketAddr], threads: usize) -> Result<Self, (SocketAddr, io::Error)> {
        let mut sets: Vec<Vec<Listener>> = (0..threads).map(|_| Vec::new()).collect();
        for &address in addresses {
            let sockets = listen(address, threads).map_err(|error| (address, error))?;
            for (set, socket) in sets.iter_mut().zip(sockets) {
                set.push(Listener::new(socket, Some(0)));
            }
        }
        Ok(Self(sets))
    }

    /// Takes in the sockets of one address that a supervisor opened: every thread gets one, every socket has a thread;
    /// where they are fewer than threads, some share one. Our own copies: the supervisor's stay open behind us.
    pub fn adopt(&mut self, sockets: &[RawFd]) -> io::Result<()> {
        let threads = self.0.len();
        for at in 0..sockets.len().max(if sockets.is_empty() { 0 } else { threads }) {
            let socket = adopt(sockets[at % sockets.len()])?;
            // What was dropped before we ran is no loss of ours.
            let dropped = (at < sockets.len()).then(|| dropped(socket.as_raw_fd()));
            self.0[at % threads].push(Listener::new(socket, dropped));
        }
        Ok(())
    }

    /// Starts the threads.
    pub fn serve(self, core: &Arc<Core>, source_sockets: usize) -> io::Result<Vec<JoinHandle<()>>> {
        self.0
            .into_iter()
            .enumerate()
            .map(|(lane, listeners)| {
                let core = Arc::clone(core);
                let server = Thread::new(lane, listeners, &core, source_sockets)?;
                std::thread::Builder::new().name(format!("blockd-serve-{lane}")).spawn(move || server.run(&core))
            })
            .collect()
    }
}

struct Thread {
    lane: usize,
    listeners: Vec<Listener>,
    poller: Poller,
    source_sockets: usize,
}

impl Thread {
    fn new(lane: usize, listeners: Vec<Listener>, core: &Core, source_sockets: usize) -> io::Result<Self> {
        let poller = Poller::new()?;
        for (at, listener) in listeners.iter().enumerate() {
            poller.watch_shared(listener.socket.as_raw_fd(), at as u64)?;
        }
        poller.watch(core.inboxes[lane].bell.fd(), INBOX)?;
        Ok(Self { lane, listeners, poller, source_sockets })
    }

    fn run(mut self, core: &Core) {
        let inbox = &core.inboxes[self.lane];
        let mut inbound = Inbound::default();
        let mut at_once = Replies::default();
        let mut names = vec![FoldedName::ROOT; BATCH];
        let mut replies = Outbound::default();
        let mut exchanger = Exchanger::new(self.lane, self.source_sockets);
        let mut ready = Vec::new();
        let mut swept_ms = 0;
        let mut is_listening = true;
        while !core.is_stopping.load(Relaxed) {
            inbox.beats.fetch_add(1, Relaxed);
            if is_listening && core.is_draining.load(Relaxed) {
                is_listening = false;
                self.listeners.iter().for_each(|listener| self.poller.forget(listener.socket.as_raw_fd()));
            }
            let mut sleep = exchanger.expire(core, &self.poller, &mut replies).min(LONGEST_SLEEP_MS);
            let due_ms = core.learner.due_ms();
            if due_ms != u64::MAX {
                sleep = sleep.min(due_ms.saturating_sub(core.now_us() / 1000));
            }
            // Whoever was given up is told before the thread sleeps.
            core.send_late(self.lane, &mut replies);
            self.poller.wait(Duration::from_millis(sleep), &mut ready);
            for &token in &ready {
                if token == INBOX {
                    inbox.bell.hush();
                    let commands = std::mem::take(&mut *lock(&inbox.commands));
                    for command in commands {
                        exchanger.obey(core, &self.poller, command, &mut replies);
                    }
                } else if token & TOKEN_MARK != 0 {
                    exchanger.receive(core, &self.poller, token, &mut inbound, &mut replies);
                } else {
                    self.serve_batch(
                        core,
                        token as usize,
                        &mut inbound,
                        &mut names,
                        &mut at_once,
                        &mut exchanger,
                        &mut replies,
                    );
                }
            }
            let now_ms = core.now_us() / 1000;
            core.let_late_go(self.lane, now_ms, &mut replies);
            if now_ms >= swept_ms + SWEEP_MS {
                swept_ms = now_ms;
                self.count_dropped(core);
                if self.lane == 0 {
                    core.sweep(self.lane, &mut replies);
                }
            }
            core.send_late(self.lane, &mut replies);
        }
    }

    fn count_dropped(&mut self, core: &Core) {
        for listener in &mut self.listeners {
            if let Some(before) = &mut listener.dropped {
                let now = dropped(listener.socket.as_raw_fd());
                let count = u64::from(now.wrapping_sub(*before));
                core.lanes[self.lane].count_many(Counter::QueriesNotRead, count);
                *before = now;
            }
        }
    }

    fn serve_batch(
        &mut self,
        core: &Core,
        at: usize,
        inbound: &mut Inbound,
        names: &mut [FoldedName],
        at_once: &mut Replies,
        exchanger: &mut Exchanger,
        replies: &mut Outbound,
    ) {
        let lane = &core.lanes[self.lane];
        let listener = &mut self.listeners[at];
        let socket = listener.socket.as_raw_fd();
        let count = inbound.receive(socket);
        if count == 0 {
            return;
        }
        let now_us = core.now_us();
        listener.look(count, now_us);
        let is_overloaded = listener.is_overloaded;
        // Loaded after the batch was received: whatever was published before is obeyed. Pinned once, for all lookups.
        let pair = core.pair.load();
        let pinned = cache::pin();
        let rejudged = lane.read(Counter::CacheRejudged as usize);
        let inbound = &*inbound;
        // Each step touches memory that the one before had fetched: with a million entries, the processor would wait for
        // three cache misses a query, and so it waits for those of a whole batch at once.
        let mut asked = Vec::with_capacity(BATCH);
        for (at, name) in names[..count].iter_mut().enumerate() {
            let datagram = inbound.datagram(at);
            // A query longer than the buffer is no query: its header alone reads as FORMERR.
            let octets =
                if datagram.is_cut { datagram.octets.get(..wire::HEADER_OCTETS) } else { Some(datagram.octets) };
            asked.push(core.read(octets.unwrap_or(&[]), name));
        }
        for octets in [false, true] {
            for asked in &asked {
                if let Asked::Question(_, hashed) = asked {
                    core.cache.fetch(hashed, octets, &pinned);
                }
            }
        }
        let mut replied = 0;
        let mut asks = Vec::new();
        for (at, asked) in asked.iter().enumerate() {
            let Some(peer) = inbound.peer(at) else { continue };
            if peer.port() == 0 {
                lane.count(Counter::QueriesUdp);
                lane.count(Counter::DroppedNoQuery);
                continue;
            }
            let arrival = Arrival {
                lane: self.lane,
                identity: Identity::from(peer),
                origin: &|| Origin::Datagram(ReturnPath { socket, peer, local: inbound.local(at) }),
                is_stream: false,
                is_overloaded: is_overloaded && asks.len() >= ASKED_IN_OVERLOAD,
            };
            match core.answer(&pair, &arrival, asked, now_us, at_once.buffer()) {
                Outcome::Reply => {
                    at_once.push(inbound, at);
                    replied += 1;
                }
                Outcome::Ask(key, serial) => asks.push((key, serial)),
                Outcome::Silence | Outcome::Waiting => {}
            }
        }
        let lost = at_once.send(socket, inbound);
        for _ in 0..lost {
            lane.count(Counter::RepliesNotSent);
        }
        if replied > lost {
            lane.observe(Took::Hit, core.now_us().saturating_sub(now_us), (replied - lost) as u64);
        }
        if lane.read(Counter::CacheRejudged as usize) != rejudged {
            // After a reload every batch replaces entries: what it replaced is freed now, not some hundred batches later.
            pinned.flush();
        }
        exchanger.ask(core, &self.poller, asks, replies);
    }
}
