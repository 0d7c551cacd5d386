//! Response policy zones in master-file form (RFC 1035 5.1): triggers, and what is done about them
//! (draft-vixie-dnsop-dns-rpz-00).

use super::{PUBLIC_SUFFIX, SkipReason, each_line, is_public_suffix};
use crate::identity::Address;
use crate::wire::FoldedName;
use std::io::{self, Read};
use std::net::IpAddr;

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// A name alone.
    Name(FoldedName),
    /// What is below a name; of the root, everything.
    Below(FoldedName),
    /// An address in an answer.
    Answer(Address, u8),
    /// The address of who asks.
    Client(Address, u8),
}

impl std::fmt::Display for Trigger {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => name.fmt(out),
            Self::Below(name) if *name == FoldedName::ROOT => out.write_str("*"),
            Self::Below(name) => write!(out, "*.{name}"),
            Self::Answer(address, length) => write!(out, "{}/{length} in an answer", IpAddr::from(*address)),
            Self::Client(address, length) => write!(out, "{}/{length} who asks", IpAddr::from(*address)),
        }
    }
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// The name does not exist.
    NxDomain,
    /// It exists, and has no such data.
    NoData,
    /// Nothing, and by no later zone either.
    Pass,
    /// No answer at all.
    Drop,
    /// An answer over TCP alone.
    TcpOnly,
    /// Another name's answer; with `true`, what was asked comes before it. The TTL of the alias.
    Alias(FoldedName, bool, u32),
    /// A record of this type: its TTL, and its data as written.
    Data(String, u32, String),
}

impl Deed {
    /// What is done, in few words.
    pub fn text(&self) -> String {
        match self {
            Self::NxDomain => "NXDOMAIN".into(),
            Self::NoData => "NODATA".into(),
            Self::Pass => "passthru".into(),
            Self::Drop => "drop".into(),
            Self::TcpOnly => "TCP only".into(),
            Self::Alias(target, false, _) => format!("CNAME {target}"),
            Self::Alias(target, true, _) => format!("CNAME *.{target}"),
            Self::Data(kind, _, text) => format!("{kind} {text}"),
        }
    }
}

/// Of a record that is held until its last line, at most this.
const MAX_RECORD_OCTETS: usize = 64 << 10;
/// Why triggers of name servers are skipped.
pub const NOT_SEEN: SkipReason = "a trigger of name servers, which a forwarder does not see";

/// Shortest prefixes that a list may block: shorter ones are everybody's.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 16;
/// Why such a prefix is refused, as a public suffix is.
pub const EVERYBODYS: SkipReason = "a prefix that is everybody's";
const NO_TYPE: SkipReason = "a record without a type";

/// Whether a line begins a master file beyond doubt.
pub(super) fn is_one(line: &[u8]) -> bool {
    let text = line.to_ascii_lowercase();
    text.starts_with(b"$origin ") || text.starts_with(b"$ttl ") || {
        let words: Vec<&[u8]> = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).take(5).collect();
        words.iter().skip(1).any(|&word| word == b"soa")
    }
}

/// A record's words, gathered over lines while a parenthesis is open.
#[derive(Default)]
struct Gathered {
    words: Vec<Vec<u8>>,
    octets: usize,
    depth: usize,
    has_owner: bool,
    first_line: u64,
}

impl Gathered {
    /// Takes a line's words; true when the record is whole.
    fn take(&mut self, number: u64, line: &[u8]) -> bool {
        if self.depth == 0 {
            let has_owner = line.first().is_some_and(|octet| !octet.is_ascii_whitespace());
            *self = Self { has_owner, first_line: number, ..Self::default() };
        }
        self.octets += line.len();
        let (mut word, mut is_quoted, mut has_word) = (Vec::new(), false, false);
        let mut octets = line.iter().copied();
        while let Some(octet) = octets.next() {
            match octet {
                b'\\' => {
                    word.push(octet);
                    word.extend(octets.next());
                    has_word = true;
                    continue;
                }
                b'"' => {
                    is_quoted = !is_quoted;
                    word.push(octet);
                    has_word = true;
                    continue;
                }
                _ if is_quoted => {
                    word.push(octet);
                    continue;
                }
                b';' => break,
                b'(' => self.depth += 1,
                b')' => self.depth = self.depth.saturating_sub(1),
                _ if !octet.is_ascii_whitespace() => {
                    word.push(octet);
                    has_word = true;
                    continue;
                }
                _ => {}
            }
            if std::mem::take(&mut has_word) {
                self.words.push(std::mem::take(&mut word));
            }
        }
        if has_word {
            self.words.push(word);
        }
        self.depth == 0 || self.octets > MAX_RECORD_OCTETS
    }
}

