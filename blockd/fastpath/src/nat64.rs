//! IPv4 addresses inside IPv6 addresses: an app's IPv4 networks are recognised in them.

use crate::identity::Address;
use arc_swap::ArcSwap;

/// The prefix lengths of RFC 6052 2.2.
pub const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];
/// 64:ff9b::/96, from its first bit.
const WELL_KNOWN: u128 = 0x0064_FF9B << 96;
/// 64:ff9b:1::/48 (RFC 8215), by its 48 bits.
const LOCAL_USE: u128 = 0x0064_FF9B_0001;

/// A prefix by which a translator writes IPv4 addresses as IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nat64Prefix {
    bits: u128,
    length: u8,
}

impl Nat64Prefix {
    /// Of a network; none where it has bits behind its length, or a length that RFC 6052 does not know.
    pub fn new(bits: u128, length: u8) -> Option<Self> {
        let is_prefix = LENGTHS.contains(&length) && bits << length == 0;
        is_prefix.then_some(Self { bits, length })
    }

    /// Its bits and length.
    pub fn parts(self) -> (u128, u8) {
        (self.bits, self.length)
    }

    /// The IPv4 address inside one of its addresses.
    fn ipv4_in(self, address: u128) -> Option<u32> {
        ((address ^ self.bits) >> (128 - self.length) == 0).then(|| extract(address, self.length))
    }
}

/// The IPv4 address behind a prefix of a length that [`LENGTHS`] has, the octet at bits 64 to 71 left out (RFC 6052 2.3).
fn extract(address: u128, length: u8) -> u32 {
    if length == 96 {
        return address as u32;
    }
    let without_octet = (address >> 64 << 56) | (address & ((1 << 56) - 1));
    (without_octet >> (120 - 32 - length)) as u32
}

/// The prefixes that are looked through beside those that are the same everywhere.
#[derive(Debug, Default)]
pub struct Nat64 {
    /// Those of the config.
    pub configured: Vec<Nat64Prefix>,
    /// Those that upstream servers tell of (RFC 7050).
    pub learned: ArcSwap<Vec<Nat64Prefix>>,
}

impl Nat64 {
    /// Tries an address, and each IPv4 address that it may stand for: mapped, compatible, NAT64, 6to4.
    pub fn find_map<T>(&self, address: Address, mut of: impl FnMut(Address) -> Option<T>) -> Option<T> {
        let found = of(address);
        let (None, Address::V6(bits)) = (&found, address) else { return found };
        let mut of = |ipv4| of(Address::V4(ipv4));
        let high96 = bits >> 32;
        if high96 == 0xFFFF || high96 == 0 || high96 == WELL_KNOWN >> 32 {
            return of(bits as u32);
        }
        if bits >> 112 == 0x2002 {
            return of((bits >> 80) as u32);
        }
        if bits >> 80 == LOCAL_USE {
            // A network picks its own prefix of any length in here. In a wrong layout, 0.0.0.0/8 or a suffix shows.
            let has_zero_octet = bits >> 56 & 0xFF == 0;
            let layouts = LENGTHS.into_iter().filter(|&length| length >= 48);
            let is_possible = |&length: &u8| length == 96 || (has_zero_octet && bits & ((1 << (88 - length)) - 1) == 0);
            if let Some(found) = layouts.filter(is_possible).find_map(|length| of(extract(bits, length))) {
                return Some(found);
            }
        }
        let learned = self.learned.load();
        self.configured.iter().chain(learned.iter()).find_map(|prefix| prefix.ipv4_in(bits).and_then(&mut of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn forms(nat64: &Nat64, text: &str) -> Vec<String> {
        let mut seen = Vec::new();
        let address = Address::V6(text.parse::<Ipv6Addr>().unwrap().to_bits());
        nat64.find_map(address, |form| {
            if let Address::V4(bits) = form {
                seen.push(Ipv4Addr::from_bits(bits).to_string());
            }
            None::<()>
        });
        seen
    }

    fn prefix(text: &str) -> Option<Nat64Prefix> {
        let (address, length) = text.split_once('/').unwrap();
        Nat64Prefix::new(address.parse::<Ipv6Addr>().unwrap().to_bits(), length.parse().unwrap())
    }

    #[test]
    fn every_length_is_read_as_in_the_table_of_rfc_6052() {
        for (text, address) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ] {
            let configured = Nat64 { configured: vec![prefix(text).unwrap()], ..Nat64::default() };
            assert_eq!(forms(&configured, address), ["192.0.2.33"], "{text}");
            let learned = Nat64::default();
            assert!(forms(&learned, address).is_empty());
            learned.learned.store(vec![prefix(text).unwrap()].into());
            assert_eq!(forms(&learned, address), ["192.0.2.33"], "{text}");
            assert!(forms(&learned, "2001:db9:122:344::192.0.2.33").is_empty());
        }
    }

    #[test]
    fn what_is_the_same_everywhere_needs_no_prefix() {
        let none = Nat64::default();
        for (text, wanted) in [
            ("64:ff9b::71.18.0.1", "71.18.0.1"),
            ("64:ff9b:1::4712:1", "71.18.0.1"),
            ("64:ff9b:1:4712:0:100::", "71.18.0.1"),
            ("64:ff9b:1:fe47:12:1::", "71.18.0.1"),
            ("64:ff9b:1:2:47:1200:100::", "71.18.0.1"),
            ("2002:4712:1::1", "71.18.0.1"),
            ("::ffff:71.18.0.1", "71.18.0.1"),
        ] {
            assert!(forms(&none, text).contains(&wanted.to_owned()), "{text}: {:?}", forms(&none, text));
        }
        assert!(forms(&none, "64:ff9b:2::4712:1").is_empty());
        assert!(!forms(&none, "64:ff9b:1:4712:100:100::").contains(&"71.18.0.1".to_owned()), "no zero octet");
    }

    #[test]
    fn lengths_and_host_bits_are_checked() {
        assert!(
            ["2001:db8::/33", "2001:db8::/128", "2001:db8::1/96", "2001:db8::/0"]
                .map(prefix)
                .iter()
                .all(Option::is_none)
        );
    }
}
