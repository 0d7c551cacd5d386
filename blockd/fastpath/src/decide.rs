//! What a name means and what a view does about it: the rules of the policy, each written once.

use crate::chain::Chain;
use crate::domains::{DomainTable, HashKey, Suffixes};
use crate::endpoint::Endpoint;
use crate::identity::Address;
use crate::nat64::Nat64;
use crate::patterns::Patterns;
use crate::prefixes::PrefixTable;
use crate::wire::{FoldedName, rtype};
use std::collections::HashMap;

/// A set of live apps, one bit each. The only place that knows how many there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[cfg_attr(feature = "python", derive(pyo3::FromPyObject))]
pub struct AppMask(pub u64);

impl AppMask {
    /// Most live apps.
    pub const WIDTH: usize = 64;
    /// No app.
    pub const EMPTY: Self = Self(0);

    /// The app of one bit.
    pub fn of(bit: usize) -> Self {
        Self(1u64.checked_shl(bit as u32).unwrap_or(0))
    }
    /// Whether there is no app in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The apps of both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    /// The apps of either.
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// The apps of this and not of the other.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// The first app: bits are given in the order of app names.
    pub fn first(self) -> Option<u8> {
        (!self.is_empty()).then(|| self.0.trailing_zeros() as u8)
    }
    /// The bits, ascending.
    pub fn bits(self) -> impl Iterator<Item = usize> {
        (0..Self::WIDTH).filter(move |&bit| self.0 >> bit & 1 == 1)
    }
}

/// What lists say of some names, app by app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct ListMasks {
    /// They are blocked.
    pub block: AppMask,
    /// They are out of what is blocked.
    pub except: AppMask,
    /// They are blocked, whatever exceptions there are.
    pub block_important: AppMask,
    /// They are out of all that lists block.
    pub except_important: AppMask,
}

impl ListMasks {
    fn masks(&self) -> [AppMask; 4] {
        [self.block, self.except, self.block_important, self.except_important]
    }

    fn or(&self, other: &Self) -> Self {
        Self {
            block: self.block.or(other.block),
            except: self.except.or(other.except),
            block_important: self.block_important.or(other.block_important),
            except_important: self.except_important.or(other.except_important),
        }
    }

    /// The apps that something blocks, exceptions aside.
    pub fn blocked(&self) -> AppMask {
        self.block.or(self.block_important)
    }

    /// The apps whose lists block the names when all is counted. An exception opens nothing that an app has of its own.
    fn listed(&self) -> AppMask {
        self.block.without(self.except).or(self.block_important).without(self.except_important)
    }
}

/// What the rules at one name say, app by app. An app's own rules are strong, those of its lists are weak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct RuleSet {
    /// Block the name and all below it.
    pub suffix: AppMask,
    /// Block the name alone.
    pub host: AppMask,
    /// Out of the app's rules, with all below.
    pub hole: AppMask,
    /// Apps with a hole somewhere below: the name exists, whatever is blocked (RFC 8020).
    pub hole_below: AppMask,
    /// Apps with a blocking rule somewhere below.
    pub rule_below: AppMask,
    /// What lists say of the name itself.
    pub listed_here: ListMasks,
    /// What lists say of names below it.
    pub listed_below: ListMasks,
    /// A zone of somebody's CDN, in which names of others are embedded.
    pub is_cdn_zone: bool,
}

impl RuleSet {
    /// All of them, in the order of the fields.
    pub fn masks(&self) -> [AppMask; 13] {
        let Self { suffix, host, hole, hole_below, rule_below, listed_here, listed_below, .. } = *self;
        let ([a, b, c, d], [e, f, g, h]) = (listed_here.masks(), listed_below.masks());
        [suffix, host, hole, hole_below, rule_below, a, b, c, d, e, f, g, h]
    }

