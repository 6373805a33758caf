//! Validate, commit, reload, verify, roll back.
//!
//! Renaming the configuration into place is the one commit. What it names is whole before that, so whoever starts
//! nats-server at whatever moment finds a key, a certificate and a bundle that belong together (invariant 2). A reload
//! counts only once it is seen from outside; one that isn't is taken back by the same rename.

pub mod monitor;
pub mod probe;
pub mod process;
pub mod protection;
pub mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use zeroize::Zeroizing;

use self::protection::{Facts, Loss};
use self::server::{Observed, Presence, Server, ServerError};
use crate::durable::{self, FileError, Secrecy};
use crate::generation::{Generation, Generations};
use crate::nats_conf::ConfError;
use crate::progress::{Progress, Step};
use crate::render::Rendered;
use crate::status::rfc3339;
use crate::trust::VerifiedChain;

/// How long a reload may take until it is confirmed. Measured: 5 to 10 ms; a loaded machine may take seconds.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// A signal that meets another one can be lost (nats-server's handler queues one), so it is repeated.
const SIGNAL_AGAIN: Duration = Duration::from_secs(3);
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LONGEST_LOOK: Duration = Duration::from_millis(250);
/// The largest configuration that is read back.
const MAX_CONFIG: u64 = 4 * 1024 * 1024;

/// The committed configuration, and the way to another one.
pub struct Apply {
    /// nats-server.
    pub server: Arc<dyn Server>,
    /// The commit point.
    pub config: PathBuf,
    /// Where the generations are that it names.
    pub generations: Generations,
    /// The state directory, whose mode decides who may read the configuration: it may hold the cluster credential.
    pub state: PathBuf,
}

/// What nats-server should be seen to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The configuration's digest, where this nats-server reports one.
    pub digest: Option<String>,
    /// The leaf.
    pub leaf_sha256: String,
}

/// Where a committed configuration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// nats-server serves it.
    Live {
        /// How that was seen.
        by: String,
    },
    /// nats-server doesn't run; it will find the configuration when it starts.
    NoServer(String),
    /// nats-server serves something else, or can't be seen to serve this.
    Other(String),
}

/// Why the desired configuration isn't in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// nats-server refuses it, can't be run, or can't be signalled.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A file can't be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The candidate can't be read as a nats-server configuration.
    #[error("could not look for what the new configuration would take away, so it is not applied")]
    Unreadable(#[source] ConfError),
    /// It would take protection or capability away.
    #[error(
        "the new configuration would take something away, so it is not applied: {}. If that is meant, run \
         `agent renew {}` once", list(.0), switches(.0)
    )]
    Losses(Vec<Loss>),
    /// nats-server wasn't seen to serve it in time, and the previous configuration is back and served.
    #[error(
        "nats-server did not come to serve the new configuration within {} s ({reason}), so the previous one is back in \
         place{}; its log says why: look for \"Failed to reload\"", CONFIRM_TIMEOUT.as_secs(),
        if *.confirmed { " and served" } else { ", but was not seen served either" }
    )]
    RolledBack {
        /// What was seen last.
        reason: String,
        /// Whether the previous configuration was seen to be served.
        confirmed: bool,
    },
    /// nats-server wasn't seen to serve it in time, and there is nothing good to go back to.
    #[error(
        "nats-server did not come to serve the configuration within {} s ({reason}), and there is no previous one with a \
         valid certificate to go back to; its log says why: look for \"Failed to reload\"", CONFIRM_TIMEOUT.as_secs()
    )]
    NotConfirmed {
        /// What was seen last.
        reason: String,
    },
    /// The committed configuration names no generation that can be read.
    #[error("{} names no generation of this agent that can be read; it is replaced by the next commit", .0.display())]
    Unnamed(PathBuf),
}

