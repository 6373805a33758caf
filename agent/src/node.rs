//! Who this node is: names, addresses, Region.

pub mod lifecycle;
pub mod metadata;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use self::metadata::{Instance, Metadata, is_instance_id};
use crate::aws::AwsSettings;
use crate::config::NodeConfig;
use crate::error::RemoteError;
use crate::x509::san::{DnsName, Sans};

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `server_name`.
    pub name: String,
    /// The EC2 instance id, where there is one.
    pub instance_id: Option<String>,
    /// The AWS Region, where there is one.
    pub region: Option<String>,
    /// The address that peers dial.
    pub address: IpAddr,
    /// The other addresses of this node.
    pub further_addresses: BTreeSet<IpAddr>,
    /// The names and addresses in the certificate.
    pub sans: Sans,
    /// What settings may say of the place of this node.
    pub placement: Placement,
}

impl Node {
    /// Whether an address is of this node. A certificate may also have addresses of others, such as a load balancer's.
    #[must_use]
    pub fn has_address(&self, address: &IpAddr) -> bool {
        self.address == *address || self.further_addresses.contains(address)
    }
}

/// What settings may say of the place of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The Availability Zone, where instance metadata was asked.
    pub zone: Option<String>,
    /// The tags that settings use and the instance has. Tags are in instance metadata where the instance allows it
    /// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/work-with-tags-in-IMDS.html>).
    pub tags: BTreeMap<String, String>,
}

/// What the rest of the configuration makes this node need to know about itself.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// The Auto Scaling group of this instance is looked up.
    pub instance_id: bool,
    /// An AWS API is called.
    pub region: bool,
    /// Settings name the Availability Zone.
    pub zone: bool,
    /// The tags of the instance that settings name.
    pub tags: BTreeSet<String>,
}

/// Why this node doesn't know who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Instance metadata gave no answer, or one that can't be right.
    #[error(transparent)]
    Metadata(#[from] RemoteError),
    /// Neither the configuration nor instance metadata names the node.
    #[error("this node has no name; give node.name in the configuration")]
    NoName,
    /// The node has no address for peers to dial.
    #[error("this node has no address: {reason}; give node.addresses in the configuration")]
    NoAddress {
        /// Why not.
        reason: &'static str,
    },
    /// Peers dial an address that the certificate would lack, so no route would come up.
    #[error(
        "peers dial {address}, and node.automatic_names = false leaves that address out of the certificate; add {address} \
         to node.extra_addresses"
    )]
    AddressNotCertified {
        /// The address that peers dial.
        address: IpAddr,
    },
}

impl IdentityError {
    /// Whether instance metadata may answer later. Otherwise only an edit of the configuration helps.
    #[must_use]
    pub(crate) fn may_pass(&self) -> bool {
        !matches!(self, Self::NoAddress { .. } | Self::AddressNotCertified { .. })
    }
}

/// Works out who this node is, from `[node]`. Instance metadata is asked for what is needed and not given.
pub async fn identify(config: &NodeConfig, needs: Needs) -> Result<Node, IdentityError> {
    identify_through(&AwsSettings::from_environment(), config, needs).await
}

/// Like [`identify`], with the Region and the endpoint of instance metadata from `aws`.
pub async fn identify_through(aws: &AwsSettings, config: &NodeConfig, needs: Needs) -> Result<Node, IdentityError> {
    let given = Instance {
        id: config.instance_id.clone(),
        region: config.region.clone().or_else(|| aws.region.clone()),
        addresses: config.addresses.clone().unwrap_or_default(),
        ..Instance::default()
    };
    if config.addresses.as_ref().is_some_and(Vec::is_empty) {
        return Err(IdentityError::NoAddress { reason: "node.addresses is empty" });
    }
    let missing = missing(&given, config.name.is_some(), &needs);
    let asks_for_placement = needs.zone || !needs.tags.is_empty();
    let instance = if missing.is_empty() && !asks_for_placement {
        given
    } else {
        Metadata::new(aws, remedy(&missing)).complete(given, &needs.tags).await?
    };
    node(config, instance)
}

/// Whether instance metadata now describes another node than `known`: an address came, or a tag changed. No answer changes
/// nothing.
pub async fn has_changed(aws: &AwsSettings, config: &NodeConfig, needs: Needs, known: &Node) -> bool {
    match identify_through(aws, config, needs).await {
        Ok(node) => node != *known,
        Err(error) => {
            tracing::warn!("what is known of this node stays: {error}");
            false
        }
    }
}

/// This node as `[node]` and its own certificate describe it, for looking at what is served while instance metadata is
/// away. Nothing else may use it: the disk may have come from another machine.
#[must_use]
pub(crate) fn as_certified(config: &NodeConfig, certified: &Sans) -> Node {
    let instance_id = config.instance_id.clone().or_else(|| {
        let mut labels = certified.dns.iter().filter_map(|name| name.as_str().split('.').next());
        labels.find(|label| is_instance_id(label)).map(ToOwned::to_owned)
    });
    let given = config.addresses.iter().flatten();
    let mut own = given.chain(certified.ips.iter().filter(|address| !config.extra_addresses.contains(address)));
    let address = own.next().or(certified.ips.first()).copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let further_addresses = own.copied().filter(|further| *further != address).collect();
    Node {
        name: config.name.clone().or(instance_id.clone()).unwrap_or_else(|| "unknown".into()),
        instance_id,
        region: config.region.clone(),
        address,
        further_addresses,
        sans: certified.clone(),
        placement: Placement::default(),
    }
}

