//! An upstream's answer, read record by record: what may be stored of it, and every name and address it leads to.
//!
//! Pure and panic-free by lint. Work is linear in the octets received: a chain has at most [`MAX_CHAIN`] hops and
//! pointers are charged to one budget a message.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::decide::{ANY_NETWORK, AppMask, Match, NO_RULE, Rules};
use crate::identity::Address;
use crate::wire::{
    CLASS_IN, Counts, EXTENDED_ERROR, FoldedName, HEADER_OCTETS, MAX_NAME_OCTETS, Reader, rcode, read_octets, rtype,
};

/// Longest alias chain that is followed; beyond it the answer is a failure, since nobody may hide behind length.
pub const MAX_CHAIN: usize = 16;

/// Bounds on what is stored, seconds.
#[derive(Debug, Clone, Copy)]
pub struct TtlBounds {
    /// No record is stored for less.
    pub floor: u32,
    /// No record is stored for longer.
    pub ceiling: u32,
    /// No negative answer is stored for longer (RFC 2308 5).
    pub negative_ceiling: u32,
}

/// Where an answer leads: names and addresses, packed, since an entry of the cache carries them for the day the rules
/// change.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Targets<Octets = Vec<u8>>(Octets);

/// One place an answer leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Of CNAME, DNAME, SVCB or HTTPS.
    Name(FoldedName),
    /// Of A, AAAA or an address hint.
    Address(Address),
}

impl Targets {
    /// None.
    pub const NONE: Self = Self(Vec::new());

    fn push_name(&mut self, name: &FoldedName) {
        self.0.push(1);
        self.0.extend_from_slice(name.as_wire());
    }

    fn push_address(&mut self, address: Address) {
        match address {
            Address::V4(bits) => {
                self.0.push(4);
                self.0.extend_from_slice(&bits.to_be_bytes());
            }
            Address::V6(bits) => {
                self.0.push(6);
                self.0.extend_from_slice(&bits.to_be_bytes());
            }
        }
    }
}

impl<'a> Targets<&'a [u8]> {
    /// From what [`Targets::as_octets`] gave.
    pub fn from_octets(octets: &'a [u8]) -> Self {
        Self(octets)
    }
}

impl<Octets: AsRef<[u8]>> Targets<Octets> {
    /// Each of them, in the order of the answer.
    pub fn iter(&self) -> impl Iterator<Item = Target> {
        let mut reader = Reader::new(self.0.as_ref(), 0);
        std::iter::from_fn(move || match reader.octet()? {
            1 => FoldedName::read(&mut reader).map(Target::Name),
            4 => reader.long().map(|bits| Target::Address(Address::V4(bits))),
            _ => {
                let bits = u128::from_be_bytes(reader.take(16)?.try_into().ok()?);
                Some(Target::Address(Address::V6(bits)))
            }
        })
    }

    /// The names alone.
    pub fn names(&self) -> Vec<FoldedName> {
        let name = |target| if let Target::Name(name) = target { Some(name) } else { None };
        self.iter().filter_map(name).collect()
    }

    /// The addresses alone.
    pub fn addresses(&self) -> Vec<Address> {
        let address = |target| if let Target::Address(address) = target { Some(address) } else { None };
        self.iter().filter_map(address).collect()
    }

    /// All of them, packed.
    pub fn as_octets(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// The same, owned.
    pub fn to_owned(&self) -> Targets {
        Targets(self.as_octets().to_vec())
    }
}

/// What is kept of an answer: re-encoded, with pointers that hold for any case of the question.
#[derive(Debug, Default, Clone)]
pub struct Answer {
    /// NOERROR, NXDOMAIN or YXDOMAIN; REFUSED or SERVFAIL where the upstream blocks, SERVFAIL where nothing validates.
    pub rcode: u16,
    /// The upstream says that it validated this.
    pub is_authentic: bool,
    /// Records kept.
    pub counts: Counts,
    /// The records, as they stand behind the question.
    pub body: Vec<u8>,
    /// Where each TTL stands in `body`.
    pub ttl_places: Vec<u16>,
    /// Seconds that this may be kept; 0 is not at all.
    pub ttl: u32,
    /// Where it leads.
    pub targets: Targets,
    /// How the upstream blocks the name itself, if it does.
    pub upstream_block: Option<UpstreamBlock>,
    /// Why the upstream says that the answer does not validate, if it does.
    pub invalid: Option<Invalid>,
    /// The name at which its aliases end, if the answer has no data of that name.
    pub open_end: Option<OpenEnd>,
    /// Extended DNS Error of an answer that another one was joined to.
    pub error: Option<(u16, &'static str)>,
}

/// The end of an alias chain at which an answer has no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenEnd {
    /// The last name.
    pub name: FoldedName,
    /// Whether an SOA denies the data (RFC 2308).
    pub is_denied: bool,
}

/// Records behind a question: of an answer that was kept, or prepared ones.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Response code.
    pub rcode: u16,
    /// Records.
    pub counts: Counts,
    /// The records, as they stand behind the question.
    pub body: &'a [u8],
    /// What became of their TTLs.
    pub ttls: Ttls,
}

/// How much is left of the TTLs of a part.
#[derive(Debug, Clone, Copy)]
pub enum Ttls {
    /// The part is so many seconds old.
    Aged(u32),
    /// The part is stale: this TTL for each record.
    Stale(u32),
}

impl Answer {
    /// The records, to be joined to others.
    pub fn as_part(&self) -> Part<'_> {
        Part { rcode: self.rcode, counts: self.counts, body: &self.body, ttls: Ttls::Aged(0) }
    }

    /// The Extended DNS Error that clients get with it.
    pub fn extended_error(&self) -> Option<(u16, &'static str)> {
        let own = self.upstream_block.map(UpstreamBlock::error).or(self.invalid.map(Invalid::error));
        self.error.or(own)
    }
}

/// Seconds that a block or a validation failure without an SOA is kept: RFC 9520 3.2 allows 1 s to 5 min.
const REFUSAL_TTL: u32 = 30;

/// A failed DNSSEC validation, by the Extended DNS Error of the SERVFAIL that reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid(u16);

impl Invalid {
    /// The codes of RFC 8914 and of the IANA registry by which a validator says that it judged the answer and refuses it.
    /// Code 5 (Indeterminate) is not one: records were missing to judge by (RFC 4035 4.3), so another try may succeed.
    fn from_code(code: u16) -> Option<Self> {
        matches!(code, 1 | 2 | 6..=12 | 25 | 27).then_some(Self(code))
    }

    /// The Extended DNS Error that clients get.
    pub fn error(self) -> (u16, &'static str) {
        let text = match self.0 {
            1 => "an upstream server does not support the DNSKEY algorithms of this zone",
            2 => "an upstream server does not support the DS digest types of this zone",
            7 => "an upstream server found an expired DNSSEC signature",
            8 => "an upstream server found a DNSSEC signature that is not yet valid",
            9 => "an upstream server found no DNSKEY that matches the DS records",
            10 => "an upstream server found no DNSSEC signatures where the zone is signed",
            11 => "an upstream server found no DNSKEY that is a zone key",
            12 => "an upstream server found no NSEC records that prove the denial",
            25 => "an upstream server found a DNSSEC signature that expires before it is valid",
            27 => "an upstream server does not support the NSEC3 iterations of this zone",
            _ => "an upstream server says that this answer does not validate",
        };
        (self.0, text)
    }
}

/// What the Extended DNS Errors of an answer say: the first of each kind.
#[derive(Debug, Default, Clone, Copy)]
struct Stated {
    block: Option<UpstreamBlock>,
    invalid: Option<Invalid>,
}

