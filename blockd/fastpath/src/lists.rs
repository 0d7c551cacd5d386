//! Other people's lists, read line by line, each format by a file of its own. A bad line is skipped and counted, never a
//! reason to lose the good ones; whether what is left is a list is the gate's to say.

mod adblock;
mod dnsmasq;
mod domains;
mod hosts;
pub mod regex;
pub mod rpz;

use crate::domains::HashKey;
use crate::wire::{FoldedName, MAX_NAME_OCTETS, NameError};
use std::io::{self, Read, Seek};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Whichever of the others its first lines look like.
    Auto,
    /// One name a line: it and all below it.
    Domains,
    /// An address and names: those names alone.
    Hosts,
    /// The part of Adblock's syntax that is about names.
    Adblock,
    /// dnsmasq's options `address`, `local` and `server`.
    Dnsmasq,
    /// A response policy zone: rules of its own kind, that [`rpz::read`] reads.
    Rpz,
    /// Regular expressions, that [`regex::read`] reads.
    Regex,
}

impl Format {
    const WORDS: [(&'static str, Self); 7] = [
        ("auto", Self::Auto),
        ("domains", Self::Domains),
        ("hosts", Self::Hosts),
        ("adblock", Self::Adblock),
        ("dnsmasq", Self::Dnsmasq),
        ("rpz", Self::Rpz),
        ("regex", Self::Regex),
    ];

    /// From the word in the config.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|&(_, format)| format)
    }

    /// The word that it has in the config.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, format)| *format == self).map_or("auto", |&(word, _)| word)
    }

    /// What the first lines of a list look like; domains where nothing speaks for another.
    fn detect(first_octets: &[u8]) -> Self {
        let lines = first_octets.split(|&octet| octet == b'\n').map(<[u8]>::trim_ascii);
        lines.take(DETECTED_LINES).find_map(Self::of_line).unwrap_or(Self::Domains)
    }

    /// The format that a line is of beyond doubt.
    fn of_line(line: &[u8]) -> Option<Self> {
        if adblock::is_one(line) {
            Some(Self::Adblock)
        } else if dnsmasq::is_one(line) {
            Some(Self::Dnsmasq)
        } else if rpz::is_one(line) {
            Some(Self::Rpz)
        } else {
            hosts::is_one(line).then_some(Self::Hosts)
        }
    }
}

/// How many lines are looked at before a list is taken to be of plain names.
const DETECTED_LINES: usize = 1_000;

impl Format {
    /// Whether its lines are about names, one by one.
    pub fn is_of_names(self) -> bool {
        !matches!(self, Self::Rpz | Self::Regex)
    }
}

/// What a line does about the names that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// They are blocked.
    Block,
    /// They are not blocked by [`Effect::Block`].
    Except,
    /// They are blocked; [`Effect::Except`] changes nothing.
    BlockImportant,
    /// They are not blocked by any line of the app's lists.
    ExceptImportant,
}

/// Which names a line covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The name that it has and all below.
    WithBelow,
    /// The name alone.
    Alone,
    /// All below the name, without the name itself.
    OnlyBelow,
}

/// What a line says of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Means {
    /// What it does.
    pub effect: Effect,
    /// To which names.
    pub scope: Scope,
}

impl Means {
    /// Blocks a name and all below, as most lines do.
    pub const BLOCK: Self = Self { effect: Effect::Block, scope: Scope::WithBelow };

    /// Whether it opens names.
    pub fn is_exception(self) -> bool {
        matches!(self.effect, Effect::Except | Effect::ExceptImportant)
    }

    /// A number for each.
    fn number(self) -> u64 {
        self.effect as u64 * 3 + self.scope as u64
    }
}

/// Why a line, or a name on it, was skipped; the words are metric and report values.
pub type SkipReason = &'static str;

/// Everybody's name: a list that has one is refused, and without it, if that is accepted, taken.
pub const PUBLIC_SUFFIX: SkipReason = "a public suffix";

/// Why a rule about all names is skipped; a list that has one is refused.
pub const EVERY_NAME: SkipReason = "a rule about every name";

