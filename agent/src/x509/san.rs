//! Subject alternative names: the names and addresses that clients and peers dial.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A host name as certificates hold it (RFC 1123, section 2.1; RFC 5280, section 4.2.1.6). It is in lower case and has no
/// trailing dot.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

impl DnsName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DnsName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let name = text.strip_suffix('.').unwrap_or(&text).to_ascii_lowercase();
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let rest = name.strip_prefix("*.").unwrap_or(&name);
        if name.len() > 253 || !rest.split('.').all(label) || rest.parse::<IpAddr>().is_ok() {
            return Err(format!("{text:?} is not a host name: letters, digits and hyphens, in labels of 63 at most"));
        }
        Ok(Self(name))
    }
}

impl From<DnsName> for String {
    fn from(name: DnsName) -> Self {
        name.0
    }
}

/// The subject alternative names of a leaf.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct Sans {
    /// Host names.
    pub dns: BTreeSet<DnsName>,
    /// Addresses.
    pub ips: BTreeSet<IpAddr>,
    /// URIs, such as `spiffe://…`. The certificate of a node has none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub uris: BTreeSet<String>,
}

impl Sans {
    /// Whether these contain every name, address and URI of `asked`.
    pub(crate) fn cover(&self, asked: &Self) -> bool {
        asked.dns.is_subset(&self.dns) && asked.ips.is_subset(&self.ips) && asked.uris.is_subset(&self.uris)
    }
}
