//! The part of Adblock's and AdGuard's syntax that a resolver can honour: `||name^`, `|name^`, `name`, `@@`, and the
//! modifiers `important`, `badfilter` and `denyallow`. A rule with another modifier, a path, a wildcard or a regular
//! expression is skipped and counted, for what it means without that is another, and wider, rule.
//!
//! <https://adguard-dns.io/kb/general/dns-filtering-syntax/>

use super::{Line, Means, Names, each_line, is_address, words};
use hashbrown::{DefaultHashBuilder, HashSet};
use std::hash::BuildHasher;
use std::io::{self, Read};

pub(super) fn is_one(line: &[u8]) -> bool {
    line.starts_with(b"||") || line.starts_with(b"@@") || line.starts_with(b"[Adblock") || line.starts_with(b"! ")
}

/// Rules that another line switches off by `badfilter`, by the hash of their text without it.
pub(super) struct SwitchedOff {
    hasher: DefaultHashBuilder,
    rules: HashSet<u64>,
}

impl SwitchedOff {
    fn hash(&self, rule: &Rule<'_>) -> u64 {
        let others: Vec<&[u8]> = rule.modifiers().filter(|&modifier| modifier != b"badfilter").collect();
        self.hasher.hash_one((rule.is_exception, rule.pattern, others))
    }
}

/// Reads a list for what it switches off.
pub(super) fn switched_off(list: &mut impl Read, chunk: &mut [u8]) -> io::Result<SwitchedOff> {
    let mut off = SwitchedOff { hasher: DefaultHashBuilder::default(), rules: HashSet::new() };
    each_line(list, chunk, &mut |_, line| {
        if let Some(rule) = line.ok().and_then(Rule::of) {
            if rule.modifiers().any(|modifier| modifier == b"badfilter") {
                let hash = off.hash(&rule);
                off.rules.insert(hash);
            }
        }
    })?;
    Ok(off)
}

struct Rule<'a> {
    is_exception: bool,
    pattern: &'a [u8],
    options: &'a [u8],
}

impl<'a> Rule<'a> {
    /// None for a comment.
    fn of(line: &'a [u8]) -> Option<Self> {
        let line = line.trim_ascii();
        let is_cosmetic = is_cosmetic(line);
        if line.is_empty() || matches!(line[0], b'!' | b'[') || (line[0] == b'#' && !is_cosmetic) {
            return None;
        }
        let (is_exception, rule) = match line.strip_prefix(b"@@") {
            Some(rule) => (true, rule),
            None => (false, line),
        };
        // A `$` inside a regular expression is its own.
        let options_at = if rule.first() == Some(&b'/') { None } else { rule.iter().position(|&octet| octet == b'$') };
        let (pattern, options) = options_at.map_or((rule, &rule[..0]), |at| (&rule[..at], &rule[at + 1..]));
        Some(Self { is_exception, pattern, options })
    }

    fn modifiers(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.options.split(|&octet| octet == b',').map(<[u8]>::trim_ascii).filter(|modifier| !modifier.is_empty())
    }
}

fn is_cosmetic(line: &[u8]) -> bool {
    [&b"##"[..], b"#@#", b"#?#", b"#$#", b"#%#"].iter().any(|mark| line.windows(mark.len()).any(|part| part == *mark))
}

pub(super) fn read(line: &[u8], off: &SwitchedOff, names: &mut Names<'_>, each: &mut dyn FnMut(Line<'_>)) {
    let Some(rule) = Rule::of(line) else { return };
    let line = line.trim_ascii();
    if is_cosmetic(line) {
        return each(Err(("a rule for what pages look like", line)));
    }
    let (mut is_important, mut opened): (bool, &[u8]) = (false, b"");
    for modifier in rule.modifiers() {
        match modifier {
            b"important" => is_important = true,
            // It did its work before.
            b"badfilter" => return,
            _ => match modifier.strip_prefix(b"denyallow=") {
                Some(names) if !rule.is_exception => opened = names,
                _ => return each(Err(("a modifier that is not honoured", line))),
            },
        }
    }
    if !off.rules.is_empty() && off.rules.contains(&off.hash(&rule)) {
        return each(Err(("switched off by a $badfilter", line)));
    }
    let (is_below, word) = match target(rule.pattern) {
        Ok(found) => found,
        Err(why) => return each(Err((why, line))),
    };
    let means = match (rule.is_exception, is_below, is_important) {
        // An exception that is important too beats what is important: two wishes that this order does not have.
        (true, _, true) => return each(Err(("a modifier that is not honoured", line))),
        (true, true, false) => Means::Exception,
        (true, false, false) => return each(Err(("an exception for one name without those below", line))),
        (false, true, true) => Means::ImportantBelow,
        (false, true, false) => Means::Below,
        (false, false, true) => Means::ImportantAlone,
        (false, false, false) => Means::Alone,
    };
    each(names.line(means, word));
    // One that is not below is out of the rule as it is, and would open what other rules block.
    for name in opened.split(|&octet| octet == b'|').filter(|name| is_below_of(name, word)) {
        each(names.line(Means::Exception, name));
    }
}

fn is_below_of(name: &[u8], target: &[u8]) -> bool {
    let Some((front, end)) = name.len().checked_sub(target.len()).map(|at| name.split_at(at)) else { return false };
    front.last() == Some(&b'.') && end.eq_ignore_ascii_case(target)
}