/// The keys of `[node]` without which instance metadata is asked.
fn missing(given: &Instance, named: bool, needs: &Needs) -> Vec<&'static str> {
    let mut keys = Vec::new();
    if given.addresses.is_empty() {
        keys.push("node.addresses");
    }
    if given.id.is_none() && (needs.instance_id || !named) {
        keys.push("node.instance_id");
    }
    if given.region.is_none() && needs.region {
        keys.push("node.region");
    }
    keys
}

fn remedy(missing: &[&str]) -> String {
    if missing.is_empty() {
        return "let this process reach IMDSv2, because nats.settings or the template names node.zone or node.tags"
            .into();
    }
    format!(
        "give {} in the configuration, or let this process reach IMDSv2: metadata enabled on the instance, \
         and a hop limit of 2 if it runs in a container",
        missing.join(", ")
    )
}

/// The node on an instance, with every name and address that a peer or a client may dial.
fn node(config: &NodeConfig, instance: Instance) -> Result<Node, IdentityError> {
    let Some(&address) = instance.addresses.first() else {
        return Err(IdentityError::NoAddress { reason: "instance metadata names none" });
    };
    let Some(name) = config.name.clone().or_else(|| instance.id.clone()) else {
        return Err(IdentityError::NoName);
    };
    let mut dns: BTreeSet<DnsName> = config.dns_names.iter().cloned().collect();
    let mut ips: BTreeSet<IpAddr> =
        config.extra_addresses.iter().chain(config.addresses.iter().flatten()).copied().collect();
    if config.automatic_names {
        dns.extend(instance.local_hostname);
        ips.extend(&instance.addresses);
        if let (Some(instance_id), Some(region)) = (&instance.id, &instance.region) {
            dns.extend(resource_host_name(instance_id, region));
            dns.extend(ip_host_name(address, region));
        }
    }
    // nats-server verifies a route's certificate against the address that it dials.
    if !ips.contains(&address) {
        return Err(IdentityError::AddressNotCertified { address });
    }
    Ok(Node {
        name,
        instance_id: instance.id,
        region: instance.region,
        address,
        further_addresses: instance.addresses.into_iter().filter(|further| *further != address).collect(),
        sans: Sans { dns, ips, ..Sans::default() },
        placement: Placement { zone: instance.zone, tags: instance.tags },
    })
}

/// The instance's resource name: `i-0123456789abcdef0.eu-west-1.compute.internal`. It resolves where the launch
/// template or the subnet turns resource name DNS records on
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-naming.html>).
#[must_use]
pub fn resource_host_name(instance_id: &str, region: &str) -> Option<DnsName> {
    DnsName::try_from(format!("{instance_id}.{}", host_domain(region))).ok()
}

/// The instance's IP name, from its primary IPv4 address: `ip-10-0-1-5.eu-west-1.compute.internal` (the same page).
fn ip_host_name(address: IpAddr, region: &str) -> Option<DnsName> {
    let IpAddr::V4(address) = address else { return None };
    let dashed = address.to_string().replace('.', "-");
    DnsName::try_from(format!("ip-{dashed}.{}", host_domain(region))).ok()
}

