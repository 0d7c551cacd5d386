//! Who asks for very many names: one query of 64 is looked at, for a minute. An address with many names behind it is most
//! likely a forwarder, whose devices all get what it gets.

use crate::identity::Address;
use hashbrown::HashMap;
use std::sync::Mutex;

/// One query of so many of a thread is looked at.
pub const ONE_OF: u64 = 64;
/// Addresses that are looked at in a minute; more are not.
const MAX_ADDRESSES: usize = 1_024;
/// Bits by which names are told apart: up to a few thousand.
const WORDS: usize = 16;

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    queries: u32,
    names: [u64; WORDS],
}

/// What was seen since it was last asked for.
#[derive(Debug, Default)]
pub struct Busy(Mutex<HashMap<Address, Seen>>);

impl Busy {
    /// Takes note of a query; `print` is the hash of its name. Where somebody else is at it, it is left.
    pub fn note(&self, address: Address, print: u64) {
        let Ok(mut table) = self.0.try_lock() else { return };
        if table.len() >= MAX_ADDRESSES && !table.contains_key(&address) {
            return;
        }
        let seen = table.entry(address).or_default();
        seen.queries += 1;
        let bit = print as usize % (64 * WORDS);
        if let Some(word) = seen.names.get_mut(bit / 64) {
            *word |= 1 << (bit % 64);
        }
    }

    /// Gives addresses, queries and about how many names they were for, and forgets them.
    pub fn take(&self) -> Vec<(Address, u32, f64)> {
        let table = std::mem::take(&mut *crate::lock(&self.0));
        table.into_iter().map(|(address, seen)| (address, seen.queries, about(&seen.names))).collect()
    }
}

/// About how many different things set these bits (linear counting, Whang et al. 1990).
fn about(words: &[u64; WORDS]) -> f64 {
    let bits = (64 * WORDS) as f64;
    let empty: u32 = words.iter().map(|word| word.count_zeros()).sum();
    -bits * (f64::from(empty.max(1)) / bits).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::BuildHasher;

    #[test]
    fn names_are_counted_about_right_and_addresses_are_few() {
        let busy = Busy::default();
        let hasher = std::hash::RandomState::new();
        for at in 0..500u32 {
            busy.note(Address::V4(1), hasher.hash_one(at));
            busy.note(Address::V4(2), hasher.hash_one(at % 3));
        }
        for address in 0..2 * MAX_ADDRESSES as u32 {
            busy.note(Address::V4(100 + address), 7);
        }
        let mut taken = busy.take();
        taken.sort_by_key(|&(address, ..)| address);
        assert_eq!(taken.len(), MAX_ADDRESSES);
        assert_eq!((taken[0].1, taken[1].1), (500, 500));
        assert!((400.0..600.0).contains(&taken[0].2), "{}", taken[0].2);
        assert!((2.0..4.0).contains(&taken[1].2), "{}", taken[1].2);
        assert!(busy.take().is_empty());
    }
}
