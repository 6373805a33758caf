//! How nats-server was started and how its JetStream does, over the passes: what lasts is told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use time::OffsetDateTime;

use super::Reconciler;
use crate::reason::Reason;
use crate::server::arguments::ArgumentFault;
use crate::server::jetstream::{Look, Surroundings, Trouble};
use crate::server::{Condition, Presence};

/// An election, or a restart of a peer, takes seconds and is no trouble. What lasts longer is told.
const PATIENCE: Duration = Duration::from_secs(10);
/// The share of an interval after which a pass is a regular pass, whatever its jitter.
const REGULAR: f64 = 0.9;
/// Streams are looked at in each so many passes while nothing is wrong. nats-server walks through all streams then.
const STREAMS_EVERY: u32 = 10;

/// What the passes of this process saw.
#[derive(Default)]
pub(super) struct Watch {
    looked: Option<OffsetDateTime>,
    looked_at_streams: Option<OffsetDateTime>,
    streams_without_leader: BTreeSet<String>,
    arguments: Vec<ArgumentFault>,
    /// Each trouble, with the consecutive looks that saw the trouble.
    since: BTreeMap<Trouble, Since>,
}

/// Consecutive looks at one trouble.
#[derive(Clone, Copy)]
struct Since {
    began: OffsetDateTime,
    looks: u32,
}

impl Watch {
    /// Whether a look is due. Passes follow each other within a second while nats-server doesn't serve what it should.
    fn is_due(&self, now: OffsetDateTime, interval: Duration) -> bool {
        self.looked.is_none_or(|looked| now < looked || now >= looked + interval.mul_f64(REGULAR))
    }

    /// Whether streams are looked at: while something is wrong, and seldom otherwise.
    fn wants_streams(&self, now: OffsetDateTime, interval: Duration) -> bool {
        let is_due = |looked| now < looked || now >= looked + interval.mul_f64(REGULAR) * STREAMS_EVERY;
        !self.since.is_empty() || self.looked_at_streams.is_none_or(is_due)
    }

    fn note_jetstream(&mut self, look: Look, around: &Surroundings, now: OffsetDateTime) {
        let mut seen = match look {
            // What was seen before stands until an answer.
            Look::Unanswered => return,
            Look::Off => {
                self.streams_without_leader.clear();
                return self.since.clear();
            }
            Look::Seen(seen) => seen,
        };
        if let Some(streams) = seen.without_leader.take() {
            self.streams_without_leader = streams;
            self.looked_at_streams = Some(now);
        }
        seen.without_leader = Some(self.streams_without_leader.clone());
        let before = std::mem::take(&mut self.since);
        // The clock may have been set back.
        let since = |trouble: &Trouble| {
            let known = before.get(trouble).filter(|known| known.began <= now);
            let Since { began, looks } = known.copied().unwrap_or(Since { began: now, looks: 0 });
            Since { began, looks: looks.saturating_add(1) }
        };
        self.since = seen.troubles(around).into_iter().map(|trouble| (trouble.clone(), since(&trouble))).collect();
    }

    /// The troubles of two looks or more that outlast [`PATIENCE`], those of one kind together.
    fn lasting(&self, now: OffsetDateTime) -> Vec<Trouble> {
        let lasting = self
            .since
            .iter()
            .filter(|(_, since)| since.looks > 1 && now >= since.began + PATIENCE)
            .map(|(trouble, _)| trouble.clone());
        lasting.fold(Vec::new(), |mut told: Vec<Trouble>, trouble| {
            let rest = match told.last_mut() {
                Some(last) => last.taking_in(trouble),
                None => Some(trouble),
            };
            told.extend(rest);
            told
        })
    }

    /// Why the node isn't healthy.
    pub(super) fn reasons(&self, now: OffsetDateTime) -> Vec<Reason> {
        self.told(now, true)
    }

    /// What is worth knowing.
    pub(super) fn warnings(&self, now: OffsetDateTime) -> Vec<Reason> {
        self.told(now, false)
    }

    fn told(&self, now: OffsetDateTime, failures: bool) -> Vec<Reason> {
        let arguments = self.arguments.iter().filter(|fault| fault.is_failure() == failures).cloned();
        let troubles = self.lasting(now).into_iter().filter(|trouble| trouble.is_failure() == failures);
        arguments.map(Reason::Arguments).chain(troubles.map(Reason::JetStream)).collect()
    }
}

