//! The commit point: validate, commit, reload, confirm, roll back.
//!
//! Renaming the configuration into place is the one commit. The key, the certificate and the bundle that the configuration
//! names are complete before that. So whoever starts nats-server at whatever moment finds files that belong together
//! (invariant 2). A reload counts only once it is seen from outside. A reload that is not seen is taken back by the
//! same rename.

mod reload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use self::reload::{CONFIRM_TIMEOUT, Confirmed, Proof, UnderWay, Watched};
use super::links::{Neighbours, UnfitPeer};
use super::quarantine::Quarantine;
use crate::clock::Clock;
use crate::conf::changes::Changes;
use crate::conf::digest::{UsedVariables, digest as digest_of};
use crate::conf::effective::{Configuration, Sources};
use crate::conf::listeners::Listeners;
use crate::conf::loss::{self, Facts, Loss, TakenAway};
use crate::conf::reader::{ConfError, MAX_SIZE};
use crate::conf::rebase::{rebase, settings_alone};
use crate::conf::render::Rendered;
use crate::conf::system;
use crate::conf::tree::{Ambiguous, Entry, Map};
use crate::config::NatsConfig;
use crate::error::with_causes;
use crate::progress::{Progress, Step};
use crate::reason::{Code, Reason, mistake};
use crate::server::standing::{Expected, Mismatch, Standing};
use crate::server::trial::{Prediction, TrialTrouble};
use crate::server::{Observed, Presence, Server, ServerError, Variables, port_of};
use crate::state::durable::{self, FileError, Secrecy};
use crate::state::generation::{Generation, Generations};
use crate::x509::chain::StoredChain;
use crate::x509::leaf::Leaf;

/// The committed configuration, and the way to another configuration.
///
/// Beside the committed file stands `….running`: the text that nats-server was last seen to have loaded. A roll-back brings
/// that text back. It also says where a nats-server listens whose restart the committed text waits for.
pub struct CommitPoint {
    parts: CommitParts,
    /// What the committed text makes nats-server serve. Kept because `nats-server -t` takes milliseconds.
    expectation: Option<(Rendered, Expected)>,
    waiting: Option<WaitingSettings>,
    /// A change of peers that is committed, and loaded with the next reload.
    deferred: Option<Deferred>,
    /// A reload that has not ended.
    under_way: Option<UnderWay>,
    confirmed: Option<Confirmed>,
    /// SHA-256 of the newest leaf that a port was seen to serve as expected.
    shown: Option<String>,
    listeners: KnownListeners,
}

/// The listeners of the last texts, kept because a text of ten thousand users takes long to read.
#[derive(Default)]
struct KnownListeners(Vec<(Rendered, Listeners)>);

impl KnownListeners {
    /// The committed text and the running text.
    const KNOWN: usize = 2;

    fn of(&mut self, text: Option<&Rendered>, nats: &NatsConfig) -> Listeners {
        let Some(text) = text else { return Listeners::of(None, nats) };
        if let Some((_, known)) = self.0.iter().find(|(known, _)| known == text) {
            return known.clone();
        }
        let listeners = Listeners::of(text.tree(&nats.config).ok().as_ref(), nats);
        self.0.insert(0, (text.clone(), listeners.clone()));
        self.0.truncate(Self::KNOWN);
        listeners
    }
}

/// What a commit and a reload need.
pub struct CommitParts {
    /// nats-server.
    pub server: Arc<dyn Server>,
    /// `[nats]`, with the path of the committed configuration.
    pub nats: NatsConfig,
    /// The wall clock. A pass lasts, and a certificate may expire meanwhile.
    pub clock: Clock,
    /// Where the generations are that the configuration names.
    pub generations: Generations,
    /// The state directory. Its mode decides who may read the configuration, which may hold the cluster credential.
    pub state: PathBuf,
}

/// Settings that the running nats-server refused to load, and what it has loaded in their place until its restart.
///
/// A single such setting makes nats-server refuse the whole reload, certificates included (`diffOptions` in its
/// reload.go). So the certificates go through without these settings.
#[derive(Clone, Debug)]
struct WaitingSettings {
    /// The committed settings, whatever generation and routes they have.
    settings: Map,
    /// The server that refused. nats-server has another id after each start.
    server_id: String,
    /// What nats-server is expected to serve meanwhile.
    expected: Expected,
    /// The names of the settings that differ.
    names: Vec<String>,
}

/// A change of peers that nats-server was not told of. Gossip connects the peers meanwhile, and a reload has its cost: each
/// reload authenticates every client anew.
#[derive(Clone, Debug)]
struct Deferred {
    /// The server that has not loaded the change. nats-server has another id after each start.
    server_id: String,
    /// What nats-server is expected to serve meanwhile.
    expected: Expected,
}

/// What was seen of nats-server, and what it says about the committed configuration.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    /// What was seen.
    pub(crate) observed: Observed,
    /// Where nats-server was found.
    pub(crate) listeners: Listeners,
    /// Where the committed configuration stands.
    pub(crate) standing: Standing,
}

/// What nats-server is brought to.
pub(crate) struct Desired<'a> {
    /// The configuration.
    pub(crate) configuration: Configuration,
    /// The generation that the configuration names.
    pub(crate) generation: &'a Generation,
    /// The losses that are meant.
    pub(crate) allowed_losses: &'a [Loss],
    /// A person asks for it: settings in quarantine are tried once, and no peer is waited for.
    pub(crate) is_asked: bool,
    /// A change of peers alone may be loaded with the next reload.
    pub(crate) may_defer: bool,
    /// The other servers. A change of settings goes through one node after the other.
    pub(super) neighbours: Neighbours,
}

