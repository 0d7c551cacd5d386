//! A snapshot is a file: what was compiled, written once, checked by its digest before anything is believed.

use crate::chain::{Act, AtName, Chain, ChainBuilder, ChainZone, MAX_ZONES, NO_ACT, ToData, ZoneAnswers};
use crate::decide::{AppMask, ListMasks, Route, RuleSet, Rules, Sections, Template, Tuning, View, Views, Zone, Zones};
use crate::domains::{DomainTable, Entry, HashKey, MAX_SETS, Slots};
use crate::endpoint::{Endpoint, Transport};
use crate::identity::Address;
use crate::lists::rpz::{Deed, Trigger};
use crate::lists::{self, Effect, Format, Means, Scope};
use crate::patterns::Patterns;
use crate::prefixes::{Prefix, PrefixTable, Ranges};
use crate::wire::FoldedName;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::HashMap;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::path::PathBuf;

use crate::nat64::{Nat64, Nat64Prefix};

const MAGIC: &[u8; 8] = b"BLOCKD\x00\x08";

/// What a rule does to its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// The name and all below it.
    Suffix,
    /// The name alone.
    Host,
    /// Taken out.
    Hole,
    /// What a line of a list says.
    Listed(Means),
}

impl RuleKind {
    /// What a line of a list makes of its name; why it makes nothing.
    fn of_line(is_hole: bool, means: Means) -> Result<Self, &'static str> {
        match (is_hole, means) {
            (true, means) if means.is_exception() => Err("an exception in a list of holes"),
            (true, Means { scope: Scope::OnlyBelow, .. }) => Err("names below one without itself, in a list of holes"),
            (true, _) => Ok(Self::Hole),
            (false, means) => Ok(Self::Listed(means)),
        }
    }

    fn is_opening(self) -> bool {
        match self {
            Self::Suffix | Self::Host => false,
            Self::Hole => true,
            Self::Listed(means) => means.is_exception(),
        }
    }

    /// Whether names below the rule's are covered.
    fn is_about_below(self) -> bool {
        match self {
            Self::Suffix | Self::Hole => true,
            Self::Host => false,
            Self::Listed(means) => means.scope != Scope::Alone,
        }
    }

    /// Whether the rule's own name is covered.
    fn is_about_itself(self) -> bool {
        !matches!(self, Self::Listed(Means { scope: Scope::OnlyBelow, .. }))
    }
}

/// A list that belongs to an app.
pub struct ListInput {
    /// The file, which nobody changes while it is compiled: it may be read twice.
    pub file: PathBuf,
    /// How it is written.
    pub format: Format,
    /// Whether its names are holes.
    pub is_hole: bool,
    /// Whether public suffixes are meant.
    pub may_be_public: bool,
}

/// One live app: the index in [`RulesInput::apps`] is its bit.
#[derive(Default)]
pub struct AppInput {
    /// Its own rules.
    pub rules: Vec<(RuleKind, FoldedName)>,
    /// Its lists.
    pub lists: Vec<ListInput>,
    /// Its networks.
    pub networks: Vec<(Address, u8)>,
    /// Whether its names are also seen inside the zones of CDNs.
    pub embedded: bool,
    /// Its patterns.
    pub patterns: Vec<String>,
    /// What it needs, transitively, itself included.
    pub needs: AppMask,
    /// How its response policy zones answer.
    pub zone_answers: ZoneAnswers,
}

/// All that rules are made of.
#[derive(Default)]
pub struct RulesInput {
    /// What these inputs are told apart by.
    pub digest: [u8; 16],
    /// Live apps, in the order of their names.
    pub apps: Vec<AppInput>,
    /// Names that no list may block, nor anything below them.
    pub guarded: Vec<FoldedName>,
    /// Zones of CDNs, in which names of others are embedded.
    pub cdn_zones: Vec<FoldedName>,
    /// Prepared answers.
    pub templates: Vec<Template>,
    /// Zones answered here or asked elsewhere.
    pub zones: Vec<(FoldedName, Zone)>,
    /// Local records.
    pub hosts: Vec<(FoldedName, Zone)>,
    /// Routes, the default first.
    pub routes: Vec<Vec<Endpoint>>,
    /// Prefixes by which IPv6 addresses stand for IPv4 addresses.
    pub nat64: Vec<Nat64Prefix>,
    /// Answer to ANY.
    pub any_template: u16,
}

/// What became of one list.
#[derive(Debug, Default, Clone)]
pub struct ListReport {
    /// The format that it was read as.
    pub format: &'static str,
    /// Names kept.
    pub kept: u64,
    /// Names skipped, by reason.
    pub skipped: HashMap<&'static str, u64>,
    /// The first skipped lines: number, reason, text.
    pub samples: Vec<Sample>,
    /// Names that no list may have: everybody's, and guarded ones.
    pub refused: u64,
    /// The first of them.
    pub refused_samples: Vec<Sample>,
}

