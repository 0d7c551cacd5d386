//! A snapshot is a file: what was compiled, written once, checked by its digest before anything is believed.

use crate::decide::{AppMask, Route, RuleSet, Rules, Sections, Template, Tuning, View, Views, Zone, Zones};
use crate::domains::{DomainTable, HashKey, MAX_SETS};
use crate::identity::Address;
use crate::lists::{self, Format};
use crate::patterns::Patterns;
use crate::prefixes::{Prefix, PrefixTable, Ranges};
use crate::wire::FoldedName;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::HashMap;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

const MAGIC: &[u8; 8] = b"BLOCKD\x00\x03";

/// What a rule does to its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// The name and all below it.
    Suffix,
    /// The name alone.
    Host,
    /// Taken out.
    Hole,
    /// From a list: the name and all below it.
    ListSuffix,
    /// From a list: the name alone.
    ListHost,
}

/// A list that belongs to an app.
pub struct ListInput {
    /// The file's bytes, wherever they are.
    pub bytes: Box<dyn AsRef<[u8]> + Send + Sync>,
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
}

/// All that rules are made of.
#[derive(Default)]
pub struct RulesInput {
    /// What these inputs are told apart by.
    pub digest: [u8; 16],
    /// Live apps, in the order of their names.
    pub apps: Vec<AppInput>,
    /// Zones of CDNs, in which names of others are embedded.
    pub cdn_zones: Vec<FoldedName>,
    /// Prepared answers.
    pub templates: Vec<Template>,
    /// Zones answered here or asked elsewhere.
    pub zones: Vec<(FoldedName, Zone)>,
    /// Local records.
    pub hosts: Vec<(FoldedName, Zone)>,
    /// Routes, the default first.
    pub routes: Vec<Vec<SocketAddr>>,
    /// Answer to ANY.
    pub any_template: u16,
}

/// What became of one list.
#[derive(Debug, Default, Clone)]
pub struct ListReport {
    /// Names kept.
    pub kept: u64,
    /// Names skipped, by reason.
    pub skipped: HashMap<&'static str, u64>,
    /// The first skipped lines: number, reason, text.
    pub samples: Vec<(u64, &'static str, Vec<u8>)>,
}

/// How many skipped lines a report shows.
const SAMPLES: usize = 5;

impl ListReport {
    fn skip(&mut self, line: u64, why: &'static str, text: &[u8]) {
        *self.skipped.entry(why).or_default() += 1;
        if self.samples.len() < SAMPLES {
            self.samples.push((line, why, text[..text.len().min(80)].to_vec()));
        }
    }
}

/// What a line of a list takes at least, more often than not.
const OCTETS_A_LINE: usize = 32;

struct Builder {
    key: HashKey,
    sets: Vec<RuleSet>,
    interned: HashMap<RuleSet, u32>,
    names: hashbrown::HashMap<u64, u32>,
    /// What the last name of a list got that no rule had named before: nearly every name of a list gets the same.
    last: Option<(AppMask, RuleKind, u32)>,
}

impl Builder {
    fn change(&mut self, print: u64, change: impl FnOnce(&mut RuleSet)) {
        let mut set = self.names.get(&print).map_or_else(RuleSet::default, |&index| self.sets[index as usize]);
        change(&mut set);
        let next = self.sets.len() as u32;
        let index = *self.interned.entry(set).or_insert(next);
        if index == next {
            self.sets.push(set);
        }
        self.names.insert(print, index);
    }

    fn add(&mut self, app: AppMask, kind: RuleKind, name: &FoldedName) {
        self.add_print(app, kind, &self.key.suffixes(name));
    }