fn list(losses: &[Loss]) -> String {
    losses.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn switches(losses: &[Loss]) -> String {
    losses.iter().map(|loss| format!("--allow-loss {}", loss.name())).collect::<Vec<_>>().join(" ")
}

/// An error and its causes in one line.
#[must_use]
pub fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

impl Apply {
    /// The committed configuration's text, if there is one.
    pub fn committed(&self) -> Result<Option<Rendered>, FileError> {
        read_config(&self.config)
    }

    /// Has nats-server check the text, and commits it: the rename is the commit point. The file that was there stays
    /// beside it for a roll-back.
    pub async fn commit(
        &self,
        rendered: &Rendered,
        generation: &Generation,
        allowed: &[String],
        progress: &Progress,
    ) -> Result<Expected, ApplyError> {
        if let Some(parent) = self.config.parent() {
            durable::create_directory(parent, 0o750)?;
        }
        let candidate = beside(&self.config, "candidate");
        durable::remove_if_there(&candidate)?;
        durable::create(&candidate, rendered.text().as_bytes(), Secrecy::of(&self.state).file_mode())?;
        let digest = self.server.validate(&candidate).await?;
        progress.report(Step::Validated { digest: digest.clone() });
        self.check_losses(rendered, allowed)?;
        let previous = beside(&self.config, "previous");
        if self.config.exists() {
            durable::remove_if_there(&previous)?;
            fs::hard_link(&self.config, &previous)
                .map_err(FileError::on("keep the previous configuration as", &previous))?;
        }
        durable::rename(&candidate, &self.config)?;
        progress.report(Step::Committed { generation: generation.number });
        Ok(Expected::of(digest, &generation.chain))
    }

    /// What the committed configuration makes nats-server serve.
    pub async fn expected(&self, committed: &Rendered) -> Result<Expected, ApplyError> {
        let number = self.generations.named_in(committed.text());
        let generation = number.and_then(|number| self.generations.load(number).ok());
        let generation = generation.ok_or_else(|| ApplyError::Unnamed(self.config.clone()))?;
        let digest = self.server.validate(&self.config).await?;
        Ok(Expected::of(digest, &generation.chain))
    }

    /// The committed configuration is served: nothing needs to come back, and old generations may go.
    pub fn settle(&self, deployed: u64) -> Result<(), FileError> {
        durable::remove_if_there(&beside(&self.config, "previous"))?;
        self.generations.prune(&[deployed])
    }

    /// Has nats-server load what is committed and waits until it is seen to; `before` is what was seen of it just now.
    /// When it isn't, the previous configuration comes back, if its certificate is still good.
    pub async fn reload(
        &self,
        expected: &Expected,
        chain: &VerifiedChain,
        before: &Observed,
        now: OffsetDateTime,
        progress: &Progress,
    ) -> Result<Verdict, ApplyError> {
        let reason = match self.signal_and_confirm(expected, chain, before, progress).await? {
            Verdict::Other(reason) => reason,
            verdict => return Ok(verdict),
        };
        let Some(previous) = self.previous(now)? else { return Err(ApplyError::NotConfirmed { reason }) };
        durable::rename(&beside(&self.config, "previous"), &self.config)?;
        progress.report(Step::RolledBack { reason: reason.clone() });
        let digest = self.server.validate(&self.config).await?;
        let expected = Expected::of(digest, &previous.chain);
        let before = self.server.observe(chain, None).await;
        let verdict = self.signal_and_confirm(&expected, &previous.chain, &before, progress).await;
        Err(ApplyError::RolledBack { reason, confirmed: matches!(verdict, Ok(Verdict::Live { .. })) })
    }

    async fn signal_and_confirm(
        &self,
        expected: &Expected,
        chain: &VerifiedChain,
        before: &Observed,
        progress: &Progress,
    ) -> Result<Verdict, ApplyError> {
        let started = tokio::time::Instant::now();
        let mut signalled = None::<tokio::time::Instant>;
        let mut pause = FIRST_LOOK;
        loop {
            if signalled.is_none_or(|at| at.elapsed() >= SIGNAL_AGAIN) {
                match self.server.reload(chain).await {
                    Ok(pid) => {
                        if signalled.is_none() {
                            progress.report(Step::Signalled { pid });
                        }
                        signalled = Some(tokio::time::Instant::now());
                    }
                    // It may just be starting, and then has what is committed: it is looked at, and signalled when it
                    // listens. One that drains is left in peace.
                    Err(ServerError::NotListening { .. }) if started.elapsed() < CONFIRM_TIMEOUT => {}
                    Err(ServerError::Process(process::ProcessError::Absent(why))) => return Ok(Verdict::NoServer(why)),
                    Err(error) => return Err(error.into()),
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
            let observed = self.server.observe(chain, None).await;
            match judge(&observed, expected).only_if(expected.digest.is_some() || has_loaded(before, &observed)) {
                Verdict::Other(_) if started.elapsed() < CONFIRM_TIMEOUT => {}
                Verdict::Live { by } => {
                    progress.report(Step::Confirmed { by: by.clone() });
                    return Ok(Verdict::Live { by });
                }
                verdict => return Ok(verdict),
            }
        }
    }

    fn check_losses(&self, rendered: &Rendered, allowed: &[String]) -> Result<(), ApplyError> {
        let after = Facts::read(rendered.text(), &self.config).map_err(ApplyError::Unreadable)?;
        // A committed file that can't be read any more protects nothing.
        let before = self.committed()?.and_then(|before| Facts::read(before.text(), &self.config).ok());
        let mut losses = protection::losses(before.as_ref(), &after);
        losses.retain(|loss| !allowed.iter().any(|name| name == loss.name()));
        if losses.is_empty() { Ok(()) } else { Err(ApplyError::Losses(losses)) }
    }

    /// The generation that a roll-back would bring back, if it can be read and its leaf is still valid.
    fn previous(&self, now: OffsetDateTime) -> Result<Option<Generation>, FileError> {
        let text = read_config(&beside(&self.config, "previous"))?;
        let number = text.and_then(|text| self.generations.named_in(text.text()));
        let generation = number.and_then(|number| self.generations.load(number).ok());
        Ok(generation.filter(|generation| generation.chain.leaf.not_after > now))
    }
}

impl Expected {
    fn of(digest: Option<String>, chain: &VerifiedChain) -> Self {
        Self { digest, leaf_sha256: chain.leaf.sha256.clone() }
    }
}

impl Verdict {
    fn only_if(self, has_loaded: bool) -> Self {
        match self {
            Self::Live { .. } if !has_loaded => Self::Other("nats-server has loaded nothing since the signal".into()),
            verdict => verdict,
        }
    }
}

/// Whether nats-server has loaded a configuration between two looks at it. Where its monitoring port doesn't answer, it
/// can't be told.
fn has_loaded(before: &Observed, after: &Observed) -> bool {
    let loads =
        |observed: &Observed| observed.varz.as_ref().map(|varz| (varz.server_id.clone(), varz.config_load_time));
    loads(after).is_none() || loads(before) != loads(after)
}

/// Whether what is seen is what is expected. Pure.
///
/// A nats-server before 2.11 reports no digest: there the leaf decides.
#[must_use]
pub fn judge(observed: &Observed, expected: &Expected) -> Verdict {
    match &observed.presence {
        Presence::Absent(why) => return Verdict::NoServer(why.clone()),
        Presence::Foreign(why) => return Verdict::Other(why.clone()),
        Presence::Running(_) => {}
    }
    for (port, served) in [("client", &observed.client), ("route", &observed.route)] {
        match served {
            Err(why) => return Verdict::Other(format!("{port} port: {why}")),
            Ok(leaf) if *leaf != expected.leaf_sha256 => {
                return Verdict::Other(format!("the {port} port serves another leaf than ours"));
            }
            Ok(_) => {}
        }
    }
    let leaf = "our leaf on the client and route ports";
    let Some(varz) = &observed.varz else { return Verdict::Live { by: format!("{leaf} (monitoring doesn't answer)") } };
    match (&varz.config_digest, &expected.digest) {
        (Some(loaded), Some(ours)) if loaded == ours => Verdict::Live { by: format!("digest {ours} and {leaf}") },
        (Some(loaded), Some(ours)) => Verdict::Other(format!("the loaded configuration is {loaded}, not {ours}")),
        _ => Verdict::Live { by: format!("a configuration loaded at {} and {leaf}", rfc3339(varz.config_load_time)) },
    }
}

fn read_config(path: &Path) -> Result<Option<Rendered>, FileError> {
    let Some(bytes) = durable::read_if_there(path, MAX_CONFIG)?.map(Zeroizing::new) else { return Ok(None) };
    Ok(Some(Rendered::from_text(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}
