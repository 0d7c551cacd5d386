//! Response policy zones: rules that are walked in order, zone after zone, where masks would lose it
//! (draft-vixie-dnsop-dns-rpz-00). A site without such zones has none of this.

use crate::decide::{AppMask, Template, View};
use crate::domains::{DomainTable, Entry, HashKey, MAX_SETS, Suffixes};
use crate::identity::Address;
use crate::inspect::Targets;
use crate::lists::rpz::{Deed, Trigger};
use crate::nat64::Nat64;
use crate::prefixes::{Prefix, PrefixTable};
use crate::wire::{CLASS_IN, FoldedName, rtype};
use std::collections::HashMap;

/// Most zones: one bit each while they are walked.
pub const MAX_ZONES: usize = 64;
/// No rule.
pub const NO_ACT: u16 = u16::MAX;

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Act {
    /// Nothing, and nothing by later zones.
    Pass,
    /// A prepared answer.
    Template(u16),
    /// An answer over TCP alone.
    TcpOnly,
    /// Another name's answer; the labels of the name that met the rule come before it or not; TTL of the alias, seconds.
    Alias(FoldedName, bool, u32),
}

/// What one zone has at a name; a name that is there, with a rule or not, hides the wildcards above it (RFC 4592).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AtName {
    /// Which zone.
    pub zone: u8,
    /// For the name alone.
    pub alone: u16,
    /// For what is below.
    pub below: u16,
}

/// One zone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ChainZone {
    /// The bit of the app that it belongs to: views that do not name it skip it.
    pub app: u8,
    /// Rules about addresses in answers; values index `acts`.
    pub answers: PrefixTable,
    /// Rules about who asks.
    pub clients: PrefixTable,
}

/// All zones, the first one first.
#[derive(Debug, Default)]
pub struct Chain {
    /// In order.
    pub zones: Vec<ChainZone>,
    /// Names; values index `sets`.
    pub table: DomainTable,
    /// What zones have at a name, zone by zone.
    pub sets: Vec<Vec<AtName>>,
    /// The same for the root.
    pub root: Vec<AtName>,
    /// What rules do.
    pub acts: Vec<Act>,
}

/// A rule that was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Met {
    /// The app of its zone.
    pub app: u8,
    /// What it does: an index of `acts`.
    pub act: u16,
    /// The name of the answer that met it; none is the question's own.
    pub behind: Option<FoldedName>,
}

/// What came of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Walked {
    /// The first rule that counts for the view.
    pub met: Option<Met>,
    /// Apps that are watched, and have a rule that would have done something.
    pub watched: AppMask,
}

impl Chain {
    /// The rule of each zone for a name: of the name itself, else of the wildcard right above the nearest name there is.
    fn find(&self, suffixes: &Suffixes) -> [u16; MAX_ZONES] {
        let (mut rules, mut closed) = ([NO_ACT; MAX_ZONES], 0u64);
        let mut take = |at: &AtName, is_whole: bool| {
            let bit = 1u64 << at.zone;
            if closed & bit == 0 {
                closed |= bit;
                rules[usize::from(at.zone)] = if is_whole { at.alone } else { at.below };
            }
        };
        for (depth, &print) in suffixes.iter().rev().enumerate() {
            if let Some(set) = self.table.find(print) {
                self.sets[usize::from(set)].iter().for_each(|at| take(at, depth == 0));
            }
        }
        self.root.iter().for_each(|at| take(at, suffixes.is_empty()));
        rules
    }