    /// What either says.
    pub fn or(&self, other: &Self) -> Self {
        Self {
            suffix: self.suffix.or(other.suffix),
            host: self.host.or(other.host),
            hole: self.hole.or(other.hole),
            hole_below: self.hole_below.or(other.hole_below),
            rule_below: self.rule_below.or(other.rule_below),
            listed_here: self.listed_here.or(&other.listed_here),
            listed_below: self.listed_below.or(&other.listed_below),
            is_cdn_zone: self.is_cdn_zone || other.is_cdn_zone,
        }
    }
}

/// The number of no rule; others are the fingerprints of their names.
pub const NO_RULE: u64 = 0;
/// The number of all networks: what an address belongs to is no single rule.
pub const ANY_NETWORK: u64 = u64::MAX;
/// Marks the number of a pattern among those of rules.
const PATTERN_MARK: u64 = 1 << 62;

/// What a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// The apps that the name belongs to.
    pub apps: AppMask,
    /// The apps that a hole takes it out of.
    pub holes: AppMask,
    /// Of a DS question: those of `apps` that the name above, and its other children, are not in by the same rule.
    pub begun: AppMask,
    /// The number of the most specific rule that gave an app.
    pub rule: u64,
    /// The rule set at the name itself, for what lies below it.
    pub exact: Option<u32>,
}

/// One rule that decided, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulePlace {
    /// `suffix`, `host`, `hole`, `list suffix`, `list host`, `embedded`, `pattern` or `zone`.
    pub kind: &'static str,
    /// The name, or the pattern, as it was written.
    pub rule: String,
}

/// What the domain table says of one name.
struct Path {
    own: AppMask,
    holes: AppMask,
    listed: AppMask,
    rule: u64,
    exact: Option<u32>,
    /// Labels of the CDN zone that the name is in; 0 is none.
    cdn_labels: usize,
}

/// What is done at the apex of a local zone and below it, or where its questions go.
///
/// A local zone with one answer for its apex and all below it (`test`, `localhost`) is a special name that nobody
/// delegates, so its parent has no DS to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// Answered here.
    Local {
        /// Answer at the zone's own name.
        apex: u16,
        /// Answer below it.
        below: u16,
    },
    /// Asked of this route's servers.
    Route(u16),
    /// A local record: this name alone, answered here.
    Host(u16),
}

impl Zone {
    /// Whether its answers are prepared.
    pub fn is_answered_here(self) -> bool {
        !matches!(self, Self::Route(_))
    }

    /// The prepared answer at the zone's own name or below it; of a route there is none.
    pub fn template(self, is_apex: bool) -> u16 {
        match self {
            Self::Local { apex, .. } if is_apex => apex,
            Self::Local { below, .. } => below,
            Self::Host(template) | Self::Route(template) => template,
        }
    }
}

/// Zones by name.
#[derive(Debug, Default)]
pub struct Zones {
    /// By wire name, for who writes them down.
    pub names: HashMap<Vec<u8>, Zone>,
    /// By fingerprint; 0 is the root's.
    by_print: hashbrown::HashMap<u64, Zone>,
}

impl Zones {
    /// Under the key of the rules they belong to; a later one of the same name replaces an earlier one.
    pub fn new(key: HashKey, zones: Vec<(FoldedName, Zone)>) -> Self {
        let by_print = zones.iter().map(|(name, zone)| (key.suffixes(name).last().copied().unwrap_or(0), *zone));
        Self {
            by_print: by_print.collect(),
            names: zones.iter().map(|(n, zone)| (n.as_wire().to_vec(), *zone)).collect(),
        }
    }
}

/// A response that dnslib built: the hot path copies it and patches owner names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template {
    /// Response code.
    pub rcode: u16,
    /// No reply at all.
    pub is_silent: bool,
    /// Sections for particular query types.
    pub by_type: Vec<(u16, Sections)>,
    /// Sections for every other type.
    pub otherwise: Sections,
    /// Extended DNS Error: code and text.
    pub error: Option<(u16, Vec<u8>)>,
    /// The text for clients that read structured ones.
    pub structured_error: Option<Vec<u8>>,
}