    fn add_print(&mut self, app: AppMask, kind: RuleKind, suffixes: &[u64]) {
        let Some(&print) = suffixes.last() else { return };
        if let Some((_, _, index)) = self.last.filter(|&(last_app, last_kind, _)| (last_app, last_kind) == (app, kind))
        {
            match self.names.entry(print) {
                hashbrown::hash_map::Entry::Vacant(place) => {
                    place.insert(index);
                    return;
                }
                hashbrown::hash_map::Entry::Occupied(place) if *place.get() == index => return,
                hashbrown::hash_map::Entry::Occupied(_) => {}
            }
        }
        let is_first = !self.names.contains_key(&print);
        self.change(print, |set| {
            let mask = match kind {
                RuleKind::Suffix => &mut set.suffix,
                RuleKind::Host => &mut set.host,
                RuleKind::Hole => &mut set.hole,
                RuleKind::ListSuffix => &mut set.list_suffix,
                RuleKind::ListHost => &mut set.list_host,
            };
            *mask = mask.or(app);
        });
        if is_first {
            self.last = self.names.get(&print).map(|&index| (app, kind, index));
        }
    }

    /// Enters the names between a blocked name and a hole or another app's rule below it (RFC 8020).
    fn mark_above(&mut self, app: AppMask, kind: RuleKind, suffixes: &[u64]) {
        let mut covering = AppMask::EMPTY;
        for &print in &suffixes[..suffixes.len().saturating_sub(1)] {
            if let Some(&index) = self.names.get(&print) {
                let set = &self.sets[index as usize];
                covering = covering.or(set.suffix).or(set.list_suffix);
            }
            if kind == RuleKind::Hole {
                if !covering.and(app).is_empty() {
                    self.change(print, |set| set.hole_below = set.hole_below.or(app));
                }
            } else if !covering.without(app).is_empty() {
                self.change(print, |set| set.rule_below = set.rule_below.or(app));
            }
        }
    }
}

/// Every rule that is an app's own.
fn each_own_rule(input: &RulesInput, mut each: impl FnMut(AppMask, RuleKind, &FoldedName)) {
    for (bit, app) in input.apps.iter().enumerate() {
        app.rules.iter().for_each(|(kind, name)| each(AppMask::of(bit), *kind, name));
    }
}

/// Every rule of the apps' lists, which are read anew at each call, so that no name is kept in memory.
fn each_listed_rule(
    input: &RulesInput,
    to_ascii: &mut dyn FnMut(&str) -> Option<String>,
    mut each: impl FnMut(AppMask, RuleKind, &FoldedName),
    mut reports: Option<&mut Vec<Vec<ListReport>>>,
) {
    for (bit, app) in input.apps.iter().enumerate() {
        let mask = AppMask::of(bit);
        let mut app_reports = Vec::new();
        for list in &app.lists {
            let kind = match (list.is_hole, list.format) {
                (true, _) => RuleKind::Hole,
                (false, Format::Domains) => RuleKind::ListSuffix,
                (false, Format::Hosts) => RuleKind::ListHost,
            };
            let mut report = ListReport::default();
            lists::read((*list.bytes).as_ref(), list.format, list.may_be_public, to_ascii, &mut |number, line| {
                match line {
                    Ok(name) => {
                        report.kept += 1;
                        each(mask, kind, name);
                    }
                    Err((why, text)) => report.skip(number, why, text),
                }
            });
            app_reports.push(report);
        }
        if let Some(reports) = reports.as_deref_mut() {
            reports.push(app_reports);
        }
    }
}

/// Makes rules from their inputs; the second value says what became of each app's lists. The error names a pattern.
pub fn build_rules(
    input: RulesInput,
    key: HashKey,
    to_ascii: &mut dyn FnMut(&str) -> Option<String>,
) -> Result<(Rules, Vec<Vec<ListReport>>), String> {
    let with_masks = |(bit, app): (usize, &AppInput)| {
        app.patterns.iter().map(move |source| (source.clone(), AppMask::of(bit))).collect::<Vec<_>>()
    };
    let patterns = Patterns::build(input.apps.iter().enumerate().flat_map(with_masks).collect())
        .map_err(|(at, text)| format!("pattern {at}: {text}"))?;
    let embedded = input.apps.iter().enumerate().filter(|(_, app)| app.embedded);
    let embedded = embedded.fold(AppMask::EMPTY, |all, (bit, _)| all.or(AppMask::of(bit)));
    let mut builder =
        Builder { key, sets: Vec::new(), interned: HashMap::new(), names: hashbrown::HashMap::new(), last: None };
    let mut reports = Vec::new();
    // Own rules of all apps first. Where no list covers what is below its names, nothing that a list says later can
    // cover a name read before, and one reading is enough.
    each_own_rule(&input, |app, kind, name| builder.add(app, kind, name));
    let lists = || input.apps.iter().flat_map(|app| &app.lists);
    // Room for what is likely there, so that the table does not grow step by step.
    builder.names.reserve(lists().map(|list| (*list.bytes).as_ref().len() / OCTETS_A_LINE).sum());
    let is_once = lists().all(|list| list.format == Format::Hosts && !list.is_hole);
    let add_listed = |app, kind, name: &FoldedName| {
        let suffixes = key.suffixes(name);
        builder.add_print(app, kind, &suffixes);
        if is_once {
            builder.mark_above(app, kind, &suffixes);
        }
    };
    each_listed_rule(&input, to_ascii, add_listed, Some(&mut reports));
    each_own_rule(&input, |app, kind, name| builder.mark_above(app, kind, &key.suffixes(name)));
    if !is_once {
        let mark = |app, kind, name: &FoldedName| builder.mark_above(app, kind, &key.suffixes(name));
        each_listed_rule(&input, to_ascii, mark, None);
    }
    for zone in &input.cdn_zones {
        let suffixes = key.suffixes(zone);
        // A CDN's zone, and what is above it, is everybody's: a list that names one must not block strangers.
        for &print in suffixes.iter().filter(|&print| builder.names.contains_key(print)).collect::<Vec<_>>() {
            builder.change(print, |set| (set.list_suffix, set.list_host) = (AppMask::EMPTY, AppMask::EMPTY));
        }
        if let Some(&print) = suffixes.last() {
            builder.change(print, |set| set.is_cdn_zone = true);
        }
    }
    // Sets that were only passed through on the way to another are no name's.
    let mut numbers = vec![None; builder.sets.len()];
    let mut sets = Vec::new();
    for index in builder.names.values_mut() {
        let at = *index as usize;
        *index = *numbers[at].get_or_insert_with(|| {
            sets.push(builder.sets[at]);
            sets.len() as u32 - 1
        });
    }
    if sets.len() > MAX_SETS {
        let sets = sets.len();
        return Err(format!(
            "the apps' rules overlap in {sets} ways, at most {MAX_SETS} are allowed: let fewer lists live"
        ));
    }
    let mut entries: Vec<(u64, u16)> = builder.names.into_iter().map(|(print, set)| (print, set as u16)).collect();
    entries.sort_unstable();

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
        table: DomainTable::build(&entries),
        sets,
        embedded,
        patterns,
        networks,
        network_masks,
        needs: input.apps.iter().map(|app| app.needs).collect(),
        templates: input.templates,
        zones: Zones::new(key, input.zones),
        hosts: Zones::new(key, input.hosts),
        routes,
        any_template: input.any_template,
    };
    Ok((rules, reports))
}

