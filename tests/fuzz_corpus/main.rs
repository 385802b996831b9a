//! Runs the fuzzer's targets over its corpus, and over variants of each entry. `make fuzz` searches for new entries.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Variants of all entries of a target.
const VARIANTS: u32 = 10_000;
/// A target stops here on a slow machine.
const LIMIT: Duration = Duration::from_secs(8);

/// Numbers that are the same in each run (xorshift64*, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        number as usize % limit.max(1)
    }
}

/// Changes some bytes, or cuts, doubles or joins parts.
fn variant(random: &mut Random, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut data = entries[random.below(entries.len())].clone();
    for _ in 0..=random.below(3) {
        let at = random.below(data.len() + 1);
        match random.below(6) {
            0 => data.truncate(at),
            1 => data.insert(at, random.below(256) as u8),
            2 => {
                let other = &entries[random.below(entries.len())];
                data.truncate(at);
                data.extend_from_slice(&other[random.below(other.len() + 1)..]);
            }
            3 => {
                let part = data[at..].to_vec();
                data.extend_from_slice(&part);
            }
            4 if at < data.len() => data[at] ^= 1 << random.below(8),
            _ if at < data.len() => {
                const EDGES: [u8; 6] = [0, 1, 0x7F, 0x80, 0xFE, 0xFF];
                data[at] = EDGES[random.below(EDGES.len())];
            }
            _ => {}
        }
    }
    data
}

#[test]
fn targets_accept_or_refuse_all_bytes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let files = fs::read_dir(corpus.join(name)).unwrap();
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        let entries: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(!entries.is_empty(), "{name} has a corpus");
        let start = Instant::now();
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        let variants = (0..VARIANTS)
            .map(|_| variant(&mut random, &entries))
            .take_while(|_| start.elapsed() < LIMIT);
        let mut count = 0;
        for data in entries.iter().cloned().chain(variants) {
            count += 1;
            let result = catch_unwind(AssertUnwindSafe(|| target(&data)));
            assert!(result.is_ok(), "{name} fails for \"{}\"", data.escape_ascii());
        }
        println!("{name}: {count} inputs in {:?}", start.elapsed());
    }
}

#[test]
fn every_corpus_has_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for folder in fs::read_dir(corpus).unwrap() {
        let name = folder.unwrap().file_name();
        assert!(targets::TARGETS.iter().any(|(target, _)| name == *target), "{name:?}");
    }
}