/// A line's number, what is wrong with it, and its text.
pub type Sample = (u64, &'static str, Vec<u8>);

/// How many skipped lines a report shows.
const SAMPLES: usize = 5;

impl ListReport {
    fn skip(&mut self, line: u64, why: &'static str, text: &[u8]) {
        *self.skipped.entry(why).or_default() += 1;
        if self.samples.len() < SAMPLES {
            self.samples.push((line, why, text[..text.len().min(80)].to_vec()));
        }
        if [lists::PUBLIC_SUFFIX, lists::EVERY_NAME, lists::rpz::EVERYBODYS, lists::regex::EVERYBODYS].contains(&why) {
            self.refuse(line, why, text);
        }
    }

    fn refuse(&mut self, line: u64, why: &'static str, text: &[u8]) {
        self.refused += 1;
        if self.refused_samples.len() < SAMPLES {
            self.refused_samples.push((line, why, text[..text.len().min(80)].to_vec()));
        }
    }
}

/// The rule set that says nothing, by number.
const EMPTY: u16 = 0;
/// Entries that one place of the index stands for, about.
const ENTRIES_A_PLACE: usize = 16;

/// Collects names. Those of lists are ten octets each, sorted when all are there: a hash table would be twice that.
struct Builder {
    key: HashKey,
    sets: Vec<RuleSet>,
    interned: HashMap<RuleSet, u16>,
    /// Apps' own rules: few. They are taken into the entries when those are settled.
    own: hashbrown::HashMap<u64, RuleSet>,
    /// Names of lists, and marks: the settled ones first.
    entries: Vec<Entry>,
    settled: usize,
    /// The first thing that went wrong where nothing can be returned.
    problem: Option<String>,
    /// Of settled entries: where those begin whose fingerprints have the same first bits.
    index: Vec<u32>,
}

impl Builder {
    fn new(key: HashKey) -> Self {
        let empty = RuleSet::default();
        let interned = HashMap::from([(empty, EMPTY)]);
        Self {
            key,
            sets: vec![empty],
            interned,
            own: hashbrown::HashMap::new(),
            entries: vec![],
            settled: 0,
            problem: None,
            index: vec![],
        }
    }

    fn intern(&mut self, set: RuleSet) -> Result<u16, String> {
        if let Some(&number) = self.interned.get(&set) {
            return Ok(number);
        }
        let number = u16::try_from(self.sets.len()).map_err(|_| {
            format!("the apps' rules overlap in more than the {MAX_SETS} ways that are allowed: let fewer lists live")
        })?;
        self.sets.push(set);
        self.interned.insert(set, number);
        Ok(number)
    }

    /// Notes what a set says of a name.
    fn push(&mut self, print: u64, set: RuleSet) {
        match self.intern(set) {
            // A list names what is below one name line after line.
            Ok(number) => match self.entries.last() {
                Some(last) if (last.print(), last.set()) == (print, number) => {}
                _ => self.entries.push(Entry::new(print, number)),
            },
            Err(problem) => self.problem = self.problem.take().or(Some(problem)),
        }
    }

    fn own(&mut self, app: AppMask, kind: RuleKind, name: &FoldedName) {
        if let Some(&print) = self.key.suffixes(name).last() {
            let set = self.own.entry(print).or_default();
            *set = set.or(&set_of(app, kind));
        }
    }

    /// Of settled entries.
    fn find(&self, print: u64) -> Option<usize> {
        let places = self.index.len().checked_sub(1).filter(|&places| places > 0)?;
        let place = ((u128::from(print) * places as u128) >> 64) as usize;
        let (start, end) = (self.index[place] as usize, self.index[place + 1] as usize);
        self.entries[start..end].binary_search_by_key(&print, Entry::print).ok().map(|at| start + at)
    }

    /// The apps that block a name and all below it.
    fn covering(&self, print: u64) -> AppMask {
        let by = |set: &RuleSet| set.suffix.or(set.listed_below.blocked());
        let listed = self.find(print).map(|at| by(&self.sets[usize::from(self.entries[at].set())]));
        self.own.get(&print).map(by).unwrap_or_default().or(listed.unwrap_or_default())
    }

    /// Enters the names between a blocked name and a hole or another app's rule below it (RFC 8020).
    fn mark_above(&mut self, app: AppMask, kind: RuleKind, suffixes: &[u64]) {
        let mut covering = AppMask::EMPTY;
        // A rule about what is below its name alone is below that, too.
        let above = suffixes.len().saturating_sub(usize::from(kind.is_about_itself()));
        for &print in &suffixes[..above] {
            covering = covering.or(self.covering(print));
            if kind.is_opening() {
                if !covering.and(app).is_empty() {
                    self.push(print, RuleSet { hole_below: app, ..RuleSet::default() });
                }
            } else if !covering.without(app).is_empty() {
                self.push(print, RuleSet { rule_below: app, ..RuleSet::default() });
            }
        }
    }

    /// Sorts what was collected, and joins what several rules say of one name.
    fn settle(&mut self) -> Result<(), String> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        if self.own.is_empty() && self.settled == self.entries.len() && !self.index.is_empty() {
            return Ok(());
        }
        let missing: Vec<_> = self.own.keys().copied().filter(|&print| self.find(print).is_none()).collect();
        self.entries.extend(missing.into_iter().map(|print| Entry::new(print, EMPTY)));
        self.entries.sort_unstable_by_key(Entry::print);
        let mut kept = 0;
        let mut at = 0;
        while at < self.entries.len() {
            let first = self.entries[at];
            let same = self.entries[at..].iter().take_while(|entry| entry.print() == first.print());
            let mut set = None;
            let mut end = at;
            for entry in same {
                if entry.set() != first.set() {
                    let all = set.unwrap_or(self.sets[usize::from(first.set())]);
                    set = Some(all.or(&self.sets[usize::from(entry.set())]));
                }
                end += 1;
            }
            self.entries[kept] = match set {
                None => first,
                Some(set) => Entry::new(first.print(), self.intern(set)?),
            };
            kept += 1;
            at = end;
        }
        self.entries.truncate(kept);
        let places = kept / ENTRIES_A_PLACE + 1;
        self.index.clear();
        for (at, entry) in self.entries.iter().enumerate() {
            let place = ((u128::from(entry.print()) * places as u128) >> 64) as usize;
            while self.index.len() <= place {
                self.index.push(at as u32);
            }
        }
        self.index.resize(places + 1, kept as u32);
        for (print, set) in std::mem::take(&mut self.own) {
            let at = self.find(print).expect("it was put there above");
            let all = set.or(&self.sets[usize::from(self.entries[at].set())]);
            self.entries[at] = Entry::new(print, self.intern(all)?);
        }
        self.settled = self.entries.len();
        self.forget_sets();
        Ok(())
    }

    /// Forgets the sets that only led to another: they are no name's, and there is room for so many.
    fn forget_sets(&mut self) {
        let mut numbers = vec![None; self.sets.len()];
        numbers[usize::from(EMPTY)] = Some(EMPTY);
        let mut sets = vec![RuleSet::default()];
        for entry in &mut self.entries {
            let number = *numbers[usize::from(entry.set())].get_or_insert_with(|| {
                sets.push(self.sets[usize::from(entry.set())]);
                sets.len() as u16 - 1
            });
            *entry = Entry::new(entry.print(), number);
        }
        self.interned = sets.iter().enumerate().map(|(number, &set)| (set, number as u16)).collect();
        self.sets = sets;
    }
}

/// What one rule says of its name.
fn set_of(app: AppMask, kind: RuleKind) -> RuleSet {
    let mut set = RuleSet::default();
    match kind {
        RuleKind::Suffix => set.suffix = app,
        RuleKind::Host => set.host = app,
        RuleKind::Hole => set.hole = app,
        RuleKind::Listed(means) => {
            let mut said = ListMasks::default();
            match means.effect {
                Effect::Block => said.block = app,
                Effect::Except => said.except = app,
                Effect::BlockImportant => said.block_important = app,
                Effect::ExceptImportant => said.except_important = app,
            }
            if kind.is_about_itself() {
                set.listed_here = said;
            }
            if kind.is_about_below() {
                set.listed_below = said;
            }
        }
    }
    set
}

/// Every rule that is an app's own.
fn each_own_rule(input: &RulesInput, mut each: impl FnMut(AppMask, RuleKind, &FoldedName)) {
    for (bit, app) in input.apps.iter().enumerate() {
        app.rules.iter().for_each(|(kind, name)| each(AppMask::of(bit), *kind, name));
    }
}

/// Names that no list may block: a list that has one of them, or what is above or below, is not what it was.
struct Guard {
    key: HashKey,
    names: hashbrown::HashSet<u64>,
    above: hashbrown::HashSet<u64>,
}

