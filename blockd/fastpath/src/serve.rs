//! The serve threads: one a core, each with its own listening sockets and its own exchanges.

use crate::counters::{Counter, Took};
use crate::exchange::{Exchanger, TOKEN_MARK};
use crate::identity::Identity;
use crate::lock;
use crate::pending::Origin;
use crate::resolve::{Arrival, Asked, Core, Outcome};
use crate::sockets::{BATCH, Inbound, Outbound, Poller, Replies, ReturnPath, adopt, dropped, listen};
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
/// How often those are let go whom nobody will answer, milliseconds.
const SWEEP_MS: u64 = 500;

struct Listener {
    socket: OwnedFd,
    /// What the kernel had dropped when this was last looked at; None at a copy, which another thread counts.
    dropped: Option<u32>,
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
                set.push(Listener { socket, dropped: Some(0) });
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
            self.0[at % threads].push(Listener { socket, dropped });
        }
        Ok(())
    }

    /// Starts the threads.
    pub fn serve(self, core: &Arc<Core>) -> io::Result<Vec<JoinHandle<()>>> {
        self.0
            .into_iter()
            .enumerate()
            .map(|(lane, listeners)| {
                let core = Arc::clone(core);
                let server = Thread::new(lane, listeners, &core)?;
                std::thread::Builder::new().name(format!("blockd-serve-{lane}")).spawn(move || server.run(&core))
            })
            .collect()
    }
}

struct Thread {
    lane: usize,
    listeners: Vec<Listener>,
    poller: Poller,
}

impl Thread {
    fn new(lane: usize, listeners: Vec<Listener>, core: &Core) -> io::Result<Self> {
        let poller = Poller::new()?;
        for (at, listener) in listeners.iter().enumerate() {
            poller.watch_shared(listener.socket.as_raw_fd(), at as u64)?;
        }
        poller.watch(core.inboxes[lane].bell.fd(), INBOX)?;
        Ok(Self { lane, listeners, poller })
    }

    fn run(mut self, core: &Core) {
        let inbox = &core.inboxes[self.lane];
        let mut inbound = Inbound::default();
        let mut at_once = Replies::default();
        let mut names = vec![FoldedName::ROOT; BATCH];
        let mut replies = Outbound::default();
        let mut exchanger = Exchanger::new(self.lane);
        let mut ready = Vec::new();
        let mut swept_ms = 0;
        let mut is_listening = true;
        while !core.is_stopping.load(Relaxed) {
            inbox.beats.fetch_add(1, Relaxed);
            if is_listening && core.is_draining.load(Relaxed) {
                is_listening = false;
                self.listeners.iter().for_each(|listener| self.poller.forget(listener.socket.as_raw_fd()));
            }
            let sleep = exchanger.expire(core, &self.poller, &mut replies).min(LONGEST_SLEEP_MS);
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
                    let socket = self.listeners[token as usize].socket.as_raw_fd();
                    self.serve_batch(
                        core,
                        socket,
                        &mut inbound,
                        &mut names,
                        &mut at_once,
                        &mut exchanger,
                        &mut replies,
                    );
                }
            }
            let now_ms = core.now_us() / 1000;
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
        &self,
        core: &Core,
        socket: RawFd,
        inbound: &mut Inbound,
        names: &mut [FoldedName],
        at_once: &mut Replies,
        exchanger: &mut Exchanger,
        replies: &mut Outbound,
    ) {
        let lane = &core.lanes[self.lane];
        let count = inbound.receive(socket);
        if count == 0 {
            return;
        }
        let now_us = core.now_us();
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
