//! Who this node is: names, addresses, Region.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use aws_config::imds;
use aws_config::imds::client::error::ImdsError;
use serde::Deserialize;

use crate::aws::AwsSettings;
use crate::config::NodeConfig;
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
    /// What peers are told to dial.
    pub address: IpAddr,
    /// What the certificate names.
    pub sans: Sans,
}

/// What a setting of the rest of the configuration makes this node need to know about itself.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The Auto Scaling group is asked about this very instance.
    pub instance_id: bool,
    /// An AWS API is called.
    pub region: bool,
}

/// Why this node doesn't know who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Instance metadata was asked and gave no answer.
    #[error("asked instance metadata for {path}: {reason}; {remedy}")]
    Metadata {
        /// What was asked for.
        path: String,
        /// What came back.
        reason: String,
        /// What to do about it.
        remedy: String,
        /// The cause below it, if there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Instance metadata answered something else.
    #[error("instance metadata answered {answer:?} to {path}, which is not {expected}; {remedy}")]
    Nonsense {
        /// What was asked for.
        path: String,
        /// The beginning of the answer.
        answer: String,
        /// What it should have been.
        expected: &'static str,
        /// What to do about it.
        remedy: String,
    },
    /// There is no address to be dialled at.
    #[error("this node has no address: {reason}; give node.addresses in the configuration")]
    NoAddress {
        /// Why not.
        reason: &'static str,
    },
}

impl IdentityError {
    /// Whether instance metadata may answer later; if not, only an edit of the configuration helps.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::NoAddress { .. })
    }
}

/// How long all questions to instance metadata may take together.
const METADATA_TIMEOUT: Duration = Duration::from_secs(20);

/// A network interface may have dozens of addresses; a leaf with more of them than this serves nobody.
const MAX_ADDRESSES: usize = 32;

const DOCUMENT: &str = "/latest/dynamic/instance-identity/document";
const LOCAL_IPV4: &str = "/latest/meta-data/local-ipv4";
const LOCAL_HOSTNAME: &str = "/latest/meta-data/local-hostname";
const MAC: &str = "/latest/meta-data/mac";
const INTERFACES: &str = "/latest/meta-data/network/interfaces/macs";

/// Works out who this node is: from `[node]`, and from instance metadata for what is needed and not given there.
pub async fn identify(config: &NodeConfig, needs: Needs) -> Result<Node, IdentityError> {
    identify_through(&AwsSettings::from_environment(), config, needs).await
}

/// Like [`identify`], with the Region and the endpoint of instance metadata as `aws` says.
pub async fn identify_through(aws: &AwsSettings, config: &NodeConfig, needs: Needs) -> Result<Node, IdentityError> {
    let given = Facts {
        instance_id: config.instance_id.clone(),
        region: config.region.clone().or_else(|| aws.region.clone()),
        addresses: config.addresses.clone().unwrap_or_default(),
        local_hostname: None,
    };
    if config.addresses.as_ref().is_some_and(Vec::is_empty) {
        return Err(IdentityError::NoAddress { reason: "node.addresses is empty" });
    }
    let missing = missing(&given, config.name.is_some(), needs);
    let facts = if missing.is_empty() {
        given
    } else {
        let metadata = Metadata { client: aws.imds(), remedy: remedy(&missing) };
        let asked = tokio::time::timeout(METADATA_TIMEOUT, metadata.complete(given));
        asked.await.unwrap_or_else(|_| Err(metadata.failed("/latest", "no answer in time", None)))?
    };
    node(config, facts)
}

/// The node that a certificate of its own was issued to, as far as `[node]` doesn't say. Good for looking at what is
/// served while instance metadata is away, and for nothing else: the disk may have come from another machine.
#[must_use]
pub fn as_certified(config: &NodeConfig, certified: &Sans) -> Node {
    let instance_id = config.instance_id.clone().or_else(|| {
        let mut labels = certified.dns.iter().filter_map(|name| name.as_str().split('.').next());
        labels.find(|label| is_instance_id(label)).map(ToOwned::to_owned)
    });
    let given = config.addresses.iter().flatten().next();
    let address = given.or(certified.ips.first()).copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    Node {
        name: config.name.clone().or(instance_id.clone()).unwrap_or_else(|| "unknown".into()),
        instance_id,
        region: config.region.clone(),
        address,
        sans: certified.clone(),
    }
}

/// What is known about the instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    instance_id: Option<String>,
    region: Option<String>,
    /// The first is the primary one.
    addresses: Vec<IpAddr>,
    local_hostname: Option<DnsName>,
}

