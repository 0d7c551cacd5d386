//! What answers say where apps are, for a firewall that is to know it before any client does.

use std::collections::HashMap;
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
/// Milliseconds that an answer is held at most, whatever became of Python.
const HELD_MS: u64 = 1000;
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
#[derive(Debug, Default)]
pub struct Learner {
    /// Whether there is one.
    pub is_on: AtomicBool,
    held: Mutex<HashMap<u64, Held>>,
    next: AtomicU64,
}

impl Learner {
    /// Answers that are held.
    pub fn waiting(&self) -> usize {
        lock(&self.held).len()
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
        let meaning = inspect::judge(&pair.rules, &key.name, &answer.targets);
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
        drop(held);
        if self.tell(lane, learned) {
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

    /// Lets answers go that were held: the firewall knows, or it took too long.
    pub fn let_go(&self, lane_at: usize, serials: &[u64], replies: &mut Outbound) {
        for serial in serials {
            let held = lock(&self.learner.held).remove(serial);
            if let Some((key, answer, _)) = held {
                self.settle(lane_at, &key, answer, replies);
            }
        }
    }

    /// Lets those go that nobody let go in time.
    pub fn let_old_go(&self, lane_at: usize, now_ms: u64, replies: &mut Outbound) {
        if !self.learner.is_on.load(Relaxed) {
            return;
        }
        let before = now_ms.saturating_sub(HELD_MS);
        let old: Vec<u64> = {
            let held = lock(&self.learner.held);
            held.iter().filter(|(_, (_, _, since_ms))| *since_ms < before).map(|(serial, _)| *serial).collect()
        };
        self.lanes[lane_at].count_many(Counter::LearnLate, old.len() as u64);
        self.let_go(lane_at, &old, replies);
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