/// An upstream's own block, as its answer shows it (RFC 8914 4.16 to 4.18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamBlock {
    /// EDE 15.
    Blocked,
    /// EDE 16.
    Censored,
    /// EDE 17.
    Filtered,
    /// 0.0.0.0 or ::, and no other address.
    NullAddress,
}

impl UpstreamBlock {
    fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            15 => Self::Blocked,
            16 => Self::Censored,
            17 => Self::Filtered,
            _ => return None,
        })
    }

    /// The Extended DNS Error that clients get: theirs is a forwarder's answer, so the text says who blocks.
    pub fn error(self) -> (u16, &'static str) {
        let code = match self {
            Self::Blocked => 15,
            Self::Censored => 16,
            Self::Filtered | Self::NullAddress => 17,
        };
        (code, "an upstream server blocks this name; the policy of this network does not")
    }
}

/// Why there is no answer to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// Not an answer to this question: dropped, counted, still waiting for the real one.
    NotOurs,
    /// TC: ask again over TCP.
    Truncated,
    /// The upstream failed; another may not.
    Failed(u16),
    /// It cannot be read.
    Malformed,
    /// The alias chain loops or is longer than [`MAX_CHAIN`].
    Chain,
}

struct Record<'a> {
    owner: FoldedName,
    record_type: u16,
    ttl: u32,
    rdata: &'a [u8],
    rdata_at: usize,
}

/// Reads an answer to `name` and `qtype`, class IN; its ID was checked by whoever received it.
///
/// With `without_ech`, HTTPS and SVCB records lose their `ech` (RFC 9460 14.3.2), and an answer that lost one is neither
/// signed nor authentic any more.
pub fn read_answer(
    packet: &[u8],
    name: &FoldedName,
    qtype: u16,
    dnssec_ok: bool,
    without_ech: bool,
    bounds: TtlBounds,
) -> Result<Answer, Problem> {
    let mut reader = Reader::new(packet, 2);
    let (first_flags, second_flags) = (|| Some((reader.octet()?, reader.octet()?)))().ok_or(Problem::NotOurs)?;
    let counts =
        (|| Some([reader.short()?, reader.short()?, reader.short()?, reader.short()?]))().ok_or(Problem::NotOurs)?;
    let [questions, answers, authorities, additionals] = counts;
    if first_flags & 0xF8 != 0x80 {
        return Err(Problem::NotOurs);
    }
    let plain_rcode = u16::from(second_flags & 0x0F);
    let is_failure = matches!(plain_rcode, rcode::FORMERR | rcode::SERVFAIL | rcode::NOTIMP | rcode::REFUSED);
    if is_failure && (questions == 0 || packet.len() == HEADER_OCTETS) {
        // Some servers fail with a header alone, often with the counts of the query; its ID was checked.
        return Err(Problem::Failed(plain_rcode));
    }
    if questions != 1 {
        return Err(Problem::NotOurs);
    }
    let asked = (|| Some((FoldedName::read(&mut reader)?, reader.short()?, reader.short()?)))();
    if asked != Some((*name, qtype, CLASS_IN)) {
        return Err(Problem::NotOurs);
    }
    if first_flags & 0x02 != 0 {
        return Err(Problem::Truncated);
    }

    // Linear in the octets received, with room for seventeen names that hang on one another, each read three times.
    let mut hops_left = 256 + 8 * packet.len();
    let mut section = |count: u16| read_section(packet, &mut reader, count, &mut hops_left);
    // A failure is one even if its counts promise records that are not there: old servers copy them from the query.
    let unreadable = if is_failure { Problem::Failed(plain_rcode) } else { Problem::Malformed };
    let answer_records = section(answers).ok_or(unreadable)?;
    let authority_records = section(authorities).ok_or(unreadable)?;
    let (rcode, stated) = read_opt(packet, &mut reader, additionals, second_flags).ok_or(unreadable)?;
    if !matches!(rcode, rcode::NOERROR | rcode::NXDOMAIN | rcode::YXDOMAIN) {
        return refusal(rcode, stated, bounds).ok_or(Problem::Failed(rcode));
    }

    let mut kept = Keeper::new(packet, name, bounds, &mut hops_left);
    let mut targets = Targets::default();
    let last = kept.follow_chain(&answer_records, name, None, (qtype, dnssec_ok, rcode), &mut targets)?;
    kept.without_ech = without_ech;
    if rcode == rcode::YXDOMAIN && !kept.is_too_long {
        // To a query it says one thing alone, that a DNAME makes the name too long (RFC 6672 2.2).
        return Err(Problem::Failed(rcode));
    }
    let is_positive = kept.keep_terminal(&answer_records, &last, qtype, dnssec_ok, &mut targets)?;
    let is_changed = kept.is_changed;
    kept.answer.counts.answer = kept.count;
    kept.count = 0;
    kept.keep_authority(&authority_records, &last, (is_positive, rcode), dnssec_ok)?;
    kept.answer.counts.authority = kept.count;
    let open_end = kept.open_end(name, &last, qtype, is_positive);
    let mut answer = kept.answer;
    answer.rcode = rcode;
    answer.open_end = open_end;
    answer.is_authentic = second_flags & 0x20 != 0 && !is_changed;
    let is_null = |target| match target {
        Target::Address(Address::V4(bits)) => bits == 0,
        Target::Address(Address::V6(bits)) => bits == 0,
        Target::Name(_) => true,
    };
    let is_nowhere = is_positive && matches!(qtype, rtype::A | rtype::AAAA) && targets.iter().all(is_null);
    let by_address = is_nowhere.then_some(UpstreamBlock::NullAddress);
    answer.upstream_block = stated.block.or(by_address);
    answer.targets = targets;
    if answer.ttl == u32::MAX {
        answer.ttl = 0;
    }
    Ok(answer)
}

/// What a failure decides for good: the upstream's own block (RFC 8914 4.16 to 4.18), or what does not validate.
///
/// Another server or an older answer would be a way around either, so both are answers; any other failure is none.
fn refusal(rcode: u16, stated: Stated, bounds: TtlBounds) -> Option<Answer> {
    let upstream_block = stated.block.filter(|_| matches!(rcode, rcode::REFUSED | rcode::SERVFAIL));
    let invalid = stated.invalid.filter(|_| rcode == rcode::SERVFAIL && upstream_block.is_none());
    let ttl = REFUSAL_TTL.min(bounds.negative_ceiling.max(1));
    (upstream_block.is_some() || invalid.is_some()).then(|| Answer {
        rcode,
        ttl,
        upstream_block,
        invalid,
        ..Answer::default()
    })
}

/// A part whose records are read, and the message they are read from.
struct Opened<'a> {
    packet: &'a [u8],
    rcode: u16,
    answer: Vec<Record<'a>>,
    authority: Vec<Record<'a>>,
}

/// Makes a message of a part: a header that is not read, the question that its pointers lead to, its records.
fn message_of(name: &FoldedName, qtype: u16, part: Part<'_>) -> Vec<u8> {
    let mut packet = vec![0; HEADER_OCTETS];
    packet.extend_from_slice(name.as_wire());
    packet.extend_from_slice(&qtype.to_be_bytes());
    packet.extend_from_slice(&CLASS_IN.to_be_bytes());
    packet.extend_from_slice(part.body);
    packet
}

