//! The format of /etc/hosts.

use super::{Effect, Line, Means, Names, Scope, SkipReason, is_ip, words};

/// What a line says of each of its names.
const ALONE: Means = Means { effect: Effect::Block, scope: Scope::Alone };

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

/// The last address: nearly every line has that of the line before.
#[derive(Default)]
pub(super) struct LastAddress(Vec<u8>);

/// Whether a line may begin with a word.
pub(super) fn begins_line(word: &[u8]) -> bool {
    std::str::from_utf8(word).is_ok_and(is_ip)
}

/// Why a name is skipped that a line has for the machine itself.
pub(super) fn own_name(word: &[u8]) -> Option<SkipReason> {
    OWN_HOSTS.contains(&word).then_some("the machine's own name")
}

pub(super) fn is_one(line: &[u8]) -> bool {
    let mut words = words(line);
    words.next().is_some_and(begins_line) && words.next().is_some()
}

pub(super) fn read(line: &[u8], last: &mut LastAddress, names: &mut Names<'_>, each: &mut dyn FnMut(Line<'_>)) {
    let mut words = words(line);
    let Some(first) = words.next() else { return };
    if first != last.0 {
        if !begins_line(first) {
            each(Err(("not an address", line)));
            return;
        }
        last.0 = first.to_vec();
    }
    let mut found = false;
    for word in words {
        found = true;
        each(match own_name(word) {
            Some(why) => Err((why, word)),
            None => names.line(ALONE, word),
        });
    }
    if !found {
        each(Err(("no name", line)));
    }
}
