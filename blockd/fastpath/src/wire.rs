//! Bytes of a DNS message, read and written: names, the question of a client, the head of a reply.
//!
//! Pure and panic-free by lint: what comes in here is hostile. Every reader is bounded by the bytes it was given.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::identity::{Address, Conveyed};
use std::fmt;
use std::net::IpAddr;

/// Longest name on the wire, the root label included (RFC 1035 3.1).
pub const MAX_NAME_OCTETS: usize = 255;
/// Longest label (RFC 1035 3.1).
pub const MAX_LABEL_OCTETS: usize = 63;
/// Most labels a name can have, the root not counted: 127 one-octet labels fill 254 octets.
pub const MAX_LABELS: usize = 127;
/// Length of the message header (RFC 1035 4.1.1).
pub const HEADER_OCTETS: usize = 12;
/// Largest UDP answer, whatever the client offers: no fragments (DNS Flag Day 2020).
pub const MAX_UDP_ANSWER_OCTETS: usize = 1232;
/// Largest UDP answer to a client without EDNS (RFC 1035 2.3.4).
pub const PLAIN_UDP_ANSWER_OCTETS: usize = 512;

/// Record types the code names (IANA DNS parameters).
pub mod rtype {
    #![allow(missing_docs)]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const DS: u16 = 43;
    pub const RRSIG: u16 = 46;
    pub const NSEC: u16 = 47;
    pub const DNSKEY: u16 = 48;
    pub const NSEC3: u16 = 50;
    pub const SVCB: u16 = 64;
    pub const HTTPS: u16 = 65;
    pub const TKEY: u16 = 249;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const MAILA: u16 = 254;
    pub const ANY: u16 = 255;
}

/// Response codes the code names (RFC 1035 4.1.1, RFC 6891).
pub mod rcode {
    #![allow(missing_docs)]
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const YXDOMAIN: u16 = 6;
    pub const BADVERS: u16 = 16;
}

/// Extended DNS Errors that go with REFUSED (RFC 8914 4.19, 4.21, 4.22).
pub mod error_code {
    #![allow(missing_docs)]
    pub const PROHIBITED: u16 = 18;
    pub const NOT_AUTHORITATIVE: u16 = 20;
    pub const NOT_SUPPORTED: u16 = 21;
}

/// The Internet class.
pub const CLASS_IN: u16 = 1;

const FLAG_QR: u8 = 0x80;
const FLAG_TC: u8 = 0x02;
const FLAG_RD: u8 = 0x01;
const FLAG_RA: u8 = 0x80;
const FLAG_AD: u8 = 0x20;
const FLAG_CD: u8 = 0x10;

/// A forward-only reader: every step says whether the bytes were there.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at an offset; one past the end reads nothing.
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }
    /// Where the next octet is read.
    pub fn position(&self) -> usize {
        self.at
    }
    /// Whether every octet was read.
    pub fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }
    /// The next `count` octets.
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let slice = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(slice)
    }
    /// The next octet.
    pub fn octet(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }
    /// The next two octets, big-endian.
    pub fn short(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }
    /// The next four octets, big-endian.
    pub fn long(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }
    /// Steps over a name without following its pointer.
    pub fn skip_name(&mut self) -> Option<()> {
        loop {
            match self.octet()? {
                0 => return Some(()),
                length @ 1..=63 => {
                    self.take(length as usize)?;
                }
                0xC0..=0xFF => {
                    self.octet()?;
                    return Some(());
                }
                _ => return None,
            }
        }
    }
}

/// A domain name whose octets are valid, uncompressed and folded to lower case.
///
/// Folding touches `A` to `Z` alone (RFC 4343). Length octets are at most 63 and so never look like letters.
#[derive(Clone, Copy)]
pub struct FoldedName {
    length: u8,
    octets: [u8; MAX_NAME_OCTETS],
}

impl FoldedName {
    /// The root.
    pub const ROOT: Self = Self { length: 1, octets: [0; MAX_NAME_OCTETS] };

