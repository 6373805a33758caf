//! A change of the CA keeps its order by itself: every node trusts old and new, then leaves change, then the old anchor goes.
//!
//! Each peer's route port shows whom the peer trusts and what it serves. The last look at each peer outlives the process, so a
//! peer that is away is judged by what it last showed.

mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use time::OffsetDateTime;

use self::memory::{Memory, MemoryFile, SeenPeer, Waiting};
use crate::config::RolloverConfig;
use crate::peers::PeerSet;
use crate::peers::dial::Dial;
use crate::reason::Reason;
use crate::schedule::ROUNDS_PER_SECRET_POLL;
use crate::state::generation::Generation;
use crate::status::{PeerPhase, RolloverStatus};
use crate::trust::TrustBundle;
use crate::trust::bundle::Anchor;
use crate::trust::rollover::{AcceptedNames, RolloverPhase, Wait};
use crate::x509::chain::{Chain, StoredChain};
use crate::x509::leaf::Leaf;

/// The most peers that one pass dials. The others follow in the next passes.
const DIALS_A_PASS: usize = 64;
/// While nothing changes, looks become rarer, up to so many intervals.
const RAREST: u32 = 20;
/// After so many intervals a peer that never showed anything counts as a peer that was never there.
const UNSEEN_FOR: u32 = 20;
/// The share of a leaf's length before its end in which the certificate wins over whatever it waits for.
const NEAR_END: f64 = 0.1;
/// Where names can't tell two CAs apart, every node has so many polls of the bundle's secret to read the new CA.
const POLLS: u32 = 3;

/// The leaf of a new issuer that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    chain: Chain,
    /// The subjects of the anchors that the leaf needs.
    issuer: String,
    waits: Vec<Wait>,
}

/// Where a change of the CA stands, as this node sees it.
pub(super) struct Rollover {
    config: RolloverConfig,
    interval: Duration,
    memory: Memory,
    file: MemoryFile,
    held: Option<Held>,
    /// The peers that had to be put up with when the certificate won.
    overruled: Vec<Wait>,
    /// Since when a peer is looked for that never showed anything.
    unseen: BTreeMap<SocketAddr, OffsetDateTime>,
    tried: BTreeMap<SocketAddr, OffsetDateTime>,
    /// Since when a question is open that every peer is looked at anew for: which anchors leave, and which leaf waits.
    asked: Option<Asked>,
    /// The peers of the last look, and when the next look is due.
    looked_for: BTreeSet<SocketAddr>,
    /// How often a look told something new.
    looks: u64,
    pause: Duration,
    next: OffsetDateTime,
    /// The peers that another look may tell something new of, and the question that these peers answer.
    open: BTreeSet<SocketAddr>,
    question: Option<Question>,
    status: RolloverStatus,
    /// What the status was worked out from.
    told: Option<(Question, Option<Held>)>,
}

/// A question that every peer is looked at anew for, because a peer may have gone back since its last look.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    since: OffsetDateTime,
    /// The anchors that leave.
    dropped: Vec<String>,
    /// The issuer of the leaf that waits.
    issuer: Option<String>,
}

/// Everything that decides whether another look at a peer may tell something new.
#[derive(Clone, PartialEq, Eq)]
struct Question {
    peers: PeerSet,
    looks: u64,
    asked: Option<Asked>,
    ours: String,
    before: Vec<Anchor>,
    fetched: Vec<Anchor>,
}

/// Everything that a look at the peers goes by.
pub(super) struct View<'a> {
    /// The peers without this node.
    pub(super) peers: PeerSet,
    /// Our own key and chain, the chain in force.
    pub(super) ours: &'a StoredChain,
    /// The anchors in force, and those of the source.
    pub(super) before: &'a TrustBundle,
    /// The bundle of the source.
    pub(super) fetched: &'a TrustBundle,
    /// The chains that this node's server shows.
    pub(super) served: Vec<&'a Chain>,
    pub(super) now: OffsetDateTime,
}

