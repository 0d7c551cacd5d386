//! A short run of the fuzz targets on the stable toolchain: seeds, mutated without an idea of coverage.

#[path = "../fuzz/targets.rs"]
mod targets;

const ROUNDS: u32 = 400_000;
/// A list costs more to read than a packet.
const LIST_ROUNDS: u32 = 40_000;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Octets that mean something: lengths, pointers, types, counts.
const TELLING: [u8; 16] = [0, 1, 2, 4, 5, 6, 12, 28, 39, 41, 46, 63, 64, 0xC0, 0xC1, 0xFF];

fn mutate(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(data.len());
        match random.below(6) {
            0 if !data.is_empty() => data[at] = random.next() as u8,
            1 if !data.is_empty() => data[at] = TELLING[random.below(TELLING.len())],
            2 => data.insert(at, TELLING[random.below(TELLING.len())]),
            3 if !data.is_empty() => {
                data.remove(at);
            }
            4 => data.truncate(at),
            _ => {
                let end = at + random.below(data.len() - at);
                let piece = data[at..end].to_vec();
                let place = random.below(data.len());
                data.splice(place..place, piece);
            }
        }
        data.truncate(4096);
    }
    data
}

/// Every seed is read, and so is a good part of what becomes of them: a run that reads nothing shows nothing.
fn run(seeds: &[Vec<u8>], rounds: u32, target: fn(&[u8]) -> bool) {
    let mut random = Random(0x2023_0316);
    let mut read = 0;
    for (at, seed) in seeds.iter().enumerate() {
        assert!(target(seed), "seed {at} is not read");
        for _ in 0..rounds / seeds.len() as u32 {
            read += u32::from(target(&mutate(&mut random, seed)));
        }
    }
    assert!(read > rounds / 50, "{read} of {rounds} were read");
}

#[test]
fn questions() {
    let plain =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x06tiktok\x03com\x00\x00\x01\x00\x01".to_vec();
    let mut edns = plain.clone();
    edns[11] = 1;
    edns.extend_from_slice(b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x0c\x00\x0a\x00\x08abcdefgh");
    run(&[plain, edns], ROUNDS, targets::question);
}

#[test]
fn lists() {
    let seeds: [&[u8]; 5] = [
        b"\x00\xEF\xBB\xBFa.example # why\r\n*.b.example\n192.0.2.1\ncom\n",
        b"\x01127.0.0.1 localhost\n0.0.0.0\ta.example 192.0.2.1 b.example\n",
        b"\x02||a.example^$important\n@@|b.a.example^\n||192.0.2.1^\n||c.example^$denyallow=d.c.example\n||a.example^$badfilter\n",
        b"\x03address=/*.a.example/.b.example/#\nserver=\"/c.example/\"\nlocal=/#/\nipset=/a.example/set\n",
        b"\x04rpz.test. 60 IN SOA a. b. ( 1 2 3 ; c\n 4 5 )\na.example CNAME .\n*.b CNAME *.\n24.0.2.0.192.rpz-ip CNAME .\n",
    ];
    run(&seeds.map(<[u8]>::to_vec), LIST_ROUNDS, targets::list);
}

fn record(owner: &[u8], kind: u16, rdata: &[u8]) -> Vec<u8> {
    let mut octets = owner.to_vec();
    octets.extend_from_slice(&kind.to_be_bytes());
    octets.extend_from_slice(&[0, 1, 0, 0, 1, 44]);
    octets.extend_from_slice(&(rdata.len() as u16).to_be_bytes());
    octets.extend_from_slice(rdata);
    octets
}

#[test]
fn answers() {
    let seed =
        |choice: u8, counts: [u8; 3], records: &[Vec<u8>]| [vec![choice], counts.to_vec(), records.concat()].concat();
    let edge = b"\x04edge\x04site\x07example\x00";
    let soa = [&b"\xc0\x15\xc0\x0c"[..], &[0; 20]].concat();
    let signature =
        [&b"\x00\x01\x0d\x02\x00\x00\x01\x2c\x70\x00\x00\x00\x60\x00\x00\x00\x00\x01\x07example\x00"[..], &[7; 64]]
            .concat();
    let service = [&b"\x00\x01"[..], edge, b"\x00\x04\x00\x04\x47\x12\x00\x01\x00\x06\x00\x10", &[9; 16]].concat();
    let seeds = [
        seed(0, [2, 0, 0], &[record(b"\xc0\x0c", 5, edge), record(edge, 1, &[71, 18, 0, 1])]),
        seed(
            0,
            [2, 0, 1],
            &[
                record(b"\xc0\x10", 39, b"\x03new\xc0\x15"),
                record(b"\x03www\x03new\x07example\x00", 1, &[1; 4]),
                record(b"\x00", 41, b""),
            ],
        ),
        seed(0x80, [2, 0, 0], &[record(b"\xc0\x0c", 1, &[1; 4]), record(b"\xc0\x0c", 46, &signature)]),
        seed(
            0x84,
            [0, 3, 0],
            &[
                record(b"\xc0\x15", 6, &soa),
                record(b"\xc0\x15", 47, b"\x01a\x07example\x00\x00\x01\x40"),
                record(b"\xc0\x15", 46, &signature),
            ],
        ),
        seed(9, [1, 0, 0], &[record(b"\xc0\x0c", 65, &service)]),
        seed(
            3,
            [2, 0, 0],
            &[record(b"\xc0\x0c", 15, b"\x00\x0a\x04mail\xc0\x10"), record(b"\xc0\x0c", 15, b"\x00\x14\xc0\x0c")],
        ),
        seed(5, [1, 0, 0], &[record(b"\xc0\x0c", 33, b"\x00\x00\x00\x00\x00\x35\x04Edge\xc0\x10")]),
        seed(1, [1, 0, 0], &[record(b"\xc0\x0c", 5, b"\x04EDGE\xc0\x10")]),
    ];
    run(&seeds, ROUNDS, targets::answer);
}
