//! Other people's lists, read line by line: plain domains and hosts files. A bad line is skipped and counted, never
//! a reason to lose the good ones.

use crate::wire::{FoldedName, MAX_NAME_OCTETS};
use std::io::{self, Read};
use std::net::IpAddr;

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One name a line: it and all below it.
    Domains,
    /// An address and names: those names alone.
    Hosts,
}

impl Format {
    /// From the word in the config.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "domains" => Some(Self::Domains),
            "hosts" => Some(Self::Hosts),
            _ => None,
        }
    }
}

/// Why a line, or a name on it, was skipped; the words are metric and report values.
pub type SkipReason = &'static str;

/// A name, or why and what was skipped.
pub type Line<'a> = Result<&'a FoldedName, (SkipReason, &'a [u8])>;

/// Names that every hosts file carries for the machine itself.
const OWN_HOSTS: [&[u8]; 12] = [
    b"localhost",
    b"localhost.localdomain",
    b"local",
    b"broadcasthost",
    b"ip6-localhost",
    b"ip6-loopback",
    b"ip6-localnet",
    b"ip6-mcastprefix",
    b"ip6-allnodes",
    b"ip6-allrouters",
    b"ip6-allhosts",
    b"0.0.0.0",
];

/// What is held of a list at a time; a line that is longer is skipped.
const CHUNK_OCTETS: usize = 256 << 10;

/// Reads every line; `each` gets the line number from 1, and the name or the reason it was skipped with its text.
///
/// `to_ascii` turns an internationalised name into its A-label form, and is called for those alone. A list may be longer
/// than the memory that there is: it passes through one chunk.
pub fn read(
    mut list: impl Read,
    format: Format,
    may_be_public: bool,
    to_ascii: &mut dyn FnMut(&str) -> Option<String>,
    each: &mut dyn FnMut(u64, Line<'_>),
) -> io::Result<()> {
    let mut reader = LineReader { format, may_be_public, name: FoldedName::ROOT, address: Vec::new() };
    let mut chunk = vec![0u8; CHUNK_OCTETS];
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
                reader.read(number, line, to_ascii, each);
            }
            number += 1;
        }
        if is_end {
            return Ok(());
        }
        held = rest.len();
        let start = filled - held;
        if held == CHUNK_OCTETS {
            if !is_cut {
                each(number, Err(("a line that is too long", &chunk[..80])));
            }
            (is_cut, held) = (true, 0);
        } else {
            chunk.copy_within(start..filled, 0);
        }
    }
}

struct LineReader {
    format: Format,
    may_be_public: bool,
    /// One name for all lines: copies of its 256 octets were a tenth of a compile.
    name: FoldedName,
    /// The last address: nearly every line has that of the line before.
    address: Vec<u8>,
}

impl LineReader {
    fn read(
        &mut self,
        number: u64,
        line: &[u8],
        to_ascii: &mut dyn FnMut(&str) -> Option<String>,
        each: &mut dyn FnMut(u64, Line<'_>),
    ) {
        let line = line.split(|&octet| octet == b'#').next().unwrap_or(line);
        let mut words = line.split(|octet| octet.is_ascii_whitespace()).filter(|word| !word.is_empty());
        let Some(first) = words.next() else { return };
        match self.format {
            Format::Domains => {
                if words.next().is_some() {
                    each(number, Err(("more than one word", line)));
                } else {
                    each(number, self.name_of(first, to_ascii).map_err(|why| (why, first)));
                }
            }
            Format::Hosts => {
                let is_address = first == self.address
                    || std::str::from_utf8(first)
                        .is_ok_and(|text| text.split('%').next().unwrap_or(text).parse::<IpAddr>().is_ok());
                if !is_address {
                    each(number, Err(("not an address", line)));
                    return;
                }
                if first != self.address {
                    self.address = first.to_vec();
                }
                let mut found = false;
                for word in words {
                    found = true;
                    if OWN_HOSTS.contains(&word) {
                        each(number, Err(("the machine's own name", word)));
                    } else {
                        each(number, self.name_of(word, to_ascii).map_err(|why| (why, word)));
                    }
                }
                if !found {
                    each(number, Err(("no name", line)));
                }
            }
        }
    }

    /// The name of a word, or why there is none.
    fn name_of(
        &mut self,
        word: &[u8],
        to_ascii: &mut dyn FnMut(&str) -> Option<String>,
    ) -> Result<&FoldedName, SkipReason> {
        let name = &mut self.name;
        let read = if word.is_ascii() {
            name.read_rule_text(word)
        } else {
            let text = std::str::from_utf8(word).map_err(|_| "not UTF-8")?;
            let ascii = to_ascii(text).ok_or("not an internationalised name")?;
            name.read_rule_text(ascii.as_bytes())
        };
        read.map_err(|why| why.text())?;
        // No public suffix has more labels than this, but where a whole level below one is public.
        if !self.may_be_public && name.labels().nth(MAX_PUBLIC_LABELS).is_none() && is_public_suffix(name) {
            return Err("a public suffix");
        }
        Ok(name)
    }
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

/// The first line of a list that gives a name.
pub fn line_of(
    list: impl Read,
    format: Format,
    wanted: &FoldedName,
    to_ascii: &mut dyn FnMut(&str) -> Option<String>,
) -> io::Result<Option<u64>> {
    let mut found = None;
    read(list, format, true, to_ascii, &mut |number, line| {
        if found.is_none() && line.is_ok_and(|name| name == wanted) {
            found = Some(number);
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
        read(text, format, false, &mut |_| None, &mut |number, line| {
            all.push((number, line.map(|name| name.to_string()).map_err(|(why, _)| why)));
        })
        .unwrap();
        all
    }

    #[test]
    fn a_domains_list_keeps_what_is_good() {
        let text = b"\xEF\xBB\xBFTikTok.com\r\n\n# a comment\nmuscdn.com. # legacy\ncom\na b\n*.x.org\n\xFF\xFE\n";
        assert_eq!(
            lines(text, Format::Domains),
            vec![
                (1, Ok("tiktok.com".into())),
                (4, Ok("muscdn.com".into())),
                (5, Err("a public suffix")),
                (6, Err("more than one word")),
                (7, Err("a character that is no letter, digit, '-', '_' or '.'")),
                (8, Err("not UTF-8")),
            ]
        );
    }

    #[test]
    fn a_hosts_file_keeps_its_names() {
        let text = b"127.0.0.1 localhost\n0.0.0.0\ta.example b.example\n::1 c.example\nd.example\n1.2.3.4\n";
        assert_eq!(
            lines(text, Format::Hosts),
            vec![
                (1, Err("the machine's own name")),
                (2, Ok("a.example".into())),
                (2, Ok("b.example".into())),
                (3, Ok("c.example".into())),
                (4, Err("not an address")),
                (5, Err("no name")),
            ]
        );
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
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..400), hosts: bool) {
            lines(&bytes, if hosts { Format::Hosts } else { Format::Domains });
        }
    }
}
