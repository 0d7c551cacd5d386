//! The answer cache: one for all threads and transports, bounded by bytes. Readers wait for nobody; writers take turns
//! in each of 64 shards.
//!
//! An entry says what the upstream said and what that means; it never says what a policy made of it. Entries do not
//! change but for two atomics: a new judgement, or a new answer, is a new entry in the place of the old one, which is
//! freed when no reader can hold it any more (epochs).
//!
//! Who stays is decided by S3-FIFO (Yang et al., SOSP 2023): a new entry stands in a short queue, a tenth of the shard,
//! and moves to the long one only if somebody asked for it again. A scan of names that nobody repeats passes through
//! the short queue and pushes nothing else out.

use crate::decide::Rules;
use crate::inspect::{self, Answer, Meaning, Targets};
use crate::lock;
use crate::wire::{Counts, FoldedName, Question, rcode};
use crossbeam_epoch::{Atomic, Owned, Shared};
use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex};

pub use crossbeam_epoch::{Guard, pin};

/// What is asked of the cache and of upstreams; the class is always IN, since nothing else passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The cache's keyed hash of all but the route, made once a question.
    pub hash: u64,
    /// The question name.
    pub name: FoldedName,
    /// The query type.
    pub qtype: u16,
    /// DO: with signatures or without.
    pub dnssec_ok: bool,
    /// CD: the upstream may answer differently (RFC 4035 3.2.2).
    pub checking_disabled: bool,
    /// The variant whose HTTPS and SVCB records say nothing of Encrypted Client Hello.
    pub without_ech: bool,
    /// The tag of the route: other servers' answers are not these.
    pub route: u32,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash ^ u64::from(self.route));
    }
}

impl Key {
    fn lookup(&self) -> Lookup<'_> {
        Lookup::new(&self.name, self.qtype, self.dnssec_ok, self.checking_disabled, self.without_ech)
    }
}

/// What an entry is found by. Not the route: a name has one at a time, and an entry says of which route it came.
#[derive(Debug, Clone, Copy)]
struct Lookup<'a> {
    name: &'a [u8],
    bits: u32,
}

/// A question and where its entry stands.
#[derive(Debug, Clone, Copy)]
pub struct Hashed<'a> {
    lookup: Lookup<'a>,
    /// Keyed: nobody can choose names that share one.
    pub hash: u64,
}

impl Hashed<'_> {
    /// The query type.
    pub fn qtype(&self) -> u16 {
        (self.lookup.bits >> 3) as u16
    }
}

impl<'a> Lookup<'a> {
    fn new(name: &'a FoldedName, qtype: u16, dnssec_ok: bool, checking_disabled: bool, without_ech: bool) -> Self {
        let flags = u32::from(without_ech) << 2 | u32::from(dnssec_ok) << 1 | u32::from(checking_disabled);
        let bits = u32::from(qtype) << 3 | flags;
        Self { name: name.as_wire(), bits }
    }
}