fn open_part<'a>(
    packet: &'a [u8],
    name: &FoldedName,
    part: Part<'_>,
    hops_left: &mut usize,
) -> Result<Opened<'a>, Problem> {
    let mut reader = Reader::new(packet, HEADER_OCTETS + name.wire_length() + 4);
    let mut section = |count| {
        let mut records = read_section(packet, &mut reader, count, hops_left).ok_or(Problem::Malformed)?;
        for record in &mut records {
            record.ttl = match part.ttls {
                Ttls::Aged(age) => record.ttl.saturating_sub(age),
                Ttls::Stale(ttl) => ttl,
            };
        }
        Ok(records)
    };
    let (answer, authority) = (section(part.counts.answer)?, section(part.counts.authority)?);
    Ok(Opened { packet, rcode: part.rcode, answer, authority })
}

/// Joins the answer of the name at which a chain of aliases ends, `at`, to the answer of `asked` that leads there.
///
/// The result has the chain of `head` as far as `at`, with its proofs, and everything else from `tail`.
pub fn join(
    asked: &FoldedName,
    (qtype, dnssec_ok): (u16, bool),
    head: Part<'_>,
    at: &FoldedName,
    tail: Part<'_>,
    bounds: TtlBounds,
) -> Result<Answer, Problem> {
    let (first, second) = (message_of(asked, qtype, head), message_of(at, qtype, tail));
    let mut hops_left = 256 + 8 * (first.len() + second.len());
    let head = open_part(&first, asked, head, &mut hops_left)?;
    let tail = open_part(&second, at, tail, &mut hops_left)?;
    let mut kept = Keeper::new(head.packet, asked, bounds, &mut hops_left);
    let mut targets = Targets::default();
    let wanted = (qtype, dnssec_ok, head.rcode);
    if kept.follow_chain(&head.answer, asked, Some(at), wanted, &mut targets)? != *at {
        return Err(Problem::Chain);
    }
    let zones_of_head = kept.zones.clone();
    kept.packet = tail.packet;
    let last = kept.follow_chain(&tail.answer, at, None, (qtype, dnssec_ok, tail.rcode), &mut targets)?;
    let is_positive = kept.keep_terminal(&tail.answer, &last, qtype, dnssec_ok, &mut targets)?;
    kept.answer.counts.answer = kept.count;
    kept.count = 0;
    kept.keep_authority(&tail.authority, &last, (is_positive, tail.rcode), dnssec_ok)?;
    if dnssec_ok && !head.authority.iter().any(|record| record.record_type == rtype::SOA) {
        // The proof of a wildcard alias is kept. A denial by servers that do not know the zone is not.
        kept.packet = head.packet;
        kept.keep_proofs(&head.authority, &zones_of_head)?;
    }
    kept.answer.counts.authority = kept.count;
    let open_end = kept.open_end(asked, &last, qtype, is_positive);
    let ttl = if kept.answer.ttl == u32::MAX { 0 } else { kept.answer.ttl };
    Ok(Answer { rcode: tail.rcode, ttl, open_end, targets, ..kept.answer })
}

/// Makes the answer in which policy makes `at` an alias of `target`: `head` leads from `asked` to `at`.
pub fn alias(
    asked: &FoldedName,
    (qtype, dnssec_ok): (u16, bool),
    head: Part<'_>,
    at: &FoldedName,
    (target, ttl): (&FoldedName, u32),
    bounds: TtlBounds,
) -> Result<Answer, Problem> {
    let packet = message_of(asked, qtype, head);
    let mut hops_left = 256 + 8 * packet.len();
    let head = open_part(&packet, asked, head, &mut hops_left)?;
    let mut kept = Keeper::new(head.packet, asked, bounds, &mut hops_left);
    let mut targets = Targets::default();
    let wanted = (qtype, dnssec_ok, rcode::NOERROR);
    if kept.follow_chain(&head.answer, asked, Some(at), wanted, &mut targets)? != *at {
        return Err(Problem::Chain);
    }
    targets.push_name(target);
    kept.write_record(at, rtype::CNAME, ttl, target.as_wire())?;
    kept.answer.counts.answer = kept.count;
    Ok(Answer { targets, ..kept.answer })
}

fn read_section<'a>(
    packet: &'a [u8],
    reader: &mut Reader<'a>,
    count: u16,
    hops_left: &mut usize,
) -> Option<Vec<Record<'a>>> {
    let mut records = Vec::with_capacity(usize::from(count).min(packet.len() / 11));
    for _ in 0..count {
        let owner = FoldedName::read_compressed(reader, hops_left)?;
        let record_type = reader.short()?;
        let class = reader.short()?;
        let ttl = reader.long()?;
        let length = reader.short()?;
        let rdata_at = reader.position();
        let rdata = reader.take(usize::from(length))?;
        if class == CLASS_IN {
            // A TTL with the top bit set is 0 (RFC 2181 8).
            let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
            records.push(Record { owner, record_type, ttl, rdata, rdata_at });
        }
    }
    Some(records)
}

/// Steps over the additional section, which is dropped, for the high bits of the rcode and the Extended DNS Errors in
/// its OPT.
fn read_opt(packet: &[u8], reader: &mut Reader<'_>, count: u16, second_flags: u8) -> Option<(u16, Stated)> {
    let mut code = u16::from(second_flags & 0x0F);
    let mut stated = Stated::default();
    for _ in 0..count {
        reader.skip_name()?;
        let record_type = reader.short()?;
        reader.short()?;
        let ttl = reader.long()?;
        let length = reader.short()?;
        let rdata = reader.take(usize::from(length))?;
        if record_type == rtype::OPT {
            let [high, _, _, _] = ttl.to_be_bytes();
            code |= u16::from(high) << 4;
            read_errors(rdata, &mut stated);
        }
    }
    (reader.position() <= packet.len()).then_some((code, stated))
}

/// Reads the Extended DNS Errors among options, up to one that is cut off.
fn read_errors(options: &[u8], stated: &mut Stated) -> Option<()> {
    let mut reader = Reader::new(options, 0);
    loop {
        let (code, length) = (reader.short()?, reader.short()?);
        let option = reader.take(usize::from(length))?;
        let info = Reader::new(option, 0).short().filter(|_| code == EXTENDED_ERROR);
        stated.block = stated.block.or(info.and_then(UpstreamBlock::from_code));
        stated.invalid = stated.invalid.or(info.and_then(Invalid::from_code));
    }
}

/// How the RDATA of a type holds names: octets before them, how many, whether they may be compressed again.
///
/// The types that RFC 3597 4 tells a receiver to decompress; only those of RFC 1035 are compressed anew.
fn rdata_names(record_type: u16, rdata: &[u8]) -> Option<(usize, usize, bool)> {
    Some(match record_type {
        2..=5 | 7..=9 | 12 => (0, 1, true),
        6 | 14 => (0, 2, true),
        15 => (2, 1, true),
        17 => (0, 2, false),
        18 | 21 | 36 => (2, 1, false),
        26 => (2, 2, false),
        33 => (6, 1, false),
        24 => (18, 1, false),
        30 | 39 => (0, 1, false),
        35 => {
            let mut reader = Reader::new(rdata, 4);
            for _ in 0..3 {
                let length = reader.octet()?;
                reader.take(usize::from(length))?;
            }
            (reader.position(), 1, false)
        }
        _ => return None,
    })
}