/// What is known of the zone while it is read.
struct ZoneFile {
    origin: Option<String>,
    /// Of the SOA: what every owner ends with; empty when the file does not say.
    apex: Option<String>,
    ttl: u32,
    owner: Option<String>,
    may_be_public: bool,
}

/// A rule, or why there is none and of what.
pub type Found = Result<(Trigger, Deed), (SkipReason, Vec<u8>)>;

/// Reads every record; `each` gets the line that it begins on.
pub fn read(mut list: impl Read, may_be_public: bool, each: &mut dyn FnMut(u64, Found)) -> io::Result<()> {
    let mut chunk = vec![0u8; super::CHUNK_OCTETS];
    let mut zone = ZoneFile { origin: None, apex: None, ttl: 3_600, owner: None, may_be_public };
    let mut gathered = Gathered::default();
    // Lines of a record that is not whole yet.
    let mut open: Vec<(u64, Vec<u8>)> = Vec::new();
    each_line(&mut list, &mut chunk, &mut |number, line| match line {
        Err(beginning) => each(number, Err(("a line that is too long", beginning.to_vec()))),
        Ok(line) => {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let is_whole = gathered.take(number, line);
            if gathered.octets > MAX_RECORD_OCTETS {
                open.push((number, line.to_vec()));
                zone.records_alone(&open, "a record that is too long", each);
                (gathered, open) = Default::default();
            } else if is_whole {
                open.clear();
                if let Some(found) = zone.record(&gathered) {
                    each(gathered.first_line, found);
                }
            } else {
                open.push((number, line.to_vec()));
            }
        }
    })?;
    zone.records_alone(&open, "a parenthesis that is not closed", each);
    Ok(())
}

impl ZoneFile {
    /// Reads lines that one parenthesis made one record, each by itself: the one that opens it is skipped for a reason,
    /// but for an SOA, which names the zone; it costs none of the others.
    fn records_alone(&mut self, lines: &[(u64, Vec<u8>)], why: SkipReason, each: &mut dyn FnMut(u64, Found)) {
        for (at, (number, line)) in lines.iter().enumerate() {
            let mut alone = Gathered::default();
            let is_whole = alone.take(*number, line);
            let is_soa = alone.words.iter().any(|word| word.eq_ignore_ascii_case(b"soa"));
            let found = if is_whole && at > 0 || is_soa { self.record(&alone) } else { None };
            if at == 0 || !is_whole {
                each(*number, Err((why, line[..line.len().min(80)].to_vec())));
            } else if let Some(found) = found {
                each(*number, found);
            }
        }
    }

    /// A record's rule; nothing for what is no rule and no mistake.
    fn record(&mut self, gathered: &Gathered) -> Option<Found> {
        let mut words = gathered.words.iter().map(|word| String::from_utf8_lossy(word));
        let shown = || gathered.words.join(&b' ');
        let skip = |why| Some(Err((why, shown())));
        let mut first = words.next()?;
        if first.eq_ignore_ascii_case("$origin") || first.eq_ignore_ascii_case("$ttl") {
            let value = words.next()?.to_ascii_lowercase();
            if first.eq_ignore_ascii_case("$ttl") {
                self.ttl = read_ttl(&value)?;
            } else {
                self.origin = Some(value.trim_end_matches('.').to_string());
            }
            return None;
        }
        if first.starts_with('$') {
            return skip("a directive that is not read");
        }
        if gathered.has_owner {
            self.owner = Some(first.to_ascii_lowercase());
            let Some(next) = words.next() else { return skip(NO_TYPE) };
            first = next;
        }
        let mut ttl = self.ttl;
        loop {
            if let Some(given) = read_ttl(&first) {
                ttl = given;
            } else if !["in", "ch", "hs"].iter().any(|class| first.eq_ignore_ascii_case(class)) {
                break;
            }
            let Some(next) = words.next() else { return skip(NO_TYPE) };
            first = next;
        }
        let kind = first.to_ascii_uppercase();
        let data: Vec<_> = words.collect();
        let Some(owner) = self.owner.clone() else { return skip("a record without an owner") };
        let full = self.full(&owner);
        if kind == "SOA" {
            if self.apex.is_none() {
                // Without $ORIGIN the SOA's owner is all that says the zone's name: what is relative, is so to that.
                if let (None, Some(absolute)) = (&self.origin, owner.strip_suffix('.')) {
                    self.origin = Some(absolute.to_string());
                }
                self.apex = Some(if owner == "@" && self.origin.is_none() { String::new() } else { full });
            }
            return None;
        }
        let Some(apex) = self.apex.as_deref() else { return skip("a record before the zone's SOA") };
        let relative = match full.strip_suffix(apex) {
            Some("") => return None,
            Some(rest) if apex.is_empty() => rest,
            Some(rest) => match rest.strip_suffix('.') {
                Some(rest) => rest,
                None => return skip("outside the zone"),
            },
            None => return skip("outside the zone"),
        };
        // Signatures of the zone are about the zone.
        if matches!(kind.as_str(), "RRSIG" | "NSEC" | "NSEC3" | "DNSKEY" | "DS") {
            return None;
        }
        let deed = match self.deed(&kind, ttl, &data.join(" "), relative) {
            Ok(deed) => deed,
            Err(why) => return skip(why),
        };
        match self.trigger(relative, &deed) {
            Ok(trigger) => Some(Ok((trigger, deed))),
            Err(why) => skip(why),
        }
    }

