//! The Auto Scaling group.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_autoscaling::Client;
use tokio::sync::Mutex;

use super::addresses::Addresses;
use super::{MAX_PEERS, Peer, PeerSource, Sighting};
use crate::aws::calls::counted;
use crate::aws::{nonsense, refused};
use crate::config::AddressLookup;
use crate::error::{RemoteError, RemoteErrorKind, with_causes};
use crate::node::Node;

const FIND_GROUP: &str = "autoscaling:DescribeAutoScalingInstances";
const DESCRIBE: &str = "autoscaling:DescribeAutoScalingGroups";

/// How many pages one group may take. It is one record, but a page may be empty and still have a next page.
const MAX_PAGES: usize = 20;

/// How long a sighting may take in all: every call is bounded, but a sighting makes many calls.
const SIGHT_TIMEOUT: Duration = Duration::from_mins(1);

/// The peers in Auto Scaling groups.
pub struct Asg {
    client: Client,
    node: Node,
    port: u16,
    /// The groups that the configuration names.
    named: Vec<String>,
    /// The last known group of this instance, where the configuration names no group.
    own: Mutex<Option<String>>,
    addresses: Addresses,
}

/// A member of the group that is a peer by its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Instance id.
    pub id: String,
    /// Lifecycle state.
    pub state: String,
}

impl Asg {
    /// No name stands for the group that `node` is in; `port` is the cluster's.
    #[must_use]
    pub fn new(
        aws: &SdkConfig,
        node: Node,
        names: impl IntoIterator<Item = String>,
        lookup: AddressLookup,
        port: u16,
    ) -> Self {
        Self {
            client: Client::new(aws),
            addresses: Addresses::new(aws, node.clone(), lookup),
            node,
            port,
            named: names.into_iter().collect(),
            own: Mutex::new(None),
        }
    }

    async fn find_group(&self) -> Result<String, RemoteError> {
        let unknown = |kind, reason: String| {
            let remedy = "give discovery.asg_name in the configuration, or put the instance into its group";
            RemoteError::new(kind, "finding this instance's Auto Scaling group", reason, remedy)
        };
        let Some(id) = &self.node.instance_id else {
            return Err(unknown(RemoteErrorKind::Permanent, "the instance id is not known".into()));
        };
        let request = self.client.describe_auto_scaling_instances().instance_ids(id);
        let answer = counted(FIND_GROUP, request.send().await).map_err(|error| refused(FIND_GROUP, error))?;
        answer
            .auto_scaling_instances()
            .iter()
            .find(|instance| instance.instance_id() == Some(id))
            .and_then(|instance| instance.auto_scaling_group_name())
            .filter(|name| !name.is_empty())
            .map(ToOwned::to_owned)
            .ok_or_else(|| unknown(RemoteErrorKind::Absent, format!("{FIND_GROUP} knows no group of {id}")))
    }

    /// The instances of a group that are peers by their lifecycle state. This node is a member in every state but a warm
    /// pool's: its server needs a configuration in Standby, at a hook, or while its root volume is replaced.
    pub async fn members(&self, group: &str) -> Result<Vec<Member>, RemoteError> {
        let own = self.node.instance_id.as_deref();
        let mut members = Vec::new();
        let mut exists = false;
        let mut token = None;
        for _ in 0..MAX_PAGES {
            let request =
                self.client.describe_auto_scaling_groups().auto_scaling_group_names(group).set_next_token(token);
            let answer = counted(DESCRIBE, request.send().await).map_err(|error| refused(DESCRIBE, error))?;
            for described in answer.auto_scaling_groups.unwrap_or_default() {
                if described.auto_scaling_group_name() == Some(group) {
                    exists = true;
                    members.extend(described.instances().iter().filter_map(|instance| {
                        let (id, state) = (instance.instance_id()?, instance.lifecycle_state()?.as_str());
                        is_member(id, state, own).then(|| Member { id: id.to_owned(), state: state.to_owned() })
                    }));
                }
            }
            token = answer.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                break;
            }
        }
        if token.is_some() {
            return Err(nonsense(DESCRIBE, format!("more than {MAX_PAGES} pages for one group")));
        }
        if !exists {
            let remedy = "check discovery.asg_name, and the Region and account that are asked";
            let reason = format!("there is no group {group:?}");
            return Err(RemoteError::new(RemoteErrorKind::Absent, DESCRIBE, reason, remedy));
        }
        // One member above the limit suffices for `PeerSet::after` to refuse the sighting. The rest would cost look-ups.
        members.truncate(MAX_PEERS + 1);
        Ok(members)
    }
}

#[async_trait]
impl PeerSource for Asg {
    async fn sight(&self) -> Result<Sighting, RemoteError> {
        in_time(self.sighting()).await
    }
}

