//! dnsmasq's options about names: `address=/a/b/`, `local=/a/`, `server=/a/`. dnsmasq(8).

use super::{EVERY_NAME, Effect, Line, Means, Names, Scope, SkipReason};
use std::borrow::Cow;

/// Values that answer nobody: no data, both null addresses, or the asking machine itself.
const NOWHERE: [&[u8]; 6] = [b"", b"#", b"0.0.0.0", b"::", b"127.0.0.1", b"::1"];
/// Options about names, with names between slashes.
const OF_NAMES: [&[u8]; 3] = [b"address", b"local", b"server"];
/// Options that note the addresses of names, and block nothing. Lists that have them have one beside each rule.
const OF_SETS: [&[u8]; 2] = [b"ipset", b"nftset"];
/// Why their lines are skipped.
const SET: SkipReason = "an option about sets of addresses";
const NO_RULE: SkipReason = "no rule about names";

pub(super) fn is_one(line: &[u8]) -> bool {
    option_of(line).is_some_and(|(option, value)| {
        (OF_NAMES.contains(&option) || OF_SETS.contains(&option))
            && value.strip_prefix(b"\"").unwrap_or(value).starts_with(b"/")
    })
}

pub(super) fn read(line: &[u8], names: &mut Names<'_>, each: &mut dyn FnMut(Line<'_>)) {
    let Some(cleaned) = without_quotes(line) else { return each(Err(("a quotation that is not closed", line))) };
    let line = cleaned.trim_ascii();
    if line.is_empty() {
        return;
    }
    let Some((option, value)) = option_of(line) else { return each(Err((NO_RULE, line))) };
    if OF_SETS.contains(&option) {
        return each(Err((SET, line)));
    }
    let Some((targets, value)) = value.strip_prefix(b"/").and_then(|rest| {
        let end = rest.iter().rposition(|&octet| octet == b'/')?;
        Some((&rest[..end], &rest[end + 1..]))
    }) else {
        return each(Err((NO_RULE, line)));
    };
    let effect = match (option, value) {
        (b"address", value) if NOWHERE.contains(&value) => Effect::Block,
        (b"address", _) => return each(Err(("an address of its own", line))),
        (b"local" | b"server", b"") => Effect::Block,
        // The servers that all other names have: what a line above takes away is given back.
        (b"local" | b"server", b"#") => Effect::Except,
        (b"local" | b"server", _) => return each(Err(("a server of its own", line))),
        _ => return each(Err((NO_RULE, line))),
    };
    for target in targets.split(|&octet| octet == b'/') {
        // `*.a` is what is below `a`. Without it, dots in front change nothing; `#`, `*` and dots alone are every name.
        let below = target.strip_prefix(b"*.");
        let dots = target.iter().take_while(|&&octet| octet == b'.').count();
        let name = below.unwrap_or(&target[dots..]);
        let scope = if below.is_some() { Scope::OnlyBelow } else { Scope::WithBelow };
        each(match name {
            b"#" | b"*" | b"" if effect == Effect::Block && !target.is_empty() => Err((EVERY_NAME, line)),
            b"#" | b"*" => Err((NO_RULE, line)),
            name if name.contains(&b'*') => Err(("a wildcard", target)),
            name => names.line(Means { effect, scope }, name),
        });
    }
}

/// The line without quotes, and without the comment behind a `#` at its start or behind white space; none when a quotation
/// is not closed.
fn without_quotes(line: &[u8]) -> Option<Cow<'_, [u8]>> {
    let is_comment = |at: usize| line[at] == b'#' && (at == 0 || line[at - 1].is_ascii_whitespace());
    let Some(first) = (0..line.len()).find(|&at| line[at] == b'"' || is_comment(at)) else { return Some(line.into()) };
    if line[first] == b'#' {
        return Some(line[..first].into());
    }
    let mut kept = line[..first].to_vec();
    let mut is_quoted = false;
    let mut at = first;
    while at < line.len() {
        match line[at] {
            b'"' => is_quoted = !is_quoted,
            b'#' if !is_quoted && is_comment(at) => break,
            b'\\' if is_quoted && at + 1 < line.len() => {
                at += 1;
                kept.push(line[at]);
            }
            octet => kept.push(octet),
        }
        at += 1;
    }
    (!is_quoted).then_some(kept.into())
}

