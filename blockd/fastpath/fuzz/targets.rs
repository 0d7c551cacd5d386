//! What must hold for any octets: shared by the coverage-guided targets beside this file and the short run of
//! `cargo test` (`tests/fuzz_short.rs`).

use blockd_fastpath::inspect::{TtlBounds, read_answer};
use blockd_fastpath::lists::{self, Format};
use blockd_fastpath::wire::{self, Asker, Counts, FoldedName, Reject};

const BOUNDS: TtlBounds = TtlBounds { floor: 0, ceiling: 86_400, negative_ceiling: 3_600 };

/// A question is read or refused; what was read is rebuilt and reads the same; its reply fits. True when it was read.
pub fn question(data: &[u8]) -> bool {
    let mut name = FoldedName::ROOT;
    let question = match wire::parse_question(data, &mut name) {
        Ok(question) | Err(Reject::BadVersion(question)) => question,
        Err(_) => return false,
    };
    let mut query = Vec::new();
    let dnssec_ok = question.edns.is_some_and(|edns| edns.dnssec_ok);
    let wire_name = question.name.as_wire();
    wire::write_query(&mut query, question.id, wire_name, question.qtype, dnssec_ok, question.checking_disabled, true);
    let mut name = FoldedName::ROOT;
    let again = wire::parse_question(&query, &mut name).expect("what was built is read");
    assert_eq!(again.name, question.name);
    assert_eq!((again.qtype, again.checking_disabled), (question.qtype, question.checking_disabled));
    for is_stream in [false, true] {
        let asker = Asker::of(&question, is_stream);
        let mut reply = Vec::new();
        let error = wire::ExtendedError { code: 15, text: &[b'x'; 180] };
        let body = [0; 900];
        wire::write_reply(&mut reply, &asker, question.echo, 3, false, Counts::default(), &body, Some(error));
        assert!(reply.len() <= asker.limit_octets);
        assert_eq!(&reply[12..12 + question.echo.len()], question.echo);
    }
    true
}

/// Every line of a list gives names or the reason why not; what is a name reads the same again, and a good line is read
/// whatever stands in front of it.
///
/// The first octet picks the format. True when a name was read.
pub fn list(data: &[u8]) -> bool {
    let Some((&choice, rest)) = data.split_first() else { return false };
    let (format, good): (_, &[u8]) = match choice % 5 {
        0 => (Format::Domains, b"good.example"),
        1 => (Format::Hosts, b"::1 good.example"),
        2 => (Format::Adblock, b"@@|good.example^$important"),
        3 => (Format::Dnsmasq, b"server=/*.good.example/#"),
        _ => (Format::Rpz, b""),
    };
    let (mut names, mut has_good) = (0, false);
    if format == Format::Rpz {
        lists::rpz::read(rest, false, &mut |number, rule| {
            assert!(number > 0);
            names += u32::from(rule.is_ok());
        })
        .expect("memory is read");
        return names > 0;
    }
    let text = [rest, b"\n", good].concat();
    lists::read(std::io::Cursor::new(text), format, false, &mut |_| None, &mut |_, line| match line {
        Ok((_, name)) => {
            let text = name.to_string();
            assert!(FoldedName::from_rule_text(text.as_bytes()) == Ok(*name));
            has_good = text == "good.example";
            names += 1;
        }
        Err((why, _)) => assert!(!why.is_empty()),
    })
    .expect("memory is read");
    // A $badfilter is the one line that may take another with it.
    assert!(has_good || format == Format::Adblock);
    names > 1
}

/// An answer is read or refused; what is kept of it reads the same again, octet for octet.
///
/// The first octet picks the query type, DO and the variant without ECH, the rest stands behind a header and a question that fit.
/// True when it was read.
pub fn answer(data: &[u8]) -> bool {
    let Some((&choice, rest)) = data.split_first() else { return false };
    let Some((counts, tail)) = rest.split_at_checked(3) else { return false };
    let name = FoldedName::from_rule_text(b"www.site.example").expect("a name");
    let qtype = [1u16, 5, 6, 15, 28, 33, 39, 46, 64, 65][usize::from(choice % 10)];
    let (dnssec_ok, without_ech) = (choice & 0x80 != 0, choice & 0x40 != 0);
    let mut packet = vec![0, 7, 0x81, 0x80, 0, 1, 0, counts[0] % 16, 0, counts[1] % 8, 0, counts[2] % 4];
    packet.extend_from_slice(name.as_wire());
    packet.extend_from_slice(&qtype.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    let body_at = packet.len();
    packet.extend_from_slice(tail);
    let Ok(first) = read_answer(&packet, &name, qtype, dnssec_ok, without_ech, BOUNDS) else { return false };
    for &place in &first.ttl_places {
        assert!(usize::from(place) + 4 <= first.body.len());
    }
    let mut kept = packet[..body_at].to_vec();
    kept[3] = 0x80 | first.rcode as u8;
    kept[6..8].copy_from_slice(&first.counts.answer.to_be_bytes());
    kept[8..10].copy_from_slice(&first.counts.authority.to_be_bytes());
    kept[10..12].copy_from_slice(&[0, 0]);
    kept.extend_from_slice(&first.body);
    let second = read_answer(&kept, &name, qtype, dnssec_ok, without_ech, BOUNDS).expect("what was kept is read");
    assert_eq!((&second.body, second.counts), (&first.body, first.counts));
    assert_eq!(second.targets, first.targets);
    true
}