    /// Walks the zones for a question, and for the names that its answer leads to once there is one.
    ///
    /// Zone order decides; a zone has rules about who asks, about the name, and about addresses, in this order, and those about
    /// addresses count where the answer has its addresses, at its last name. Without an answer, nothing is met as long as an
    /// earlier zone may still have a word about addresses. A rule by name does not count for DS of the name at which it
    /// begins, unless the answer is an alias: that is the parent's data, as with apps ([`crate::decide::Rules::find_for`]).
    pub fn walk(
        &self,
        key: HashKey,
        view: &View,
        client: Address,
        name: &FoldedName,
        qtype: u16,
        targets: Option<&Targets<impl AsRef<[u8]>>>,
        nat64: &Nat64,
    ) -> Walked {
        let mut walked = Walked::default();
        let mut names = vec![*name];
        // The target of an alias that was asked for is not asked for.
        names.extend(targets.filter(|_| qtype != rtype::CNAME).map(Targets::names).unwrap_or_default());
        let addresses = targets.map(Targets::addresses).unwrap_or_default();
        for (depth, name) in names.iter().enumerate() {
            let mut rules = self.find(&key.suffixes(name));
            if let Some(parent) = name.parent().filter(|_| qtype == rtype::DS && names.len() == 1) {
                let does = |rule: u16| self.acts.get(usize::from(rule)).is_some_and(|act| *act != Act::Pass);
                for (rule, above) in rules.iter_mut().zip(self.find(&key.suffixes(&parent))) {
                    if does(*rule) && !does(above) {
                        *rule = NO_ACT;
                    }
                }
            }
            let is_last = depth + 1 == names.len();
            let mut may_come = false;
            for (zone, rule) in self.zones.iter().zip(rules) {
                let bit = AppMask::of(zone.app.into());
                if view.block.or(view.monitor).and(bit).is_empty() {
                    continue;
                }
                let by_client = || if depth == 0 { zone.clients.find(client) } else { PrefixTable::NONE };
                let rule_at = |form| Some(zone.answers.find(form)).filter(|&found| found != PrefixTable::NONE);
                let by_address = || addresses.iter().find_map(|&address| nat64.find_map(address, rule_at));
                let act = match (by_client(), rule) {
                    (PrefixTable::NONE, NO_ACT) if is_last => by_address().unwrap_or(PrefixTable::NONE),
                    (PrefixTable::NONE, NO_ACT) => PrefixTable::NONE,
                    (PrefixTable::NONE, rule) => rule.into(),
                    (found, _) => found,
                };
                let Some(does) = self.acts.get(act as usize) else {
                    // Zones that are only watched end nothing, so nobody waits for them.
                    let is_obeyed = !view.block.and(bit).is_empty();
                    may_come |= targets.is_none() && is_obeyed && zone.answers != PrefixTable::default();
                    continue;
                };
                if !view.monitor.and(bit).is_empty() {
                    if *does != Act::Pass {
                        walked.watched = walked.watched.or(bit);
                    }
                    continue;
                }
                if !may_come {
                    let behind = (depth > 0).then_some(*name);
                    walked.met = Some(Met { app: zone.app, act: act as u16, behind });
                }
                return walked;
            }
        }
        walked
    }

    /// The name that an alias of `at` leads to; none where it would be too long.
    pub fn alias(target: &FoldedName, is_prefixed: bool, at: &FoldedName) -> Option<FoldedName> {
        if is_prefixed { at.with_suffix_replaced(&FoldedName::ROOT, target) } else { Some(*target) }
    }

    /// The rule of a zone of an app that a name meets, as text: the name, or the wildcard.
    pub fn deciding_rule(&self, key: HashKey, app: u8, name: &FoldedName) -> Option<String> {
        let suffixes = key.suffixes(name);
        let labels = suffixes.len();
        let mut closed = 0u64;
        for depth in 0..=labels {
            let print = labels.checked_sub(depth + 1).and_then(|at| suffixes.get(at));
            let set = match print {
                Some(&print) => self.table.find(print).map(|set| &self.sets[usize::from(set)]),
                None => Some(&self.root),
            };
            for at in set.into_iter().flatten() {
                let act = if depth == 0 { at.alone } else { at.below };
                if self.zones[usize::from(at.zone)].app == app && act != NO_ACT && closed & 1 << at.zone == 0 {
                    let text = name.to_string();
                    let rest: Vec<&str> = text.split('.').skip(depth).collect();
                    let rest = if rest.is_empty() { "*".to_string() } else { rest.join(".") };
                    return Some(if depth == 0 || rest == "*" { rest } else { format!("*.{rest}") });
                }
                closed |= 1 << at.zone;
            }
        }
        None
    }
}

/// The prepared answers of an app's zones, by index.
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(feature = "python", derive(pyo3::FromPyObject), pyo3(from_item_all))]
pub struct ZoneAnswers {
    /// NXDOMAIN.
    pub nxdomain: u16,
    /// NODATA.
    pub nodata: u16,
    /// Silence.
    pub silence: u16,
}

/// Turns a record's type and data, as written, into its number and wire form.
pub type ToData<'a> = dyn FnMut(&str, &str) -> Option<(u16, Vec<u8>)> + 'a;

/// A record of local data: type, TTL, data on the wire.
pub type LocalRecord = (u16, u32, Vec<u8>);

