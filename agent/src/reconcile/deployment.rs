//! From a generation to a server that serves it: observe, commit, reload, and note what came of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::commit_point::{CommitPoint, DeployError, Desired, Observation};
use super::links::{Links, Neighbours};
use super::pass::{PassError, PassRequest};
use super::retry::Retry;
use super::starts::Starts;
use crate::clock::Clock;
use crate::conf::effective::Configuration;
use crate::conf::loss::Loss;
use crate::conf::render::Rendered;
use crate::config::RenewalConfig;
use crate::error::with_causes;
use crate::peers::dial::Dial;
use crate::peers::{Peer, PeerSet};
use crate::progress::Progress;
use crate::reason::{Reason, Told};
use crate::schedule::{cycle, turn};
use crate::server::standing::Standing;
use crate::server::{Observed, Phase};
use crate::state::generation::Generation;
use crate::status::{NodeStatus, RouteState, SettingsStatus, TimedPhase, routes};
use crate::x509::chain::StoredChain;

/// How soon nats-server is looked at again while it doesn't serve what is committed.
const WATCH: Duration = Duration::from_secs(1);

/// How long a running peer may lack a route before the change of peers is loaded. Gossip needs a second.
const ROUTE_COMES: Duration = Duration::from_mins(1);
/// How soon peers without a route are dialled again.
const DIAL_AGAIN: Duration = Duration::from_secs(20);

/// What kept the desired text from being committed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Obstacle {
    /// There was no text.
    Rendering,
    /// This text was refused.
    Text(Rendered),
    /// A peer had lost its route.
    Peers,
}

/// What is to be deployed, and for whom.
pub(super) struct Order<'a> {
    /// The generation that the text names.
    pub(super) generation: &'a Generation,
    /// The configuration, or why there is none.
    pub(super) configuration: Result<Configuration, PassError>,
    /// What somebody asked for.
    pub(super) wanted: &'a PassRequest,
    /// This node's place in the order of peers.
    pub(super) rank: usize,
    /// The peers without this node.
    pub(super) others: Vec<Peer>,
    /// The way to the peers' route ports.
    pub(super) dial: Arc<dyn Dial>,
    /// The peers in force.
    pub(super) peers: &'a PeerSet,
    /// The identity of this node.
    pub(super) node: &'a NodeStatus,
    /// The instance id of a node on EC2.
    pub(super) instance_id: Option<&'a String>,
}

impl Order<'_> {
    /// The other peers to which nats-server has no route. `None`: nats-server reports too little. Or nats-server has no route,
    /// so no gossip reaches it.
    fn without_route(&self, observed: &Observed) -> Option<Vec<SocketAddr>> {
        let routes = routes(self.node, self.instance_id, self.peers, observed);
        let others: Vec<_> = routes.iter().filter(|peer| !self.node.is_own(peer)).collect();
        if others.iter().any(|peer| peer.route == RouteState::Unknown) {
            return None;
        }
        let down = others.iter().filter(|peer| peer.route == RouteState::Down);
        let down: Vec<_> = down.filter_map(|peer| peer.address.parse().ok()).collect();
        others.iter().any(|peer| peer.route == RouteState::Up).then_some(down)
    }
}

/// The peers that nats-server should have a route to and hasn't, while a change of peers is not loaded.
#[derive(Default)]
struct Unrouted {
    /// When a peer was first seen to accept connections without a route.
    since: BTreeMap<SocketAddr, OffsetDateTime>,
    dialled: Option<OffsetDateTime>,
}

impl Unrouted {
    /// Whether the change must be loaded: a peer accepts connections and lacks a route for a while. A peer that is down needs no
    /// load. The peer dials this node when it starts, and gossip spreads the route.
    async fn need_load(&mut self, without_route: Vec<SocketAddr>, dial: &dyn Dial, now: OffsetDateTime) -> bool {
        self.since.retain(|peer, since| without_route.contains(peer) && *since <= now);
        // A peer that drops packets keeps a pass waiting for seconds.
        let is_due = self.dialled.is_none_or(|dialled| now < dialled || now >= dialled + DIAL_AGAIN);
        if !without_route.is_empty() && is_due {
            self.dialled = Some(now);
            let answering = dial.answering(without_route).await;
            self.since.retain(|peer, _| answering.contains(peer));
            for peer in answering {
                self.since.entry(peer).or_insert(now);
            }
        }
        self.since.values().any(|since| *since + ROUTE_COMES <= now)
    }
}