impl Guard {
    fn new(key: HashKey, names: &[FoldedName]) -> Self {
        let mut guard = Self { key, names: hashbrown::HashSet::new(), above: hashbrown::HashSet::new() };
        for name in names {
            let suffixes = key.suffixes(name);
            if let Some((&print, above)) = suffixes.split_last() {
                guard.names.insert(print);
                guard.above.extend(above);
            }
        }
        guard
    }

    fn forbids(&self, kind: RuleKind, name: &FoldedName) -> Option<&'static str> {
        if self.names.is_empty() || kind.is_opening() {
            return None;
        }
        let suffixes = self.key.suffixes(name);
        if suffixes.iter().any(|print| self.names.contains(print)) {
            return Some("a name that no list may block");
        }
        let covers = kind.is_about_below() && suffixes.last().is_some_and(|print| self.above.contains(print));
        covers.then_some("a name above one that no list may block")
    }
}

/// Every rule of the apps' lists, which are read anew at each call, so that no name is kept in memory.
fn each_listed_rule(
    input: &RulesInput,
    guard: &Guard,
    to_ascii: &mut dyn FnMut(&str) -> Option<String>,
    mut each: impl FnMut(AppMask, RuleKind, &FoldedName),
) -> Result<Vec<Vec<ListReport>>, String> {
    let mut reports = Vec::new();
    for (bit, app) in input.apps.iter().enumerate() {
        let mask = AppMask::of(bit);
        let mut app_reports = Vec::new();
        for list in &app.lists {
            let mut report = ListReport::default();
            if !list.format.is_of_names() {
                app_reports.push(report);
                continue;
            }
            let unread = |error: io::Error| format!("{}: cannot be read: {error}", list.file.display());
            let file = File::open(&list.file).map_err(unread)?;
            let format = lists::read(file, list.format, list.may_be_public, to_ascii, &mut |number, line| match line {
                Ok((means, name)) => {
                    let kind = match RuleKind::of_line(list.is_hole, means) {
                        Ok(kind) => kind,
                        Err(why) => return report.skip(number, why, name.to_string().as_bytes()),
                    };
                    report.kept += 1;
                    if let Some(why) = guard.forbids(kind, name) {
                        report.refuse(number, why, name.to_string().as_bytes());
                    }
                    each(mask, kind, name);
                }
                Err((why, text)) => report.skip(number, why, text),
            })
            .map_err(unread)?;
            report.format = format.word();
            app_reports.push(report);
        }
        reports.push(app_reports);
    }
    Ok(reports)
}

/// Every rule of the apps' response policy zones, apps in the order of their names and zones as their files have them.
fn read_zones(
    input: &RulesInput,
    guard: &Guard,
    chain: &mut ChainBuilder,
    to_data: &mut ToData<'_>,
    reports: &mut [Vec<ListReport>],
) -> Result<(), String> {
    for (bit, (app, reports)) in input.apps.iter().zip(reports).enumerate() {
        for (list, report) in app.lists.iter().zip(reports).filter(|(list, _)| list.format == Format::Rpz) {
            chain.zone(bit as u8, app.zone_answers)?;
            report.format = list.format.word();
            let unread = |error: io::Error| format!("{}: cannot be read: {error}", list.file.display());
            let file = File::open(&list.file).map_err(unread)?;
            lists::rpz::read(file, list.may_be_public, &mut |number, found| match found {
                Ok((trigger, deed)) => {
                    let named = match &trigger {
                        Trigger::Name(name) => Some((RuleKind::Host, *name)),
                        Trigger::Below(name) => Some((RuleKind::Suffix, *name)),
                        _ => None,
                    };
                    if let Some((kind, name)) = named.filter(|_| deed != Deed::Pass) {
                        if let Some(why) = guard.forbids(kind, &name) {
                            report.refuse(number, why, name.to_string().as_bytes());
                        }
                    }
                    match chain.rule(trigger, deed, to_data) {
                        Ok(()) => report.kept += 1,
                        Err(why) => report.skip(number, why, b""),
                    }
                }
                Err((why, text)) => report.skip(number, why, &text),
            })
            .map_err(unread)?;
        }
    }
    Ok(())
}

/// A list of expressions, as it was read: app, place, report, and where its pattern stands.
struct Expressions {
    app: usize,
    at: usize,
    report: ListReport,
    pattern: Option<usize>,
}

/// Adds a pattern for each of the apps' lists of expressions.
fn read_expressions(input: &RulesInput, sources: &mut Vec<(String, AppMask)>) -> Result<Vec<Expressions>, String> {
    let mut all = Vec::new();
    for (app, of) in input.apps.iter().enumerate() {
        for (at, list) in of.lists.iter().enumerate().filter(|(_, list)| list.format == Format::Regex) {
            let mut report = ListReport { format: list.format.word(), ..ListReport::default() };
            let mut lines: Vec<(u64, String)> = Vec::new();
            let read = File::open(&list.file).and_then(|file| {
                lists::regex::read(file, list.may_be_public, &mut |number, line| match line {
                    Ok(source) => lines.push((number, source)),
                    Err((why, text)) => report.skip(number, why, text),
                })
            });
            read.map_err(|error| format!("{}: cannot be read: {error}", list.file.display()))?;
            report.kept = lines.len() as u64;
            for guarded in &input.guarded {
                let text = guarded.to_string();
                let hit = lines.iter().find(|(_, source)| lists::regex::fits_ours(source, &text));
                if let Some((number, source)) = hit {
                    report.refuse(*number, "an expression that fits a name that no list may block", source.as_bytes());
                }
            }
            let expressions: Vec<String> = lines.into_iter().map(|(_, source)| source).collect();
            let pattern = (!expressions.is_empty()).then_some(sources.len());
            if pattern.is_some() {
                sources.push((lists::regex::any_of(&expressions), AppMask::of(app)));
            }
            all.push(Expressions { app, at, report, pattern });
        }
    }
    Ok(all)
}

/// What a snapshot is written of.
pub struct Compiled {
    /// The rules, but for their domain table.
    pub rules: Rules,
    /// What goes into the table: sorted, each once.
    pub entries: Vec<Entry>,
    /// What became of each app's lists.
    pub reports: Vec<Vec<ListReport>>,
}