/// The keys of `[node]` that would have to be given so that instance metadata need not be asked.
fn missing(given: &Facts, named: bool, needs: Needs) -> Vec<&'static str> {
    let mut keys = Vec::new();
    if given.addresses.is_empty() {
        keys.push("node.addresses");
    }
    if given.instance_id.is_none() && (needs.instance_id || !named) {
        keys.push("node.instance_id");
    }
    if given.region.is_none() && needs.region {
        keys.push("node.region");
    }
    keys
}

fn remedy(missing: &[&str]) -> String {
    format!(
        "give {} in the configuration, or let this process reach IMDSv2: metadata enabled on the instance, \
         and a hop limit of 2 if it runs in a container",
        missing.join(", ")
    )
}

/// The node that the facts describe, with every name and address that a peer or a client may dial.
fn node(config: &NodeConfig, facts: Facts) -> Result<Node, IdentityError> {
    let Some(&address) = facts.addresses.first() else {
        return Err(IdentityError::NoAddress { reason: "instance metadata names none" });
    };
    let Some(name) = config.name.clone().or_else(|| facts.instance_id.clone()) else {
        return Err(IdentityError::Metadata {
            path: DOCUMENT.into(),
            reason: "it names no instance".into(),
            remedy: "give node.name in the configuration".into(),
            source: None,
        });
    };
    let mut dns: BTreeSet<DnsName> = config.dns_names.iter().cloned().chain(facts.local_hostname).collect();
    if let (Some(instance_id), Some(region)) = (&facts.instance_id, &facts.region) {
        dns.extend(resource_host_name(instance_id, region));
        dns.extend(ip_host_name(address, region));
    }
    let sans = Sans { dns, ips: facts.addresses.iter().copied().collect() };
    Ok(Node { name, instance_id: facts.instance_id, region: facts.region, address, sans })
}

/// The instance's resource name: `i-0123456789abcdef0.eu-west-1.compute.internal`. It resolves where the launch
/// template or the subnet turns resource name DNS records on
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-naming.html>).
#[must_use]
pub fn resource_host_name(instance_id: &str, region: &str) -> Option<DnsName> {
    DnsName::try_from(format!("{instance_id}.{}", host_domain(region))).ok()
}

/// The instance's IP name, from its primary IPv4 address: `ip-10-0-1-5.eu-west-1.compute.internal` (same page).
fn ip_host_name(address: IpAddr, region: &str) -> Option<DnsName> {
    let IpAddr::V4(address) = address else { return None };
    let dashed = address.to_string().replace('.', "-");
    DnsName::try_from(format!("ip-{dashed}.{}", host_domain(region))).ok()
}

/// The same in every partition, China's included: hosts there are called `ip-….cn-north-1.compute.internal`.
fn host_domain(region: &str) -> String {
    if region == "us-east-1" { "ec2.internal".into() } else { format!("{region}.compute.internal") }
}

/// Instance metadata, and what to do when it doesn't answer.
struct Metadata {
    client: imds::Client,
    remedy: String,
}

/// The part of the identity document that is used
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html>).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityDocument {
    /// `i-…`.
    pub instance_id: String,
    /// `eu-west-1`.
    pub region: String,
}

impl IdentityDocument {
    /// Reads an answer; what can't be one comes back with what was expected in its place.
    pub fn parse(text: &str) -> Result<Self, (String, &'static str)> {
        let document: Self = serde_json::from_str(text)
            .map_err(|_| (text.to_owned(), "an instance identity document with instanceId and region"))?;
        if !is_instance_id(&document.instance_id) {
            return Err((document.instance_id, "an instance id"));
        }
        if !is_region(&document.region) {
            return Err((document.region, "a Region"));
        }
        Ok(document)
    }
}

/// The addresses of an answer, one a line; what is none comes back.
pub fn addresses_in(text: &str) -> Result<Vec<IpAddr>, &str> {
    text.split_whitespace().map(|line| line.parse().map_err(|_| line)).collect()
}

/// The host name of an answer, or why it can't stand in a certificate. With several search domains in the VPC's DHCP
/// options the answer holds them all; the first belongs to the name.
#[must_use]
pub fn host_name_in(text: &str) -> Option<Result<DnsName, String>> {
    text.split_whitespace().next().map(|name| DnsName::try_from(name.to_owned()))
}