    /// Reads an uncompressed name; a pointer, a long label or a long name is no name.
    pub fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let mut name = Self::ROOT;
        name.read_into(reader)?;
        Some(name)
    }

    /// [`FoldedName::read`] in place of what is here.
    fn read_into(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let start = reader.position();
        loop {
            match reader.octet()? {
                0 => break,
                length @ 1..=63 => {
                    reader.take(length as usize)?;
                }
                _ => return None,
            }
            if reader.position() - start >= MAX_NAME_OCTETS {
                return None;
            }
        }
        self.fold(reader.bytes.get(start..reader.position())?)
    }

    /// Takes one whole name in wire form, nothing behind it.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(wire, 0);
        let name = Self::read(&mut reader)?;
        reader.is_at_end().then_some(name)
    }

    fn from_valid(wire: &[u8]) -> Option<Self> {
        let mut name = Self::ROOT;
        name.fold(wire)?;
        Some(name)
    }

    fn fold(&mut self, wire: &[u8]) -> Option<()> {
        let target = self.octets.get_mut(..wire.len())?;
        target.copy_from_slice(wire);
        target.make_ascii_lowercase();
        self.length = u8::try_from(wire.len()).ok()?;
        Some(())
    }

    /// Reads a name that may be compressed, and folds it; see [`read_octets`].
    pub fn read_compressed(reader: &mut Reader<'_>, hops_left: &mut usize) -> Option<Self> {
        let mut octets = [0; MAX_NAME_OCTETS];
        let length = read_octets(reader, hops_left, &mut octets)?;
        Self::from_valid(octets.get(..length)?)
    }

    /// Reads the text of a rule: letters, digits, `-` and `_`, dots between labels, a dot at the end allowed.
    ///
    /// Narrower than DNS on purpose: an escape or a blank in a rule is a mistake, and text is never matched.
    pub fn from_rule_text(text: &[u8]) -> Result<Self, NameError> {
        let mut name = Self::ROOT;
        name.read_rule_text(text)?;
        Ok(name)
    }

    /// [`FoldedName::from_rule_text`] in place of what is here, which is no name after an error.
    pub fn read_rule_text(&mut self, text: &[u8]) -> Result<(), NameError> {
        let text = text.strip_suffix(b".").unwrap_or(text);
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let mut at = 0usize;
        for label in text.split(|&octet| octet == b'.') {
            if label.is_empty() {
                return Err(NameError::EmptyLabel);
            }
            if label.len() > MAX_LABEL_OCTETS {
                return Err(NameError::LongLabel);
            }
            if !label.iter().all(|o| o.is_ascii_alphanumeric() || *o == b'-' || *o == b'_') {
                return Err(NameError::Character);
            }
            // A long name is told when all its labels are seen: which mistake is named must not hang on the order.
            if let Some([length, target @ ..]) = self.octets.get_mut(at..=at + label.len()) {
                *length = label.len() as u8;
                target.copy_from_slice(label);
                target.make_ascii_lowercase();
            }
            at += 1 + label.len();
        }
        if text.rsplit(|&octet| octet == b'.').next().is_some_and(is_number) {
            return Err(NameError::Address);
        }
        self.end_at(at)
    }

    /// Ends the name behind the labels that were written.
    fn end_at(&mut self, at: usize) -> Result<(), NameError> {
        *self.octets.get_mut(at).ok_or(NameError::LongName)? = 0;
        self.length = u8::try_from(at + 1).map_err(|_| NameError::LongName)?;
        Ok(())
    }

    /// Reads presentation form (RFC 1035 5.1), as [`fmt::Display`] writes it: any octet as `\DDD`, `\X` for the character X.
    ///
    /// Blanks, quotes and the like need an escape: unescaped they are more likely a mistake than part of a name.
    pub fn from_presentation(text: &[u8]) -> Result<Self, NameError> {
        let mut name = Self::ROOT;
        if text == b"." {
            return Ok(name);
        }
        let mut octets = text.iter().copied();
        // Where the length of the label that is read stands, and how many octets the label has.
        let (mut start, mut count) = (0usize, 0usize);
        while let Some(octet) = octets.next() {
            let value = match octet {
                b'.' if count == 0 => return Err(NameError::EmptyLabel),
                b'.' => {
                    (start, count) = (start + 1 + count, 0);
                    continue;
                }
                b'\\' => read_escape(&mut octets).ok_or(NameError::Escape)?,
                _ if octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'*' | b'/') => octet,
                _ => return Err(NameError::Unescaped),
            };
            count += 1;
            if count > MAX_LABEL_OCTETS {
                return Err(NameError::LongLabel);
            }
            // As with rules, a long name is told when all its labels are seen.
            if let Some([length, label @ ..]) = name.octets.get_mut(start..=start + count) {
                *length = count as u8;
                if let Some(last) = label.last_mut() {
                    *last = value.to_ascii_lowercase();
                }
            }
        }
        match (start, count) {
            (0, 0) => return Err(NameError::Empty),
            (_, 0) => name.end_at(start)?,
            _ => name.end_at(start + 1 + count)?,
        }
        Ok(name)
    }

    /// The octets on the wire, root label included.
    pub fn as_wire(&self) -> &[u8] {
        self.octets.get(..usize::from(self.length)).unwrap_or(&[0])
    }

    /// Length on the wire.
    pub fn wire_length(&self) -> usize {
        usize::from(self.length)
    }

    /// Where each label starts, from the left, the root not among them; how many.
    pub fn label_starts(&self, starts: &mut [u8; MAX_LABELS + 1]) -> usize {
        let mut count = 0;
        let mut at = 0usize;
        while let Some(&length) = self.octets.get(at) {
            if length == 0 {
                break;
            }
            let Some(slot) = starts.get_mut(count) else {
                break;
            };
            *slot = at as u8;
            count += 1;
            at += 1 + usize::from(length);
        }
        count
    }

    /// The labels from the left, the root not among them.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.as_wire();
        std::iter::from_fn(move || {
            let (&length, tail) = rest.split_first()?;
            if length == 0 || tail.len() < usize::from(length) {
                return None;
            }
            let (label, after) = tail.split_at(usize::from(length));
            rest = after;
            Some(label)
        })
    }

    /// The name without its first label; none of the root.
    pub fn parent(&self) -> Option<Self> {
        let (&length, rest) = self.as_wire().split_first()?;
        if length == 0 { None } else { Self::from_valid(rest.get(usize::from(length)..)?) }
    }

    /// The name without its last labels; none when nothing is left.
    pub fn without_last(&self, labels: usize) -> Option<Self> {
        let mut starts = [0u8; MAX_LABELS + 1];
        let count = self.label_starts(&mut starts);
        let kept = count.checked_sub(labels).filter(|&kept| kept > 0)?;
        let end = if labels == 0 { self.wire_length() - 1 } else { usize::from(*starts.get(kept)?) };
        let mut wire = [0u8; MAX_NAME_OCTETS];
        wire.get_mut(..end)?.copy_from_slice(self.octets.get(..end)?);
        Self::from_valid(wire.get(..=end)?)
    }

    /// Whether this name is `ancestor` or below it, label by label.
    pub fn is_within(&self, ancestor: &FoldedName) -> bool {
        let mut rest = self.as_wire();
        let wanted = ancestor.as_wire();
        while rest.len() >= wanted.len() {
            if rest == wanted {
                return true;
            }
            let Some((&length, tail)) = rest.split_first() else {
                return false;
            };
            match tail.get(usize::from(length)..) {
                Some(after) if length != 0 => rest = after,
                _ => return false,
            }
        }
        false
    }

    /// Replaces the part at and below `owner` by `target` (DNAME, RFC 6672 2.2); none when it grows too long.
    pub fn with_suffix_replaced(&self, owner: &FoldedName, target: &FoldedName) -> Option<Self> {
        let kept = self.wire_length().checked_sub(owner.wire_length())?;
        let mut wire = Vec::with_capacity(kept + target.wire_length());
        wire.extend_from_slice(self.octets.get(..kept)?);
        wire.extend_from_slice(target.as_wire());
        (wire.len() <= MAX_NAME_OCTETS).then(|| Self::from_valid(&wire)).flatten()
    }
}