/// Records after the question; every owner is a pointer to the question name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sections {
    /// Records in the answer section.
    pub answer: u16,
    /// Records in the authority section.
    pub authority: u16,
    /// The bytes of both.
    pub body: Vec<u8>,
}

impl Template {
    /// The sections that a query type gets.
    pub fn sections(&self, qtype: u16) -> &Sections {
        self.by_type.iter().find(|(wanted, _)| *wanted == qtype).map_or(&self.otherwise, |(_, sections)| sections)
    }
}

/// Where questions go: the order that the config gives, and a tag that changes when they do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Route {
    /// Upstream servers, the preferred first.
    pub servers: Vec<Endpoint>,
    /// Part of the cache key: answers of other servers are not ours.
    pub tag: u32,
}

/// Names, networks, answers: one generation of what things mean.
#[derive(Debug, Default)]
pub struct Rules {
    /// Content digest: equal rules keep their generation, and cached masks stay good.
    pub digest: [u8; 16],
    /// Key of all fingerprints.
    pub key: HashKey,
    /// Names of rules.
    pub table: DomainTable,
    /// How many names there are.
    pub names: u64,
    /// Interned rule sets.
    pub sets: Vec<RuleSet>,
    /// Apps whose names are also seen inside the zones of CDNs.
    pub embedded: AppMask,
    /// Patterns over whole names.
    pub patterns: Patterns,
    /// Apps' networks; values index `network_masks`.
    pub networks: PrefixTable,
    /// The apps of each distinct stretch of network.
    pub network_masks: Vec<AppMask>,
    /// The prefixes by which IPv6 addresses stand for IPv4 addresses.
    pub nat64: Nat64,
    /// What each app needs, transitively, itself included.
    pub needs: Vec<AppMask>,
    /// Prepared answers.
    pub templates: Vec<Template>,
    /// Zones that are answered here or asked elsewhere.
    pub zones: Zones,
    /// Local records: answers of these names alone, whatever zone they are in.
    pub hosts: Zones,
    /// The default route first.
    pub routes: Vec<Route>,
    /// Answer to ANY (RFC 8482).
    pub any_template: u16,
    /// Response policy zones, where there are any.
    pub chain: Option<Box<Chain>>,
}

impl Rules {
    /// The apps and holes of a name: for each app its own most specific rule, a tie to the hole; then, unless a hole
    /// took the name out, its lists, its names embedded in a CDN's zone, its patterns.
    pub fn find(&self, name: &FoldedName) -> Match {
        self.find_by(&self.key.suffixes(name), name)
    }

    /// [`Rules::find_by`] for a question of this type.
    ///
    /// DS is data of the parent's side of a cut (RFC 4035 3.1.4.1), and a validator needs it to believe that the name
    /// is unsigned. So it belongs to the apps that the name would belong to if no rule began at it.
    pub fn find_for(&self, suffixes: &Suffixes, name: &FoldedName, qtype: u16) -> Match {
        let mut found = self.find_by(suffixes, name);
        if qtype == rtype::DS && !found.apps.is_empty() {
            found.begun = found.apps.without(self.inherited(suffixes, name));
        }
        found
    }

    /// The apps that a name would belong to without the rules, embedded names and patterns that begin at it.
    fn inherited(&self, suffixes: &Suffixes, name: &FoldedName) -> AppMask {
        let above = |suffixes: &Suffixes| {
            let count = suffixes.len().saturating_sub(1);
            self.walk(&suffixes[..count], suffixes.len())
        };
        let path = above(suffixes);
        let mut weak = path.listed;
        for candidate in self.embedded_names(name, &path) {
            weak = weak.or(above(&self.key.suffixes(&candidate)).own.and(self.embedded));
        }
        if let Some(parent) = name.parent() {
            weak = weak.or(self.patterns.find(&parent).0);
        }
        path.own.or(weak.without(path.holes))
    }

