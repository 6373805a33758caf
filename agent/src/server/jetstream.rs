//! JetStream as nats-server's monitoring shows it, and what of it needs attention. The judgement is pure.
//!
//! The members of the meta group are servers by their names. A replaced instance has a new name. Its former name stays in the
//! group as a ghost, and counts for the majority until somebody removes the name. Only the meta leader knows its members
//! fully. Before 2.15 another server names no member. In 2.15 another server doesn't know whether a member is alive.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;

use super::inquiry::{Inquiry, Question};
use super::monitor::MonitorError;

/// A leader hears of a live member once a second. A member that was silent for longer is taken for dead.
const HEARD_WITHIN: i64 = 5_000_000_000;
/// Details of more streams are not asked for: each stream takes a kilobyte at most of an answer of four megabytes.
const MOST_STREAMS: u64 = 2_000;
/// The names that a text lists. The others are counted.
const MOST_NAMED: usize = 5;

/// The fields of `/jsz` that the agent reads.
#[derive(Clone, Debug, Default, Deserialize)]
struct Jsz {
    #[serde(default)]
    streams: u64,
    #[serde(default)]
    meta_cluster: Option<MetaGroup>,
    #[serde(default)]
    account_details: Vec<Account>,
}

/// The meta group of a cluster.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct MetaGroup {
    /// The name of its leader. Empty: there is none.
    #[serde(default)]
    pub leader: String,
    /// The number of its members, the dead ones included.
    #[serde(default, rename = "cluster_size")]
    pub size: usize,
    /// Its members without this server, as far as this server knows them.
    #[serde(default)]
    pub replicas: Vec<Replica>,
}

/// A member of the meta group, as another server sees it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Replica {
    /// Its `server_name`. In the place of a name that it doesn't know nats-server has a sentence.
    #[serde(default)]
    pub name: String,
    /// Its id in the group.
    #[serde(default)]
    pub peer: String,
    /// Whether nats-server takes it for offline. On a leader that takes longer than its silence shows.
    #[serde(default)]
    pub offline: bool,
    /// Nanoseconds since the leader heard of it. Zero: never, or this server isn't the leader.
    #[serde(default)]
    pub active: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Account {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "stream_detail")]
    streams: Vec<Stream>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Stream {
    #[serde(default)]
    name: String,
    #[serde(default)]
    cluster: Option<Group>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Group {
    #[serde(default)]
    leader: String,
}

/// JetStream of a server in a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The meta group.
    pub meta: MetaGroup,
    /// Whether this server's JetStream keeps up with the meta leader.
    pub is_current: bool,
    /// The streams of this server without a leader, `account > stream`. `None`: nobody asked.
    pub without_leader: Option<BTreeSet<String>>,
}

/// What a look at JetStream shows.
#[derive(Clone, Debug, Default)]
pub enum Look {
    /// Monitoring gave no answer, so nobody knows.
    #[default]
    Unanswered,
    /// JetStream is off, or makes no cluster.
    Off,
    /// JetStream in a cluster.
    Seen(Seen),
}

/// What else the agent knows of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Whether every server of the meta group would have a route to this server. A gateway leads to servers without a
    /// route, and a nats-server that tells no routes leaves all of them unknown.
    pub knows_all: bool,
    /// The names of the servers that this server has routes to.
    pub routes: BTreeSet<String>,
    /// The ids of the other nodes of the group. On EC2 a node's `server_name` is its id.
    pub others: BTreeSet<String>,
}

/// A member of the meta group that doesn't answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its `server_name`, where this server knows the name.
    pub name: Option<String>,
    /// Its id in the group.
    pub peer: String,
}

/// What needs attention.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The meta group has no leader: no stream can be made, and streams lose their leaders.
    WithoutLeader {
        /// The members of the group, the dead ones included.
        size: usize,
    },
    /// One node makes no meta group.
    Alone,
    /// This server's JetStream doesn't keep up with the meta leader yet.
    Recovering,
    /// With one death more there is no majority.
    MajorityAtRisk {
        /// The members of the group.
        size: usize,
        /// Those of them that don't answer.
        absent: Vec<Member>,
    },
    /// Members that are no node of the group any more.
    Ghosts(Vec<Member>),
    /// Streams without a leader.
    StreamsWithoutLeader(Vec<String>),
}