/// Why the desired configuration isn't in force.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// nats-server refuses the configuration, can't be run, or can't be signalled.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A file can't be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The candidate can't be read as a nats-server configuration.
    #[error("could not look for what the new configuration would take away, so it is not applied")]
    Unreadable(#[source] ConfError),
    /// nats-server reads a text in another way than the agent, so nobody knows what the agent would commit.
    #[error(
        "nats-server reads {what} as {theirs} and the agent as {ours}, so it is not applied; report this fault with \
         the configuration, and write the setting that was changed last in another way"
    )]
    ReadDifferently {
        /// Which text.
        what: ReadText,
        /// The digest of nats-server.
        theirs: String,
        /// The digest of the agent.
        ours: String,
    },
    /// nats-server does not start with the new settings.
    #[error(
        "nats-server would not start with the new settings, so they are not applied; correct nats.template, nats.include or \
         [nats.settings]: {said}{}", changed(.changes)
    )]
    WontStart {
        /// nats-server's own words.
        said: String,
        /// The settings that differ from the running settings.
        changes: Changes,
    },
    /// nats-server ends when it is told to load the new settings.
    #[error(
        "the running nats-server would end if it loaded the new settings, so they are not applied; correct nats.template, \
         nats.include or [nats.settings]: {said}{}", changed(.changes)
    )]
    WouldKill {
        /// nats-server's own words.
        said: String,
        /// The settings that differ from the running settings.
        changes: Changes,
    },
    /// The new settings could not be tried.
    #[error("the new settings could not be tried, so the settings in force stay; they are tried again")]
    NotTried(#[source] TrialTrouble),
    /// A peer that had a route has none or fails, perhaps for the same change of settings.
    #[error(
        "a change of settings goes through one node after the other, and it waits here while a peer that had a route to \
         this node has none or fails: {}; look at that peer, or run `agent renew` to make the change all the same",
        peers(.0)
    )]
    PeersUnfit(Vec<UnfitPeer>),
    /// nats-server ended with these settings, or refused them, and they have not changed since.
    #[error(
        "nats-server ended or refused a reload with these settings before, so they are not tried again until they change; \
         `agent renew` tries them once{}", changed(.0)
    )]
    Quarantined(Changes),
    /// One setting of the candidate has two names.
    #[error(transparent)]
    Ambiguous(#[from] Ambiguous),
    /// The candidate would take protection or capability away.
    #[error(
        "the new configuration would take something away, so it is not applied: {}. If that is meant, run \
         `agent renew {}` once", list(.0), switches(.0)
    )]
    Losses(Vec<TakenAway>),
    /// nats-server ended at each start with the new settings, and the previous settings are back.
    #[error(
        "nats-server ended three times as it started with the new settings, so the settings that it ran with before are back \
         for its next start; its log says why. Correct nats.template, nats.include or [nats.settings]"
    )]
    PutBack,
    /// A reload did not end. Nothing is taken back, because nats-server refused nothing.
    #[error(
        "nats-server was told to reload, and for {} it neither answers nor serves the new configuration ({mismatch}); nothing is \
         taken back. Look at its CPU time and its log, and restart it if it is stuck", humantime::format_duration(*timeout)
    )]
    ReloadTimedOut {
        /// `nats.reload.timeout`.
        timeout: Duration,
        /// What was seen last.
        mismatch: Mismatch,
    },
    /// nats-server refused the configuration or ended, and the previous configuration is back.
    #[error(
        "nats-server did not come to serve the new configuration within {} s ({mismatch}), so the previous one is back in \
         place{}; its log says why: look for \"Failed to reload\"", CONFIRM_TIMEOUT.as_secs(),
        if *.confirmed { " and served" } else { ", but was not seen served either" }
    )]
    RolledBack {
        /// What was seen last.
        mismatch: Mismatch,
        /// Whether the previous configuration was seen served.
        confirmed: bool,
    },
    /// nats-server wasn't seen to serve the configuration in time, and there is nothing good to go back to.
    #[error(
        "nats-server did not come to serve the configuration within {} s ({mismatch}), and there is no previous one with a \
         valid certificate to go back to; its log says why: look for \"Failed to reload\"", CONFIRM_TIMEOUT.as_secs()
    )]
    NotConfirmed {
        /// What was seen last.
        mismatch: Mismatch,
    },
    /// nats-server wasn't seen to serve the configuration in time, and the way back is barred.
    #[error(
        "nats-server did not come to serve the new configuration within {} s ({mismatch}), and the previous one can't be \
         put back, so the new one stays committed and is tried again", CONFIRM_TIMEOUT.as_secs()
    )]
    NotRolledBack {
        /// What was seen last.
        mismatch: Mismatch,
        /// What bars the way back.
        #[source]
        source: Box<DeployError>,
    },
    /// The nats-server that came to serve the configuration is gone, or another process is in its place.
    #[error("the new configuration is committed, but nats-server doesn't serve it ({mismatch}); it is looked at again")]
    Replaced {
        /// What was seen last.
        mismatch: Mismatch,
    },
    /// The committed configuration names no generation that can be read.
    #[error("{} names no generation of this agent that can be read; it is replaced by the next commit", .0.display())]
    Unnamed(PathBuf),
}

