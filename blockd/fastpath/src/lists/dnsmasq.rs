//! dnsmasq's options about names: `address=/a/b/`, `local=/a/`, `server=/a/`. dnsmasq(8).

use super::{Line, Means, Names};

/// Values that answer nobody: no data, both null addresses, or the asking machine itself.
const NOWHERE: [&[u8]; 6] = [b"", b"#", b"0.0.0.0", b"::", b"127.0.0.1", b"::1"];

pub(super) fn is_one(line: &[u8]) -> bool {
    [&b"address=/"[..], b"local=/", b"server=/"].iter().any(|option| line.starts_with(option))
}

pub(super) fn read(line: &[u8], names: &mut Names<'_>, each: &mut dyn FnMut(Line<'_>)) {
    // A `#` begins a comment at the line's start and behind white space; elsewhere it is a value.
    let comment = line.iter().enumerate().position(|(at, &octet)| {
        octet == b'#' && at.checked_sub(1).is_none_or(|before| line[before].is_ascii_whitespace())
    });
    let line = line[..comment.unwrap_or(line.len())].trim_ascii();
    if line.is_empty() {
        return;
    }
    let Some((option, value)) = split(line, b'=') else { return each(Err(("no rule about names", line))) };
    let option = option.trim_ascii();
    let Some((targets, value)) = value.trim_ascii().strip_prefix(b"/").and_then(|rest| {
        let end = rest.iter().rposition(|&octet| octet == b'/')?;
        Some((&rest[..end], &rest[end + 1..]))
    }) else {
        return each(Err(("no rule about names", line)));
    };
    let means = match (option, value) {
        (b"address", value) if NOWHERE.contains(&value) => Means::Below,
        (b"address", _) => return each(Err(("an address of its own", line))),
        (b"local" | b"server", b"") => Means::Below,
        // The servers that all other names have: what a line above takes away is given back.
        (b"server", b"#") => Means::Exception,
        (b"local" | b"server", _) => return each(Err(("a server of its own", line))),
        _ => return each(Err(("no rule about names", line))),
    };
    for target in targets.split(|&octet| octet == b'/') {
        // `*.a` is what newer versions write for `a`.
        each(names.line(means, target.strip_prefix(b"*.").unwrap_or(target)));
    }
}

fn split(line: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = line.iter().position(|&octet| octet == at)?;
    Some((&line[..place], &line[place + 1..]))
}

#[cfg(test)]
mod tests {
    use crate::lists::{Format, Means, SkipReason, read};

    #[test]
    fn options_are_read_as_dnsmasq_does() {
        use Means::{Below, Exception};
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
                (2, name(Below, "a.example")),
                (2, name(Below, "b.example")),
                (3, name(Below, "c.example")),
                (4, name(Below, "d.example")),
                (5, Err("an address of its own")),
                (6, name(Below, "f.example")),
                (7, name(Below, "g.example")),
                (8, name(Exception, "ok.g.example")),
                (9, Err("a server of its own")),
                (10, Err("no rule about names")),
                (11, Err("no rule about names")),
                (12, name(Below, "i.example")),
            ]
        );
        assert!(matches!(found.last(), Some((13, Err(_)))), "nothing is everything's name");
    }
}
