//! The floor: one thread, recvmmsg and sendmmsg in batches of 64, one hash lookup a query, no features.
//!
//! `bare ADDRESS FILE`: names of FILE, one a line, get NXDOMAIN, all others one address.

use blockd_load::{BATCH, Batch, open, question_end};
use std::collections::HashSet;

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, file] = &words[..] else { panic!("bare ADDRESS FILE") };
    let names: HashSet<Vec<u8>> = std::fs::read_to_string(file)?.lines().map(wire_name).collect();
    let socket = open(address.parse().expect("an address and port"))?;
    let (mut inbound, mut outbound) = (Batch::default(), Batch::default());
    loop {
        let count = inbound.receive(&socket, true, true);
        for at in 0..count.min(BATCH) {
            let query = inbound.datagram(at);
            let Some(end) = question_end(query) else { continue };
            let is_blocked = names.contains(&query[12..end - 4]);
            let out = outbound.buffer();
            out[..end].copy_from_slice(&query[..end]);
            out[2] = 0x81;
            out[3] = if is_blocked { 0x83 } else { 0x80 };
            out[6..12].copy_from_slice(&[0, u8::from(!is_blocked), 0, 0, 0, 0]);
            let mut octets = end;
            if !is_blocked {
                out[end..end + 16].copy_from_slice(&[0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
                octets += 16;
            }
            outbound.push_reply(octets, &inbound, at);
        }
        outbound.send(&socket);
    }
}

fn wire_name(text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in text.split('.') {
        wire.push(label.len() as u8);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}