impl Metadata {
    /// Adds what is not given. What is given is never overruled.
    async fn complete(&self, given: Facts) -> Result<Facts, IdentityError> {
        let (document, local_hostname, addresses) = tokio::try_join!(self.document(), self.local_hostname(), async {
            if given.addresses.is_empty() { self.addresses().await } else { Ok(given.addresses.clone()) }
        })?;
        Ok(Facts {
            instance_id: given.instance_id.or(Some(document.instance_id)),
            region: given.region.or(Some(document.region)),
            addresses,
            local_hostname,
        })
    }

    async fn document(&self) -> Result<IdentityDocument, IdentityError> {
        let text = self.ask(DOCUMENT).await?;
        let text = text.ok_or_else(|| self.failed(DOCUMENT, "HTTP 404", None))?;
        IdentityDocument::parse(&text).map_err(|(what, expected)| self.nonsense(DOCUMENT, &what, expected))
    }

    /// A host name is welcome, but nothing hangs on it: one that can't stand in a certificate is left out.
    async fn local_hostname(&self) -> Result<Option<DnsName>, IdentityError> {
        let text = self.ask(LOCAL_HOSTNAME).await?.unwrap_or_default();
        let warn = |error: String| tracing::warn!("the instance's host name stays out of the certificate: {error}");
        Ok(host_name_in(&text).and_then(|name| name.map_err(warn).ok()))
    }

    /// All addresses of the primary interface, the primary address first. An IPv6-only subnet has no IPv4 ones.
    async fn addresses(&self) -> Result<Vec<IpAddr>, IdentityError> {
        let (primary, mac) = tokio::try_join!(self.ask(LOCAL_IPV4), self.ask(MAC))?;
        let mut addresses = self.parse_addresses(LOCAL_IPV4, &primary.unwrap_or_default())?;
        if let Some(mac) = mac {
            let mac = mac.trim().to_ascii_lowercase();
            if mac.len() != 17 || !mac.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return Err(self.nonsense(MAC, &mac, "a MAC address"));
            }
            let v4_path = format!("{INTERFACES}/{mac}/local-ipv4s");
            let v6_path = format!("{INTERFACES}/{mac}/ipv6s");
            let (v4, v6) = tokio::try_join!(self.ask(&v4_path), self.ask(&v6_path))?;
            addresses.extend(self.parse_addresses(&v4_path, &v4.unwrap_or_default())?);
            addresses.extend(self.parse_addresses(&v6_path, &v6.unwrap_or_default())?);
        }
        let mut seen = BTreeSet::new();
        addresses.retain(|address| seen.insert(*address));
        if addresses.len() > MAX_ADDRESSES {
            tracing::warn!(count = addresses.len(), "only the first {MAX_ADDRESSES} addresses are in the certificate");
            addresses.truncate(MAX_ADDRESSES);
        }
        Ok(addresses)
    }

    fn parse_addresses(&self, path: &str, text: &str) -> Result<Vec<IpAddr>, IdentityError> {
        addresses_in(text).map_err(|line| self.nonsense(path, line, "an IP address"))
    }

    /// The answer, or nothing where there is no such path.
    async fn ask(&self, path: &str) -> Result<Option<String>, IdentityError> {
        match self.client.get(path).await {
            Ok(answer) => Ok(Some(answer.into())),
            Err(ImdsError::ErrorResponse(answer)) => match answer.response().status().as_u16() {
                404 => Ok(None),
                status => Err(self.failed(path, &format!("HTTP {status}"), None)),
            },
            Err(error @ ImdsError::FailedToLoadToken(_)) => Err(self.failed(path, "no session token", Some(error))),
            Err(error) => Err(self.failed(path, "no answer", Some(error))),
        }
    }

    fn failed(&self, path: &str, reason: &str, source: Option<ImdsError>) -> IdentityError {
        IdentityError::Metadata {
            path: path.into(),
            reason: reason.into(),
            remedy: self.remedy.clone(),
            source: source.map(Into::into),
        }
    }

    fn nonsense(&self, path: &str, answer: &str, expected: &'static str) -> IdentityError {
        let answer = answer.chars().take(80).collect();
        IdentityError::Nonsense { path: path.into(), answer, expected, remedy: self.remedy.clone() }
    }
}