    /// [`Rules::find`], by the fingerprints of the name's suffixes.
    pub fn find_by(&self, suffixes: &Suffixes, name: &FoldedName) -> Match {
        let path = self.walk(suffixes, suffixes.len());
        let (mut weak, mut rule) = (path.listed, path.rule);
        for candidate in self.embedded_names(name, &path) {
            let inner = self.walk_whole(&candidate);
            let apps = inner.own.and(self.embedded);
            if !apps.without(path.holes).is_empty() && rule == NO_RULE {
                rule = inner.rule;
            }
            weak = weak.or(apps);
        }
        let (apps, first) = self.patterns.find(name);
        if !apps.without(path.holes).is_empty() && rule == NO_RULE {
            rule = first.map_or(NO_RULE, |pattern| PATTERN_MARK | pattern as u64);
        }
        let apps = path.own.or(weak.or(apps).without(path.holes));
        let begun = AppMask::EMPTY;
        Match { apps, holes: path.holes, begun, rule: if apps.is_empty() { NO_RULE } else { rule }, exact: path.exact }
    }

    fn walk_whole(&self, name: &FoldedName) -> Path {
        let suffixes = self.key.suffixes(name);
        self.walk(&suffixes, suffixes.len())
    }

    /// Walks the suffixes of a name of so many labels: rules for a name alone count at its last one.
    fn walk(&self, suffixes: &[u64], labels: usize) -> Path {
        let (mut own, mut holes, mut lists) = (AppMask::EMPTY, AppMask::EMPTY, ListMasks::default());
        let (mut rule, mut exact, mut cdn_labels) = (NO_RULE, None, 0);
        for (depth, &print) in suffixes.iter().enumerate() {
            let Some(index) = self.table.find(print) else {
                continue;
            };
            let set = &self.sets[index as usize];
            let is_whole = depth + 1 == labels;
            let (mut strong, mut said) = (set.suffix, &set.listed_below);
            if is_whole {
                exact = Some(index.into());
                strong = strong.or(set.host);
                said = &set.listed_here;
            } else if set.is_cdn_zone {
                cdn_labels = depth + 1;
            }
            let strong = strong.without(set.hole);
            own = own.without(set.hole).or(strong);
            holes = holes.or(set.hole).without(strong);
            lists = lists.or(said);
            if !strong.is_empty() || !said.blocked().and(lists.listed()).without(holes).is_empty() {
                rule = print;
            }
        }
        Path { own, holes, listed: lists.listed(), rule, exact, cdn_labels }
    }

