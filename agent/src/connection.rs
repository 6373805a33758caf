//! The connection document: what a client needs to connect, in a secret that the group keeps current.
//!
//! A node makes the document of what it knows, and compares the document with the content of the secret. The functions here
//! are pure. [`reconcile`] decides when a node reads and writes, and [`secret`] asks Secrets Manager.
//!
//! [`reconcile`]: crate::reconcile

pub mod secret;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::aws::secret::{SecretError, Unfit};
use crate::clock::{read_rfc3339, rfc3339};
use crate::config::MAX_URLS;
use crate::digest::sha256_hex;
use crate::trust::TrustBundle;

/// The version of the document that this agent writes and reads.
pub const VERSION: u64 = 1;

/// The largest document, in bytes: Secrets Manager's limit
/// (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_limits.html>).
pub const MAX_DOCUMENT: usize = 65_536;

/// The beginning of the VersionId of each version that an agent writes. The console and the CLI make a UUID.
const BY_AGENT: &str = "nats-tls-agent-";

/// The lead that the clock of another node may have.
const CLOCK_LEAD: Duration = Duration::from_mins(5);

/// The document. The keys in capitals are texts, because ECS takes one key of a secret for the value of a variable
/// (<https://docs.aws.amazon.com/AmazonECS/latest/developerguide/secrets-envvar-secrets-manager.html>).
///
/// A missing key is empty, so a document that somebody has cut still keeps the keys of others.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default)]
pub struct Document {
    /// The URLs of the cluster, separated by commas.
    #[serde(rename = "NATS_URL")]
    pub url: String,
    /// The trust bundle in PEM.
    #[serde(rename = "NATS_CA")]
    pub ca: String,
    /// `"true"`: the servers accept TLS alone.
    #[serde(rename = "NATS_TLS_REQUIRED")]
    pub tls_required: String,
    /// Whether clients must present a certificate: `"required"` or `"none"`.
    #[serde(rename = "NATS_CLIENT_CERT")]
    pub client_cert: String,
    /// [`VERSION`] of the agent that wrote the document.
    pub version: u64,
    /// The name of the cluster.
    pub cluster: String,
    /// When the document last changed, RFC 3339.
    pub changed_at: String,
    /// The SHA-256 of each anchor in hexadecimal, and since when the document has the anchor, RFC 3339.
    pub trusts_from: BTreeMap<String, String>,
    /// Keys of somebody else. They stay.
    #[serde(flatten)]
    pub others: BTreeMap<String, serde_json::Value>,
}

/// What a node knows of the way into its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known<'a> {
    /// The bundle in force, kept anchors included.
    pub(crate) bundle: &'a TrustBundle,
    /// The name of the cluster.
    pub(crate) cluster: &'a str,
    /// The URLs, at least one.
    pub(crate) urls: Vec<String>,
    /// Whether clients must present a certificate.
    pub(crate) needs_certificate: bool,
}

/// What a secret holds where a document is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A document of this version or of an earlier version.
    Document(Box<Document>),
    /// A document of a later version. A newer agent reads and writes it.
    Newer {
        /// The `version` of the document.
        version: u64,
    },
    /// Something else.
    Other(String),
}

/// The content of the secret, and the VersionId. `None` for the content: the secret has no version yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The text of the current version.
    pub content: Zeroizing<Vec<u8>>,
    /// VersionId.
    pub version: String,
}

impl Stored {
    /// Whether an agent wrote the version.
    #[must_use]
    pub(crate) fn is_by_agent(&self) -> bool {
        self.version.starts_with(BY_AGENT)
    }
}

/// Where the document is kept.
#[async_trait]
pub trait DocumentStore: Send + Sync {
    /// The current content. `None`: the secret has no version, or there is no such secret.
    async fn read(&self) -> Result<Option<Stored>, SecretError>;

    /// Puts a new version. `token` becomes its VersionId. A version of the same id stays as it is.
    async fn write(&self, content: &str, token: &str) -> Result<(), SecretError>;
}

/// Reads the content of a secret. The reason never quotes the content.
pub(crate) fn read(content: &[u8]) -> Content {
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    let version = serde_json::from_slice::<Versioned>(content);
    match version {
        Ok(Versioned { version }) if version > VERSION => Content::Newer { version },
        _ => match serde_json::from_slice(content) {
            Ok(document) => Content::Document(Box::new(document)),
            Err(_) => Content::Other("is no connection document".into()),
        },
    }
}