/// The domain is the same in every partition: hosts in China are named `ip-….cn-north-1.compute.internal`.
fn host_domain(region: &str) -> String {
    if region == "us-east-1" { "ec2.internal".into() } else { format!("{region}.compute.internal") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(region: &str) -> Instance {
        Instance {
            id: Some("i-0123456789abcdef0".into()),
            region: Some(region.into()),
            addresses: vec!["10.0.1.5".parse().unwrap(), "2001:db8::5".parse().unwrap()],
            ..Instance::default()
        }
    }

    fn names(node: &Node) -> Vec<&str> {
        node.sans.dns.iter().map(DnsName::as_str).collect()
    }

    #[test]
    fn sans_name_every_address_and_both_host_names() {
        let config =
            NodeConfig { dns_names: vec!["nats.internal".to_owned().try_into().unwrap()], ..Default::default() };
        let node = node(&config, instance("eu-west-1")).unwrap();
        assert_eq!(node.name, "i-0123456789abcdef0");
        assert_eq!(node.address, "10.0.1.5".parse::<IpAddr>().unwrap());
        assert_eq!(node.sans.ips.len(), 2);
        assert_eq!(
            names(&node),
            [
                "i-0123456789abcdef0.eu-west-1.compute.internal",
                "ip-10-0-1-5.eu-west-1.compute.internal",
                "nats.internal"
            ]
        );
    }

    #[test]
    fn extra_addresses_are_in_the_certificate_and_are_not_this_node() {
        let balancer = IpAddr::from([10, 0, 0, 1]);
        let config = NodeConfig { extra_addresses: vec![balancer], ..NodeConfig::default() };
        let node = node(&config, instance("eu-west-1")).unwrap();
        assert!(node.sans.ips.contains(&balancer) && node.sans.ips.len() == 3 && node.sans.dns.len() == 2);
        assert!(!node.has_address(&balancer) && node.has_address(&"2001:db8::5".parse().unwrap()));
        let seen = as_certified(&config, &node.sans);
        assert_eq!((seen.address, seen.further_addresses), (node.address, node.further_addresses));
    }

    #[test]
    fn without_automatic_names_the_certificate_has_what_is_configured_and_what_peers_dial() {
        let own = IpAddr::from([10, 0, 1, 5]);
        let named = NodeConfig {
            dns_names: vec!["nats.internal".to_owned().try_into().unwrap()],
            automatic_names: false,
            ..NodeConfig::default()
        };
        let error = node(&named, instance("eu-west-1")).unwrap_err();
        assert!(!error.may_pass() && error.to_string().ends_with("add 10.0.1.5 to node.extra_addresses"), "{error}");
        let full = NodeConfig { extra_addresses: vec![own], ..named.clone() };
        let given = NodeConfig { addresses: Some(vec![own]), ..named };
        for (config, known) in
            [(full, instance("eu-west-1")), (given, Instance { addresses: vec![own], ..instance("eu-west-1") })]
        {
            let node = node(&config, known).unwrap();
            assert_eq!(names(&node), ["nats.internal"]);
            assert_eq!(node.sans.ips, [own].into());
        }
    }

    #[test]
    fn us_east_1_has_a_domain_of_its_own() {
        let node = node(&NodeConfig::default(), instance("us-east-1")).unwrap();
        assert_eq!(names(&node), ["i-0123456789abcdef0.ec2.internal", "ip-10-0-1-5.ec2.internal"]);
    }

    #[test]
    fn while_metadata_is_away_a_node_is_who_its_certificate_says() {
        let config = NodeConfig::default();
        let certified = node(&config, instance("eu-west-1")).unwrap();
        let seen = as_certified(&config, &certified.sans);
        assert_eq!((seen.name, seen.address, seen.sans), (certified.name, certified.address, certified.sans.clone()));
        assert_eq!(seen.instance_id, certified.instance_id);
        let given = NodeConfig {
            name: Some("a".into()),
            instance_id: Some("i-1234abcd".into()),
            addresses: Some(vec![IpAddr::from([192, 0, 2, 7])]),
            ..NodeConfig::default()
        };
        let seen = as_certified(&given, &certified.sans);
        assert_eq!((seen.name.as_str(), seen.instance_id.as_deref()), ("a", Some("i-1234abcd")));
        assert_eq!(seen.address, IpAddr::from([192, 0, 2, 7]));
        assert_eq!(as_certified(&config, &Sans::default()).name, "unknown");
    }

    #[test]
    fn metadata_is_asked_only_for_what_is_needed_and_not_given() {
        let needs = |instance_id, region| Needs { instance_id, region, ..Needs::default() };
        let given = Instance { addresses: vec![IpAddr::from([10, 0, 1, 5])], ..Default::default() };
        assert!(missing(&given, true, &needs(false, false)).is_empty());
        assert_eq!(missing(&given, false, &needs(false, false)), ["node.instance_id"]);
        assert_eq!(missing(&given, true, &needs(true, true)), ["node.instance_id", "node.region"]);
        assert!(missing(&instance("eu-west-1"), false, &needs(true, true)).is_empty());
        assert_eq!(missing(&Instance::default(), true, &needs(false, false)), ["node.addresses"]);
    }

    #[tokio::test]
    async fn a_node_that_is_given_whole_needs_no_metadata() {
        // Nothing listens on the discard port, so a request would fail.
        let aws = AwsSettings { imds_endpoint: Some("http://127.0.0.1:9".into()), ..Default::default() };
        let config = NodeConfig {
            instance_id: Some("i-0123456789abcdef0".into()),
            region: Some("eu-west-1".into()),
            addresses: Some(vec![IpAddr::from([10, 0, 1, 5])]),
            ..Default::default()
        };
        let node = identify_through(&aws, &config, Needs { instance_id: true, region: true, ..Needs::default() })
            .await
            .unwrap();
        assert!(names(&node).contains(&"i-0123456789abcdef0.eu-west-1.compute.internal"));
        assert!(names(&node).contains(&"ip-10-0-1-5.eu-west-1.compute.internal"));
    }

    #[tokio::test]
    async fn unreachable_metadata_names_the_path_and_the_keys_to_give() {
        let aws = AwsSettings { imds_endpoint: Some("http://127.0.0.1:9".into()), ..Default::default() };
        let needs = Needs { instance_id: true, region: true, ..Needs::default() };
        let text = identify_through(&aws, &NodeConfig::default(), needs).await.unwrap_err().to_string();
        assert!(text.contains("/latest/"), "{text}");
        assert!(text.contains("give node.addresses, node.instance_id, node.region"), "{text}");
    }
}