/// Reads a name with its case, following pointers: each strictly backwards, each charged to the whole message's budget.
///
/// Without the budget, 17 kB of chained pointers cost a second (Unbound CVE-2024-8508 is of this kind).
pub fn read_octets(
    reader: &mut Reader<'_>,
    hops_left: &mut usize,
    octets: &mut [u8; MAX_NAME_OCTETS],
) -> Option<usize> {
    let mut length = 0usize;
    let mut place = *reader;
    let mut followed = false;
    let mut barrier = reader.position();
    loop {
        let octet = place.octet()?;
        match octet {
            0 => {
                *octets.get_mut(length)? = 0;
                if !followed {
                    *reader = place;
                }
                return Some(length + 1);
            }
            1..=63 => {
                let label = place.take(usize::from(octet))?;
                let end = length + 1 + label.len();
                // One octet stays for the root label.
                if end >= MAX_NAME_OCTETS {
                    return None;
                }
                *octets.get_mut(length)? = octet;
                octets.get_mut(length + 1..end)?.copy_from_slice(label);
                length = end;
            }
            0xC0..=0xFF => {
                let low = place.octet()?;
                let target = (usize::from(octet & 0x3F) << 8) | usize::from(low);
                if !followed {
                    *reader = place;
                    followed = true;
                }
                if target >= barrier || *hops_left == 0 {
                    return None;
                }
                *hops_left -= 1;
                barrier = target;
                place.at = target;
            }
            _ => return None,
        }
    }
}

impl PartialEq for FoldedName {
    fn eq(&self, other: &Self) -> bool {
        self.as_wire() == other.as_wire()
    }
}

impl Eq for FoldedName {}

impl std::hash::Hash for FoldedName {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write(self.as_wire());
    }
}

impl fmt::Debug for FoldedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Presentation form without the last dot; odd octets as `\DDD` (RFC 1035 5.1), so that no text is forgeable.
impl fmt::Display for FoldedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for label in self.labels() {
            if !first {
                f.write_str(".")?;
            }
            first = false;
            for &octet in label {
                match octet {
                    b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*' | b'/' => write!(f, "{}", char::from(octet))?,
                    _ => write!(f, "\\{octet:03}")?,
                }
            }
        }
        if first {
            f.write_str(".")?;
        }
        Ok(())
    }
}

/// The octet that an escape stands for, without its backslash.
fn read_escape(octets: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let first = octets.next()?;
    if !first.is_ascii_digit() {
        return matches!(first, b' '..=b'~').then_some(first);
    }
    let (second, third) = (octets.next()?, octets.next()?);
    let digits = [first, second, third];
    let value = digits
        .iter()
        .try_fold(0u32, |value, &digit| digit.is_ascii_digit().then(|| value * 10 + u32::from(digit - b'0')))?;
    u8::try_from(value).ok()
}

/// Whether a last label makes of a text an address, in one of the forms that inet_aton(3) reads: no top-level domain is a
/// number, and clients take such a host for an address (RFC 1123 2.1, WHATWG URL "ends in a number").
fn is_number(label: &[u8]) -> bool {
    let hex = label.strip_prefix(b"0x").or_else(|| label.strip_prefix(b"0X"));
    hex.map_or_else(|| label.iter().all(u8::is_ascii_digit), |digits| digits.iter().all(u8::is_ascii_hexdigit))
}

/// Why a text is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// Nothing there.
    Empty,
    /// Two dots in a row, or a dot in front.
    EmptyLabel,
    /// A label of more than 63 octets.
    LongLabel,
    /// More than 255 octets on the wire.
    LongName,
    /// Something else than a letter, a digit, `-`, `_` or `.`.
    Character,
    /// The last label is a number.
    Address,
    /// A backslash without three digits up to 255 or one character behind it.
    Escape,
    /// A character that presentation form has as an escape.
    Unescaped,
}

impl NameError {
    /// What a person reads.
    pub fn text(self) -> &'static str {
        match self {
            Self::Empty => "an empty name",
            Self::EmptyLabel => "an empty label (two dots in a row, or one in front)",
            Self::LongLabel => "a label of more than 63 octets",
            Self::LongName => "a name of more than 255 octets",
            Self::Character => "a character that is no letter, digit, '-', '_' or '.'",
            Self::Address => "an address, not a name",
            Self::Escape => "an escape that is not \\DDD (000 to 255) or \\ and one character",
            Self::Unescaped => "a character that needs an escape, such as \\032 for a space",
        }
    }
}

/// What a client's OPT record said (RFC 6891 6.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// The UDP payload that the client takes.
    pub udp_octets: u16,
    /// DNSSEC OK.
    pub dnssec_ok: bool,
    /// The client reads structured errors (draft-ietf-dnsop-structured-dns-error 5.1).
    pub wants_structured: bool,
}

