//! The workspace's own commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask soak`, `cargo xtask package`,
//! `cargo xtask lab`, `cargo xtask deny`, `cargo xtask setup`.
//!
//! Each command includes its set-up. As root on Debian or Ubuntu with Rust and Python, the set-up installs everything
//! else. Elsewhere the set-up names what to install.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

mod cargo;
mod demo;
mod deny;
#[cfg(test)]
mod documents;
mod lab;
mod package;
mod setup;
mod soak;
mod step;
mod test;

use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Demo, tests, packages and their set-up")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the packages that tests, packages and lab need, and fetch the pinned tools into target/tools
    ///
    /// As root on Debian or Ubuntu, the command installs missing packages. Elsewhere it names them and ends with 1.
    Setup {
        /// Fetch no tools. Each command fetches its own tools
        #[arg(long)]
        packages: bool,
    },
    /// Set up, build, and run every test
    Test {
        /// Arguments for `cargo nextest run`, which then runs alone: `cargo xtask test -- -E 'test(traffic)'`
        #[arg(last = true)]
        nextest: Vec<String>,
    },
    /// Run the tests' long forms, a simulated year and every fuzz target for an hour or more, and print the figures
    Soak(soak::Soak),
    /// Build and check the .deb and the .rpm for this machine's architecture
    Package {
        /// Revision of the packages; a higher revision of the same files is an upgrade
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        revision: u32,
    },
    /// Boot an Auto Scaling group on this machine, as root on Debian; end with 3 elsewhere
    Lab {
        /// Keep the group running until Ctrl-C, and print how to look inside
        #[arg(long)]
        keep: bool,
    },
    /// Check the workspace's dependencies: banned crates, licences, sources
    Deny,
    /// Watch a cluster on loopback rotate its certificates and replace a node, under counted traffic
    Demo {
        /// Number of nodes
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=20))]
        nodes: u8,
        /// Keep the cluster running until Ctrl-C, and print how to connect
        #[arg(long)]
        keep: bool,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup { packages } => setup::run(packages).map(|()| ExitCode::SUCCESS),
        Task::Test { nextest } => test::run(&nextest),
        Task::Soak(soak) => soak::run(&soak),
        Task::Package { revision } => package::run(revision),
        Task::Lab { keep } => lab::run(keep),
        Task::Deny => deny::run(),
        Task::Demo { nodes, keep } => demo::run(nodes, keep),
    };
    done.unwrap_or_else(|failure| {
        eprintln!("error: {failure}");
        ExitCode::FAILURE
    })
}

/// A message with the attempt, its result and the next action.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(attempt: impl fmt::Display) -> Self {
        Self(attempt.to_string())
    }

    pub(crate) fn because(self, cause: impl fmt::Display) -> Self {
        Self(format!("{}: {cause}", self.0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Runs `one` and `other` at the same time. If both fail, returns the failure of `one`.
pub(crate) fn both<A: Send>(
    one: impl FnOnce() -> Result<A, Failure> + Send,
    other: impl FnOnce() -> Result<(), Failure> + Send,
) -> Result<A, Failure> {
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        let one = one();
        let other = other.join().unwrap_or_else(|_| Err(Failure::new("a set-up thread panicked")));
        one.and_then(|one| other.map(|()| one))
    })
}

#[derive(Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(
        clippy::disallowed_methods,
        reason = "no test sets this clock, and xtask would need tokio for nothing else"
    )]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn read(self) -> Duration {
        self.0.elapsed()
    }
}

/// A duration in seconds, to a tenth.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
