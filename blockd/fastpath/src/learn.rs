//! What answers say where apps are, for a firewall that is to know it before any client does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::cache::{Entry, Key};
use crate::counters::{Counter, Lane};
use crate::identity::Address;
use crate::inspect::{self, Answer, Targets};
use crate::lock;
use crate::resolve::{Core, Work};
use crate::sockets::Outbound;
use crate::wire::FoldedName;

/// Answers that are held at once; one more leaves at once, and is counted.
const MOST_HELD: usize = 4096;
/// Addresses of one answer that are told.
const MOST_ADDRESSES: usize = 64;

/// Addresses that a name led to.
#[derive(Debug)]
pub struct Learned {
    /// For [`Core::let_go`]; 0 when nobody waits.
    pub serial: u64,
    /// Of the rules by which it was judged.
    pub generation: u64,
    /// The question name.
    pub name: Box<FoldedName>,
    /// Apps of question and answer; none is a name of nobody's.
    pub apps: u64,
    /// Where it leads.
    pub addresses: Vec<Address>,
    /// The largest TTL that any client is given, with the time for which the answer may be served stale.
    pub seconds: u32,
}

/// Whose question it answers, the answer, and since when it is held, milliseconds.
type Held = (Arc<Key>, Answer, u64);

/// Answers that wait for the firewall.
#[derive(Debug)]
pub struct Learner {
    /// Whether there is one.
    pub is_on: AtomicBool,
    /// Milliseconds that an answer is held at most, whatever Python is at.
    pub wait_ms: AtomicU64,
    /// By serial: the oldest first.
    held: Mutex<BTreeMap<u64, Held>>,
    next: AtomicU64,
    /// When the oldest is let go, milliseconds; `u64::MAX` when none waits.
    due_ms: AtomicU64,
}

impl Default for Learner {
    fn default() -> Self {
        Self {
            is_on: AtomicBool::new(false),
            wait_ms: AtomicU64::new(0),
            held: Mutex::default(),
            next: AtomicU64::new(0),
            due_ms: AtomicU64::new(u64::MAX),
        }
    }
}

impl Learner {
    /// Answers that are held.
    pub fn waiting(&self) -> usize {
        lock(&self.held).len()
    }

    /// When the oldest is to be let go, milliseconds of the core's clock.
    pub fn due_ms(&self) -> u64 {
        self.due_ms.load(Relaxed)
    }

    fn see_due(&self, held: &BTreeMap<u64, Held>) {
        let oldest = held.first_key_value().map(|(_, (_, _, since_ms))| *since_ms);
        let due_ms = oldest.map_or(u64::MAX, |since_ms| since_ms.saturating_add(self.wait_ms.load(Relaxed)));
        self.due_ms.store(due_ms, Relaxed);
    }
}

impl Core {
    /// Tells of an answer's addresses; the answer comes back when nobody need wait for it, and is held otherwise.
    ///
    /// Not kept before it is let go, so that no hit overtakes the firewall either: who asks meanwhile waits with the others.
    pub fn teach(&self, lane_at: usize, key: &Key, answer: Answer) -> Option<Answer> {
        let addresses = told(&answer.targets);
        if addresses.is_empty() {
            return Some(answer);
        }
        let pair = self.pair.load();
        let meaning = inspect::judge(&pair.rules, &key.name, key.qtype, &answer.targets);
        let apps = meaning.asked.or(meaning.found);
        let longest = answer.ttl_places.iter().filter_map(|&place| long_at(&answer.body, usize::from(place))).max();
        let seconds = longest.unwrap_or(0).max(answer.ttl).saturating_add(pair.views.views.tuning.stale);
        let lane = &self.lanes[lane_at];
        let mut learned = Learned {
            serial: 0,
            generation: pair.rules_generation,
            name: Box::new(key.name),
            apps: apps.0,
            addresses,
            seconds,
        };
        let mut held = lock(&self.learner.held);
        if apps.is_empty() || held.len() >= MOST_HELD {
            drop(held);
            if !apps.is_empty() {
                lane.count(Counter::LearnNotHeld);
            }
            self.tell(lane, learned);
            return Some(answer);
        }
        let serial = self.learner.next.fetch_add(1, Relaxed) + 1;
        learned.serial = serial;
        // Held before it is told: Python may be quick.
        held.insert(serial, (Arc::new(key.clone()), answer, self.now_us() / 1000));
        self.learner.see_due(&held);
        drop(held);
        if self.tell(lane, learned) {
            // A serve thread sees to it that it is let go in time; from another one none need be awake.
            if lane_at >= self.inboxes.len() {
                self.inboxes[0].bell.ring();
            }
            return None;
        }
        lock(&self.learner.held).remove(&serial).map(|(_, answer, _)| answer)
    }

    /// Tells of an entry that was kept before its name was an app's.
    pub fn teach_again(&self, lane: &Lane, name: &FoldedName, entry: &Entry) {
        let apps = entry.meaning.asked.or(entry.meaning.found);
        let addresses = told(&entry.targets());
        if apps.is_empty() || addresses.is_empty() {
            return;
        }
        let longest = entry.ttl_places().filter_map(|place| long_at(entry.body(), place)).max();
        let seconds = longest.unwrap_or(0).max(entry.ttl).saturating_add(self.pair.load().views.views.tuning.stale);
        let generation = entry.rules_generation;
        self.tell(lane, Learned { serial: 0, generation, name: Box::new(*name), apps: apps.0, addresses, seconds });
    }

    fn tell(&self, lane: &Lane, learned: Learned) -> bool {
        let is_told = self.push_work(lane, Work::Learned(learned));
        if !is_told {
            lane.count(Counter::LearnLost);
        }
        is_told
    }

    /// Lets answers go that were held: the firewall knows, or none need be told.
    pub fn let_go(&self, lane_at: usize, serials: &[u64], replies: &mut Outbound) {
        for serial in serials {
            let mut held = lock(&self.learner.held);
            let found = held.remove(serial);
            self.learner.see_due(&held);
            drop(held);
            if let Some((key, answer, _)) = found {
                self.settle(lane_at, &key, answer, replies);
            }
        }
    }

    /// Lets those go that nobody let go in time.
    pub fn let_late_go(&self, lane_at: usize, now_ms: u64, replies: &mut Outbound) {
        while self.learner.due_ms() <= now_ms {
            let mut held = lock(&self.learner.held);
            // Another thread may have been quicker.
            let is_late = |(_, _, since_ms): &Held| since_ms + self.learner.wait_ms.load(Relaxed) <= now_ms;
            let found = held.first_entry().filter(|oldest| is_late(oldest.get())).map(|oldest| oldest.remove());
            self.learner.see_due(&held);
            drop(held);
            if let Some((key, answer, _)) = found {
                self.lanes[lane_at].count(Counter::LearnLate);
                self.settle(lane_at, &key, answer, replies);
            }
        }
    }
}

fn told(targets: &Targets<impl AsRef<[u8]>>) -> Vec<Address> {
    let mut addresses = targets.addresses();
    addresses.truncate(MOST_ADDRESSES);
    addresses
}

fn long_at(body: &[u8], place: usize) -> Option<u32> {
    body.get(place..place + 4).map(|octets| octets.iter().fold(0, |sum, &octet| sum << 8 | u32::from(octet)))
}