/// A question, parsed; `echo` is what goes back byte for byte.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Message ID.
    pub id: u16,
    /// Recursion desired.
    pub recursion_desired: bool,
    /// Authentic data: the client understands AD (RFC 6840 5.7).
    pub authentic_data: bool,
    /// Checking disabled.
    pub checking_disabled: bool,
    /// The name, folded.
    pub name: &'a FoldedName,
    /// Query type.
    pub qtype: u16,
    /// Query class.
    pub qclass: u16,
    /// The question section as it came.
    pub echo: &'a [u8],
    /// The OPT record, when there was one.
    pub edns: Option<Edns>,
    /// Who is said to have asked first.
    pub conveyed: Conveyed,
}

/// Why a packet gets no decision.
#[derive(Debug, Clone, Copy)]
pub enum Reject<'a> {
    /// Too short, or an answer: silence, or two servers could talk for ever.
    Silence,
    /// FORMERR or NOTIMP with a header alone.
    Header {
        /// Message ID.
        id: u16,
        /// The second header line's first octet, for opcode and RD.
        first_flags: u8,
        /// FORMERR or NOTIMP.
        rcode: u16,
    },
    /// EDNS of a version that does not exist yet.
    BadVersion(Question<'a>),
}

/// Reads header, one question and OPT; anything else is refused as `docs/protocol.md` says.
///
/// The folded name is written to `name`: it is the one large thing in a question, and is copied nowhere else on a hit.
pub fn parse_question<'a>(packet: &'a [u8], name: &'a mut FoldedName) -> Result<Question<'a>, Reject<'a>> {
    let mut reader = Reader::new(packet, 0);
    let header = (|| {
        let id = reader.short()?;
        let first_flags = reader.octet()?;
        let second_flags = reader.octet()?;
        let counts = [reader.short()?, reader.short()?, reader.short()?, reader.short()?];
        Some((id, first_flags, second_flags, counts))
    })();
    let Some((id, first_flags, second_flags, [questions, answers, authority, additional])) = header else {
        return Err(Reject::Silence);
    };
    if first_flags & FLAG_QR != 0 {
        return Err(Reject::Silence);
    }
    let header_alone = |rcode| Reject::Header { id, first_flags, rcode };
    if first_flags & 0x78 != 0 {
        return Err(header_alone(rcode::NOTIMP));
    }
    if questions != 1 || answers != 0 || authority != 0 {
        return Err(header_alone(rcode::FORMERR));
    }
    let has_name = name.read_into(&mut reader);
    let name: &'a FoldedName = name;
    let body = (|| {
        has_name?;
        let qtype = reader.short()?;
        let qclass = reader.short()?;
        let echo = packet.get(HEADER_OCTETS..reader.position())?;
        let mut edns: Option<(Edns, u8)> = None;
        let mut conveyed = Conveyed::default();
        for _ in 0..additional {
            let owner_at = reader.position();
            reader.skip_name()?;
            let owner_octets = reader.position() - owner_at;
            let record_type = reader.short()?;
            let class = reader.short()?;
            let ttl = reader.long()?;
            let length = reader.short()?;
            let rdata = reader.take(usize::from(length))?;
            if record_type != rtype::OPT {
                continue;
            }
            if edns.is_some() || owner_octets != 1 {
                return None;
            }
            let wants_structured = read_options(rdata, &mut conveyed)?;
            let [_, version, high_flags, _] = ttl.to_be_bytes();
            edns = Some((Edns { udp_octets: class, dnssec_ok: high_flags & 0x80 != 0, wants_structured }, version));
        }
        reader.is_at_end().then_some((
            Question {
                id,
                recursion_desired: first_flags & FLAG_RD != 0,
                authentic_data: second_flags & FLAG_AD != 0,
                checking_disabled: second_flags & FLAG_CD != 0,
                name,
                qtype,
                qclass,
                echo,
                edns: edns.map(|(edns, _)| edns),
                conveyed,
            },
            edns.is_some_and(|(_, version)| version != 0),
        ))
    })();
    match body {
        None => Err(header_alone(rcode::FORMERR)),
        Some((question, true)) => Err(Reject::BadVersion(question)),
        Some((question, false)) => Ok(question),
    }
}

/// EDNS option code of an Extended DNS Error (RFC 8914).
pub const EXTENDED_ERROR: u16 = 15;
/// EDNS option code by which a client asks for structured errors (IANA, draft-ietf-dnsop-structured-dns-error).
const STRUCTURED_ERROR: u16 = 26;

/// Reads the options of a query's OPT record, which they must fill exactly (RFC 6891 6.1.2); says whether the client
/// reads structured errors. Earlier versions of the draft ask by an Extended DNS Error in the query.
fn read_options(rdata: &[u8], conveyed: &mut Conveyed) -> Option<bool> {
    let mut reader = Reader::new(rdata, 0);
    let (mut wants_structured, mut has_subnet) = (false, false);
    while !reader.is_at_end() {
        let code = reader.short()?;
        let length = reader.short()?;
        let value = reader.take(usize::from(length))?;
        match code {
            // Twice, and one of them is the client's own.
            FORWARDED_MAC if conveyed.mac.is_some() => return None,
            CLIENT_SUBNET if std::mem::replace(&mut has_subnet, true) => return None,
            FORWARDED_MAC => {
                if let &[a, b, c, d, e, f] = value {
                    conveyed.mac = Some(u64::from_be_bytes([0, 0, a, b, c, d, e, f]));
                }
            }
            CLIENT_SUBNET => conveyed.subnet = read_subnet(value),
            _ => {}
        }
        wants_structured |= matches!(code, EXTENDED_ERROR | STRUCTURED_ERROR);
    }
    Some(wants_structured)
}

