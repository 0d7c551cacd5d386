//! The answer cache: one for all threads and transports, in shards behind short locks, bounded by bytes.
//!
//! An entry says what the upstream said and what that means; it never says what a policy made of it.

use crate::decide::Rules;
use crate::inspect::{self, Answer, Meaning, Targets, UpstreamBlock};
use crate::lock;
use crate::wire::{Counts, FoldedName, rcode};
use hashbrown::HashTable;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

/// What an entry is found by; the class is always IN, since nothing else passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The question name.
    pub name: FoldedName,
    /// The query type.
    pub qtype: u16,
    /// DO: with signatures or without.
    pub dnssec_ok: bool,
    /// CD: the upstream may answer differently (RFC 4035 3.2.2).
    pub checking_disabled: bool,
    /// The tag of the route: other servers' answers are not these.
    pub route: u32,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.name.as_wire());
        let flags = u32::from(self.dnssec_ok) | u32::from(self.checking_disabled) << 1;
        state.write_u64(u64::from(self.qtype) << 48 | u64::from(flags) << 32 | u64::from(self.route));
    }
}

/// An answer, kept.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it answers.
    pub key: Key,
    /// NOERROR, NXDOMAIN, YXDOMAIN, or SERVFAIL for a failure that is remembered for a second (RFC 9520 3.2).
    pub rcode: u16,
    /// The upstream's AD.
    pub is_authentic: bool,
    /// Records.
    pub counts: Counts,
    /// The records as they stand behind the question.
    pub body: Box<[u8]>,
    /// Where each TTL stands in `body`.
    pub ttl_places: Box<[u16]>,
    /// When it was stored, milliseconds of the monotonic clock.
    pub stored_ms: u64,
    /// Seconds that it may be kept.
    pub ttl: u32,
    /// Until when it is served though it has ended, since nobody gave a new one, milliseconds (RFC 8767).
    pub stale_until_ms: u64,
    /// Extended DNS Error of a failure, or of an upstream's own block.
    pub error: Option<(u16, &'static str)>,
    /// Where it leads.
    pub targets: Targets,
    /// What question and answer mean.
    pub meaning: Meaning,
    /// The generation of rules that `meaning` was judged by.
    pub rules_generation: u64,
}

impl Entry {
    /// From an answer.
    pub fn new(key: Key, answer: Answer, meaning: Meaning, rules_generation: u64, now_ms: u64) -> Self {
        Self {
            key,
            rcode: answer.rcode,
            is_authentic: answer.is_authentic,
            counts: answer.counts,
            body: answer.body.into_boxed_slice(),
            ttl_places: answer.ttl_places.into_boxed_slice(),
            stored_ms: now_ms,
            ttl: answer.ttl,
            stale_until_ms: 0,
            error: answer.upstream_block.map(UpstreamBlock::error),
            targets: answer.targets,
            meaning,
            rules_generation,
        }
    }

    /// Whole seconds since it was stored.
    pub fn age(&self, now_ms: u64) -> u32 {
        (now_ms.saturating_sub(self.stored_ms) / 1000) as u32
    }

    fn is_fresh(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.stored_ms) < u64::from(self.ttl) * 1000
    }

    /// Whether it has ended and is served all the same.
    pub fn is_stale(&self, now_ms: u64) -> bool {
        now_ms < self.stale_until_ms
    }

    fn cost(&self) -> usize {
        size_of::<Slot>() + self.body.len() + 2 * self.ttl_places.len() + self.targets.octets() + TABLE_OCTETS
    }

    /// Judges the entry anew when the rules moved on; its bytes stay.
    pub fn rejudge(&mut self, rules: &Rules, generation: u64) -> bool {
        if self.rules_generation == generation {
            return false;
        }
        self.meaning = inspect::judge(rules, &self.key.name, &self.targets);
        self.rules_generation = generation;
        true
    }
}

/// What the hash table takes for one entry, at its usual load.
const TABLE_OCTETS: usize = 8;
const SHARDS: usize = 64;

#[derive(Debug)]
struct Slot {
    entry: Entry,
    hash: u64,
    was_used: bool,
}