/// An answer, kept. Aligned, so that the low bits of a pointer to one can carry a part of its hash.
#[derive(Debug)]
#[repr(align(64))]
pub struct Entry {
    hash: u64,
    bits: u32,
    name_octets: u8,
    /// Times it was used since the hand came by, at most [`MOST_USES`].
    uses: AtomicU8,
    /// Whether it stands in the long queue.
    is_settled: AtomicBool,
    /// The upstream's AD.
    pub is_authentic: bool,
    /// NOERROR, NXDOMAIN, YXDOMAIN, or SERVFAIL for a failure that is remembered for a second (RFC 9520 3.2).
    pub rcode: u16,
    /// Records.
    pub counts: Counts,
    /// Seconds that it may be kept.
    pub ttl: u32,
    /// The tag of the route that it came by.
    pub route: u32,
    /// When it was stored, milliseconds of the monotonic clock.
    pub stored_ms: u64,
    /// Until when it is served though it has ended, since nobody gave a new one, milliseconds (RFC 8767).
    stale_until_ms: AtomicU64,
    /// The generation of rules that `meaning` was judged by.
    pub rules_generation: u64,
    /// What question and answer mean.
    pub meaning: Meaning,
    /// Question name; records, as they stand behind the question; where each TTL stands in those, two octets each; where
    /// the answer leads. Shared with the entry of a new judgement.
    octets: Arc<[u8]>,
    body_octets: u16,
    ttls: u16,
    /// Extended DNS Error of a failure, or of an upstream's own block.
    pub error: Option<(u16, &'static str)>,
}

/// Uses that are counted.
const MOST_USES: u8 = 3;

impl Entry {
    /// From an answer.
    pub fn new(key: &Key, answer: Answer, meaning: Meaning, rules_generation: u64, now_ms: u64) -> Self {
        let Lookup { name, bits } = key.lookup();
        let mut octets = Vec::with_capacity(512);
        octets.extend_from_slice(name);
        octets.extend_from_slice(&answer.body);
        answer.ttl_places.iter().for_each(|place| octets.extend_from_slice(&place.to_be_bytes()));
        octets.extend_from_slice(answer.targets.as_octets());
        Self {
            hash: 0,
            bits,
            name_octets: name.len() as u8,
            uses: AtomicU8::new(0),
            is_settled: AtomicBool::new(false),
            is_authentic: answer.is_authentic,
            rcode: answer.rcode,
            counts: answer.counts,
            ttl: answer.ttl,
            route: key.route,
            stored_ms: now_ms,
            stale_until_ms: AtomicU64::new(0),
            rules_generation,
            meaning,
            octets: octets.as_slice().into(),
            body_octets: answer.body.len() as u16,
            ttls: answer.ttl_places.len() as u16,
            error: answer.extended_error(),
        }
    }

    /// The same answer under another judgement.
    fn judged(&self, meaning: Meaning, rules_generation: u64) -> Self {
        Self {
            uses: AtomicU8::new(self.uses.load(Relaxed)),
            is_settled: AtomicBool::new(self.is_settled.load(Relaxed)),
            stale_until_ms: AtomicU64::new(self.stale_until_ms.load(Relaxed)),
            meaning,
            rules_generation,
            octets: Arc::clone(&self.octets),
            ..*self
        }
    }

    /// The same entry, owned.
    pub fn copy(&self) -> Self {
        self.judged(self.meaning, self.rules_generation)
    }

    /// The records as they stand behind the question.
    pub fn body(&self) -> &[u8] {
        &self.octets[usize::from(self.name_octets)..][..usize::from(self.body_octets)]
    }

    fn behind_body(&self) -> &[u8] {
        &self.octets[usize::from(self.name_octets) + usize::from(self.body_octets)..]
    }

    /// Where each TTL stands in the records.
    pub fn ttl_places(&self) -> impl Iterator<Item = usize> {
        let places = &self.behind_body()[..2 * usize::from(self.ttls)];
        places.chunks_exact(2).map(|at| usize::from(at[0]) << 8 | usize::from(at[1]))
    }

    /// Where it leads.
    pub fn targets(&self) -> Targets<&[u8]> {
        Targets::from_octets(&self.behind_body()[2 * usize::from(self.ttls)..])
    }

    /// The query type.
    fn qtype(&self) -> u16 {
        (self.bits >> 3) as u16
    }

    fn is_for(&self, lookup: Lookup<'_>) -> bool {
        self.bits == lookup.bits && self.octets[..usize::from(self.name_octets)] == *lookup.name
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
        now_ms < self.stale_until_ms.load(Relaxed)
    }

    /// Until when it is served though it has ended; 0 is not at all.
    pub fn stale_until_ms(&self) -> u64 {
        self.stale_until_ms.load(Relaxed)
    }

    /// Has it served until then though it has ended.
    pub fn serve_stale_until(&mut self, until_ms: u64) {
        *self.stale_until_ms.get_mut() = until_ms;
    }

    fn cost(&self) -> usize {
        // Two counts in front of the octets, and what the allocator adds to both parts.
        const ALLOCATED: usize = 16 + 2 * 16;
        size_of::<Self>() + self.octets.len() + ALLOCATED + QUEUE_OCTETS
    }

