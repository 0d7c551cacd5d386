//! Who was told what, a minute at a time: the first of each kind is a row at once, the rest are one closing count.

use crate::identity::Address;
use crate::lock;
use hashbrown::hash_map::Entry;
use hashbrown::{DefaultHashBuilder, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

/// Kinds that are counted in one minute; more are dropped, and counted by the caller.
const MAX_KINDS: usize = 65_536;
const SHARDS: usize = 64;
/// Names that lead to an app, of a device, app and rule, that are told apart in a minute.
const MAX_LED: u64 = 32;
/// Milliseconds.
const MINUTE: u64 = 60_000;

/// What is one kind: device, app, rule and what was done, by one generation of views.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Who asked.
    pub address: Address,
    /// Its MAC where a forwarder conveys it, 0 else.
    pub mac: u64,
    /// The generation that says what the numbers mean.
    pub generation: u64,
    /// The number of the rule that decided; where the name itself is no app's, with [`Journal::led_by`] added.
    pub rule: u64,
    /// The view.
    pub view: u16,
    /// The app's bit.
    pub app: u8,
    /// The action's number.
    pub action: u8,
}

/// One line of the log.
#[derive(Debug, Clone)]
pub struct Row {
    /// What kind.
    pub kind: Kind,
    /// The question name that was first; on a closing line, the one that was second.
    pub name: Box<str>,
    /// Its type.
    pub qtype: u16,
    /// The rule that decided, as text.
    pub rule: Box<str>,
    /// None for the first; on a closing line, how many more there were.
    pub more: Option<u64>,
}

/// What became of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// The first of its kind in this minute: say so now.
    First,
    /// The second: its row is wanted for the closing line, by [`Journal::open`].
    Second,
    /// Counted.
    Again,
    /// There is no room for one more kind.
    Full,
}

#[derive(Debug, Default)]
struct Counted {
    /// Kept from the second on: most kinds of a minute come once, and what comes once has no closing line.
    row: Option<Box<Row>>,
    more: u64,
}

/// The table of the minute. A kind is known by its keyed hash: that two of 65,536 share one happens once in eight billion
/// minutes, and would count one with the other.
#[derive(Debug)]
pub struct Journal {
    shards: Box<[Mutex<HashMap<u64, Counted>>]>,
    hasher: DefaultHashBuilder,
    kinds: AtomicUsize,
    minute: AtomicU64,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            kinds: AtomicUsize::new(0),
            minute: AtomicU64::new(0),
        }
    }
}

impl Journal {
    fn shard(&self, print: u64) -> MutexGuard<'_, HashMap<u64, Counted>> {
        lock(&self.shards[(print >> 32) as usize % SHARDS])
    }

    /// A number for a name that led to an app without being known: such names are told apart, as far as few of a minute are.
    /// More, and one device could fill the log with names that it makes up.
    pub fn led_by(&self, name: &[u8]) -> u64 {
        (1 + self.hasher.hash_one(name) % MAX_LED) << 48
    }

    /// Counts a decision.
    pub fn note(&self, kind: &Kind) -> Noted {
        let print = self.hasher.hash_one(kind);
        match self.shard(print).entry(print) {
            Entry::Occupied(mut counted) => {
                let counted = counted.get_mut();
                counted.more += 1;
                if counted.row.is_none() { Noted::Second } else { Noted::Again }
            }
            Entry::Vacant(place) => {
                if self.kinds.load(Relaxed) >= MAX_KINDS {
                    return Noted::Full;
                }
                self.kinds.fetch_add(1, Relaxed);
                place.insert(Counted::default());
                Noted::First
            }
        }
    }

    /// Keeps a row of a kind, for its closing line.
    pub fn open(&self, row: Row) {
        let print = self.hasher.hash_one(row.kind);
        if let Some(counted) = self.shard(print).get_mut(&print) {
            counted.row = Some(Box::new(row));
        }
    }

    /// The closing lines, when a minute is over.
    pub fn close_minute(&self, now_ms: u64) -> Vec<Row> {
        let minute = now_ms / MINUTE;
        if self.minute.swap(minute, Relaxed) == minute { Vec::new() } else { self.close() }
    }

    /// The closing lines of what there is.
    pub fn close(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for shard in &self.shards {
            let counted = std::mem::take(&mut *lock(shard));
            self.kinds.fetch_sub(counted.len(), Relaxed);
            let closing = counted.into_values().filter(|counted| counted.more > 0);
            rows.extend(closing.filter_map(|Counted { row, more }| Some(Row { more: Some(more), ..*row? })));
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(number: u32) -> Kind {
        Kind { address: Address::V4(number), mac: 0, generation: 1, rule: 0, view: 0, app: 0, action: 1 }
    }

    #[test]
    fn the_first_is_told_and_the_rest_are_counted() {
        let journal = Journal::default();
        assert_eq!(journal.note(&kind(1)), Noted::First);
        assert_eq!(journal.note(&kind(1)), Noted::Second);
        journal.open(Row { kind: kind(1), name: "a".into(), qtype: 1, rule: "suffix a".into(), more: None });
        for _ in 0..8 {
            assert_eq!(journal.note(&kind(1)), Noted::Again);
        }
        assert_eq!(journal.note(&kind(2)), Noted::First, "another device");
        let rows = journal.close_minute(MINUTE);
        assert_eq!(rows.iter().map(|row| (row.kind, row.more)).collect::<Vec<_>>(), [(kind(1), Some(9))]);
        assert!(journal.close_minute(MINUTE + 1).is_empty());
        assert_eq!(journal.note(&kind(1)), Noted::First, "in the next minute again");
    }

    #[test]
    fn the_table_is_bounded() {
        let journal = Journal::default();
        for number in 0..MAX_KINDS as u32 {
            assert_eq!(journal.note(&kind(number)), Noted::First);
        }
        assert_eq!(journal.note(&kind(u32::MAX)), Noted::Full);
        assert_eq!(journal.note(&kind(7)), Noted::Second);
        journal.close();
        assert_eq!(journal.note(&kind(u32::MAX)), Noted::First);
    }
}
