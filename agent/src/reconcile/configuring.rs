//! From what the sources know to the configuration that should be in force, with or without the agent's user.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use time::OffsetDateTime;

use super::commit_point::CommitPoint;
use super::deployment::Deployment;
use super::pass::PassError;
use super::sources::Sources;
use super::system_user::SystemUser;
use crate::conf::effective::{self, Configuration, Effective, SettingsError};
use crate::conf::reader::Contents;
use crate::conf::render::{Rendered, Values};
use crate::conf::system::Obstacle;
use crate::config::NatsConfig;
use crate::error::with_causes;
use crate::node::Node;
use crate::reason::Reason;
use crate::server::Presence;
use crate::server::system::Link;
use crate::state::generation::{Generation, TlsFiles};

/// The effective configuration that was read last, and the agent's user of the system account in it.
pub(super) struct Configuring {
    effective: Effective,
    system_user: SystemUser,
}

/// A configuration, and what becomes of the new contents of included secrets.
pub(super) struct Configured {
    /// The configuration to deploy, or why there is none.
    pub(super) configuration: Result<Configuration, PassError>,
    /// The text of the configuration, if the configuration has new contents.
    pub(super) tried: Option<Rendered>,
    /// Why the new contents are left out.
    pub(super) refused: Option<PassError>,
}

impl Configuring {
    pub(super) fn of(commit_point: &CommitPoint) -> Self {
        let commit = commit_point.parts();
        Self { effective: Effective::default(), system_user: SystemUser::of(&commit.nats, &commit.state) }
    }

    /// Why reloads have no answer, although an answer is wanted.
    pub(super) fn warning(&self, link: &Link) -> Option<Reason> {
        self.system_user.warning(link)
    }

    /// The committed text, and the text that the next pass would commit. Asks neither issuer nor trust source, and changes
    /// nothing.
    pub(super) async fn preview(
        &mut self,
        node: &Node,
        sources: &mut Sources,
        commit_point: &CommitPoint,
    ) -> Result<(Option<Rendered>, Rendered), PassError> {
        let generations = &commit_point.parts().generations;
        let (newest, _) = generations.newest()?;
        let files = generations.files(newest.map_or(1, |generation| generation.number));
        let files = if sources.has_clients_bundle() { files.with_clients() } else { files };
        let included = sources.preview(node).await;
        let committed = commit_point.committed()?;
        let nats = &commit_point.parts().nats;
        let mut values = values(nats, node, files, sources, &included)?;
        values.system_key = self.system_user.key()?;
        // Only the daemon asks the running nats-server, so the user stays as it is committed.
        if committed.is_some() && !self.system_user.stands_in(committed.as_ref()) {
            values.system_barred = Some(Obstacle::NotRunning);
        }
        let preview = effective::preview(nats, &values, &included)?;
        self.system_user.note_placement(preview.system);
        Ok((committed, preview.rendered))
    }

    /// The configuration with new contents of included secrets. Where there is none, the configuration with the last
    /// good contents takes its place, and the reason stands beside it.
    pub(super) fn configure(
        &mut self,
        nats: &NatsConfig,
        node: &Node,
        files: &TlsFiles,
        sources: &mut Sources,
        is_asked: bool,
    ) -> Configured {
        let candidates = sources.secrets().candidates(is_asked);
        let configuration = self.configure_with(nats, node, files, sources, &candidates);
        let refused = match configuration {
            Err(refused @ PassError::Settings(_)) if !candidates.is_empty() => refused,
            configuration => {
                let tried = configuration.as_ref().ok().filter(|_| !candidates.is_empty());
                let tried = tried.map(|configuration| configuration.rendered.clone());
                return Configured { configuration, tried, refused: None };
            }
        };
        if !sources.secrets().has_last_good() {
            return Configured { configuration: Err(refused), tried: None, refused: None };
        }
        let configuration = self.configure_with(nats, node, files, sources, &BTreeMap::new());
        if configuration.is_err() {
            // The fault is elsewhere.
            return Configured { configuration, tried: None, refused: None };
        }
        sources.secrets().refuse((&refused).into());
        Configured { configuration, tried: None, refused: Some(refused) }
    }

    /// The configuration with some included files in the place of others.
    fn configure_with(
        &mut self,
        nats: &NatsConfig,
        node: &Node,
        files: &TlsFiles,
        sources: &Sources,
        instead: &BTreeMap<PathBuf, PathBuf>,
    ) -> Result<Configuration, PassError> {
        let mut nats = Cow::Borrowed(nats);
        for (file, now) in instead {
            let nats = nats.to_mut();
            nats.include.iter_mut().filter(|known| *known == file).for_each(|known| known.clone_from(now));
            let id = nats.included_secrets.remove(file);
            nats.included_secrets.extend(id.map(|id| (now.clone(), id)));
        }
        let mut values = values(&nats, node, files.clone(), sources, &Contents::new())?;
        values.system_key = self.system_user.key_or_new()?;
        values.system_barred = self.system_user.barred();
        let configuration = self.effective.of(&nats, &values)?;
        self.system_user.note_placement(configuration.system.clone());
        Ok(configuration)
    }

    /// Looks for an obstacle to the agent's user, where nobody but the agent needs a user. A client that sends a user which
    /// nobody asks for would be refused from then on, and nats-server might not start.
    pub(super) async fn look_for_obstacles(
        &mut self,
        generation: &Generation,
        deployment: &mut Deployment,
        now: OffsetDateTime,
    ) {
        let commit_point = &deployment.commit_point;
        let is_running = matches!(deployment.seen().observed.presence, Presence::Running(_));
        let in_force = || [commit_point.committed(), commit_point.running()].map(|text| text.ok().flatten());
        if !self.system_user.asks_server(now, is_running, in_force) {
            return;
        }
        // nats-server may have come up since the last pass.
        if !is_running && let Err(error) = deployment.observe(Some(generation)).await {
            tracing::debug!("{}", with_causes(&error));
        }
        let (seen, commit_point) = (deployment.seen(), &deployment.commit_point);
        let committed = commit_point.committed().ok().flatten();
        let obstacle = match seen.observed.presence {
            Presence::Running(_) if !self.system_user.stands_in(committed.as_ref()) => {
                commit_point.parts().server.obstacle_to_a_user(Some(&generation.chain), &seen.listeners).await
            }
            Presence::Running(_) => None,
            _ => self.system_user.obstacle_without_server(committed.as_ref(), now),
        };
        self.system_user.note_obstacle(obstacle, now);
    }
}

/// The values of the template, once every source is known that the configuration needs. `included` has contents of
/// included secrets that are not kept on the disk.
fn values(
    nats: &NatsConfig,
    node: &Node,
    files: TlsFiles,
    sources: &Sources,
    included: &Contents,
) -> Result<Values, PassError> {
    sources.included(included).map_err(PassError::Waits)?;
    let peers = sources.peers().map_err(PassError::Waits)?;
    let credential = sources.credential().map_err(PassError::Waits)?;
    let name = sources.cluster_name(nats);
    let values = Values::new(nats, node, &name, peers.addresses(), files, credential.cloned());
    Ok(values.map_err(SettingsError::from)?)
}