/// Makes rules from their inputs. The error names a pattern, or a list that cannot be read.
pub fn build_rules(
    mut input: RulesInput,
    key: HashKey,
    to_ascii: &mut dyn FnMut(&str) -> Option<String>,
    to_data: &mut ToData<'_>,
) -> Result<Compiled, String> {
    for list in input.apps.iter_mut().flat_map(|app| &mut app.lists) {
        let found = File::open(&list.file).and_then(|file| lists::format_of(file, list.format));
        list.format = found.map_err(|error| format!("{}: cannot be read: {error}", list.file.display()))?;
    }
    let with_masks = |(bit, app): (usize, &AppInput)| {
        app.patterns.iter().map(move |source| (source.clone(), AppMask::of(bit))).collect::<Vec<_>>()
    };
    let mut sources: Vec<_> = input.apps.iter().enumerate().flat_map(with_masks).collect();
    let expressions = read_expressions(&input, &mut sources)?;
    let patterns = Patterns::build(sources).map_err(|(at, text)| {
        let list = expressions.iter().find(|list| list.pattern == Some(at));
        match list.map(|list| &input.apps[list.app].lists[list.at].file) {
            Some(file) => format!("{}: its expressions: {text}", file.display()),
            None => format!("pattern {at}: {text}"),
        }
    })?;
    let embedded = input.apps.iter().enumerate().filter(|(_, app)| app.embedded);
    let embedded = embedded.fold(AppMask::EMPTY, |all, (bit, _)| all.or(AppMask::of(bit)));
    let mut builder = Builder::new(key);
    // A CDN's zone, and what is above it, is everybody's: a list that names one must not block strangers.
    let shared: hashbrown::HashSet<u64> = input.cdn_zones.iter().flat_map(|zone| key.suffixes(zone).to_vec()).collect();
    for zone in &input.cdn_zones {
        if let Some(&print) = key.suffixes(zone).last() {
            builder.own.entry(print).or_default().is_cdn_zone = true;
        }
    }
    each_own_rule(&input, |app, kind, name| builder.own(app, kind, name));
    // Where no list covers what is below its names, own rules alone do, which are known: one reading is enough.
    let mut lists = input.apps.iter().flat_map(|app| &app.lists).filter(|list| list.format.is_of_names());
    let is_once = lists.all(|list| list.format == Format::Hosts && !list.is_hole);
    let guard = Guard::new(key, &input.guarded);
    let mut reports = each_listed_rule(&input, &guard, to_ascii, |app, kind, name| {
        let suffixes = key.suffixes(name);
        let Some(&print) = suffixes.last() else { return };
        if kind.is_opening() || !shared.contains(&print) {
            builder.push(print, set_of(app, kind));
        }
        if is_once {
            builder.mark_above(app, kind, &suffixes);
        }
    })?;
    if !is_once {
        builder.settle()?;
        each_listed_rule(&input, &guard, to_ascii, |app, kind, name| {
            builder.mark_above(app, kind, &key.suffixes(name))
        })?;
    }
    each_own_rule(&input, |app, kind, name| builder.mark_above(app, kind, &key.suffixes(name)));
    builder.settle()?;
    let Builder { mut entries, sets, .. } = builder;
    entries.shrink_to_fit();
    let mut chain = ChainBuilder::new(key);
    read_zones(&input, &guard, &mut chain, to_data, &mut reports)?;
    for list in expressions {
        reports[list.app][list.at] = list.report;
    }
    let chain = chain.finish(&mut input.templates)?.map(Box::new);

    let mut network_masks: Vec<AppMask> = Vec::new();
    let mut networks: HashMap<(Address, u8), AppMask> = HashMap::new();
    for (bit, app) in input.apps.iter().enumerate() {
        for &network in &app.networks {
            let mask = networks.entry(network).or_default();
            *mask = mask.or(AppMask::of(bit));
        }
    }
    let mut prefixes: Vec<Prefix> = networks
        .iter()
        .map(|(&(address, length), &mask)| Prefix { address, length, value: intern(&mut network_masks, mask) })
        .collect();
    prefixes.sort_by_key(|p| (p.address, p.length));
    let networks = PrefixTable::build(&prefixes, |outer, inner| {
        let mask = network_masks[outer as usize].or(network_masks[inner as usize]);
        intern(&mut network_masks, mask)
    });

    let routes = input.routes.into_iter().map(route).collect();
    let rules = Rules {
        names: entries.len() as u64,
        digest: input.digest,
        key,
        table: DomainTable::default(),
        sets,
        embedded,
        patterns,
        networks,
        network_masks,
        nat64: Nat64 { configured: input.nat64, ..Nat64::default() },
        needs: input.apps.iter().map(|app| app.needs).collect(),
        templates: input.templates,
        zones: Zones::new(key, input.zones),
        hosts: Zones::new(key, input.hosts),
        routes,
        any_template: input.any_template,
        chain,
    };
    Ok(Compiled { rules, entries, reports })
}

/// The place of a mask among those there are; it is put there first if need be.
fn intern(masks: &mut Vec<AppMask>, mask: AppMask) -> u32 {
    let at = masks.iter().position(|&other| other == mask).unwrap_or_else(|| {
        masks.push(mask);
        masks.len() - 1
    });
    at as u32
}

fn route(servers: Vec<Endpoint>) -> Route {
    let mut names: Vec<String> = servers.iter().map(Endpoint::to_string).collect();
    names.sort();
    let mut hasher = SipHasher13::new();
    hasher.write(names.join(" ").as_bytes());
    let tag = hasher.finish128().h1 as u32;
    Route { servers, tag }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn bytes(&mut self, value: &[u8]) {
        self.u64(value.len() as u64);
        self.0.extend_from_slice(value);
    }
    fn each<T>(&mut self, values: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.u64(values.len() as u64);
        for value in values {
            write(self, value);
        }
    }
    fn table(&mut self, table: &PrefixTable) {
        self.each(&table.v4.starts, |w, &v| w.u32(v));
        self.each(&table.v4.values, |w, &v| w.u32(v));
        self.each(&table.v6.starts, |w, &v| w.0.extend_from_slice(&v.to_le_bytes()));
        self.each(&table.v6.values, |w, &v| w.u32(v));
    }
    fn sections(&mut self, sections: &Sections) {
        self.u16(sections.answer);
        self.u16(sections.authority);
        self.bytes(&sections.body);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }
    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }
    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
    fn mask(&mut self) -> Option<AppMask> {
        self.u64().map(AppMask)
    }
    fn list_masks(&mut self) -> Option<ListMasks> {
        Some(ListMasks {
            block: self.mask()?,
            except: self.mask()?,
            block_important: self.mask()?,
            except_important: self.mask()?,
        })
    }
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let count = usize::try_from(self.u64()?).ok()?;
        self.take(count)
    }
    /// Reads a count and as many values; no more is reserved than the bytes that are there could hold.
    fn each<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = usize::try_from(self.u64()?).ok()?;
        if count > self.0.len() {
            return None;
        }
        let mut values = Vec::with_capacity(count.min(self.0.len() / size_of::<T>().max(1)));
        for _ in 0..count {
            values.push(read(self)?);
        }
        Some(values)
    }
    fn table(&mut self) -> Option<PrefixTable> {
        let v4 = Ranges::new(self.each(Self::u32)?, self.each(Self::u32)?);
        let starts = self.each(|r| Some(u128::from_le_bytes(r.take(16)?.try_into().ok()?)))?;
        let v6 = Ranges::new(starts, self.each(Self::u32)?);
        (v4.starts.len() == v4.values.len() && v6.starts.len() == v6.values.len()).then_some(PrefixTable { v4, v6 })
    }
    fn zones(&mut self, key: HashKey) -> Option<Zones> {
        let zones = self.each(|r| {
            let name = FoldedName::from_wire(r.bytes()?)?;
            let (kind, first, second) = (r.u8()?, r.u16()?, r.u16()?);
            let zone = match kind {
                0 => Zone::Local { apex: first, below: second },
                2 => Zone::Host(first),
                _ => Zone::Route(first),
            };
            Some((name, zone))
        })?;
        Some(Zones::new(key, zones))
    }
    fn sections(&mut self) -> Option<Sections> {
        Some(Sections { answer: self.u16()?, authority: self.u16()?, body: self.bytes()?.to_vec() })
    }
}