impl fmt::Display for Member {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(formatter, "{name} (peer id {})", self.peer),
            None => write!(formatter, "a server of unknown name (peer id {})", self.peer),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WithoutLeader { size } => write!(
                formatter,
                "JetStream has no meta leader: fewer than {} of the {size} members of its meta group answer, so streams \
                 can't be made and publishes to JetStream fail; see the runbook",
                majority(*size)
            ),
            Self::Alone => formatter.write_str(
                "JetStream doesn't come up on this node alone: a meta group needs two nodes; add a node, or set \
                 nats.jetstream = false",
            ),
            Self::Recovering => {
                formatter.write_str("JetStream of this node recovers, and isn't current with its meta leader yet")
            }
            Self::MajorityAtRisk { size, absent } => write!(
                formatter,
                "one more death ends JetStream: of the {size} members of its meta group {} must answer, and these don't: {}; \
                 start them again, or remove them from the meta group",
                majority(*size),
                listed(absent)
            ),
            Self::Ghosts(members) => write!(
                formatter,
                "the meta group of JetStream still counts members that are no nodes of the group any more: {}; remove one after \
                 the other with `nats server cluster peer-remove {}` as a user of the system account",
                listed(members),
                members.first().map_or("", |member| &member.peer)
            ),
            Self::StreamsWithoutLeader(streams) => {
                write!(formatter, "JetStream streams have no leader, so publishes to them fail: {}", listed(streams))
            }
        }
    }
}

impl Trouble {
    /// Whether JetStream fails its clients. Anything else is a warning.
    #[must_use]
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self, Self::WithoutLeader { .. } | Self::StreamsWithoutLeader(_))
    }

    /// What the trouble is about, where two troubles may be of one kind.
    #[must_use]
    pub(crate) fn subject(&self) -> Option<String> {
        match self {
            Self::WithoutLeader { .. } | Self::Alone | Self::Recovering => None,
            Self::MajorityAtRisk { absent: members, .. } | Self::Ghosts(members) => Some(listed(members)),
            Self::StreamsWithoutLeader(streams) => Some(listed(streams)),
        }
    }

    /// Takes in a trouble of the same kind. Returns the trouble where it is of another kind.
    #[must_use]
    pub(crate) fn taking_in(&mut self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Ghosts(members), Self::Ghosts(more)) => members.extend(more),
            (Self::StreamsWithoutLeader(streams), Self::StreamsWithoutLeader(more)) => streams.extend(more),
            (_, other) => return Some(other),
        }
        None
    }
}

fn listed(items: &[impl ToString]) -> String {
    let named: Vec<String> = items.iter().take(MOST_NAMED).map(ToString::to_string).collect();
    let more = items.len().saturating_sub(MOST_NAMED);
    if more > 0 { format!("{} and {more} more", named.join(", ")) } else { named.join(", ") }
}

fn majority(size: usize) -> usize {
    size / 2 + 1
}

/// Looks at JetStream. Streams are looked at only `with_streams`, and only where they are few enough.
pub(super) async fn look(inquiry: Inquiry<'_>, with_streams: bool) -> Result<Look, MonitorError> {
    let jsz = Question::plain("JSZ", "/jsz");
    let Jsz { streams, meta_cluster: Some(meta), .. } = inquiry.ask(&jsz).await? else {
        return Ok(Look::Off);
    };
    // Without a leader nobody is current, and the meta leader itself always is.
    let is_current = meta.leader.is_empty() || is_leader(&meta) || inquiry.is_current().await?;
    let without_leader = if with_streams && (1..=MOST_STREAMS).contains(&streams) {
        let options = r#"{"accounts":true,"streams":true}"#.into();
        let details = Question { verb: "JSZ", options, path: "/jsz?streams=true".into() };
        Some(without_leader(&inquiry.ask(&details).await?))
    } else {
        // What was seen of fewer streams says nothing of so many.
        with_streams.then(BTreeSet::new)
    };
    Ok(Look::Seen(Seen { meta, is_current, without_leader }))
}

fn without_leader(answer: &Jsz) -> BTreeSet<String> {
    let of = |account: &Account| {
        let leaderless = |stream: &&Stream| stream.cluster.as_ref().is_some_and(|group| group.leader.is_empty());
        let named = |stream: &Stream| format!("{} > {}", account.name, stream.name);
        account.streams.iter().filter(leaderless).map(named).collect::<Vec<_>>()
    };
    answer.account_details.iter().flat_map(of).collect()
}

/// Whether the server that gave this answer is the leader: a server leaves itself out of its replicas.
fn is_leader(meta: &MetaGroup) -> bool {
    let is_named = |replica: &Replica| replica.name == meta.leader;
    !meta.leader.is_empty() && !meta.replicas.is_empty() && !meta.replicas.iter().any(is_named)
}