/// The settings before a commit, each as far as its file can be read.
struct Known {
    committed: Option<KnownSettings>,
    running: Option<KnownSettings>,
}

struct KnownSettings {
    tree: Map,
    names_generation: bool,
}

/// A text that nats-server accepts, beside the committed text.
struct Staged {
    rendered: Rendered,
    digest: Option<String>,
}

/// The result of a commit.
enum Commit {
    /// The desired configuration is committed.
    Committed,
    /// The desired settings need a restart. The text that runs names the new generation.
    NeedsRestart(Rendered),
}

/// A text that nats-server and the agent both read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadText {
    /// The rendered template with its includes.
    Sources,
    /// The text to commit.
    Candidate,
}

impl std::fmt::Display for ReadText {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Sources => "the template with its included files",
            Self::Candidate => "the configuration made of it",
        })
    }
}

impl DeployError {
    /// Whether the text itself is refused, before anything is committed.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Losses(_)
                | Self::Unreadable(_)
                | Self::ReadDifferently { .. }
                | Self::Ambiguous(_)
                | Self::WontStart { .. }
                | Self::WouldKill { .. }
                | Self::Quarantined(_)
                | Self::Server(ServerError::Refused { .. })
        )
    }
}

impl From<&DeployError> for Reason {
    fn from(error: &DeployError) -> Self {
        let (code, subject) = match error {
            DeployError::Server(error) => return error.into(),
            DeployError::File(error) => return error.into(),
            DeployError::Unreadable(error) => (Code::ConfigurationUnreadable, Some(mistake(error))),
            DeployError::ReadDifferently { theirs, .. } => (Code::ConfigurationReadDifferently, Some(theirs.clone())),
            DeployError::Ambiguous(error) => (Code::SettingsRefused, Some(mistake(error))),
            DeployError::WontStart { said, .. } => (Code::SettingsWontStart, Some(said.clone())),
            DeployError::WouldKill { said, .. } => (Code::SettingsWouldKill, Some(said.clone())),
            DeployError::NotTried(_) => (Code::SettingsNotTried, None),
            DeployError::PeersUnfit(unfit) => (Code::SettingsWaitForPeer, Some(peers(unfit))),
            DeployError::Quarantined(changes) => (Code::SettingsQuarantined, Some(changes.to_string())),
            DeployError::Losses(losses) => (Code::ConfigurationTakesAway, Some(mistake(losses))),
            DeployError::PutBack => (Code::SettingsPutBack, None),
            DeployError::ReloadTimedOut { .. } => (Code::ReloadTimedOut, None),
            DeployError::RolledBack { .. } => (Code::ReloadRolledBack, None),
            DeployError::NotConfirmed { .. } => (Code::ReloadNotConfirmed, None),
            DeployError::NotRolledBack { .. } => (Code::RollBackFailed, None),
            DeployError::Replaced { .. } => (Code::ServerReplaced, None),
            DeployError::Unnamed(_) => (Code::ConfigurationWithoutGeneration, None),
        };
        Self::failed(code, subject, error)
    }
}

fn changed(changes: &Changes) -> String {
    if changes.is_empty() { String::new() } else { format!("; these settings are new or changed: {changes}") }
}

/// The most peers that a message names.
const MAX_PEERS_NAMED: usize = 5;

fn peers(unfit: &[UnfitPeer]) -> String {
    let mut named: Vec<String> = unfit.iter().take(MAX_PEERS_NAMED).map(ToString::to_string).collect();
    if unfit.len() > MAX_PEERS_NAMED {
        named.push(format!("and {} more", unfit.len() - MAX_PEERS_NAMED));
    }
    named.join(", ")
}

fn list(losses: &[TakenAway]) -> String {
    losses.iter().map(|taken| taken.what.as_str()).collect::<Vec<_>>().join("; ")
}

fn switches(losses: &[TakenAway]) -> String {
    losses.iter().map(|taken| format!("--allow-loss {}", taken.loss)).collect::<Vec<_>>().join(" ")
}

impl CommitPoint {
    /// A commit point where nothing was looked at yet.
    #[must_use]
    pub fn new(parts: CommitParts) -> Self {
        Self {
            parts,
            expectation: None,
            waiting: None,
            deferred: None,
            under_way: None,
            confirmed: None,
            shown: None,
            listeners: KnownListeners::default(),
        }
    }

    /// What a commit and a reload need.
    #[must_use]
    pub(crate) fn parts(&self) -> &CommitParts {
        &self.parts
    }

    /// The observation before the first look.
    #[must_use]
    pub(crate) fn unseen(&self) -> Observation {
        let listeners = Listeners::of(None, &self.parts.nats);
        Observation { observed: Observed::unseen(), listeners, standing: Standing::Unseen }
    }

    /// The settings that wait for a restart of nats-server.
    #[must_use]
    pub(crate) fn waiting_for_restart(&self) -> &[String] {
        self.waiting.as_ref().map_or(&[], |waiting| &waiting.names)
    }

    /// The digest of the committed configuration, once it is known. nats-server before 2.11 gives none.
    pub(crate) fn committed_digest(&self) -> Option<String> {
        self.expectation.as_ref().and_then(|(_, expected)| expected.digest().map(str::to_owned))
    }