/// `i-` and 8 or, since 2016, 17 hexadecimal digits.
pub(crate) fn is_instance_id(text: &str) -> bool {
    text.strip_prefix("i-")
        .is_some_and(|id| (8..=17).contains(&id.len()) && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

fn is_region(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(region: &str) -> Facts {
        Facts {
            instance_id: Some("i-0123456789abcdef0".into()),
            region: Some(region.into()),
            addresses: vec!["10.0.1.5".parse().unwrap(), "2001:db8::5".parse().unwrap()],
            local_hostname: None,
        }
    }

    fn names(node: &Node) -> Vec<&str> {
        node.sans.dns.iter().map(DnsName::as_str).collect()
    }

    #[test]
    fn sans_name_every_address_and_both_host_names() {
        let config =
            NodeConfig { dns_names: vec!["nats.internal".to_owned().try_into().unwrap()], ..Default::default() };
        let node = node(&config, facts("eu-west-1")).unwrap();
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
    fn us_east_1_has_a_domain_of_its_own() {
        let node = node(&NodeConfig::default(), facts("us-east-1")).unwrap();
        assert_eq!(names(&node), ["i-0123456789abcdef0.ec2.internal", "ip-10-0-1-5.ec2.internal"]);
    }

    #[test]
    fn while_metadata_is_away_a_node_is_who_its_certificate_says() {
        let config = NodeConfig::default();
        let certified = node(&config, facts("eu-west-1")).unwrap();
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
        let needs = |instance_id, region| Needs { instance_id, region };
        let given = Facts { addresses: vec![IpAddr::from([10, 0, 1, 5])], ..Default::default() };
        assert!(missing(&given, true, needs(false, false)).is_empty());
        assert_eq!(missing(&given, false, needs(false, false)), ["node.instance_id"]);
        assert_eq!(missing(&given, true, needs(true, true)), ["node.instance_id", "node.region"]);
        assert!(missing(&facts("eu-west-1"), false, needs(true, true)).is_empty());
        assert_eq!(missing(&Facts::default(), true, needs(false, false)), ["node.addresses"]);
    }

    #[tokio::test]
    async fn a_node_that_is_given_whole_needs_no_metadata() {
        // Nothing listens on the discard port: a question would fail.
        let aws = AwsSettings { imds_endpoint: Some("http://127.0.0.1:9".into()), ..Default::default() };
        let config = NodeConfig {
            instance_id: Some("i-0123456789abcdef0".into()),
            region: Some("eu-west-1".into()),
            addresses: Some(vec![IpAddr::from([10, 0, 1, 5])]),
            ..Default::default()
        };
        let node = identify_through(&aws, &config, Needs { instance_id: true, region: true }).await.unwrap();
        assert!(names(&node).contains(&"i-0123456789abcdef0.eu-west-1.compute.internal"));
        assert!(names(&node).contains(&"ip-10-0-1-5.eu-west-1.compute.internal"));
    }

    #[tokio::test]
    async fn unreachable_metadata_names_the_path_and_the_keys_to_give() {
        let aws = AwsSettings { imds_endpoint: Some("http://127.0.0.1:9".into()), ..Default::default() };
        let needs = Needs { instance_id: true, region: true };
        let text = identify_through(&aws, &NodeConfig::default(), needs).await.unwrap_err().to_string();
        assert!(text.contains("/latest/"), "{text}");
        assert!(text.contains("give node.addresses, node.instance_id, node.region"), "{text}");
    }

    proptest::proptest! {
        #[test]
        fn invariant_14_no_document_makes_a_name_that_can_not_stand_in_a_certificate(
            id in "(i-[0-9a-f]{6,18}|.{0,20})", region in "([a-z0-9-]{0,34}|.{0,10})", rest in "(, \"x\": [0-9]{1,3})?|.{0,10}",
        ) {
            let text = format!("{{\"instanceId\": {id:?}, \"region\": {region:?}{rest}}}");
            if let Ok(document) = IdentityDocument::parse(&text) {
                proptest::prop_assert!(resource_host_name(&document.instance_id, &document.region).is_some(), "{document:?}");
            }
        }

        #[test]
        fn any_answer_is_a_name_addresses_or_refused(text in "(?s)[0-9a-f.: \n-]{0,60}|.{0,60}") {
            let refused = |what: &str| !what.is_empty() && text.contains(what);
            proptest::prop_assert!(addresses_in(&text).map_or_else(refused, |found| found.len() <= text.len()));
            proptest::prop_assert_eq!(host_name_in(&text).is_none(), text.trim().is_empty());
        }
    }

    #[test]
    fn instance_ids_and_regions_are_checked() {
        assert!(is_instance_id("i-0123456789abcdef0") && is_instance_id("i-1234abcd"));
        for wrong in ["", "i-", "i-1234ABCD", "i-123", "i-0123456789abcdef01", "x-1234abcd", "i-1234abcd\n"] {
            assert!(!is_instance_id(wrong), "{wrong:?}");
        }
        assert!(is_region("us-gov-west-1"));
        assert!(!is_region("eu west") && !is_region("") && !is_region("eu-west-1."));
    }
}