/// The commit point, what was last seen of nats-server, and when a deployment is tried next.
pub(super) struct Deployment {
    pub(super) commit_point: CommitPoint,
    clock: Clock,
    renewal: RenewalConfig,
    interval: Duration,
    /// Losses that the command line of the daemon allows.
    allowed_losses: Vec<Loss>,
    /// The servers that had a route to this node.
    pub(super) links: Links,
    seen: Observation,
    retry: Retry,
    /// What kept the desired text from being committed, if the last deployment failed for that.
    obstacle: Option<Obstacle>,
    /// The last observation could not tell what nats-server should serve.
    is_expectation_unknown: bool,
    /// When a change that waits for this node's turn may be made.
    turn: Option<OffsetDateTime>,
    /// A credential took over on every node just now, so the change waits for no turn.
    skips_turn: bool,
    confirmed_at: Option<OffsetDateTime>,
    starts: Starts,
    unrouted: Unrouted,
    /// What nats-server is about, since when, and until when that is no failure.
    phase: Option<TimedPhase>,
}

impl Deployment {
    pub(super) fn new(
        commit_point: CommitPoint,
        clock: Clock,
        renewal: RenewalConfig,
        interval: Duration,
        allowed_losses: Vec<Loss>,
        links: Links,
    ) -> Self {
        let seen = commit_point.unseen();
        Self {
            commit_point,
            clock,
            renewal,
            interval,
            allowed_losses,
            links,
            seen,
            retry: Retry::at_once(),
            obstacle: None,
            is_expectation_unknown: false,
            turn: None,
            skips_turn: false,
            confirmed_at: None,
            starts: Starts::default(),
            unrouted: Unrouted::default(),
            phase: None,
        }
    }

    /// What nats-server is about. `None`: it doesn't run.
    pub(super) fn phase(&self) -> Option<TimedPhase> {
        self.phase
    }

    /// Whether nats-server starts again and again and never serves.
    pub(super) fn is_crash_loop(&self) -> bool {
        self.starts.are_a_loop()
    }

    /// What was last seen of nats-server.
    pub(super) fn seen(&self) -> &Observation {
        &self.seen
    }

    /// When the committed configuration was last seen served.
    pub(super) fn confirmed_at(&self) -> Option<OffsetDateTime> {
        self.confirmed_at
    }

    /// After the clock was set back, no deployment waits for a time that is far off.
    pub(super) fn heed_step_back(&mut self, now: OffsetDateTime) {
        self.retry.heed_step_back(now);
    }

    /// A new credential took over: the next change is made at once.
    pub(super) fn skip_turn(&mut self) {
        self.skips_turn = true;
    }

    /// Looks at nats-server.
    pub(super) async fn observe(&mut self, newest: Option<&Generation>) -> Result<(), DeployError> {
        let observed = self.commit_point.observe(newest.map(|newest| &newest.chain), &mut self.seen).await;
        self.note_seen();
        observed
    }

    /// Notes the starts of nats-server, and what it is about.
    fn note_seen(&mut self) {
        let Observation { observed, standing, .. } = &self.seen;
        self.starts.note(observed, standing);
        let now = self.clock.now();
        self.phase = self.starts.phase(observed, standing).map(|phase| {
            let known = self.phase.filter(|known| known.phase == phase && known.since <= now);
            // Another process of the agent may have seen the start.
            let begun = observed.started.filter(|started| phase == Phase::Starting && *started <= now);
            let since = begun.or(known.map(|known| known.since)).unwrap_or(now);
            TimedPhase { phase, since, may_last_until: since + self.commit_point.parts().nats.start_timeout }
        });
    }

