//! Replays what is in `fuzz/corpus`, on a stable compiler: each file as it is, cut anywhere, and changed in a few hundred ways.
//! `fuzz/README.md` tells how fuzzers are run.

#![cfg(all(feature = "quic", feature = "shadowsocks"))]

mod bodies;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Ways in which each file is changed.
const CHANGES: u64 = 300;

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name)
}

/// Runs `body`; a panic names the octets, so that they can be put into the corpus.
fn run(body: bodies::Body, bytes: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| body(bytes))).is_err() {
        panic!("{what}: {}", bytes.escape_ascii());
    }
}

/// The next of a row of numbers that looks random and is the same each time (splitmix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Sets, inserts, takes out or copies a few octets.
fn change(bytes: &[u8], state: &mut u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=next(state) % 3 {
        let at = next(state) as usize % (bytes.len() + 1);
        let octet = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'.', b'\'', next(state) as u8][next(state) as usize % 9];
        match next(state) % 4 {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|old| *old = octet),
            1 => bytes.insert(at, octet),
            2 => drop(bytes.drain(at..(at + 1 + next(state) as usize % 4).min(bytes.len()))),
            _ => {
                let part = bytes[at..(at + next(state) as usize % 32).min(bytes.len())].to_vec();
                let to = next(state) as usize % (bytes.len() + 1);
                bytes.splice(to..to, part);
            }
        }
    }
    bytes
}

#[test]
fn what_fuzzers_have_found_is_taken_as_it_should_be() {
    for (name, body) in bodies::BODIES {
        let files: Vec<_> =
            std::fs::read_dir(corpus(name)).expect("a corpus").map(|file| file.expect("it is there").path()).collect();
        assert!(!files.is_empty(), "{name} has no corpus");
        for file in files {
            run(*body, &std::fs::read(&file).expect("it can be read"), &file.display().to_string());
        }
    }
}

#[test]
fn whatever_becomes_of_the_corpus_nothing_panics() {
    for (name, body) in bodies::BODIES {
        for file in std::fs::read_dir(corpus(name)).expect("a corpus") {
            let bytes = std::fs::read(file.expect("it is there").path()).expect("it can be read");
            for cut in 0..bytes.len().min(300) {
                run(*body, &bytes[..cut], name);
            }
            let mut state = bytes.len() as u64;
            for _ in 0..CHANGES {
                run(*body, &change(&bytes, &mut state), name);
            }
        }
    }
}

#[test]
fn every_corpus_has_a_body_and_every_body_a_target() {
    let folders = std::fs::read_dir(corpus("")).expect("fuzz/corpus");
    let mut found: Vec<String> =
        folders.map(|folder| folder.expect("it is there").file_name().to_string_lossy().into_owned()).collect();
    let mut known: Vec<String> = bodies::BODIES.iter().map(|(name, _)| (*name).to_owned()).collect();
    found.sort();
    known.sort();
    assert_eq!(found, known);
    let manifest = std::fs::read_to_string(corpus("../Cargo.toml")).expect("fuzz/Cargo.toml");
    for name in known {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "no target {name}");
        assert!(corpus("../fuzz_targets").join(format!("{name}.rs")).exists(), "no target {name}");
    }
}