fn write_rules(w: &mut Writer, rules: &Rules) {
    w.0.extend_from_slice(&rules.digest);
    w.u64(rules.key.0);
    w.u64(rules.key.1);
    w.each(&rules.sets, |w, set| {
        set.masks().iter().for_each(|mask| w.u64(mask.0));
        w.u8(u8::from(set.is_cdn_zone));
    });
    w.u64(rules.embedded.0);
    let (sources, apps, automaton) = rules.patterns.parts();
    w.each(sources, |w, source| w.bytes(source.as_bytes()));
    w.each(apps, |w, mask| w.u64(mask.0));
    w.bytes(&automaton);
    w.table(&rules.networks);
    w.each(&rules.network_masks, |w, mask| w.u64(mask.0));
    w.each(&rules.nat64.configured, |w, prefix| {
        let (bits, length) = prefix.parts();
        w.u64((bits >> 64) as u64);
        w.u64(bits as u64);
        w.u8(length);
    });
    w.each(&rules.needs, |w, mask| w.u64(mask.0));
    w.each(&rules.templates, |w, template| {
        w.u16(template.rcode);
        w.u8(u8::from(template.is_silent));
        w.each(&template.by_type, |w, (qtype, sections)| {
            w.u16(*qtype);
            w.sections(sections);
        });
        w.sections(&template.otherwise);
        match &template.error {
            None => w.u8(0),
            Some((code, text)) => {
                w.u8(1);
                w.u16(*code);
                w.bytes(text);
            }
        }
        w.bytes(template.structured_error.as_deref().unwrap_or_default());
    });
    for zones in [&rules.zones, &rules.hosts] {
        let mut zones: Vec<_> = zones.names.iter().collect();
        zones.sort_by_key(|(name, _)| *name);
        w.each(&zones, |w, (name, zone)| {
            w.bytes(name);
            let (kind, first, second) = match zone {
                Zone::Local { apex, below } => (0, *apex, *below),
                Zone::Route(route) => (1, *route, 0),
                Zone::Host(template) => (2, *template, 0),
            };
            w.u8(kind);
            w.u16(first);
            w.u16(second);
        });
    }
    w.each(&rules.routes, |w, route| {
        w.each(&route.servers, |w, server| {
            let Endpoint { transport, address, scope, port, name } = server;
            w.u16(*port);
            for text in [transport.word(), &address.to_string(), scope, name] {
                w.bytes(text.as_bytes());
            }
        });
    });
    w.u16(rules.any_template);
    w.u8(u8::from(rules.chain.is_some()));
    if let Some(chain) = &rules.chain {
        write_chain(w, chain);
    }
}

fn write_chain(w: &mut Writer, chain: &Chain) {
    let at_name = |w: &mut Writer, at: &AtName| {
        w.u8(at.zone);
        w.u16(at.alone);
        w.u16(at.below);
    };
    w.each(&chain.zones, |w, zone| {
        w.u8(zone.app);
        w.table(&zone.answers);
        w.table(&zone.clients);
    });
    w.each(&chain.table.prints, |w, &print| w.u64(print));
    w.each(&chain.table.sets, |w, &set| w.u16(set));
    w.each(&chain.sets, |w, set| w.each(set, at_name));
    w.each(&chain.root, at_name);
    w.each(&chain.acts, |w, act| match act {
        Act::Pass => w.u8(0),
        Act::TcpOnly => w.u8(1),
        Act::Template(template) => {
            w.u8(2);
            w.u16(*template);
        }
        Act::Alias(target, is_prefixed, ttl) => {
            w.u8(3 + u8::from(*is_prefixed));
            w.bytes(target.as_wire());
            w.u32(*ttl);
        }
    });
}

fn read_chain(r: &mut Reader<'_>) -> Option<Chain> {
    let at_name = |r: &mut Reader<'_>| Some(AtName { zone: r.u8()?, alone: r.u16()?, below: r.u16()? });
    let chain = Chain {
        zones: r.each(|r| Some(ChainZone { app: r.u8()?, answers: r.table()?, clients: r.table()? }))?,
        table: DomainTable { prints: r.each(Reader::u64)?, sets: r.each(Reader::u16)? },
        sets: r.each(|r| r.each(at_name))?,
        root: r.each(at_name)?,
        acts: r.each(|r| {
            Some(match r.u8()? {
                0 => Act::Pass,
                1 => Act::TcpOnly,
                2 => Act::Template(r.u16()?),
                kind => Act::Alias(FoldedName::from_wire(r.bytes()?)?, kind == 4, r.u32()?),
            })
        })?,
    };
    let act = |index: u16| index == NO_ACT || usize::from(index) < chain.acts.len();
    let at = |at: &AtName| usize::from(at.zone) < chain.zones.len() && act(at.alone) && act(at.below);
    let table = &chain.table;
    let is_consistent = chain.zones.len() <= MAX_ZONES
        && table.is_sound()
        && table.sets.iter().zip(&table.prints).all(|(&set, &p)| p == 0 || usize::from(set) < chain.sets.len())
        && chain.sets.iter().flatten().chain(&chain.root).all(at)
        && chain
            .zones
            .iter()
            .all(|zone| is_table(&zone.answers, chain.acts.len()) && is_table(&zone.clients, chain.acts.len()));
    is_consistent.then_some(chain)
}