    /// The committed configuration's text, if there is a committed configuration.
    pub(crate) fn committed(&self) -> Result<Option<Rendered>, FileError> {
        read_config(&self.parts.nats.config)
    }

    /// The configuration that nats-server last ran with, as far as the agent has seen.
    pub(crate) fn running(&self) -> Result<Option<Rendered>, FileError> {
        read_config(&self.running_file())
    }

    /// Whether the committed configuration names this leaf, of whatever generation.
    #[must_use]
    pub(crate) fn names(&self, leaf: &Leaf) -> bool {
        let committed = self.committed().ok().flatten().and_then(|text| self.generation_of(&text));
        committed.is_some_and(|committed| committed.chain.leaf().sha256 == leaf.sha256)
    }

    /// Whether the committed configuration names the generation of this number.
    #[must_use]
    pub(crate) fn names_generation(&self, number: u64) -> bool {
        let committed = self.committed().ok().flatten();
        committed.is_some_and(|committed| self.parts.generations.named_in(committed.text()) == Some(number))
    }

    /// Looks at nats-server, presenting `ours`, and compares it with what is committed. What was seen stands in `seen`
    /// after an error too.
    pub(crate) async fn observe(
        &mut self,
        ours: Option<&StoredChain>,
        seen: &mut Observation,
    ) -> Result<(), DeployError> {
        let CommitParts { server, nats, .. } = &self.parts;
        let (committed, running) = (self.committed()?, self.running()?);
        let now = self.listeners.of(committed.as_ref(), nats);
        let then = self.listeners.of(running.as_ref().or(committed.as_ref()), nats);
        seen.listeners = then.while_becoming(&now);
        let mut observed = server.observe(ours, &seen.listeners, Some(&seen.observed)).await;
        if seen.listeners != now && observed.ports_seen() < 3 {
            // After a restart nats-server listens where the committed configuration says.
            let moved = server.observe(ours, &now, Some(&seen.observed)).await;
            if moved.ports_seen() > observed.ports_seen() {
                (seen.listeners, observed) = (now.clone(), moved);
            }
        }
        seen.observed = observed;
        let has_ended = matches!(seen.observed.presence, Presence::Absent(_));
        let server_id = seen.observed.varz.as_ref().map(|varz| &varz.server_id);
        // A server that doesn't tell its id is taken for the same server.
        let is_same = |waiting: &WaitingSettings| !has_ended && server_id.is_none_or(|id| *id == waiting.server_id);
        self.waiting = self.waiting.take().filter(is_same);
        self.deferred = self.deferred.take().filter(|deferred| !has_ended && server_id == Some(&deferred.server_id));
        if self.waiting.is_none() {
            // After a restart nobody listens where the committed text has no listener any more.
            let is_there = |port| now.others.iter().any(|other| port_of(other.listener) == Some(port));
            seen.observed.others.retain(|port, _| is_there(*port));
        }
        let Some(committed) = committed else {
            seen.standing = match &seen.observed.presence {
                Presence::Foreign(why) => Standing::NotServed(Mismatch::Foreign(why.clone())),
                Presence::Hidden(pid) => Standing::NotServed(Mismatch::Hidden { pid: *pid }),
                _ => Standing::NothingCommitted,
            };
            return Ok(());
        };
        if self.expectation.as_ref().is_none_or(|(text, _)| *text != committed) {
            seen.standing = Standing::NotServed(Mismatch::ExpectationUnknown);
            let expected = self.expectation_of(&committed).await?;
            self.expectation = Some((committed.clone(), expected));
        }
        let meanwhile = self.waiting.as_ref().map(|waiting| &waiting.expected);
        let meanwhile = meanwhile.or(self.deferred.as_ref().map(|deferred| &deferred.expected));
        let Some(expected) = meanwhile.or(self.expectation.as_ref().map(|(_, expected)| expected)) else {
            return Err(DeployError::Unnamed(self.parts.nats.config.clone()));
        };
        let expected = expected.clone();
        self.note_shown(&seen.observed, &expected);
        seen.standing = self.standing_under_way(expected.judge(&seen.observed));
        Ok(())
    }

    /// Notes that a port serves the expected leaf. A certificate that was seen served is never taken back
    /// (invariant 16).
    fn note_shown(&mut self, observed: &Observed, expected: &Expected) {
        if observed.shows(&expected.leaf_sha256) {
            self.shown = Some(expected.leaf_sha256.clone());
        }
    }

    /// Notes that nats-server has loaded the committed text, as after a start. Without a digest the observation alone
    /// doesn't show a load.
    pub(crate) fn note_loaded(&self, seen: &Observation) -> Result<(), FileError> {
        if self.is_in_force(seen) { self.note_running() } else { Ok(()) }
    }

    /// Whether nats-server runs with the committed text: by the digest that it reports, or because it was started after
    /// the commit and serves the leaf.
    fn is_in_force(&self, seen: &Observation) -> bool {
        let is_reported = self.expectation.as_ref().is_some_and(|(_, expected)| expected.is_reported(&seen.observed));
        let committed = durable::renamed_at(&self.parts.nats.config);
        let was_started_since = seen.observed.started.zip(committed).is_some_and(|(started, at)| started > at);
        seen.standing.is_served() && self.waiting.is_none() && (is_reported || was_started_since)
    }

