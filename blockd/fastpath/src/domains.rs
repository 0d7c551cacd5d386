//! The domain table: which rule set each name of a rule maps to, by keyed 64-bit fingerprint.
//!
//! A name's fingerprint is a chain from the root, `h(label, h(parent))`, so that all its suffixes cost one pass over
//! its octets. SipHash-1-3 under a key drawn at each compile: nobody can choose names that collide. With `n` names in
//! the table and `q` names asked, a false match is expected `n * q / 2^64` times: one in 50 years at 10,000,000 names
//! and 1,000 new names a second.

use crate::wire::{FoldedName, MAX_LABELS};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// The key of all fingerprints of one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HashKey(pub u64, pub u64);

impl HashKey {
    /// The fingerprint of a label under its parent's; never 0, which marks an empty slot.
    pub fn chain(self, parent: u64, label: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        hasher.write(&parent.to_ne_bytes());
        hasher.write(label);
        hasher.finish().max(1)
    }

    /// The fingerprints of a name's suffixes. The root has none.
    pub fn suffixes(self, name: &FoldedName) -> Suffixes {
        let mut prints = [0u64; MAX_LABELS + 1];
        let mut starts = [0u8; MAX_LABELS + 1];
        let count = name.label_starts(&mut starts);
        let wire = name.as_wire();
        let mut parent = 0u64;
        for (print, &start) in prints.iter_mut().zip(starts[..count].iter().rev()) {
            let at = usize::from(start);
            let end = at + 1 + usize::from(wire[at]);
            parent = self.chain(parent, &wire[at + 1..end]);
            *print = parent;
        }
        Suffixes { prints, count }
    }
}

/// The fingerprints of a name's suffixes, the shortest first: made once a question, whatever it is looked up in.
#[derive(Debug)]
pub struct Suffixes {
    prints: [u64; MAX_LABELS + 1],
    count: usize,
}

impl std::ops::Deref for Suffixes {
    type Target = [u64];
    fn deref(&self) -> &[u64] {
        &self.prints[..self.count]
    }
}

/// Most distinct rule sets: names that the same rules of the same apps name share one, so a few hundred are many.
pub const MAX_SETS: usize = 1 << 16;

/// Open addressing over two flat arrays: 10 bytes a slot, three slots in four used, 13.3 bytes a name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct DomainTable {
    /// Fingerprints; 0 is an empty slot.
    pub prints: Vec<u64>,
    /// The rule set of the slot: there are at most [`MAX_SETS`].
    pub sets: Vec<u16>,
}

/// A name's fingerprint and rule set, in ten octets: a compile holds one for each name.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    print: [u8; 8],
    set: [u8; 2],
}

impl Entry {
    /// From its parts.
    pub fn new(print: u64, set: u16) -> Self {
        Self { print: print.to_ne_bytes(), set: set.to_ne_bytes() }
    }

    /// The fingerprint.
    pub fn print(&self) -> u64 {
        u64::from_ne_bytes(self.print)
    }

    /// The rule set.
    pub fn set(&self) -> u16 {
        u16::from_ne_bytes(self.set)
    }
}

/// The slots of a table, one after the other, of entries that are sorted by fingerprint, each there once.
///
/// So a table is written without being held.
#[derive(Debug)]
pub struct Slots<'a> {
    entries: &'a [Entry],
    count: usize,
    /// How many of the last entries have their place before the first: the search goes round.
    wrapped: usize,
}

impl<'a> Slots<'a> {
    /// Lays the entries out.
    pub fn of(entries: &'a [Entry]) -> Self {
        let mut slots = Self { entries, count: entries.len() + entries.len() / 3 + 1, wrapped: 0 };
        loop {
            let mut next = slots.wrapped;
            for entry in &entries[..entries.len() - slots.wrapped] {
                next = next.max(home(entry.print(), slots.count)) + 1;
            }
            if next <= slots.count {
                return slots;
            }
            // Entries are one beside the other at the end: each that goes round frees one place.
            slots.wrapped += next - slots.count;
        }
    }

