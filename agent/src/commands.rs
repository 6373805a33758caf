//! The commands, one file each, and what they share: how a person is answered.

pub mod doctor;
pub mod render;
pub mod renew;
pub mod run;
pub mod status;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use crate::apply::{ApplyError, chain_of};
use crate::assemble::AssembleError;
use crate::config::ConfigError;
use crate::control::ControlError;
use crate::durable::FileError;
use crate::lock::LockError;
use crate::metrics::MetricsError;
use crate::reconcile::PassError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// This node, or what it depends on, can't be worked out.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// Another writer.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The metrics port.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A pass.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// The committed configuration.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
    /// Signals can't be received, or output can't be written.
    #[error("could not {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl CommandError {
    /// 2 for what only an edit can mend, 1 for the rest.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }

    /// The error and its causes in one line.
    #[must_use]
    pub fn render(&self) -> String {
        chain_of(self)
    }
}

/// Writes to standard output. A reader that has gone is no error.
pub fn print(text: &str) -> Result<(), CommandError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CommandError::System { action: "write to standard output", source: error })
        }
        _ => Ok(()),
    }
}

/// Writes a value as one JSON document.
pub fn print_json<T: serde::Serialize>(value: &T) -> Result<(), CommandError> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| CommandError::System { action: "write JSON", source: error.into() })?;
    text.push('\n');
    print(&text)
}

/// Colours, for a terminal that wants them (<https://no-color.org>).
#[derive(Clone, Copy, Debug)]
pub struct Paint(bool);

impl Paint {
    /// For standard output.
    #[must_use]
    pub fn stdout() -> Self {
        Self::on(&std::io::stdout())
    }

    /// For standard error.
    #[must_use]
    pub fn stderr() -> Self {
        Self::on(&std::io::stderr())
    }

    fn on(stream: &impl IsTerminal) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(stream.is_terminal() && !refused)
    }

    /// Good.
    #[must_use]
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Worth a look.
    #[must_use]
    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Bad.
    #[must_use]
    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}
