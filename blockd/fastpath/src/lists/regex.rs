//! Regular expressions, one a line, as filters for DNS have them: found anywhere in a name unless they are anchored.

use super::{SkipReason, each_line};
use crate::patterns::parse_error;
use std::io::{self, Read};

/// Longest expression, octets.
const MAX_OCTETS: usize = 200;
/// Most expressions of a list: each makes the automaton of all larger.
const MAX_COUNT: usize = 1_000;

/// An expression, or why there is none and the line.
pub type Found<'a> = Result<String, (SkipReason, &'a [u8])>;

/// Reads every line; `each` gets the line number from 1, and the expression over the whole name or why there is none.
pub fn read(mut list: impl Read, each: &mut dyn FnMut(u64, Found<'_>)) -> io::Result<()> {
    let mut chunk = vec![0u8; super::CHUNK_OCTETS];
    let mut count = 0;
    each_line(&mut list, &mut chunk, &mut |number, line| match line {
        Err(beginning) => each(number, Err(("a line that is too long", beginning))),
        Ok(line) => {
            let text = line.trim_ascii();
            if text.is_empty() || text.starts_with(b"#") || text.starts_with(b"!") {
                return;
            }
            let read = whole(text).and_then(|source| {
                count += 1;
                if count > MAX_COUNT { Err("one of more expressions than a list may have") } else { Ok(source) }
            });
            each(number, read.map_err(|why| (why, text)));
        }
    })
}

/// The expression over the whole name that finds what one finds anywhere in it.
fn whole(text: &[u8]) -> Result<String, SkipReason> {
    let text = text.strip_prefix(b"/").and_then(|text| text.strip_suffix(b"/")).unwrap_or(text);
    if text.len() > MAX_OCTETS || !text.iter().all(|octet| octet.is_ascii_graphic()) {
        return Err("no expression of at most 200 printable characters");
    }
    let text = String::from_utf8_lossy(text);
    let source = match (text.starts_with('^'), text.ends_with('$')) {
        (true, true) => text.to_string(),
        _ => format!("^(?:.*(?:{text}).*)$"),
    };
    if parse_error(&text).is_some() || parse_error(&source).is_some() {
        return Err("a regular expression that cannot be read");
    }
    Ok(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_of_whole_names() {
        let text = "# why\n^ads[0-9]+[.]example$\ntracker\n/^pixel[.]/\n(\n\nwith space\n";
        let mut found = Vec::new();
        read(io::Cursor::new(text), &mut |number, line| found.push((number, line.map_err(|(why, _)| why)))).unwrap();
        assert_eq!(
            found,
            [
                (2, Ok("^ads[0-9]+[.]example$".to_string())),
                (3, Ok("^(?:.*(?:tracker).*)$".to_string())),
                (4, Ok("^(?:.*(?:^pixel[.]).*)$".to_string())),
                (5, Err("a regular expression that cannot be read")),
                (7, Err("no expression of at most 200 printable characters")),
            ]
        );
    }
}