/// EDNS option code by which dnsmasq conveys a client's MAC (`add-mac`), of those for local use.
const FORWARDED_MAC: u16 = 65_001;
/// EDNS Client Subnet (RFC 7871 6).
const CLIENT_SUBNET: u16 = 8;

/// The subnet of a client; none where it says nothing, or is not as it should be.
fn read_subnet(value: &[u8]) -> Option<Address> {
    let mut reader = Reader::new(value, 0);
    let (family, prefix, scope) = (reader.short()?, reader.octet()?, reader.octet()?);
    let octets = reader.take(usize::from(prefix).div_ceil(8))?;
    if prefix == 0 || scope != 0 || !reader.is_at_end() {
        return None;
    }
    let mut whole = [0u8; 16];
    whole.get_mut(..octets.len())?.copy_from_slice(octets);
    let &[a, b, c, d, ..] = &whole;
    let address = match (family, prefix) {
        (1, ..=32) => IpAddr::from([a, b, c, d]),
        (2, ..=128) => IpAddr::from(whole),
        _ => return None,
    };
    Some(address.into())
}

/// What a PROXY header of version 2 begins with.
const PROXY: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Takes a PROXY header of version 2 off a datagram: what is behind it, and whose it is said to be; `Some(None)` for a
/// proxy that speaks for itself. A header that is cut or of another kind is none: what it stands before is no query.
pub fn strip_proxy(packet: &[u8]) -> (&[u8], Option<Option<Address>>) {
    let stripped = (|| {
        let mut reader = Reader::new(packet.strip_prefix(PROXY)?, 0);
        let (command, kind, length) = (reader.octet()?, reader.octet()?, reader.short()?);
        let addresses = reader.take(usize::from(length))?;
        let rest = packet.get(PROXY.len() + reader.position()..)?;
        match (command, kind, addresses) {
            (0x20, _, _) => Some((rest, Some(None))),
            (0x21, 0x11 | 0x12, &[a, b, c, d, ..]) if length >= 12 => {
                Some((rest, Some(Some(IpAddr::from([a, b, c, d]).into()))))
            }
            (0x21, 0x21 | 0x22, _) if length >= 36 => {
                let source: [u8; 16] = addresses.get(..16)?.try_into().ok()?;
                Some((rest, Some(Some(IpAddr::from(source).into()))))
            }
            _ => None,
        }
    })();
    stripped.unwrap_or((packet, None))
}

/// Who asked, as far as the reply needs it; a waiter keeps one.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Message ID.
    pub id: u16,
    /// Recursion desired.
    pub recursion_desired: bool,
    /// AD in the query.
    pub authentic_data: bool,
    /// CD in the query.
    pub checking_disabled: bool,
    /// OPT of the query.
    pub edns: Option<Edns>,
    /// Most octets a reply may have.
    pub limit_octets: usize,
}

impl Asker {
    /// From a question that came by UDP or, with `is_stream`, by TCP.
    pub fn of(question: &Question<'_>, is_stream: bool) -> Self {
        let limit_octets = match question.edns {
            _ if is_stream => usize::from(u16::MAX),
            None => PLAIN_UDP_ANSWER_OCTETS,
            Some(edns) => usize::from(edns.udp_octets).clamp(PLAIN_UDP_ANSWER_OCTETS, MAX_UDP_ANSWER_OCTETS),
        };
        Self {
            id: question.id,
            recursion_desired: question.recursion_desired,
            authentic_data: question.authentic_data,
            checking_disabled: question.checking_disabled,
            edns: question.edns,
            limit_octets,
        }
    }

    /// Whether the client asked for DNSSEC records.
    pub fn is_dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }
}

/// Counts of the three record sections, OPT not among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answer section.
    pub answer: u16,
    /// Authority section.
    pub authority: u16,
}

/// An Extended DNS Error (RFC 8914): its code and text.
#[derive(Debug, Clone, Copy)]
pub struct ExtendedError<'a> {
    /// INFO-CODE.
    pub code: u16,
    /// EXTRA-TEXT, may be empty.
    pub text: &'a [u8],
}

/// Writes a reply: header, the question as asked, the body, OPT when the client sent one.
///
/// A reply over the client's limit keeps its question and sets TC (RFC 2181 9). Returns whether it was cut.
pub fn write_reply(
    out: &mut Vec<u8>,
    asker: &Asker,
    echo: &[u8],
    rcode: u16,
    authentic_data: bool,
    counts: Counts,
    body: &[u8],
    error: Option<ExtendedError<'_>>,
) -> bool {
    out.clear();
    let opt_octets = if asker.edns.is_some() { 11 } else { 0 };
    let without_error = HEADER_OCTETS + echo.len() + body.len() + opt_octets;
    let is_cut = without_error > asker.limit_octets;
    let (counts, body) = if is_cut { (Counts::default(), &[][..]) } else { (counts, body) };
    // An error is the first thing to go: what was asked for matters more than why.
    let room = asker.limit_octets.saturating_sub(without_error);
    let error = error.filter(|e| asker.edns.is_some() && 6 + e.text.len() <= room);
    let mut first = FLAG_QR;
    if asker.recursion_desired {
        first |= FLAG_RD;
    }
    if is_cut {
        first |= FLAG_TC;
    }
    let mut second = FLAG_RA | (rcode & 0x0F) as u8;
    if authentic_data {
        second |= FLAG_AD;
    }
    if asker.checking_disabled {
        second |= FLAG_CD;
    }
    let ([a, b], [e, f], [g, h]) =
        (asker.id.to_be_bytes(), counts.answer.to_be_bytes(), counts.authority.to_be_bytes());
    // One copy of the whole header: the reply is written once a query.
    out.extend_from_slice(&[a, b, first, second, 0, 1, e, f, g, h, 0, u8::from(asker.edns.is_some())]);
    out.extend_from_slice(echo);
    out.extend_from_slice(body);
    if let Some(edns) = asker.edns {
        write_opt(out, MAX_UDP_ANSWER_OCTETS as u16, (rcode >> 4) as u8, edns.dnssec_ok, error);
    }
    is_cut
}

