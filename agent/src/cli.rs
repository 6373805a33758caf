//! The command line: commands, options and their help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::conf::loss::Loss;

use crate::config::DEFAULT_PATH;

/// Gives the NATS server on this instance TLS and renews its certificates.
#[derive(Debug, Parser)]
#[command(name = "agent", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Path of the configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
}

const EXIT_CODES: &str =
    "Exit codes: 0 done or healthy; 1 it ran and the answer is bad; 2 usage or configuration error.";

/// What to do.
#[derive(Clone, Debug, Subcommand)]
#[expect(missing_docs, reason = "a doc comment on a flattened field would replace the command's help")]
pub enum Command {
    /// Run the daemon: keep certificate, trust bundle and routes current for as long as the machine lives
    Run {
        #[command(flatten)]
        losses: LossArg,
    },
    /// Renew now, and wait until nats-server is seen to serve the new certificate
    Renew {
        /// Serve a certificate of a new CA although clients' notice of the CA is not over
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        losses: LossArg,
        #[command(flatten)]
        json: JsonArg,
    },
    /// Show the state of this node
    Status {
        #[command(flatten)]
        json: JsonArg,
    },
    /// Check every precondition from here to the peers, each with a remedy
    Doctor {
        #[command(flatten)]
        json: JsonArg,
    },
    /// Show how far a change of the CA is, on this node and on each peer
    Rollover {
        #[command(flatten)]
        json: JsonArg,
    },
    /// Print the nats-server.conf that would be applied
    Render {
        /// Show the difference from the applied configuration
        #[arg(long)]
        diff: bool,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page of the agent, or of one command
    Man {
        /// The command
        command: Option<String>,
    },
}

impl Command {
    /// Whether the answer is JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        match self {
            Self::Renew { json, .. } | Self::Status { json } | Self::Doctor { json } | Self::Rollover { json } => {
                json.json
            }
            _ => false,
        }
    }
}

/// The `--json` option.
#[derive(Args, Clone, Copy, Debug)]
pub struct JsonArg {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The `--allow-loss` option.
#[derive(Args, Clone, Debug)]
pub struct LossArg {
    /// Apply a configuration even if it takes this away; can be repeated
    #[arg(long, value_name = "WHAT")]
    pub allow_loss: Vec<Loss>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_takes_a_configuration_before_it_and_after_it() {
        for command in [
            &["run"][..],
            &["renew"],
            &["status"],
            &["doctor"],
            &["rollover"],
            &["render"],
            &["completions", "bash"],
            &["man", "run"],
        ] {
            let config = |before: &[&str], after: &[&str]| {
                Cli::try_parse_from([&["agent"][..], before, command, after].concat()).unwrap().config
            };
            assert_eq!(config(&[], &[]), PathBuf::from(DEFAULT_PATH));
            assert_eq!(config(&["--config", "/a"], &[]), PathBuf::from("/a"), "{command:?}");
            assert_eq!(config(&[], &["--config", "/a"]), PathBuf::from("/a"), "{command:?}");
        }
    }
}
