//! Plain names, one a line.

use super::{Line, Means, Names, words};

pub(super) fn read(line: &[u8], names: &mut Names<'_>, each: &mut dyn FnMut(Line<'_>)) {
    let mut words = words(line);
    let Some(first) = words.next() else { return };
    if words.next().is_some() {
        each(Err(("more than one word", line)));
    } else {
        // Lists that write `*.name` or, as Squid has it, `.name` mean the site, its own name too.
        let name = first.strip_prefix(b"*.").or_else(|| first.strip_prefix(b".")).unwrap_or(first);
        each(names.line(Means::BLOCK, name));
    }
}
