//! `cargo xtask soak`: runs the long form of every test that has a long form, and prints the figures. A soak takes an
//! hour or more.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use clap::{Args, ValueEnum};

use crate::setup::{self, Job};
use crate::step::{Step, conclude, step};
use crate::{Failure, cargo};

/// A part that can run alone.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Every test that has a long form
    Tests,
    /// A simulated fleet's year and its rush hours
    Simulation,
    /// Every fuzz target
    Fuzz,
}

/// The parts that run, and how long they run.
#[derive(Args)]
pub(crate) struct Soak {
    /// Parts to run; all parts by default
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Number of nodes in the simulated year
    #[arg(long, value_name = "N", default_value_t = 1000)]
    nodes: u32,
    /// Number of days in the simulated year
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    days: u32,
    /// Number of nodes in the simulated rush hours
    #[arg(long, value_name = "N", default_value_t = 300)]
    rush_nodes: u32,
    /// Number of seconds that each fuzz target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    fuzz: u32,
}

/// Runs the wanted parts, also after a failed part. The tests run alone, because some tests measure time. The simulation
/// has a clock of its own, so it runs beside the fuzz targets.
pub(crate) fn run(soak: &Soak) -> Result<ExitCode, Failure> {
    let is_wanted = |part| soak.parts.is_empty() || soak.parts.contains(&part);
    let jobs = [(Part::Tests, Job::Test), (Part::Fuzz, Job::Fuzz)].into_iter().filter(|(part, _)| is_wanted(*part));
    setup::provide(&jobs.map(|(_, job)| job).collect::<Vec<_>>())?;
    let figures = cargo::workspace().join("target/soak/figures.tsv");
    begin(&figures)?;
    let mut steps = Vec::new();
    if is_wanted(Part::Tests) {
        setup::for_tests()?;
        let mut tests = cargo::command(["nextest", "run", "--locked", "--workspace", "--profile", "soak"]);
        tests.env("NATS_TLS_AGENT_SOAK", "1").env("NATS_TLS_AGENT_FIGURES", &figures);
        steps.push(step("tests in their long form", &mut tests));
    }
    let simulated = || if is_wanted(Part::Simulation) { simulate(soak, &figures) } else { Vec::new() };
    let fuzzed = || if is_wanted(Part::Fuzz) { fuzz(soak.fuzz, &figures) } else { Ok(Vec::new()) };
    let (simulated, fuzzed) = thread::scope(|scope| {
        let simulated = scope.spawn(simulated);
        let fuzzed = fuzzed();
        (simulated.join(), fuzzed)
    });
    steps.extend(simulated.map_err(|_panic| Failure::new("the simulation's thread panicked"))?);
    steps.extend(fuzzed?);
    println!("\n{}", table(&fs::read_to_string(&figures).unwrap_or_default()));
    Ok(conclude(&steps))
}

/// Runs the simulated fleet from a release build, because a year of a thousand nodes takes millions of passes.
fn simulate(soak: &Soak, figures: &Path) -> Vec<Step> {
    let mut build = cargo::command(["build", "--release", "--locked", "--package", "simulation"]);
    let build = step("simulation's build", &mut build);
    if !build.passed {
        return vec![build];
    }
    let mut simulate = Command::new(cargo::workspace().join("target/release/simulate"));
    for (name, value) in [("--nodes", soak.nodes), ("--days", soak.days), ("--rush-nodes", soak.rush_nodes)] {
        simulate.args([name, &value.to_string()]);
    }
    simulate.env("NATS_TLS_AGENT_FIGURES", figures);
    vec![build, step("simulated fleet", &mut simulate)]
}

