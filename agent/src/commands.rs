//! The commands, one file each. A command asks other modules and prints their answer.

pub mod client;
pub mod doctor;
pub mod probe;
pub mod render;
pub mod renew;
pub mod rollover;
pub mod run;
pub mod status;

use std::process::ExitCode;

use self::probe::ProbeError;
use crate::cli::Command;
use crate::config::ConfigError;
use crate::daemon::DaemonError;
use crate::daemon::control::ControlError;
use crate::daemon::protocol::Refusal;
use crate::error::with_causes;
use crate::exposition::MetricsError;
use crate::node::IdentityError;
use crate::output::{OutputError, abbreviated, print_json};
use crate::reason::{Code, Reason};
use crate::reconcile::PassError;
use crate::state::lock::LockError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The identity of this node can't be found.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The lock of the state directory can't be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The control socket failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The daemon can't run.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The metrics port of `agent client run` can't be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A pass failed.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// The daemon refused the request.
    #[error("{0}")]
    Refused(Refusal),
    /// The daemon gave another kind of answer, as a daemon of another version may.
    #[error("the daemon's answer doesn't belong to the request; restart the daemon, so that it runs this version")]
    OtherAnswer,
    /// The nodes can't be probed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// There is no connection document, and none of an earlier look.
    #[error("{0}")]
    NoDocument(Reason),
    /// The output can't be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The runtime can't be started.
    #[error("could not start the runtime")]
    Runtime(#[source] std::io::Error),
}

impl CommandError {
    /// 2 for an error that only an edit of the configuration or other arguments can mend, 1 for any other error.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) => ExitCode::from(2),
            Self::Probe(error) if error.is_of_usage() => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }

    /// The stable code: of the reason where there is a reason, else of the kind of the error.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Config(_) => "agent_configuration_unusable",
            Self::Identity(error) => Reason::from(error).code().as_str(),
            Self::Pass(error) => Reason::from(error).code().as_str(),
            Self::Lock(LockError::Held(_)) => "agent_at_work",
            Self::Lock(LockError::WrongUser { .. }) => "wrong_user",
            Self::Lock(LockError::File(_)) => Code::FileFailed.as_str(),
            Self::Control(ControlError::NoDaemon { .. }) => Code::AgentNotRunning.as_str(),
            Self::Control(ControlError::Denied { .. }) => "may_not_ask",
            Self::Control(_) => "agent_silent",
            Self::Daemon(_) | Self::Metrics(_) => "agent_can_not_run",
            Self::Refused(refusal) => refusal.code(),
            Self::Probe(error) => error.code(),
            Self::NoDocument(reason) => reason.code().as_str(),
            Self::OtherAnswer => "agent_of_another_version",
            Self::Output(_) => "output_failed",
            Self::Runtime(_) => "runtime_failed",
        }
    }

    /// Writes the error as one JSON document, in the shape of the command.
    pub fn print_json(&self, command: &Command) -> Result<(), OutputError> {
        let (code, text) = (self.code(), with_causes(self));
        match command {
            Command::Renew { .. } => {
                print_json(&serde_json::json!({ "result": "failed", "code": code, "error": text }))
            }
            _ => print_json(&serde_json::json!({ "error": { "code": code, "text": text } })),
        }
    }

    /// The error and its causes in one line, for a person.
    #[must_use]
    pub fn render(&self) -> String {
        abbreviated(&with_causes(self))
    }
}
