//! The part of Adblock's and AdGuard's syntax that a resolver can honour: `||name^`, `|name^`, `://name^`, `name`, `@@`, and
//! the modifiers `important`, `badfilter` and `denyallow`. A rule with another modifier, a path, a wildcard or a regular
//! expression is skipped and counted, for what it means without that is another, and wider, rule.
//!
//! <https://adguard-dns.io/kb/general/dns-filtering-syntax/>

use super::{Effect, Line, Means, Names, Scope, each_line, hosts, is_address, words};
use crate::wire::NameError;
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
    let (scope, word) = match target(rule.pattern) {
        Ok(found) => found,
        Err(why) => return each(Err((why, line))),
    };
    let (block, except) = match is_important {
        true => (Effect::BlockImportant, Effect::ExceptImportant),
        false => (Effect::Block, Effect::Except),
    };
    let found = names.line(Means { effect: if rule.is_exception { except } else { block }, scope }, word);
    let is_read = found.is_ok();
    each(found);
    if !is_read || scope == Scope::Alone {
        return;
    }
    // One that is not below is out of the rule as it is, and would open what other rules block.
    for name in opened.split(|&octet| octet == b'|').filter(|name| is_below_of(name, word)) {
        each(names.line(Means { effect: except, scope: Scope::WithBelow }, name));
    }
}

fn is_below_of(name: &[u8], target: &[u8]) -> bool {
    let Some((front, end)) = name.len().checked_sub(target.len()).map(|at| name.split_at(at)) else { return false };
    front.last() == Some(&b'.') && end.eq_ignore_ascii_case(target)
}

/// The name of a pattern, and which names it covers.
fn target(pattern: &[u8]) -> Result<(Scope, &[u8]), &'static str> {
    if pattern.first() == Some(&b'/') {
        return Err("a regular expression");
    }
    let (scope, rest) = if let Some(rest) = pattern.strip_prefix(b"||") {
        (Scope::WithBelow, rest)
    } else if let Some(rest) = pattern.strip_prefix(b"://").filter(|rest| rest.ends_with(b"^")) {
        // What follows a URL's scheme is the whole name, if the mark behind it ends it.
        (Scope::Alone, rest)
    } else {
        (Scope::Alone, pattern.strip_prefix(b"|").unwrap_or(pattern))
    };
    let rest = rest.strip_suffix(b"|").unwrap_or(rest);
    let rest = rest.strip_suffix(b"^").unwrap_or(rest);
    let mut parts = words(rest);
    match (parts.next(), parts.next(), parts.next()) {
        _ if rest.contains(&b'*') => Err("a wildcard"),
        (Some(word), None, _) if is_address(word) => Err(NameError::Address.text()),
        // Lines of a hosts file stand in many such lists.
        (Some(first), Some(word), None) if scope == Scope::Alone && hosts::begins_line(first) => {
            hosts::own_name(word).map_or(Ok((scope, word)), Err)
        }
        (None, _, _) => Err(NameError::Empty.text()),
        _ if rest.iter().any(|octet| matches!(octet, b'/' | b':' | b'^' | b'|' | b'?' | b'=')) => {
            Err("more than a name")
        }
        (Some(word), None, _) => Ok((scope, word)),
        _ => Err("more than one word"),
    }
}

#[cfg(test)]
mod tests {
    use crate::lists::{Effect, Format, Means, Scope, SkipReason, read};

    const BELOW: Means = Means::BLOCK;
    const ALONE: Means = Means { effect: Effect::Block, scope: Scope::Alone };
    const EXCEPTION: Means = Means { effect: Effect::Except, scope: Scope::WithBelow };
    const EXCEPTION_ALONE: Means = Means { effect: Effect::Except, scope: Scope::Alone };
    const IMPORTANT_BELOW: Means = Means { effect: Effect::BlockImportant, scope: Scope::WithBelow };
    const IMPORTANT_ALONE: Means = Means { effect: Effect::BlockImportant, scope: Scope::Alone };
    const IMPORTANT_EXCEPTION: Means = Means { effect: Effect::ExceptImportant, scope: Scope::WithBelow };
    const IMPORTANT_EXCEPTION_ALONE: Means = Means { effect: Effect::ExceptImportant, scope: Scope::Alone };

