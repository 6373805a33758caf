//! `cargo xtask soak`: the long form of whatever has one, and the figures of it all.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use crate::step::{conclude, step};
use crate::{Failure, cargo, setup};

/// Runs the tests with a long form, one after the other: each measures something.
pub(crate) fn run() -> Result<ExitCode, Failure> {
    setup::everything()?;
    let figures = cargo::workspace().join("target/soak/figures.tsv");
    begin(&figures)?;
    let mut tests = cargo::command(["nextest", "run", "--locked", "--workspace", "--profile", "soak"]);
    tests.env("NATS_TLS_AGENT_SOAK", "1").env("NATS_TLS_AGENT_FIGURES", &figures);
    let steps = [step("tests in their long form", &mut tests)];
    let text = fs::read_to_string(&figures).unwrap_or_default();
    println!("\n{}", table(&text));
    Ok(conclude(&steps))
}

fn begin(figures: &Path) -> Result<(), Failure> {
    let begun = figures.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(figures, ""));
    begun.map_err(|error| Failure::new(format!("could not begin {}", figures.display())).because(error))
}

/// The figures as a plain table: a line each, in the order of their names.
fn table(figures: &str) -> String {
    let mut lines: Vec<(&str, &str)> = figures.lines().filter_map(|line| line.split_once('\t')).collect();
    lines.sort_unstable();
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    lines.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_below_each_other() {
        assert_eq!(
            table("steady: rotations\t1000\nchaos: lost\t0\nno figure\n"),
            "chaos: lost        0\nsteady: rotations  1000"
        );
    }
}
