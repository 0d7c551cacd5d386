//! Which view an address gets: a mutable overlay of exact addresses over an immutable set of prefixes, which is flattened
//! to disjoint ranges and searched for the longest match.

use crate::identity::Address;
use crate::lock;
use arc_swap::ArcSwapOption;
use hashbrown::{DefaultHashBuilder, HashMap};
use std::collections::HashMap as ByShard;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// One prefix and what it maps to.
#[derive(Debug, Clone, Copy)]
pub struct Prefix {
    /// First address; bits below the length are zero.
    pub address: Address,
    /// Length in bits, 0 to 32 or 0 to 128.
    pub length: u8,
    /// What the prefix maps to; [`PrefixTable::NONE`] is not allowed.
    pub value: u32,
}

/// Ranges of one family: range `i` runs from `starts[i]` to before `starts[i + 1]`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ranges<K> {
    /// First address of each range, ascending; the first is 0 unless there is none.
    pub starts: Vec<K>,
    /// What each range maps to.
    pub values: Vec<u32>,
    /// Every 16th start, of those every 16th, and so on: the fewest first. A million devices are two million starts, and a
    /// binary search among them would wait for memory some twenty times, this one for each level once.
    index: Vec<Vec<K>>,
}

/// Starts of one level that stand behind one of the level above: a cache line of IPv4's.
const FAN: usize = 16;

/// The two families' ranges.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PrefixTable {
    /// IPv4.
    pub v4: Ranges<u32>,
    /// IPv6.
    pub v6: Ranges<u128>,
}

impl<K: Copy + Ord> Ranges<K> {
    /// Of starts that ascend, and as many values.
    pub fn new(starts: Vec<K>, values: Vec<u32>) -> Self {
        let mut index: Vec<Vec<K>> = Vec::new();
        while index.last().unwrap_or(&starts).len() > FAN {
            let below = index.last().unwrap_or(&starts);
            index.push(below.iter().step_by(FAN).copied().collect());
        }
        index.reverse();
        Self { starts, values, index }
    }

    fn find(&self, key: K) -> u32 {
        let mut at = 0;
        for level in &self.index {
            at = last_up_to(level, at, key).unwrap_or(0);
        }
        match last_up_to(&self.starts, at, key) {
            Some(at) => self.values[at],
            None => PrefixTable::NONE,
        }
    }
}

/// Of the starts that stand behind place `above` of the level above: the last that is not behind the key.
fn last_up_to<K: Copy + Ord>(level: &[K], above: usize, key: K) -> Option<usize> {
    let first = above * FAN;
    let window = &level[first..level.len().min(first + FAN)];
    let count = window.iter().filter(|&&start| start <= key).count();
    (first + count).checked_sub(1)
}

impl PrefixTable {
    /// What an address maps to that no prefix holds.
    pub const NONE: u32 = u32::MAX;

    /// Flattens nested prefixes; `combine(outer, inner)` says what holds inside both.
    pub fn build(prefixes: &[Prefix], mut combine: impl FnMut(u32, u32) -> u32) -> Self {
        let mut v4: Vec<(u128, u128, u32)> = Vec::new();
        let mut v6: Vec<(u128, u128, u32)> = Vec::new();
        for prefix in prefixes {
            match prefix.address {
                Address::V4(bits) => {
                    let span = (1u128 << (32 - u32::from(prefix.length))) - 1;
                    v4.push((u128::from(bits), u128::from(bits) + span, prefix.value));
                }
                Address::V6(bits) => {
                    let span = u128::MAX.checked_shr(u32::from(prefix.length)).unwrap_or(0);
                    v6.push((bits, bits | span, prefix.value));
                }
            }
        }
        let flat = flatten(v4, &mut combine);
        // What starts behind the last IPv4 address is no range.
        let inside = flat.starts.iter().zip(flat.values).filter(|&(&start, _)| start <= u128::from(u32::MAX));
        let (starts, values) = inside.map(|(&start, value)| (start as u32, value)).unzip();
        let v6 = flatten(v6, &mut combine);
        Self { v4: Ranges::new(starts, values), v6: Ranges::new(v6.starts, v6.values) }
    }

    /// What the longest prefix that holds the address maps to.
    pub fn find(&self, address: Address) -> u32 {
        match address {
            Address::V4(bits) => self.v4.find(bits),
            Address::V6(bits) => self.v6.find(bits),
        }
    }
}