/// The kept part of an answer, growing; names that are written are remembered for compression.
struct Keeper<'a, 'b> {
    packet: &'a [u8],
    hops_left: &'b mut usize,
    bounds: TtlBounds,
    answer: Answer,
    count: u16,
    body_at: usize,
    /// The zones whose signatures were kept: proofs of denial belong to one of them.
    zones: Vec<FoldedName>,
    /// Whether `ech` is left out, and whether there was any.
    without_ech: bool,
    is_changed: bool,
    /// The names of the chain.
    visited: Vec<FoldedName>,
    /// Whether the SOA of a negative answer was kept.
    is_denied: bool,
    /// Whether a DNAME made a name that is too long.
    is_too_long: bool,
    /// Owners of the DNAMEs that were kept: one that applies again is not written again (RFC 2181 5).
    dnames: Vec<FoldedName>,
    /// Name, where it was written, how many of its octets stand there literally.
    written: Vec<(Vec<u8>, usize, usize)>,
}

/// Labels of a name at which a remembered one is looked for.
const MAX_SEARCHED_LABELS: usize = 12;

/// Names remembered for compression; more would make the work grow with their number.
const REMEMBERED_NAMES: usize = 16;

impl<'a, 'b> Keeper<'a, 'b> {
    fn new(packet: &'a [u8], name: &FoldedName, bounds: TtlBounds, hops_left: &'b mut usize) -> Self {
        Self {
            packet,
            hops_left,
            bounds,
            answer: Answer { ttl: u32::MAX, ..Answer::default() },
            count: 0,
            body_at: HEADER_OCTETS + name.wire_length() + 4,
            zones: Vec::new(),
            without_ech: false,
            is_changed: false,
            visited: vec![*name],
            is_denied: false,
            is_too_long: false,
            dnames: Vec::new(),
            written: vec![(name.as_wire().to_vec(), HEADER_OCTETS, name.wire_length())],
        }
    }

    /// Where a chain ends without data; none where it has some, or there is no chain.
    fn open_end(&self, asked: &FoldedName, last: &FoldedName, qtype: u16, is_positive: bool) -> Option<OpenEnd> {
        let is_open = !is_positive && !self.is_too_long && last != asked && qtype != rtype::CNAME;
        is_open.then_some(OpenEnd { name: *last, is_denied: self.is_denied })
    }

