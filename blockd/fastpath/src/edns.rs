//! Whether an upstream server understands EDNS, learned from what it answers and does not answer (RFC 6891 6.2.2, 7).

use crate::inspect::Problem;
use crate::wire::rcode;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Milliseconds for which a server without EDNS is asked without it; then it is tried again.
const RETRY_MS: u64 = 15 * 60_000;
/// Queries with OPT in a row that are not answered before one goes without.
const SILENT_TRIES: u32 = 2;
/// How often in a row such a one must be answered: packet loss looks the same once, and must cost no server its EDNS.
const SILENT_PROOFS: u32 = 2;

/// How a query goes as to EDNS, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opt {
    /// With OPT.
    With,
    /// Without: this server is known to have no EDNS.
    Without,
    /// Without: queries with OPT are not answered.
    AfterSilence,
    /// Without: the server refused this very query with OPT.
    AfterRefusal,
}

/// What is known of one server.
#[derive(Debug, Default)]
pub struct Edns {
    /// Until when it is asked without OPT, milliseconds.
    plain_until_ms: AtomicU64,
    /// Queries with OPT that were not answered since the last answer to one, or to one without.
    unanswered: AtomicU32,
    /// Queries that were answered without OPT, and not with it, since the last answer to one with OPT.
    proofs: AtomicU32,
}

impl Edns {
    /// How the next query goes.
    pub fn choose(&self, now_ms: u64) -> Opt {
        if self.is_plain(now_ms) {
            Opt::Without
        } else if self.unanswered.load(Relaxed) >= SILENT_TRIES {
            Opt::AfterSilence
        } else {
            Opt::With
        }
    }

    /// Whether the server is known to have no EDNS.
    pub fn is_plain(&self, now_ms: u64) -> bool {
        now_ms < self.plain_until_ms.load(Relaxed)
    }

    /// Whether an answer to a query means that the same may be answered without OPT.
    pub fn is_refusal<T>(opt: Opt, result: &Result<T, Problem>) -> bool {
        const REFUSALS: [u16; 3] = [rcode::FORMERR, rcode::NOTIMP, rcode::BADVERS];
        opt == Opt::With && matches!(result, Err(Problem::Failed(code)) if REFUSALS.contains(code))
    }

    /// The server gave an answer, and no failure.
    pub fn answered(&self, opt: Opt, now_ms: u64) {
        match opt {
            Opt::With => {
                // One load instead of stores: servers with EDNS, which is nearly all, change nothing.
                if self.unanswered.load(Relaxed) | self.proofs.load(Relaxed) != 0 {
                    self.unanswered.store(0, Relaxed);
                    self.proofs.store(0, Relaxed);
                }
            }
            Opt::Without => {}
            Opt::AfterRefusal => self.plain_until_ms.store(now_ms + RETRY_MS, Relaxed),
            Opt::AfterSilence => {
                // Of those that were under way together one counts.
                let before = self.unanswered.swap(0, Relaxed);
                if before >= SILENT_TRIES && self.proofs.fetch_add(1, Relaxed) + 1 >= SILENT_PROOFS {
                    self.proofs.store(SILENT_PROOFS - 1, Relaxed);
                    self.plain_until_ms.store(now_ms + RETRY_MS, Relaxed);
                }
            }
        }
    }

    /// Nothing came in time.
    pub fn timed_out(&self, opt: Opt) {
        if opt == Opt::With {
            self.unanswered.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000;

    fn fail(edns: &Edns, times: u32) {
        (0..times).for_each(|_| edns.timed_out(Opt::With));
    }

    #[test]
    fn a_refusal_that_is_answered_without_opt_is_remembered_for_a_while() {
        let edns = Edns::default();
        edns.answered(Opt::AfterRefusal, NOW);
        assert_eq!(edns.choose(NOW + RETRY_MS - 1), Opt::Without);
        assert_eq!(edns.choose(NOW + RETRY_MS), Opt::With);
    }

    #[test]
    fn silence_must_repeat_itself() {
        let edns = Edns::default();
        fail(&edns, 1);
        assert_eq!(edns.choose(NOW), Opt::With);
        fail(&edns, 1);
        assert_eq!(edns.choose(NOW), Opt::AfterSilence);
        edns.answered(Opt::AfterSilence, NOW);
        edns.answered(Opt::AfterSilence, NOW);
        assert_eq!(edns.choose(NOW), Opt::With, "two that were under way together are one proof");
        fail(&edns, 2);
        edns.answered(Opt::AfterSilence, NOW);
        assert_eq!(edns.choose(NOW), Opt::Without);
        fail(&edns, 2);
        edns.answered(Opt::AfterSilence, NOW + RETRY_MS);
        assert!(edns.is_plain(NOW + RETRY_MS + 1), "one round is enough the next time");
    }

    #[test]
    fn an_answer_with_opt_clears_what_was_suspected() {
        let edns = Edns::default();
        for _ in 0..10 {
            fail(&edns, 2);
            edns.answered(Opt::AfterSilence, NOW);
            edns.answered(Opt::With, NOW);
        }
        assert!(!edns.is_plain(NOW));
        fail(&edns, 5);
        edns.answered(Opt::With, NOW);
        assert_eq!(edns.choose(NOW), Opt::With, "late is not lost");
    }

    #[test]
    fn only_some_failures_are_refusals() {
        let failed = |code| Err::<(), _>(Problem::Failed(code));
        for code in [rcode::FORMERR, rcode::NOTIMP, rcode::BADVERS] {
            assert!(Edns::is_refusal(Opt::With, &failed(code)));
            assert!(!Edns::is_refusal(Opt::AfterRefusal, &failed(code)));
        }
        for code in [rcode::SERVFAIL, rcode::REFUSED] {
            assert!(!Edns::is_refusal(Opt::With, &failed(code)));
        }
    }
}