    /// Judges an owned entry anew when the rules moved on; its bytes stay.
    pub fn rejudge(&mut self, name: &FoldedName, rules: &Rules, generation: u64) {
        if self.rules_generation != generation {
            self.meaning = inspect::judge(rules, name, self.qtype(), &self.targets());
            self.rules_generation = generation;
        }
    }
}

const SHARDS: usize = 64;
/// Entries that one cache line of pointers leads to.
const WAYS: usize = 8;
/// What an entry takes in a queue.
const QUEUE_OCTETS: usize = 8;
/// Octets of cache for each place: smaller than any entry, so that places are not what runs out.
const OCTETS_A_PLACE: usize = 256;
/// The short queue's part of a shard.
const NEW_PART: usize = 10;
/// Entries that are looked at to let one go; the last goes, whatever it is.
const LOOKED_AT: usize = 64;

#[derive(Debug)]
#[repr(align(64))]
struct Places([Atomic<Entry>; WAYS]);

/// What writers of a shard share.
#[derive(Debug, Default)]
struct Queues {
    /// Hashes of entries that came lately, the oldest first.
    new: VecDeque<u64>,
    /// Hashes of entries that were asked for again.
    settled: VecDeque<u64>,
    /// Parts of the hashes of those that left the short queue, each at a place that its hash gives.
    left: Box<[u16]>,
    new_octets: usize,
    octets: usize,
    entries: usize,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    places: Box<[Places]>,
    sets_a_shard: usize,
    queues: Box<[Mutex<Queues>]>,
    hasher: RandomState,
    shard_octets: usize,
    evicted: AtomicU64,
}

impl Cache {
    /// A cache of so many octets in all.
    pub fn new(octets: usize) -> Self {
        let sets_a_shard = (octets / SHARDS / OCTETS_A_PLACE / WAYS).max(4);
        let places = || Places([const { Atomic::null() }; WAYS]);
        let left = vec![0; (sets_a_shard * WAYS).next_power_of_two()];
        let queues = || Mutex::new(Queues { left: left.clone().into(), ..Queues::default() });
        Self {
            places: on_huge_pages(SHARDS * sets_a_shard, places),
            sets_a_shard,
            queues: (0..SHARDS).map(|_| queues()).collect(),
            hasher: RandomState::new(),
            shard_octets: octets / SHARDS,
            evicted: AtomicU64::new(0),
        }
    }