impl<'a> View<'a> {
    pub(super) fn of(
        peers: &PeerSet,
        own: SocketAddr,
        newest: &'a Generation,
        fetched: &'a TrustBundle,
        now: OffsetDateTime,
    ) -> Self {
        let mut peers = peers.clone();
        peers.0.remove(&own);
        Self { peers, ours: &newest.chain, before: &newest.bundle, fetched, served: Vec::new(), now }
    }
}

impl Rollover {
    pub(super) fn of(state: &Path, node: &str, config: RolloverConfig, interval: Duration) -> Self {
        let file = MemoryFile::of(state);
        Self {
            config,
            interval,
            memory: file.read(node),
            file,
            held: None,
            overruled: Vec::new(),
            unseen: BTreeMap::new(),
            tried: BTreeMap::new(),
            asked: None,
            looked_for: BTreeSet::new(),
            looks: 0,
            pause: interval,
            next: OffsetDateTime::UNIX_EPOCH,
            open: BTreeSet::new(),
            question: None,
            status: RolloverStatus::default(),
            told: None,
        }
    }

    /// Looks at the peers whose last look leaves a question open: who trusts too little, and who serves a leaf of another CA.
    pub(super) async fn look(&mut self, view: &View<'_>, dial: &dyn Dial) {
        let (now, before) = (view.now, self.memory.clone());
        self.memory.peers.retain(|address, seen| view.peers.0.get(address).is_some_and(|peer| peer.id == seen.id));
        self.unseen.retain(|address, _| view.peers.0.contains_key(address));
        self.tried.retain(|address, _| view.peers.0.contains_key(address));
        self.looks += u64::from(self.memory.peers.len() != before.peers.len());
        let issuer = self.held.as_ref().map(|held| held.issuer.clone());
        self.note_question(view, issuer);
        let wanted = self.open_peers(view);
        let is_due = wanted != self.looked_for || now >= self.next || now + self.pause < self.next;
        if !wanted.is_empty() && is_due {
            self.dial(&wanted, view, dial).await;
            let is_worth_it = self.memory != before || wanted != self.looked_for || self.held.is_some();
            self.pause = if is_worth_it { self.interval } else { (self.pause * 2).min(self.interval * RAREST) };
            self.next = now + self.pause;
        }
        self.looked_for = wanted;
        self.keep(&before);
    }

    /// Dials some of these peers, those first that were not dialled for the longest time.
    async fn dial(&mut self, wanted: &BTreeSet<SocketAddr>, view: &View<'_>, dial: &dyn Dial) {
        let mut round: Vec<SocketAddr> = wanted.iter().copied().collect();
        round.sort_by_key(|address| self.tried.get(address).copied());
        round.truncate(DIALS_A_PASS);
        for (address, shown) in dial.shown(view.ours, round).await {
            self.looks += 1;
            self.tried.insert(address, view.now);
            let Some(peer) = view.peers.0.get(&address) else { continue };
            if let Some(shown) = shown {
                let accepts = AcceptedNames::of(&shown.accepts);
                let seen = SeenPeer { id: peer.id.clone(), at: view.now, chain: shown.chain, accepts };
                self.unseen.remove(&address);
                self.memory.peers.insert(address, seen);
            } else if !self.memory.peers.contains_key(&address) {
                self.unseen.entry(address).or_insert(view.now);
            }
        }
    }