    const ADDRESS: SkipReason = "an address, not a name";

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
        for (line, wanted) in [
            ("||a.example^", Ok((BELOW, "a.example"))),
            ("||A.example^|", Ok((BELOW, "a.example"))),
            ("||a.example", Ok((BELOW, "a.example"))),
            ("|a.example^", Ok((ALONE, "a.example"))),
            ("a.example", Ok((ALONE, "a.example"))),
            ("a.example # why", Ok((ALONE, "a.example"))),
            ("0.0.0.0 a.example", Ok((ALONE, "a.example"))),
            ("@@||a.example^", Ok((EXCEPTION, "a.example"))),
            ("||a.example^$important", Ok((IMPORTANT_BELOW, "a.example"))),
            ("a.example$important", Ok((IMPORTANT_ALONE, "a.example"))),
            ("@@||a.example^$important", Ok((IMPORTANT_EXCEPTION, "a.example"))),
            ("@@|a.example^$important", Ok((IMPORTANT_EXCEPTION_ALONE, "a.example"))),
            ("@@a.example", Ok((EXCEPTION_ALONE, "a.example"))),
            ("@@a.example^", Ok((EXCEPTION_ALONE, "a.example"))),
            ("@@|a.example^", Ok((EXCEPTION_ALONE, "a.example"))),
            ("@@|A.Example^|", Ok((EXCEPTION_ALONE, "a.example"))),
            ("@@://a.example^", Ok((EXCEPTION_ALONE, "a.example"))),
            ("://a.example^", Ok((ALONE, "a.example"))),
            ("://ads.", Err("more than a name")),
            ("|https://a.example^", Err("more than a name")),
            ("@@||a.example^$important,client=10.0.0.1", Err("a modifier that is not honoured")),
            ("@@|a.example^$dnstype=A", Err("a modifier that is not honoured")),
            ("@@/a[.]example/", Err("a regular expression")),
            ("@@||com^", Err("a public suffix")),
            ("@@||*.a.example^", Err("a wildcard")),
            ("||192.0.2.20^", Err(ADDRESS)),
            ("@@||192.0.2.20^$important", Err(ADDRESS)),
            ("|192.0.2.20|", Err(ADDRESS)),
            ("192.0.2.20", Err(ADDRESS)),
            ("||192.0.2.20:8080^", Err(ADDRESS)),
            ("||192.0.2.0/24^", Err(ADDRESS)),
            ("||[2001:db8::20]^", Err(ADDRESS)),
            ("||2001:db8::20^", Err(ADDRESS)),
            ("0.0.0.0 192.0.2.20", Err(ADDRESS)),
            ("0.0.0.0 2001:db8::20", Err(ADDRESS)),
            ("127.0.0.1 localhost", Err("the machine's own name")),
            ("0.0.0.0:53 a.example", Err("more than a name")),
            ("||^", Err("an empty name")),
            ("@@", Err("an empty name")),
            ("||3221226004^", Err(ADDRESS)),
            ("||0xC0.0.2.0x14^", Err(ADDRESS)),
            ("||1.2.3.4.example^", Ok((BELOW, "1.2.3.4.example"))),
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
        let text = "||a.example^\n||b.example^$important\n||a.example^$badfilter\n||b.example^$badfilter,important\n\
            ||c.example^$denyallow=ok.c.example|d.example\n@@||e.example^\n@@||e.example^$badfilter\n\
            ||f.example^$denyallow=ok.f.example,important\n||com^$denyallow=g.com\n|h.example^$denyallow=ok.h.example\n\
            @@|i.example^$important\n@@|i.example^$important,badfilter\n";
        let name = |means, text: &str| Ok((means, text.to_string()));
        assert_eq!(
            found(text),
            vec![
                (1, Err("switched off by a $badfilter")),
                (2, Err("switched off by a $badfilter")),
                (5, name(BELOW, "c.example")),
                (5, name(EXCEPTION, "ok.c.example")),
                (6, Err("switched off by a $badfilter")),
                (8, name(IMPORTANT_BELOW, "f.example")),
                (8, name(IMPORTANT_EXCEPTION, "ok.f.example")),
                (9, Err("a public suffix")),
                (10, name(ALONE, "h.example")),
                (11, Err("switched off by a $badfilter")),
            ]
        );
    }

    #[test]
    fn formats_are_told_apart() {
        let of = |text: &str| {
            let list = std::io::Cursor::new(text.as_bytes());
            read(list, Format::Auto, false, &mut |_| None, &mut |_, _| ()).unwrap()
        };
        assert_eq!(of("! Title: x\n||a.example^\n"), Format::Adblock);
        assert_eq!(of("# c\n\n@@||a.example^\n"), Format::Adblock);
        assert_eq!(of("# c\n127.0.0.1 localhost\n"), Format::Hosts);
        assert_eq!(of("::1 a.example\n"), Format::Hosts);
        for line in ["local=/a.example/", "address = /a.example/", "address=\"/a.example/\"", "nftset=/a.example/4#a#b"]
        {
            assert_eq!(of(&format!("# c\n{line}\n")), Format::Dnsmasq, "{line}");
        }
        assert_eq!(of("# c\na.example\n"), Format::Domains);
        assert_eq!(of(""), Format::Domains);
        assert_eq!(of("<html>\n"), Format::Domains);
    }
}
