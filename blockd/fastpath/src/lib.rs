//! The part of blockd that meets every packet: bytes in, verdict and bytes out.
//!
//! It knows no config key, no path but the snapshot's, no app's name. The order of one query is in [`resolve`].

pub mod admission;
pub mod cache;
pub mod counters;
pub mod decide;
pub mod domains;
pub mod exchange;
pub mod identity;
pub mod inspect;
pub mod lists;
pub mod pending;
pub mod prefixes;
pub mod resolve;
pub mod serve;
pub mod snapshot;
pub mod sockets;
pub mod wire;

#[cfg(feature = "python")]
mod python;