    /// What a name holds in front of a CDN's zone: all of it, and all but the label next to the zone.
    fn embedded_names<'a>(&self, name: &'a FoldedName, path: &Path) -> impl Iterator<Item = FoldedName> + use<'a> {
        let is_asked = path.cdn_labels > 0 && !self.embedded.is_empty();
        let labels = path.cdn_labels;
        (0..=1).filter(move |_| is_asked).filter_map(move |more| name.without_last(labels + more))
    }

    /// The rule that decided about one app on a name's path, as [`Rules::find`] decides.
    pub fn deciding_rule(&self, name: &FoldedName, app: u8) -> Option<RulePlace> {
        let bit = AppMask::of(usize::from(app));
        if let Some(place) = self.deciding_rule_of_path(name, bit) {
            return Some(place);
        }
        if !self.embedded.and(bit).is_empty() {
            for inner in self.embedded_names(name, &self.walk_whole(name)) {
                if !self.walk_whole(&inner).own.and(bit).is_empty() {
                    let place = self.deciding_rule_of_path(&inner, bit)?;
                    return Some(RulePlace { kind: "embedded", rule: place.rule });
                }
            }
        }
        if let Some(pattern) = self.patterns.source_for(name, bit) {
            return Some(RulePlace { kind: "pattern", rule: pattern.to_string() });
        }
        let rule = self.chain.as_ref()?.deciding_rule(self.key, app, name)?;
        Some(RulePlace { kind: "zone", rule })
    }

    fn deciding_rule_of_path<'a>(&'a self, name: &FoldedName, bit: AppMask) -> Option<RulePlace> {
        let suffixes = self.key.suffixes(name);
        let found: Vec<(usize, &RuleSet)> = suffixes
            .iter()
            .enumerate()
            .filter_map(|(depth, &print)| Some((depth, &self.sets[usize::from(self.table.find(print)?)])))
            .collect();
        let is_whole = |depth: usize| depth + 1 == suffixes.len();
        let said = |depth, set: &'a RuleSet| if is_whole(depth) { &set.listed_here } else { &set.listed_below };
        let lists = found.iter().fold(ListMasks::default(), |all, &(depth, set)| all.or(said(depth, set)));
        let has = |mask: AppMask| !mask.and(bit).is_empty();
        let (is_listed, is_excepted) = (has(lists.listed()), has(lists.except));
        let (mut strong, mut weak) = (None, None);
        for &(depth, set) in &found {
            if has(set.hole) {
                strong = Some((depth, "hole"));
            } else if has(set.suffix) {
                strong = Some((depth, "suffix"));
            } else if is_whole(depth) && has(set.host) {
                strong = Some((depth, "host"));
            }
            let said = said(depth, set);
            if is_listed && (has(said.block_important) || !is_excepted && has(said.block)) {
                weak = Some((
                    depth,
                    match (has(set.listed_here.blocked()), has(set.listed_below.blocked())) {
                        (true, true) => "list suffix",
                        (true, false) => "list host",
                        _ => "list below",
                    },
                ));
            }
        }
        let (depth, kind) = strong.or(weak)?;
        let rule = ancestor(name, depth + 1);
        Some(match kind {
            "list below" => RulePlace { kind: "list suffix", rule: format!("*.{rule}") },
            _ => RulePlace { kind, rule },
        })
    }

    /// The apps whose networks hold an address, IPv4 inside IPv6 looked through (RFC 6052, 4291, 3056).
    pub fn apps_at(&self, address: Address) -> AppMask {
        let mut apps = AppMask::EMPTY;
        self.nat64.find_map(address, |form| {
            apps = apps.or(self.apps_at_exactly(form));
            None::<()>
        });
        apps
    }

    fn apps_at_exactly(&self, address: Address) -> AppMask {
        match self.networks.find(address) {
            PrefixTable::NONE => AppMask::EMPTY,
            index => self.network_masks[index as usize],
        }
    }

    /// What a hole at the question clears from `found`: each app and, transitively, its needs.
    pub fn cleared_by(&self, holes: AppMask) -> AppMask {
        self.with_needs(holes)
    }

    /// The apps and all that they need.
    pub fn with_needs(&self, apps: AppMask) -> AppMask {
        apps.bits().fold(apps, |all, bit| all.or(self.needs.get(bit).copied().unwrap_or_default()))
    }

    /// The most specific zone that holds a name: where, and its octets on the wire.
    pub fn zone_of(&self, suffixes: &Suffixes, name: &FoldedName) -> Option<(Zone, usize)> {
        if let Some(host) = self.hosts.by_print.get(&suffixes.last().copied().unwrap_or(0)) {
            return Some((*host, name.wire_length()));
        }
        self.zone_from(suffixes, name, 0)
    }

    /// The most specific zone that holds a name without its first labels.
    fn zone_from(&self, suffixes: &Suffixes, name: &FoldedName, skipped: usize) -> Option<(Zone, usize)> {
        let of = |print| self.zones.by_print.get(&print).copied();
        let mut octets = name.wire_length();
        for (depth, (label, &print)) in name.labels().zip(suffixes.iter().rev()).enumerate() {
            if let Some(zone) = of(print).filter(|_| depth >= skipped) {
                return Some((zone, octets));
            }
            octets -= label.len() + 1;
        }
        of(0).map(|zone| (zone, octets))
    }

    /// The zone that answers a question: DS at the top of a zone is its parent's (RFC 4035 3.1.4.1), whether the zone
    /// has servers of its own or is served here (RFC 6303 and RFC 8375 have those delegated, without DS).
    pub fn zone_for(&self, suffixes: &Suffixes, name: &FoldedName, qtype: u16) -> Option<(Zone, usize)> {
        let own = self.zone_of(suffixes, name);
        let Some(print) = suffixes.last().filter(|_| qtype == rtype::DS) else { return own };
        match self.zones.by_print.get(print) {
            None => own,
            Some(Zone::Local { apex, below }) if apex == below => own,
            Some(_) => match self.zone_from(suffixes, name, 1) {
                // The parent is served here too, without signatures: there is no DS.
                Some((Zone::Local { apex, .. }, octets)) => Some((Zone::Local { apex, below: apex }, octets)),
                parent => parent,
            },
        }
    }

    /// The tag of the route that a question takes; none when it is answered here.
    pub fn route_for(&self, suffixes: &Suffixes, name: &FoldedName, qtype: u16) -> Option<u32> {
        let route = match self.zone_for(suffixes, name, qtype) {
            Some((Zone::Local { .. } | Zone::Host(_), _)) => return None,
            Some((Zone::Route(route), _)) => usize::from(route),
            None => 0,
        };
        Some(self.routes[route].tag)
    }
}

