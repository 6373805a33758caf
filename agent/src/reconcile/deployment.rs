//! Validate, commit, reload, verify, roll back.
//!
//! Renaming the configuration into place is the one commit. What it names is whole before that, so whoever starts
//! nats-server at whatever moment finds a key, a certificate and a bundle that belong together (invariant 2). A reload
//! counts only once it is seen from outside; one that isn't is taken back by the same rename.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use similar::{ChangeTag, TextDiff};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::clock::rfc3339;
use crate::conf::language::{ConfError, MAX_SIZE};
use crate::conf::listeners::Listeners;
use crate::conf::loss::{self, Facts, Loss};
use crate::conf::rebase::rebase;
use crate::conf::render::Rendered;
use crate::config::NatsConfig;
use crate::error::with_causes;
use crate::progress::{Progress, Step};
use crate::server::process::ProcessError;
use crate::server::{Observed, Presence, Server, ServerError};
use crate::state::durable::{self, FileError, Secrecy};
use crate::state::generation::{Generation, Generations};
use crate::x509::chain::StoredChain;
use crate::x509::leaf::Leaf;

/// How long a reload may take until it is confirmed. Measured: 5 to 10 ms; a loaded machine may take seconds.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// A signal that meets another one can be lost (nats-server's handler queues one), so it is repeated.
const SIGNAL_AGAIN: Duration = Duration::from_secs(3);
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LONGEST_LOOK: Duration = Duration::from_millis(250);

/// The committed configuration, and the way to another one.
///
/// Beside the committed file stands `….running`: the text that nats-server was last seen to have loaded. It is what a
/// roll-back brings back, and it says where a server listens whose restart the committed text waits for.
pub struct Apply {
    parts: ApplyParts,
    expected: Option<(Rendered, Expected)>,
    held: Option<Held>,
    /// Where the server was found when it was looked at last.
    listeners: Listeners,
    observed: Observed,
    verdict: Verdict,
}

/// What a commit and a reload need.
pub struct ApplyParts {
    /// nats-server.
    pub server: Arc<dyn Server>,
    /// `[nats]`: the commit point among it.
    pub nats: NatsConfig,
    /// Where the generations are that the configuration names.
    pub generations: Generations,
    /// The state directory, whose mode decides who may read the configuration: it may hold the cluster credential.
    pub state: PathBuf,
}

/// Settings that the running server refused to load, and what it has loaded in their place until it is restarted. One of
/// them makes nats-server refuse a reload whole, certificates included (`diffOptions` in its reload.go), so the
/// certificates go through without them.
#[derive(Clone, Debug)]
struct Held {
    /// The committed text, whatever generation it names.
    settings: Rendered,
    /// The server that refused: it changes with every start.
    server_id: String,
    /// What the server is to be seen to serve meanwhile.
    expected: Expected,
    /// The names of the settings that differ.
    names: Vec<String>,
}

/// What is brought to the server.
pub struct Desired<'a> {
    /// The configuration.
    pub rendered: Rendered,
    /// The generation that it names.
    pub generation: &'a Generation,
    /// Losses that are meant, by their names.
    pub allowed_losses: &'a [String],
    /// The time.
    pub now: OffsetDateTime,
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
    /// nats-server wasn't seen to serve it in time, and the way back is barred.
    #[error(
        "nats-server did not come to serve the new configuration within {} s ({reason}), and the previous one can't be put \
         back, so the new one stays committed and is tried again", CONFIRM_TIMEOUT.as_secs()
    )]
    NotRolledBack {
        /// What was seen last.
        reason: String,
        /// What bars it.
        #[source]
        source: Box<ApplyError>,
    },
    /// What came to serve it is no longer there, or something else is in its place.
    #[error("the new configuration is committed, but nats-server doesn't serve it ({reason}); it is looked at again")]
    Unserved {
        /// What was seen last.
        reason: String,
    },
    /// The committed configuration names no generation that can be read.
    #[error("{} names no generation of this agent that can be read; it is replaced by the next commit", .0.display())]
    Unnamed(PathBuf),
}

impl ApplyError {
    /// Whether it is the text itself that is refused, before anything is committed.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Losses(_) | Self::Unreadable(_) | Self::Server(ServerError::Refused { .. }))
    }
}