    /// A name with all its labels, without a dot at the end; relative to the zone where the file names no origin.
    fn full(&self, name: &str) -> String {
        match (name.strip_suffix('.'), self.origin.as_deref()) {
            (Some(absolute), _) => absolute.to_string(),
            (None, None) => {
                if name == "@" {
                    String::new()
                } else {
                    name.to_string()
                }
            }
            (None, Some(origin)) if name == "@" => origin.to_string(),
            (None, Some("")) => name.to_string(),
            (None, Some(origin)) => format!("{name}.{origin}"),
        }
    }

    fn deed(&self, kind: &str, ttl: u32, data: &str, relative: &str) -> Result<Deed, SkipReason> {
        if kind != "CNAME" {
            if kind == "DNAME" || data.is_empty() {
                return Err("a record that is no action");
            }
            return Ok(Deed::Data(kind.to_string(), ttl, data.to_string()));
        }
        let target = data.to_ascii_lowercase();
        Ok(match target.as_str() {
            "." => Deed::NxDomain,
            "*." => Deed::NoData,
            "rpz-passthru." => Deed::Pass,
            "rpz-drop." => Deed::Drop,
            "rpz-tcp-only." => Deed::TcpOnly,
            _ => {
                let full = self.full(&target);
                // The older way to say that nothing is done: an alias to itself.
                if full == relative.strip_prefix("*.").unwrap_or(relative) {
                    return Ok(Deed::Pass);
                }
                let (text, is_prefixed) = full.strip_prefix("*.").map_or((full.as_str(), false), |rest| (rest, true));
                let name = FoldedName::from_rule_text(text.as_bytes()).map_err(|why| why.text())?;
                Deed::Alias(name, is_prefixed, ttl)
            }
        })
    }

    fn trigger(&self, relative: &str, deed: &Deed) -> Result<Trigger, SkipReason> {
        let (rest, last) = relative.rsplit_once('.').unwrap_or(("", relative));
        match last {
            "rpz-ip" | "rpz-client-ip" => {
                let (address, length) = prefix(rest)?;
                let least = if matches!(address, Address::V4(_)) { WIDEST_V4 } else { WIDEST_V6 };
                if length < least && *deed != Deed::Pass && !self.may_be_public {
                    return Err(EVERYBODYS);
                }
                let is_answer = last == "rpz-ip";
                return Ok(if is_answer { Trigger::Answer(address, length) } else { Trigger::Client(address, length) });
            }
            "rpz-nsdname" | "rpz-nsip" => return Err(NOT_SEEN),
            _ => {}
        }
        let (text, is_below) = match relative.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None if relative == "*" => {
                return if self.may_be_public || *deed == Deed::Pass {
                    Ok(Trigger::Below(FoldedName::ROOT))
                } else {
                    Err(PUBLIC_SUFFIX)
                };
            }
            None => (relative, false),
        };
        let name = FoldedName::from_rule_text(text.as_bytes()).map_err(|why| why.text())?;
        if *deed != Deed::Pass && !self.may_be_public && is_public_suffix(&name) {
            return Err(PUBLIC_SUFFIX);
        }
        Ok(if is_below { Trigger::Below(name) } else { Trigger::Name(name) })
    }
}

/// Seconds, or with the units that zone files have.
fn read_ttl(word: &str) -> Option<u32> {
    let (mut total, mut number) = (0u32, None);
    for character in word.chars() {
        if let Some(digit) = character.to_digit(10) {
            number = Some(number.unwrap_or(0u32).checked_mul(10)?.checked_add(digit)?);
            continue;
        }
        let unit = match character.to_ascii_lowercase() {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return None,
        };
        total = total.checked_add(number.take()?.checked_mul(unit)?)?;
    }
    if word.is_empty() { None } else { total.checked_add(number.unwrap_or(0)) }
}