impl Reconciler {
    /// Looks at how nats-server was started and how its JetStream does, once in an interval.
    pub(super) async fn look_at_condition(&mut self) {
        let (now, seen) = (self.clock.now(), self.deployment.seen());
        if !matches!(seen.observed.presence, Presence::Running(_)) {
            self.watch = Watch::default();
            return;
        }
        if !self.watch.is_due(now, self.interval) {
            return;
        }
        // A nats-server that told nothing in this pass tells nothing of JetStream either.
        let streams = seen.observed.varz.is_some().then(|| self.watch.wants_streams(now, self.interval));
        let commit = self.deployment.commit_point.parts();
        let chain = self.newest.as_ref().map(|newest| &newest.chain);
        let Condition { arguments, jetstream } = commit.server.condition(chain, &seen.listeners, streams).await;
        let committed = || {
            let text = self.deployment.commit_point.committed().ok().flatten();
            text.and_then(|text| text.tree(&commit.nats.config).ok()).unwrap_or_default()
        };
        let arguments = arguments.faults(committed);
        let around = self.surroundings();
        self.watch.looked = Some(now);
        self.watch.arguments = arguments;
        self.watch.note_jetstream(jetstream, &around, now);
    }

    fn surroundings(&self) -> Surroundings {
        let observed = &self.deployment.seen().observed;
        let has_gateway = observed.varz.as_ref().is_none_or(|varz| varz.ends.has_gateway());
        let remotes = observed.routez.as_ref().map(|routez| routez.remotes()).unwrap_or_default();
        let own = [Some(&self.node.name), self.node.instance_id.as_ref()];
        let address = self.own_route();
        let peers = self.sources.known_peers().0.iter().filter(|(route, peer)| {
            **route != address && !self.node.has_address(&route.ip()) && !own.contains(&Some(&peer.id))
        });
        Surroundings {
            knows_all: observed.routez.is_some() && !has_gateway,
            routes: remotes.values().map(|(name, _)| (*name).to_owned()).collect(),
            others: peers.map(|(_, peer)| peer.id.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::server::jetstream::{MetaGroup, Seen};

    const INTERVAL: Duration = Duration::from_secs(30);

    fn leader(name: &str) -> Seen {
        Seen {
            meta: MetaGroup { leader: name.into(), size: 3, replicas: Vec::new() },
            is_current: true,
            without_leader: None,
        }
    }

    #[test]
    fn a_trouble_is_told_once_it_lasts_and_streams_are_looked_at_while_it_does() {
        let (begun, around) = (datetime!(2026-03-01 12:00 UTC), Surroundings::default());
        let at = |seconds| begun + time::Duration::seconds(seconds);
        let mut watch = Watch::default();
        assert!(watch.is_due(begun, INTERVAL) && watch.wants_streams(begun, INTERVAL));
        let streams = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>());
        watch.looked = Some(begun);
        watch.note_jetstream(Look::Seen(Seen { without_leader: streams(&[]), ..leader("n2") }), &around, begun);
        assert!(!watch.is_due(at(20), INTERVAL) && watch.is_due(at(29), INTERVAL) && watch.is_due(at(-1), INTERVAL));
        assert!(!watch.wants_streams(at(200), INTERVAL) && watch.wants_streams(at(280), INTERVAL));

        watch.note_jetstream(Look::Seen(leader("")), &around, at(30));
        assert!(watch.reasons(at(59)).is_empty(), "one look may have met an election");
        assert!(watch.wants_streams(at(60), INTERVAL));
        watch.note_jetstream(Look::Seen(leader("")), &around, at(60));
        let dead = Trouble::WithoutLeader { size: 3 };
        assert_eq!((watch.reasons(at(60)), watch.warnings(at(60))), (vec![Reason::JetStream(dead)], vec![]));

        watch.note_jetstream(
            Look::Seen(Seen { without_leader: streams(&["a > 1", "a > 2"]), ..leader("n2") }),
            &around,
            at(90),
        );
        assert!(watch.reasons(at(99)).is_empty());
        // A look without streams keeps what the look before saw of streams.
        let connected = Surroundings { knows_all: true, routes: ["n2".to_owned()].into(), others: BTreeSet::new() };
        watch.note_jetstream(Look::Seen(Seen { is_current: false, ..leader("n2") }), &connected, at(101));
        let both = Trouble::StreamsWithoutLeader(vec!["a > 1".into(), "a > 2".into()]);
        assert_eq!(watch.reasons(at(101)), [Reason::JetStream(both)]);
        watch.note_jetstream(Look::Seen(Seen { is_current: false, ..leader("n2") }), &connected, at(111));
        assert_eq!(watch.warnings(at(111)), [Reason::JetStream(Trouble::Recovering)]);
        watch.note_jetstream(Look::Unanswered, &around, at(115));
        assert!(!watch.reasons(at(115)).is_empty(), "what was seen stands");
        watch.note_jetstream(Look::Off, &around, at(120));
        assert!(watch.reasons(at(200)).is_empty() && watch.warnings(at(200)).is_empty());
    }
}
