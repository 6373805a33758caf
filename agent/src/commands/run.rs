//! `agent run`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use super::CommandError;
use crate::conf::loss::Loss;
use crate::config::Config;
use crate::daemon;

/// Runs until SIGTERM or SIGINT.
pub async fn run(file: PathBuf, config: Config, allowed_losses: Vec<Loss>) -> Result<ExitCode, CommandError> {
    // Boxed, because the daemon's future holds the futures of every stage.
    Box::pin(daemon::run(file, config, allowed_losses)).await?;
    Ok(ExitCode::SUCCESS)
}