/// Addresses whose view changes between publishes. Readers wait for nobody: a change replaces one of many small tables.
#[derive(Debug)]
pub struct Overlay {
    shards: Box<[ArcSwapOption<HashMap<Address, u16>>]>,
    hasher: DefaultHashBuilder,
    addresses: AtomicUsize,
    writer: Mutex<()>,
}

impl Default for Overlay {
    fn default() -> Self {
        Self {
            shards: (0..Self::SHARDS).map(|_| ArcSwapOption::empty()).collect(),
            hasher: DefaultHashBuilder::default(),
            addresses: AtomicUsize::new(0),
            writer: Mutex::default(),
        }
    }
}

impl Overlay {
    /// Most addresses; a change that would go over it is refused whole.
    pub const MOST: usize = 1 << 20;
    /// At the bound each holds 256 addresses: what one change copies.
    const SHARDS: usize = 1 << 12;

    fn shard(&self, address: Address) -> usize {
        self.hasher.hash_one(address) as usize % Self::SHARDS
    }

    /// The view of an address, if it is in here.
    pub fn find(&self, address: Address) -> Option<u16> {
        if self.addresses.load(Relaxed) == 0 {
            return None;
        }
        self.shards[self.shard(address)].load().as_ref()?.get(&address).copied()
    }

    /// Puts addresses in, or takes out those without a view; false, and nothing is changed, when there would be too many.
    pub fn change(&self, changes: &[(Address, Option<u16>)]) -> bool {
        let _one_at_a_time = lock(&self.writer);
        let mut tables: ByShard<usize, HashMap<Address, u16>> = ByShard::new();
        let mut addresses = self.addresses.load(Relaxed);
        for &(address, view) in changes {
            let at = self.shard(address);
            let now = || self.shards[at].load().as_ref().map_or_else(HashMap::default, |table| (**table).clone());
            let table = tables.entry(at).or_insert_with(now);
            let before = table.len();
            match view {
                Some(view) => table.insert(address, view),
                None => table.remove(&address),
            };
            addresses = addresses + table.len() - before;
        }
        if addresses > Self::MOST {
            return false;
        }
        // Counted first where the first address comes, so that whoever sees the table also looks into it.
        self.addresses.store(addresses, Relaxed);
        for (at, table) in tables {
            self.shards[at].store((!table.is_empty()).then(|| Arc::new(table)));
        }
        true
    }

    /// Addresses in here.
    pub fn addresses(&self) -> usize {
        self.addresses.load(Relaxed)
    }
}

/// Sweeps over prefixes sorted from outer to inner; a stack holds those that are open.
fn flatten(mut spans: Vec<(u128, u128, u32)>, combine: &mut impl FnMut(u32, u32) -> u32) -> Ranges<u128> {
    spans.sort_by_key(|&(start, end, _)| (start, std::cmp::Reverse(end)));
    let mut ranges = Ranges::default();
    let mut open: Vec<(u128, u32)> = Vec::new();
    for (start, end, value) in spans {
        close(&mut ranges, &mut open, Some(start));
        let value = open.last().map_or(value, |&(_, outer)| combine(outer, value));
        push(&mut ranges, start, value);
        open.push((end, value));
    }
    close(&mut ranges, &mut open, None);
    ranges
}

/// Ends the prefixes that end before `next`, and goes back to what encloses them.
fn close(ranges: &mut Ranges<u128>, open: &mut Vec<(u128, u32)>, next: Option<u128>) {
    while let Some(&(end, _)) = open.last() {
        if next.is_some_and(|next| end >= next) {
            return;
        }
        open.pop();
        if let Some(after) = end.checked_add(1) {
            let outer = open.last().map_or(PrefixTable::NONE, |&(_, value)| value);
            push(ranges, after, outer);
        }
    }
}