    /// Brings the committed configuration, and then nats-server, to what is ordered. The status shows what is served,
    /// whatever comes of the order.
    pub(super) async fn apply(&mut self, order: Order<'_>, progress: &Progress) -> Result<Standing, PassError> {
        let now = self.clock.now();
        let mut observed = self.observe(Some(order.generation)).await;
        let without_route = order.without_route(&self.seen.observed);
        let may_defer = without_route.is_some();
        if self.commit_point.is_deferred() {
            let needs_load = match without_route {
                None => true,
                Some(peers) => self.unrouted.need_load(peers, order.dial.as_ref(), now).await,
            };
            if needs_load {
                self.commit_point.end_deferral();
                observed = self.observe(Some(order.generation)).await;
            }
        } else {
            self.unrouted = Unrouted::default();
        }
        let Order { generation, configuration, wanted, rank, others, dial, .. } = order;
        let routez = self.seen.observed.routez.as_ref();
        self.links.note(routez, &others.iter().map(|peer| peer.id.clone()).collect());
        let neighbours = Neighbours::new(&self.links, routez, &others, dial);
        self.is_expectation_unknown = observed.is_err();
        self.note_confirmed();
        let configuration = match configuration {
            Ok(configuration) => configuration,
            Err(error) => return Err(self.without_text(error, generation, wanted, rank, progress).await),
        };
        let is_committed = self.commit_point.committed()?.as_ref() == Some(&configuration.rendered);
        match observed {
            // The next commit mends a committed file that says nothing, or that nats-server refuses.
            Err(error) if !is_committed => tracing::warn!("{}", with_causes(&error)),
            observed => observed?,
        }
        let allowed_losses = &[&self.allowed_losses[..], &wanted.allow_loss].concat();
        let desired =
            Desired { configuration, generation, allowed_losses, is_asked: wanted.renew, may_defer, neighbours };
        if self.commit_point.await_reload(&desired, &mut self.seen, progress).await? {
            return Ok(self.seen.standing.clone());
        }
        if self.starts.are_a_loop() {
            let put_back = self.commit_point.put_back(&desired, progress).await;
            if put_back.is_err() {
                self.starts.forget();
            }
            put_back?;
        }
        let rendered = &desired.configuration.rendered;
        if !is_committed || self.seen.standing.is_not_served() {
            // The turn is skipped once: a failure is tried again at its own pace.
            let is_ordinary = *wanted == PassRequest::default() && !std::mem::take(&mut self.skips_turn);
            // A refused text is worth another try as soon as the text differs. A change that waits for a peer is worth
            // another try as soon as the peer is back.
            let is_mended = match &self.obstacle {
                None => false,
                Some(Obstacle::Rendering) => true,
                Some(Obstacle::Text(refused)) => refused != rendered,
                Some(Obstacle::Peers) => desired.neighbours.unfit(&generation.chain, now).await.is_empty(),
            };
            if is_ordinary && now < self.retry.next && !is_mended {
                return match (&self.seen.standing, self.retry.reason.clone()) {
                    (standing @ Standing::NotServed(_), _) if is_committed => Ok(standing.clone()),
                    (_, Some(reason)) => Err(PassError::Waits(reason)),
                    (standing, None) => Ok(standing.clone()),
                };
            }
            let has_nothing_to_load = is_committed && self.commit_point.is_busy(&self.seen.standing, rendered)?;
            if is_ordinary && (has_nothing_to_load || self.waits_for_turn(now, rank)) {
                return Ok(self.seen.standing.clone());
            }
            // The next change and another try have turns of their own.
            self.turn = None;
            let applied = self.commit_point.apply(&desired, &mut self.seen, progress).await;
            self.obstacle = match &applied {
                Err(DeployError::PeersUnfit(_)) => Some(Obstacle::Peers),
                Err(error) if error.is_refusal() => Some(Obstacle::Text(desired.configuration.rendered)),
                _ => None,
            };
            applied?;
            self.is_expectation_unknown = false;
        }
        if let Standing::Reloading { .. } = self.seen.standing {
            return Ok(self.seen.standing.clone());
        }
        self.note_confirmed();
        self.commit_point.note_loaded(&self.seen)?;
        self.turn = None;
        Ok(self.seen.standing.clone())
    }

    /// Counts the clients that a reload disconnected.
    pub(super) async fn count_disconnected(&mut self, chain: &StoredChain, progress: &Progress) {
        self.commit_point.count_disconnected(chain, &self.seen, progress).await;
    }