/// Runs every fuzz target with libFuzzer. The corpus under `target` grows, and the next run starts from it.
fn fuzz(seconds: u32, figures: &Path) -> Result<Vec<Step>, Failure> {
    let workspace = cargo::workspace();
    let mut build = cargo::command(["build", "--release", "--locked"]);
    let mut steps = vec![step("fuzz targets' build", build.current_dir(workspace.join("tests/fuzz/libfuzzer")))];
    if !steps[0].passed {
        return Ok(steps);
    }
    let seeds = workspace.join("tests/fuzz/corpus");
    for target in names_in(&seeds)? {
        let (corpus, artifacts) =
            (workspace.join("target/fuzz/corpus").join(&target), workspace.join("target/fuzz/artifacts"));
        let log = workspace.join("target/soak").join(format!("fuzz-{target}.log"));
        let cannot = |error: std::io::Error| Failure::new(format!("could not begin to fuzz {target}")).because(error);
        fs::create_dir_all(&corpus).and_then(|()| fs::create_dir_all(&artifacts)).map_err(cannot)?;
        let mut command = Command::new(binary(&target)?);
        command.arg(&corpus).arg(seeds.join(&target)).arg(format!("-max_total_time={seconds}"));
        command.arg("-timeout=10").arg("-print_final_stats=1");
        command.arg(format!("-artifact_prefix={}/{target}-", artifacts.display()));
        command.stdout(Stdio::null()).stderr(fs::File::create(&log).map_err(cannot)?);
        let mut step = step(&format!("fuzz {target}"), &mut command);
        let said = fs::read_to_string(&log).unwrap_or_default();
        // A target that ran no input has tested nothing.
        step.passed &= executed(&said) > 0;
        if !step.passed {
            println!(
                "{}",
                said.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        steps.push(step);
        fs::File::options()
            .append(true)
            .open(figures)
            .and_then(|mut file| writeln!(file, "fuzz: executions of {target}\t{}", executed(&said)))
            .map_err(|error| Failure::new("could not write the figures").because(error))?;
    }
    Ok(steps)
}

/// The number in libFuzzer's line `stat::number_of_executed_units: N`, which `-print_final_stats` requests.
fn executed(log: &str) -> u64 {
    let line = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The built fuzz target, in the directory of the host's triple. Cargo's configuration there names a target triple.
fn binary(target: &str) -> Result<PathBuf, Failure> {
    let directory = cargo::workspace().join("target/fuzz");
    let triples = names_in(&directory)?.into_iter().map(|triple| directory.join(triple).join("release").join(target));
    let found = triples.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| Failure::new(format!("found no built fuzz target {target} in {}", directory.display())))
}

/// The sorted names of the directories in a directory.
fn names_in(directory: &Path) -> Result<Vec<String>, Failure> {
    let cannot = |error| Failure::new(format!("could not list {}", directory.display())).because(error);
    let entries = fs::read_dir(directory).map_err(cannot)?;
    let directories = entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    Ok(names)
}

fn begin(figures: &Path) -> Result<(), Failure> {
    let begun = figures.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(figures, ""));
    begun.map_err(|error| Failure::new(format!("could not create {}", figures.display())).because(error))
}

/// The figures as a plain table, with a line for each figure, sorted by name.
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
        let figures = table("steady: rotations\t1000\nchaos: lost\t0\nno figure\n");
        assert_eq!(figures, "chaos: lost        0\nsteady: rotations  1000");
    }

    #[test]
    fn libfuzzers_count_is_read() {
        assert_eq!(executed("Done 12 runs\nstat::number_of_executed_units: 17\n"), 17);
        assert_eq!(executed("crashed"), 0);
    }

    #[test]
    fn every_seed_corpus_has_its_target() {
        let workspace = cargo::workspace();
        let manifest = fs::read_to_string(workspace.join("tests/fuzz/libfuzzer/Cargo.toml")).unwrap();
        let named: Vec<&str> = manifest.split("[[bin]]").skip(1).filter_map(|bin| bin.split('"').nth(1)).collect();
        let mut sorted = named.clone();
        sorted.sort_unstable();
        assert_eq!(names_in(&workspace.join("tests/fuzz/corpus")).unwrap(), sorted);
    }
}
