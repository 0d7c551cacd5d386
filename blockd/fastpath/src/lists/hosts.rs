//! The format of /etc/hosts.

use super::{Line, Means, Names, is_address, words};

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

pub(super) fn is_one(line: &[u8]) -> bool {
    let mut words = words(line);
    words.next().is_some_and(is_address) && words.next().is_some()
}

pub(super) fn read(line: &[u8], last: &mut LastAddress, names: &mut Names<'_>, each: &mut dyn FnMut(Line<'_>)) {
    let mut words = words(line);
    let Some(first) = words.next() else { return };
    if first != last.0 {
        if !is_address(first) {
            each(Err(("not an address", line)));
            return;
        }
        last.0 = first.to_vec();
    }
    let mut found = false;
    for word in words {
        found = true;
        if OWN_HOSTS.contains(&word) {
            each(Err(("the machine's own name", word)));
        } else {
            each(names.line(Means::Alone, word));
        }
    }
    if !found {
        each(Err(("no name", line)));
    }
}