    /// Notes since when the present question is open.
    fn note_question(&mut self, view: &View<'_>, issuer: Option<String>) {
        let dropped = view.before.anchors.iter().filter(|anchor| !view.fetched.anchors.contains(anchor));
        let dropped: Vec<String> = dropped.map(|anchor| anchor.sha256.clone()).collect();
        let is_open = !dropped.is_empty() || issuer.is_some();
        let known = self.asked.take().filter(|asked| asked.since <= view.now);
        let asked = Asked { since: view.now, dropped, issuer };
        let is_same = |known: &Asked| known.dropped == asked.dropped && known.issuer == asked.issuer;
        // Once the notice is over, what was seen at its beginning may have changed.
        let ended = self.notice().filter(|until| *until <= view.now);
        let since = known.filter(is_same).map_or(view.now, |known| known.since.max(ended.unwrap_or(known.since)));
        self.asked = is_open.then_some(Asked { since, ..asked });
        if self.asked.as_ref().is_some_and(|asked| asked.since == view.now) {
            // A new question waits for no pause.
            (self.pause, self.next) = (self.interval, view.now);
        }
    }

    /// Whether a peer was looked at since the present question is open.
    fn is_answered(&self, address: &SocketAddr) -> bool {
        let since = self.asked.as_ref().map(|asked| asked.since);
        since.is_none_or(|since| self.tried.get(address).is_some_and(|tried| *tried >= since))
    }

    /// The peers that another look may tell something new of. The answer costs a verification for each peer, so it is worked out
    /// once for each question.
    fn open_peers(&mut self, view: &View<'_>) -> BTreeSet<SocketAddr> {
        let question = Question {
            peers: view.peers.clone(),
            looks: self.looks,
            asked: self.asked.clone(),
            ours: view.ours.leaf().sha256.clone(),
            before: view.before.anchors.clone(),
            fetched: view.fetched.anchors.clone(),
        };
        if self.question.as_ref() != Some(&question) {
            self.open = view.peers.0.keys().filter(|address| self.is_open(address, view)).copied().collect();
            self.question = Some(question);
        }
        self.open.clone()
    }

    /// Whether another look at a peer may tell something new.
    fn is_open(&self, address: &SocketAddr, view: &View<'_>) -> bool {
        let Some(seen) = self.memory.peers.get(address).filter(|_| self.is_answered(address)) else { return true };
        let lacks = |bundle: &TrustBundle| bundle.anchors.iter().any(|anchor| !seen.accepts.has(anchor));
        let own = view.before.anchors_above(view.ours.chain(), view.now);
        let is_under_ours = own.iter().any(|anchor| view.before.anchors_above(&seen.chain, view.now).contains(anchor));
        !seen.accepts.is_empty() && (lacks(view.fetched) || lacks(view.before)) || !is_under_ours
    }

    /// The bundle of the source, with the anchors of the bundle before that a served chain still needs (invariant 5).
    ///
    /// A peer that can't be asked is judged by what it last showed. A peer that never showed anything keeps every anchor for
    /// a while, and no longer.
    pub(super) fn keeping(&mut self, view: &View<'_>) -> TrustBundle {
        let before = self.memory.clone();
        let seen = view.peers.0.keys().filter_map(|address| self.last_shown(address, view.now));
        let chains: Vec<&Chain> = view.served.iter().copied().chain([view.ours.chain()]).chain(seen).collect();
        let needed = view.fetched.needed_of(view.before, &chains, view.now);
        let is_open = |address| !self.is_answered(address) || self.is_awaited_unseen(address, view.now);
        let is_any_open = view.peers.0.keys().any(is_open);
        let bundle = view.fetched.keeping(view.before, |anchor| is_any_open || needed.contains(&anchor));
        self.note_bundle(&bundle, view);
        self.keep(&before);
        bundle
    }

    /// The chain that a peer showed last. A peer that is away, and whose leaf has ended, serves it no more.
    fn last_shown(&self, address: &SocketAddr, now: OffsetDateTime) -> Option<&Chain> {
        let seen = self.memory.peers.get(address)?;
        let is_away = self.tried.get(address).is_some_and(|tried| *tried > seen.at);
        let has_ended = || Leaf::parse(seen.chain.leaf()).is_ok_and(|leaf| leaf.not_after <= now);
        (!is_away || !has_ended()).then_some(&seen.chain)
    }