/// The name of a pattern, and whether what is below it is meant.
fn target(pattern: &[u8]) -> Result<(bool, &[u8]), &'static str> {
    if pattern.first() == Some(&b'/') {
        return Err("a regular expression");
    }
    let (is_below, rest) = match pattern.strip_prefix(b"||") {
        Some(rest) => (true, rest),
        None => (false, pattern.strip_prefix(b"|").unwrap_or(pattern)),
    };
    let rest = rest.strip_suffix(b"|").unwrap_or(rest);
    let rest = rest.strip_suffix(b"^").unwrap_or(rest);
    let mut parts = words(rest);
    match (parts.next(), parts.next(), parts.next()) {
        _ if rest.contains(&b'*') => Err("a wildcard"),
        _ if rest.iter().any(|octet| matches!(octet, b'/' | b':' | b'^' | b'|' | b'?' | b'=')) => {
            Err("more than a name")
        }
        (Some(word), None, _) => Ok((is_below, word)),
        // Lines of a hosts file stand in many such lists.
        (Some(first), Some(word), None) if !is_below && is_address(first) => Ok((false, word)),
        _ => Err("more than one word"),
    }
}

#[cfg(test)]
mod tests {
    use crate::lists::{Format, Means, SkipReason, read};

    type Found = (u64, Result<(Means, String), SkipReason>);

    fn found(text: &str) -> Vec<Found> {
        let mut found = Vec::new();
        let list = std::io::Cursor::new(text.as_bytes());
        read(list, Format::Adblock, false, &mut |_| None, &mut |number, line| {
            found.push((number, line.map(|(means, name)| (means, name.to_string())).map_err(|(why, _)| why)));
        })
        .unwrap();
        found
    }

    #[test]
    fn rules_are_read_or_skipped_and_never_widened() {
        use Means::{Alone, Below, Exception, ImportantAlone, ImportantBelow};
        for (line, wanted) in [
            ("||a.example^", Ok((Below, "a.example"))),
            ("||A.example^|", Ok((Below, "a.example"))),
            ("||a.example", Ok((Below, "a.example"))),
            ("|a.example^", Ok((Alone, "a.example"))),
            ("a.example", Ok((Alone, "a.example"))),
            ("a.example # why", Ok((Alone, "a.example"))),
            ("0.0.0.0 a.example", Ok((Alone, "a.example"))),
            ("@@||a.example^", Ok((Exception, "a.example"))),
            ("||a.example^$important", Ok((ImportantBelow, "a.example"))),
            ("a.example$important", Ok((ImportantAlone, "a.example"))),
            ("@@||a.example^$important", Err("a modifier that is not honoured")),
            ("@@a.example", Err("an exception for one name without those below")),
            ("||a.example^$third-party", Err("a modifier that is not honoured")),
            ("||a.example^$client=10.0.0.1", Err("a modifier that is not honoured")),
            ("||a.example^$dnsrewrite=1.2.3.4", Err("a modifier that is not honoured")),
            ("||a.example^$important,dnstype=AAAA", Err("a modifier that is not honoured")),
            ("@@||a.example^$denyallow=b.example", Err("a modifier that is not honoured")),
            ("||*.a.example^", Err("a wildcard")),
            ("||a.example/path", Err("more than a name")),
            ("||a.example:443^", Err("more than a name")),
            ("/ads[0-9]+/", Err("a regular expression")),
            ("/ads$/", Err("a regular expression")),
            ("a.example##.banner", Err("a rule for what pages look like")),
            ("##.banner", Err("a rule for what pages look like")),
            ("||com^", Err("a public suffix")),
            ("a.example b.example", Err("more than one word")),
        ] {
            let wanted = wanted.map(|(means, name): (Means, &str)| (means, name.to_string()));
            assert_eq!(found(line), vec![(1, wanted)], "{line}");
        }
        for comment in ["! comment", "# comment", "[Adblock Plus 2.0]", "", "   "] {
            assert!(found(comment).is_empty(), "{comment}");
        }
    }

    #[test]
    fn badfilter_and_denyallow_do_as_they_say() {
        use Means::{Below, Exception};
        let text = "||a.example^\n||b.example^$important\n||a.example^$badfilter\n||b.example^$badfilter,important\n\
            ||c.example^$denyallow=ok.c.example|d.example\n@@||e.example^\n@@||e.example^$badfilter\n";
        let name = |means, text: &str| Ok((means, text.to_string()));
        assert_eq!(
            found(text),
            vec![
                (1, Err("switched off by a $badfilter")),
                (2, Err("switched off by a $badfilter")),
                (5, name(Below, "c.example")),
                (5, name(Exception, "ok.c.example")),
                (6, Err("switched off by a $badfilter")),
            ]
        );
    }

    #[test]
    fn formats_are_told_apart() {
        let format = |text: &str| {
            let list = std::io::Cursor::new(text.as_bytes());
            read(list, Format::Auto, false, &mut |_| None, &mut |_, _| ()).unwrap()
        };
        assert_eq!(format("! Title: x\n||a.example^\n"), Format::Adblock);
        assert_eq!(format("# c\n\n@@||a.example^\n"), Format::Adblock);
        assert_eq!(format("# c\n127.0.0.1 localhost\n"), Format::Hosts);
        assert_eq!(format("::1 a.example\n"), Format::Hosts);
        assert_eq!(format("# c\nlocal=/a.example/\n"), Format::Dnsmasq);
        assert_eq!(format("# c\na.example\n"), Format::Domains);
        assert_eq!(format(""), Format::Domains);
        assert_eq!(format("<html>\n"), Format::Domains);
    }
}