fn push(ranges: &mut Ranges<u128>, start: u128, value: u32) {
    if ranges.starts.last() == Some(&start) {
        if let Some(last) = ranges.values.last_mut() {
            *last = value;
        }
    } else {
        ranges.starts.push(start);
        ranges.values.push(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_overlay_is_obeyed_at_once_and_bounded() {
        let overlay = Overlay::default();
        let (one, other) = (Address::V4(1), Address::V6(1));
        assert_eq!(overlay.find(one), None);
        assert!(overlay.change(&[(one, Some(3)), (other, Some(4)), (one, Some(5))]));
        assert_eq!((overlay.find(one), overlay.find(other), overlay.addresses()), (Some(5), Some(4), 2));
        assert!(overlay.change(&[(one, None), (Address::V4(9), None)]));
        assert_eq!((overlay.find(one), overlay.find(other), overlay.addresses()), (None, Some(4), 1));
        let many: Vec<_> = (0..Overlay::MOST as u32).map(|bits| (Address::V4(bits), Some(1))).collect();
        assert!(!overlay.change(&many), "one more than there may be");
        assert_eq!((overlay.find(Address::V4(7)), overlay.addresses()), (None, 1), "nothing was changed");
    }

    #[test]
    fn readers_see_one_view_or_the_other_while_it_changes() {
        let overlay = Overlay::default();
        let (steady, moving) = (Address::V4(1), Address::V4(2));
        overlay.change(&[(steady, Some(1)), (moving, Some(1))]);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..20_000u16).for_each(|turn| assert!(overlay.change(&[(moving, Some(1 + turn % 2))]))));
            for _ in 0..200_000 {
                assert_eq!(overlay.find(steady), Some(1));
                assert!(matches!(overlay.find(moving), Some(1 | 2)));
            }
        });
    }

    #[test]
    fn an_index_of_any_height_finds_what_a_search_finds() {
        for count in [0, 1, 15, 16, 17, 255, 256, 257, 4_095, 4_097, 70_000u32] {
            let starts: Vec<u32> = (0..count).map(|at| at * 3 + 5).collect();
            let ranges = Ranges::new(starts.clone(), (0..count).collect());
            for key in (0..count * 3 + 20).step_by(count as usize / 500 + 1).chain([u32::MAX]) {
                let wanted = starts.partition_point(|&start| start <= key).checked_sub(1);
                assert_eq!(ranges.find(key), wanted.map_or(PrefixTable::NONE, |at| at as u32), "{count} {key}");
            }
        }
    }

    fn slow(prefixes: &[Prefix], address: Address) -> u32 {
        let holds = |p: &Prefix| match (p.address, address) {
            (Address::V4(net), Address::V4(bits)) => p.length == 0 || (net ^ bits) >> (32 - u32::from(p.length)) == 0,
            (Address::V6(net), Address::V6(bits)) => p.length == 0 || (net ^ bits) >> (128 - u32::from(p.length)) == 0,
            _ => false,
        };
        prefixes.iter().filter(|p| holds(p)).max_by_key(|p| p.length).map_or(PrefixTable::NONE, |p| p.value)
    }

    fn any_prefix() -> impl Strategy<Value = (bool, u128, u8)> {
        // Few distinct addresses, so that prefixes nest and touch.
        (any::<bool>(), prop_oneof![0u128..8, Just(u128::MAX), any::<u128>()], 0u8..=128)
    }

    proptest! {
        /// The flattened ranges agree with a linear search for the longest prefix.
        #[test]
        fn ranges_equal_a_linear_search(
            raw in prop::collection::vec(any_prefix(), 0..40),
            probes in prop::collection::vec((any::<bool>(), prop_oneof![0u128..16, Just(u128::MAX), any::<u128>()]), 20),
        ) {
            let mut seen = std::collections::HashSet::new();
            let mut prefixes = Vec::new();
            for (value, (is_v4, bits, length)) in raw.into_iter().enumerate() {
                let (address, length) = if is_v4 {
                    let length = length % 33;
                    (Address::V4(if length == 0 { 0 } else { (bits as u32) & (u32::MAX << (32 - u32::from(length))) }), length)
                } else {
                    (Address::V6(if length == 0 { 0 } else { bits & (u128::MAX << (128 - u32::from(length))) }), length)
                };
                if seen.insert((address, length)) {
                    prefixes.push(Prefix { address, length, value: value as u32 });
                }
            }
            let table = PrefixTable::build(&prefixes, |_, inner| inner);
            for (is_v4, bits) in probes {
                let address = if is_v4 { Address::V4(bits as u32) } else { Address::V6(bits) };
                prop_assert_eq!(table.find(address), slow(&prefixes, address));
            }
            for prefix in &prefixes {
                prop_assert_eq!(table.find(prefix.address), slow(&prefixes, prefix.address));
            }
        }
    }
}
