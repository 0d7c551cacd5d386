//! Where an upstream server is reached.

use crate::sockets::interface_index;
use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// UDP, and TCP where a datagram is not enough.
    #[default]
    Dns,
}

impl Transport {
    /// Its word in the seam and in snapshots.
    pub fn word(self) -> &'static str {
        match self {
            Self::Dns => "dns",
        }
    }

    /// The transport of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        (word == Self::Dns.word()).then_some(Self::Dns)
    }
}

/// A server of a route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// How it is spoken to.
    pub transport: Transport,
    /// Its address.
    pub address: IpAddr,
    /// The interface of a link-local address, by name or number (RFC 4007 11); empty for any other.
    pub scope: Box<str>,
    /// Its port.
    pub port: u16,
    /// The name that its certificate must have; empty for a transport without certificates.
    pub name: Box<str>,
}

impl Endpoint {
    /// The address to send to now; none when there is no such interface.
    ///
    /// The interface is looked up each time, so that one that is removed and made again is found by its new number.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        match self.address {
            IpAddr::V6(address) if !self.scope.is_empty() => {
                Some(SocketAddrV6::new(address, self.port, 0, interface_index(&self.scope)?).into())
            }
            address => Some((address, self.port).into()),
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        let (ip, port) = (address.ip(), address.port());
        Self { transport: Transport::Dns, address: ip, scope: "".into(), port, name: "".into() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transport, address, scope, port, name } = self;
        write!(out, "{} {address}%{scope} {port} {name}", transport.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_an_interface_by_name_or_number() {
        let mut endpoint = Endpoint::from(SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 53)));
        assert_eq!(endpoint.socket_address(), Some("[::1]:53".parse().unwrap()));
        for (scope, wanted) in [("lo", Some("[::1%1]:53")), ("1", Some("[::1%1]:53")), ("none0", None), ("99999", None)]
        {
            endpoint.scope = scope.into();
            assert_eq!(endpoint.socket_address(), wanted.map(|text| text.parse().unwrap()), "{scope}");
        }
    }
}