/// The last labels of a name, as text.
fn ancestor(name: &FoldedName, labels: usize) -> String {
    let text = name.to_string();
    let all: Vec<&str> = text.split('.').collect();
    all[all.len().saturating_sub(labels)..].join(".")
}

/// What one group gets, one set of live exemptions folded in. The four masks are disjoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "python", derive(pyo3::FromPyObject), pyo3(from_item_all))]
pub struct View {
    /// Apps that are refused.
    pub block: AppMask,
    /// Apps that pass and are counted.
    pub monitor: AppMask,
    /// Apps that pass, and open what hides behind them.
    pub allow: AppMask,
    /// As `allow`, by exemption.
    pub exempt: AppMask,
    /// The template that answers for each app's bit.
    pub answers: Vec<u16>,
    /// Whether its decisions are logged by device.
    pub is_logged: bool,
    /// Whether its devices learn nothing of Encrypted Client Hello.
    pub strip_ech: bool,
}

/// Bounds and times that a reload may change.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "python", derive(pyo3::FromPyObject), pyo3(from_item_all))]
pub struct Tuning {
    /// Largest TTL sent where a verdict could change, seconds.
    pub live_ttl: u32,
    /// Smallest TTL stored, seconds.
    pub ttl_floor: u32,
    /// Largest TTL stored, seconds.
    pub ttl_ceiling: u32,
    /// Largest TTL of a negative answer stored, seconds.
    pub negative_ttl_ceiling: u32,
    /// How long after its end an answer may be served when nobody gives a new one, seconds (RFC 8767).
    pub stale: u32,
    /// Whether AD passes from the upstream to the client.
    pub trust_ad: bool,
    /// Queries a second that one client may send.
    pub client_rate: u32,
    /// Queries in a burst.
    pub client_burst: u32,
    /// Questions under way, in all.
    pub pending_in_all: u32,
    /// Questions under way for one client.
    pub pending_a_client: u32,
}

/// Policies and who they are for: one generation of who gets what.
#[derive(Debug, Clone)]
pub struct Views {
    /// By `ViewId`.
    pub views: Vec<View>,
    /// Which view a prefix gets.
    pub devices: PrefixTable,
    /// The view of every other address.
    pub unidentified: u16,
    /// Who may ask at all.
    pub clients: PrefixTable,
    /// Bounds and times.
    pub tuning: Tuning,
}

impl Views {
    /// The view of an address.
    pub fn view_of(&self, address: Address) -> u16 {
        match self.devices.find(address) {
            PrefixTable::NONE => self.unidentified,
            view => view as u16,
        }
    }
}

