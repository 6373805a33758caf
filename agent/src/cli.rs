//! The command line: commands, options and their help texts.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::conf::loss::Loss;

use crate::config::{DEFAULT_PATH, client};
use crate::trust::Fingerprint;

/// Gives the NATS server on this instance TLS and renews its certificates.
#[derive(Debug, Parser)]
#[command(name = "agent", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Path of the configuration file [default: /etc/nats-tls-agent/agent.toml, or client.toml there for `agent client`]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Cli {
    /// The path of the configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        let default = if matches!(self.command, Command::Client { .. }) { client::DEFAULT_PATH } else { DEFAULT_PATH };
        self.config.clone().unwrap_or_else(|| default.into())
    }
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
        /// Distrust this CA on this node at once: the SHA-256 of its certificate's DER; can be repeated
        #[arg(long, value_name = "SHA256")]
        distrust: Vec<Fingerprint>,
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
    /// Send requests through TLS from every node to every other, and show how long the replies take
    Probe {
        #[command(flatten)]
        probe: Box<ProbeArgs>,
        #[command(flatten)]
        json: JsonArg,
    },
    /// On a service's machine: fetch, keep and check what a client needs to connect
    Client {
        #[command(subcommand)]
        command: ClientCommand,
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
            Self::Renew { json, .. }
            | Self::Status { json }
            | Self::Doctor { json }
            | Self::Rollover { json }
            | Self::Probe { json, .. }
            | Self::Client { command: ClientCommand::Fetch { json } | ClientCommand::Check { json } } => json.json,
            _ => false,
        }
    }

    /// Whether the command runs until it is told to end.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        matches!(self, Self::Run { .. } | Self::Client { command: ClientCommand::Run })
    }
}

/// What to do on a service's machine.
#[derive(Clone, Debug, Subcommand)]
#[expect(missing_docs, reason = "a doc comment on a flattened field would replace the command's help")]
pub enum ClientCommand {
    /// Bring the files of the service up to date once
    Fetch {
        #[command(flatten)]
        json: JsonArg,
    },
    /// Keep the files of the service current, and tell the service of each change
    Run,
    /// Resolve, connect to, verify and log in to each URL, and say what is wrong
    Check {
        #[command(flatten)]
        json: JsonArg,
    },
    /// Print the settings of the files in force as variables for a shell
    Env,
    /// Print the context for the nats CLI of the files in force
    Context,
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

/// The options of `agent probe`.
#[derive(Args, Clone, Debug)]
pub struct ProbeArgs {
    /// Client listener of a node, instead of the peers that the agent knows; can be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub server: Vec<String>,
    /// Requests of each pair of nodes
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests: u32,
    /// Requests of each pair that are under way at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub concurrency: u32,
    /// Requests a second, of all pairs together; without it as many as the cluster answers
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// Bytes of each request and of its reply
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub size: u32,
    /// How long a request waits for its reply, up to 1m
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = timeout)]
    pub timeout: Duration,
    /// Exit with 1 if the 99th percentile of a pair is above this time
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub max_p99: Option<Duration>,
    /// First tokens of every subject that is used, for a user with permissions
    #[arg(long, value_name = "SUBJECT", default_value = "_INBOX", value_parser = prefix)]
    pub prefix: String,
    /// User to log in as
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub user: Option<String>,
    /// File with the user's password
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
    /// File with a token to log in with
    #[arg(long, value_name = "FILE", conflicts_with_all = ["user", "creds", "nkey"])]
    pub token_file: Option<PathBuf>,
    /// File with a user's JWT and seed, to log in with
    #[arg(long, value_name = "FILE", conflicts_with_all = ["user", "nkey"])]
    pub creds: Option<PathBuf>,
    /// File with the seed of a user's nkey, to log in with
    #[arg(long, value_name = "FILE", conflicts_with = "user")]
    pub nkey: Option<PathBuf>,
}

/// The longest that a request waits for its reply.
const MAX_TIMEOUT: Duration = Duration::from_mins(1);
/// The longest prefix of subjects, in bytes.
const MAX_PREFIX: usize = 128;

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let is_in_bounds = (Duration::from_millis(1)..=MAX_TIMEOUT).contains(&timeout);
    is_in_bounds.then_some(timeout).ok_or_else(|| "not between 1ms and 1m".into())
}

/// Tokens of a subject to publish to: no blank and no wildcard.
fn prefix(text: &str) -> Result<String, String> {
    let is_token = |token: &str| {
        !token.is_empty() && token.chars().all(|letter| letter.is_ascii_graphic() && !['*', '>'].contains(&letter))
    };
    let is_prefix = text.len() <= MAX_PREFIX && text.split('.').all(is_token);
    is_prefix.then(|| text.to_owned()).ok_or_else(|| "not tokens of a subject, such as probe.nodes".into())
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
            &["probe"],
            &["completions", "bash"],
            &["man", "run"],
        ] {
            let config = |before: &[&str], after: &[&str]| {
                Cli::try_parse_from([&["agent"][..], before, command, after].concat()).unwrap().config()
            };
            assert_eq!(config(&[], &[]), PathBuf::from(DEFAULT_PATH));
            assert_eq!(config(&["--config", "/a"], &[]), PathBuf::from("/a"), "{command:?}");
            assert_eq!(config(&[], &["--config", "/a"]), PathBuf::from("/a"), "{command:?}");
        }
        let client = Cli::try_parse_from(["agent", "client", "check"]).unwrap();
        assert_eq!(client.config(), PathBuf::from("/etc/nats-tls-agent/client.toml"));
    }

    fn probe(arguments: &[&str]) -> Result<ProbeArgs, clap::error::ErrorKind> {
        match Cli::try_parse_from([&["agent", "probe"][..], arguments].concat()).map_err(|error| error.kind())?.command
        {
            Command::Probe { probe, .. } => Ok(*probe),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_load_test_has_bounds_and_one_user_whose_password_is_no_argument() {
        let defaults = probe(&[]).unwrap();
        assert_eq!((defaults.requests, defaults.concurrency, defaults.timeout), (100, 10, Duration::from_secs(2)));
        for good in [
            &["--requests", "1000000", "--concurrency", "1000", "--rate", "1", "--size", "0", "--timeout", "1m"][..],
            &["--user", "u", "--password-file", "/f", "--prefix", "probe.nodes"],
            &["--creds", "/f", "--max-p99", "200ms", "--server", "a:4222", "--server", "b:4222"],
        ] {
            assert!(probe(good).is_ok(), "{good:?}");
        }
        for bad in [
            &["--requests", "0"][..],
            &["--requests", "1000001"],
            &["--concurrency", "0"],
            &["--concurrency", "1001"],
            &["--rate", "0"],
            &["--size", "1048577"],
            &["--timeout", "61s"],
            &["--timeout", "0s"],
            &["--timeout", "2"],
            &["--prefix", "a..b"],
            &["--prefix", "a.>"],
            &["--prefix", "a b"],
            &["--user", "u"],
            &["--password-file", "/f"],
            &["--user", "u", "--password-file", "/f", "--creds", "/c"],
            &["--nkey", "/n", "--creds", "/c"],
            &["--token-file", "/t", "--nkey", "/n"],
            &["--password", "p"],
        ] {
            assert!(probe(bad).is_err(), "{bad:?}");
        }
    }
}
