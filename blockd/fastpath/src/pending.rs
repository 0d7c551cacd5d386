//! Questions under way: who waits for which, coalesced, bounded in all and a client.

use crate::cache::Key;
use crate::identity::Identity;
use crate::inspect::Answer;
use crate::lock;
use crate::wire::{Asker, FoldedName};
use hashbrown::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

/// Where a reply goes.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A datagram's sender, by the socket and address that it asked.
    Datagram(crate::sockets::ReturnPath),
    /// A query on a stream that Python holds.
    Stream(u64),
}

/// Who waits: identity and question, never a view or a mask, so that the policy of the moment decides.
#[derive(Debug)]
pub struct Waiter {
    /// What the reply needs of the query.
    pub asker: Asker,
    /// The question, byte for byte.
    pub echo: Box<[u8]>,
    /// Who asked.
    pub identity: Identity,
    /// Where the reply goes.
    pub origin: Origin,
    /// When its query was received, microseconds.
    pub received_us: u64,
    /// The name that it asked for and what leads from it to this question's name, where policy made that an alias.
    pub through: Option<Box<Through>>,
}

/// A name and the aliases, policy's the last, by which it leads to the name of another question.
#[derive(Debug, Clone)]
pub struct Through {
    /// The name.
    pub name: FoldedName,
    /// The aliases.
    pub head: Answer,
}

/// A question that waits for the answer of other servers, because an alias leads to a name of theirs.
///
/// It waits for an exchange alone, never for a question that waits itself, so that no two can wait for each other: of
/// such a one it takes the part that is known and goes on by itself ([`Followed::Part`]).
#[derive(Debug, Clone)]
pub struct Follower {
    /// The question.
    pub key: Arc<Key>,
    /// Its serial number.
    pub serial: u64,
    /// When it was first asked, milliseconds.
    pub since_ms: u64,
    /// What is known of its answer.
    pub answer: Arc<Answer>,
    /// The tag of the route whose servers gave the last part; none when that part is blockd's own.
    pub answered_by: Option<u32>,
}

/// What a question that follows an alias gets.
#[derive(Debug)]
pub enum Followed {
    /// A new question with this serial number: start its exchange.
    First(u64),
    /// An exchange is under way, and its end continues the follower.
    Joined,
    /// The part that is known of a question that is waiting itself.
    Part(Arc<Answer>),
}

/// What waited for a question.
#[derive(Debug, Default)]
pub struct Taken {
    /// Clients.
    pub waiters: Vec<Waiter>,
    /// Other questions.
    pub followers: Vec<Follower>,
}

impl Taken {
    /// Whether there is neither.
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty() && self.followers.is_empty()
    }
}

/// How a waiter was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// Nobody asked this yet: start an exchange for the question of this serial number.
    First(u64),
    /// An exchange is under way.
    Coalesced,
    /// The same client's same query is waiting already.
    Repeated,
    /// Too many wait in all.
    OverAll,
    /// Too many wait for this client.
    OverClient,
}

#[derive(Debug)]
struct Question {
    taken: Taken,
    since_ms: u64,
    serial: u64,
    /// Whether its answer is wanted though no client waits.
    is_looked_up: bool,
    /// The answer of its own servers, once the question waits for other servers.
    part: Option<Arc<Answer>>,
}

impl Question {
    fn new(serial: u64, since_ms: u64) -> Self {
        Self { taken: Taken::default(), since_ms, serial, is_looked_up: false, part: None }
    }
}

type Questions = HashMap<Arc<Key>, Question>;

const SHARDS: usize = 16;
/// Waiters of one question that are searched for a repetition.
const SEARCHED_FOR_REPETITION: usize = 32;

/// The table.
#[derive(Debug)]
pub struct Pending {
    questions: Box<[Mutex<Questions>]>,
    clients: Box<[Mutex<HashMap<u64, u32>>]>,
    waiting: AtomicUsize,
    next_serial: AtomicU64,
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            questions: (0..SHARDS).map(|_| Mutex::default()).collect(),
            clients: (0..SHARDS).map(|_| Mutex::default()).collect(),
            waiting: AtomicUsize::new(0),
            next_serial: AtomicU64::new(1),
        }
    }
}