impl Seen {
    /// What needs attention. Each ghost and each stream is a trouble of its own.
    #[must_use]
    pub(crate) fn troubles(&self, around: &Surroundings) -> Vec<Trouble> {
        let Self { meta, is_current, without_leader } = self;
        // For a while 2.12 goes on to name a leader that has died.
        let has_died = !is_current && around.knows_all && !around.routes.contains(&meta.leader);
        if meta.leader.is_empty() || has_died {
            // A node whose group never had another member counts itself and the one that is missing.
            let is_alone = around.others.is_empty() && around.routes.is_empty() && meta.size <= 2;
            return vec![if is_alone { Trouble::Alone } else { Trouble::WithoutLeader { size: meta.size } }];
        }
        let mut troubles = Vec::new();
        if is_leader(meta) {
            let absent: Vec<&Replica> = meta.replicas.iter().filter(|replica| is_absent(replica, around)).collect();
            if !absent.is_empty() && meta.size.saturating_sub(absent.len()) <= majority(meta.size) {
                let absent = absent.iter().map(|replica| member(replica)).collect();
                troubles.push(Trouble::MajorityAtRisk { size: meta.size, absent });
            }
            let ghosts = absent.into_iter().map(member).filter(|member| around.knows_all && is_ghost(member, around));
            troubles.extend(ghosts.map(|ghost| Trouble::Ghosts(vec![ghost])));
        }
        if !is_current {
            troubles.push(Trouble::Recovering);
        }
        let streams = without_leader.iter().flatten();
        troubles.extend(streams.map(|stream| Trouble::StreamsWithoutLeader(vec![stream.clone()])));
        troubles
    }
}

/// A member without a route may be a server of another cluster, which a gateway connects. The leader hears of such a member
/// while that lives.
fn is_absent(replica: &Replica, around: &Surroundings) -> bool {
    let is_heard = replica.active > 0 && replica.active < HEARD_WITHIN && !replica.offline;
    !is_heard && !around.routes.contains(&replica.name)
}

fn member(replica: &Replica) -> Member {
    // A server name has no blanks (nats-server refuses them), and the sentence in place of a name has.
    let is_known = !replica.name.is_empty() && !replica.name.contains(' ');
    Member { name: is_known.then(|| replica.name.clone()), peer: replica.peer.clone() }
}