    /// Finds out where the entry of a question stands, of this variant, and has the processor fetch that place.
    pub fn locate<'a>(&self, question: &Question<'a>, without_ech: bool) -> Hashed<'a> {
        let dnssec_ok = question.edns.is_some_and(|edns| edns.dnssec_ok);
        self.locate_name(question.name, question.qtype, dnssec_ok, question.checking_disabled, without_ech)
    }

    /// The same for any name.
    pub fn locate_name<'a>(
        &self,
        name: &'a FoldedName,
        qtype: u16,
        dnssec_ok: bool,
        checking_disabled: bool,
        without_ech: bool,
    ) -> Hashed<'a> {
        let lookup = Lookup::new(name, qtype, dnssec_ok, checking_disabled, without_ech);
        let hash = self.hash(lookup);
        prefetch(self.sets(hash)[0]);
        Hashed { lookup, hash }
    }

    /// Has the processor fetch an entry whose place it has; with `octets`, what the entry points to.
    pub fn fetch(&self, hashed: &Hashed<'_>, octets: bool, guard: &Guard) {
        for place in &self.sets(hashed.hash)[0].0 {
            let shared = place.load(Acquire, guard);
            if shared.tag() == Self::tag(hashed.hash) && !shared.is_null() {
                if !octets {
                    (0..size_of::<Entry>() / 64)
                        .for_each(|line| prefetch(shared.as_raw().cast::<[u8; 64]>().wrapping_add(line)));
                    return;
                }
                // SAFETY: as in `find`.
                if let Some(entry) = unsafe { shared.as_ref() } {
                    (0..2).for_each(|line| prefetch(entry.octets.as_ptr().wrapping_add(64 * line)));
                    return;
                }
            }
        }
    }

    /// Keyed: nobody can choose names that crowd out one another.
    fn hash(&self, lookup: Lookup<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(lookup.name);
        hasher.write_u32(lookup.bits);
        hasher.finish()
    }

    fn shard_of(hash: u64) -> usize {
        (hash >> 58) as usize
    }

    /// The two sets, of one shard, that a hash may stand in.
    fn sets(&self, hash: u64) -> [&Places; 2] {
        let set = |bits: u64| {
            let at = ((bits & 0xFF_FFFF) as usize * self.sets_a_shard) >> 24;
            &self.places[Self::shard_of(hash) * self.sets_a_shard + at]
        };
        [set(hash >> 6), set(hash >> 30)]
    }

    /// The part of a hash that a pointer carries: most entries that are not meant are never looked at.
    fn tag(hash: u64) -> usize {
        hash as usize & 0x3F
    }

    fn each_place(&self, hash: u64) -> impl Iterator<Item = &Atomic<Entry>> {
        self.sets(hash).into_iter().flat_map(|set| &set.0)
    }

    fn find<'g>(&self, hash: u64, guard: &'g Guard) -> Option<(&Atomic<Entry>, Shared<'g, Entry>, &'g Entry)> {
        self.each_place(hash).find_map(|place| {
            let shared = place.load(Acquire, guard);
            if shared.tag() != Self::tag(hash) {
                return None;
            }
            // SAFETY: what a place leads to is freed only by `defer_destroy` after it was taken out of the place, and so
            // not before this guard, under which it was read, is dropped.
            let entry = unsafe { shared.as_ref() }?;
            (entry.hash == hash).then_some((place, shared, entry))
        })
    }

    /// A fresh entry, or a stale one that is being served. Takes no lock.
    pub fn get<'g>(&self, hashed: &Hashed<'_>, now_ms: u64, guard: &'g Guard) -> Option<&'g Entry> {
        let (_, _, entry) = self.find(hashed.hash, guard)?;
        if !entry.is_for(hashed.lookup) || !(entry.is_fresh(now_ms) || entry.is_stale(now_ms)) {
            return None;
        }
        // What is used often is not written to: its line stays in every core's cache.
        let uses = entry.uses.load(Relaxed);
        if uses < MOST_USES {
            entry.uses.store(uses + 1, Relaxed);
        }
        Some(entry)
    }

    /// Puts a new judgement in the place of an entry, unless another entry took it meanwhile; gives the judged one.
    pub fn judge_anew<'g>(
        &self,
        entry: &'g Entry,
        name: &FoldedName,
        rules: &Rules,
        generation: u64,
        guard: &'g Guard,
    ) -> &'g Entry {
        let judged = entry.judged(inspect::judge(rules, name, entry.qtype(), &entry.targets()), generation);
        let judged = Owned::new(judged).into_shared(guard).with_tag(Self::tag(entry.hash));
        // Whoever finds a writer at work does not wait for it: the judgement serves this query, and the next use keeps it.
        let queues = self.queues[Self::shard_of(entry.hash)].try_lock();
        match self.find(entry.hash, guard).filter(|_| queues.is_ok()) {
            Some((place, shared, found)) if std::ptr::eq(found, entry) => {
                place.store(judged, Release);
                // SAFETY: no place leads to it any more, and writers of this shard are held off by the lock.
                unsafe { guard.defer_destroy(shared) };
            }
            // SAFETY: nobody else has seen this one; the caller's guard keeps it alive as long as it is used.
            _ => unsafe { guard.defer_destroy(judged) },
        }
        drop(queues);
        // SAFETY: it was made just now, and is freed after this guard at the earliest.
        unsafe { judged.deref() }
    }

    /// What there is when nobody gives a new answer: a fresh one that came meanwhile, or one that ended at most
    /// `longest_ms` ago, which is then served for `again_ms` before anybody is asked anew. A failure is neither, and an
    /// upstream's block without an SOA is short-lived.
    pub fn revive(&self, key: &Key, now_ms: u64, longest_ms: u64, again_ms: u64) -> Option<Entry> {
        let guard = pin();
        let lookup = key.lookup();
        let (_, _, entry) = self.find(key.hash, &guard)?;
        if matches!(entry.rcode, rcode::SERVFAIL | rcode::REFUSED) || entry.route != key.route || !entry.is_for(lookup)
        {
            return None;
        }
        if !entry.is_fresh(now_ms) {
            let ended_ms = entry.stored_ms + u64::from(entry.ttl) * 1000;
            if now_ms >= ended_ms + longest_ms {
                return None;
            }
            entry.stale_until_ms.store((now_ms + again_ms).min(ended_ms + longest_ms), Relaxed);
        }
        Some(entry.copy())
    }

    /// Keeps an entry, in place of an older one for the same question. Says whether it was kept.
    pub fn insert(&self, key: &Key, mut entry: Entry, now_ms: u64) -> bool {
        let guard = &pin();
        let hash = key.hash;
        entry.hash = hash;
        let cost = entry.cost();
        let queues = &mut *lock(&self.queues[Self::shard_of(hash)]);
        let is_kept = entry.ttl > 0 && cost <= self.shard_octets;
        if let Some((place, shared, old)) = self.find(hash, guard) {
            // The older one goes in any case: it is known to be wrong now, and must not come back as a stale answer.
            if !is_kept {
                self.remove(queues, place, shared, old, guard);
                return false;
            }
            let is_settled = old.is_settled.load(Relaxed);
            entry.is_settled.store(is_settled, Relaxed);
            entry.uses.store(old.uses.load(Relaxed), Relaxed);
            let old_cost = old.cost();
            queues.octets = queues.octets + cost - old_cost;
            if !is_settled {
                queues.new_octets = queues.new_octets + cost - old_cost;
            }
            place.store(Owned::new(entry).with_tag(Self::tag(hash)), Release);
            // SAFETY: as in `judge_anew`.
            unsafe { guard.defer_destroy(shared) };
            while queues.octets > self.shard_octets && self.evict_one(queues, now_ms, guard) {}
            return true;
        }
        if !is_kept {
            return false;
        }
        // Also when the queues are long though the entries are small: each is bounded on its own.
        let most = self.sets_a_shard * WAYS;
        while queues.octets + cost > self.shard_octets || queues.new.len() + queues.settled.len() >= most {
            if !self.evict_one(queues, now_ms, guard) {
                break;
            }
        }
        let left_at = hash as usize & (queues.left.len() - 1);
        let is_settled = queues.left[left_at] == Self::print(hash);
        entry.is_settled.store(is_settled, Relaxed);
        let place = self.each_place(hash).find(|place| place.load(Relaxed, guard).is_null());
        let place = place.unwrap_or_else(|| self.make_room(queues, hash, guard));
        place.store(Owned::new(entry).with_tag(Self::tag(hash)), Release);
        queues.octets += cost;
        queues.entries += 1;
        if is_settled {
            queues.settled.push_back(hash);
        } else {
            queues.new_octets += cost;
            queues.new.push_back(hash);
        }
        true
    }

    /// What is remembered of one that left the short queue; never 0, which is nobody.
    fn print(hash: u64) -> u16 {
        ((hash >> 42) as u16).max(1)
    }

    fn remove(
        &self,
        queues: &mut Queues,
        place: &Atomic<Entry>,
        shared: Shared<'_, Entry>,
        entry: &Entry,
        guard: &Guard,
    ) {
        let cost = entry.cost();
        queues.octets -= cost;
        queues.entries -= 1;
        if !entry.is_settled.load(Relaxed) {
            queues.new_octets -= cost;
        }
        place.store(Shared::null(), Release);
        // SAFETY: as in `judge_anew`.
        unsafe { guard.defer_destroy(shared) };
    }

    /// Both sets of a hash are full: the entry that was used least goes. Its hash stays in a queue, and is passed over.
    fn make_room(&self, queues: &mut Queues, hash: u64, guard: &Guard) -> &Atomic<Entry> {
        let places = self.each_place(hash).map(|place| (place, place.load(Relaxed, guard)));
        // Of the short queue first: a scan must not use up the places of those that stay.
        let worth = |shared: Shared<'_, Entry>| {
            // SAFETY: as in `find`.
            unsafe { shared.as_ref() }.map(|entry| (entry.is_settled.load(Relaxed), entry.uses.load(Relaxed)))
        };
        let Some((place, shared)) = places.min_by_key(|&(_, shared)| worth(shared)) else {
            unreachable!("a hash has two sets of places");
        };
        // SAFETY: as in `find`.
        if let Some(entry) = unsafe { shared.as_ref() } {
            self.remove(queues, place, shared, entry, guard);
            self.evicted.fetch_add(1, Relaxed);
        }
        place
    }

    /// Takes one step along the queues, or a few; false when both are empty.
    fn evict_one(&self, queues: &mut Queues, now_ms: u64, guard: &Guard) -> bool {
        for looked_at in 1..=LOOKED_AT {
            let is_new = queues.settled.is_empty() || queues.new_octets > self.shard_octets / NEW_PART;
            let queue = if is_new { &mut queues.new } else { &mut queues.settled };
            let Some(hash) = queue.pop_front() else {
                if is_new && queues.settled.is_empty() {
                    return false;
                }
                continue;
            };
            let Some((place, shared, entry)) = self.find(hash, guard) else { continue };
            // One that was let go and came again may have two places in the queues: the one of its own counts.
            if entry.is_settled.load(Relaxed) == is_new {
                continue;
            }
            let uses = entry.uses.load(Relaxed);
            if uses > 0 && looked_at < LOOKED_AT && entry.is_fresh(now_ms) {
                if is_new {
                    entry.is_settled.store(true, Relaxed);
                    queues.new_octets -= entry.cost();
                }
                entry.uses.store(if is_new { 0 } else { uses - 1 }, Relaxed);
                queues.settled.push_back(hash);
                continue;
            }
            if is_new {
                let left_at = hash as usize & (queues.left.len() - 1);
                queues.left[left_at] = Self::print(hash);
            }
            self.remove(queues, place, shared, entry, guard);
            self.evicted.fetch_add(1, Relaxed);
            return true;
        }
        true
    }

    /// Entries, octets used, entries evicted so far.
    pub fn sizes(&self) -> (usize, usize, u64) {
        let (mut entries, mut octets) = (0, 0);
        for queues in &self.queues {
            let queues = lock(queues);
            entries += queues.entries;
            octets += queues.octets;
        }
        (entries, octets, self.evicted.load(Relaxed))
    }
}