impl Pending {
    fn questions(&self, key: &Key) -> MutexGuard<'_, Questions> {
        lock(&self.questions[(key.hash >> 32) as usize % SHARDS])
    }

    fn clients(&self, bucket: u64) -> MutexGuard<'_, HashMap<u64, u32>> {
        lock(&self.clients[bucket as usize % SHARDS])
    }

    /// Takes a waiter in, or says why not.
    pub fn join(&self, key: &Arc<Key>, waiter: Waiter, in_all: u32, a_client: u32, now_ms: u64) -> Joined {
        if self.waiting.load(Relaxed) >= in_all as usize {
            return Joined::OverAll;
        }
        let bucket = waiter.identity.bucket();
        let mut questions = self.questions(key);
        let question = questions.get(key);
        if let Some(question) = question {
            let is_same = |other: &Waiter| {
                other.identity == waiter.identity
                    && other.asker.id == waiter.asker.id
                    && matches!((&other.origin, &waiter.origin), (Origin::Datagram(_), Origin::Datagram(_)))
            };
            if question.taken.waiters.iter().take(SEARCHED_FOR_REPETITION).any(is_same) {
                return Joined::Repeated;
            }
        }
        {
            let mut clients = self.clients(bucket);
            let count = clients.entry(bucket).or_insert(0);
            if *count >= a_client {
                return Joined::OverClient;
            }
            *count += 1;
        }
        self.waiting.fetch_add(1, Relaxed);
        match questions.get_mut(key) {
            Some(question) => {
                question.taken.waiters.push(waiter);
                Joined::Coalesced
            }
            None => {
                let serial = self.next_serial.fetch_add(1, Relaxed);
                let mut question = Question::new(serial, now_ms);
                question.taken.waiters.push(waiter);
                questions.insert(Arc::clone(key), question);
                Joined::First(serial)
            }
        }
    }

    /// Has a question asked that nobody waits for; none when it is under way.
    pub fn begin(&self, key: &Arc<Key>, now_ms: u64) -> Option<u64> {
        let mut questions = self.questions(key);
        if let Some(question) = questions.get_mut(key) {
            question.is_looked_up = true;
            return None;
        }
        let serial = self.next_serial.fetch_add(1, Relaxed);
        questions.insert(Arc::clone(key), Question { is_looked_up: true, ..Question::new(serial, now_ms) });
        Some(serial)
    }

    /// Has a question wait for the exchange of another one, which is as old: clients wait no longer for two than for one.
    pub fn follow(&self, key: &Arc<Key>, follower: &Follower) -> Followed {
        let mut questions = self.questions(key);
        if let Some(question) = questions.get_mut(key) {
            if let Some(part) = &question.part {
                return Followed::Part(Arc::clone(part));
            }
            question.taken.followers.push(follower.clone());
            return Followed::Joined;
        }
        let serial = self.next_serial.fetch_add(1, Relaxed);
        let mut question = Question::new(serial, follower.since_ms);
        question.taken.followers.push(follower.clone());
        questions.insert(Arc::clone(key), question);
        Followed::First(serial)
    }

    /// Ends the exchange of a question whose answer leads to a name of other servers. Gives the followers that get this
    /// part, and the question itself as a follower if a client or a look-up waits for the whole answer. None if the
    /// question is answered, or waits for other servers already.
    pub fn turn(&self, key: &Key, part: &Arc<Answer>) -> Option<(Vec<Follower>, Option<Follower>)> {
        let mut questions = self.questions(key);
        let (key, _) = questions.get_key_value(key)?;
        let key = Arc::clone(key);
        let question = questions.get_mut(&key).filter(|question| question.part.is_none())?;
        let followers = std::mem::take(&mut question.taken.followers);
        if question.taken.waiters.is_empty() && !question.is_looked_up {
            questions.remove(&key);
            return Some((followers, None));
        }
        question.part = Some(Arc::clone(part));
        let (serial, since_ms, answered_by) = (question.serial, question.since_ms, Some(key.route));
        Some((followers, Some(Follower { key, serial, since_ms, answer: Arc::clone(part), answered_by })))
    }

    /// Whether the question of this serial number is not answered yet.
    pub fn is_open(&self, key: &Key, serial: u64) -> bool {
        self.questions(key).get(key).is_some_and(|question| question.serial == serial)
    }

    /// Takes everybody out who waits for this.
    pub fn take(&self, key: &Key) -> Taken {
        self.take_if(key, |_, _| true)
    }

    /// Takes everybody out of the question of this serial number; a newer one of the same name stays.
    pub fn take_serial(&self, key: &Key, serial: u64) -> Taken {
        self.take_if(key, |_, other| other == serial)
    }

    /// Takes everybody out who waits for this, if it was first asked before `before_ms`.
    pub fn take_older(&self, key: &Key, before_ms: u64) -> Taken {
        self.take_if(key, |since_ms, _| since_ms < before_ms)
    }

    fn take_if(&self, key: &Key, is_meant: impl FnOnce(u64, u64) -> bool) -> Taken {
        let mut questions = self.questions(key);
        if !questions.get(key).is_some_and(|question| is_meant(question.since_ms, question.serial)) {
            return Taken::default();
        }
        let Some(question) = questions.remove(key) else {
            return Taken::default();
        };
        drop(questions);
        self.waiting.fetch_sub(question.taken.waiters.len(), Relaxed);
        for waiter in &question.taken.waiters {
            let bucket = waiter.identity.bucket();
            let mut clients = self.clients(bucket);
            if let Some(count) = clients.get_mut(&bucket) {
                *count -= 1;
                if *count == 0 {
                    clients.remove(&bucket);
                }
            }
        }
        question.taken
    }

    /// When the question of this serial number was first asked, milliseconds; none when its exchange is over.
    pub fn since(&self, key: &Key, serial: u64) -> Option<u64> {
        let questions = self.questions(key);
        let question = questions.get(key).filter(|question| question.serial == serial && question.part.is_none());
        question.map(|question| question.since_ms)
    }

    /// Questions asked before `before_ms`: whoever was to answer them is gone.
    pub fn older_than(&self, before_ms: u64) -> Vec<Arc<Key>> {
        let mut old = Vec::new();
        for shard in &self.questions {
            let shard = lock(shard);
            old.extend(shard.iter().filter(|(_, q)| q.since_ms < before_ms).map(|(key, _)| Arc::clone(key)));
        }
        old
    }

    /// Questions and waiters now.
    pub fn sizes(&self) -> (usize, usize) {
        (self.questions.iter().map(|s| lock(s).len()).sum(), self.waiting.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(client: u32, id: u16) -> Waiter {
        Waiter {
            asker: Asker {
                id,
                recursion_desired: true,
                authentic_data: false,
                checking_disabled: false,
                edns: None,
                limit_octets: 512,
            },
            echo: Box::default(),
            identity: Identity { address: crate::identity::Address::V4(client), port: 1, mac: 0 },
            origin: Origin::Stream(u64::from(id)),
            received_us: 0,
            through: None,
        }
    }

    fn key(number: u32) -> Arc<Key> {
        let name = FoldedName::from_rule_text(format!("n{number}.example").as_bytes()).unwrap();
        Arc::new(Key {
            hash: 1,
            name,
            qtype: 1,
            dnssec_ok: false,
            checking_disabled: false,
            without_ech: false,
            route: 0,
        })
    }

    #[test]
    fn equal_questions_are_asked_once_and_all_are_answered() {
        let pending = Pending::default();
        assert!(matches!(pending.join(&key(1), waiter(1, 1), 10, 10, 0), Joined::First(_)));
        for id in 2..=9 {
            assert_eq!(pending.join(&key(1), waiter(1, id), 10, 10, 0), Joined::Coalesced);
        }
        assert_eq!(pending.sizes(), (1, 9));
        assert_eq!(pending.take(&key(1)).waiters.len(), 9);
        assert_eq!(pending.sizes(), (0, 0));
    }

    #[test]
    fn both_bounds_bite_and_let_go() {
        let pending = Pending::default();
        for number in 0..3 {
            assert!(matches!(pending.join(&key(number), waiter(1, 1), 5, 3, 0), Joined::First(_)));
        }
        assert_eq!(pending.join(&key(3), waiter(1, 1), 5, 3, 0), Joined::OverClient);
        assert!(matches!(pending.join(&key(3), waiter(2, 1), 5, 3, 0), Joined::First(_)));
        assert!(matches!(pending.join(&key(4), waiter(2, 1), 5, 3, 0), Joined::First(_)));
        assert_eq!(pending.join(&key(5), waiter(3, 1), 5, 3, 0), Joined::OverAll);
        for old in pending.older_than(1) {
            pending.take(&old);
        }
        assert_eq!(pending.sizes(), (0, 0));
        assert!(matches!(pending.join(&key(5), waiter(1, 1), 5, 3, 0), Joined::First(_)));
    }
}