/// Makes a reply a failure: header and question remain.
pub fn set_failed(reply: &mut Vec<u8>) {
    let mut reader = Reader::new(reply, HEADER_OCTETS);
    let end = reader.skip_name().and_then(|()| reader.take(4)).map(|_| reader.position());
    reply.truncate(end.unwrap_or(HEADER_OCTETS));
    reply.shrink_to_fit();
    let Some([_, _, flags, status, high, low, counts @ ..]) = reply.first_chunk_mut::<HEADER_OCTETS>() else { return };
    *flags &= !0x06;
    *status = (*status & 0xD0) | rcode::SERVFAIL as u8;
    counts.fill(0);
    if end.is_none() {
        (*high, *low) = (0, 0);
    }
}

/// Says that a reply is cut, so that the client asks again over TCP.
pub fn set_truncated(reply: &mut [u8]) {
    if let Some(flags) = reply.get_mut(2) {
        *flags |= FLAG_TC;
    }
}

/// Writes an OPT record: size, extended rcode, DO, and one Extended DNS Error at most.
pub fn write_opt(
    out: &mut Vec<u8>,
    udp_octets: u16,
    extended_rcode: u8,
    dnssec_ok: bool,
    error: Option<ExtendedError<'_>>,
) {
    out.push(0);
    out.extend_from_slice(&rtype::OPT.to_be_bytes());
    out.extend_from_slice(&udp_octets.to_be_bytes());
    out.extend_from_slice(&[extended_rcode, 0, if dnssec_ok { 0x80 } else { 0 }, 0]);
    match error {
        None => out.extend_from_slice(&[0, 0]),
        Some(error) => {
            let text_octets = error.text.len() as u16;
            out.extend_from_slice(&(text_octets + 6).to_be_bytes());
            out.extend_from_slice(&EXTENDED_ERROR.to_be_bytes());
            out.extend_from_slice(&(text_octets + 2).to_be_bytes());
            out.extend_from_slice(&error.code.to_be_bytes());
            out.extend_from_slice(error.text);
        }
    }
}

/// Writes FORMERR or NOTIMP: a header alone, opcode and RD as they came.
pub fn write_header_alone(out: &mut Vec<u8>, id: u16, first_flags: u8, rcode: u16) {
    out.clear();
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[FLAG_QR | (first_flags & 0x79), FLAG_RA | rcode as u8]);
    out.extend_from_slice(&[0; 8]);
}