#[derive(Debug, Default)]
struct Shard {
    places: HashTable<u32>,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    hand: usize,
    octets: usize,
}

impl Shard {
    fn find(&self, hash: u64, key: &Key) -> Option<u32> {
        self.places.find(hash, |&at| matches!(&self.slots[at as usize], Some(slot) if slot.entry.key == *key)).copied()
    }

    fn remove(&mut self, at: u32) {
        if let Some(slot) = self.slots[at as usize].take() {
            if let Ok(place) = self.places.find_entry(slot.hash, |&other| other == at) {
                place.remove();
            }
            self.octets -= slot.entry.cost();
            self.free.push(at);
        }
    }

    /// Moves the hand until something goes: what expired, or was not used since the hand came by.
    fn evict_one(&mut self, now_ms: u64) -> bool {
        for _ in 0..2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            let Some(slot) = &mut self.slots[self.hand] else { continue };
            if slot.was_used && slot.entry.is_fresh(now_ms) {
                slot.was_used = false;
            } else {
                self.remove(self.hand as u32);
                return true;
            }
        }
        false
    }
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    shard_octets: usize,
    evicted: AtomicU64,
}

impl Cache {
    /// A cache of so many octets in all.
    pub fn new(octets: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            shard_octets: octets / SHARDS,
            evicted: AtomicU64::new(0),
        }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // Not the top bits: the table inside tells entries apart by those.
        lock(&self.shards[(hash >> 32) as usize % SHARDS])
    }

    /// Shows a fresh entry to `use_entry`, under the shard's lock: keep it short.
    pub fn with<R>(&self, key: &Key, now_ms: u64, use_entry: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash);
        let at = shard.find(hash, key)?;
        let slot = shard.slots[at as usize].as_mut()?;
        if !slot.entry.is_fresh(now_ms) && !slot.entry.is_stale(now_ms) {
            return None;
        }
        slot.was_used = true;
        Some(use_entry(&mut slot.entry))
    }

    /// What there is when nobody gives a new answer: a fresh one that came meanwhile, or one that ended at most
    /// `longest_ms` ago, which is then served for `again_ms` before anybody is asked anew. A failure is neither.
    pub fn revive(&self, key: &Key, now_ms: u64, longest_ms: u64, again_ms: u64) -> Option<Entry> {
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shard(hash);
        let at = shard.find(hash, key)?;
        let entry = &mut shard.slots[at as usize].as_mut()?.entry;
        if entry.rcode == rcode::SERVFAIL {
            return None;
        }
        if !entry.is_fresh(now_ms) {
            let ended_ms = entry.stored_ms + u64::from(entry.ttl) * 1000;
            if now_ms >= ended_ms + longest_ms {
                return None;
            }
            entry.stale_until_ms = (now_ms + again_ms).min(ended_ms + longest_ms);
        }
        Some(entry.clone())
    }

    /// Keeps an entry, in place of an older one for the same key. Says whether it was kept.
    pub fn insert(&self, entry: Entry, now_ms: u64) -> bool {
        let cost = entry.cost();
        let hash = self.hasher.hash_one(&entry.key);
        let mut guard = self.shard(hash);
        let shard = &mut *guard;
        // The older one goes in any case: it is known to be wrong now, and must not come back as a stale answer.
        if let Some(at) = shard.find(hash, &entry.key) {
            shard.remove(at);
        }
        if entry.ttl == 0 || cost > self.shard_octets {
            return false;
        }
        while shard.octets + cost > self.shard_octets && shard.evict_one(now_ms) {
            self.evicted.fetch_add(1, Relaxed);
        }
        shard.octets += cost;
        let slot = Some(Slot { entry, hash, was_used: false });
        let at = match shard.free.pop() {
            Some(at) => {
                shard.slots[at as usize] = slot;
                at
            }
            None => {
                shard.slots.push(slot);
                (shard.slots.len() - 1) as u32
            }
        };
        let slots = &shard.slots;
        shard.places.insert_unique(hash, at, |&other| slots[other as usize].as_ref().map_or(0, |slot| slot.hash));
        true
    }

    /// Entries, octets used, entries evicted so far.
    pub fn sizes(&self) -> (usize, usize, u64) {
        let (mut entries, mut octets) = (0, 0);
        for shard in &self.shards {
            let shard = lock(shard);
            entries += shard.places.len();
            octets += shard.octets;
        }
        (entries, octets, self.evicted.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{AppMask, NO_RULE};

    fn entry(number: u32, octets: usize, ttl: u32) -> Entry {
        let name = FoldedName::from_rule_text(format!("n{number}.example").as_bytes()).unwrap();
        Entry {
            key: Key { name, qtype: 1, dnssec_ok: false, checking_disabled: false, route: 0 },
            rcode: 0,
            is_authentic: false,
            counts: Counts::default(),
            body: vec![0; octets].into(),
            ttl_places: Box::default(),
            stored_ms: 1000,
            ttl,
            stale_until_ms: 0,
            error: None,
            targets: Targets::default(),
            meaning: Meaning {
                asked: AppMask::EMPTY,
                found: AppMask::EMPTY,
                asked_rule: NO_RULE,
                found_rule: NO_RULE,
                exact: None,
            },
            rules_generation: 1,
        }
    }

    #[test]
    fn entries_are_found_until_they_expire() {
        let cache = Cache::new(1 << 20);
        let one = entry(1, 10, 5);
        assert!(cache.insert(one.clone(), 1000));
        assert!(cache.with(&one.key, 5999, |_| ()).is_some());
        assert!(cache.with(&one.key, 6000, |_| ()).is_none());
        let other = Key { dnssec_ok: true, ..one.key };
        assert!(cache.with(&other, 1000, |_| ()).is_none(), "DO has entries of its own");
    }

    #[test]
    fn the_bound_holds_and_what_is_used_stays() {
        let cache = Cache::new(1 << 20);
        let used = entry(0, 100, 600);
        cache.insert(used.clone(), 1000);
        for number in 1..20_000 {
            cache.insert(entry(number, 100, 600), 1000);
            assert!(cache.with(&used.key, 1000, |_| ()).is_some(), "{number}");
        }
        let (entries, octets, evicted) = cache.sizes();
        assert!(octets <= 1 << 20 && entries > 500 && evicted > 10_000, "{entries} {octets} {evicted}");
    }

    #[test]
    fn what_has_ended_comes_back_when_nobody_gives_a_new_one() {
        let cache = Cache::new(1 << 20);
        let one = entry(1, 10, 5);
        cache.insert(one.clone(), 1000);
        assert!(cache.with(&one.key, 7000, |_| ()).is_none());
        assert!(cache.revive(&one.key, 16_000, 10_000, 30_000).is_none(), "it ended at 6 s, ten seconds ago");
        assert!(cache.revive(&one.key, 15_999, 40_000, 30_000).unwrap().is_stale(16_000));
        assert!(cache.with(&one.key, 45_998, |e| e.is_stale(45_998)).unwrap());
        assert!(cache.with(&one.key, 45_999, |_| ()).is_none(), "then somebody is asked anew");
        assert!(!cache.revive(&one.key, 15_000, 10_000, 30_000).unwrap().is_stale(16_000), "no longer than it may");
        cache.insert(Entry { ttl: 0, ..one.clone() }, 1000);
        assert!(cache.revive(&one.key, 7000, 10_000, 30_000).is_none(), "something newer was said");
        cache.insert(Entry { rcode: rcode::SERVFAIL, ..one.clone() }, 1000);
        assert!(cache.revive(&one.key, 2000, 10_000, 30_000).is_none(), "a failure is no answer");
    }

    #[test]
    fn an_entry_of_the_same_key_replaces() {
        let cache = Cache::new(1 << 20);
        for octets in 1..100 {
            cache.insert(entry(1, octets, 60), 1000);
        }
        assert_eq!(cache.sizes().0, 1);
        assert_eq!(cache.with(&entry(1, 0, 60).key, 1000, |e| e.body.len()), Some(99));
    }
}