/// So many values in one piece, on huge pages where the system has some: each lookup goes somewhere else, and with small
/// pages most of them would miss the processor's page table cache too.
fn on_huge_pages<T>(count: usize, value: impl Fn() -> T) -> Box<[T]> {
    let mut values: Vec<T> = Vec::with_capacity(count);
    let start = (values.as_mut_ptr() as usize).next_multiple_of(PAGE_OCTETS);
    let end = (values.as_mut_ptr() as usize + count * size_of::<T>()) / PAGE_OCTETS * PAGE_OCTETS;
    if start < end {
        // SAFETY: whole pages inside a block of our own; the call changes how they are backed, never what is in them. A
        // refusal changes nothing.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
    values.resize_with(count, value);
    values.into()
}

/// Smallest page, octets.
const PAGE_OCTETS: usize = 4096;

/// Asks the processor for a cache line; any address will do.
fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program sees, and faults nowhere.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

impl Drop for Cache {
    fn drop(&mut self) {
        for place in self.places.iter_mut().flat_map(|set| &mut set.0) {
            // SAFETY: nobody shares the cache any more, and each entry stands in one place.
            let _ = unsafe { std::mem::replace(place, Atomic::null()).try_into_owned() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{AppMask, NO_RULE};

    fn key(number: u32) -> Key {
        let name = FoldedName::from_rule_text(format!("n{number}.example").as_bytes()).unwrap();
        let hash = u64::from(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Key {
            hash: hash ^ hash >> 29,
            name,
            qtype: 1,
            dnssec_ok: false,
            checking_disabled: false,
            without_ech: false,
            route: 0,
        }
    }

    fn entry(key: &Key, octets: usize, ttl: u32) -> Entry {
        let meaning = Meaning {
            asked: AppMask::EMPTY,
            found: AppMask::EMPTY,
            asked_rule: NO_RULE,
            found_rule: NO_RULE,
            exact: None,
        };
        Entry::new(key, Answer { body: vec![0; octets], ttl, ..Answer::default() }, meaning, 1, 1000)
    }

    fn put(cache: &Cache, number: u32, octets: usize, ttl: u32) -> bool {
        cache.insert(&key(number), entry(&key(number), octets, ttl), 1000)
    }

    fn has(cache: &Cache, key: &Key, now_ms: u64) -> bool {
        found(cache, key, now_ms, |_| ()).is_some()
    }

    fn found<R>(cache: &Cache, key: &Key, now_ms: u64, see: impl FnOnce(&Entry) -> R) -> Option<R> {
        let hashed = Hashed { lookup: key.lookup(), hash: key.hash };
        cache.get(&hashed, now_ms, &pin()).map(see)
    }

    #[test]
    fn entries_are_found_until_they_expire() {
        let cache = Cache::new(1 << 20);
        assert!(put(&cache, 1, 10, 5));
        assert!(has(&cache, &key(1), 5999));
        assert!(!has(&cache, &key(1), 6000));
        assert!(!has(&cache, &Key { dnssec_ok: true, ..key(1) }, 1000), "DO has entries of its own, whatever the hash");
    }

    #[test]
    fn a_scan_pushes_out_nothing_that_is_used() {
        let cache = Cache::new(1 << 20);
        // Half of what it holds, asked for twice each.
        let used = || (0..1_000).map(key);
        for key in used() {
            cache.insert(&key, entry(&key, 100, 600), 1000);
            assert!(has(&cache, &key, 1000));
        }
        for number in 10_000..60_000 {
            put(&cache, number, 100, 600);
        }
        let (entries, octets, evicted) = cache.sizes();
        assert!(octets <= 1 << 20 && entries > 1_500 && evicted > 40_000, "{entries} {octets} {evicted}");
        let kept = used().filter(|key| has(&cache, key, 1000)).count();
        assert!(kept > 950, "{kept} of 1000 were kept");
    }

    #[test]
    fn the_bounds_hold_for_entries_of_any_size() {
        for octets in [0, 100, 3_000, 10_000] {
            let cache = Cache::new(1 << 20);
            for number in 0..20_000 {
                // The same names again, larger than before.
                put(&cache, number % 7_000, octets + number as usize / 7_000 * 1_000, 600);
            }
            let (entries, used, _) = cache.sizes();
            assert!(used <= 1 << 20 && entries > 0, "{entries} of {octets}: {used}");
            let queued = |queues: &Mutex<Queues>| {
                let queues = lock(queues);
                queues.new.len() + queues.settled.len()
            };
            let queued: usize = cache.queues.iter().map(queued).sum();
            assert!(queued <= cache.places.len() * WAYS, "{queued}");
        }
    }

    #[test]
    fn readers_see_whole_entries_while_writers_replace_them() {
        let cache = Cache::new(1 << 18);
        std::thread::scope(|scope| {
            for seed in 0..2u32 {
                let cache = &cache;
                scope.spawn(move || {
                    for turn in 0..100_000u32 {
                        let number = turn.wrapping_mul(2_654_435_761).wrapping_add(seed) % 500;
                        if turn % 4 == 0 {
                            cache.insert(&key(number), entry(&key(number), number as usize, 60), 1000);
                        } else if let Some(octets) = found(cache, &key(number), 1000, |entry| entry.body().len()) {
                            assert_eq!(octets, number as usize);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn what_has_ended_comes_back_when_nobody_gives_a_new_one() {
        let cache = Cache::new(1 << 20);
        let one = key(1);
        put(&cache, 1, 10, 5);
        assert!(!has(&cache, &one, 7000));
        assert!(cache.revive(&one, 16_000, 10_000, 30_000).is_none(), "it ended at 6 s, ten seconds ago");
        assert!(cache.revive(&Key { route: 1, ..one.clone() }, 7000, 10_000, 30_000).is_none(), "another route's");
        assert!(cache.revive(&one, 15_999, 40_000, 30_000).unwrap().is_stale(16_000));
        assert!(found(&cache, &one, 45_998, |entry| entry.is_stale(45_998)).unwrap());
        assert!(!has(&cache, &one, 45_999), "then somebody is asked anew");
        assert!(!cache.revive(&one, 15_000, 10_000, 30_000).unwrap().is_stale(16_000), "no longer than it may");
        put(&cache, 1, 10, 0);
        assert!(cache.revive(&one, 7000, 10_000, 30_000).is_none(), "something newer was said");
        cache.insert(&one, Entry { rcode: rcode::SERVFAIL, ..entry(&one, 10, 5) }, 1000);
        assert!(cache.revive(&one, 2000, 10_000, 30_000).is_none(), "a failure is no answer");
    }

    #[test]
    fn an_entry_of_the_same_question_replaces() {
        let cache = Cache::new(1 << 20);
        for octets in 1..100 {
            put(&cache, 1, octets, 60);
        }
        assert_eq!(cache.sizes().0, 1);
        assert_eq!(found(&cache, &key(1), 1000, |entry| entry.body().len()), Some(99));
    }
}