    /// Notes the first bundle of a new node. An anchor of an older node is trusted for long.
    pub(super) fn note_first(&mut self, bundle: &TrustBundle, now: OffsetDateTime) {
        let before = self.memory.clone();
        self.memory.trusted = bundle.anchors.iter().map(|anchor| (anchor.sha256.clone(), now)).collect();
        self.keep(&before);
    }

    /// Notes since when each anchor is trusted here. An anchor that an earlier agent trusted is trusted for long.
    fn note_bundle(&mut self, bundle: &TrustBundle, view: &View<'_>) {
        let known = std::mem::take(&mut self.memory.trusted);
        let has_memory = !known.is_empty();
        self.memory.trusted = bundle
            .anchors
            .iter()
            .map(|anchor| {
                let is_old = !has_memory && view.before.anchors.contains(anchor);
                let since = if is_old { OffsetDateTime::UNIX_EPOCH } else { view.now };
                (anchor.sha256.clone(), known.get(&anchor.sha256).copied().unwrap_or(since).min(view.now))
            })
            .collect();
        self.memory.left.retain(|anchor| bundle.anchors.iter().any(|held| held.sha256 == *anchor));
    }

    /// Whether a peer that never showed anything may still be there.
    fn is_awaited_unseen(&self, address: &SocketAddr, now: OffsetDateTime) -> bool {
        let for_long = |since: &OffsetDateTime| *since + self.interval * UNSEEN_FOR <= now;
        !self.memory.peers.contains_key(address) && !self.unseen.get(address).is_some_and(for_long)
    }

    /// Whether a new chain waits before it replaces the chain in force.
    ///
    /// `skips_notice` is somebody's word that clients trust the issuer. It holds for as long as the chain waits.
    pub(super) async fn must_wait(
        &mut self,
        next: &Chain,
        bundle: &TrustBundle,
        skips_notice: bool,
        view: &View<'_>,
        dial: &dyn Dial,
    ) -> bool {
        let (now, before) = (view.now, self.memory.clone());
        let new = bundle.new_anchors(next, view.ours.chain(), now);
        if new.is_empty() || bundle.refusal(view.ours.chain(), now).is_some() {
            (self.memory.waiting, self.held) = (None, None);
            self.keep(&before);
            return false;
        }
        let issuer = new.iter().map(|anchor| anchor.subject.as_str()).collect::<Vec<_>>().join(" or ");
        let known = self.memory.waiting.take().filter(|waiting| waiting.issuer == issuer);
        let skips_notice = skips_notice || known.as_ref().is_some_and(|known| known.skips_notice);
        let since = known.map_or(now, |waiting| waiting.since.min(now));
        self.memory.waiting = Some(Waiting { issuer: issuer.clone(), since, skips_notice });
        self.note_question(view, Some(issuer.clone()));
        let unanswered = view.peers.0.keys().filter(|address| !self.is_answered(address)).copied().collect();
        self.dial(&unanswered, view, dial).await;
        let waits = self.missing(&new, bundle, &view.peers, skips_notice, now);
        let leaf = view.ours.leaf();
        let near_end = leaf.not_after - (leaf.not_after - leaf.not_before) * NEAR_END;
        let wins = now >= near_end || now >= since + self.config.deadline;
        self.held = (!waits.is_empty() && !wins).then(|| Held { chain: next.clone(), issuer, waits: waits.clone() });
        if wins {
            self.overruled = waits;
        }
        self.keep(&before);
        self.held.is_some()
    }