    /// Follows CNAME and DNAME from a name, at most to `stop`; gives the name where the chain ends.
    fn follow_chain(
        &mut self,
        records: &[Record<'_>],
        name: &FoldedName,
        stop: Option<&FoldedName>,
        (qtype, dnssec_ok, rcode): (u16, bool, u16),
        targets: &mut Targets,
    ) -> Result<FoldedName, Problem> {
        let mut at = *name;
        loop {
            if stop == Some(&at) {
                return Ok(at);
            }
            let redirection =
                records.iter().find(|r| r.record_type == rtype::DNAME && r.owner != at && at.is_within(&r.owner));
            let next = if let Some(dname) = redirection {
                let target = self.target_of(dname)?;
                targets.push_name(&target);
                if !self.dnames.contains(&dname.owner) {
                    self.dnames.push(dname.owner);
                    self.keep(dname, dname.ttl)?;
                    self.keep_signatures(records, &dname.owner, rtype::DNAME, dnssec_ok)?;
                }
                let Some(next) = at.with_suffix_replaced(&dname.owner, &target) else {
                    self.is_too_long = true;
                    // The one thing YXDOMAIN says: the name would be too long (RFC 6672 2.2).
                    return if rcode == rcode::YXDOMAIN { Ok(at) } else { Err(Problem::Chain) };
                };
                self.write_record(&at, rtype::CNAME, dname.ttl, next.as_wire())?;
                next
            } else if let Some(cname) =
                records.iter().find(|r| r.record_type == rtype::CNAME && r.owner == at && qtype != rtype::CNAME)
            {
                let next = self.target_of(cname)?;
                self.keep(cname, cname.ttl)?;
                self.keep_signatures(records, &at, rtype::CNAME, dnssec_ok)?;
                next
            } else {
                return Ok(at);
            };
            targets.push_name(&next);
            if self.visited.contains(&next) || self.visited.len() > MAX_CHAIN {
                return Err(Problem::Chain);
            }
            self.visited.push(next);
            at = next;
            if qtype == rtype::CNAME {
                // The synthesised CNAME is the answer.
                return Ok(at);
            }
        }
    }

    fn keep_terminal(
        &mut self,
        records: &[Record<'_>],
        last: &FoldedName,
        qtype: u16,
        dnssec_ok: bool,
        targets: &mut Targets,
    ) -> Result<bool, Problem> {
        let mut is_positive = qtype == rtype::CNAME && self.count > 0;
        for record in records.iter().filter(|r| r.owner == *last && r.record_type == qtype) {
            is_positive = true;
            match record.record_type {
                rtype::A => {
                    let octets: [u8; 4] = record.rdata.try_into().map_err(|_| Problem::Malformed)?;
                    targets.push_address(Address::V4(u32::from_be_bytes(octets)));
                }
                rtype::AAAA => {
                    let octets: [u8; 16] = record.rdata.try_into().map_err(|_| Problem::Malformed)?;
                    targets.push_address(ipv6(octets));
                }
                rtype::CNAME | rtype::DNAME => targets.push_name(&self.target_of(record)?),
                rtype::SVCB | rtype::HTTPS => read_service(record.rdata, targets).ok_or(Problem::Malformed)?,
                _ => {}
            }
            let stripped = match record.record_type {
                rtype::SVCB | rtype::HTTPS if self.without_ech => without_ech(record.rdata),
                _ => None,
            };
            match stripped {
                Some(rdata) => {
                    self.is_changed = true;
                    self.write_record(&record.owner, record.record_type, record.ttl, &rdata)?;
                }
                None => self.keep(record, record.ttl)?,
            }
        }
        if is_positive && qtype != rtype::RRSIG && !self.is_changed {
            self.keep_signatures(records, last, qtype, dnssec_ok)?;
        }
        Ok(is_positive)
    }

    /// Keeps the SOA of a negative answer, and with DO what proves it; all inside the zone that the answer is of.
    fn keep_authority(
        &mut self,
        authority: &[Record<'_>],
        last: &FoldedName,
        (is_positive, rcode): (bool, u16),
        dnssec_ok: bool,
    ) -> Result<(), Problem> {
        let soa = authority.iter().find(|r| r.record_type == rtype::SOA && last.is_within(&r.owner));
        if let Some(soa) = soa.filter(|_| !is_positive) {
            let minimum = soa
                .rdata
                .len()
                .checked_sub(4)
                .and_then(|at| soa.rdata.get(at..)?.try_into().ok())
                .map(u32::from_be_bytes)
                .ok_or(Problem::Malformed)?;
            let ttl = soa.ttl.min(minimum).min(self.bounds.negative_ceiling);
            self.keep(soa, ttl)?;
            self.keep_signatures(authority, &soa.owner, rtype::SOA, dnssec_ok)?;
            self.is_denied = true;
            self.zones.push(soa.owner);
        } else if !is_positive {
            let is_referral = rcode == rcode::NOERROR && self.answer.counts.answer == 0;
            if is_referral && authority.iter().any(|r| r.record_type == rtype::NS) {
                // A referral is no answer to a question with RD: this server does not resolve. With NXDOMAIN it is
                // no referral (RFC 2308 2.1, type 4).
                return Err(Problem::Failed(rcode::REFUSED));
            }
            // Without an SOA there is no time for which this holds (RFC 2308 5).
            self.answer.ttl = 0;
        }
        if !dnssec_ok {
            return Ok(());
        }
        let zones = std::mem::take(&mut self.zones);
        self.keep_proofs(authority, &zones)
    }

    /// Keeps what proves a denial in one of these zones.
    fn keep_proofs(&mut self, authority: &[Record<'_>], zones: &[FoldedName]) -> Result<(), Problem> {
        for record in authority {
            let is_proof = match record.record_type {
                rtype::NSEC | rtype::NSEC3 => true,
                rtype::RRSIG => matches!(covered_type(record), rtype::NSEC | rtype::NSEC3),
                _ => false,
            };
            if is_proof && zones.iter().any(|zone| record.owner.is_within(zone)) {
                self.keep(record, record.ttl)?;
            }
        }
        Ok(())
    }

    fn keep_signatures(
        &mut self,
        records: &[Record<'_>],
        owner: &FoldedName,
        covered: u16,
        dnssec_ok: bool,
    ) -> Result<(), Problem> {
        if !dnssec_ok {
            return Ok(());
        }
        for record in records {
            if record.record_type == rtype::RRSIG && record.owner == *owner && covered_type(record) == covered {
                let signer = FoldedName::read(&mut Reader::new(record.rdata, 18));
                let signer = signer.filter(|signer| owner.is_within(signer) && !self.zones.contains(signer));
                if self.zones.len() <= MAX_CHAIN {
                    self.zones.extend(signer);
                }
                self.keep(record, record.ttl)?;
            }
        }
        Ok(())
    }

    fn target_of(&mut self, record: &Record<'_>) -> Result<FoldedName, Problem> {
        let mut reader = Reader::new(self.packet, record.rdata_at);
        FoldedName::read_compressed(&mut reader, self.hops_left)
            .filter(|_| reader.position() == record.rdata_at + record.rdata.len())
            .ok_or(Problem::Malformed)
    }

    fn keep(&mut self, record: &Record<'_>, ttl: u32) -> Result<(), Problem> {
        let Some((before, names, may_compress)) = rdata_names(record.record_type, record.rdata) else {
            return self.write_record(&record.owner, record.record_type, ttl, record.rdata);
        };
        let rdata_end = record.rdata_at + record.rdata.len();
        let mut reader = Reader::new(self.packet, record.rdata_at);
        let prefix = reader.take(before).ok_or(Problem::Malformed)?;
        let length_at = self.begin_record(&record.owner, record.record_type, ttl)?;
        self.answer.body.extend_from_slice(prefix);
        for _ in 0..names {
            let mut octets = [0; MAX_NAME_OCTETS];
            let length = read_octets(&mut reader, self.hops_left, &mut octets).ok_or(Problem::Malformed)?;
            let wire = octets.get(..length).ok_or(Problem::Malformed)?;
            self.write_name(wire, may_compress);
        }
        let rest =
            rdata_end.checked_sub(reader.position()).and_then(|rest| reader.take(rest)).ok_or(Problem::Malformed)?;
        self.answer.body.extend_from_slice(rest);
        self.end_record(length_at)
    }

    fn write_record(&mut self, owner: &FoldedName, record_type: u16, ttl: u32, rdata: &[u8]) -> Result<(), Problem> {
        let length_at = self.begin_record(owner, record_type, ttl)?;
        self.answer.body.extend_from_slice(rdata);
        self.end_record(length_at)
    }

    fn begin_record(&mut self, owner: &FoldedName, record_type: u16, ttl: u32) -> Result<usize, Problem> {
        let ttl = ttl.clamp(self.bounds.floor, self.bounds.ceiling.max(self.bounds.floor));
        self.answer.ttl = self.answer.ttl.min(ttl);
        self.write_name(owner.as_wire(), true);
        let body = &mut self.answer.body;
        body.extend_from_slice(&record_type.to_be_bytes());
        body.extend_from_slice(&CLASS_IN.to_be_bytes());
        let place = u16::try_from(body.len()).map_err(|_| Problem::Malformed)?;
        self.answer.ttl_places.push(place);
        body.extend_from_slice(&ttl.to_be_bytes());
        body.extend_from_slice(&[0, 0]);
        Ok(body.len() - 2)
    }

    fn end_record(&mut self, length_at: usize) -> Result<(), Problem> {
        let length = self.answer.body.len() - length_at - 2;
        let length = u16::try_from(length).map_err(|_| Problem::Malformed)?;
        if let Some(place) = self.answer.body.get_mut(length_at..length_at + 2) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        self.count = self.count.checked_add(1).ok_or(Problem::Malformed)?;
        Ok(())
    }

    fn write_name(&mut self, wire: &[u8], may_compress: bool) {
        let at = self.body_at + self.answer.body.len();
        let mut start = 0;
        let mut pointer = None;
        if may_compress {
            // A name of 127 labels is searched for its first ones alone: nobody has such names but to cost time.
            for _ in 0..MAX_SEARCHED_LABELS {
                let Some(rest) = wire.get(start..).filter(|rest| rest.len() > 1) else { break };
                pointer = self.written.iter().find_map(|(name, place, literal)| {
                    let offset = name.len().checked_sub(rest.len())?;
                    (offset < *literal && starts_label(name, offset) && name.get(offset..) == Some(rest))
                        .then_some(place + offset)
                        .filter(|&p| p < 0x4000)
                });
                if pointer.is_some() {
                    break;
                }
                start += 1 + usize::from(rest.first().copied().unwrap_or(0));
            }
        }
        match pointer {
            Some(pointer) => {
                self.answer.body.extend_from_slice(wire.get(..start).unwrap_or(&[]));
                self.answer.body.extend_from_slice(&(0xC000 | pointer as u16).to_be_bytes());
            }
            None => {
                self.answer.body.extend_from_slice(wire);
                start = wire.len();
            }
        }
        if start > 1 && self.written.len() < REMEMBERED_NAMES {
            self.written.push((wire.to_vec(), at, start));
        }
    }
}

/// Whether a label starts at an offset: octets inside one may look like a name.
fn starts_label(name: &[u8], offset: usize) -> bool {
    let mut at = 0;
    while at < offset {
        match name.get(at) {
            Some(&length) if length > 0 => at += 1 + usize::from(length),
            _ => return false,
        }
    }
    at == offset
}

fn covered_type(signature: &Record<'_>) -> u16 {
    Reader::new(signature.rdata, 0).short().unwrap_or(0)
}

fn ipv6(octets: [u8; 16]) -> Address {
    std::net::IpAddr::from(octets).into()
}

/// Parameters of SVCB and HTTPS records (RFC 9460 14.3.2).
const MANDATORY: u16 = 0;
const ECH: u16 = 5;

/// An SVCB or HTTPS record, which [`read_service`] has read, without its `ech`; nothing when it has none.
///
/// A list of mandatory parameters must name none that is not there (RFC 9460 8), and must not be empty.
fn without_ech(rdata: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader::new(rdata, 0);
    reader.short()?;
    FoldedName::read(&mut reader)?;
    let mut kept = rdata.get(..reader.position())?.to_vec();
    let mut has_ech = false;
    while !reader.is_at_end() {
        let key = reader.short()?;
        let length = reader.short()?;
        let value = reader.take(usize::from(length))?;
        has_ech |= key == ECH;
        let value: Vec<u8> = match key {
            ECH => continue,
            MANDATORY => value.chunks(2).filter(|&key| key != ECH.to_be_bytes()).flatten().copied().collect(),
            _ => value.to_vec(),
        };
        if key != MANDATORY || !value.is_empty() {
            kept.extend_from_slice(&key.to_be_bytes());
            kept.extend_from_slice(&u16::try_from(value.len()).ok()?.to_be_bytes());
            kept.extend_from_slice(&value);
        }
    }
    has_ech.then_some(kept)
}

/// The target and address hints of an SVCB or HTTPS record (RFC 9460 2.2, 7.3).
fn read_service(rdata: &[u8], targets: &mut Targets) -> Option<()> {
    let mut reader = Reader::new(rdata, 0);
    reader.short()?;
    let target = FoldedName::read(&mut reader)?;
    if target != FoldedName::ROOT {
        targets.push_name(&target);
    }
    while !reader.is_at_end() {
        let key = reader.short()?;
        let length = reader.short()?;
        let value = reader.take(usize::from(length))?;
        match key {
            4 => {
                for hint in value.chunks(4) {
                    let octets: [u8; 4] = hint.try_into().ok()?;
                    targets.push_address(Address::V4(u32::from_be_bytes(octets)));
                }
            }
            6 => {
                for hint in value.chunks(16) {
                    targets.push_address(ipv6(hint.try_into().ok()?));
                }
            }
            _ => {}
        }
    }
    Some(())
}

/// What a question and its answer mean under one generation of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// Apps of the question name.
    pub asked: AppMask,
    /// Apps of what the answer leads to, less what a hole at the question clears.
    pub found: AppMask,
    /// The rule that the question met.
    pub asked_rule: u64,
    /// The rule that the first target met.
    pub found_rule: u64,
    /// Rule set at the question name itself.
    pub exact: Option<u32>,
}

/// Judges a question name and the targets of its answer.
pub fn judge(rules: &Rules, name: &FoldedName, qtype: u16, targets: &Targets<impl AsRef<[u8]>>) -> Meaning {
    meaning(rules, rules.find_for(&rules.key.suffixes(name), name, qtype), targets)
}

/// What a question, whose name is found already, and the targets of its answer mean.
pub fn meaning(rules: &Rules, question: Match, targets: &Targets<impl AsRef<[u8]>>) -> Meaning {
    let mut found = AppMask::EMPTY;
    let mut found_rule = NO_RULE;
    for target in targets.iter() {
        match target {
            Target::Name(name) => {
                let matched = rules.find(&name);
                found = found.or(matched.apps);
                if found_rule == NO_RULE {
                    found_rule = matched.rule;
                }
            }
            Target::Address(address) => {
                let apps = rules.apps_at(address);
                found = found.or(apps);
                if found_rule == NO_RULE && !apps.is_empty() {
                    found_rule = ANY_NETWORK;
                }
            }
        }
    }
    // An alias says where an app is, whatever type was asked for: only an answer without one is the parent's word alone.
    let is_alias = !question.begun.is_empty() && targets.iter().any(|target| matches!(target, Target::Name(_)));
    Meaning {
        asked: if is_alias { question.apps } else { question.apps.without(question.begun) },
        found: found.without(rules.cleared_by(question.holes)),
        asked_rule: question.rule,
        found_rule,
        exact: question.exact,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: TtlBounds = TtlBounds { floor: 0, ceiling: 86_400, negative_ceiling: 3_600 };

    fn name(text: &str) -> FoldedName {
        FoldedName::from_rule_text(text.as_bytes()).unwrap()
    }

    fn message(question: &str, qtype: u16, answers: &[(&str, u16, u32, Vec<u8>)]) -> Vec<u8> {
        let mut packet = vec![0, 1, 0x81, 0x80, 0, 1, 0, answers.len() as u8, 0, 0, 0, 0];
        packet.extend_from_slice(name(question).as_wire());
        packet.extend_from_slice(&qtype.to_be_bytes());
        packet.extend_from_slice(&[0, 1]);
        for (owner, record_type, ttl, rdata) in answers {
            packet.extend_from_slice(name(owner).as_wire());
            packet.extend_from_slice(&record_type.to_be_bytes());
            packet.extend_from_slice(&[0, 1]);
            packet.extend_from_slice(&ttl.to_be_bytes());
            packet.extend_from_slice(&(rdata.len() as u16).to_be_bytes());
            packet.extend_from_slice(rdata);
        }
        packet
    }

    fn cname(from: &str, to: &str) -> (String, Vec<u8>) {
        (from.to_string(), name(to).as_wire().to_vec())
    }

    fn chain(hops: usize) -> Vec<u8> {
        let links: Vec<_> =
            (0..hops).map(|i| cname(&format!("n{i}.example"), &format!("n{}.example", i + 1))).collect();
        let mut records: Vec<(&str, u16, u32, Vec<u8>)> =
            links.iter().map(|(from, to)| (from.as_str(), rtype::CNAME, 60, to.clone())).collect();
        let last = format!("n{hops}.example");
        records.push((&last, rtype::A, 60, vec![192, 0, 2, 1]));
        message("n0.example", rtype::A, &records)
    }

    #[test]
    fn chains_are_followed_to_the_limit_and_no_further() {
        for hops in [1, 7, 16] {
            let answer = read_answer(&chain(hops), &name("n0.example"), rtype::A, false, false, BOUNDS).unwrap();
            assert_eq!(answer.targets.names().len(), hops);
            assert_eq!(answer.counts.answer as usize, hops + 1);
        }
        let over = read_answer(&chain(17), &name("n0.example"), rtype::A, false, false, BOUNDS);
        assert_eq!(over.unwrap_err(), Problem::Chain);
    }

    #[test]
    fn a_loop_is_a_failure() {
        let records = [
            ("a.example", rtype::CNAME, 60, name("b.example").as_wire().to_vec()),
            ("b.example", rtype::CNAME, 60, name("a.example").as_wire().to_vec()),
        ];
        let looped = read_answer(&message("a.example", 1, &records), &name("a.example"), 1, false, false, BOUNDS);
        assert_eq!(looped.unwrap_err(), Problem::Chain);
    }

    #[test]
    fn a_dname_leads_on_and_its_cname_is_made_here() {
        let records = [
            ("old.example", rtype::DNAME, 60, name("new.example").as_wire().to_vec()),
            ("a.new.example", rtype::A, 30, vec![192, 0, 2, 1]),
        ];
        let packet = message("a.old.example", 1, &records);
        let answer = read_answer(&packet, &name("a.old.example"), 1, false, false, BOUNDS).unwrap();
        assert_eq!((answer.counts.answer, answer.ttl), (3, 30));
        assert!(answer.targets.names().contains(&name("a.new.example")));
    }

    #[test]
    fn records_that_were_not_asked_for_are_dropped() {
        let records = [
            ("a.example", rtype::A, 60, vec![192, 0, 2, 1]),
            ("victim.example", rtype::A, 60, vec![192, 0, 2, 66]),
            ("a.example", rtype::TXT, 60, vec![1, b'x']),
        ];
        let answer =
            read_answer(&message("a.example", 1, &records), &name("a.example"), 1, false, false, BOUNDS).unwrap();
        assert_eq!(answer.counts, Counts { answer: 1, authority: 0 });
        assert_eq!(answer.targets.addresses(), vec![Address::V4(0xC000_0201)]);
    }

    #[test]
    fn another_question_is_not_ours() {
        let packet = message("a.example", 1, &[]);
        for (asked, qtype) in [("b.example", 1), ("a.example", 28)] {
            let result = read_answer(&packet, &name(asked), qtype, false, false, BOUNDS);
            assert_eq!(result.unwrap_err(), Problem::NotOurs);
        }
    }

    #[test]
    fn service_targets_and_hints_are_seen() {
        let mut rdata = vec![0, 1];
        rdata.extend_from_slice(name("edge.example").as_wire());
        rdata.extend_from_slice(&[0, 4, 0, 4, 71, 18, 0, 1]);
        rdata.extend_from_slice(&[0, 6, 0, 16]);
        rdata.extend_from_slice(&[0x24, 4, 0x9d, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let packet = message("a.example", rtype::HTTPS, &[("a.example", rtype::HTTPS, 60, rdata)]);
        let answer = read_answer(&packet, &name("a.example"), rtype::HTTPS, false, false, BOUNDS).unwrap();
        assert_eq!(answer.targets.names(), vec![name("edge.example")]);
        assert_eq!(answer.targets.addresses().len(), 2);
    }

    #[test]
    fn ech_is_left_out_where_it_is_not_wanted() {
        // Priority, target, and parameters: mandatory with alpn and ech, alpn, ech.
        let head = [0, 1, 0];
        let mandatory = [0, 0, 0, 4, 0, 1, 0, 5];
        let (alpn, ech) = ([0, 1, 0, 3, 2, b'h', b'2'], [0, 5, 0, 2, 9, 9]);
        let only = [0, 0, 0, 2, 0, 1];
        let with = |parts: &[&[u8]]| [&head[..], &parts.concat()].concat();
        assert_eq!(without_ech(&with(&[&alpn, &ech])), Some(with(&[&alpn])));
        assert_eq!(without_ech(&with(&[&mandatory, &alpn, &ech])), Some(with(&[&only, &alpn])));
        assert_eq!(without_ech(&with(&[&[0, 0, 0, 2, 0, 5], &ech])), Some(with(&[])));
        assert_eq!(without_ech(&with(&[&alpn])), None);
        assert_eq!(without_ech(&with(&[&ech[..4]])), None, "it is cut");
    }

    #[test]
    fn re_encoding_an_encoded_answer_changes_nothing() {
        let packet = chain(7);
        let asked = name("n0.example");
        let first = read_answer(&packet, &asked, 1, false, false, BOUNDS).unwrap();
        let mut again = packet[..12 + asked.wire_length() + 4].to_vec();
        again[6..8].copy_from_slice(&first.counts.answer.to_be_bytes());
        again.extend_from_slice(&first.body);
        assert!(again.len() < packet.len(), "compressed");
        let second = read_answer(&again, &asked, 1, false, false, BOUNDS).unwrap();
        assert_eq!((first.body, first.targets), (second.body, second.targets));
    }

    #[test]
    fn octets_inside_a_label_are_no_name() {
        // CNAME x\002.b.example, then CNAME \001b.example: the second must not point into the first's label.
        let records = [("b.example", rtype::CNAME, 60, b"\x02x\x02\x01b\x07example\0".to_vec())];
        let mut packet = message("b.example", rtype::A, &records);
        packet[7] = 2;
        packet.extend_from_slice(b"\x02x\x02\x01b\x07example\0\0\x05\0\x01\0\0\0\x3c\0\x0c\x02\x01b\x07example\0");
        let asked = name("b.example");
        let first = read_answer(&packet, &asked, rtype::A, false, false, BOUNDS).unwrap();
        let mut again = packet[..12 + asked.wire_length() + 4].to_vec();
        again[6..8].copy_from_slice(&first.counts.answer.to_be_bytes());
        again.extend_from_slice(&first.body);
        let second = read_answer(&again, &asked, rtype::A, false, false, BOUNDS).unwrap();
        assert_eq!(first.targets, second.targets);
    }

    #[test]
    fn names_that_hang_on_one_another_are_followed_to_the_limit() {
        let names: Vec<String> = (0..17)
            .map(|depth| {
                let labels: Vec<String> = (0..depth).rev().map(|at| format!("l{at}")).collect();
                [labels, vec!["e.example".to_string()]].concat().join(".")
            })
            .collect();
        let links: Vec<_> = names.windows(2).map(|pair| cname(&pair[0], &pair[1])).collect();
        let records: Vec<(&str, u16, u32, Vec<u8>)> =
            links.iter().map(|(from, to)| (from.as_str(), rtype::CNAME, 60, to.clone())).collect();
        let asked = name(&names[0]);
        let packet = message(&names[0], rtype::A, &records);
        let first = read_answer(&packet, &asked, rtype::A, false, false, BOUNDS).unwrap();
        assert_eq!(first.targets.names().len(), 16);
        let mut again = packet[..12 + asked.wire_length() + 4].to_vec();
        again[6..8].copy_from_slice(&first.counts.answer.to_be_bytes());
        again.extend_from_slice(&first.body);
        let second = read_answer(&again, &asked, rtype::A, false, false, BOUNDS).unwrap();
        assert_eq!(second.targets, first.targets, "compressed as we compress, it is still read");
    }

    #[test]
    fn a_referral_and_a_bare_failure_are_failures() {
        let mut referral =
            message("a.example", 1, &[("example", rtype::NS, 60, name("ns.example").as_wire().to_vec())]);
        referral[7] = 0;
        referral[9] = 1;
        let asked = name("a.example");
        assert_eq!(
            read_answer(&referral, &asked, 1, false, false, BOUNDS).unwrap_err(),
            Problem::Failed(rcode::REFUSED)
        );
        let bare = [0, 1, 0x81, 0x85, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(read_answer(&bare, &asked, 1, false, false, BOUNDS).unwrap_err(), Problem::Failed(rcode::REFUSED));
    }

    #[test]
    fn an_nxdomain_without_a_soa_is_one_and_is_not_kept() {
        let ns = [("example", rtype::NS, 60, name("ns.example").as_wire().to_vec())];
        let mut packet = message("a.example", 1, &ns);
        (packet[3], packet[7], packet[9]) = (0x83, 0, 1);
        let answer = read_answer(&packet, &name("a.example"), 1, false, false, BOUNDS).unwrap();
        assert_eq!((answer.rcode, answer.counts, answer.ttl), (rcode::NXDOMAIN, Counts::default(), 0));
    }

    #[test]
    fn a_dname_that_applies_twice_is_written_once() {
        let records = [
            ("d.example", rtype::DNAME, 60, name("e.example").as_wire().to_vec()),
            ("a.e.example", rtype::CNAME, 60, name("b.d.example").as_wire().to_vec()),
            ("b.e.example", rtype::A, 60, vec![192, 0, 2, 1]),
        ];
        let packet = message("a.d.example", 1, &records);
        let answer = read_answer(&packet, &name("a.d.example"), 1, false, false, BOUNDS).unwrap();
        // DNAME, CNAME of it, CNAME, CNAME of the DNAME again, A.
        assert_eq!(answer.counts.answer, 5);
        let dnames = answer.body.windows(4).filter(|octets| *octets == [0, 39, 0, 1]).count();
        assert_eq!(dnames, 1);
        assert_eq!(answer.targets.addresses().len(), 1);
    }

    #[test]
    fn yxdomain_needs_a_dname_that_makes_the_name_too_long() {
        let long = format!("{}.example", [&"a".repeat(60)[..]; 4].join("."));
        let dname = [("d.example", rtype::DNAME, 60, name(&long).as_wire().to_vec())];
        let mut packet = message("x.y.z.d.example", 1, &dname);
        packet[3] = 0x86;
        let asked = name("x.y.z.d.example");
        let answer = read_answer(&packet, &asked, 1, false, false, BOUNDS).unwrap();
        assert_eq!((answer.rcode, answer.counts.answer), (rcode::YXDOMAIN, 1));
        packet[7] = 0;
        packet.truncate(12 + asked.wire_length() + 4);
        let alone = read_answer(&packet, &asked, 1, false, false, BOUNDS);
        assert_eq!(alone.unwrap_err(), Problem::Failed(rcode::YXDOMAIN));
    }

    /// What is kept of an answer with these records, of which the last `authority` stand in the authority section.
    fn kept(question: &str, code: u8, records: &[(&str, u16, u32, Vec<u8>)], authority: u8, dnssec_ok: bool) -> Answer {
        let mut packet = message(question, 1, records);
        (packet[3], packet[7], packet[9]) = (0x80 | code, packet[7] - authority, authority);
        read_answer(&packet, &name(question), 1, dnssec_ok, false, BOUNDS).unwrap()
    }

    fn soa(negative: u32) -> Vec<u8> {
        [&[0, 0][..], &[0; 16], &negative.to_be_bytes()].concat()
    }

    #[test]
    fn answers_are_joined_where_an_alias_leads_on() {
        let to = |target: &str| name(target).as_wire().to_vec();
        let head = [("a.one", rtype::CNAME, 300, to("b.two")), ("one", rtype::SOA, 300, soa(60))];
        let head = kept("a.one", 3, &head[..], 1, false);
        let open = |is_denied| Some(OpenEnd { name: name("b.two"), is_denied });
        assert_eq!(head.open_end, open(false), "the SOA of another zone denies nothing");
        let denied = [("a.one", rtype::CNAME, 300, to("b.two")), ("two", rtype::SOA, 300, soa(60))];
        let head = kept("a.one", 3, &denied, 1, false);
        assert_eq!(head.open_end, open(true));
        let tail = kept("b.two", 0, &[("b.two", rtype::A, 100, vec![192, 0, 2, 1])], 0, false);
        let with = |ttls| {
            let tail = Part { ttls, ..tail.as_part() };
            join(&name("a.one"), (1, false), head.as_part(), &name("b.two"), tail, BOUNDS).unwrap()
        };
        let answer = with(Ttls::Aged(30));
        assert_eq!((answer.rcode, answer.counts), (0, Counts { answer: 2, authority: 0 }), "the denial is gone");
        assert_eq!((answer.ttl, answer.open_end), (70, None), "the smallest, and what is old has less left");
        assert_eq!(answer.targets.addresses(), vec![Address::V4(0xC000_0201)]);
        assert_eq!((with(Ttls::Stale(30)).ttl, with(Ttls::Aged(200)).ttl), (30, 0));
        // Negative ends, another open one, a loop, and what does not lead there.
        let join = |tail: &Answer, at: &str| {
            join(&name("a.one"), (1, false), head.as_part(), &name(at), tail.as_part(), BOUNDS)
        };
        let gone = join(&kept("b.two", 3, &[("two", rtype::SOA, 50, soa(40))], 1, false), "b.two").unwrap();
        assert_eq!((gone.rcode, gone.counts, gone.ttl), (3, Counts { answer: 1, authority: 1 }, 40));
        let on = join(&kept("b.two", 0, &[("b.two", rtype::CNAME, 9, to("c.example"))], 0, false), "b.two").unwrap();
        assert_eq!(on.open_end, Some(OpenEnd { name: name("c.example"), is_denied: false }));
        let back = kept("b.two", 0, &[("b.two", rtype::CNAME, 9, to("a.one"))], 0, false);
        assert_eq!(join(&back, "b.two").unwrap_err(), Problem::Chain);
        assert_eq!(join(&tail, "x.two").unwrap_err(), Problem::Chain);
    }

    #[test]
    fn a_joined_answer_keeps_signatures_and_the_proof_of_a_wildcard_alias() {
        let signature = |zone: &str, covered: u16| {
            let mut rdata = covered.to_be_bytes().to_vec();
            rdata.extend_from_slice(&[13, 2, 0, 0, 1, 44, 0x70, 0, 0, 0, 0x60, 0, 0, 0, 0, 1]);
            rdata.extend_from_slice(name(zone).as_wire());
            rdata.extend_from_slice(&[7; 64]);
            rdata
        };
        let nsec = [name("z.one").as_wire(), &[0, 1, 0x40]].concat();
        let head = [
            ("d.one", rtype::DNAME, 60, name("e.one").as_wire().to_vec()),
            ("d.one", rtype::RRSIG, 60, signature("one", rtype::DNAME)),
            ("a.e.one", rtype::CNAME, 60, name("b.two").as_wire().to_vec()),
            ("a.e.one", rtype::RRSIG, 60, signature("one", rtype::CNAME)),
            ("e.one", rtype::NSEC, 60, nsec),
            ("e.one", rtype::RRSIG, 60, signature("one", rtype::NSEC)),
        ];
        let head = kept("a.d.one", 0, &head, 2, true);
        let tail =
            [("b.two", rtype::A, 60, vec![192, 0, 2, 1]), ("b.two", rtype::RRSIG, 60, signature("two", rtype::A))];
        let tail = kept("b.two", 0, &tail, 0, true);
        let answer = |dnssec_ok| {
            let (head, tail) = (head.as_part(), tail.as_part());
            join(&name("a.d.one"), (1, dnssec_ok), head, &name("b.two"), tail, BOUNDS).unwrap().counts
        };
        // DNAME, its signature, its CNAME, CNAME, its signature, A, its signature; NSEC, its signature.
        assert_eq!(answer(true), Counts { answer: 7, authority: 2 });
        assert_eq!(answer(false), Counts { answer: 4, authority: 0 });
    }

    #[test]
    fn the_proof_of_a_wildcard_alias_is_kept_with_do() {
        let signature = |zone: &str, covered: u16| {
            let mut rdata = covered.to_be_bytes().to_vec();
            rdata.extend_from_slice(&[13, 2, 0, 0, 1, 44, 0x70, 0, 0, 0, 0x60, 0, 0, 0, 0, 1]);
            rdata.extend_from_slice(name(zone).as_wire());
            rdata.extend_from_slice(&[7; 64]);
            rdata
        };
        let nsec = [name("z.wild.example").as_wire(), &[0, 1, 0x40]].concat();
        let mut packet = message(
            "a.wild.example",
            1,
            &[
                ("a.wild.example", rtype::CNAME, 60, name("t.other.test").as_wire().to_vec()),
                ("a.wild.example", rtype::RRSIG, 60, signature("wild.example", rtype::CNAME)),
                ("t.other.test", rtype::A, 60, vec![192, 0, 2, 1]),
                ("wild.example", rtype::NSEC, 60, nsec.clone()),
                ("wild.example", rtype::RRSIG, 60, signature("wild.example", rtype::NSEC)),
                ("elsewhere.test", rtype::NSEC, 60, nsec),
            ],
        );
        packet[7] = 3;
        packet[9] = 3;
        let answer = read_answer(&packet, &name("a.wild.example"), 1, true, false, BOUNDS).unwrap();
        assert_eq!(answer.counts, Counts { answer: 3, authority: 2 });
    }

    proptest! {
        /// Any bytes behind a good question give an answer or a problem, and nothing else.
        #[test]
        fn any_bytes_are_read(
            tail in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xC0u8), Just(12u8), Just(5u8), Just(0u8)], 0..400),
            counts: [u8; 3], dnssec_ok: bool,
        ) {
            let mut packet = message("a.example", 5, &[]);
            for (at, count) in [7, 9, 11].into_iter().zip(counts) {
                packet[at] = count % 8;
            }
            packet.extend(tail);
            for qtype in [1u16, 5, 6, 65] {
                packet[12 + 11 + 1] = qtype as u8;
                let _ = read_answer(&packet, &name("a.example"), qtype, dnssec_ok, false, BOUNDS);
            }
        }
    }
}