    /// Looks at a reload that is under way. `true`: it is still under way, and nothing else may be done.
    pub(crate) async fn await_reload(
        &mut self,
        desired: &Desired<'_>,
        seen: &mut Observation,
        progress: &Progress,
    ) -> Result<bool, DeployError> {
        match self.watch(seen, progress)? {
            Watched::Over => Ok(false),
            Watched::Still => Ok(true),
            Watched::Ended(mismatch) => self.roll_back(desired, mismatch, seen, progress).await.map(|()| false),
        }
    }

    /// Puts back the settings that nats-server ran with, because it ended again and again with the committed settings.
    /// No error: it ran with these settings before, or with none, so there is nothing to put back.
    pub(crate) async fn put_back(&mut self, desired: &Desired<'_>, progress: &Progress) -> Result<(), DeployError> {
        let Some(committed) = self.committed()?.and_then(|text| self.tree_of(&text)) else { return Ok(()) };
        let running = self.running()?.and_then(|text| self.tree_of(&text));
        let settings = self.settings_of(&committed);
        // A difference in the agent's user alone puts nothing back: the agent takes its user out by itself.
        if running
            .is_none_or(|running| system::without_own(&self.settings_of(&running)) == system::without_own(&settings))
        {
            return Ok(());
        }
        let Some(text) = self.running_with(desired.generation)? else { return Ok(()) };
        self.quarantine().put(&settings)?;
        self.commit(&text, desired.generation, progress).await?;
        Err(DeployError::PutBack)
    }

    /// Commits what is desired and has nats-server load it, as far as `seen` shows that this is needed.
    pub(crate) async fn apply(
        &mut self,
        desired: &Desired<'_>,
        seen: &mut Observation,
        progress: &Progress,
    ) -> Result<(), DeployError> {
        let rendered = &desired.configuration.rendered;
        if let Some(waiting) = &self.waiting
            && waiting.settings == self.settings_of(&desired.configuration.tree)
            && let Some(running) = self.running_with(desired.generation)?
        {
            return self.apply_around_waiting(desired, running, seen, progress).await;
        }
        let committed = self.committed()?;
        if committed.as_ref() != Some(rendered) {
            let deferred = self.deferral(committed.as_ref(), desired, seen);
            match self.prove_and_commit(desired, seen, progress).await {
                Ok(Commit::Committed) if deferred.is_some() => {
                    self.deferred = deferred;
                    return self.observe(Some(&desired.generation.chain), seen).await;
                }
                Ok(Commit::Committed) => {}
                Ok(Commit::NeedsRestart(running)) => {
                    return self.apply_around_waiting(desired, running, seen, progress).await;
                }
                Err(refused) => {
                    self.apply_certificate(desired.generation, seen, progress).await;
                    return Err(refused);
                }
            }
        }
        let reloaded = self.reload(&desired.generation.chain, Proof::Expected, seen, progress).await?;
        match (reloaded, &seen.standing) {
            (Standing::Reloading { .. }, _) => Ok(()),
            (Standing::NotServed(mismatch), _) => {
                let running = self.running_with(desired.generation)?.filter(|running| !self.is_same(running, rendered));
                if let Some(running) = running
                    && self.apply_around_waiting(desired, running, seen, progress).await.is_ok()
                {
                    return Ok(());
                }
                self.roll_back(desired, mismatch, seen, progress).await
            }
            (_, Standing::NotServed(mismatch)) => Err(DeployError::Replaced { mismatch: mismatch.clone() }),
            _ => Ok(()),
        }
    }

    /// How a change of peers alone is deferred: nats-server serves everything else that is desired. `None`: the change is
    /// loaded at once.
    fn deferral(&self, committed: Option<&Rendered>, desired: &Desired<'_>, seen: &Observation) -> Option<Deferred> {
        if !desired.may_defer || desired.is_asked || !seen.standing.is_served() || self.waiting.is_some() {
            return None;
        }
        let committed = committed?;
        let is_same_generation = self.parts.generations.named_in(committed.text()) == Some(desired.generation.number);
        let is_of_peers = self.settings_of(&self.tree_of(committed)?) == self.settings_of(&desired.configuration.tree);
        if !is_same_generation || !is_of_peers {
            return None;
        }
        let varz = seen.observed.varz.as_ref()?;
        let expected = match &self.deferred {
            Some(deferred) => deferred.expected.clone(),
            None => self.expectation.as_ref()?.1.clone(),
        };
        Some(Deferred { server_id: varz.server_id.clone(), expected })
    }

    /// Whether a change of peers waits for the next reload.
    pub(crate) fn is_deferred(&self) -> bool {
        self.deferred.is_some()
    }

    /// Ends the wait of a change of peers. The next observation shows the change as not served.
    pub(crate) fn end_deferral(&mut self) {
        self.deferred = None;
    }

    /// Has nats-server load the generation with the settings that it runs with, because the desired settings can't be had:
    /// a certificate doesn't wait for somebody to mend a template. A failure is logged; the caller's error is about the
    /// settings.
    pub(crate) async fn apply_certificate(
        &mut self,
        generation: &Generation,
        seen: &mut Observation,
        progress: &Progress,
    ) {
        let Ok(Some(running)) = self.running_with(generation) else { return };
        let is_committed = self.committed().is_ok_and(|committed| committed.as_ref() == Some(&running));
        if is_committed && !seen.standing.is_not_served() {
            return;
        }
        if let Err(error) = self.commit_and_reload(&running, generation, Proof::Expected, seen, progress).await {
            tracing::warn!("the new certificate can't be brought into force alone: {}", with_causes(&error));
        }
    }

