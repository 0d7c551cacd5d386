//! Plain names, one a line.

use super::{Line, Means, Names, words};

pub(super) fn read(line: &[u8], names: &mut Names<'_>, each: &mut dyn FnMut(Line<'_>)) {
    let mut words = words(line);
    let Some(first) = words.next() else { return };
    if words.next().is_some() {
        each(Err(("more than one word", line)));
    } else {
        // Lists that write `*.name` mean the site, its own name too.
        each(names.line(Means::Below, first.strip_prefix(b"*.").unwrap_or(first)));
    }
}
