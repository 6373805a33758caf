//! From an instance id to its primary private address.
//!
//! An instance keeps its primary private address for as long as it lives, so an address is looked up once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use crate::config::AddressLookup;
use crate::error::{RemoteError, RemoteErrorKind};
use crate::node::{Node, resource_host_name};

/// How long one name may take to resolve.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How many names are resolved at the same time. The VPC's resolver accepts 1,024 packets a second from an interface
/// (<https://docs.aws.amazon.com/vpc/latest/userguide/AmazonDNS-concepts.html>).
const LOOKUPS_AT_ONCE: usize = 16;

/// Finds the addresses of instances, and remembers them.
pub struct Addresses {
    node: Node,
    lookup: AddressLookup,
    #[cfg(feature = "ec2")]
    ec2: ec2::DescribeInstances,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    addresses: BTreeMap<String, IpAddr>,
    /// Under `auto`, this node's own name was seen to resolve to this node.
    dns_works: bool,
    /// Why EC2 didn't tell the addresses that DNS doesn't know.
    fault: Option<Arc<RemoteError>>,
}

impl Addresses {
    /// `node` is this node: its own address is never looked up, and its Region makes the host names.
    #[must_use]
    #[cfg_attr(not(feature = "ec2"), expect(unused_variables, reason = "there is no client to make"))]
    pub fn new(aws: &SdkConfig, node: Node, lookup: AddressLookup) -> Self {
        Self {
            node,
            lookup,
            #[cfg(feature = "ec2")]
            ec2: ec2::DescribeInstances::new(aws),
            known: Mutex::default(),
        }
    }

    /// The addresses of `ids` that can be found. All other ids are forgotten.
    pub async fn find(&self, ids: &[&str]) -> Result<BTreeMap<String, IpAddr>, RemoteError> {
        let mut known = self.known.lock().await;
        known.addresses.retain(|id, _| ids.contains(&id.as_str()));
        if let Some(own) = self.node.instance_id.as_deref().filter(|own| ids.contains(own)) {
            known.addresses.insert(own.to_owned(), self.node.address);
        }
        let new: Vec<String> =
            ids.iter().filter(|id| !known.addresses.contains_key(**id)).map(|id| (*id).to_owned()).collect();
        known.fault = None;
        if !new.is_empty() {
            let by_dns = match self.lookup {
                AddressLookup::Dns => true,
                AddressLookup::Ec2 => false,
                AddressLookup::Auto => {
                    known.dns_works = known.dns_works || self.own_name_resolves().await;
                    known.dns_works
                }
            };
            let mut found = if by_dns { self.by_dns(&new).await? } else { self.by_ec2(new.clone()).await? };
            let rest: Vec<String> = new.into_iter().filter(|id| !found.contains_key(id)).collect();
            // A group may have two launch templates, and only one of them may turn resource name DNS on.
            if by_dns && self.lookup == AddressLookup::Auto && !rest.is_empty() {
                match self.by_ec2(rest).await {
                    Ok(others) => found.extend(others),
                    Err(error) => known.fault = Some(Arc::new(error)),
                }
            }
            known.addresses.extend(found);
        }
        Ok(known.addresses.clone())
    }

    /// Why the last look-up left peers out that DNS doesn't know.
    pub(super) async fn fault(&self) -> Option<Arc<RemoteError>> {
        self.known.lock().await.fault.clone()
    }

    /// Whether resource name DNS is on: this node's own name then resolves to this node.
    async fn own_name_resolves(&self) -> bool {
        let (Some(id), Some(region)) = (&self.node.instance_id, &self.node.region) else { return false };
        let answer = resolve(id, region).await;
        answer.is_some_and(|addresses| addresses.iter().any(|address| self.node.has_address(address)))
    }

    async fn by_dns(&self, ids: &[String]) -> Result<BTreeMap<String, IpAddr>, RemoteError> {
        let region = self.node.region.clone().ok_or_else(|| {
            RemoteError::new(
                RemoteErrorKind::Permanent,
                "looking up instance-id host names",
                "the Region is not known, and it is a part of the names",
                "give node.region in the configuration",
            )
        })?;
        let turns = Arc::new(Semaphore::new(LOOKUPS_AT_ONCE));
        let mut lookups = JoinSet::new();
        for id in ids.iter().cloned() {
            let (turns, region) = (Arc::clone(&turns), region.clone());
            lookups.spawn(async move {
                let _turn = turns.acquire().await;
                let address = resolve(&id, &region).await.and_then(choose);
                address.map(|address| (id, address))
            });
        }
        Ok(lookups.join_all().await.into_iter().flatten().collect())
    }

    #[cfg(feature = "ec2")]
    async fn by_ec2(&self, ids: Vec<String>) -> Result<BTreeMap<String, IpAddr>, RemoteError> {
        self.ec2.addresses(ids).await
    }

    #[cfg(not(feature = "ec2"))]
    #[expect(clippy::unused_async, reason = "the same signature with and without the feature")]
    async fn by_ec2(&self, ids: Vec<String>) -> Result<BTreeMap<String, IpAddr>, RemoteError> {
        Err(RemoteError::new(
            RemoteErrorKind::Permanent,
            format!("finding the addresses of {}", ids.join(", ")),
            "instance-id host names do not resolve, and this build has no DescribeInstances",
            "turn on resource name DNS A records in the launch template, or use a build with the feature ec2",
        ))
    }
}