fn read_rules(r: &mut Reader<'_>, table: DomainTable) -> Option<Rules> {
    let digest = r.take(16)?.try_into().ok()?;
    let key = HashKey(r.u64()?, r.u64()?);
    let mut rules = Rules {
        names: 0,
        digest,
        key,
        table,
        sets: r.each(|r| {
            Some(RuleSet {
                suffix: r.mask()?,
                host: r.mask()?,
                hole: r.mask()?,
                hole_below: r.mask()?,
                rule_below: r.mask()?,
                listed_here: r.list_masks()?,
                listed_below: r.list_masks()?,
                is_cdn_zone: r.u8()? != 0,
            })
        })?,
        embedded: r.mask()?,
        patterns: {
            let sources = r.each(|r| Some(std::str::from_utf8(r.bytes()?).ok()?.to_string()))?;
            Patterns::from_parts(sources, r.each(Reader::mask)?, r.bytes()?)?
        },
        networks: r.table()?,
        network_masks: r.each(Reader::mask)?,
        nat64: Nat64 {
            configured: r.each(|r| {
                let bits = u128::from(r.u64()?) << 64 | u128::from(r.u64()?);
                Nat64Prefix::new(bits, r.u8()?)
            })?,
            ..Nat64::default()
        },
        needs: r.each(Reader::mask)?,
        templates: r.each(|r| {
            Some(Template {
                rcode: r.u16()?,
                is_silent: r.u8()? != 0,
                by_type: r.each(|r| Some((r.u16()?, r.sections()?)))?,
                otherwise: r.sections()?,
                error: match r.u8()? {
                    0 => None,
                    _ => Some((r.u16()?, r.bytes()?.to_vec())),
                },
                structured_error: Some(r.bytes()?.to_vec()).filter(|text| !text.is_empty()),
            })
        })?,
        zones: r.zones(key)?,
        hosts: r.zones(key)?,
        routes: r.each(|r| {
            let endpoint = |r: &mut Reader<'_>| {
                let port = r.u16()?;
                let mut text = || std::str::from_utf8(r.bytes()?).ok();
                let (transport, address) = (Transport::from_word(text()?)?, text()?.parse().ok()?);
                Some(Endpoint { transport, address, scope: text()?.into(), port, name: text()?.into() })
            };
            Some(route(r.each(endpoint)?))
        })?,
        any_template: r.u16()?,
        chain: match r.u8()? {
            0 => None,
            _ => Some(Box::new(read_chain(r)?)),
        },
    };
    rules.names = rules.table.prints.iter().filter(|&&print| print != 0).count() as u64;
    is_consistent(&rules).then_some(rules)
}

/// Every index points somewhere and every mask holds live apps alone, so that the hot path may trust them.
fn is_consistent(rules: &Rules) -> bool {
    let template = |index: u16| usize::from(index) < rules.templates.len();
    let sets = rules.sets.len();
    let live = live_mask(rules);
    let is_live = |mask: AppMask| mask.without(live).is_empty();
    rules.table.is_sound()
        && rules.table.sets.iter().zip(&rules.table.prints).all(|(&set, &print)| print == 0 || usize::from(set) < sets)
        && rules.sets.iter().all(|set| set.masks().into_iter().all(is_live))
        && is_table(&rules.networks, rules.network_masks.len())
        && rules.network_masks.iter().chain(&rules.needs).chain(rules.patterns.apps()).all(|&mask| is_live(mask))
        && is_live(rules.embedded)
        && rules.needs.len() <= AppMask::WIDTH
        && !rules.routes.is_empty()
        && rules.templates.iter().all(is_template)
        && template(rules.any_template)
        && rules.chain.iter().all(|chain| {
            chain.zones.iter().all(|zone| usize::from(zone.app) < rules.needs.len())
                && chain.acts.iter().all(|act| !matches!(act, Act::Template(index) if !template(*index)))
        })
        && rules.zones.names.values().chain(rules.hosts.names.values()).all(|zone| match *zone {
            Zone::Local { apex, below } => template(apex) && template(below),
            Zone::Route(route) => usize::from(route) < rules.routes.len(),
            Zone::Host(index) => template(index),
        })
}

fn live_mask(rules: &Rules) -> AppMask {
    AppMask(u64::MAX.checked_shr((AppMask::WIDTH.saturating_sub(rules.needs.len())) as u32).unwrap_or(0))
}

/// Ranges ascend, and what they map to is there.
fn is_table(table: &PrefixTable, targets: usize) -> bool {
    table.v4.starts.is_sorted()
        && table.v6.starts.is_sorted()
        && table.v4.values.iter().chain(&table.v6.values).all(|&v| v == PrefixTable::NONE || (v as usize) < targets)
}

/// Longest body of a prepared answer, and longest text of its error: it must fit any reply beside any question.
const MAX_TEMPLATE_OCTETS: usize = 1_024;

fn is_template(template: &Template) -> bool {
    let is_whole = |sections: &Sections| {
        let records = usize::from(sections.answer) + usize::from(sections.authority);
        sections.body.len() <= MAX_TEMPLATE_OCTETS && sections.body.len() >= 12 * records
    };
    is_whole(&template.otherwise)
        && template.by_type.iter().all(|(_, sections)| is_whole(sections))
        && template.error.as_ref().is_none_or(|(_, text)| text.len() <= MAX_TEMPLATE_OCTETS)
        && template.structured_error.as_ref().is_none_or(|text| text.len() <= MAX_TEMPLATE_OCTETS)
}

fn write_views(w: &mut Writer, views: &Views) {
    w.each(&views.views, |w, view| {
        for mask in [view.block, view.monitor, view.allow, view.exempt] {
            w.u64(mask.0);
        }
        w.each(&view.answers, |w, &v| w.u16(v));
        w.u8(u8::from(view.is_logged));
        w.u8(u8::from(view.strip_ech));
    });
    w.table(&views.devices);
    w.u16(views.unidentified);
    w.table(&views.clients);
    let t = &views.tuning;
    for value in [
        t.live_ttl,
        t.ttl_floor,
        t.ttl_ceiling,
        t.negative_ttl_ceiling,
        t.stale,
        u32::from(t.trust_ad),
        t.client_rate,
        t.client_burst,
        t.pending_in_all,
        t.pending_a_client,
    ] {
        w.u32(value);
    }
}

fn read_views(r: &mut Reader<'_>, rules: &Rules) -> Option<Views> {
    let views = Views {
        views: r.each(|r| {
            Some(View {
                block: r.mask()?,
                monitor: r.mask()?,
                allow: r.mask()?,
                exempt: r.mask()?,
                answers: r.each(Reader::u16)?,
                is_logged: r.u8()? != 0,
                strip_ech: r.u8()? != 0,
            })
        })?,
        devices: r.table()?,
        unidentified: r.u16()?,
        clients: r.table()?,
        tuning: Tuning {
            live_ttl: r.u32()?,
            ttl_floor: r.u32()?,
            ttl_ceiling: r.u32()?,
            negative_ttl_ceiling: r.u32()?,
            stale: r.u32()?,
            trust_ad: r.u32()? != 0,
            client_rate: r.u32()?,
            client_burst: r.u32()?,
            pending_in_all: r.u32()?,
            pending_a_client: r.u32()?,
        },
    };
    let live = live_mask(rules);
    let is_consistent = usize::from(views.unidentified) < views.views.len()
        && views.views.len() <= usize::from(u16::MAX)
        && is_table(&views.devices, views.views.len())
        && is_table(&views.clients, 1)
        && views.views.iter().all(|v| {
            let masks = [v.block, v.monitor, v.allow, v.exempt];
            let all = masks.iter().fold(AppMask::EMPTY, |all, &mask| all.or(mask));
            let bits: u32 = masks.iter().map(|mask| mask.0.count_ones()).sum();
            all.without(live).is_empty()
                && bits == all.0.count_ones()
                && v.answers.len() == rules.needs.len()
                && v.answers.iter().all(|&a| usize::from(a) < rules.templates.len())
        });
    is_consistent.then_some(views)
}