    fn missing(
        &self,
        new: &[&Anchor],
        bundle: &TrustBundle,
        peers: &PeerSet,
        skips_notice: bool,
        now: OffsetDateTime,
    ) -> Vec<Wait> {
        let since =
            new.iter().filter_map(|anchor| self.memory.trusted.get(&anchor.sha256)).min().copied().unwrap_or(now);
        let mut waits = Vec::new();
        let until =
            since.saturating_add(time::Duration::try_from(self.config.client_notice).unwrap_or(time::Duration::MAX));
        if now < until && !skips_notice {
            waits.push(Wait::Notice { until });
        }
        if bundle.shares_names(new) {
            let until = since + self.interval * ROUNDS_PER_SECRET_POLL * POLLS;
            waits.extend((now < until).then_some(Wait::OneName { until }));
            return waits;
        }
        for (address, peer) in &peers.0 {
            let id = peer.id.clone();
            match self.memory.peers.get(address) {
                // A listener that asks for no certificate refuses none.
                Some(_) if !self.is_answered(address) => waits.push(Wait::Peer { id, seen: None }),
                Some(seen) if seen.accepts.is_empty() || new.iter().any(|anchor| seen.accepts.has(anchor)) => {}
                Some(seen) => waits.push(Wait::Peer { id, seen: Some(seen.at) }),
                None if self.is_awaited_unseen(address, now) => waits.push(Wait::Peer { id, seen: None }),
                None => {}
            }
        }
        waits
    }

    /// A chain went into force in place of another: the anchors that only the other needed are left.
    pub(super) fn note_switch(&mut self, next: &Chain, current: &Chain, bundle: &TrustBundle, now: OffsetDateTime) {
        let before = self.memory.clone();
        let above = bundle.anchors_above(next, now);
        for anchor in bundle.anchors_above(current, now) {
            if !above.contains(&anchor) {
                self.memory.left.insert(anchor.sha256.clone());
            }
        }
        for anchor in above {
            self.memory.left.remove(&anchor.sha256);
        }
        self.memory.waiting = None;
        self.held = None;
        self.keep(&before);
    }

    fn keep(&self, before: &Memory) {
        if self.memory != *before {
            self.file.write(&self.memory);
        }
    }

    /// When a leaf that waits is worth another pass.
    pub(super) fn times(&self, now: OffsetDateTime) -> impl Iterator<Item = OffsetDateTime> {
        let until = self.held.iter().flat_map(|held| &held.waits).filter_map(|wait| match wait {
            Wait::Notice { until } | Wait::OneName { until } => Some(*until),
            Wait::Peer { .. } => None,
        });
        until.filter(move |time| *time > now)
    }

    /// Why a leaf waits, as a reason.
    pub(super) fn reason(&self) -> Option<Reason> {
        let held = self.held.as_ref()?;
        let since = self.memory.waiting.as_ref()?.since;
        Some(Reason::RolloverWaits { issuer: held.issuer.clone(), since, waits: held.waits.clone() })
    }