/// Collects zones.
pub struct ChainBuilder {
    key: HashKey,
    zones: Vec<ChainZone>,
    names: Vec<(u64, AtName)>,
    acts: Vec<Act>,
    interned: HashMap<Act, u16>,
    answers: Vec<(u8, Address, u8, u16)>,
    clients: Vec<(u8, Address, u8, u16)>,
    /// Local data: one owner has many records, one after the other or not.
    data: HashMap<(u8, Trigger), Vec<LocalRecord>>,
    of_zone: Vec<ZoneAnswers>,
    /// By what is said where there is none, and the records.
    templates: HashMap<(u16, Vec<LocalRecord>), u16>,
}

impl ChainBuilder {
    /// Nothing yet.
    pub fn new(key: HashKey) -> Self {
        Self {
            key,
            zones: vec![],
            names: vec![],
            acts: vec![],
            interned: HashMap::new(),
            answers: vec![],
            clients: vec![],
            data: HashMap::new(),
            of_zone: vec![],
            templates: HashMap::new(),
        }
    }

    /// Begins the next zone; says why there cannot be one.
    pub fn zone(&mut self, app: u8, answers: ZoneAnswers) -> Result<(), String> {
        if self.zones.len() == MAX_ZONES {
            return Err(format!("there are more than {MAX_ZONES} response policy zones"));
        }
        self.zones.push(ChainZone { app, ..ChainZone::default() });
        self.of_zone.push(answers);
        Ok(())
    }

    /// Takes a rule of the zone that was begun last; says why it is skipped.
    pub fn rule(&mut self, trigger: Trigger, deed: Deed, to_data: &mut ToData<'_>) -> Result<(), &'static str> {
        let zone = (self.zones.len() - 1) as u8;
        let of = self.of_zone[usize::from(zone)];
        let act = match deed {
            Deed::NxDomain => Act::Template(of.nxdomain),
            Deed::NoData => Act::Template(of.nodata),
            Deed::Drop => Act::Template(of.silence),
            Deed::Pass => Act::Pass,
            Deed::TcpOnly => Act::TcpOnly,
            Deed::Alias(target, is_prefixed, ttl) => Act::Alias(target, is_prefixed, ttl),
            Deed::Data(kind, ttl, text) => {
                let (number, data) = to_data(&kind, &text).ok_or("a record whose data cannot be read")?;
                self.data.entry((zone, trigger)).or_default().push((number, ttl, data));
                return Ok(());
            }
        };
        self.add(zone, trigger, act)
    }

    fn add(&mut self, zone: u8, trigger: Trigger, act: Act) -> Result<(), &'static str> {
        let act = match self.interned.get(&act) {
            Some(&number) => number,
            None => {
                let number = u16::try_from(self.acts.len()).ok().filter(|&number| number != NO_ACT);
                let number = number.ok_or("one of more different answers than there is room for")?;
                self.acts.push(act.clone());
                self.interned.insert(act, number);
                number
            }
        };
        match trigger {
            Trigger::Answer(address, length) => self.answers.push((zone, address, length, act)),
            Trigger::Client(address, length) => self.clients.push((zone, address, length, act)),
            Trigger::Name(name) => self.name(&name, AtName { zone, alone: act, below: NO_ACT }),
            Trigger::Below(name) => self.name(&name, AtName { zone, alone: NO_ACT, below: act }),
        }
        Ok(())
    }

    fn name(&mut self, name: &FoldedName, at: AtName) {
        let suffixes = self.key.suffixes(name);
        // 0 is the root's.
        self.names.push((suffixes.last().copied().unwrap_or(0), at));
        let there = AtName { alone: NO_ACT, below: NO_ACT, ..at };
        let above = suffixes.len().saturating_sub(1);
        for &print in &suffixes[..above] {
            if self.names.last() != Some(&(print, there)) {
                self.names.push((print, there));
            }
        }
    }

    /// Makes the chain; local data becomes templates behind those that are there.
    pub fn finish(mut self, templates: &mut Vec<Template>) -> Result<Option<Chain>, String> {
        if self.zones.is_empty() {
            return Ok(None);
        }
        let mut data: Vec<_> = std::mem::take(&mut self.data).into_iter().collect();
        data.sort_by_key(|((zone, _), _)| *zone);
        for ((zone, trigger), records) in data {
            let of = self.of_zone[usize::from(zone)];
            let known = self.templates.get(&(of.nodata, records.clone())).copied();
            let number = match known {
                Some(number) => number,
                None => {
                    let template = local_data(&templates[usize::from(of.nodata)], &records);
                    templates.push(template);
                    let number = u16::try_from(templates.len() - 1).map_err(
                        |_| "response policy zones have more different records than the 65536 that there is room for",
                    )?;
                    self.templates.insert((of.nodata, records), number);
                    number
                }
            };
            self.add(zone, trigger, Act::Template(number)).map_err(str::to_string)?;
        }
        self.settle().map(Some)
    }