    async fn commit_and_reload(
        &mut self,
        rendered: &Rendered,
        generation: &Generation,
        proof: Proof,
        seen: &mut Observation,
        progress: &Progress,
    ) -> Result<(), DeployError> {
        self.commit(rendered, generation, progress).await?;
        match self.reload(&generation.chain, proof, seen, progress).await? {
            Standing::NotServed(mismatch) => Err(DeployError::NotConfirmed { mismatch }),
            _ => Ok(()),
        }
    }

    /// Has nats-server load the new generation with the settings that it runs with, and then commits the desired settings
    /// for its next start. The files are complete between the two commits, so a crash there costs nothing.
    async fn apply_around_waiting(
        &mut self,
        desired: &Desired<'_>,
        running: Rendered,
        seen: &mut Observation,
        progress: &Progress,
    ) -> Result<(), DeployError> {
        let has_loaded = self.committed()?.as_ref() == Some(&running) && self.is_in_force(seen);
        if !has_loaded {
            self.commit_and_reload(&running, desired.generation, Proof::Load, seen, progress).await?;
        }
        if self.is_under_way() {
            return Ok(());
        }
        let loaded = self.expectation.clone();
        self.commit(&desired.configuration.rendered, desired.generation, progress).await?;
        self.waiting = seen.observed.varz.as_ref().zip(loaded).map(|(varz, (_, expected))| WaitingSettings {
            settings: self.settings_of(&desired.configuration.tree),
            server_id: varz.server_id.clone(),
            expected,
            names: self
                .tree_of(&running)
                .map(|running| running.differing(&desired.configuration.tree))
                .unwrap_or_default(),
        });
        self.observe(Some(&desired.generation.chain), seen).await
    }

    /// Renames the text that nats-server had loaded before into place, if its certificate is still good.
    async fn roll_back(
        &mut self,
        desired: &Desired<'_>,
        mismatch: Mismatch,
        seen: &mut Observation,
        progress: &Progress,
    ) -> Result<(), DeployError> {
        let running = self.running()?;
        self.quarantine_if_refused(running.as_ref(), &desired.configuration.tree, &mismatch)?;
        let Some((running, before)) = self.way_back(running, desired)? else {
            self.observe(Some(&desired.generation.chain), seen).await?;
            return Err(DeployError::NotConfirmed { mismatch });
        };
        if let Err(source) = self.commit(&running, &before, progress).await {
            self.observe(Some(&desired.generation.chain), seen).await?;
            return Err(DeployError::NotRolledBack { mismatch, source: Box::new(source) });
        }
        progress.report(Step::RolledBack { reason: mismatch.to_string() });
        let reloaded = self.reload(&before.chain, Proof::Expected, seen, progress).await;
        self.observe(Some(&before.chain), seen).await?;
        let confirmed = reloaded.is_ok_and(|standing| standing.is_served());
        Err(DeployError::RolledBack { mismatch, confirmed })
    }

    /// The text to put back, and its generation: what ran before, unless its certificate has expired. Where the new
    /// certificate was seen served, the settings alone go back.
    fn way_back(
        &self,
        running: Option<Rendered>,
        desired: &Desired<'_>,
    ) -> Result<Option<(Rendered, Generation)>, DeployError> {
        let Some(running) = running else { return Ok(None) };
        let is_shown = self.shown.as_ref() == Some(&desired.generation.chain.leaf().sha256);
        let (text, generation) = if is_shown {
            let Some(text) = self.running_with(desired.generation)? else { return Ok(None) };
            (text, desired.generation.clone())
        } else {
            let Some(before) = self.generation_of(&running) else { return Ok(None) };
            (running, before)
        };
        let is_valid = generation.chain.leaf().not_after > self.parts.clock.now();
        let is_other = !self.is_same(&text, &desired.configuration.rendered);
        Ok((is_valid && is_other).then_some((text, generation)))
    }

    /// Commits the desired configuration after three proofs. nats-server reads the same settings as the agent, nothing
    /// is lost by accident, and a trial accepts the settings.
    async fn prove_and_commit(
        &mut self,
        desired: &Desired<'_>,
        seen: &Observation,
        progress: &Progress,
    ) -> Result<Commit, DeployError> {
        let Configuration { tree, rendered, sources, .. } = &desired.configuration;
        self.prove_reading(sources).await?;
        let staged = self.stage(rendered).await.map_err(|error| self.with_origin(error, rendered, tree))?;
        let known = Known {
            committed: self.committed()?.and_then(|text| self.known(&text)),
            running: self.running()?.and_then(|text| self.known(&text)),
        };
        Self::check_losses(&known, tree, desired.allowed_losses)?;
        if let Some(running) = self.try_settings(&known, desired, seen, progress).await? {
            return Ok(Commit::NeedsRestart(running));
        }
        self.commit_staged(staged, desired.generation, progress)?;
        Ok(Commit::Committed)
    }

