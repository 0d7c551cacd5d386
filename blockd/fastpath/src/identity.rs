//! Who is asking: the address that a packet comes from, or what a listed forwarder conveys.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address in one 128-bit space: IPv4 and IPv4-mapped IPv6 are the same device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// IPv4.
    V4(u32),
    /// IPv6 that maps no IPv4 address.
    V6(u128),
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => Self::V4(v4.to_bits()),
                None => Self::V6(v6.to_bits()),
            },
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address {
            Address::V4(bits) => Self::V4(Ipv4Addr::from_bits(bits)),
            Address::V6(bits) => Self::V6(Ipv6Addr::from_bits(bits)),
        }
    }
}

/// The device that asks, as far as the packet and those we trust can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The transport's source address.
    pub address: Address,
    /// The transport's source port.
    pub port: u16,
    /// The MAC that a listed forwarder conveys, 0 where none does.
    pub mac: u64,
}

/// What a query says of who asked first (EDNS options, PROXY protocol): anybody may write it, and of listed forwarders it is
/// believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conveyed {
    /// dnsmasq's `add-mac`: EDNS option 65001, six octets.
    pub mac: Option<u64>,
    /// EDNS Client Subnet (RFC 7871); the host's bits are 0 where it is shorter.
    pub subnet: Option<Address>,
    /// The source of a PROXY header (version 2); `Some(None)` for one that speaks for itself.
    pub proxied: Option<Option<Address>>,
}

/// Kinds of what a forwarder may say.
pub const SAYS_MAC: u8 = 1;
/// EDNS Client Subnet.
pub const SAYS_SUBNET: u8 = 2;
/// PROXY headers.
pub const SAYS_PROXY: u8 = 4;

impl Conveyed {
    /// Whether there is anything.
    pub fn is_some(&self) -> bool {
        self.mac.is_some() || self.subnet.is_some() || self.proxied.is_some()
    }

    /// What of it a forwarder may say; what it may not, a client of its own has written. A PROXY header is the proxy's own
    /// word of this very query, and options behind it are the client's.
    pub fn of_kinds(self, kinds: u8) -> Self {
        let may = |kind: u8| kinds & kind != 0;
        let has_header = self.proxied.is_some();
        Self {
            mac: self.mac.filter(|_| may(SAYS_MAC) && !has_header),
            subnet: self.subnet.filter(|_| may(SAYS_SUBNET) && !has_header),
            proxied: self.proxied.filter(|_| may(SAYS_PROXY)),
        }
    }

    /// Who asks by this, of a forwarder that is believed.
    pub fn identity(&self, forwarder: Identity) -> Identity {
        let address = self.proxied.flatten().or(self.subnet).unwrap_or(forwarder.address);
        Identity { address, mac: self.mac.unwrap_or(0), ..forwarder }
    }
}

impl From<SocketAddr> for Identity {
    fn from(peer: SocketAddr) -> Self {
        Self { address: peer.ip().into(), port: peer.port(), mac: 0 }
    }
}

impl Identity {
    /// What limits are counted by: an IPv4 address, or a /64, since a host picks freely inside one.
    pub fn bucket(&self) -> u64 {
        if self.mac != 0 {
            // No IPv4 address is as high, and every IPv6 network has the bit above.
            return self.mac | (1 << 62);
        }
        match self.address {
            Address::V4(bits) => u64::from(bits),
            // The bit keeps the two families apart; 2000::/3 never has the top bit of the upper half set.
            Address::V6(bits) => ((bits >> 64) as u64) | (1 << 63),
        }
    }
}