/// The place of a mask among those there are; it is put there first if need be.
fn intern(masks: &mut Vec<AppMask>, mask: AppMask) -> u32 {
    let at = masks.iter().position(|&other| other == mask).unwrap_or_else(|| {
        masks.push(mask);
        masks.len() - 1
    });
    at as u32
}

fn route(servers: Vec<SocketAddr>) -> Route {
    let mut names: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
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
        let v4 = Ranges { starts: self.each(Self::u32)?, values: self.each(Self::u32)? };
        let v6 = Ranges {
            starts: self.each(|r| Some(u128::from_le_bytes(r.take(16)?.try_into().ok()?)))?,
            values: self.each(Self::u32)?,
        };
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
    w.each(&rules.table.prints, |w, &v| w.u64(v));
    w.each(&rules.table.sets, |w, &v| w.u16(v));
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
        w.each(&route.servers, |w, server| w.bytes(server.to_string().as_bytes()));
    });
    w.u16(rules.any_template);
}

fn read_rules(r: &mut Reader<'_>) -> Option<Rules> {
    let digest = r.take(16)?.try_into().ok()?;
    let key = HashKey(r.u64()?, r.u64()?);
    let mut rules = Rules {
        names: 0,
        digest,
        key,
        table: DomainTable { prints: r.each(Reader::u64)?, sets: r.each(Reader::u16)? },
        sets: r.each(|r| {
            Some(RuleSet {
                suffix: r.mask()?,
                host: r.mask()?,
                hole: r.mask()?,
                list_suffix: r.mask()?,
                list_host: r.mask()?,
                hole_below: r.mask()?,
                rule_below: r.mask()?,
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
            let servers = r.each(|r| std::str::from_utf8(r.bytes()?).ok()?.parse().ok())?;
            Some(route(servers))
        })?,
        any_template: r.u16()?,
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

fn digest(bytes: &[u8]) -> [u8; 16] {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish128().as_bytes()
}

/// The whole file: magic, digest of the rest, rules, views, and what Python keeps with them.
pub fn encode(rules: &Rules, views: &Views, meta: &[u8]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.0.extend_from_slice(MAGIC);
    writer.0.extend_from_slice(&[0; 16]);
    write_rules(&mut writer, rules);
    write_views(&mut writer, views);
    writer.bytes(meta);
    let sum = digest(&writer.0[24..]);
    writer.0[8..24].copy_from_slice(&sum);
    writer.0
}

/// Reads a file back; says what is wrong with one that is cut, changed or of another version.
pub fn decode(bytes: &[u8]) -> Result<(Rules, Views, Vec<u8>), &'static str> {
    if bytes.get(..8) != Some(MAGIC) {
        return Err("it is no snapshot of this version of blockd");
    }
    let (Some(sum), Some(body)) = (bytes.get(8..24), bytes.get(24..)) else {
        return Err("it is cut short");
    };
    if digest(body) != *sum {
        return Err("its digest does not fit its content: it was cut or changed");
    }
    let mut reader = Reader(body);
    let rules = read_rules(&mut reader).ok_or("its rules cannot be read")?;
    let views = read_views(&mut reader, &rules).ok_or("its views cannot be read")?;
    let meta = reader.bytes().ok_or("its description cannot be read")?.to_vec();
    if !reader.0.is_empty() {
        return Err("there are bytes behind its end");
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
            routes: vec![vec!["127.0.0.1:53".parse().unwrap()]],
            ..RulesInput::default()
        };
        build_rules(input, HashKey(1, 2), &mut |_| None).unwrap().0
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
            app(&[(ListSuffix, "b.a.example"), (Hole, "x.b.a.example")]),
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
        let list = |text: &str| ListInput {
            bytes: Box::new(text.as_bytes().to_vec()),
            format: Format::Domains,
            is_hole: false,
            may_be_public: true,
        };
        let lists = vec![list("example\ncdn.example\nw.cdn.example\na.cdn.example\n")];
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
        let file =
            encode(&rules, &Views { views: vec![View { answers: vec![0, 0], ..View::default() }], ..views() }, b"");
        let (back, ..) = decode(&file).unwrap();
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
            let mut file = encode(&rules_of(vec![app(&[(RuleKind::Suffix, "a.example")]), app(&[])]), &views(), b"meta");
            for (at, value) in changes {
                let at = 24 + at.index(file.len() - 24);
                file[at] = value;
            }
            file.truncate(24 + cut.index(file.len() - 23));
            let sum = digest(&file[24..]);
            file[8..24].copy_from_slice(&sum);
            if let Ok((rules, views, _)) = decode(&file) {
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
        let file = encode(&rules, &views(), b"meta");
        let (back, _, meta) = decode(&file).unwrap();
        assert_eq!((back.table, back.sets, &meta[..]), (rules.table, rules.sets, &b"meta"[..]));
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_err(), "octet {at}");
            assert!(decode(&file[..at]).is_err());
        }
    }
}