    /// How many slots there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Fingerprint and set of each slot; 0 and 0 where it is empty.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u16)> + '_ {
        let (first, last) = self.entries.split_at(self.entries.len() - self.wrapped);
        let mut rest = first.iter().peekable();
        last.iter().map(|entry| (entry.print(), entry.set())).chain((self.wrapped..self.count).map(move |at| {
            rest.next_if(|entry| home(entry.print(), self.count) <= at)
                .map_or((0, 0), |entry| (entry.print(), entry.set()))
        }))
    }
}

/// Where the search for a fingerprint begins.
fn home(print: u64, slots: usize) -> usize {
    ((u128::from(print) * slots as u128) >> 64) as usize
}

impl DomainTable {
    /// Builds from entries that are sorted by fingerprint, each there once.
    pub fn build(entries: &[Entry]) -> Self {
        let (prints, sets) = Slots::of(entries).iter().unzip();
        Self { prints, sets }
    }

    /// The rule set of a fingerprint.
    pub fn find(&self, print: u64) -> Option<u16> {
        if self.prints.is_empty() {
            return None;
        }
        let mut at = home(print, self.prints.len());
        loop {
            match self.prints[at] {
                0 => return None,
                found if found == print => return Some(self.sets[at]),
                _ => at = self.next(at),
            }
        }
    }

    /// Whether there is an empty slot, without which a search would not end; a file that fails this is refused.
    pub fn is_sound(&self) -> bool {
        self.prints.len() == self.sets.len() && (self.prints.is_empty() || self.prints.contains(&0))
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.prints.len() { 0 } else { at + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_put_in_is_found_and_nothing_else() {
        let key = HashKey(1, 2);
        let mut entries: Vec<_> = (0..10_000u16).map(|i| Entry::new(key.chain(0, &i.to_be_bytes()), i)).collect();
        entries.sort_unstable_by_key(Entry::print);
        let table = DomainTable::build(&entries);
        for entry in &entries {
            assert_eq!(table.find(entry.print()), Some(entry.set()));
        }
        for i in 10_000..20_000u16 {
            assert_eq!(table.find(key.chain(0, &i.to_be_bytes())), None);
        }
        assert!(table.is_sound());
        assert_eq!(DomainTable::default().find(7), None);
        assert_eq!(DomainTable::build(&[]).find(7), None);
    }

    proptest! {
        /// Also where many share a home, at the end of the table most of all.
        #[test]
        fn crowded_entries_are_found(
            low in prop::collection::btree_set(1u64..40, 0..30),
            high in prop::collection::btree_set(u64::MAX - 40.., 0..30),
            middle in prop::collection::btree_set(any::<u64>(), 0..30),
        ) {
            let prints: std::collections::BTreeSet<u64> = low.into_iter().chain(high).chain(middle).collect();
            let prints: Vec<u64> = prints.into_iter().filter(|&print| print != 0).collect();
            let entries: Vec<_> = prints.iter().enumerate().map(|(at, &p)| Entry::new(p, at as u16)).collect();
            let table = DomainTable::build(&entries);
            prop_assert!(table.is_sound());
            prop_assert_eq!(table.prints.iter().filter(|&&print| print != 0).count(), entries.len());
            for entry in &entries {
                prop_assert_eq!(table.find(entry.print()), Some(entry.set()));
            }
            for other in [41u64, u64::MAX - 41, 1 << 63] {
                prop_assert!(prints.contains(&other) || table.find(other).is_none());
            }
        }
    }

    #[test]
    fn suffixes_of_a_name_share_their_prints() {
        let key = HashKey(3, 4);
        let long = key.suffixes(&FoldedName::from_rule_text(b"www.tiktok.com").unwrap());
        let short = key.suffixes(&FoldedName::from_rule_text(b"tiktok.com").unwrap());
        assert_eq!((long.len(), short.len()), (3, 2));
        assert_eq!(long[..2], short[..2]);
    }
}
