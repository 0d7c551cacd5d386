//! Who is asking. Only the address fills it now; MAC, conveyed address and DoH id come from listed forwarders later.

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
}

impl From<SocketAddr> for Identity {
    fn from(peer: SocketAddr) -> Self {
        Self { address: peer.ip().into(), port: peer.port() }
    }
}

impl Identity {
    /// What limits are counted by: an IPv4 address, or a /64, since a host picks freely inside one.
    pub fn bucket(&self) -> u64 {
        match self.address {
            Address::V4(bits) => u64::from(bits),
            // The bit keeps the two families apart; 2000::/3 never has the top bit of the upper half set.
            Address::V6(bits) => ((bits >> 64) as u64) | (1 << 63),
        }
    }
}