/// `24.0.2.0.192`, or `48.zz.8.db8.2001`: the length, and the address backwards.
fn prefix(text: &str) -> Result<(Address, u8), SkipReason> {
    const BAD: SkipReason = "no prefix: expected its length, and the address backwards";
    let mut labels: Vec<&str> = text.split('.').collect();
    if labels.len() < 2 {
        return Err(BAD);
    }
    let length: u8 = labels.remove(0).parse().map_err(|_| BAD)?;
    labels.reverse();
    let address: std::net::IpAddr = if labels.len() == 4 && !labels.contains(&"zz") {
        labels.join(".").parse::<std::net::Ipv4Addr>().map_err(|_| BAD)?.into()
    } else {
        let words = labels.join(":");
        // At either end the colon of the join is half of what stands for zeros; in the middle both are there.
        let is_at_end = words.starts_with("zz") || words.ends_with("zz");
        let words = if words == "zz" { "::".into() } else { words.replacen("zz", if is_at_end { ":" } else { "" }, 1) };
        words.parse::<std::net::Ipv6Addr>().map_err(|_| BAD)?.into()
    };
    crate::snapshot::network(address, length).ok_or("bits behind the length of a prefix")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Rule = Result<(Trigger, Deed), SkipReason>;

    fn rules(text: &str) -> Vec<(u64, Rule)> {
        let mut all = Vec::new();
        read(io::Cursor::new(text), false, &mut |number, found| all.push((number, found.map_err(|(why, _)| why))))
            .unwrap();
        all
    }

    fn name(text: &str) -> FoldedName {
        FoldedName::from_rule_text(text.as_bytes()).unwrap()
    }

    const HEAD: &str = "$ORIGIN rpz.test.\n@ 60 IN SOA a. b. 1 2 3 4 5\n";

    #[test]
    fn a_parenthesis_that_is_not_closed_costs_its_own_record() {
        let open = "a parenthesis that is not closed";
        let one = |number| (number, Ok((Trigger::Name(name(&format!("x{number}.example"))), Deed::NxDomain)));
        let rest: String = (4..9).map(|number| format!("x{number}.example CNAME .\n")).collect();
        for bad in ["a.example CNAME ( .", "a.example TXT (smile", "(", "a.example A (1.2.3.4"] {
            let mut wanted: Vec<(u64, Rule)> = vec![(3, Err(open))];
            wanted.extend((4..9).map(one));
            assert_eq!(rules(&format!("{HEAD}{bad}\n{rest}")), wanted, "{bad}");
        }
        // An SOA names the zone, however it is broken.
        let found = rules(&format!("$ORIGIN rpz.test.\n@ SOA a. b. (1 2 3 4 5\n\n{rest}"));
        assert_eq!(found, [(2, Err(open))].into_iter().chain((4..9).map(one)).collect::<Vec<_>>());
        // Two of them, and more than a record may have: each line is looked at twice at most.
        let long: String = (0..9_000).map(|at| format!("y{at}.example CNAME .\n")).collect();
        let found = rules(&format!("{HEAD}a.example CNAME (\nb.example CNAME (\n{long}c.example CNAME (\n{long}"));
        assert_eq!(found.iter().filter(|(_, rule)| rule.is_ok()).count(), 18_000);
        assert_eq!(
            found.iter().filter(|(_, rule)| rule.is_err()).map(|(at, _)| *at).collect::<Vec<_>>(),
            [3, 4, 9_005]
        );
    }

    #[test]
    fn records_are_read_in_every_way_that_master_files_have() {
        let text = "$TTL 1h\n@ SOA a. b. (\n 1 ; serial\n 2 3 4 5 )\n NS ns.\nBad.Example CNAME .\n*.bad.example 60 IN CNAME .\n\
                    \tCNAME *.\nlocal.example IN 5m TXT \"a ; b\" c ; end\nodd\\046name.example CNAME .\n";
        let found = rules(text);
        let wanted = [
            (6, Ok((Trigger::Name(name("bad.example")), Deed::NxDomain))),
            (7, Ok((Trigger::Below(name("bad.example")), Deed::NxDomain))),
            (8, Ok((Trigger::Below(name("bad.example")), Deed::NoData))),
            (9, Ok((Trigger::Name(name("local.example")), Deed::Data("TXT".into(), 300, "\"a ; b\" c".into())))),
            (10, Err("a character that names of hosts do not have")),
        ];
        assert_eq!(found.len(), wanted.len());
        for (got, wanted) in found.iter().zip(&wanted) {
            assert!(
                got.0 == wanted.0 && (got.1 == wanted.1 || got.1.is_err() && wanted.1.is_err()),
                "{got:?} {wanted:?}"
            );
        }
    }

    #[test]
    fn owners_are_relative_to_the_zone_however_they_are_written() {
        let absolute = format!("{HEAD}a.example.rpz.test. CNAME .\nb.example CNAME .\nelsewhere.example. CNAME .\n");
        let found = rules(&absolute);
        assert_eq!(found[0].1, Ok((Trigger::Name(name("a.example")), Deed::NxDomain)));
        assert_eq!(found[1].1, Ok((Trigger::Name(name("b.example")), Deed::NxDomain)));
        assert_eq!(found[2].1, Err("outside the zone"));
        let transferred = "rpz.test. 60 IN SOA a. b. 1 2 3 4 5\n*.x.rpz.test. 60 IN CNAME y.example.\n";
        assert_eq!(rules(transferred)[0].1, Ok((Trigger::Below(name("x")), Deed::Alias(name("y.example"), false, 60))));
        assert_eq!(rules("x CNAME .\n")[0].1, Err("a record before the zone's SOA"));
        let relative = "rpz.test. 60 IN SOA a. b. 1 2 3 4 5\nx.example CNAME .\n*.x.example CNAME y.example.\n\
            z.example.rpz.test. CNAME z.example\n@ NS ns.\nw.example CNAME w.example.rpz.test.\n";
        let found: Vec<Rule> = rules(relative).into_iter().map(|(_, rule)| rule).collect();
        let alias = |to: &str| Deed::Alias(name(to), false, 3_600);
        assert_eq!(
            found,
            [
                Ok((Trigger::Name(name("x.example")), Deed::NxDomain)),
                Ok((Trigger::Below(name("x.example")), alias("y.example"))),
                Ok((Trigger::Name(name("z.example")), alias("z.example.rpz.test"))),
                Ok((Trigger::Name(name("w.example")), alias("w.example.rpz.test"))),
            ]
        );
        let written_out = "rpz.test SOA a. b. 1 2 3 4 5\nx.example.rpz.test CNAME .\n";
        assert_eq!(rules(written_out)[0].1, Ok((Trigger::Name(name("x.example")), Deed::NxDomain)));
    }

    #[test]
    fn addresses_are_written_backwards() {
        let of = |owner: &str| rules(&format!("{HEAD}{owner} CNAME .\n")).remove(0).1.map(|(trigger, _)| trigger);
        let v6 = |text: &str| Address::from(text.parse::<std::net::IpAddr>().unwrap());
        assert_eq!(of("24.0.2.0.192.rpz-ip"), Ok(Trigger::Answer(v6("192.0.2.0"), 24)));
        assert_eq!(of("48.zz.7.db8.2001.rpz-client-ip"), Ok(Trigger::Client(v6("2001:db8:7::"), 48)));
        assert_eq!(of("128.1.zz.rpz-ip"), Ok(Trigger::Answer(v6("::1"), 128)));
        assert_eq!(of("128.1.zz.db8.2001.rpz-ip"), Ok(Trigger::Answer(v6("2001:db8::1"), 128)));
        assert_eq!(of("16.zz.rpz-ip"), Ok(Trigger::Answer(v6("::"), 16)));
        assert_eq!(of("0.zz.rpz-ip"), Err(EVERYBODYS));
        assert_eq!(of("0.0.0.0.0.rpz-client-ip"), Err(EVERYBODYS));
        for bad in ["33.0.2.0.192.rpz-ip", "24.1.2.0.192.rpz-ip", "rpz-ip", "x.rpz-ip", "24.1.2.3.rpz-ip"] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert_eq!(of("ns.x.rpz-nsdname"), Err(NOT_SEEN));
        for bare in ["192.0.2.11", "*.192.0.2.11", "3221225995"] {
            assert_eq!(of(bare), Err("an address, not a name"), "{bare}");
        }
    }

    proptest! {
        /// Whatever is in a file, each rule is of a name, and no line takes a reading down.
        #[test]
        fn any_octets_are_read(text in prop::collection::vec(any::<u8>(), 0..400), lines in "([a-c*.@$(); \"\\\\]|CNAME |SOA |TXT |\n){0,80}") {
            for octets in [text.as_slice(), lines.as_bytes()] {
                read(io::Cursor::new(octets), false, &mut |_, _| {}).unwrap();
                let whole = [HEAD.as_bytes(), octets].concat();
                read(io::Cursor::new(whole), true, &mut |number, _| assert!(number > 2)).unwrap();
            }
        }
    }
}