    fn settle(self) -> Result<Chain, String> {
        let Self { mut zones, mut names, acts, answers, clients, .. } = self;
        // Stable: of two rules for one name the first one counts.
        names.sort_by_key(|&(print, at)| (print, at.zone));
        let mut numbers: HashMap<Vec<AtName>, u16> = HashMap::new();
        let (mut sets, mut entries, mut root): (Vec<Vec<AtName>>, Vec<Entry>, Vec<AtName>) = (vec![], vec![], vec![]);
        for of_name in names.chunk_by(|one, other| one.0 == other.0) {
            let mut set: Vec<AtName> = vec![];
            for &(_, at) in of_name {
                match set.last_mut().filter(|last| last.zone == at.zone) {
                    // The first rule of a name counts, as the first line of a file does.
                    Some(last) => {
                        last.alone = if last.alone == NO_ACT { at.alone } else { last.alone };
                        last.below = if last.below == NO_ACT { at.below } else { last.below };
                    }
                    None => set.push(at),
                }
            }
            if of_name[0].0 == 0 {
                root = set;
                continue;
            }
            let number = match numbers.get(&set) {
                Some(&number) => number,
                None => {
                    let number = u16::try_from(sets.len()).map_err(|_| {
                        format!("response policy zones differ in more than the {MAX_SETS} ways that there is room for")
                    })?;
                    sets.push(set.clone());
                    numbers.insert(set, number);
                    number
                }
            };
            entries.push(Entry::new(of_name[0].0, number));
        }
        for (at, zone) in zones.iter_mut().enumerate() {
            let of = |rules: &[(u8, Address, u8, u16)]| {
                let mut prefixes: Vec<Prefix> = rules
                    .iter()
                    .filter(|rule| usize::from(rule.0) == at)
                    .map(|&(_, address, length, act)| Prefix { address, length, value: act.into() })
                    .collect();
                prefixes.sort_by_key(|prefix| (prefix.address, prefix.length));
                prefixes.dedup_by_key(|prefix| (prefix.address, prefix.length));
                PrefixTable::build(&prefixes, |_, inner| inner)
            };
            zone.answers = of(&answers);
            zone.clients = of(&clients);
        }
        Ok(Chain { zones, table: DomainTable::build(&entries), sets, root, acts })
    }
}

/// The records that [`local_data`] put into a template; none where there are none.
pub fn local_records(template: &Template) -> Vec<LocalRecord> {
    let mut records = vec![];
    for (kind, sections) in &template.by_type {
        let mut rest = &sections.body[..];
        for _ in 0..sections.answer {
            let Some((head, data)) = rest.split_at_checked(12) else { break };
            let ttl = u32::from_be_bytes([head[6], head[7], head[8], head[9]]);
            let Some((data, behind)) = data.split_at_checked(usize::from(u16::from_be_bytes([head[10], head[11]])))
            else {
                break;
            };
            records.push((*kind, ttl, data.to_vec()));
            rest = behind;
        }
    }
    records
}

/// The answer of an owner that has records: those of the type that is asked for, or none.
fn local_data(nodata: &Template, records: &[LocalRecord]) -> Template {
    let mut by_type: Vec<(u16, crate::decide::Sections)> = vec![];
    for (kind, ttl, data) in records {
        if !by_type.iter().any(|(known, _)| known == kind) {
            by_type.push((*kind, crate::decide::Sections::default()));
        }
        let Some((_, sections)) = by_type.iter_mut().find(|(known, _)| known == kind) else { continue };
        sections.answer += 1;
        sections.body.extend_from_slice(&[0xC0, 0x0C]);
        sections.body.extend_from_slice(&kind.to_be_bytes());
        sections.body.extend_from_slice(&CLASS_IN.to_be_bytes());
        sections.body.extend_from_slice(&ttl.to_be_bytes());
        sections.body.extend_from_slice(&(data.len() as u16).to_be_bytes());
        sections.body.extend_from_slice(data);
    }
    Template { by_type, error: None, structured_error: None, ..nodata.clone() }
}
