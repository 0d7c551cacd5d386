//! What each structure of the hot path costs alone, in nanoseconds: where a load benchmark moves, this says which.

use blockd_fastpath::admission::Buckets;
use blockd_fastpath::cache::{Cache, Entry as Cached, Key, pin};
use blockd_fastpath::decide::{AppMask, NO_RULE};
use blockd_fastpath::domains::{DomainTable, Entry, HashKey};
use blockd_fastpath::identity::Address;
use blockd_fastpath::inspect::{Answer, Meaning, TtlBounds, read_answer};
use blockd_fastpath::prefixes::{Prefix, PrefixTable};
use blockd_fastpath::wire::{FoldedName, parse_question};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;

fn query(name: &str) -> Vec<u8> {
    let name = FoldedName::from_rule_text(name.as_bytes()).expect("a name");
    [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name.as_wire(), &[0, 1, 0, 1]].concat()
}

fn wire(c: &mut Criterion) {
    let asked = query("www.some-site.example");
    let mut name = FoldedName::ROOT;
    c.bench_function("a question is read", |b| b.iter(|| parse_question(black_box(&asked), &mut name).is_ok()));
    let mut answer = asked.clone();
    (answer[2], answer[3], answer[7]) = (0x81, 0x80, 2);
    for last in [1, 2] {
        answer.extend_from_slice(&[0xC0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 192, 0, 2, last]);
    }
    let name = FoldedName::from_rule_text(b"www.some-site.example").expect("a name");
    let bounds = TtlBounds { floor: 0, ceiling: 86_400, negative_ceiling: 3_600 };
    assert!(read_answer(&answer, &name, 1, false, false, bounds).is_ok());
    c.bench_function("an answer is read", |b| {
        b.iter(|| read_answer(black_box(&answer), &name, 1, false, false, bounds).is_ok())
    });
    let key = HashKey(1, 2);
    c.bench_function("a name of three labels is hashed", |b| {
        b.iter(|| *key.suffixes(black_box(&name)).last().unwrap())
    });
}

fn tables(c: &mut Criterion) {
    let key = HashKey(1, 2);
    let print = |number: u32| key.chain(7, &number.to_be_bytes());
    let mut entries: Vec<_> = (0..1_000_000).map(|number| Entry::new(print(number), 0)).collect();
    entries.sort_unstable_by_key(Entry::print);
    let table = DomainTable::build(&entries);
    let asked: Vec<u64> = (0..2_000_000).map(|number: u32| print(number.wrapping_mul(7_919) % 2_000_000)).collect();
    let mut at = 0;
    let mut next = move || {
        at = (at + 1) % 2_000_000;
        at
    };
    c.bench_function("a million names, half of the asked are there", |b| {
        b.iter(|| table.find(asked[next()]).is_some())
    });
    let prefixes: Vec<_> = (0..1_000_000u32)
        .map(|number| Prefix { address: Address::V4(0x0A00_0000 + number * 2), length: 32, value: number % 3 })
        .collect();
    let devices = PrefixTable::build(&prefixes, |_, inner| inner);
    let mut number = 0u32;
    c.bench_function("a million devices, half of the asked are there", |b| {
        b.iter(|| {
            number = number.wrapping_add(7_919) % 2_000_000;
            devices.find(Address::V4(0x0A00_0000 + number))
        })
    });
    let buckets = Buckets::new(1 << 16);
    let mut client = 0u64;
    c.bench_function("one of 1,000 clients is admitted", |b| {
        b.iter(|| {
            client = (client + 1) % 1_000;
            buckets.admit(client, black_box(1_000), 1_000_000, 1_000_000)
        })
    });
}

fn cache(c: &mut Criterion) {
    let cache = Cache::new(64 << 20);
    let queries: Vec<_> = (0..5_000).map(|number| query(&format!("n{number}.example"))).collect();
    for query in &queries {
        let mut name = FoldedName::ROOT;
        let question = parse_question(query, &mut name).expect("a question");
        let hash = cache.locate(&question, false).hash;
        let key = Key {
            hash,
            name: *question.name,
            qtype: 1,
            dnssec_ok: false,
            checking_disabled: false,
            without_ech: false,
            route: 0,
        };
        let meaning = Meaning {
            asked: AppMask::EMPTY,
            found: AppMask::EMPTY,
            asked_rule: NO_RULE,
            found_rule: NO_RULE,
            exact: None,
        };
        let entry = Cached::new(&key, Answer { body: vec![0; 32], ttl: 300, ..Answer::default() }, meaning, 1, 1_000);
        assert!(cache.insert(&key, entry, 1_000));
    }
    let mut at = 0;
    c.bench_function("an entry of 5,000 is found, its question read and hashed", |b| {
        b.iter(|| {
            at = (at + 1) % queries.len();
            let mut name = FoldedName::ROOT;
            let question = parse_question(&queries[at], &mut name).expect("a question");
            let guard = pin();
            cache.get(&cache.locate(&question, false), 2_000, &guard).expect("it is there").body().len()
        })
    });
}

criterion_group!(structures, wire, tables, cache);
criterion_main!(structures);