/// What passes through is digested on its way.
struct Digested<T> {
    inner: T,
    hasher: SipHasher13,
}

impl<T> Digested<T> {
    fn new(inner: T) -> Self {
        Self { inner, hasher: SipHasher13::new() }
    }

    fn sum(&self) -> [u8; 16] {
        self.hasher.finish128().as_bytes()
    }
}

impl<T: Write> Digested<T> {
    fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        self.hasher.write(octets);
        self.inner.write_all(octets)
    }

    /// Writes numbers as they come: a table is never held in two forms.
    fn write_each<const N: usize>(&mut self, values: impl Iterator<Item = [u8; N]>) -> io::Result<()> {
        let mut chunk = Vec::with_capacity(STEP_OCTETS + N);
        for value in values {
            chunk.extend_from_slice(&value);
            if chunk.len() >= STEP_OCTETS {
                self.write(&chunk)?;
                chunk.clear();
            }
        }
        self.write(&chunk)
    }
}

impl<T: Read> Digested<T> {
    fn read(&mut self, octets: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(octets)?;
        self.hasher.write(octets);
        Ok(())
    }

    fn read_each<const N: usize, V>(&mut self, count: usize, value: impl Fn([u8; N]) -> V) -> io::Result<Vec<V>> {
        let mut values = Vec::with_capacity(count);
        let mut chunk = vec![0; STEP_OCTETS / N * N];
        while values.len() < count {
            let octets = (count - values.len()).saturating_mul(N).min(chunk.len());
            self.read(&mut chunk[..octets])?;
            values.extend(chunk[..octets].chunks_exact(N).map(|octets| value(octets.try_into().expect("N octets"))));
        }
        Ok(values)
    }
}

/// What is held of a table while it is written or read.
const STEP_OCTETS: usize = 64 << 10;
/// Octets of a slot in the file.
const SLOT_OCTETS: u64 = 10;
/// Magic, digest, number of slots.
const HEAD_OCTETS: u64 = 32;

/// Writes the whole file: magic, digest of the rest, table, rules, views, and what Python keeps with them.
pub fn encode(
    rules: &Rules,
    entries: &[Entry],
    views: &Views,
    meta: &[u8],
    out: &mut (impl Write + Seek),
) -> io::Result<()> {
    out.write_all(MAGIC)?;
    out.write_all(&[0; 16])?;
    let mut file = Digested::new(&mut *out);
    let slots = Slots::of(entries);
    file.write(&(slots.count() as u64).to_le_bytes())?;
    file.write_each(slots.iter().map(|(print, _)| print.to_le_bytes()))?;
    file.write_each(slots.iter().map(|(_, set)| set.to_le_bytes()))?;
    let mut writer = Writer::default();
    write_rules(&mut writer, rules);
    write_views(&mut writer, views);
    writer.bytes(meta);
    file.write(&writer.0)?;
    let sum = file.sum();
    out.seek(SeekFrom::Start(MAGIC.len() as u64))?;
    out.write_all(&sum)?;
    out.flush()
}

/// Reads a file of so many octets back; says what is wrong with one that is cut, changed or of another version.
///
/// Nothing of it is believed before the digest was compared.
pub fn decode(mut file: impl Read, octets: u64) -> io::Result<(Rules, Views, Vec<u8>)> {
    let bad = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => bad("it is cut short"),
        _ => error,
    };
    let mut magic = [0; 8];
    file.read_exact(&mut magic).map_err(|_| bad("it is no snapshot of this version of blockd"))?;
    if magic != *MAGIC {
        return Err(bad("it is no snapshot of this version of blockd"));
    }
    let mut sum = [0; 16];
    file.read_exact(&mut sum).map_err(cut)?;
    let mut file = Digested::new(file);
    let mut count = [0; 8];
    file.read(&mut count).map_err(cut)?;
    let count = u64::from_le_bytes(count);
    // No more is reserved than the octets that are there could fill.
    let rest = count.checked_mul(SLOT_OCTETS).and_then(|table| octets.checked_sub(HEAD_OCTETS)?.checked_sub(table));
    let (Some(_), Ok(count)) = (rest, usize::try_from(count)) else { return Err(bad("it is cut short")) };
    let prints = file.read_each(count, u64::from_le_bytes).map_err(cut)?;
    let sets = file.read_each(count, u16::from_le_bytes).map_err(cut)?;
    let mut rest = Vec::new();
    file.inner.read_to_end(&mut rest)?;
    file.hasher.write(&rest);
    if file.sum() != sum {
        return Err(bad("its digest does not fit its content: it was cut or changed"));
    }
    let mut reader = Reader(&rest);
    let rules = read_rules(&mut reader, DomainTable { prints, sets }).ok_or_else(|| bad("its rules cannot be read"))?;
    let views = read_views(&mut reader, &rules).ok_or_else(|| bad("its views cannot be read"))?;
    let meta = reader.bytes().ok_or_else(|| bad("its description cannot be read"))?.to_vec();
    if !reader.0.is_empty() {
        return Err(bad("there are bytes behind its end"));
    }
    Ok((rules, views, meta))
}

