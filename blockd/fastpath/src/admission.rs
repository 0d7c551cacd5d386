//! How often a client may ask: one token bucket a client in a table that cannot grow.
//!
//! A bucket is one word, the time at which it will be full again (GCRA), so that a query costs no lock. Buckets are
//! found by a keyed hash: nobody can choose addresses that share one.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const WAYS: usize = 4;
const TIME_BITS: u32 = 48;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// What a client's bucket said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// There was a token.
    Admitted,
    /// There was a token, after another client's bucket that was still in use had to go.
    AdmittedByEviction,
    /// There was none.
    Refused,
}

/// The table.
#[derive(Debug)]
pub struct Buckets {
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
}

impl Buckets {
    /// A table of at least so many buckets, 8 bytes each.
    pub fn new(buckets: usize) -> Self {
        let slots = buckets.next_power_of_two().max(WAYS);
        Self { slots: (0..slots).map(|_| AtomicU64::new(0)).collect(), hasher: RandomState::new() }
    }

    /// Whether `client` took a token since `before`, microseconds; a bucket that had to make room has forgotten.
    pub fn took_since(&self, client: u64, before: u64) -> bool {
        let hash = self.hasher.hash_one(client);
        let first = (hash as usize & (self.slots.len() - 1)) & !(WAYS - 1);
        self.slots[first..first + WAYS].iter().any(|way| {
            let word = way.load(Relaxed);
            word >> TIME_BITS == hash >> TIME_BITS && word & TIME_MASK >= before.max(1)
        })
    }

    /// Takes a token of `client`; `rate` a second, `burst` at once, `now` in microseconds since the start.
    pub fn admit(&self, client: u64, now: u64, rate: u32, burst: u32) -> Admission {
        let hash = self.hasher.hash_one(client);
        let tag = hash >> TIME_BITS;
        let first = (hash as usize & (self.slots.len() - 1)) & !(WAYS - 1);
        let set = &self.slots[first..first + WAYS];
        let step = (1_000_000 / u64::from(rate.max(1))).max(1);
        let room = step * u64::from(burst.max(1));
        let mut slot = &set[0];
        let mut oldest = u64::MAX;
        for way in set {
            let word = way.load(Relaxed);
            if word >> TIME_BITS == tag && word & TIME_MASK != 0 {
                slot = way;
                oldest = 0;
                break;
            }
            if word & TIME_MASK < oldest {
                oldest = word & TIME_MASK;
                slot = way;
            }
        }
        let word = slot.load(Relaxed);
        let is_mine = word >> TIME_BITS == tag;
        let full_at = if is_mine { (word & TIME_MASK).max(now) } else { now };
        if full_at + step > now + room {
            return Admission::Refused;
        }
        slot.store((tag << TIME_BITS) | ((full_at + step) & TIME_MASK), Relaxed);
        if !is_mine && oldest > now { Admission::AdmittedByEviction } else { Admission::Admitted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let buckets = Buckets::new(1024);
        let admitted = |now: u64| (0..100).filter(|_| buckets.admit(7, now, 10, 20) == Admission::Admitted).count();
        assert_eq!(admitted(1_000_000), 20);
        assert_eq!(admitted(1_000_000), 0);
        assert_eq!(admitted(2_000_000), 10);
        assert_eq!(buckets.admit(8, 2_000_000, 10, 20), Admission::Admitted);
        assert!(buckets.took_since(7, 1_000_000));
        assert!(!buckets.took_since(7, 100_000_000));
        assert!(!buckets.took_since(9, 0));
    }

    #[test]
    fn a_million_clients_use_no_more_memory_and_are_counted() {
        let buckets = Buckets::new(64);
        let evicted = (0..1_000_000u64)
            .filter(|&client| buckets.admit(client, 1, 10, 20) == Admission::AdmittedByEviction)
            .count();
        assert!(evicted > 900_000);
        assert_eq!(buckets.slots.len(), 64);
    }
}