    /// Tries settings that differ from those that run. Returns the running text with the new generation where the new
    /// settings need a restart. A new generation or other peers alone need no trial.
    async fn try_settings(
        &self,
        known: &Known,
        desired: &Desired<'_>,
        seen: &Observation,
        progress: &Progress,
    ) -> Result<Option<Rendered>, DeployError> {
        let tree = &desired.configuration.tree;
        let known = [&known.running, &known.committed].into_iter().flatten().find(|known| known.names_generation);
        let known = known.map(|known| &known.tree);
        let (settings, before) = (self.settings_of(tree), known.map(|known| self.settings_of(known)));
        if before.as_ref() == Some(&settings) {
            return Ok(None);
        }
        let changes = || Changes::between(before.as_ref(), &settings);
        if !desired.is_asked && self.quarantine().holds(&settings)? {
            return Err(DeployError::Quarantined(changes()));
        }
        let pid = match seen.observed.presence {
            Presence::Running(pid) => Some(pid),
            _ => None,
        };
        // Where nats-server doesn't run here, the change takes nothing from the cluster, and may be the remedy.
        if !desired.is_asked && known.is_some() && pid.is_some() {
            let unfit = desired.neighbours.unfit(&desired.generation.chain, self.parts.clock.now()).await;
            if !unfit.is_empty() {
                return Err(DeployError::PeersUnfit(unfit));
            }
        }
        progress.report(Step::Trying);
        match self.parts.server.predict(known.filter(|_| pid.is_some()), tree, pid).await {
            Prediction::Starts | Prediction::Reloadable
                if pid.is_some() && known.is_some_and(|known| system::disconnects(known, tree)) =>
            {
                tracing::info!("a reload would disconnect every anonymous client, so the settings wait for a restart");
                self.running_with(desired.generation)
            }
            Prediction::Starts | Prediction::Reloadable => Ok(None),
            Prediction::NeedsRestart { said } => {
                tracing::info!("the new settings wait for a restart of nats-server: {said}");
                self.running_with(desired.generation)
            }
            Prediction::WontStart { said } => Err(DeployError::WontStart { said, changes: changes() }),
            Prediction::Kills { said } => Err(DeployError::WouldKill { said, changes: changes() }),
            Prediction::Unknown(trouble) if known.is_some() => Err(DeployError::NotTried(trouble)),
            Prediction::Unknown(trouble) => {
                tracing::warn!("the first settings are committed without a trial: {}", with_causes(&trouble));
                Ok(None)
            }
        }
    }

    /// Compares what nats-server and the agent read in the sources. nats-server before 2.11 doesn't tell.
    async fn prove_reading(&self, sources: &Sources) -> Result<(), DeployError> {
        let CommitParts { server, nats, .. } = &self.parts;
        let (file, wrapped) = (beside(&nats.config, "sources"), beside(&nats.config, "wrapped"));
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        self.write(&file, sources.text.text())?;
        self.write(&wrapped, &Sources::wrapped(&name))?;
        let theirs = server.validate(&wrapped, &sources.environment).await;
        durable::remove_if_there(&wrapped)?;
        durable::remove_if_there(&file)?;
        agree(ReadText::Sources, theirs?, &sources.digest)
    }

    fn write(&self, file: &Path, text: &str) -> Result<(), FileError> {
        if let Some(parent) = file.parent() {
            durable::create_directory(parent, 0o750)?;
        }
        durable::remove_if_there(file)?;
        durable::create(file, text.as_bytes(), Secrecy::of(&self.parts.state).file_mode())
    }

    async fn commit(
        &mut self,
        rendered: &Rendered,
        generation: &Generation,
        progress: &Progress,
    ) -> Result<(), DeployError> {
        let staged = self.stage(rendered).await?;
        self.commit_staged(staged, generation, progress)
    }

    /// Writes the text beside the committed text, and has nats-server's own binary check it.
    async fn stage(&self, rendered: &Rendered) -> Result<Staged, DeployError> {
        let candidate = self.candidate();
        self.write(&candidate, rendered.text())?;
        let digest = self.parts.server.validate(&candidate, &Variables::new()).await?;
        // An earlier agent may have committed a text that this agent doesn't read.
        if let Some(tree) = self.tree_of(rendered) {
            agree(ReadText::Candidate, digest.clone(), &digest_of(&tree, UsedVariables::Keep))?;
        }
        Ok(Staged { rendered: rendered.clone(), digest })
    }

    /// A refusal of the candidate, with the source of the setting, because nats-server names only the candidate's line.
    /// The setting's name may hold a secret.
    fn with_origin(&self, error: DeployError, rendered: &Rendered, tree: &Map) -> DeployError {
        let DeployError::Server(ServerError::Refused { message }) = &error else { return error };
        let of_candidate = format!("{}:", self.candidate().display());
        let line = message.split_once(&of_candidate).and_then(|(_, rest)| rest.split(':').next()?.parse().ok());
        let setting = line.and_then(|line| self.tree_of(rendered)?.at_line(line));
        match setting.and_then(|setting| tree.at(&setting)) {
            Some(Entry { origin, .. }) => {
                ServerError::Refused { message: format!("{message} (this setting is from {origin})") }.into()
            }
            None => error,
        }
    }

    /// Commits the staged text: the rename is the commit point.
    fn commit_staged(
        &mut self,
        staged: Staged,
        generation: &Generation,
        progress: &Progress,
    ) -> Result<(), DeployError> {
        let config = &self.parts.nats.config;
        let Staged { rendered, digest } = staged;
        progress.report(Step::Validated { digest: digest.clone() });
        if config.exists() && !self.running_file().exists() {
            self.note_running()?;
        }
        durable::rename(&self.candidate(), config)?;
        progress.report(Step::Committed { generation: generation.number });
        self.expectation = Some((rendered, Expected::of(digest, generation.chain.leaf())));
        self.waiting = None;
        self.deferred = None;
        Ok(())
    }

