//! Device slots: the view that a device gets by the clock. What was granted for a time ends when the time does, whether or
//! not anybody is there to say so.

use crate::decide::{AppMask, View};
use crate::identity::Address;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Most changes of one slot.
pub const MAX_TRANSITIONS: usize = 9;

/// Views by the clock: from when each holds, milliseconds since 1970, ascending; the first from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot(Vec<(u64, u16)>);

impl Slot {
    /// Of transitions in order; says what is wrong with them.
    pub fn new(transitions: Vec<(u64, u16)>) -> Result<Self, &'static str> {
        let is_ascending = transitions.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if transitions.first().is_none_or(|first| first.0 != 0) || !is_ascending {
            return Err("a slot begins at 0 and goes on in order");
        }
        if transitions.len() > MAX_TRANSITIONS {
            return Err("a slot has too many transitions");
        }
        Ok(Self(transitions))
    }

    /// The view at a time.
    pub fn at(&self, now_ms: u64) -> u16 {
        let count = self.0.partition_point(|&(from_ms, _)| from_ms <= now_ms);
        self.0.get(count.saturating_sub(1)).map_or(0, |&(_, view)| view)
    }

    /// Every view that it may give.
    pub fn views(&self) -> impl Iterator<Item = u16> {
        self.0.iter().map(|&(_, view)| view)
    }
}

/// Wall time that never runs back, and never stands: a clock that is set back must neither bring back what has ended, nor
/// make longer what has not.
#[derive(Debug)]
pub struct Wall {
    started: Instant,
    /// When that was by the wall, milliseconds since 1970: the latest that any look made it.
    started_ms: AtomicU64,
}

impl Default for Wall {
    fn default() -> Self {
        Self { started: Instant::now(), started_ms: AtomicU64::new(0) }
    }
}

impl Wall {
    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        let read = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        self.seen(read)
    }

    /// Takes note of what some clock says; gives what is believed.
    pub fn seen(&self, ms: u64) -> u64 {
        let elapsed = self.started.elapsed().as_millis() as u64;
        let started = ms.saturating_sub(elapsed);
        // Written only when it is news: readers share the line.
        let known = self.started_ms.load(Relaxed);
        elapsed + if started > known { self.started_ms.fetch_max(started, Relaxed).max(started) } else { known }
    }
}

/// What is folded into a snapshot's views as things are when it is published.
#[derive(Debug, Clone, Default)]
pub struct Folded {
    /// Views behind those of the snapshot: the number of the one that each is made of, and the apps that are exempt.
    pub views: Vec<(u16, AppMask)>,
    /// Slots; their numbers come behind those of all views.
    pub slots: Vec<Slot>,
    /// Addresses with a view or a slot of their own.
    pub devices: Vec<(Address, Option<u16>)>,
    /// Whose word about others is believed, of which kinds, and how many queries a second each may bring.
    pub forwarders: Vec<(Address, u8)>,
    /// Of a forwarder.
    pub forwarder_rate: u32,
    /// MACs with a view or a slot, for what forwarders convey.
    pub macs: Vec<(u64, u16)>,
    /// The latest time that is known to have been, milliseconds since 1970.
    pub floor_ms: u64,
}

/// A view with apps exempt: they are in none of its other masks, but where they are allowed anyway.
pub fn exempt(view: &View, apps: AppMask) -> View {
    let apps = apps.without(view.allow);
    View { block: view.block.without(apps), monitor: view.monitor.without(apps), exempt: apps, ..view.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_gives_the_view_of_the_moment() {
        let slot = Slot::new(vec![(0, 1), (1000, 7), (2000, 1), (3000, 8), (4000, 1)]).unwrap();
        for (now, view) in [(0, 1), (999, 1), (1000, 7), (1999, 7), (2000, 1), (3500, 8), (4000, 1), (u64::MAX, 1)] {
            assert_eq!(slot.at(now), view, "at {now}");
        }
        for wrong in [vec![], vec![(5, 1)], vec![(0, 1), (7, 2), (7, 1)], vec![(0, 1), (9, 2), (8, 1)]] {
            assert!(Slot::new(wrong).is_err());
        }
        assert!(Slot::new((0..10).map(|at| (at, 0)).collect()).is_err());
    }

    #[test]
    fn wall_time_never_runs_back() {
        let wall = Wall::default();
        let now = wall.now_ms();
        assert!(now > 1_700_000_000_000);
        let ahead = wall.seen(now + 60_000);
        assert!((now + 60_000..now + 61_000).contains(&ahead), "the clock was set forth");
        std::thread::sleep(std::time::Duration::from_millis(20));
        for back in [wall.now_ms(), wall.seen(5)] {
            assert!((ahead + 15..ahead + 5_000).contains(&back), "it was set back: time goes on from the latest");
        }
    }

    #[test]
    fn what_is_exempt_is_in_no_other_mask() {
        let view =
            View { block: AppMask(0b1011), monitor: AppMask(0b0100), allow: AppMask(0b1_0000), ..View::default() };
        let with = exempt(&view, AppMask(0b1_0110));
        assert_eq!((with.block.0, with.monitor.0, with.allow.0, with.exempt.0), (0b1001, 0, 0b1_0000, 0b0110));
    }
}
