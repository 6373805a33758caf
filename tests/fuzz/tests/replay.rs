//! Replays every target's corpus and mutations of it without libFuzzer. Every test run includes this short form.
//!
//! A failing target prints the seed and the input. `FUZZ_SEED` replays a seed, and `FUZZ_MUTATIONS` sets the number of
//! mutations.

#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test that can't go on has failed, and says why"
)]

use std::path::Path;

use fuzzing::{TARGETS, Target};

const MUTATIONS: usize = 2000;
/// Tokens that are difficult for readers of text.
const TOKENS: [&str; 20] = [
    "\"",
    "\\",
    "\n",
    "\r\n",
    "\0",
    "{",
    "}",
    "[",
    "]",
    "=",
    "#",
    "'",
    "\"\"\"",
    "-----",
    "null",
    "1e999",
    "\u{feff}",
    "\\u0000",
    "-----BEGIN CERTIFICATE-----\n",
    "é",
];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Prints the input that made a target panic.
struct Told<'a>(&'a str, u64, &'a [u8]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target {}, FUZZ_SEED={}, input b\"{}\"", self.0, self.1, self.2.escape_ascii());
        }
    }
}

fn try_out(name: &str, seed: u64, target: Target, input: &[u8]) {
    let _told = Told(name, seed, input);
    target(input);
}

fn replay(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(found, _)| *found == name).unwrap();
    let seeds = corpus(name);
    assert!(seeds.len() > 1, "{name} has no corpus");
    let seed = number("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    for input in seeds.iter().map(Vec::as_slice).chain([&b""[..], b"\0"]) {
        try_out(name, seed, target, input);
    }
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..number("FUZZ_MUTATIONS").and_then(|count| count.try_into().ok()).unwrap_or(MUTATIONS) {
        try_out(name, seed, target, &mutated(&mut random, &seeds));
    }
}

fn mutated(random: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = random.choice(seeds).unwrap().clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(0..=input.len());
        let end = random.usize(at..=input.len().min(at + 40));
        match random.u8(0..7) {
            0 if at < input.len() => input[at] ^= 1 << random.u8(0..8),
            1 if at < input.len() => input[at] = random.u8(..),
            2 => drop(input.drain(at..end)),
            3 => drop(input.splice(at..at, random.choice(TOKENS).unwrap().bytes())),
            4 => {
                let again = input[at..end].to_vec();
                drop(input.splice(end..end, again));
            }
            5 => {
                let other = random.choice(seeds).unwrap();
                let from = random.usize(0..=other.len());
                drop(input.splice(at..end, other[from..other.len().min(from + 60)].iter().copied()));
            }
            _ => input.truncate(at),
        }
    }
    input
}

macro_rules! replays {
    ($($target:ident),*) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target));
        })*

        #[test]
        fn every_target_is_replayed_and_has_a_binary() {
            let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($target)),*]);
            let libfuzzer = Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer");
            let manifest = std::fs::read_to_string(libfuzzer.join("Cargo.toml")).unwrap();
            for name in names {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in {manifest}");
                let source = std::fs::read_to_string(libfuzzer.join(format!("fuzz_targets/{name}.rs"))).unwrap();
                assert!(source.contains(&format!("fuzzing::{name}(input)")), "{source}");
            }
        }
    };
}

replays!(aws, chain, configuration, control, imds, journal, monitoring, nats_conf, rendering, trust_bundle);