/// An option and its value, without the white space that may be around both.
fn option_of(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|&octet| octet == b'=')?;
    Some((line[..at].trim_ascii(), line[at + 1..].trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::{EVERY_NAME, NO_RULE, SET};
    use crate::lists::{Effect, Format, Means, Scope, SkipReason, read};

    const BELOW: Means = Means::BLOCK;
    const EXCEPTION: Means = Means { effect: Effect::Except, scope: Scope::WithBelow };
    const ONLY_BELOW: Means = Means { effect: Effect::Block, scope: Scope::OnlyBelow };
    const EXCEPTION_ONLY_BELOW: Means = Means { effect: Effect::Except, scope: Scope::OnlyBelow };

    #[test]
    fn options_are_read_as_dnsmasq_does() {
        let text = b"# a list\naddress=/a.example/b.example/\naddress=/c.example/0.0.0.0 # why\naddress=/d.example/#\n\
            address=/e.example/192.0.2.1\nlocal=/f.example/\nserver=/g.example/\nserver=/ok.g.example/#\n\
            server=/h.example/192.0.2.53\nno-resolv\nserver=192.0.2.53\naddress=/*.i.example/::\naddress=//\n";
        type Found = (u64, Result<(Means, String), SkipReason>);
        let mut found: Vec<Found> = Vec::new();
        let format = read(std::io::Cursor::new(text), Format::Auto, false, &mut |_| None, &mut |number, line| {
            found.push((number, line.map(|(means, name)| (means, name.to_string())).map_err(|(why, _)| why)));
        });
        assert_eq!(format.unwrap(), Format::Dnsmasq);
        let name = |means, text: &str| Ok((means, text.to_string()));
        assert_eq!(
            found[..found.len() - 1],
            [
                (2, name(BELOW, "a.example")),
                (2, name(BELOW, "b.example")),
                (3, name(BELOW, "c.example")),
                (4, name(BELOW, "d.example")),
                (5, Err("an address of its own")),
                (6, name(BELOW, "f.example")),
                (7, name(BELOW, "g.example")),
                (8, name(EXCEPTION, "ok.g.example")),
                (9, Err("a server of its own")),
                (10, Err("no rule about names")),
                (11, Err("no rule about names")),
                (12, name(ONLY_BELOW, "i.example")),
            ]
        );
        assert!(matches!(found.last(), Some((13, Err(_)))), "nothing is everything's name");
    }

    #[test]
    fn names_values_and_comments_are_read_as_dnsmasq_does() {
        // Each of these was put to dnsmasq 2.90.
        for (line, wanted) in [
            ("address=/.a.example/", Ok((BELOW, "a.example"))),
            ("address=/...a.example/#", Ok((BELOW, "a.example"))),
            ("server=/.a.example/#", Ok((EXCEPTION, "a.example"))),
            ("local=/a.example./", Ok((BELOW, "a.example"))),
            ("address=/*.a.example/", Ok((ONLY_BELOW, "a.example"))),
            ("server=/*.a.example/#", Ok((EXCEPTION_ONLY_BELOW, "a.example"))),
            ("local=/a.example/#", Ok((EXCEPTION, "a.example"))),
            ("address=/a.example/\"0.0.0.0\"", Ok((BELOW, "a.example"))),
            ("address=\"/a.example/\"", Ok((BELOW, "a.example"))),
            ("\"address=/a.example/::\" # why", Ok((BELOW, "a.example"))),
            (" address = /a.example/ ", Ok((BELOW, "a.example"))),
            ("address=/a.example/\t# why", Ok((BELOW, "a.example"))),
            ("address=/*a.example/", Err("a wildcard")),
            ("address=/.*.a.example/", Err("a wildcard")),
            ("address=/a.*.example/", Err("a wildcard")),
            ("address=/*..a.example/", Err("an empty label (two dots in a row, or one in front)")),
            ("address=/a.example", Err(NO_RULE)),
            ("address=/a.example/#why", Err("an address of its own")),
            ("address=\"/a.example/", Err("a quotation that is not closed")),
            ("address=/#/", Err(EVERY_NAME)),
            ("address=/#/0.0.0.0", Err(EVERY_NAME)),
            ("local=/./", Err(EVERY_NAME)),
            ("server=/*./", Err(EVERY_NAME)),
            ("address=/*/", Err(EVERY_NAME)),
            ("server=/*/#", Err(NO_RULE)),
            ("server=/#/#", Err(NO_RULE)),
            ("address=//", Err("an empty name")),
            ("server=/a.example/192.0.2.53#5353", Err("a server of its own")),
            ("address=/a.example/10.0.0.1", Err("an address of its own")),
            ("address=/192.0.2.20/", Err("an address, not a name")),
            ("server=/2001:db8::20/", Err("an address, not a name")),
            ("address=/com/", Err("a public suffix")),
            ("ipset=/a.example/b.example/set", Err(SET)),
            ("nftset=/a.example/4#ip#t#s", Err(SET)),
            ("conf-file=/etc/more", Err(NO_RULE)),
        ] {
            let mut found = Vec::new();
            let list = std::io::Cursor::new(line.as_bytes());
            read(list, Format::Dnsmasq, false, &mut |_| None, &mut |_, line| {
                found.push(line.map(|(means, name)| (means, name.to_string())).map_err(|(why, _)| why));
            })
            .unwrap();
            let wanted: Result<_, SkipReason> = wanted.map(|(means, name)| (means, name.to_string()));
            assert_eq!(found, vec![wanted], "{line}");
        }
    }
}