/// A name and what is said of it, or why and what was skipped.
pub type Line<'a> = Result<(Means, &'a FoldedName), (SkipReason, &'a [u8])>;

/// What is held of a list at a time; a line that is longer is skipped.
const CHUNK_OCTETS: usize = 256 << 10;

/// Reads every line; `each` gets the line number from 1, and the name or the reason it was skipped with its text. Gives the
/// format, which is found out where it is not given.
///
/// `to_ascii` turns an internationalised name into its A-label form, and is called for those alone. A list may be longer
/// than the memory that there is: it passes through one chunk.
pub fn read(
    mut list: impl Read + Seek,
    format: Format,
    may_be_public: bool,
    to_ascii: &mut dyn FnMut(&str) -> Option<String>,
    each: &mut dyn FnMut(u64, Line<'_>),
) -> io::Result<Format> {
    let mut chunk = vec![0u8; CHUNK_OCTETS];
    let format = match format {
        Format::Auto => {
            let count = fill(&mut list, &mut chunk)?;
            list.rewind()?;
            Format::detect(&chunk[..count])
        }
        known => known,
    };
    let mut names = Names { may_be_public, name: FoldedName::ROOT, to_ascii };
    let mut reader = match format {
        Format::Adblock => {
            let off = adblock::switched_off(&mut list, &mut chunk)?;
            list.rewind()?;
            LineReader::Adblock(off)
        }
        Format::Dnsmasq => LineReader::Dnsmasq,
        Format::Hosts => LineReader::Hosts(hosts::LastAddress::default()),
        Format::Domains | Format::Auto => LineReader::Domains,
        // These are not what lists of names say: whoever wants those asks for them.
        Format::Rpz | Format::Regex => return Ok(format),
    };
    each_line(&mut list, &mut chunk, &mut |number, line| match line {
        Ok(line) => match &mut reader {
            LineReader::Domains => domains::read(line, &mut names, &mut |found| each(number, found)),
            LineReader::Hosts(last) => hosts::read(line, last, &mut names, &mut |found| each(number, found)),
            LineReader::Adblock(off) => adblock::read(line, off, &mut names, &mut |found| each(number, found)),
            LineReader::Dnsmasq => dnsmasq::read(line, &mut names, &mut |found| each(number, found)),
        },
        Err(beginning) => each(number, Err(("a line that is too long", beginning))),
    })?;
    Ok(format)
}

/// The format of a list, found out where it is not given.
pub fn format_of(mut list: impl Read, format: Format) -> io::Result<Format> {
    if format != Format::Auto {
        return Ok(format);
    }
    let mut chunk = vec![0u8; CHUNK_OCTETS];
    let count = fill(&mut list, &mut chunk)?;
    Ok(Format::detect(&chunk[..count]))
}

/// What a format keeps from line to line.
enum LineReader {
    Domains,
    Hosts(hosts::LastAddress),
    Adblock(adblock::SwitchedOff),
    Dnsmasq,
}

/// Reads until the chunk is full or the list at its end.
fn fill(list: &mut impl Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut held = 0;
    while held < chunk.len() {
        match list.read(&mut chunk[held..]) {
            Ok(0) => break,
            Ok(count) => held += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(held)
}

/// A line, or the beginning of one that is too long.
type Whole<'a> = Result<&'a [u8], &'a [u8]>;

/// Gives every line with its number, without the byte order mark of the first; of one that is too long the beginning.
fn each_line(list: &mut impl Read, chunk: &mut [u8], each: &mut dyn FnMut(u64, Whole<'_>)) -> io::Result<()> {
    let (mut number, mut held, mut is_cut) = (1u64, 0, false);
    loop {
        let count = match list.read(&mut chunk[held..]) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let filled = held + count;
        let is_end = count == 0;
        let mut rest = &chunk[..filled];
        loop {
            let line = match rest.iter().position(|&octet| octet == b'\n') {
                Some(end) => {
                    let line = &rest[..end];
                    rest = &rest[end + 1..];
                    line
                }
                None if is_end && !rest.is_empty() => std::mem::take(&mut rest),
                None => break,
            };
            if std::mem::take(&mut is_cut) {
                // The end of a line whose beginning was skipped.
            } else {
                let line = if number == 1 { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line) } else { line };
                each(number, Ok(line));
            }
            number += 1;
        }
        if is_end {
            return Ok(());
        }
        held = rest.len();
        let start = filled - held;
        if held == chunk.len() {
            if !is_cut {
                each(number, Err(&chunk[..80]));
            }
            (is_cut, held) = (true, 0);
        } else {
            chunk.copy_within(start..filled, 0);
        }
    }
}

/// Makes names of words. One for all lines: copies of its 256 octets were a tenth of a compile.
pub(super) struct Names<'a> {
    may_be_public: bool,
    name: FoldedName,
    to_ascii: &'a mut dyn FnMut(&str) -> Option<String>,
}

impl Names<'_> {
    /// The name of a word, or why there is none.
    fn of(&mut self, word: &[u8]) -> Result<&FoldedName, SkipReason> {
        let name = &mut self.name;
        let read = if word.is_ascii() {
            name.read_rule_text(word)
        } else {
            let text = std::str::from_utf8(word).map_err(|_| "not UTF-8")?;
            let ascii = (self.to_ascii)(text).ok_or("not an internationalised name")?;
            name.read_rule_text(ascii.as_bytes())
        };
        read.map_err(|why| if is_address(word) { NameError::Address.text() } else { why.text() })?;
        // No public suffix has more labels than this, but where a whole level below one is public.
        if !self.may_be_public && name.labels().nth(MAX_PUBLIC_LABELS).is_none() && is_public_suffix(name) {
            return Err(PUBLIC_SUFFIX);
        }
        Ok(name)
    }

    /// The same as a line.
    fn line<'a>(&'a mut self, means: Means, word: &'a [u8]) -> Line<'a> {
        self.of(word).map(|name| (means, name)).map_err(|why| (why, word))
    }
}

/// The words of a line, without what stands behind a `#`.
fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let line = line.split(|&octet| octet == b'#').next().unwrap_or(line);
    line.split(|octet| octet.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

/// Whether a text is an address, with a zone or not.
fn is_ip(text: &str) -> bool {
    text.split('%').next().is_some_and(|text| text.parse::<IpAddr>().is_ok())
}

/// Whether a word is an address or a network: with brackets, zone, port or length, or without.
fn is_address(word: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(word) else { return false };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
    let text = text.split_once('/').map_or(text, |(front, length)| if is_number(length) { front } else { text });
    if let Some((inside, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return is_ip(inside) && port.strip_prefix(':').map_or(port.is_empty(), is_number);
    }
    is_ip(text)
        || text.split_once(':').is_some_and(|(front, port)| is_number(port) && front.parse::<Ipv4Addr>().is_ok())
}

/// Most labels of a public suffix in the ICANN section: four today.
const MAX_PUBLIC_LABELS: usize = 6;

/// Whether a name is a public suffix of the ICANN section: everybody's, so nobody's to block.
pub fn is_public_suffix(name: &FoldedName) -> bool {
    let mut text = [0u8; MAX_NAME_OCTETS];
    let mut octets = 0;
    // Labels of another alphabet than a rule's would be read wrongly, but are in no public suffix.
    for label in name.labels() {
        text[octets..octets + label.len()].copy_from_slice(label);
        text[octets + label.len()] = b'.';
        octets += label.len() + 1;
    }
    let text = &text[..octets.saturating_sub(1)];
    psl::suffix(text).is_some_and(|suffix| {
        suffix.is_known() && suffix.typ() == Some(psl::Type::Icann) && suffix.as_bytes().len() == text.len()
    })
}

/// The first line of a list that blocks a name, or opens it in a list of holes; with `is_below`, that has what is below it
/// alone.
pub fn line_of(
    mut list: impl Read + Seek,
    format: Format,
    (wanted, is_below): (&FoldedName, bool),
    to_ascii: &mut dyn FnMut(&str) -> Option<String>,
) -> io::Result<Option<u64>> {
    let mut found = None;
    let format = format_of(&mut list, format)?;
    list.rewind()?;
    if format == Format::Rpz {
        rpz::read(list, true, &mut |number, rule| {
            let is_it = match rule {
                Ok((rpz::Trigger::Name(name), _)) => !is_below && name == *wanted,
                Ok((rpz::Trigger::Below(name), _)) => is_below && name == *wanted,
                _ => false,
            };
            found = found.or(is_it.then_some(number));
        })?;
        return Ok(found);
    }
    read(list, format, true, to_ascii, &mut |number, line| {
        let is_it = |(means, name): (Means, &FoldedName)| {
            name == wanted && !means.is_exception() && (means.scope == Scope::OnlyBelow) == is_below
        };
        if found.is_none() && line.is_ok_and(is_it) {
            found = Some(number);
        }
    })?;
    Ok(found)
}

/// Names that come and go between two sets of lists.
#[derive(Debug, Default)]
pub struct Changes {
    /// How many are new.
    pub gained: u64,
    /// The first of them.
    pub gained_samples: Vec<String>,
    /// How many are gone.
    pub lost: u64,
    /// The first of them.
    pub lost_samples: Vec<String>,
}

/// How many names a sample shows.
const CHANGES_SHOWN: usize = 10;

/// One thing that a list says.
#[derive(Debug, Clone, Copy)]
pub enum Says<'a> {
    /// Something about a name.
    Name(Means, &'a FoldedName),
    /// A rule of a response policy zone.
    Rule(&'a rpz::Trigger, &'a rpz::Deed),
    /// An expression.
    Expression(&'a str),
}

impl Says<'_> {
    /// What tells it from everything else that a list may say.
    fn print(self, key: HashKey) -> u64 {
        let of_name = |name: &FoldedName| key.suffixes(name).last().copied().unwrap_or(0);
        match self {
            Self::Name(means, name) => of_name(name) ^ means.number(),
            // What is done is a part of it: a name that is answered otherwise is a change.
            rule @ Self::Rule(..) => key.chain(0, rule.to_string().as_bytes()),
            Self::Expression(text) => key.chain(0, text.as_bytes()),
        }
    }
}

impl std::fmt::Display for Says<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(_, name) => name.fmt(out),
            Self::Rule(trigger, deed) => write!(out, "{trigger}: {}", deed.text()),
            Self::Expression(text) => out.write_str(text),
        }
    }
}

/// Gives everything that a list says, whatever its format is.
pub fn each_thing(
    file: &Path,
    format: Format,
    may_be_public: bool,
    to_ascii: &mut dyn FnMut(&str) -> Option<String>,
    each: &mut dyn FnMut(Says<'_>),
) -> io::Result<()> {
    let list = std::fs::File::open(file)?;
    match format_of(&list, format)? {
        Format::Rpz => rpz::read(std::fs::File::open(file)?, may_be_public, &mut |_, found| {
            if let Ok((trigger, deed)) = &found {
                each(Says::Rule(trigger, deed));
            }
        }),
        Format::Regex => regex::read(std::fs::File::open(file)?, may_be_public, &mut |_, found| {
            if let Ok(expression) = &found {
                each(Says::Expression(expression));
            }
        }),
        known => read(std::fs::File::open(file)?, known, may_be_public, to_ascii, &mut |_, line| {
            if let Ok((means, name)) = line {
                each(Says::Name(means, name));
            }
        })
        .map(drop),
    }
}

/// Compares lists with those before, each with whether public suffixes of it count, by keyed fingerprints: a name is one in a hosts file and another in a domains list.
pub fn changes(
    before: &[(PathBuf, Format, bool)],
    after: &[(PathBuf, Format, bool)],
    key: HashKey,
    to_ascii: &mut dyn FnMut(&str) -> Option<String>,
) -> io::Result<Changes> {
    let mut each = |lists: &[(PathBuf, Format, bool)], see: &mut dyn FnMut(Says<'_>)| {
        lists
            .iter()
            .try_for_each(|(file, format, may_be_public)| each_thing(file, *format, *may_be_public, to_ascii, see))
    };
    let (mut old, mut new) = (hashbrown::HashSet::new(), hashbrown::HashSet::new());
    let mut found = Changes::default();
    let sample = |samples: &mut Vec<String>, says: Says<'_>| {
        if samples.len() < CHANGES_SHOWN {
            samples.push(says.to_string());
        }
    };
    each(before, &mut |says| {
        old.insert(says.print(key));
    })?;
    each(after, &mut |says| {
        let print = says.print(key);
        if new.insert(print) && !old.contains(&print) {
            found.gained += 1;
            sample(&mut found.gained_samples, says);
        }
    })?;
    each(before, &mut |says| {
        let print = says.print(key);
        if old.remove(&print) && !new.contains(&print) {
            found.lost += 1;
            sample(&mut found.lost_samples, says);
        }
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(text: &[u8], format: Format) -> Vec<(u64, Result<String, SkipReason>)> {
        let mut all = Vec::new();
        read(io::Cursor::new(text), format, false, &mut |_| None, &mut |number, line| {
            all.push((number, line.map(|(_, name)| name.to_string()).map_err(|(why, _)| why)));
        })
        .unwrap();
        all
    }

    #[test]
    fn a_domains_list_keeps_what_is_good() {
        let text =
            b"\xEF\xBB\xBFTikTok.com\r\n\n# a comment\nmuscdn.com. # legacy\ncom\na b\n*.x.org\n*x.org\n\xFF\xFE\n.y.org\n..z.org\n";
        assert_eq!(
            lines(text, Format::Domains),
            vec![
                (1, Ok("tiktok.com".into())),
                (4, Ok("muscdn.com".into())),
                (5, Err("a public suffix")),
                (6, Err("more than one word")),
                (7, Ok("x.org".into())),
                (8, Err("a character that is no letter, digit, '-', '_' or '.'")),
                (9, Err("not UTF-8")),
                (10, Ok("y.org".into())),
                (11, Err("an empty label (two dots in a row, or one in front)")),
            ]
        );
    }

    #[test]
    fn a_hosts_file_keeps_its_names() {
        let text = b"127.0.0.1 localhost\n0.0.0.0\ta.example b.example\n::1 c.example\nd.example\n1.2.3.4\n\
            0.0.0.0 192.0.2.11 e.example 2001:db8::1 3232235777\n";
        assert_eq!(
            lines(text, Format::Hosts),
            vec![
                (1, Err("the machine's own name")),
                (2, Ok("a.example".into())),
                (2, Ok("b.example".into())),
                (3, Ok("c.example".into())),
                (4, Err("not an address")),
                (5, Err("no name")),
                (6, Err("an address, not a name")),
                (6, Ok("e.example".into())),
                (6, Err("an address, not a name")),
                (6, Err("an address, not a name")),
            ]
        );
    }

    #[test]
    fn addresses_are_not_names_in_any_format() {
        for address in [
            "192.0.2.11",
            "192.0.2.11.",
            "192.0.2.11:443",
            "192.0.2.0/24",
            "3221225995",
            "0xC000020B",
            "0300.0.2.013",
            "a.example.11",
            "2001:db8::11",
            "[2001:db8::11]",
            "[2001:db8::11]:443",
            "2001:db8::/32",
            "::ffff:192.0.2.11",
            "fe80::11%eth0",
        ] {
            let of_format = |format, text: String| {
                let found = lines(text.as_bytes(), format);
                assert!(
                    !found.is_empty() && found.iter().all(|(_, line)| *line == Err("an address, not a name")),
                    "{text} {found:?}"
                );
            };
            of_format(Format::Domains, address.into());
            of_format(Format::Domains, format!("*.{address}"));
            of_format(Format::Domains, format!("{address} # why\n{address}"));
            of_format(Format::Hosts, format!("0.0.0.0 {address}"));
            of_format(Format::Adblock, format!("||{address}^\n@@|{address}^$important\n{address}\n0.0.0.0 {address}"));
            if !address.contains('/') {
                of_format(Format::Dnsmasq, format!("address=/{address}/\nlocal=/.{address}/\nserver=/{address}/#"));
            }
        }
        // Nor does a network, or an address with a port, begin a line of a hosts file.
        for first in ["192.0.2.0/24", "192.0.2.11:53", "[2001:db8::11]", "a.example"] {
            assert_eq!(lines(format!("{first} b.example").as_bytes(), Format::Hosts), vec![(1, Err("not an address"))]);
        }
        for name in ["1.2.3.4.example", "11.2.0.192.in-addr.arpa", "192-0-2-11.example", "0x7f.example"] {
            assert_eq!(lines(name.as_bytes(), Format::Domains), vec![(1, Ok(name.into()))]);
        }
    }

    #[test]
    fn a_line_is_found_by_what_it_covers() {
        let text = "server=/a.example/#\naddress=/*.a.example/\naddress=/a.example/\n";
        let at = |name: &str, is_below| {
            let name = FoldedName::from_rule_text(name.as_bytes()).unwrap();
            let list = io::Cursor::new(text.as_bytes());
            line_of(list, Format::Dnsmasq, (&name, is_below), &mut |_| None).unwrap()
        };
        assert_eq!((at("a.example", false), at("a.example", true), at("b.example", false)), (Some(3), Some(2), None));
    }

    #[test]
    fn lines_are_whole_across_chunks_and_a_long_one_is_skipped() {
        // Lines of 16 octets and one of 15 put every place of a line at the edge of a chunk, sooner or later.
        let mut text = b"0123456.example".to_vec();
        text.push(b'\n');
        for at in 0..60_000 {
            text.extend_from_slice(format!("n{at:06}.example\n").as_bytes());
        }
        let long = vec![b'x'; 3 * CHUNK_OCTETS];
        text.extend_from_slice(&[&long[..], b"\nlast.example"].concat());
        let found = lines(&text, Format::Domains);
        assert_eq!(found.len(), 60_003);
        for (at, (number, line)) in found[1..60_001].iter().enumerate() {
            assert_eq!((*number, line), (at as u64 + 2, &Ok(format!("n{at:06}.example"))));
        }
        assert_eq!(found[60_001], (60_002, Err("a line that is too long")));
        assert_eq!(found[60_002], (60_003, Ok("last.example".into())));
    }

    #[test]
    fn public_suffixes_are_those_of_the_icann_section() {
        let is = |text: &str| is_public_suffix(&FoldedName::from_rule_text(text.as_bytes()).unwrap());
        assert!(is("com") && is("co.uk"));
        assert!(!is("tiktok.com") && !is("github.io") && !is("corp"));
    }

    proptest! {
        /// Any bytes give lines or skips, and nothing else.
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..400), format in 0..Format::WORDS.len()) {
            lines(&bytes, Format::WORDS[format].1);
        }

        /// A good line is read, whatever lines are around it.
        #[test]
        fn a_bad_line_costs_no_good_one(before in "([|@$^/*#=~!. \"]|a|[0-9]|address|server){0,40}", after in any::<Vec<u8>>()) {
            for (format, good) in [
                (Format::Domains, "good.example"),
                (Format::Hosts, "0.0.0.0 good.example"),
                (Format::Adblock, "||good.example^"),
                (Format::Dnsmasq, "address=/good.example/"),
            ] {
                let text = [before.as_bytes(), b"\n", good.as_bytes(), b"\n", &after].concat();
                let found = lines(&text, format);
                prop_assert!(found.contains(&(2, Ok("good.example".into()))), "{found:?}");
                prop_assert!(found.iter().filter_map(|(_, line)| line.as_ref().ok()).all(|name| !name.is_empty()));
            }
        }

        /// So do lines of a list's own characters.
        #[test]
        fn any_rules_are_read(text in "([|@$^/*#=~!. \n\"]|a|b[.]example|1|0x|::|important|badfilter|denyallow|0[.]0|address|server){0,60}") {
            for (_, format) in Format::WORDS {
                lines(text.as_bytes(), format);
            }
        }
    }
}