/// What is done with a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Action {
    /// No policy names it.
    Pass = 0,
    /// Refused.
    Block = 1,
    /// Passes, counted.
    Monitor = 2,
    /// Passes by policy.
    Allow = 3,
    /// Passes by exemption.
    Exempt = 4,
}

impl Action {
    /// All, in the order of their numbers.
    pub const NAMES: [&'static str; 5] = ["pass", "block", "monitor", "allow", "exempt"];
}

/// The outcome for one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What is done.
    pub action: Action,
    /// The app it is counted under: the first, by name, of those that decided.
    pub app: Option<u8>,
    /// Every app touched, whatever the view says about it.
    pub touched: AppMask,
}

/// The one order in which a view decides.
pub fn decide(view: &View, asked: AppMask, found: AppMask) -> Verdict {
    let touched = asked.or(found);
    let open = asked.and(view.allow.or(view.exempt));
    let (action, bits) = if !open.is_empty() {
        let exempt = open.and(view.exempt);
        if exempt.is_empty() { (Action::Allow, open) } else { (Action::Exempt, exempt) }
    } else if !asked.and(view.block).is_empty() {
        (Action::Block, asked.and(view.block))
    } else if !found.and(view.block).is_empty() {
        (Action::Block, found.and(view.block))
    } else {
        let watched = touched.and(view.monitor);
        if watched.is_empty() { (Action::Pass, AppMask::EMPTY) } else { (Action::Monitor, watched) }
    };
    Verdict { action, app: bits.first(), touched }
}

/// Whether a later policy could block what is sent now, so that its TTL must stay short.
pub fn is_live(view: &View, asked: AppMask, found: AppMask) -> bool {
    let named = view.monitor.or(view.allow).or(view.exempt);
    !asked.or(found).and(named).is_empty()
}

/// Whether a blocked name exists all the same, because something below it is open to this view (RFC 8020).
pub fn is_empty_non_terminal(view: &View, set: &RuleSet) -> bool {
    !set.hole_below.and(view.block).is_empty() || !set.rule_below.and(view.allow.or(view.exempt)).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_inside_ipv6_is_seen() {
        let cases: [(&str, Option<u32>); 7] = [
            ("::ffff:71.18.0.1", Some(0x4712_0001)),
            ("::71.18.0.1", Some(0x4712_0001)),
            ("64:ff9b::71.18.0.1", Some(0x4712_0001)),
            ("64:ff9b:1::4712:1", Some(0x4712_0001)),
            ("2002:4712:1::1", Some(0x4712_0001)),
            ("2404:9dc0::1", None),
            ("64:ff9b:2::4712:1", None),
        ];
        for (text, wanted) in cases {
            let address: std::net::Ipv6Addr = text.parse().unwrap();
            let ipv4 = |form| if let Address::V4(bits) = form { Some(bits) } else { None };
            let found =
                Nat64::default().find_map(Address::V6(address.to_bits()), |form| ipv4(form).filter(|&b| b != 0));
            assert_eq!(found, wanted, "{text}");
        }
    }

    #[test]
    fn allow_comes_before_block_and_found_after() {
        let view = View { block: AppMask(0b0011), monitor: AppMask(0b0100), allow: AppMask(0b1000), ..View::default() };
        let action = |asked, found| decide(&view, AppMask(asked), AppMask(found)).action;
        assert_eq!(action(0b1001, 0b0010), Action::Allow);
        assert_eq!(action(0b0001, 0), Action::Block);
        assert_eq!(action(0, 0b0010), Action::Block);
        assert_eq!(action(0, 0b1010), Action::Block, "an allowed target opens nothing");
        assert_eq!(action(0b0100, 0), Action::Monitor);
        assert_eq!(action(0, 0b0100), Action::Monitor);
        assert_eq!(action(0, 0), Action::Pass);
    }
}
