//! Regular expressions, one a line, as filters for DNS have them: found anywhere in a name unless they are anchored.

use super::{SkipReason, each_line, is_address};
use crate::decide::AppMask;
use crate::patterns::{Patterns, parse_error};
use crate::wire::{FoldedName, NameError};
use std::io::{self, Read};

/// Longest expression, octets.
const MAX_OCTETS: usize = 200;
/// Most expressions of a list: each makes the automaton of all larger.
const MAX_COUNT: usize = 1_000;
/// Why an expression is refused, as a public suffix is.
pub const EVERYBODYS: SkipReason = "an expression that fits everybody's names";
/// Why an expression is skipped with which the automaton of its list cannot be built.
const TOO_LARGE: SkipReason = "an expression that makes the automaton of its list too large";
/// So many of those are looked for, each by a dozen builds; with more of them, what is left of the list is skipped.
const MOST_TOO_LARGE: usize = 4;
/// Labels as the world has them, by kind: of letters, with digits and hyphens, of a web server, of several. What fits half
/// of a kind below any public suffix fits whatever is there.
const STRANGERS: [&[&str]; 5] = [
    &[
        "qz",
        "bank",
        "garden",
        "plumber",
        "riverbank",
        "onlineshop",
        "weather",
        "news",
        "kitchen",
        "schooldistrict",
        "abc",
        "x",
    ],
    &["h-7", "4you", "x2-garden-9", "0815", "web-24", "my-shop", "route66", "a-b-c", "e-bank-1", "7days"],
    &["www.qz", "www.bank", "www.garden", "www.plumber", "www.riverbank", "www.my-shop", "www.4you", "www.weather"],
    &["mail.garden", "a.b.plumber", "cdn.riverbank", "w3.weather", "img.bank", "static.news", "login.x", "api.my-shop"],
    &["_dmarc.qz", "_ldap._tcp.bank", "_sip._udp.garden", "_acme-challenge.plumber"],
];
/// Labels below a name of ours, and none.
const OWN: [&str; 6] = ["", "www.", "mail.", "qz.", "vpn-1.", "a.b."];
/// Top-level domains of three letters and more below which many names are; those of two letters are tried all.
const TOP: [&str; 44] = [
    "app",
    "arpa",
    "art",
    "biz",
    "blog",
    "cloud",
    "club",
    "com",
    "dev",
    "edu",
    "email",
    "eus",
    "fun",
    "gov",
    "group",
    "icu",
    "info",
    "int",
    "life",
    "live",
    "media",
    "mil",
    "mobi",
    "name",
    "net",
    "network",
    "news",
    "online",
    "org",
    "page",
    "pro",
    "shop",
    "site",
    "social",
    "solutions",
    "space",
    "store",
    "tech",
    "today",
    "top",
    "website",
    "work",
    "world",
    "xyz",
];
/// What registries put before a country's two letters.
const BEFORE: [&str; 13] =
    ["", "ac.", "co.", "com.", "edu.", "go.", "gob.", "gov.", "mil.", "ne.", "net.", "nhs.", "org."];
/// Suffixes that are tried with each expression in a turn, of those below which any of them fits; and turns: one that fits
/// everything must not hide another. What is left after them is refused as well.
const MOST: usize = 64;
const TURNS: usize = 32;

/// An expression, or why there is none and the line.
pub type Found<'a> = Result<String, (SkipReason, &'a [u8])>;

