//! The part of blockd that meets every packet: bytes in, verdict and bytes out.
//!
//! It knows no config key, no path but the snapshot's, no app's name. The order of one query is in [`resolve`].

pub mod admission;
pub mod busy;
pub mod cache;
pub mod chain;
pub mod counters;
pub mod decide;
pub mod domains;
pub mod edns;
pub mod endpoint;
pub mod exchange;
pub mod identity;
pub mod inspect;
pub mod journal;
mod learn;
pub mod lists;
pub mod nat64;
pub mod patterns;
pub mod pending;
pub mod prefixes;
pub mod resolve;
pub mod serve;
pub mod slots;
pub mod snapshot;
pub mod sockets;
pub mod wire;

#[cfg(feature = "python")]
mod python;

/// Takes a lock. A panic under one ends the process, so there is no poisoned state to meet.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
