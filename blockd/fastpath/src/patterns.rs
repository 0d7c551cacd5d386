//! Patterns over whole names: all of them in one dense automaton, one step an octet whatever their number.

use crate::decide::AppMask;
use crate::wire::{FoldedName, MAX_NAME_OCTETS};
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

/// Largest automaton, octets: it is walked for every name that is not cached, and should stay in the caches.
const MAX_OCTETS: usize = 8 << 20;
/// What building it may take for a while, octets.
const MAX_BUILDING_OCTETS: usize = 64 << 20;

/// Patterns, their apps, and the automaton of all.
#[derive(Debug, Default)]
pub struct Patterns {
    sources: Vec<String>,
    apps: Vec<AppMask>,
    automaton: Option<dense::DFA<Vec<u32>>>,
}

impl Patterns {
    /// Builds the automaton; else the index of the pattern that cannot be read, or with which it grows too large.
    pub fn build(patterns: Vec<(String, AppMask)>) -> Result<Self, (usize, String)> {
        let (sources, apps): (Vec<_>, Vec<_>) = patterns.into_iter().unzip();
        if sources.is_empty() {
            return Ok(Self::default());
        }
        let error = match automaton_of(&sources) {
            Ok(automaton) => return Ok(Self { sources, apps, automaton: Some(automaton) }),
            Err(error) => error,
        };
        // The first with which it cannot be built: what fails goes on failing with more.
        let (mut fits, mut fails, mut error) = (0, sources.len(), error);
        while fits + 1 < fails {
            let middle = fits + (fails - fits) / 2;
            match automaton_of(&sources[..middle]) {
                Ok(_) => fits = middle,
                Err(smaller) => (fails, error) = (middle, smaller),
            }
        }
        let text = match parse_error(&sources[fails - 1]) {
            Some(text) => text,
            None if error.is_size_limit_exceeded() => {
                format!("with it the automaton of all patterns would take more than {} MiB", MAX_OCTETS >> 20)
            }
            None => error.to_string(),
        };
        Err((fails - 1, text))
    }

    /// The apps of the patterns that a name fits, and the first of these patterns.
    pub fn find(&self, name: &FoldedName) -> (AppMask, Option<usize>) {
        let (mut apps, mut first) = (AppMask::EMPTY, None);
        self.each_fitting(name, |pattern| {
            apps = apps.or(self.apps[pattern]);
            first = Some(first.map_or(pattern, |other: usize| other.min(pattern)));
        });
        (apps, first)
    }

    /// The first pattern of an app that a name fits.
    pub fn source_for(&self, name: &FoldedName, app: AppMask) -> Option<&str> {
        let mut first = None;
        self.each_fitting(name, |pattern| {
            if !self.apps[pattern].and(app).is_empty() {
                first = Some(first.map_or(pattern, |other: usize| other.min(pattern)));
            }
        });
        first.map(|pattern| self.sources[pattern].as_str())
    }

    fn each_fitting(&self, name: &FoldedName, mut each: impl FnMut(usize)) {
        let Some(automaton) = &self.automaton else { return };
        let mut text = [0u8; MAX_NAME_OCTETS];
        let length = write_text(name, &mut text);
        let start = Input::new(&text[..0]).anchored(Anchored::Yes);
        let Ok(mut state) = automaton.start_state_forward(&start) else { return };
        for &octet in &text[..length] {
            state = automaton.next_state(state, octet);
            if automaton.is_dead_state(state) {
                return;
            }
        }
        state = automaton.next_eoi_state(state);
        if automaton.is_match_state(state) {
            (0..automaton.match_len(state)).for_each(|at| each(automaton.match_pattern(state, at).as_usize()));
        }
    }

    /// Sources, apps and the automaton as octets, for a snapshot.
    pub fn parts(&self) -> (&[String], &[AppMask], Vec<u8>) {
        let octets = self.automaton.as_ref().map_or_else(Vec::new, |automaton| {
            let (octets, padding) = automaton.to_bytes_little_endian();
            octets[padding..].to_vec()
        });
        (&self.sources, &self.apps, octets)
    }

    /// What [`Patterns::parts`] gave; none when it does not fit together.
    pub fn from_parts(sources: Vec<String>, apps: Vec<AppMask>, octets: &[u8]) -> Option<Self> {
        if sources.len() != apps.len() || sources.is_empty() != octets.is_empty() {
            return None;
        }
        if octets.is_empty() {
            return Some(Self::default());
        }
        // Its states are read as words, so they must stand at a multiple of four.
        let mut aligned = vec![0u8; octets.len() + 3];
        let from = aligned.as_ptr().align_offset(4);
        let place = aligned.get_mut(from..from + octets.len())?;
        place.copy_from_slice(octets);
        let (automaton, read) = dense::DFA::from_bytes(place).ok()?;
        if read != octets.len() || automaton.pattern_len() != sources.len() {
            return None;
        }
        Some(Self { sources, apps, automaton: Some(automaton.to_owned()) })
    }

    /// The masks, to be checked.
    pub fn apps(&self) -> &[AppMask] {
        &self.apps
    }
}