    /// What a leaf that waits, or that went into force before its time, is worth a warning for.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Reason> {
        let overruled =
            (!self.overruled.is_empty()).then(|| Reason::RolloverOverruled { waits: self.overruled.clone() });
        self.reason().into_iter().chain(overruled)
    }

    /// Forgets the peers that were overruled once they trust the chain in force.
    fn note_trusting(&mut self, own: &[&Anchor], peers: &PeerSet) {
        let trusts = |id: &str| {
            let seen = self.memory.peers.values().find(|seen| seen.id == id);
            let is_gone = !peers.0.values().any(|peer| peer.id == id);
            is_gone || seen.is_some_and(|seen| own.iter().any(|anchor| seen.accepts.has(anchor)))
        };
        let overruled = std::mem::take(&mut self.overruled);
        self.overruled =
            overruled.into_iter().filter(|wait| matches!(wait, Wait::Peer { id, .. } if !trusts(id))).collect();
    }

    /// Works out where the change stands, here and at each peer. `bundle` is the bundle in force.
    pub(super) fn note_phase(&mut self, bundle: &TrustBundle, view: &View<'_>) {
        let View { ref peers, ours, fetched, now, .. } = *view;
        let own = ours.chain();
        let question = Question {
            peers: peers.clone(),
            looks: self.looks,
            asked: self.asked.clone(),
            ours: ours.leaf().sha256.clone(),
            before: bundle.anchors.clone(),
            fetched: fetched.anchors.clone(),
        };
        let told = Some((question, self.held.clone()));
        if self.told == told {
            return;
        }
        self.told = told;
        let target = self.held.as_ref().map_or(own, |held| &held.chain);
        let target = bundle.anchors_above(target, now);
        self.note_trusting(&bundle.anchors_above(own, now), peers);
        let rows = peers.0.iter().map(|(address, peer)| {
            let seen = self.memory.peers.get(address);
            let phase = seen.map(|seen| phase_of(seen, &target, bundle, fetched, now));
            PeerPhase { id: peer.id.clone(), address: address.to_string(), phase, seen_at: seen.map(|seen| seen.at) }
        });
        let rows: Vec<PeerPhase> = rows.collect();
        let (phase, waits_for) = self.phase(&rows, bundle, fetched);
        self.status = RolloverStatus {
            phase,
            waits_for,
            since: self.held.as_ref().and(self.memory.waiting.as_ref()).map(|waiting| waiting.since),
            issuer: self.held.as_ref().map(|held| held.issuer.clone()),
            clients_notice_until: self.notice(),
            peers: rows,
        };
    }

    /// The phase of this node, and what the next phase waits for.
    fn phase(&self, rows: &[PeerPhase], bundle: &TrustBundle, fetched: &TrustBundle) -> (RolloverPhase, Vec<String>) {
        if let Some(held) = &self.held {
            return (RolloverPhase::Trusting, held.waits.iter().map(ToString::to_string).collect());
        }
        let at = |phase: RolloverPhase, what: &str| -> Vec<String> {
            rows.iter().filter(|row| row.phase == Some(phase)).map(|row| format!("{} {what}", row.id)).collect()
        };
        for (phase, what) in [
            (RolloverPhase::Trusting, "to trust the whole bundle"),
            (RolloverPhase::Switching, "to serve a leaf of this node's CA"),
        ] {
            let waits_for = at(phase, what);
            if !waits_for.is_empty() {
                return (phase, waits_for);
            }
        }
        let is_left = |anchor: &&Anchor| self.memory.left.contains(&anchor.sha256) || !fetched.anchors.contains(anchor);
        let left =
            bundle.anchors.iter().filter(is_left).map(|anchor| format!("{} to leave the bundle", anchor.subject));
        let waits_for: Vec<String> = left.chain(at(RolloverPhase::Settling, "to drop an anchor")).collect();
        if waits_for.is_empty() { (RolloverPhase::None, waits_for) } else { (RolloverPhase::Settling, waits_for) }
    }

    /// Where the change stands.
    pub(super) fn status(&self) -> RolloverStatus {
        self.status.clone()
    }

    /// Until when clients have notice.
    fn notice(&self) -> Option<OffsetDateTime> {
        self.held.as_ref()?.waits.iter().find_map(|wait| match wait {
            Wait::Notice { until } => Some(*until),
            _ => None,
        })
    }
}

/// How far a peer is. `target` are the anchors of the leaf that this node serves, or will serve.
fn phase_of(
    seen: &SeenPeer,
    target: &[&Anchor],
    bundle: &TrustBundle,
    fetched: &TrustBundle,
    now: OffsetDateTime,
) -> RolloverPhase {
    let names_cas = !seen.accepts.is_empty();
    if names_cas && !target.is_empty() && !target.iter().any(|anchor| seen.accepts.has(anchor)) {
        return RolloverPhase::Trusting;
    }
    if names_cas && fetched.anchors.iter().any(|anchor| !seen.accepts.has(anchor)) {
        return RolloverPhase::Trusting;
    }
    if !bundle.anchors_above(&seen.chain, now).iter().any(|anchor| target.contains(anchor)) {
        return RolloverPhase::Switching;
    }
    let is_gone = |anchor: &&Anchor| !fetched.anchors.contains(anchor) && seen.accepts.has(anchor);
    if bundle.anchors.iter().any(|anchor| is_gone(&anchor)) { RolloverPhase::Settling } else { RolloverPhase::None }
}