/// Reads every line; `each` gets the line number from 1, and the expression or why there is none. Lines that are no
/// expressions come first.
pub fn read(mut list: impl Read, may_be_public: bool, each: &mut dyn FnMut(u64, Found<'_>)) -> io::Result<()> {
    let mut chunk = vec![0u8; super::CHUNK_OCTETS];
    let mut kept: Vec<(u64, String)> = Vec::new();
    each_line(&mut list, &mut chunk, &mut |number, line| match line {
        Err(beginning) => each(number, Err(("a line that is too long", beginning))),
        Ok(line) => {
            let text = line.trim_ascii();
            if text.is_empty() || text.starts_with(b"#") || text.starts_with(b"!") {
                return;
            }
            if is_address(text) {
                return each(number, Err((NameError::Address.text(), text)));
            }
            match expression(text) {
                Ok(_) if kept.len() >= MAX_COUNT => {
                    each(number, Err(("one of more expressions than a list may have", text)));
                }
                Ok(source) => kept.push((number, source)),
                Err(why) => each(number, Err((why, text))),
            }
        }
    })?;
    for (number, source) in take_too_large(&mut kept) {
        each(number, Err((TOO_LARGE, source.as_bytes())));
    }
    let mut everybodys: Vec<usize> = Vec::new();
    for turn in 0..if may_be_public { 0 } else { TURNS } {
        let left = || kept.iter().enumerate().filter(|(at, _)| !everybodys.contains(at));
        let sources: Vec<&str> = left().map(|(_, (_, source))| source.as_str()).collect();
        let suffixes = suffixes_of_strangers(&sources, MOST);
        if suffixes.is_empty() {
            break;
        }
        let wide: Vec<usize> =
            left().filter(|(_, (_, source))| fits_strangers(source, &suffixes)).map(|(at, _)| at).collect();
        if wide.is_empty() {
            // Together they may fit half of what is below a suffix, and none of them alone.
            break;
        }
        everybodys.extend(if turn + 1 == TURNS { (0..kept.len()).collect() } else { wide });
    }
    for (at, (number, source)) in kept.into_iter().enumerate() {
        if everybodys.contains(&at) {
            each(number, Err((EVERYBODYS, source.as_bytes())));
        } else {
            each(number, Ok(source));
        }
    }
    Ok(())
}

/// Takes out the expressions with which the automaton of all cannot be built, so that the others are in force.
fn take_too_large(kept: &mut Vec<(u64, String)>) -> Vec<(u64, String)> {
    let (mut taken, mut fits) = (Vec::new(), 0);
    let is_built = |some: &[(u64, String)]| {
        let sources: Vec<&str> = some.iter().map(|(_, source)| source.as_str()).collect();
        sources.is_empty() || automaton(&sources.join("|")).is_some()
    };
    while !is_built(kept) {
        if taken.len() == MOST_TOO_LARGE {
            taken.append(kept);
            break;
        }
        let mut fails = kept.len();
        while fits + 1 < fails {
            let middle = fits + (fails - fits) / 2;
            if is_built(&kept[..middle]) {
                fits = middle;
            } else {
                fails = middle;
            }
        }
        taken.push(kept.remove(fits));
    }
    taken
}

/// One pattern over whole names that fits what any of the expressions is found in: one automaton of all of them grows with
/// their sum, one that tells them apart would grow with their product.
pub fn any_of(expressions: &[String]) -> String {
    format!("^(?:.*(?:{}).*)$", expressions.join("|"))
}

/// The public suffixes below which any of the expressions fits names of anybody.
fn suffixes_of_strangers(sources: &[&str], most: usize) -> Vec<String> {
    if sources.is_empty() {
        return Vec::new();
    }
    let Some(all) = automaton(&sources.join("|")) else { return Vec::new() };
    let letters = || (b'a'..=b'z').map(char::from);
    let countries = letters().flat_map(|one| letters().map(move |two| format!("{one}{two}")));
    let below = countries.flat_map(|country| BEFORE.iter().map(move |before| format!("{before}{country}")));
    let named = sources.iter().flat_map(|source| suffixes_in(source));
    let every = TOP.iter().map(|top| (*top).to_string()).chain(below).chain(named);
    every.filter(|suffix| is_wide_below(&all, suffix)).take(most).collect()
}

/// Whether an expression is found in names of anybody below one of these suffixes.
fn fits_strangers(expression: &str, suffixes: &[String]) -> bool {
    automaton(expression).is_some_and(|own| suffixes.iter().any(|suffix| is_wide_below(&own, suffix)))
}

fn is_wide_below(patterns: &Patterns, suffix: &str) -> bool {
    STRANGERS.iter().any(|kind| {
        let fits = |label: &&&str| has(patterns, &format!("{label}.{suffix}"));
        2 * kind.iter().filter(fits).count() >= kind.len()
    })
}

/// Names that an expression writes out: runs of what names are made of.
fn words(expression: &str) -> Vec<String> {
    let plain = expression.replace("[.]", ".").replace("\\.", ".").to_ascii_lowercase();
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    plain
        .split(|c: char| !is_of_name(c))
        .map(|word| word.trim_matches('.').to_string())
        .filter(|w| !w.is_empty())
        .collect()
}

/// The public suffixes among them, or at their ends.
fn suffixes_in(expression: &str) -> Vec<String> {
    let is_public = |end: &str| {
        psl::suffix(end.as_bytes()).is_some_and(|suffix| {
            suffix.is_known() && suffix.typ() == Some(psl::Type::Icann) && suffix.as_bytes().len() == end.len()
        })
    };
    let words = words(expression);
    let ends = words.iter().flat_map(|word| {
        let dots = word.match_indices('.').map(|(at, _)| at + 1);
        std::iter::once(0).chain(dots).filter_map(|at| word.get(at..)).map(str::to_string).collect::<Vec<_>>()
    });
    // A word that is found anywhere (`analytics`) is about names with that word, and not about all below a suffix.
    let is_at_end = |end: &str| automaton(expression).is_some_and(|own| !has(&own, &format!("{end}.plumber.example")));
    ends.filter(|end| is_public(end) && is_at_end(end)).collect()
}

fn automaton(expression: &str) -> Option<Patterns> {
    Patterns::build(vec![(any_of(&[expression.to_string()]), AppMask::of(0))]).ok()
}

fn has(patterns: &Patterns, name: &str) -> bool {
    FoldedName::from_rule_text(name.as_bytes()).is_ok_and(|name| !patterns.find(&name).0.is_empty())
}

/// Whether an expression is found in a name of ours, or in one below it.
pub fn fits_ours(expression: &str, name: &str) -> bool {
    automaton(expression).is_some_and(|own| {
        let below = words(expression).into_iter().filter(|word| word.ends_with(&format!(".{name}")));
        below.chain(OWN.iter().map(|label| format!("{label}{name}"))).any(|one| has(&own, &one))
    })
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
        let text = "# why\n^ads[0-9]+[.]example$\ntracker\n/^pixel[.]/\n(\n\nwith space\n.\n^(?:a|b)|cz9$\n[a-z]\n";
        let mut found = Vec::new();
        let mut each = |number, line: Found<'_>| found.push((number, line.map_err(|(why, _)| why)));
        read(io::Cursor::new(text), false, &mut each).unwrap();
        found.sort_by_key(|(number, _)| *number);
        assert_eq!(
            found,
            [
                (2, Ok("^ads[0-9]+[.]example$".to_string())),
                (3, Ok("tracker".to_string())),
                (4, Ok("^pixel[.]".to_string())),
                (5, Err("a regular expression that cannot be read")),
                (7, Err("no expression of at most 200 printable characters")),
                (8, Err(EVERYBODYS)),
                (9, Ok("^(?:a|b)|cz9$".to_string())),
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
            assert_eq!(has(&automaton(expression).unwrap(), name), is_found, "{expression} {name}");
        }
    }

    #[test]
    fn what_fits_strangers_is_everybodys() {
        let is_wide = |source: &str| fits_strangers(source, &suffixes_of_strangers(&["tracker", source], 1));
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
            r"\.se$",
            r"\.pl$",
            r"\.nhs\.uk$",
            r"\.ac\.jp$",
            r"\.(se|no|dk)$",
            r"\.arpa$",
            r"^[a-z]{3,}\.com$",
            r"^[^.]+\.[^.]+\.com$",
            r"^[^.]*[aeiou][^.]*\.com$",
            r"^www\.",
            r"^www\.[^.]+\.com$",
            "www",
            r"\.london$",
            r"\.gouv\.fr$",
            "[.]police[.]uk$",
            r"\.zip$",
            "^_",
            r"\.(bank|london)$",
        ] {
            assert!(is_wide(wide), "{wide}");
        }
        let own = [
            "tracker",
            r"^ads[0-9]+\.",
            r"\.example$",
            r"^[a-z]{12}\.com$",
            r"^ad[sx]?\.[^.]+\.com$",
            "plumber",
            "x[0-9]",
            r"-[0-9]\.",
            "tiktok|byte(dance|oversea)",
            r"^mail\.",
            "analytics",
            r"^[a-z0-9]{32}\.",
        ];
        assert!(suffixes_of_strangers(&own, 1).is_empty());
    }

    #[test]
    fn one_that_is_everybodys_hides_no_other() {
        let text = "\\.[a-c][a-z]$\n\\.se$\ntracker\n.\n\\.no$\n";
        let mut kept = Vec::new();
        let mut each = |number, line: Found<'_>| kept.extend(line.is_ok().then_some(number));
        read(io::Cursor::new(text), false, &mut each).unwrap();
        assert_eq!(kept, [3]);
    }

    #[test]
    fn what_is_too_large_costs_no_other() {
        let text =
            "^good1[.]example$\na{1000000}\n^good2[.]example$\n(a{1000}){1000}\n^.*a.{24}$\n^good3[.]example$\n.\n";
        let mut found = Vec::new();
        read(io::Cursor::new(text), false, &mut |number, line| {
            found.push((number, line.map_err(|(why, _)| why).err()))
        })
        .unwrap();
        found.sort_by_key(|(number, _)| *number);
        let large = Some(TOO_LARGE);
        assert_eq!(found, [(1, None), (2, large), (3, None), (4, large), (5, large), (6, None), (7, Some(EVERYBODYS))]);
    }

    #[test]
    fn names_of_ours_are_fitted_with_what_is_below_them() {
        for (expression, is_ours) in [
            (r"^[^.]+\.dept\.example$", true),
            (r"^www\.dept\.example$", true),
            ("^dept", true),
            (r"^x\.dept\.", false),
            (r"^intranet\.dept\.example$", true),
            (r"^(a|portal[.]dept[.]example)$", true),
        ] {
            assert_eq!(fits_ours(expression, "dept.example"), is_ours, "{expression}");
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