/// The text that patterns see: labels with dots between them. A dot inside a label is no dot (it would forge a name).
fn write_text(name: &FoldedName, text: &mut [u8; MAX_NAME_OCTETS]) -> usize {
    let mut at = 0;
    for label in name.labels() {
        if at > 0 {
            text[at] = b'.';
            at += 1;
        }
        for &octet in label {
            text[at] = if octet == b'.' { 0 } else { octet };
            at += 1;
        }
    }
    at
}

fn whole(source: &str) -> String {
    format!(r"\A(?:{source})\z")
}

fn rules_of_text() -> syntax::Config {
    syntax::Config::new().unicode(false).utf8(false).case_insensitive(true).dot_matches_new_line(true).nest_limit(32)
}

fn automaton_of(sources: &[String]) -> Result<dense::DFA<Vec<u32>>, Box<dense::BuildError>> {
    let whole: Vec<String> = sources.iter().map(|source| whole(source)).collect();
    dense::Builder::new()
        .configure(
            dense::Config::new()
                .match_kind(MatchKind::All)
                .start_kind(StartKind::Anchored)
                .dfa_size_limit(Some(MAX_OCTETS))
                .determinize_size_limit(Some(MAX_BUILDING_OCTETS)),
        )
        .thompson(thompson::Config::new().utf8(false).nfa_size_limit(Some(MAX_OCTETS)))
        .syntax(rules_of_text())
        .build_many(&whole)
        .map_err(Box::new)
}

/// Why a pattern cannot be read, if it cannot.
pub fn parse_error(source: &str) -> Option<String> {
    let error = syntax::parse_with(&whole(source), &rules_of_text()).err()?;
    // The last line says what; those before it draw where.
    Some(error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn built(sources: &[&str]) -> Patterns {
        let patterns = sources.iter().enumerate().map(|(at, one)| ((*one).to_string(), AppMask::of(at))).collect();
        Patterns::build(patterns).unwrap()
    }

    fn name(text: &str) -> FoldedName {
        FoldedName::from_rule_text(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_pattern_is_about_the_whole_name() {
        let patterns = built(&["^pull-[a-z0-9-]+[.]example[.]net$", "pull-a.*", "^x$|y[.]example"]);
        let apps = |text: &str| patterns.find(&name(text)).0.0;
        assert_eq!(apps("PULL-f1.example.net"), 0b001);
        assert_eq!(apps("pull-a.example.net"), 0b011);
        assert_eq!(apps("www.pull-a.example.net"), 0);
        assert_eq!(apps("pull-f1.example.net.test"), 0);
        assert_eq!(apps("y.example"), 0b100);
        assert_eq!(apps("z.y.example"), 0);
        assert_eq!(patterns.source_for(&name("pull-a.example.net"), AppMask(0b010)), Some("pull-a.*"));
    }

    #[test]
    fn a_dot_stands_for_any_octet() {
        let odd = FoldedName::from_wire(b"\x03x\ny\x07example\0").unwrap();
        assert_eq!(built(&["^x.y[.]example$"]).find(&odd).0, AppMask(1));
    }

    #[test]
    fn a_dot_inside_a_label_is_no_dot() {
        let patterns = built(&["^a[.]example$"]);
        let forged = FoldedName::from_wire(b"\x09a.example\0").unwrap();
        assert_eq!(patterns.find(&forged), (AppMask::EMPTY, None));
    }

    #[test]
    fn the_pattern_that_is_wrong_or_too_much_is_named() {
        let wrong = Patterns::build(vec![("^a$".into(), AppMask::of(0)), ("^(b$".into(), AppMask::of(0))]);
        assert_eq!(wrong.unwrap_err(), (1, "unclosed group".to_string()));
        let huge = Patterns::build(vec![("^a$".into(), AppMask::of(0)), ("^.*a.{24}$".into(), AppMask::of(0))]);
        let (at, text) = huge.unwrap_err();
        assert_eq!((at, text.contains("8 MiB")), (1, true), "{text}");
    }

    #[test]
    fn parts_read_back() {
        let patterns = built(&["^a[0-9]+$", "^b$"]);
        let (sources, apps, octets) = patterns.parts();
        let again = Patterns::from_parts(sources.to_vec(), apps.to_vec(), &octets).unwrap();
        assert_eq!(again.find(&name("a17")).0, AppMask(1));
        assert!(Patterns::from_parts(sources.to_vec(), apps.to_vec(), &octets[..octets.len() - 4]).is_none());
        assert!(Patterns::from_parts(vec![], vec![], &octets).is_none());
    }

    proptest! {
        /// Any octets of a name are walked, and any source builds or is refused by its index.
        #[test]
        fn anything_is_found_or_not(octets in prop::collection::vec(any::<u8>(), 1..60), source in "[a-z.()*+?\\[\\]^$|0-9-]{0,12}") {
            let mut wire = vec![octets.len() as u8];
            wire.extend_from_slice(&octets);
            wire.push(0);
            let name = FoldedName::from_wire(&wire).unwrap();
            match Patterns::build(vec![(source, AppMask::of(3))]) {
                Ok(patterns) => { patterns.find(&name); }
                Err((at, _)) => prop_assert_eq!(at, 0),
            }
        }
    }
}