/// Writes the query that goes upstream, from the judged question alone: nothing else of the client's leaves.
///
/// AD asks the upstream to say what it validated (RFC 6840 5.7).
pub fn write_query(
    out: &mut Vec<u8>,
    id: u16,
    name: &[u8],
    qtype: u16,
    dnssec_ok: bool,
    checking_disabled: bool,
    has_opt: bool,
) {
    out.clear();
    out.extend_from_slice(&id.to_be_bytes());
    let second = FLAG_AD | if checking_disabled { FLAG_CD } else { 0 };
    out.extend_from_slice(&[FLAG_RD, second, 0, 1, 0, 0, 0, 0, 0, u8::from(has_opt)]);
    out.extend_from_slice(name);
    out.extend_from_slice(&qtype.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    if has_opt {
        write_opt(out, MAX_UDP_ANSWER_OCTETS as u16, 0, dnssec_ok, None);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A query of A for x., with an OPT of these options.
    fn with_options(options: &[u8]) -> Vec<u8> {
        let mut wire = b"\0\x07\x01\0\0\x01\0\0\0\0\0\x01\x01x\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0".to_vec();
        wire.extend_from_slice(&(options.len() as u16).to_be_bytes());
        wire.extend_from_slice(options);
        wire
    }

    fn conveyed(options: &[u8]) -> Conveyed {
        parse_question(&with_options(options)).unwrap().conveyed
    }

    #[test]
    fn what_options_convey_is_read_or_left() {
        let mac = conveyed(b"\xfd\xe9\0\x06\x02\0\0\0\0\x07").mac;
        assert_eq!(mac, Some(0x0200_0000_0007));
        for other in [&b"\xfd\xe9\0\x05\x02\0\0\0\0"[..], b"\xfd\xe9\0\0", b"\0\x0a\0\x08abcdefgh"] {
            assert_eq!(conveyed(other), Conveyed::default(), "{other:?}");
        }
        let v4 = |text: &str| Some(Address::from(text.parse::<IpAddr>().unwrap()));
        for (option, subnet) in [
            (&b"\0\x08\0\x08\0\x01\x20\0\x0a\0\0\x09"[..], v4("10.0.0.9")),
            (b"\0\x08\0\x07\0\x01\x18\0\x0a\0\0", v4("10.0.0.0")),
            (b"\0\x08\0\x06\0\x02\x10\0\x20\x01", v4("2001::")),
            (b"\0\x08\0\x04\0\x01\0\0", None),
            (b"\0\x08\0\x08\0\x01\x20\x18\x0a\0\0\x09", None),
            (b"\0\x08\0\x09\0\x01\x20\0\x0a\0\0\x09\0", None),
            (b"\0\x08\0\x08\0\x01\x21\0\x0a\0\0\x09", None),
            (b"\0\x08\0\x08\0\x03\x20\0\x0a\0\0\x09", None),
            (b"\0\x08\0\x02\0\x01", None),
        ] {
            assert_eq!(conveyed(option).subnet, subnet, "{option:?}");
        }
    }

    #[test]
    fn a_proxy_header_is_taken_off() {
        let behind = with_options(b"");
        let with = |head: &[u8]| [&PROXY[..], head, &behind].concat();
        let address = |text: &str| Some(Some(Address::from(text.parse::<IpAddr>().unwrap())));
        let v6 = [&b"\x21\x22\0\x24"[..], &[0x20, 1], &[0; 13], &[9], &[0; 20]].concat();
        for (head, whose) in [
            (&b"\x21\x12\0\x0c\x0a\0\0\x09\x7f\0\0\x01\xd4\x31\0\x35"[..], address("10.0.0.9")),
            (b"\x21\x12\0\x0f\x0a\0\0\x09\x7f\0\0\x01\xd4\x31\0\x35\x04\0\0", address("10.0.0.9")),
            (&v6, address("2001::9")),
            (b"\x20\0\0\0", Some(None)),
        ] {
            assert_eq!(strip_proxy(&with(head)), (&behind[..], whose), "{head:?}");
        }
        for wrong in
            [&b"\x21\x12\0\x0b\x0a\0\0\x09\x7f\0\0\x01\xd4\x31\0"[..], b"\x11\x12\0\0", b"\x21\x12\xff\xff", b"\x21"]
        {
            let packet = with(wrong);
            assert_eq!(strip_proxy(&packet), (&packet[..], None), "{wrong:?}");
        }
        assert_eq!(strip_proxy(&behind), (&behind[..], None));
    }

    /// The name lives as long as the test.
    fn parse_question(packet: &[u8]) -> Result<Question<'_>, Reject<'_>> {
        super::parse_question(packet, Box::leak(Box::new(FoldedName::ROOT)))
    }

    fn query(name: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        packet.extend_from_slice(name);
        packet.extend_from_slice(&[0, 1, 0, 1]);
        packet
    }

    #[test]
    fn a_plain_question_is_read_and_folded() {
        let packet = query(b"\x03WwW\x06TikTok\x03com\0");
        let question = parse_question(&packet).unwrap();
        assert_eq!(question.name.to_string(), "www.tiktok.com");
        assert_eq!(question.echo, &packet[12..]);
    }

    #[test]
    fn one_label_with_a_dot_in_it_is_not_two_labels() {
        let packet = query(b"\x0atiktok.com\0");
        let name = *parse_question(&packet).unwrap().name;
        let rule = FoldedName::from_rule_text(b"tiktok.com").unwrap();
        assert!(name != rule && !name.is_within(&rule));
        assert_eq!(name.to_string(), "tiktok\\046com");
    }

    #[test]
    fn presentation_form_is_read_as_it_is_written() {
        let read = |text: &str| FoldedName::from_presentation(text.as_bytes());
        for (text, written) in [
            ("A.Example", "a.example"),
            ("a.example.", "a.example"),
            (".", "."),
            (r"my\032printer.example", r"my\032printer.example"),
            (r"my\ printer.example", r"my\032printer.example"),
            (r"a\.b.example", r"a\046b.example"),
            (r"a\046b.example.", r"a\046b.example"),
            (r"\065.example", "a.example"),
            (r"\000\255.example", r"\000\255.example"),
            (r"\\.example", r"\092.example"),
            (r"\a\-.example", "a-.example"),
            ("*.a/b_c.example", "*.a/b_c.example"),
            ("192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(read(text).map(|name| name.to_string()), Ok(written.into()), "{text}");
        }
        let long = "a".repeat(63);
        let longest = format!("{long}.{long}.{long}.{}", "a".repeat(61));
        assert_eq!(read(&longest).unwrap().wire_length(), MAX_NAME_OCTETS);
        assert_eq!(read(&format!("{longest}.")).unwrap().wire_length(), MAX_NAME_OCTETS);
        assert_eq!(read(&"\\001".repeat(63)).unwrap().wire_length(), 65);
        for (text, why) in [
            ("", NameError::Empty),
            ("..", NameError::EmptyLabel),
            (".a", NameError::EmptyLabel),
            ("a..b", NameError::EmptyLabel),
            ("a.b..", NameError::EmptyLabel),
            (r"\999.example", NameError::Escape),
            (r"\256", NameError::Escape),
            (r"\25", NameError::Escape),
            (r"\1a2", NameError::Escape),
            ("a\\", NameError::Escape),
            ("\\\u{e9}", NameError::Escape),
            ("a b.example", NameError::Unescaped),
            ("a\"b", NameError::Unescaped),
            (&"a".repeat(64), NameError::LongLabel),
            (&r"\001".repeat(64), NameError::LongLabel),
            (&format!("{longest}a"), NameError::LongName),
            (&"a.".repeat(128), NameError::LongName),
            (&"a.".repeat(5_000), NameError::LongName),
        ] {
            assert_eq!(read(text).err(), Some(why), "{text}");
        }
    }

    #[test]
    fn an_address_is_not_the_name_of_a_rule() {
        for text in
            ["192.0.2.1", "192.0.2.1.", "3232235777", "0x7f.1", "0X7F000001", "a.example.1", "0300.0250.1.1", "a.0x"]
        {
            assert_eq!(FoldedName::from_rule_text(text.as_bytes()).err(), Some(NameError::Address), "{text}");
        }
        for text in
            ["1.2.3.4.example", "1.0.0.127.in-addr.arpa", "a.1e", "0xg", "x0x1", "4chan.example", "a.xn--1", "1-2"]
        {
            assert!(FoldedName::from_rule_text(text.as_bytes()).is_ok(), "{text}");
        }
    }

    proptest! {
        /// Every name on the wire is read back from what is written of it.
        #[test]
        fn what_is_written_is_read_back(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..64), 0..5), text in any::<Vec<u8>>()) {
            let mut wire: Vec<u8> = Vec::new();
            for label in &labels {
                wire.push(label.len() as u8);
                wire.extend_from_slice(label);
            }
            wire.push(0);
            if let Some(name) = FoldedName::from_wire(&wire) {
                prop_assert!(FoldedName::from_presentation(name.to_string().as_bytes()) == Ok(name));
            }
            if let Ok(name) = FoldedName::from_presentation(&text) {
                prop_assert!(FoldedName::from_wire(name.as_wire()) == Some(name));
            }
        }
    }

    #[test]
    fn every_malformed_question_has_its_answer() {
        let good = query(b"\x01a\0");
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut packet = good.clone();
            change(&mut packet);
            packet
        };
        let opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";
        let cases: Vec<(&str, Vec<u8>, u16)> = vec![
            ("opcode STATUS", with(&|p| p[2] |= 0x10), rcode::NOTIMP),
            ("no question", with(&|p| p[5] = 0), rcode::FORMERR),
            ("two questions", with(&|p| p[5] = 2), rcode::FORMERR),
            ("an answer record", with(&|p| p[7] = 1), rcode::FORMERR),
            ("an authority record", with(&|p| p[9] = 1), rcode::FORMERR),
            ("trailing bytes", with(&|p| p.push(0)), rcode::FORMERR),
            ("label 64", query(&[&[64][..], &[b'a'; 64], &[0]].concat()), rcode::FORMERR),
            ("label with reserved bits", query(&[&[0x80][..], &[b'a'; 128], &[0]].concat()), rcode::FORMERR),
            ("a pointer", query(b"\xc0\x0c"), rcode::FORMERR),
            (
                "a name of 256 octets",
                query(&[&[&[63][..], &[b'a'; 63]].concat().repeat(3)[..], &[62], &[b'a'; 62], &[0]].concat()),
                rcode::FORMERR,
            ),
            (
                "two OPTs",
                with(&|p| {
                    p[11] = 2;
                    p.extend_from_slice(opt);
                    p.extend_from_slice(opt)
                }),
                rcode::FORMERR,
            ),
            (
                "a cut option",
                with(&|p| {
                    p[11] = 1;
                    p.extend_from_slice(b"\0\0\x29\x04\xd0\0\0\0\0\0\x03\0\x01\0")
                }),
                rcode::FORMERR,
            ),
        ];
        for (what, packet, wanted) in cases {
            match parse_question(&packet) {
                Err(Reject::Header { rcode, .. }) => assert_eq!(rcode, wanted, "{what}"),
                other => panic!("{what}: {other:?}"),
            }
        }
        assert!(matches!(parse_question(&with(&|p| p[2] |= 0x80)), Err(Reject::Silence)));
        assert!(matches!(parse_question(&good[..11]), Err(Reject::Silence)));
        let version = with(&|p| {
            p[11] = 1;
            p.extend_from_slice(b"\0\0\x29\x04\xd0\0\x01\0\0\0\0")
        });
        assert!(matches!(parse_question(&version), Err(Reject::BadVersion(_))));
    }

    #[test]
    fn names_of_255_octets_pass() {
        let wire = [&[&[63][..], &[b'A'; 63]].concat().repeat(3)[..], &[61], &[b'a'; 61], &[0]].concat();
        assert_eq!(wire.len(), 255);
        assert_eq!(parse_question(&query(&wire)).unwrap().name.wire_length(), 255);
    }

    #[test]
    fn a_reply_that_is_too_long_is_cut_and_says_so() {
        let packet = query(b"\x01a\0");
        let question = parse_question(&packet).unwrap();
        let asker = Asker::of(&question, false);
        let mut out = Vec::new();
        let counts = Counts { answer: 1, authority: 0 };
        assert!(write_reply(&mut out, &asker, question.echo, 0, false, counts, &[0; 600], None));
        assert_eq!((out.len(), out[2] & FLAG_TC, out[7]), (packet.len(), FLAG_TC, 0));
    }

    fn any_name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=63), 0..8).prop_filter_map("255", |labels| {
            let mut wire = Vec::new();
            for label in labels {
                wire.push(label.len() as u8);
                wire.extend(label);
            }
            wire.push(0);
            (wire.len() <= 255).then_some(wire)
        })
    }

    proptest! {
        /// Any bytes give a question or a rejection, and nothing else.
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse_question(&bytes);
        }

        /// Parsing what was built gives it back.
        #[test]
        fn parse_of_build_is_identity(wire in any_name(), qtype: u16, id: u16, dnssec_ok: bool, cd: bool) {
            let folded: Vec<u8> = wire.to_ascii_lowercase();
            let mut packet = Vec::new();
            write_query(&mut packet, id, &wire, qtype, dnssec_ok, cd, true);
            let question = parse_question(&packet).unwrap();
            prop_assert_eq!(question.name.as_wire(), &folded[..]);
            prop_assert_eq!((question.id, question.qtype, question.checking_disabled), (id, qtype, cd));
            prop_assert_eq!(question.edns.unwrap().dnssec_ok, dnssec_ok);
        }

        /// A name behind any pointers is read in as many steps as it has octets, or refused.
        #[test]
        fn compressed_names_end(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xC0u8), Just(1u8)], 1..600), at in 0usize..600) {
            let mut budget = bytes.len();
            let _ = FoldedName::read_compressed(&mut Reader::new(&bytes, at), &mut budget);
        }
    }
}
