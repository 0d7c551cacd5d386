//! Regular expressions, one a line, as filters for DNS have them: found anywhere in a name unless they are anchored.

use super::{SkipReason, each_line};
use crate::decide::AppMask;
use crate::patterns::{Patterns, parse_error};
use crate::wire::FoldedName;
use std::io::{self, Read};

/// Longest expression, octets.
const MAX_OCTETS: usize = 200;
/// Most expressions of a list: each makes the automaton of all larger.
const MAX_COUNT: usize = 1_000;
/// Why an expression is refused, as a public suffix is.
pub const EVERYBODYS: SkipReason = "an expression that fits everybody's names";
/// Labels that have nothing in common but what they are made of: what fits all of a row below one public suffix, fits
/// whatever is there. By letters, with digits and hyphens, and with labels before them.
const STRANGERS: [[&str; 4]; 3] = [
    ["qz", "plumber", "riverbank", "wkvxjy"],
    ["h-7", "4you", "x2-garden-9", "0815"],
    ["www.qz", "a.b.plumber", "mail.riverbank", "w3.wkvxjy"],
];
/// Public suffixes below which most of the world's names are, and those of governments.
const SUFFIXES: [&str; 40] = [
    "ac.uk", "app", "at", "au", "be", "biz", "ca", "ch", "cn", "co", "co.jp", "co.uk", "com", "com.au", "com.br",
    "com.cn", "de", "dev", "edu", "es", "eu", "fr", "gov", "gov.uk", "in", "info", "io", "it", "jp", "me", "mil",
    "net", "nl", "online", "org", "org.uk", "ru", "uk", "us", "xyz",
];

/// An expression, or why there is none and the line.
pub type Found<'a> = Result<String, (SkipReason, &'a [u8])>;

/// Reads every line; `each` gets the line number from 1, and the expression or why there is none.
pub fn read(mut list: impl Read, may_be_public: bool, each: &mut dyn FnMut(u64, Found<'_>)) -> io::Result<()> {
    let mut chunk = vec![0u8; super::CHUNK_OCTETS];
    let mut count = 0;
    each_line(&mut list, &mut chunk, &mut |number, line| match line {
        Err(beginning) => each(number, Err(("a line that is too long", beginning))),
        Ok(line) => {
            let text = line.trim_ascii();
            if text.is_empty() || text.starts_with(b"#") || text.starts_with(b"!") {
                return;
            }
            let read = expression(text).and_then(|source| {
                count += 1;
                match () {
                    () if count > MAX_COUNT => Err("one of more expressions than a list may have"),
                    () if !may_be_public && fits_strangers(&source) => Err(EVERYBODYS),
                    () => Ok(source),
                }
            });
            each(number, read.map_err(|why| (why, text)));
        }
    })
}

/// One pattern over whole names that fits what any of the expressions is found in: one automaton of all of them grows with
/// their sum, one that tells them apart would grow with their product.
pub fn any_of(expressions: &[String]) -> String {
    format!("^(?:.*(?:{}).*)$", expressions.join("|"))
}

/// Whether an expression is found in names of anybody: in all of a row, below any suffix.
fn fits_strangers(expression: &str) -> bool {
    let Ok(patterns) = Patterns::build(vec![(any_of(&[expression.to_string()]), AppMask::of(0))]) else {
        return false;
    };
    let fits =
        |name: &str| FoldedName::from_rule_text(name.as_bytes()).is_ok_and(|name| !patterns.find(&name).0.is_empty());
    let below = |suffix: &&str| STRANGERS.iter().any(|row| row.iter().all(|label| fits(&format!("{label}.{suffix}"))));
    SUFFIXES.iter().any(below)
}

/// Whether an expression is found in a name.
pub fn fits(expression: &str, name: &[u8]) -> bool {
    let pattern = vec![(any_of(&[expression.to_string()]), AppMask::of(0))];
    let name = FoldedName::from_rule_text(name);
    name.is_ok_and(|name| Patterns::build(pattern).is_ok_and(|patterns| !patterns.find(&name).0.is_empty()))
}

/// An expression as it is written, in slashes or not.
fn expression(text: &[u8]) -> Result<String, SkipReason> {
    let text = text.strip_prefix(b"/").and_then(|text| text.strip_suffix(b"/")).unwrap_or(text);
    if text.len() > MAX_OCTETS || !text.iter().all(u8::is_ascii_graphic) {
        return Err("no expression of at most 200 printable characters");
    }
    let text = String::from_utf8_lossy(text).into_owned();
    // By itself first: in brackets of others, half of one might pass.
    if parse_error(&text).is_some() || parse_error(&any_of(std::slice::from_ref(&text))).is_some() {
        return Err("a regular expression that cannot be read");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_found_as_they_are_written() {
        let text = "# why\n^ads[0-9]+[.]example$\ntracker\n/^pixel[.]/\n(\n\nwith space\n.\n^(?:a|b)|c$\n[a-z]\n";
        let mut found = Vec::new();
        let mut each = |number, line: Found<'_>| found.push((number, line.map_err(|(why, _)| why)));
        read(io::Cursor::new(text), false, &mut each).unwrap();
        assert_eq!(
            found,
            [
                (2, Ok("^ads[0-9]+[.]example$".to_string())),
                (3, Ok("tracker".to_string())),
                (4, Ok("^pixel[.]".to_string())),
                (5, Err("a regular expression that cannot be read")),
                (7, Err("no expression of at most 200 printable characters")),
                (8, Err(EVERYBODYS)),
                (9, Ok("^(?:a|b)|c$".to_string())),
                (10, Err(EVERYBODYS)),
            ]
        );
        for (expression, name, is_found) in [
            ("^ads|tracker$", "ads.example", true),
            ("^ads|tracker$", "my.tracker", true),
            ("^ads|tracker$", "tracker.example", false),
            ("^exact[.]example$", "exact.example", true),
            ("^exact[.]example$", "www.exact.example", false),
            ("pixel", "www.pixel.example", true),
        ] {
            assert_eq!(fits(expression, name.as_bytes()), is_found, "{expression} {name}");
        }
    }

    #[test]
    fn what_fits_strangers_is_everybodys() {
        for wide in [
            ".",
            "[a-z]",
            r"\.com$",
            r"^[^.]+\.com$",
            r"^[a-z]+\.org$",
            r"\.co\.uk$",
            r"^[a-z0-9-]+\.de$",
            "(com|net)$",
            r"[.]\w+[.]fr$",
            "a|^.*$",
            r"^[a-z0-9-]+\.[a-z0-9.-]+\.eu$",
        ] {
            assert!(fits_strangers(wide), "{wide}");
        }
        for own in [
            "tracker",
            r"^ads[0-9]+\.",
            r"\.example$",
            r"^[a-z]{12}\.com$",
            r"^ad[sx]?\.[^.]+\.com$",
            "plumber",
            "x[0-9]",
            r"-[0-9]\.",
            "tiktok|byte(dance|oversea)",
            "www",
        ] {
            assert!(!fits_strangers(own), "{own}");
        }
    }

    #[test]
    fn a_long_list_is_one_automaton_of_moderate_size() {
        let many: Vec<String> = (0..300).map(|at| format!("(^|[.])ads{at}x[0-9]*[.]")).collect();
        let patterns = Patterns::build(vec![(any_of(&many), AppMask::of(0))]).map_err(|(_, why)| why).unwrap();
        let fits = |name: &str| !patterns.find(&FoldedName::from_rule_text(name.as_bytes()).unwrap()).0.is_empty();
        assert!(fits("www.ads7x12.example") && !fits("www.ads7y.example"));
    }
}