/// A device or client prefix from text and length; bits below the length must be zero.
pub fn network(address: IpAddr, length: u8) -> Option<(Address, u8)> {
    match Address::from(address) {
        Address::V4(bits) if address.is_ipv4() => {
            let is_clean = length <= 32 && (length == 32 || bits << length == 0 || length == 0 && bits == 0);
            is_clean.then_some((Address::V4(bits), length))
        }
        Address::V6(bits) => {
            let is_clean = length <= 128 && (length == 128 || bits << length == 0);
            is_clean.then_some((Address::V6(bits), length))
        }
        Address::V4(_) => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn name(text: &str) -> FoldedName {
        FoldedName::from_rule_text(text.as_bytes()).unwrap()
    }

    pub(crate) fn rules_of(apps: Vec<AppInput>) -> Rules {
        let input = RulesInput {
            apps,
            cdn_zones: vec![name("cdn.example"), name("w.cdn.example")],
            templates: vec![Template::default()],
            routes: vec![vec![std::net::SocketAddr::from(([127, 0, 0, 1], 53)).into()]],
            ..RulesInput::default()
        };
        let Compiled { mut rules, entries, .. } =
            build_rules(input, HashKey(1, 2), &mut |_| None, &mut |_, _| None).unwrap();
        rules.table = DomainTable::build(&entries);
        rules
    }

    fn list_file(what: &str, text: &str) -> PathBuf {
        let file = std::env::temp_dir().join(format!("blockd-{what}-{}", std::process::id()));
        std::fs::write(&file, text).unwrap();
        file
    }

    fn file_of(rules: &Rules, views: &Views) -> Vec<u8> {
        let table = &rules.table;
        let slots = table.prints.iter().zip(&table.sets).filter(|&(&print, _)| print != 0);
        let mut entries: Vec<_> = slots.map(|(&print, &set)| Entry::new(print, set)).collect();
        entries.sort_unstable_by_key(Entry::print);
        let mut file = io::Cursor::new(Vec::new());
        encode(rules, &entries, views, b"meta", &mut file).unwrap();
        file.into_inner()
    }

    fn read_back(file: &[u8]) -> io::Result<(Rules, Views, Vec<u8>)> {
        decode(file, file.len() as u64)
    }

    fn app(rules: &[(RuleKind, &str)]) -> AppInput {
        AppInput { rules: rules.iter().map(|(kind, text)| (*kind, name(text))).collect(), ..AppInput::default() }
    }

    fn views() -> Views {
        Views {
            views: vec![View { answers: vec![0, 0], ..View::default() }],
            devices: PrefixTable::default(),
            unidentified: 0,
            clients: PrefixTable::default(),
            tuning: Tuning {
                live_ttl: 60,
                ttl_floor: 0,
                ttl_ceiling: 86400,
                negative_ttl_ceiling: 3600,
                stale: 0,
                trust_ad: false,
                client_rate: 1,
                client_burst: 1,
                pending_in_all: 1,
                pending_a_client: 1,
            },
        }
    }

    #[test]
    fn most_specific_rule_of_each_app_decides() {
        use RuleKind::*;
        let rules = rules_of(vec![
            app(&[(Suffix, "a.example"), (Hole, "b.a.example"), (Suffix, "c.b.a.example"), (Host, "h.example")]),
            app(&[(Listed(Means::BLOCK), "b.a.example"), (Hole, "x.b.a.example")]),
        ]);
        let apps = |text: &str| rules.find(&name(text)).apps.0;
        assert_eq!(apps("a.example"), 0b01);
        assert_eq!(apps("b.a.example"), 0b10);
        assert_eq!(apps("c.b.a.example"), 0b11);
        assert_eq!(apps("x.b.a.example"), 0b00);
        assert_eq!(apps("y.c.b.a.example"), 0b11);
        assert_eq!(apps("h.example"), 0b01);
        assert_eq!(apps("z.h.example"), 0);
        assert_eq!(apps("example"), 0);
        let exact = rules.find(&name("a.example")).exact.unwrap();
        assert_eq!(rules.sets[exact as usize].hole_below.0, 0b01);
        assert_eq!(rules.sets[exact as usize].rule_below.0, 0b10);
    }

    #[test]
    fn a_list_does_not_block_a_cdn() {
        let file = list_file("cdn", "example\ncdn.example\nw.cdn.example\na.cdn.example\n");
        let lists = vec![ListInput { file, format: Format::Domains, is_hole: false, may_be_public: true }];
        let rules = rules_of(vec![AppInput { lists, ..AppInput::default() }]);
        let apps = |text: &str| rules.find(&name(text)).apps.0;
        assert_eq!([apps("x.cdn.example"), apps("x.w.cdn.example"), apps("other.example")], [0, 0, 0]);
        assert_eq!(apps("x.a.cdn.example"), 1);
    }

    #[test]
    fn names_are_seen_inside_a_cdn_and_by_pattern() {
        use RuleKind::*;
        let rules = rules_of(vec![
            AppInput {
                embedded: true,
                patterns: vec!["^v[0-9]+[.]cdn[.]test$".into()],
                ..app(&[
                    (Suffix, "a.test"),
                    (Host, "h.test"),
                    (Hole, "ok.a.test"),
                    (Hole, "v7.cdn.test"),
                    (Hole, "free.a.test.cdn.example"),
                ])
            },
            app(&[(Suffix, "b.test")]),
        ]);
        let apps = |text: &str| rules.find(&name(text)).apps.0;
        for (text, wanted) in [
            ("a.test.cdn.example", 1),
            ("www.a.test.cdn.example", 1),
            ("www.a.test.x1.cdn.example", 1),
            ("www.a.test.x1.w.cdn.example", 1),
            ("h.test.cdn.example", 1),
            ("www.a.test.x1.x2.cdn.example", 0),
            ("x.h.test.cdn.example", 0),
            ("nota.test.cdn.example", 0),
            ("ok.a.test.cdn.example", 0),
            ("free.a.test.cdn.example", 0),
            ("b.test.cdn.example", 0),
            ("cdn.example", 0),
            ("test.cdn.example", 0),
            ("a.test.other.example", 0),
            ("v17.cdn.test", 1),
            ("v7.cdn.test", 0),
            ("v17.cdn.test.cdn.example", 0),
        ] {
            assert_eq!(apps(text), wanted, "{text}");
        }
        let place = |text: &str| rules.deciding_rule(&name(text), 0).map(|place| (place.kind, place.rule));
        assert_eq!(place("www.a.test.x1.cdn.example"), Some(("embedded", "a.test".into())));
        assert_eq!(place("v17.cdn.test"), Some(("pattern", "^v[0-9]+[.]cdn[.]test$".into())));
        assert_eq!(place("free.a.test.cdn.example"), Some(("hole", "free.a.test.cdn.example".into())));
        let file = file_of(&rules, &views());
        let (back, ..) = read_back(&file).unwrap();
        assert_eq!(back.find(&name("v17.cdn.test")).apps, AppMask(1));
        assert_eq!(back.find(&name("a.test.cdn.example")).apps, AppMask(1));
    }

    proptest! {
        /// Any body behind a digest that fits is read or refused: no count makes us reserve more than is there.
        #[test]
        fn any_body_is_read_or_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut file = file_of(&rules_of(vec![app(&[(RuleKind::Suffix, "a.example")]), app(&[])]), &views());
            for (at, value) in changes {
                let at = 24 + at.index(file.len() - 24);
                file[at] = value;
            }
            file.truncate(24 + cut.index(file.len() - 23));
            let mut digested = Digested::new(io::sink());
            digested.write(&file[24..]).unwrap();
            file[8..24].copy_from_slice(&digested.sum());
            if let Ok((rules, views, _)) = read_back(&file) {
                let matched = rules.find(&name("www.a.example"));
                let view = &views.views[usize::from(views.unidentified)];
                let verdict = crate::decide::decide(view, matched.apps, matched.holes);
                if let Some(app) = verdict.app {
                    let _ = rules.templates[usize::from(view.answers[usize::from(app)])].sections(1);
                }
            }
        }
    }

    #[test]
    fn a_file_reads_back_and_a_changed_octet_does_not() {
        let rules = rules_of(vec![app(&[(RuleKind::Suffix, "a.example")]), app(&[])]);
        let file = file_of(&rules, &views());
        let (back, _, meta) = read_back(&file).unwrap();
        assert_eq!((back.table, back.sets, &meta[..]), (rules.table, rules.sets, &b"meta"[..]));
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert!(read_back(&bad).is_err(), "octet {at}");
            assert!(read_back(&file[..at]).is_err());
        }
    }
}