/// The document of a reader: usable as a whole, or refused.
pub fn usable(content: &[u8]) -> Result<Document, Unfit> {
    let write = || {
        "let the agents of the group write the document: `connection.secret_id` of agent.toml names the secret"
            .to_owned()
    };
    let document = match read(content) {
        Content::Document(document) => *document,
        Content::Newer { version } => {
            let what = format!("holds a connection document of version {version}, and this agent reads {VERSION}");
            return Err((what, "install the agent's newer version here".into()));
        }
        Content::Other(what) => return Err((what, write())),
    };
    let texts = [(&document.url, "NATS_URL"), (&document.ca, "NATS_CA"), (&document.client_cert, "NATS_CLIENT_CERT")];
    let empty = texts.iter().find(|(value, _)| value.trim().is_empty()).map(|(_, key)| *key);
    let count = document.urls().count();
    match empty {
        Some(key) => Err((format!("holds no connection document: its {key} is missing or empty"), write())),
        // A reader dials each URL.
        None if count > MAX_URLS => {
            Err((format!("has {count} URLs under NATS_URL, and a connection document has {MAX_URLS} at most"), write()))
        }
        None => Ok(document),
    }
}

impl Document {
    /// The document of what a node knows. What `before` says of anchors and of others' keys stays.
    pub(crate) fn of(known: &Known<'_>, before: Option<&Self>, now: OffsetDateTime) -> Self {
        let since = |sha256: &str| {
            let noted = before.and_then(|before| before.trusts_from.get(sha256));
            let noted = noted.and_then(|noted| read_rfc3339(noted)).filter(|noted| *noted <= now + CLOCK_LEAD);
            rfc3339(noted.unwrap_or(now))
        };
        let document = Self {
            url: known.urls.join(","),
            ca: known.bundle.to_pem(),
            tls_required: "true".into(),
            client_cert: if known.needs_certificate { "required" } else { "none" }.into(),
            version: VERSION,
            cluster: known.cluster.to_owned(),
            changed_at: rfc3339(now),
            trusts_from: known
                .bundle
                .anchors
                .iter()
                .map(|anchor| (anchor.sha256.clone(), since(&anchor.sha256)))
                .collect(),
            others: before.map(|before| before.others.clone()).unwrap_or_default(),
        };
        match before {
            Some(before) if document.is_as(before) => before.clone(),
            _ => document,
        }
    }

    /// Whether two documents differ at most in the time of the last change.
    fn is_as(&self, other: &Self) -> bool {
        Self { changed_at: String::new(), ..self.clone() } == Self { changed_at: String::new(), ..other.clone() }
    }

    /// Whether clients lose nothing by this document in the place of `wanted`: it may have more anchors.
    pub(crate) fn serves(&self, wanted: &Self) -> bool {
        let with = |document: &Self| Self { ca: String::new(), trusts_from: BTreeMap::new(), ..document.clone() };
        self.trusts_all_of(wanted) && with(self).is_as(&with(wanted))
    }

    /// Whether this document's bundle can be read, and has every anchor of another document.
    pub(crate) fn trusts_all_of(&self, other: &Self) -> bool {
        let anchors = self.anchors();
        !anchors.is_empty() && other.anchors().iter().all(|anchor| anchors.contains(anchor))
    }

    /// The anchors of the bundle in DER. Nothing where the bundle can't be read.
    fn anchors(&self) -> Vec<Vec<u8>> {
        self.bundle().map(|bundle| bundle.anchors.into_iter().map(|anchor| anchor.der).collect()).unwrap_or_default()
    }

    /// The bundle of the document, where it can be read.
    pub(crate) fn bundle(&self) -> Option<TrustBundle> {
        TrustBundle::parse(self.ca.as_bytes(), "the connection document", &self.changed_at).ok()
    }

    /// The URLs, in order.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.url.split(',').map(str::trim).filter(|url| !url.is_empty())
    }

    /// Whether clients must present a certificate.
    #[must_use]
    pub fn needs_certificate(&self) -> bool {
        self.client_cert == "required"
    }

    /// The text of the secret.
    #[must_use]
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// The token of a write that follows the version `before`. Two nodes that replace one version by equal documents make one
    /// version: a token that exists already makes no second version
    /// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_PutSecretValue.html>). Times don't count,
    /// because two nodes never have the same time.
    #[must_use]
    pub(crate) fn token(&self, before: Option<&str>) -> String {
        let timeless =
            |times: &BTreeMap<String, String>| times.keys().map(|key| (key.clone(), String::new())).collect();
        let timeless = Self { changed_at: String::new(), trusts_from: timeless(&self.trusts_from), ..self.clone() };
        let digest = sha256_hex(format!("{}\n{}", before.unwrap_or_default(), timeless.to_json()).as_bytes());
        format!("{BY_AGENT}{}", &digest[..48])
    }
}

/// The URLs of the document: as configured, else of the names, else of the nodes.
pub(crate) fn urls(configured: &[String], names: &[String], nodes: &[SocketAddr], port: u16) -> Vec<String> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    let names: Vec<_> = names.iter().filter(|name| !name.contains('*')).collect();
    if !names.is_empty() {
        return names.into_iter().take(MAX_URLS).map(|name| format!("tls://{name}:{port}")).collect();
    }
    nodes.iter().take(MAX_URLS).map(|node| format!("tls://{}", SocketAddr::new(node.ip(), port))).collect()
}

#[cfg(test)]
mod tests;