/// Whether an absent member is no node of the group any more. Where names are ids, its name decides. Elsewhere the group
/// tells its size alone: while as many servers answer as there are nodes, the absent member is none of them.
fn is_ghost(member: &Member, around: &Surroundings) -> bool {
    let names_are_ids = around.routes.iter().any(|name| around.others.contains(name));
    match &member.name {
        Some(name) if names_are_ids => !around.others.contains(name),
        _ => around.routes.len() >= around.others.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// `name:seconds` of a member that the leader heard of so long ago; zero is never.
    fn seen(leader: &str, size: usize, replicas: &[&str]) -> Seen {
        let replica = |text: &&str| {
            let (name, heard) = text.split_once(':').unwrap();
            let active = heard.parse::<i64>().unwrap() * 1_000_000_000;
            Replica { name: name.into(), peer: format!("id-{name}"), offline: false, active }
        };
        let meta = MetaGroup { leader: leader.into(), size, replicas: replicas.iter().map(replica).collect() };
        Seen { meta, is_current: true, without_leader: None }
    }

    fn around(routes: &[&str], others: &[&str]) -> Surroundings {
        Surroundings { knows_all: true, routes: set(routes), others: set(others) }
    }

    fn ghost(name: &str) -> Member {
        Member { name: Some(name.into()), peer: format!("id-{name}") }
    }

    #[test]
    fn the_leader_of_a_whole_group_has_no_trouble_and_names_a_ghost_in_time() {
        let whole = around(&["i-2", "i-3"], &["i-2", "i-3"]);
        assert_eq!(seen("i-1", 3, &["i-2:1", "i-3:1"]).troubles(&whole), []);
        // A death: the majority hangs on one more, and the dead node is still a node of the group.
        let at_risk = |size, name| Trouble::MajorityAtRisk { size, absent: vec![ghost(name)] };
        let dead = seen("i-1", 3, &["i-2:9", "i-3:1"]);
        assert_eq!(dead.troubles(&around(&["i-3"], &["i-2", "i-3"])), [at_risk(3, "i-2")]);
        // Its replacement has joined.
        let replaced = seen("i-1", 4, &["i-2:90", "i-3:1", "i-4:1"]);
        let around = around(&["i-3", "i-4"], &["i-3", "i-4"]);
        assert_eq!(replaced.troubles(&around), [at_risk(4, "i-2"), Trouble::Ghosts(vec![ghost("i-2")])]);
        // A leader that never heard of the ghost doesn't know its name.
        let mut unnamed = seen("i-1", 4, &["i-3:1", "i-4:1", "unknown at this time:0"]);
        unnamed.meta.replicas[2].offline = true;
        let nameless = Member { name: None, peer: "id-unknown at this time".into() };
        assert_eq!(unnamed.troubles(&around)[1], Trouble::Ghosts(vec![nameless]));
        // In a group of five, one ghost is no risk.
        let five = seen("i-1", 6, &["i-2:90", "i-3:1", "i-4:1", "i-5:1", "i-6:1"]);
        let all = self::around(&["i-3", "i-4", "i-5", "i-6"], &["i-3", "i-4", "i-5", "i-6"]);
        assert_eq!(five.troubles(&all), [Trouble::Ghosts(vec![ghost("i-2")])]);
    }

    #[test]
    fn where_names_are_no_ids_a_ghost_is_told_while_every_node_of_the_group_answers() {
        let others = ["10.0.0.2:6222", "10.0.0.3:6222"];
        let replaced = seen("n1", 4, &["n2:90", "n3:1", "n4:1"]);
        assert_eq!(replaced.troubles(&around(&["n3", "n4"], &others))[1], Trouble::Ghosts(vec![ghost("n2")]));
        let dead = seen("n1", 3, &["n2:90", "n3:1"]);
        assert_eq!(dead.troubles(&around(&["n3"], &others)).len(), 1);
    }

    #[test]
    fn a_member_behind_a_gateway_is_no_ghost_and_another_than_the_leader_names_none() {
        let others = around(&["n2"], &["n2"]);
        assert_eq!(seen("n1", 3, &["n2:1", "far:1"]).troubles(&others), []);
        // 2.15 shows replicas everywhere, without when they were heard of. Earlier versions show none.
        for replicas in [&["n1:1", "far:0"][..], &[]] {
            assert_eq!(seen("n1", 3, replicas).troubles(&others), []);
        }
    }

    #[test]
    fn without_a_leader_nothing_else_is_told_and_one_node_alone_is_not_a_failure() {
        let dead = seen("", 4, &["n2:0", "n3:0"]);
        assert_eq!(dead.troubles(&around(&["n2"], &["a", "b"])), [Trouble::WithoutLeader { size: 4 }]);
        assert_eq!(dead.troubles(&around(&[], &[])), [Trouble::WithoutLeader { size: 4 }]);
        assert_eq!(seen("", 2, &["n1:0"]).troubles(&around(&[], &[])), [Trouble::Alone]);
        assert_eq!(seen("", 2, &[]).troubles(&around(&[], &["n2"])), [Trouble::WithoutLeader { size: 2 }]);
        let named = Seen { is_current: false, ..seen("n9", 4, &[]) };
        assert_eq!(named.troubles(&around(&["n2"], &["n2", "n3"])), [Trouble::WithoutLeader { size: 4 }]);
    }

    #[test]
    fn a_stream_without_a_leader_and_a_recovery_are_told() {
        let text = r#"{"streams":3,"account_details":[{"name":"$G","stream_detail":[
            {"name":"S","cluster":{"raft_group":"g","replicas":[]}},{"name":"R","cluster":{"leader":"n1"}},{"name":"A"}]}]}"#;
        let streams = without_leader(&serde_json::from_str(text).unwrap());
        assert_eq!(streams, set(&["$G > S"]));
        let seen = Seen { is_current: false, without_leader: Some(streams), ..seen("n2", 3, &[]) };
        let leaderless = Trouble::StreamsWithoutLeader(vec!["$G > S".into()]);
        assert_eq!(seen.troubles(&around(&["n2"], &["n2"])), [Trouble::Recovering, leaderless]);
    }

    #[test]
    fn a_text_names_a_few_and_counts_the_others() {
        let mut all = Trouble::StreamsWithoutLeader(vec!["a > 0".into()]);
        for number in 1..7 {
            assert_eq!(all.taking_in(Trouble::StreamsWithoutLeader(vec![format!("a > {number}")])), None);
        }
        assert_eq!(all.taking_in(Trouble::Alone), Some(Trouble::Alone));
        assert!(all.to_string().ends_with("a > 0, a > 1, a > 2, a > 3, a > 4 and 2 more"), "{all}");
    }
}