    fn candidate(&self) -> PathBuf {
        beside(&self.parts.nats.config, "candidate")
    }

    /// What a committed configuration makes nats-server serve.
    async fn expectation_of(&self, committed: &Rendered) -> Result<Expected, DeployError> {
        let generation = self.generation_of(committed);
        let generation = generation.ok_or_else(|| DeployError::Unnamed(self.parts.nats.config.clone()))?;
        let digest = self.parts.server.validate(&self.parts.nats.config, &Variables::new()).await?;
        Ok(Expected::of(digest, generation.chain.leaf()))
    }

    /// What the committed text makes nats-server serve, once it is known.
    fn expected(&self) -> Result<Expected, DeployError> {
        let expectation = self.expectation.as_ref().map(|(_, expected)| expected.clone());
        expectation.ok_or_else(|| DeployError::Unnamed(self.parts.nats.config.clone()))
    }

    /// Compares with the committed configuration. Where the committed file is gone or damaged, the running
    /// configuration takes its place.
    fn check_losses(known: &Known, tree: &Map, allowed: &[Loss]) -> Result<(), DeployError> {
        let mut before = [&known.committed, &known.running].into_iter().flatten();
        let before = before.find_map(|before| Facts::of(&before.tree).ok());
        let after = Facts::of(tree)?;
        let mut losses = loss::losses(before.as_ref(), &after);
        losses.retain(|taken| !allowed.contains(&taken.loss));
        if losses.is_empty() { Ok(()) } else { Err(DeployError::Losses(losses)) }
    }

    /// The settings of a text that was committed, and whether the text names a generation.
    fn known(&self, text: &Rendered) -> Option<KnownSettings> {
        let names_generation = self.parts.generations.named_in(text.text()).is_some();
        Some(KnownSettings { tree: self.tree_of(text)?, names_generation })
    }

    /// The settings of a text that was committed. `None`: the text can't be read.
    fn tree_of(&self, text: &Rendered) -> Option<Map> {
        let config = &self.parts.nats.config;
        text.tree(config).map_err(|error| tracing::warn!("{}", with_causes(&error))).ok()
    }

    fn quarantine(&self) -> Quarantine {
        Quarantine::of(&self.parts.state)
    }

    /// Puts new settings into quarantine where nats-server ended or refused them. A silent port is no refusal, because
    /// a reload may be under way.
    fn quarantine_if_refused(
        &self,
        running: Option<&Rendered>,
        tree: &Map,
        mismatch: &Mismatch,
    ) -> Result<(), FileError> {
        let settings = self.settings_of(tree);
        let running = running.and_then(|running| self.tree_of(running));
        let is_new = running.is_some_and(|running| self.settings_of(&running) != settings);
        if is_new && mismatch.is_refusal() { self.quarantine().put(&settings) } else { Ok(()) }
    }

    /// Whether two texts have the same settings. A text that was rebased has lost the comments.
    fn is_same(&self, one: &Rendered, other: &Rendered) -> bool {
        one == other || self.tree_of(one).is_some_and(|one| self.tree_of(other).is_some_and(|other| one == other))
    }

    /// The text that nats-server runs with, naming this generation. Before any load was seen, nats-server reads the
    /// committed text at its start.
    fn running_with(&self, generation: &Generation) -> Result<Option<Rendered>, DeployError> {
        let running = match self.running()? {
            None => self.committed()?,
            running => running,
        };
        let running = running.filter(|text| self.parts.generations.named_in(text.text()).is_some());
        running.map(|text| self.rebased(&text, generation.number)).transpose()
    }

    fn rebased(&self, text: &Rendered, number: u64) -> Result<Rendered, DeployError> {
        rebase(text, &self.parts.nats.config, &self.parts.generations, number).map_err(DeployError::Unreadable)
    }

    fn settings_of(&self, tree: &Map) -> Map {
        settings_alone(tree, &self.parts.generations)
    }

    fn generation_of(&self, text: &Rendered) -> Option<Generation> {
        let number = self.parts.generations.named_in(text.text())?;
        self.parts.generations.load(number).ok()
    }

    fn running_file(&self) -> PathBuf {
        beside(&self.parts.nats.config, "running")
    }

    /// nats-server has loaded the committed text. Generations that no text names are not needed any more.
    fn note_running(&self) -> Result<(), FileError> {
        let committed = self.committed()?;
        if self.running()? == committed {
            return Ok(());
        }
        durable::link(&self.parts.nats.config, &self.running_file())?;
        let named = committed.and_then(|text| self.parts.generations.named_in(text.text()));
        self.parts.generations.prune(named.as_slice())
    }
}

/// Whether nats-server and the agent read the same settings, as far as nats-server tells.
fn agree(what: ReadText, theirs: Option<String>, ours: &str) -> Result<(), DeployError> {
    match theirs {
        Some(theirs) if theirs != ours => Err(DeployError::ReadDifferently { what, theirs, ours: ours.to_owned() }),
        _ => Ok(()),
    }
}

fn read_config(path: &Path) -> Result<Option<Rendered>, FileError> {
    let Some(bytes) = durable::read_if_there(path, MAX_SIZE as u64)?.map(Zeroizing::new) else { return Ok(None) };
    Ok(Some(Rendered::from_text(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}