impl Asg {
    /// The group of this instance, and its members.
    ///
    /// An instance can be detached from its group and attached to another group
    /// (<https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-detach-attach-instances.html>). So the agent looks up
    /// the group again after an answer without this instance. The known group stays until the look-up finds another group.
    async fn own_group(&self) -> Result<(String, Vec<Member>), RemoteError> {
        let mut own = self.own.lock().await;
        let known = match own.as_ref() {
            Some(known) => known,
            None => own.insert(self.find_group().await?),
        };
        let answer = self.members(known).await;
        let may_have_moved = match &answer {
            Ok(members) => members.iter().all(|member| Some(&member.id) != self.node.instance_id.as_ref()),
            Err(error) => error.kind == RemoteErrorKind::Absent,
        };
        if may_have_moved {
            match self.find_group().await {
                Ok(found) if found != *known => {
                    let members = self.members(&found).await?;
                    *own = Some(found.clone());
                    return Ok((found, members));
                }
                Ok(_) => {}
                Err(error) if answer.is_err() => return Err(error),
                Err(error) => tracing::debug!("{}", with_causes(&error)),
            }
        }
        Ok((known.clone(), answer?))
    }

    async fn sighting(&self) -> Result<Sighting, RemoteError> {
        let (group, mut members) = match self.named.as_slice() {
            [] => self.own_group().await.map(|(group, members)| (Some(group), members))?,
            named => {
                let mut members = Vec::new();
                for group in named {
                    members.extend(self.members(group).await?);
                }
                // Several groups have no name in common: the configuration names their cluster.
                (named.first().filter(|_| named.len() == 1).cloned(), members)
            }
        };
        members.truncate(MAX_PEERS + 1);
        let ids: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
        let addresses = self.addresses.find(&ids).await?;
        let fault = self.addresses.fault().await;
        let mut seen = Sighting { group, fault, ..Sighting::default() };
        for Member { id, state } in members {
            match addresses.get(&id) {
                Some(ip) => seen.peers.push(Peer { address: SocketAddr::new(*ip, self.port), id, state }),
                None => seen.unresolved.push(id),
            }
        }
        Ok(seen)
    }
}

async fn in_time<T>(sight: impl Future<Output = Result<T, RemoteError>>) -> Result<T, RemoteError> {
    tokio::time::timeout(SIGHT_TIMEOUT, sight).await.unwrap_or_else(|_| {
        Err(RemoteError::new(
            RemoteErrorKind::Unavailable,
            "looking at the Auto Scaling group and for its instances' addresses",
            format!("it took longer than {} s", SIGHT_TIMEOUT.as_secs()),
            "it is tried again; check the way to AWS's endpoints and to the name server",
        ))
    })
}

/// Whether an instance in this lifecycle state runs, or is about to run, a server of the cluster
/// (<https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-lifecycle.html>). An instance in an unknown
/// state is no peer: AWS adds states, and warmed or leaving instances must not become routes.
fn is_peer(lifecycle_state: &str) -> bool {
    matches!(lifecycle_state, "InService" | "Pending" | "Pending:Wait" | "Pending:Proceed")
}

/// Whether an instance is a peer, or is this node outside a warm pool.
fn is_member(id: &str, lifecycle_state: &str, own: Option<&str>) -> bool {
    is_peer(lifecycle_state) || Some(id) == own && !lifecycle_state.starts_with("Warmed:")
}

#[cfg(test)]
mod tests {
    use aws_sdk_autoscaling::types::LifecycleState;

    use super::*;

    #[test]
    fn only_instances_in_service_or_on_their_way_there_are_peers() {
        let peers: Vec<&str> = LifecycleState::values().iter().copied().filter(|state| is_peer(state)).collect();
        assert_eq!(peers, ["InService", "Pending", "Pending:Proceed", "Pending:Wait"]);
        assert!(LifecycleState::values().len() > 20);
        assert!(!is_peer("InServiceSoon") && !is_peer(""));
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_08_a_group_that_never_comes_to_an_end_is_given_up() {
        let error = in_time(std::future::pending::<Result<Sighting, RemoteError>>()).await.unwrap_err();
        assert!(error.to_string().contains("it took longer than 60 s; it is tried again"), "{error}");
    }

    #[test]
    fn this_node_is_a_member_in_every_state_but_those_of_a_warm_pool() {
        let states = || LifecycleState::values().iter().copied();
        let left_out: Vec<&str> = states().filter(|state| !is_member("i-1", state, Some("i-1"))).collect();
        assert!(left_out.len() > 5 && left_out.iter().all(|state| state.starts_with("Warmed:")), "{left_out:?}");
        assert_eq!(states().filter(|state| is_member("i-2", state, Some("i-1"))).count(), 4);
        assert!(is_member("i-1", "ReplacingRootVolume:Wait", Some("i-1")));
    }
}
