//! Tests with a long form. `cargo xtask soak` sets [`LONG`] and gathers the figures that they print.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::Write as _;

/// The variable that is set for long forms.
pub const LONG: &str = "NATS_TLS_AGENT_SOAK";
/// The variable with the path of the file of figures. Each line holds a name, a tab and a value.
pub const FIGURES: &str = "NATS_TLS_AGENT_FIGURES";
/// The variable with the seed of an earlier run, to repeat that run.
pub const SEED: &str = "NATS_TLS_AGENT_SEED";

/// Whether long forms are requested.
#[must_use]
pub fn is_long() -> bool {
    std::env::var_os(LONG).is_some()
}

/// The seed of an earlier run, or a new one, which is printed.
#[must_use]
pub fn seed() -> u64 {
    let given = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    // The hasher's keys are random, and nothing else here needs a generator.
    let seed = given.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    say(&format!("{SEED}={seed} repeats this run"));
    seed
}

/// Prints a text for people. nextest shows it with --no-capture, or if the test fails.
#[expect(clippy::print_stdout, reason = "shown to people")]
pub fn say(text: &str) {
    println!("{text}");
}

/// Prints a figure, and appends it to the file of figures.
pub fn figure(name: &str, value: impl Display) {
    say(&format!("{name}: {value}"));
    let Some(path) = std::env::var_os(FIGURES) else { return };
    // A single write for each line, because tests of several processes append at the same time.
    let line = format!("{name}\t{value}\n");
    let gathered = OpenOptions::new().create(true).append(true).open(&path);
    if let Err(error) = gathered.and_then(|mut file| file.write_all(line.as_bytes())) {
        say(&format!("could not write the figure to {}: {error}", path.display()));
    }
}