    /// There is no text, so the new certificate goes into force with the settings that nats-server runs with.
    async fn without_text(
        &mut self,
        error: PassError,
        generation: &Generation,
        wanted: &PassRequest,
        rank: usize,
        progress: &Progress,
    ) -> PassError {
        let (now, reason) = (self.clock.now(), Reason::from(&error));
        let is_told = self.retry.reason.as_ref().is_some_and(|told| told.identity() == reason.identity());
        let is_ordinary = *wanted == PassRequest::default();
        if is_ordinary && is_told && now < self.retry.next {
            self.retry.reason = Some(reason.clone());
            return PassError::Waits(reason);
        }
        let loads = self.seen.standing.is_not_served() || !self.commit_point.names(generation.chain.leaf());
        if is_ordinary && loads && self.waits_for_turn(now, rank) {
            self.retry.reason = Some(reason.clone());
            return PassError::Waits(reason);
        }
        self.turn = None;
        self.commit_point.apply_certificate(generation, &mut self.seen, progress).await;
        self.obstacle = Some(Obstacle::Rendering);
        error
    }

    /// Whether a change waits for this node's turn: nats-server shows a leaf that has time left. The cause of the change,
    /// a death of the agent's process before, and a failed try make no difference.
    fn waits_for_turn(&mut self, now: OffsetDateTime, rank: usize) -> bool {
        let Observed { client, route, .. } = &self.seen.observed;
        let ends = [client, route].into_iter().filter_map(|served| served.as_ref().ok()?.not_after);
        let Some((cycle, until)) = cycle(self.interval).zip(ends.min()) else { return false };
        if until < now + cycle * 10 {
            return false;
        }
        // A turn further off than a cycle comes from a clock that was set back since.
        let known = self.turn.filter(|turn| *turn < now + cycle);
        now < *self.turn.insert(known.unwrap_or_else(|| turn(now, rank, cycle)))
    }

    fn note_confirmed(&mut self) {
        if self.seen.standing.is_served() {
            self.confirmed_at = Some(self.clock.now());
        }
    }

    /// Counts what a pass came to.
    pub(super) fn note_outcome(&mut self, outcome: &Result<Standing, PassError>) {
        self.note_seen();
        let now = self.clock.now();
        match outcome {
            // A change that waits for its turn has not been tried again.
            Ok(_) if self.turn.is_some() => {}
            Ok(Standing::Served(_) | Standing::NoServer { .. } | Standing::NothingCommitted) => {
                self.retry.succeed(now, now);
            }
            Err(error) if error.is_of_deployment() => {
                let RenewalConfig { retry_min, retry_max, .. } = self.renewal;
                self.retry.fail(now, retry_min, retry_max, error.into());
            }
            // The stages of issuer and sources count their own failures.
            Ok(Standing::NotServed(_) | Standing::Reloading { .. } | Standing::Unseen) | Err(_) => {}
        }
    }

    /// Shows a failed observation without counting a failure.
    pub(super) fn show(&mut self, failed: Option<&DeployError>) {
        self.retry.reason = failed.map(Reason::from);
    }

    /// Why the last deployment failed.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.retry.reason.clone()
    }

    /// The settings of nats-server, for the status.
    pub(super) fn settings(&self) -> SettingsStatus {
        let refused = self.retry.reason.as_ref().filter(|reason| reason.code().is_of_settings());
        SettingsStatus {
            committed: self.commit_point.committed_digest(),
            running: None,
            waiting: self.commit_point.waiting_for_restart().to_vec(),
            refused: refused.map(Told::from),
        }
    }

    /// The settings that wait for a restart of nats-server.
    pub(super) fn warning(&self) -> Option<Reason> {
        let names = self.commit_point.waiting_for_restart();
        (!names.is_empty()).then(|| Reason::SettingsWaitForRestart { names: names.to_vec() })
    }

    /// When a deployment or a look at nats-server is worth another pass.
    pub(super) fn times(&self, now: OffsetDateTime, has_generation: bool) -> Vec<OffsetDateTime> {
        let mut times = Vec::new();
        times.extend((self.retry.failures > 0).then_some(self.retry.next).filter(|next| *next > now));
        times.extend(self.turn.filter(|turn| *turn > now));
        let loads_for = self.unrouted.since.values().map(|since| *since + ROUTE_COMES);
        times.extend(loads_for.filter(|time| *time > now));
        // Without a certificate there is nothing that nats-server could serve.
        if has_generation && !self.is_expectation_unknown && !self.seen.standing.is_served() {
            times.push(now + WATCH.min(self.interval));
        }
        times
    }

    /// The next try, if the last deployment failed.
    pub(super) fn next_try(&self) -> Option<OffsetDateTime> {
        (self.retry.failures > 0).then_some(self.retry.next)
    }
}