async fn resolve(id: &str, region: &str) -> Option<Vec<IpAddr>> {
    let name = resource_host_name(id, region)?;
    // The dot makes the name absolute: the resolver then leaves its search list out.
    let name = format!("{}.", name.as_str());
    let lookup = tokio::net::lookup_host((name.as_str(), 0));
    match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
        Ok(Ok(addresses)) => Some(addresses.map(|address| address.ip()).collect()),
        Ok(Err(error)) => {
            tracing::debug!("{name} does not resolve: {error}");
            None
        }
        Err(_) => {
            tracing::debug!("{name} does not resolve in time");
            None
        }
    }
}

/// The smallest address, IPv4 before IPv6: every look-up chooses the same address, so that the text of the route stays.
fn choose(addresses: Vec<IpAddr>) -> Option<IpAddr> {
    addresses.into_iter().min()
}

#[cfg(feature = "ec2")]
mod ec2 {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use aws_config::SdkConfig;
    use aws_sdk_ec2::Client;
    use aws_sdk_ec2::types::{Filter, Instance};

    use crate::aws::calls::counted;
    use crate::aws::{nonsense, refused};
    use crate::error::RemoteError;

    const DESCRIBE: &str = "ec2:DescribeInstances";

    /// A filter takes 200 values
    /// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html>).
    const MAX_FILTER_VALUES: usize = 200;
    /// How many pages 200 instances may take. A page may be short.
    const MAX_PAGES: usize = 50;

    /// Addresses from the EC2 API.
    pub(super) struct DescribeInstances(Client);

    impl DescribeInstances {
        pub(super) fn new(aws: &SdkConfig) -> Self {
            Self(Client::new(aws))
        }

        pub(super) async fn addresses(&self, ids: Vec<String>) -> Result<BTreeMap<String, IpAddr>, RemoteError> {
            let mut found = BTreeMap::new();
            for some in ids.chunks(MAX_FILTER_VALUES) {
                self.page_through(some, &mut found).await?;
            }
            Ok(found)
        }

        /// The request filters by id. With `InstanceIds` one unknown id would fail the whole call.
        async fn page_through(&self, ids: &[String], found: &mut BTreeMap<String, IpAddr>) -> Result<(), RemoteError> {
            let filter = Filter::builder().name("instance-id").set_values(Some(ids.to_vec())).build();
            let mut token = None;
            for _ in 0..MAX_PAGES {
                let request = self.0.describe_instances().filters(filter.clone()).set_next_token(token);
                let answer = counted(DESCRIBE, request.send().await).map_err(|error| refused(DESCRIBE, error))?;
                let instances =
                    answer.reservations.unwrap_or_default().into_iter().flat_map(|r| r.instances.unwrap_or_default());
                found.extend(instances.filter_map(|instance| address(&instance)).filter(|(id, _)| ids.contains(id)));
                token = answer.next_token.filter(|token| !token.is_empty());
                if token.is_none() {
                    return Ok(());
                }
            }
            Err(nonsense(DESCRIBE, format!("more than {MAX_PAGES} pages")))
        }
    }

    /// The primary private IPv4 address, or the IPv6 address in an IPv6-only subnet.
    fn address(instance: &Instance) -> Option<(String, IpAddr)> {
        let text = instance.private_ip_address().or_else(|| instance.ipv6_address())?;
        Some((instance.instance_id()?.to_owned(), text.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::AwsSettings;
    use crate::node::Placement;
    use crate::x509::san::Sans;

    #[tokio::test]
    async fn what_neither_dns_nor_ec2_tells_has_a_reason() {
        let nowhere = Some("http://127.0.0.1:9".to_owned());
        let aws = AwsSettings { region: Some("eu-west-1".into()), endpoint: nowhere.clone(), imds_endpoint: nowhere };
        let node = Node {
            name: "n1".into(),
            instance_id: Some("i-00000000000000001".into()),
            region: Some("eu-west-1".into()),
            address: IpAddr::from([10, 0, 1, 5]),
            further_addresses: [].into(),
            sans: Sans::default(),
            placement: Placement::default(),
        };
        let addresses = Addresses::new(&aws.load().await, node, AddressLookup::Auto);
        addresses.known.lock().await.dns_works = true;
        let (own, other) = ("i-00000000000000001", "i-00000000000000002");
        assert_eq!(addresses.find(&[own, other]).await.unwrap().len(), 1);
        assert!(addresses.fault().await.is_some());
        assert_eq!(addresses.find(&[own]).await.unwrap().len(), 1);
        assert!(addresses.fault().await.is_none(), "nobody is left out any more");
    }

    #[test]
    fn of_several_addresses_always_the_same_is_chosen() {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let expected = Some(IpAddr::from([10, 0, 1, 5]));
        assert_eq!(choose(parse(&["2001:db8::1", "10.0.2.5", "10.0.1.5"])), expected);
        assert_eq!(choose(parse(&["10.0.1.5", "2001:db8::1", "10.0.2.5"])), expected);
        assert_eq!(choose(Vec::new()), None);
    }
}