fn list(losses: &[Loss]) -> String {
    losses.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn switches(losses: &[Loss]) -> String {
    losses.iter().map(|loss| format!("--allow-loss {}", loss.name())).collect::<Vec<_>>().join(" ")
}

/// The names of the settings that differ between two configurations.
fn changed_settings(before: &str, after: &str) -> Vec<String> {
    let lines = TextDiff::from_lines(before, after);
    let changed = lines.iter_all_changes().filter(|change| change.tag() != ChangeTag::Equal);
    let name = |line: &str| -> String {
        let line = line.trim_start();
        if line.starts_with('"') {
            "routes".into()
        } else {
            line.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        }
    };
    let mut names: Vec<_> = changed.map(|change| name(change.value())).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Apply {
    /// Nothing was looked at yet.
    #[must_use]
    pub fn new(parts: ApplyParts) -> Self {
        let unseen = || "it was not looked at yet".to_owned();
        let (observed, verdict) = (Observed::absent(unseen()), Verdict::NoServer(unseen()));
        let listeners = Listeners::of(None, &parts.nats);
        Self { parts, expected: None, held: None, listeners, observed, verdict }
    }

    /// What a commit and a reload need.
    #[must_use]
    pub fn parts(&self) -> &ApplyParts {
        &self.parts
    }

    /// What was seen of nats-server last.
    #[must_use]
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Where the committed configuration stood then.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The settings that wait for a restart of nats-server.
    #[must_use]
    pub fn waiting_for_restart(&self) -> &[String] {
        self.held.as_ref().map_or(&[], |held| &held.names)
    }

    /// The committed configuration's text, if there is one.
    pub fn committed(&self) -> Result<Option<Rendered>, FileError> {
        read_config(&self.parts.nats.config)
    }

    /// Whether the committed configuration names this leaf, of whatever generation.
    #[must_use]
    pub fn names(&self, leaf: &Leaf) -> bool {
        let committed = self.committed().ok().flatten().and_then(|text| self.named_by(&text));
        committed.is_some_and(|committed| committed.chain.leaf().sha256 == leaf.sha256)
    }

    /// Looks at nats-server, and compares it with what is committed.
    pub async fn look(&mut self, ours: &StoredChain) -> Result<(), ApplyError> {
        let ApplyParts { server, nats, .. } = &self.parts;
        let (committed, running) = (self.committed()?, read_config(&self.running_file())?);
        let listeners = |text: Option<&Rendered>| Listeners::of(text.map(Rendered::text), nats);
        let (then, now) = (listeners(running.as_ref().or(committed.as_ref())), listeners(committed.as_ref()));
        self.listeners = then;
        let mut observed = server.observe(Some(ours), &self.listeners, Some(&self.observed)).await;
        if self.listeners != now && observed.ports_seen() < 3 {
            // It may have been restarted since, and then listens where the committed configuration says.
            let moved = server.observe(Some(ours), &now, Some(&self.observed)).await;
            if moved.ports_seen() > observed.ports_seen() {
                (self.listeners, observed) = (now, moved);
            }
        }
        self.observed = observed;
        let has_ended = matches!(self.observed.presence, Presence::Absent(_));
        let server_id = self.observed.varz.as_ref().map(|varz| &varz.server_id);
        // One that doesn't say which it is is the same as before.
        let is_same = |held: &Held| !has_ended && server_id.is_none_or(|id| *id == held.server_id);
        self.held = self.held.take().filter(is_same);
        let Some(committed) = committed else {
            self.verdict = Verdict::NoServer("there is no configuration yet".into());
            return Ok(());
        };
        if self.expected.as_ref().is_none_or(|(text, _)| *text != committed) {
            self.verdict = Verdict::Other("what it should serve can't be worked out".into());
            let expected = self.expected_of(&committed).await?;
            self.expected = Some((committed.clone(), expected));
        }
        let ((Some(Held { expected, .. }), _) | (None, Some((_, expected)))) = (&self.held, &self.expected) else {
            return Err(ApplyError::Unnamed(self.parts.nats.config.clone()));
        };
        self.verdict = judge(&self.observed, expected);
        Ok(())
    }

    /// Takes note of a server that was seen to have loaded the committed text, as after a start. Without a digest a look
    /// alone doesn't show that.
    pub fn settle(&self) -> Result<(), FileError> {
        let is_shown = self.expected.as_ref().is_some_and(|(_, expected)| self.observed.reports(expected));
        let is_live = matches!(self.verdict, Verdict::Live { .. }) && self.held.is_none();
        if is_shown && is_live { self.note_running() } else { Ok(()) }
    }

    /// Commits what is desired, and has nats-server load it, where it isn't committed and loaded already. What was seen
    /// last is what it goes by.
    pub async fn bring(&mut self, desired: &Desired<'_>, progress: &Progress) -> Result<(), ApplyError> {
        if let Some(held) = &self.held
            && held.settings == self.settings_of(&desired.rendered)
            && let Some(carried) = self.carried(desired.generation)?
        {
            return self.carry(desired, carried, progress).await;
        }
        if self.committed()?.as_ref() != Some(&desired.rendered) {
            let losses = Some(desired.allowed_losses);
            if let Err(refused) = self.commit(&desired.rendered, desired.generation, losses, progress).await {
                self.bring_certificate(desired.generation, progress).await;
                return Err(refused);
            }
        }
        match (self.reload(&desired.generation.chain, Proof::Expected, progress).await?, &self.verdict) {
            (Verdict::Other(reason), _) => {
                if let Some(carried) = self.carried(desired.generation)?.filter(|carried| *carried != desired.rendered)
                    && self.carry(desired, carried, progress).await.is_ok()
                {
                    return Ok(());
                }
                self.roll_back(desired, reason, progress).await
            }
            (_, Verdict::Other(reason)) => Err(ApplyError::Unserved { reason: reason.clone() }),
            _ => Ok(()),
        }
    }

    /// Has nats-server load the generation with the settings that it runs with, where the desired ones can't be had at all:
    /// a certificate doesn't wait for somebody to mend a template. What goes wrong with it is logged, as what is wrong
    /// with the settings is the error.
    pub async fn bring_certificate(&mut self, generation: &Generation, progress: &Progress) {
        let Ok(Some(carried)) = self.carried(generation) else { return };
        let is_committed = self.committed().is_ok_and(|committed| committed.as_ref() == Some(&carried));
        if is_committed && !matches!(self.verdict, Verdict::Other(_)) {
            return;
        }
        if let Err(error) = self.load(&carried, generation, Proof::Expected, progress).await {
            tracing::warn!("the new certificate can't be brought into force alone: {}", with_causes(&error));
        }
    }

    /// Commits what the server runs with, naming another generation, and has it loaded.
    async fn load(
        &mut self,
        carried: &Rendered,
        generation: &Generation,
        proof: Proof,
        progress: &Progress,
    ) -> Result<(), ApplyError> {
        self.commit(carried, generation, None, progress).await?;
        match self.reload(&generation.chain, proof, progress).await? {
            Verdict::Other(reason) => Err(ApplyError::NotConfirmed { reason }),
            Verdict::Live { .. } | Verdict::NoServer(_) => Ok(()),
        }
    }

    /// Has nats-server load the new generation with the settings that it runs with, and then commits the desired ones for
    /// its next start. Between the two commits either is whole, so a crash there costs nothing.
    async fn carry(&mut self, desired: &Desired<'_>, carried: Rendered, progress: &Progress) -> Result<(), ApplyError> {
        self.load(&carried, desired.generation, Proof::Load, progress).await?;
        let loaded = self.expected.clone();
        self.commit(&desired.rendered, desired.generation, None, progress).await?;
        self.held = self.observed.varz.as_ref().zip(loaded).map(|(varz, (_, expected))| Held {
            settings: self.settings_of(&desired.rendered),
            server_id: varz.server_id.clone(),
            expected,
            names: changed_settings(carried.text(), desired.rendered.text()),
        });
        self.look(&desired.generation.chain).await
    }

    /// The same rename with the text that the server had loaded before, if its certificate is still good.
    async fn roll_back(
        &mut self,
        desired: &Desired<'_>,
        reason: String,
        progress: &Progress,
    ) -> Result<(), ApplyError> {
        let running = read_config(&self.running_file())?;
        let Some((running, before)) = running.and_then(|text| {
            let before = self.named_by(&text).filter(|before| before.chain.leaf().not_after > desired.now)?;
            (text != desired.rendered).then_some((text, before))
        }) else {
            self.look(&desired.generation.chain).await?;
            return Err(ApplyError::NotConfirmed { reason });
        };
        if let Err(source) = self.commit(&running, &before, None, progress).await {
            self.look(&desired.generation.chain).await?;
            return Err(ApplyError::NotRolledBack { reason, source: Box::new(source) });
        }
        progress.report(Step::RolledBack { reason: reason.clone() });
        let verdict = self.reload(&before.chain, Proof::Expected, progress).await;
        self.look(&before.chain).await?;
        Err(ApplyError::RolledBack { reason, confirmed: matches!(verdict, Ok(Verdict::Live { .. })) })
    }

    /// Has nats-server's own binary check the text, and commits it: the rename is the commit point. `allowed` names the
    /// losses that are meant; a text whose losses were looked at before is not looked at again.
    async fn commit(
        &mut self,
        rendered: &Rendered,
        generation: &Generation,
        allowed: Option<&[String]>,
        progress: &Progress,
    ) -> Result<(), ApplyError> {
        let config = &self.parts.nats.config;
        if let Some(parent) = config.parent() {
            durable::create_directory(parent, 0o750)?;
        }
        let candidate = beside(config, "candidate");
        durable::remove_if_there(&candidate)?;
        durable::create(&candidate, rendered.text().as_bytes(), Secrecy::of(&self.parts.state).file_mode())?;
        let digest = self.parts.server.validate(&candidate).await?;
        progress.report(Step::Validated { digest: digest.clone() });
        if let Some(allowed) = allowed {
            self.check_losses(rendered, allowed)?;
        }
        if config.exists() && !self.running_file().exists() {
            self.note_running()?;
        }
        durable::rename(&candidate, config)?;
        progress.report(Step::Committed { generation: generation.number });
        self.expected = Some((rendered.clone(), Expected::of(digest, &generation.chain)));
        self.held = None;
        Ok(())
    }

    /// What a configuration that is committed already makes nats-server serve.
    async fn expected_of(&self, committed: &Rendered) -> Result<Expected, ApplyError> {
        let generation = self.named_by(committed);
        let generation = generation.ok_or_else(|| ApplyError::Unnamed(self.parts.nats.config.clone()))?;
        let digest = self.parts.server.validate(&self.parts.nats.config).await?;
        Ok(Expected::of(digest, &generation.chain))
    }

    /// Has nats-server load what is committed, and notes that it did where that is seen.
    async fn reload(&mut self, chain: &StoredChain, proof: Proof, progress: &Progress) -> Result<Verdict, ApplyError> {
        self.look(chain).await?;
        if matches!(self.verdict, Verdict::NoServer(_)) {
            return Ok(self.verdict.clone());
        }
        let Some((_, expected)) = self.expected.clone() else {
            return Err(ApplyError::Unnamed(self.parts.nats.config.clone()));
        };
        let before = self.observed.clone();
        let verdict = self.signal_and_confirm(&expected, chain, proof, progress).await?;
        if matches!(verdict, Verdict::Other(_)) {
            return Ok(verdict);
        }
        self.held = None;
        self.look(chain).await?;
        if matches!(self.verdict, Verdict::Live { .. }) && has_come_to_serve(&before, &self.observed, &expected) {
            self.note_running()?;
        }
        Ok(verdict)
    }

    async fn signal_and_confirm(
        &mut self,
        expected: &Expected,
        chain: &StoredChain,
        proof: Proof,
        progress: &Progress,
    ) -> Result<Verdict, ApplyError> {
        let confirmed = self.signal_until_confirmed(expected, chain, proof, progress).await;
        if confirmed.is_err() {
            // What its ports showed when they were last asked stands no longer.
            self.observed = Observed::absent("it is looked at anew".into());
            self.look(chain).await?;
        }
        confirmed
    }

    async fn signal_until_confirmed(
        &self,
        expected: &Expected,
        chain: &StoredChain,
        proof: Proof,
        progress: &Progress,
    ) -> Result<Verdict, ApplyError> {
        let (server, listeners) = (&self.parts.server, &self.listeners);
        let started = tokio::time::Instant::now();
        let mut signalled = None::<(i32, tokio::time::Instant)>;
        let mut not_listening = None::<ServerError>;
        let mut pause = FIRST_LOOK;
        loop {
            if signalled.is_none_or(|(_, at)| at.elapsed() >= SIGNAL_AGAIN) {
                match server.reload(chain, listeners).await {
                    Ok(pid) => {
                        if signalled.is_none() {
                            progress.report(Step::Signalled { pid });
                        }
                        signalled = Some((pid, tokio::time::Instant::now()));
                    }
                    // It may just be starting, and then has what is committed: it is looked at, and signalled when it
                    // listens. One that drains is left in peace.
                    Err(error @ ServerError::NotListening { .. }) => not_listening = Some(error),
                    Err(ServerError::Process(ProcessError::Absent(why))) if signalled.is_none() => {
                        return Ok(Verdict::NoServer(why));
                    }
                    // One that was there may be replaced this very moment.
                    Err(ServerError::Process(ProcessError::Absent(_))) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
            let observed = server.observe(Some(chain), listeners, None).await;
            let is_told = proof == Proof::Expected && expected.digest.is_some();
            let verdict = match (judge(&observed, expected), signalled) {
                (Verdict::NoServer(why), Some((pid, _))) => Verdict::Other(format!(
                    "nats-server (pid {pid}) ended when it was told to reload, and none has taken its place: {why}"
                )),
                (verdict, _) => verdict.only_if(is_told || has_loaded(&self.observed, &observed)),
            };
            match verdict {
                Verdict::Other(_) if started.elapsed() < CONFIRM_TIMEOUT => {}
                Verdict::Live { by } => {
                    progress.report(Step::Confirmed { by: by.clone() });
                    return Ok(Verdict::Live { by });
                }
                // What was never signalled has refused nothing, and its next start is to find what is new.
                Verdict::Other(_) if let (None, Some(error)) = (signalled, not_listening.take()) => {
                    return Err(error.into());
                }
                verdict => return Ok(verdict),
            }
        }
    }

    fn check_losses(&self, rendered: &Rendered, allowed: &[String]) -> Result<(), ApplyError> {
        let config = &self.parts.nats.config;
        let after = Facts::read(rendered.text(), config).map_err(ApplyError::Unreadable)?;
        // A committed file that can't be read any more protects nothing.
        let before = self.committed()?.and_then(|before| Facts::read(before.text(), config).ok());
        let mut losses = loss::losses(before.as_ref(), &after);
        losses.retain(|loss| !allowed.iter().any(|name| name == loss.name()));
        if losses.is_empty() { Ok(()) } else { Err(ApplyError::Losses(losses)) }
    }

    /// What the server runs with, but for the generation.
    fn carried(&self, generation: &Generation) -> Result<Option<Rendered>, FileError> {
        let running = read_config(&self.running_file())?;
        let running = running.filter(|text| self.parts.generations.named_in(text.text()).is_some());
        Ok(running.map(|text| rebase(&text, &self.parts.generations, generation.number)))
    }

    fn settings_of(&self, text: &Rendered) -> Rendered {
        rebase(text, &self.parts.generations, 0)
    }

    fn named_by(&self, text: &Rendered) -> Option<Generation> {
        let number = self.parts.generations.named_in(text.text())?;
        self.parts.generations.load(number).ok()
    }

    fn running_file(&self) -> PathBuf {
        beside(&self.parts.nats.config, "running")
    }

    /// The committed text is what the server has loaded. Generations that neither names are not needed any more.
    fn note_running(&self) -> Result<(), FileError> {
        if read_config(&self.running_file())? == self.committed()? {
            return Ok(());
        }
        durable::link(&self.parts.nats.config, &self.running_file())?;
        let named = self.committed()?.and_then(|text| self.parts.generations.named_in(text.text()));
        self.parts.generations.prune(named.as_slice())
    }
}

/// What shows that a reload was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// What is expected is seen; where no digest tells, also that something was loaded.
    Expected,
    /// Something was loaded, even where all that is expected was there before.
    Load,
}

impl Expected {
    fn of(digest: Option<String>, chain: &StoredChain) -> Self {
        Self { digest, leaf_sha256: chain.leaf().sha256.clone() }
    }
}

impl Observed {
    /// How many of its three ports answered as a nats-server does.
    fn ports_seen(&self) -> u8 {
        u8::from(self.client.is_ok()) + u8::from(self.route.is_ok()) + u8::from(self.varz.is_some())
    }

    /// Whether the server itself reports the digest that is expected.
    fn reports(&self, expected: &Expected) -> bool {
        let reported = self.varz.as_ref().and_then(|varz| varz.config_digest.as_ref());
        reported.is_some() && reported == expected.digest.as_ref()
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

/// Whether what was seen shows that the server came to serve what is expected: by the digest, where it reports one; else by
/// a load since `before`; and where its monitoring port doesn't answer, by a leaf that it did not serve before.
fn has_come_to_serve(before: &Observed, after: &Observed, expected: &Expected) -> bool {
    match &after.varz {
        Some(varz) if varz.config_digest.is_some() => after.reports(expected),
        Some(_) => has_loaded(before, after),
        None => before.client.as_ref().is_ok_and(|served| served.sha256 != expected.leaf_sha256),
    }
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
            Ok(served) if served.sha256 != expected.leaf_sha256 => {
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
        _ => Verdict::Live { by: format!("{leaf} and a configuration loaded at {}", rfc3339(varz.config_load_time)) },
    }
}

fn read_config(path: &Path) -> Result<Option<Rendered>, FileError> {
    let Some(bytes) = durable::read_if_there(path, MAX_SIZE)?.map(Zeroizing::new) else { return Ok(None) };
    Ok(Some(Rendered::from_text(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::server::Served;
    use crate::server::monitor::Varz;
    use crate::x509::chain::Chain;

    fn leaf(sha256: &str) -> Served {
        Served { sha256: sha256.into(), chain: Chain::new(vec![b""[..].into()]).unwrap() }
    }

    fn seen(change: impl FnOnce(&mut Observed)) -> Observed {
        let varz = Varz {
            version: "2.15.1".into(),
            server_id: "id".into(),
            config_load_time: datetime!(2026-03-01 12:00 UTC),
            config_digest: Some("sha256:ours".into()),
        };
        let leaf = || Ok(leaf("leaf"));
        let mut observed = Observed {
            presence: Presence::Running(1),
            varz: Some(varz),
            routez: None,
            client: leaf(),
            route: leaf(),
            asked: tokio::time::Instant::now(),
        };
        change(&mut observed);
        observed
    }

    #[test]
    fn a_reload_counts_only_with_our_digest_and_our_leaf_on_both_ports() {
        let expected = Expected { digest: Some("sha256:ours".into()), leaf_sha256: "leaf".into() };
        let verdict = |change: fn(&mut Observed)| judge(&seen(change), &expected);
        let digest = |observed: &mut Observed, digest: Option<&str>| {
            observed.varz.as_mut().unwrap().config_digest = digest.map(ToOwned::to_owned);
        };
        assert!(matches!(verdict(|_| ()), Verdict::Live { .. }));
        assert!(matches!(verdict(|observed| observed.client = Ok(leaf("other"))), Verdict::Other(_)));
        assert!(matches!(verdict(|observed| observed.route = Ok(leaf("other"))), Verdict::Other(_)));
        assert!(matches!(verdict(|observed| observed.route = Err("refused".into())), Verdict::Other(_)));
        assert!(matches!(verdict(|observed| observed.presence = Presence::Foreign("sleep".into())), Verdict::Other(_)));
        assert!(matches!(
            verdict(|observed| observed.presence = Presence::Absent("gone".into())),
            Verdict::NoServer(_)
        ));
        assert!(matches!(
            judge(&seen(|observed| digest(observed, Some("sha256:other"))), &expected),
            Verdict::Other(_)
        ));
        // Before 2.11 there is no digest, and a template of one's own may have no monitoring: there the leaf decides.
        assert!(matches!(judge(&seen(|observed| digest(observed, None)), &expected), Verdict::Live { .. }));
        assert!(matches!(verdict(|observed| observed.varz = None), Verdict::Live { .. }));
    }

    #[test]
    fn the_settings_that_differ_are_named_once_and_without_their_values() {
        let before = "listen: \"a\"\nserver_name: \"n1\"\n  routes: [\n    \"nats-route://u:s3cret@10.0.0.1:6222\"\n";
        let after = "listen: \"b\"\nserver_name: \"n2\"\n  routes: [\n    \"nats-route://u:s3cret@10.0.0.2:6222\"\n";
        assert_eq!(changed_settings(before, after), ["listen", "routes", "server_name"]);
        assert!(changed_settings(before, before).is_empty());
    }
}
