//! `simulate`: a year of a fleet, and its rush hours, from a seed.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use simulation::Report;

/// The variable with the path of the file of figures. Each line holds a name, a tab and a value. `harness::soak` reads
/// the same variable.
const FIGURES: &str = "NATS_TLS_AGENT_FIGURES";

#[derive(Parser)]
#[command(
    about = "Run a fleet of real agents on virtual time, through AWS's quotas, AWS's outages and the agents' crashes"
)]
struct Arguments {
    /// Scenario to run
    #[arg(long, value_enum, default_value_t = Scenario::Both)]
    scenario: Scenario,
    /// Nodes of the year, in clusters of five
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Days of the year
    #[arg(long, default_value_t = 365)]
    days: u32,
    /// Hours between two rounds of discovery in the year
    #[arg(long, default_value_t = 24)]
    interval: u32,
    /// Nodes of the rush hour: three in one cluster, a third in clusters of five, the rest in clusters of a hundred
    #[arg(long, default_value_t = 300)]
    rush_nodes: usize,
    /// Seed of the run, random by default; the same seed gives the same run
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    Year,
    Rush,
    Both,
}

fn tell(progress: &str) {
    eprintln!("{progress}");
}

/// Appends the figures of a report to a file.
fn gather(report: &Report, file: &OsStr) -> std::io::Result<()> {
    let line = |(name, value): (String, String)| format!("simulation: {}: {name}\t{value}\n", report.scenario);
    let lines: String = report.rows().into_iter().map(line).collect();
    OpenOptions::new().create(true).append(true).open(file)?.write_all(lines.as_bytes())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000_000));
    println!("seed {seed}");
    let mut reports = Vec::new();
    if arguments.scenario != Scenario::Rush {
        let interval = Duration::from_hours(arguments.interval.into());
        reports.push(simulation::year(arguments.nodes, arguments.days, interval, seed, tell));
    }
    if arguments.scenario != Scenario::Year {
        reports.push(simulation::rush_hour(simulation::rush_clusters(arguments.rush_nodes), seed, tell));
    }
    let (mut summaries, mut kept) = (Vec::new(), true);
    for report in reports {
        match report {
            Ok(report) => {
                println!("\n{report}");
                if let Some(file) = std::env::var_os(FIGURES)
                    && let Err(error) = gather(&report, &file)
                {
                    eprintln!("error: could not write the figures to {}: {error}", file.display());
                    kept = false;
                }
                kept &= report.is_kept();
                summaries.push(report.summary());
            }
            Err(error) => {
                eprintln!("error: could not make the state directories: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{}", summaries.join(" | "));
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
