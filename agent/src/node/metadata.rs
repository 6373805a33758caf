//! Instance metadata: what EC2 says about this instance.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use aws_config::imds;
use aws_config::imds::client::error::ImdsError;
use serde::Deserialize;

use crate::aws::AwsSettings;
use crate::error::{RemoteError, RemoteErrorKind};
use crate::x509::san::DnsName;

/// How long all questions to instance metadata may take together.
const METADATA_TIMEOUT: Duration = Duration::from_secs(20);

/// The most addresses that a leaf names. A network interface may have dozens, and a large leaf serves nobody.
const MAX_ADDRESSES: usize = 32;

/// The longest value of a tag in bytes: 256 characters
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions>).
const MAX_TAG: usize = 1024;

/// How much of an answer an error repeats, in characters.
const MAX_QUOTED: usize = 80;

const DOCUMENT: &str = "/latest/dynamic/instance-identity/document";
const LOCAL_IPV4: &str = "/latest/meta-data/local-ipv4";
const LOCAL_HOSTNAME: &str = "/latest/meta-data/local-hostname";
const MAC: &str = "/latest/meta-data/mac";
const TAGS: &str = "/latest/meta-data/tags/instance";
const INTERFACES: &str = "/latest/meta-data/network/interfaces/macs";

/// What is known about the instance that this node runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) id: Option<String>,
    pub(super) region: Option<String>,
    /// The first is the primary address.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) local_hostname: Option<DnsName>,
    pub(super) zone: Option<String>,
    pub(super) tags: BTreeMap<String, String>,
}

/// The part of the identity document that the agent uses
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html>).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityDocument {
    /// `i-…`.
    pub instance_id: String,
    /// `eu-west-1`.
    pub region: String,
    /// `eu-west-1a`.
    #[serde(default)]
    pub availability_zone: Option<String>,
}

impl IdentityDocument {
    /// Reads an answer. The error holds the text that can't be right, and what was expected in its place.
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

/// The addresses of an answer, one a line. The error is the first line that is no address.
pub fn addresses_in(text: &str) -> Result<Vec<IpAddr>, &str> {
    text.split_whitespace().map(|line| line.parse().map_err(|_| line)).collect()
}

/// The host name of an answer, or why the name can't stand in a certificate. The answer holds every search domain of the
/// VPC's DHCP options. The first domain belongs to the name.
#[must_use]
pub fn host_name_in(text: &str) -> Option<Result<DnsName, String>> {
    text.split_whitespace().next().map(|name| DnsName::try_from(name.to_owned()))
}

/// Instance metadata.
pub(super) struct Metadata {
    client: imds::Client,
    /// What to do when there is no usable answer.
    remedy: String,
}

impl Metadata {
    pub(super) fn new(aws: &AwsSettings, remedy: String) -> Self {
        Self { client: aws.imds(), remedy }
    }

    /// Adds what is not given. What is given is never overruled.
    pub(super) async fn complete(&self, given: Instance, tags: &BTreeSet<String>) -> Result<Instance, RemoteError> {
        let asked = tokio::time::timeout(METADATA_TIMEOUT, Box::pin(self.ask_for_the_rest(given, tags)));
        asked.await.unwrap_or_else(|_| Err(self.failed("/latest", "no answer in time", None)))
    }

    async fn ask_for_the_rest(&self, given: Instance, tags: &BTreeSet<String>) -> Result<Instance, RemoteError> {
        let addresses =
            async { if given.addresses.is_empty() { self.addresses().await } else { Ok(given.addresses.clone()) } };
        let (document, local_hostname, addresses, tags) =
            tokio::try_join!(self.document(), self.local_hostname(), addresses, self.tags(tags))?;
        Ok(Instance {
            id: given.id.or(Some(document.instance_id)),
            region: given.region.or(Some(document.region)),
            addresses,
            local_hostname,
            zone: document.availability_zone.filter(|zone| is_region(zone)),
            tags,
        })
    }

    /// The values of these tags. A tag that the instance lacks, or that its metadata doesn't show, is left out.
    async fn tags(&self, keys: &BTreeSet<String>) -> Result<BTreeMap<String, String>, RemoteError> {
        let mut tags = BTreeMap::new();
        for key in keys {
            let path = format!("{TAGS}/{key}");
            if let Some(value) = self.ask(&path).await? {
                if value.len() > MAX_TAG || value.contains(char::is_control) {
                    return Err(self.nonsense(&path, &value, "the value of a tag"));
                }
                tags.insert(key.clone(), value);
            }
        }
        Ok(tags)
    }

    async fn document(&self) -> Result<IdentityDocument, RemoteError> {
        let text = self.ask(DOCUMENT).await?;
        let text = text.ok_or_else(|| self.failed(DOCUMENT, "HTTP 404", None))?;
        IdentityDocument::parse(&text).map_err(|(what, expected)| self.nonsense(DOCUMENT, &what, expected))
    }

    /// Nothing depends on the host name: a name that can't stand in a certificate is left out.
    async fn local_hostname(&self) -> Result<Option<DnsName>, RemoteError> {
        let text = self.ask(LOCAL_HOSTNAME).await?.unwrap_or_default();
        let warn = |error: String| tracing::warn!("the instance's host name stays out of the certificate: {error}");
        Ok(host_name_in(&text).and_then(|name| name.map_err(warn).ok()))
    }

    /// All addresses of the primary interface, the primary address first. An IPv6-only subnet has no IPv4 ones.
    async fn addresses(&self) -> Result<Vec<IpAddr>, RemoteError> {
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

    fn parse_addresses(&self, path: &str, text: &str) -> Result<Vec<IpAddr>, RemoteError> {
        addresses_in(text).map_err(|line| self.nonsense(path, line, "an IP address"))
    }

    /// The answer, or nothing where there is no such path.
    async fn ask(&self, path: &str) -> Result<Option<String>, RemoteError> {
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

    fn failed(&self, path: &str, reason: &str, source: Option<ImdsError>) -> RemoteError {
        RemoteError { source: source.map(Into::into), ..self.error(path, reason.to_owned()) }
    }

    fn nonsense(&self, path: &str, answer: &str, expected: &str) -> RemoteError {
        let beginning: String = answer.chars().take(MAX_QUOTED).collect();
        self.error(path, format!("it answered {beginning:?}, which is not {expected}"))
    }

    fn error(&self, path: &str, reason: String) -> RemoteError {
        let attempt = format!("asked instance metadata for {path}");
        RemoteError::new(RemoteErrorKind::Unavailable, attempt, reason, self.remedy.clone())
    }
}

/// `i-` and 8 or, since 2016, 17 hexadecimal digits.
pub(super) fn is_instance_id(text: &str) -> bool {
    text.strip_prefix("i-")
        .is_some_and(|id| (8..=17).contains(&id.len()) && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// Zones have the characters of Regions.
fn is_region(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::resource_host_name;

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
