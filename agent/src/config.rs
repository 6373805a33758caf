//! From the TOML text to the checked configuration.
//!
//! Parsing and checking happen once, here. The rest of the crate receives values that are valid in themselves. An error
//! names the file, the line and the key, and says what to write instead.

pub mod client;
mod connection;
mod settings;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

pub use self::connection::ConnectionConfig;
pub(crate) use self::connection::MAX_URLS;
use self::connection::RawConnection;
use self::settings::left_to_parse;
pub use self::system::System;
use crate::conf::tree::Map;
use crate::included::{self, PREFIX};
use crate::state::durable;
use crate::x509::csr::KeyAlgorithm;
use crate::x509::san::DnsName;

/// The configuration file that is read without `--config`.
pub const DEFAULT_PATH: &str = "/etc/nats-tls-agent/agent.toml";

/// A configuration file is small. A larger file is some other file.
const MAX_SIZE: u64 = 1024 * 1024;

/// The longest lifetime of a certificate: ten years. PCA's own limit is the end of the CA's lifetime.
const MAX_VALIDITY: Duration = Duration::from_hours(10 * 366 * 24);
/// The shortest lifetime of a certificate. A shorter one leaves no time to confirm a rotation before the next is due.
const MIN_VALIDITY: Duration = Duration::from_secs(30);

/// The longest pause. Work that is put off for longer than a day is forgotten.
const MAX_PAUSE: Duration = Duration::from_hours(24);

/// The longest path of a Unix socket in bytes: `sun_path` without its final NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// The most Auto Scaling groups of one cluster. Each group takes a call in each round of discovery.
const MAX_GROUPS: usize = 20;

/// The most entries of `node.extra_addresses`: a large leaf serves nobody.
const MAX_EXTRA_ADDRESSES: usize = 32;

/// What is wrong with the configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("could not read the configuration {}; write one, or name it with --config", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file exceeds 1 MiB, far more than any configuration.
    #[error("{} is larger than {MAX_SIZE} bytes, so it is no configuration of the agent; name another file with --config", .file.display())]
    TooLarge {
        /// The file that is too large.
        file: PathBuf,
    },
    /// A key is unknown or missing, or its value can't be used.
    #[error("{}{}: {}{message}", .file.display(), place(*line), key.as_ref().map(|key| format!("{key}: ")).unwrap_or_default())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1, where the error has one.
        line: Option<usize>,
        /// The key, with its table, as `table.key`.
        key: Option<String>,
        /// The fault, and what to write instead.
        message: String,
    },
}

fn place(line: Option<usize>) -> String {
    line.map(|line| format!(":{line}")).unwrap_or_default()
}

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The identity of this node, as far as the file gives it.
    pub node: NodeConfig,
    /// The issuer of certificates.
    pub issuer: IssuerConfig,
    /// The source of the trust bundle.
    pub trust: TrustConfig,
    /// The source of the bundle for what clients present. `None`: clients present what nodes present.
    pub client_trust: Option<TrustConfig>,
    /// The way to find peers.
    pub discovery: DiscoveryConfig,
    /// The schedule of renewals and retries.
    pub renewal: RenewalConfig,
    /// The times of a change of the CA.
    pub rollover: RolloverConfig,
    /// nats-server and its configuration file.
    pub nats: NatsConfig,
    /// The connection document, if the group keeps one.
    pub connection: Option<ConnectionConfig>,
    /// The directory of generations, journal and lock.
    pub state_directory: PathBuf,
    /// The path of the control socket.
    pub control_socket: PathBuf,
    /// The address on which metrics are served.
    pub metrics_listen: SocketAddr,
}

/// `[node]`. Instance metadata supplies each absent field.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// `server_name`; by default the instance id.
    pub name: Option<String>,
    /// The EC2 instance id.
    pub instance_id: Option<String>,
    /// The AWS Region.
    pub region: Option<String>,
    /// IP SANs. The first is the address that peers use.
    #[serde(deserialize_with = "some_ip_addresses")]
    pub addresses: Option<Vec<IpAddr>>,
    /// IP SANs in addition to the addresses of this node.
    #[serde(deserialize_with = "ip_addresses")]
    pub extra_addresses: Vec<IpAddr>,
    /// SANs in addition to the instance's own names.
    pub dns_names: Vec<DnsName>,
    /// Whether the certificate has the names and addresses that instance metadata gives.
    pub automatic_names: bool,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: None,
            instance_id: None,
            region: None,
            addresses: None,
            extra_addresses: Vec::new(),
            dns_names: Vec::new(),
            automatic_names: true,
        }
    }
}

impl NodeConfig {
    fn check(&self) -> Result<(), InvalidKey> {
        if let Some(name) = &self.name {
            check_name("node.name", name)?;
        }
        if let Some(id) = &self.instance_id {
            check_name("node.instance_id", id)?;
        }
        if self.addresses.as_ref().is_some_and(Vec::is_empty) {
            return Err(invalid(
                "node.addresses",
                "is empty; name at least one address that peers can dial, or leave it out",
            ));
        }
        let addresses = self.addresses.iter().flatten().map(|address| ("node.addresses", address));
        let extra = self.extra_addresses.iter().map(|address| ("node.extra_addresses", address));
        if let Some((key, address)) = addresses.chain(extra).find(|(_, address)| address.is_unspecified()) {
            return Err(invalid(key, format!("{address} is no address that a peer can dial")));
        }
        if self.extra_addresses.len() > MAX_EXTRA_ADDRESSES {
            return Err(invalid("node.extra_addresses", format!("names more than {MAX_EXTRA_ADDRESSES} addresses")));
        }
        if !self.automatic_names
            && self.addresses.is_none()
            && self.extra_addresses.is_empty()
            && self.dns_names.is_empty()
        {
            let what = "false leaves the certificate without a name; set node.dns_names and node.extra_addresses";
            return Err(invalid("node.automatic_names", what));
        }
        Ok(())
    }
}

/// `[issuer]`.
#[derive(Clone, Debug)]
pub struct IssuerConfig {
    /// The kind of issuer.
    pub kind: IssuerKind,
    /// The lifetime that is requested for a leaf.
    pub validity: Duration,
    /// The algorithm of the leaf's key.
    pub key_algorithm: KeyAlgorithm,
}

/// An issuer with its own settings.
#[derive(Clone, Debug)]
pub enum IssuerKind {
    /// AWS Private CA.
    AcmPca {
        /// The ARN of the CA.
        ca_arn: CaArn,
        /// The ARN of the template; by default `EndEntityCertificate/V1` of the CA's partition.
        template_arn: Option<String>,
    },
    /// The embedded CA.
    Local {
        /// The directory of the CA's key and certificate.
        directory: PathBuf,
    },
}

/// `[trust]` or `[trust.clients]`.
#[derive(Clone, Debug)]
pub enum TrustConfig {
    /// A secret in Secrets Manager.
    SecretsManager {
        /// The name or the ARN.
        secret_id: String,
        /// The key within a JSON secret, written `secret_id = "NAME#KEY"`.
        json_key: Option<String>,
    },
    /// The issuer's own CA certificate and chain.
    Issuer,
    /// A PEM file.
    File(PathBuf),
}

/// `[discovery]`.
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// The way to find peers.
    pub kind: DiscoveryKind,
    /// The interval between two polls.
    pub interval: Duration,
}

/// The way to find peers.
#[derive(Clone, Debug)]
pub enum DiscoveryKind {
    /// The Auto Scaling group.
    Asg {
        /// The names of the groups; by default the group of this instance alone.
        asg_names: Vec<String>,
        /// The way from an instance id to an address.
        addresses: AddressLookup,
    },
    /// A fixed list.
    Static {
        /// The peers, each as `host:port`.
        peers: Vec<HostPort>,
    },
}

/// The way from an instance id to an address.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum AddressLookup {
    /// `Dns` where this node's own instance-id host name resolves to this node, else `Ec2`.
    #[default]
    Auto,
    /// The instance-id host name (resource name DNS); needs no EC2 permission.
    Dns,
    /// The EC2 call `DescribeInstances`.
    Ec2,
}

/// `[renewal]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RenewalConfig {
    /// The share of the lifetime after which a leaf is renewed at the latest, while no attempt fails.
    pub at: f64,
    /// The first delay after a failure.
    #[serde(deserialize_with = "duration")]
    pub retry_min: Duration,
    /// The longest delay after failures.
    #[serde(deserialize_with = "duration")]
    pub retry_max: Duration,
}

impl Default for RenewalConfig {
    fn default() -> Self {
        Self { at: 0.67, retry_min: Duration::from_secs(5), retry_max: Duration::from_mins(10) }
    }
}

/// `[rollover]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloverConfig {
    /// How long the bundle holds a new CA before a leaf of the CA is served. Clients read the bundle meanwhile.
    #[serde(deserialize_with = "duration")]
    pub client_notice: Duration,
    /// How long a leaf of a new CA waits for peers that don't trust the CA.
    #[serde(deserialize_with = "duration")]
    pub deadline: Duration,
}

impl Default for RolloverConfig {
    fn default() -> Self {
        Self { client_notice: Duration::from_hours(24), deadline: Duration::from_hours(7 * 24) }
    }
}

/// `[nats]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsConfig {
    /// The binary that runs with `-t`: a path, or a name that is looked up in `PATH`.
    pub server: PathBuf,
    /// The path of nats-server.conf. A rename to this path is the commit.
    pub config: PathBuf,
    /// The path of a user's template; by default the built-in template is used.
    pub template: Option<PathBuf>,
    /// Paths of files to include at the end of the rendered configuration. A secret stands here as the file that keeps its
    /// content.
    pub include: Vec<PathBuf>,
    /// The included secrets, by the files that keep their contents.
    #[serde(skip)]
    pub included_secrets: BTreeMap<PathBuf, String>,
    /// Client listener.
    #[serde(deserialize_with = "socket_address")]
    pub listen: SocketAddr,
    /// The cluster's name; by default the ASG's name, or `nats` with a static list.
    pub cluster_name: Option<String>,
    /// Route listener.
    #[serde(deserialize_with = "socket_address")]
    pub cluster_listen: SocketAddr,
    /// Monitoring listener.
    #[serde(deserialize_with = "socket_address")]
    pub monitor_listen: SocketAddr,
    /// Whether clients must present a certificate.
    pub client_auth: ClientAuth,
    /// The secret `{"username": …, "password": …}` that routes must present.
    pub cluster_secret_id: Option<String>,
    /// JetStream's switch or limits.
    pub jetstream: JetStream,
    /// nats-server's pid file.
    pub pid_file: PathBuf,
    /// The way to the system account of nats-server.
    pub system: System,
    /// A file of `KEY=VALUE` lines: the values of variables in included files and in the template.
    pub environment_file: Option<PathBuf>,
    /// How long nats-server may start or drain until the node is failing.
    #[serde(deserialize_with = "duration")]
    pub start_timeout: Duration,
    /// `[nats.reload]`.
    pub reload: ReloadConfig,
    /// `[nats.settings]`: settings of nats-server by their own names, merged over what is rendered.
    #[serde(deserialize_with = "left_to_parse")]
    pub settings: Map,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            server: "nats-server".into(),
            config: "/var/lib/nats-tls-agent/nats-server.conf".into(),
            template: None,
            include: Vec::new(),
            included_secrets: BTreeMap::new(),
            listen: SocketAddr::from(([0, 0, 0, 0], 4222)),
            cluster_name: None,
            cluster_listen: SocketAddr::from(([0, 0, 0, 0], 6222)),
            monitor_listen: SocketAddr::from(([127, 0, 0, 1], 8222)),
            client_auth: ClientAuth::Tls,
            cluster_secret_id: None,
            jetstream: JetStream::On(JetStreamLimits::default()),
            pid_file: "/run/nats/nats-server.pid".into(),
            system: System::default(),
            environment_file: None,
            start_timeout: Duration::from_mins(10),
            reload: ReloadConfig::default(),
            settings: Map::default(),
        }
    }
}

/// `[nats.reload]`: how long nats-server may take.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadConfig {
    /// How long a reload that is under way is waited for.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
}

impl Default for ReloadConfig {
    fn default() -> Self {
        Self { timeout: Duration::from_mins(10) }
    }
}

/// Whether clients must present a certificate.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// Only the server presents a certificate.
    Tls,
    /// Server and client present a certificate.
    Mtls,
}

/// `nats.jetstream`: a switch, or a table of limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JetStream {
    /// JetStream is disabled.
    Off,
    /// JetStream is enabled.
    On(JetStreamLimits),
}

/// JetStream's directory and limits.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct JetStreamLimits {
    /// The directory of the streams.
    pub store_dir: PathBuf,
    /// The memory limit in nats-server's own notation (`1GB`); by default nats-server's default.
    pub max_mem: Option<Size>,
    /// The disk limit in nats-server's own notation (`100GB`); by default nats-server's default.
    pub max_file: Option<Size>,
}

impl Default for JetStreamLimits {
    fn default() -> Self {
        Self { store_dir: "/var/lib/nats/jetstream".into(), max_mem: None, max_file: None }
    }
}

impl<'de> Deserialize<'de> for JetStream {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = JetStream;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("true, false or a table of store_dir, max_mem and max_file")
            }

            fn visit_bool<E>(self, on: bool) -> Result<JetStream, E> {
                Ok(if on { JetStream::On(JetStreamLimits::default()) } else { JetStream::Off })
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<JetStream, A::Error> {
                JetStreamLimits::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(JetStream::On)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A size in nats-server's own notation: digits and a unit. The unit is one of `K`, `M`, `G`, `T`, `P`, `E`, with or
/// without `B`, `i` or `iB`, in any case (`conf/parse.go`, the same in 2.10.26, 2.12.8 and 2.15.1).
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct Size(String);

impl Size {
    /// The size as nats-server reads it, without quotes.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = text[digits.len()..].to_ascii_lowercase();
        let power = |prefix: &str, base: i64| {
            let mut powers = ["k", "m", "g", "t", "p", "e"].into_iter().zip(1..);
            powers.find(|(name, _)| *name == prefix).and_then(|(_, power)| base.checked_pow(power))
        };
        let binary = unit.strip_suffix("ib").or(unit.strip_suffix('i')).or(unit.strip_suffix('b'));
        let scale = match binary {
            Some(prefix) => power(prefix, 1024),
            None if unit.is_empty() => Some(1),
            None => power(&unit, 1000),
        };
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        // nats-server takes a size that overflows for another size, without an error.
        let bytes = scale.and_then(|scale| digits.parse::<i64>().ok()?.checked_mul(scale));
        if !is_number || bytes.is_none() {
            return Err(format!("{text:?} is not a size; write for instance \"1GB\" or \"512MB\""));
        }
        Ok(Self(text))
    }
}

/// `host:port`, with an IPv6 address in brackets.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct HostPort {
    /// A host name or an IP address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl TryFrom<String> for HostPort {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a peer; write \"host:port\", for instance \"10.0.1.5:6222\"");
        if let Ok(address) = text.parse::<SocketAddr>() {
            if address.ip().is_unspecified() || address.port() == 0 {
                return Err(wrong());
            }
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let host = DnsName::try_from(host.to_owned()).map_err(|_| wrong())?;
        Ok(Self { host: host.as_str().to_owned(), port })
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
    }
}

/// The ARN of a private CA: `arn:PARTITION:acm-pca:REGION:ACCOUNT:certificate-authority/ID`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaArn {
    text: String,
    partition: String,
    region: String,
}

impl CaArn {
    /// The whole ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `aws`, `aws-cn`, `aws-us-gov` …
    #[must_use]
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// The Region of the CA. Calls go to its endpoint.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }
}

impl TryFrom<String> for CaArn {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let example = "write for instance \"arn:aws:acm-pca:eu-west-1:111122223333:certificate-authority/ID\"";
        match parts.as_slice() {
            ["arn", partition, "acm-pca", region, account, resource]
                if !partition.is_empty()
                    && !region.is_empty()
                    && account.len() == 12
                    && account.bytes().all(|b| b.is_ascii_digit())
                    && resource.strip_prefix("certificate-authority/").is_some_and(|id| {
                        !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    }) =>
            {
                Ok(Self { partition: (*partition).to_owned(), region: (*region).to_owned(), text })
            }
            ["arn", _, service, ..] if *service != "acm-pca" => {
                Err(format!("this is an ARN of the service {service:?}, not of AWS Private CA (acm-pca); {example}"))
            }
            _ => Err(format!("{text:?} is not the ARN of a private CA; {example}")),
        }
    }
}

impl Config {
    /// Reads and checks the file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&text_of(file)?, file)
    }

    /// Checks the text. `file` only appears in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let mut config = parse_and_check(text, file, RawConfig::check)?;
        config.nats.settings = settings::settings(text, file)?;
        Ok(config)
    }
}

/// The text of a configuration file.
fn text_of(file: &Path) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read { file: file.to_owned(), source };
    let text = durable::read_if_there(file, MAX_SIZE).map_err(|error| match error.source.kind() {
        std::io::ErrorKind::FileTooLarge => ConfigError::TooLarge { file: file.to_owned() },
        _ => read(error.source),
    })?;
    String::from_utf8(text.ok_or_else(|| read(Errno::ENOENT.into()))?)
        .map_err(|error| read(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
}

/// Parses a text and checks what it says. An error names the line and the key.
fn parse_and_check<R: DeserializeOwned, C>(
    text: &str,
    file: &Path,
    check: impl FnOnce(R) -> Result<C, InvalidKey>,
) -> Result<C, ConfigError> {
    let raw: R = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        ConfigError::Invalid {
            file: file.to_owned(),
            line: error.span().map(|span| line_of(text, span.start)),
            key: key_at(text, span.start),
            message: error.message().replace('\n', "; "),
        }
    })?;
    check(raw).map_err(|InvalidKey { key, message }| ConfigError::Invalid {
        file: file.to_owned(),
        line: position_of(text, key).map(|start| line_of(text, start)),
        key: Some(key.to_owned()),
        message,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    node: NodeConfig,
    #[serde(default)]
    issuer: RawIssuer,
    #[serde(default)]
    trust: RawTrust,
    #[serde(default)]
    discovery: RawDiscovery,
    #[serde(default)]
    renewal: RenewalConfig,
    #[serde(default)]
    rollover: RolloverConfig,
    #[serde(default)]
    nats: NatsConfig,
    #[serde(default)]
    connection: RawConnection,
    #[serde(default)]
    state: RawState,
    #[serde(default)]
    control: RawControl,
    #[serde(default)]
    metrics: RawMetrics,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawIssuer {
    kind: RawIssuerKind,
    ca_arn: Option<String>,
    #[serde(deserialize_with = "duration")]
    validity: Duration,
    template_arn: Option<String>,
    directory: Option<PathBuf>,
    key_algorithm: KeyAlgorithm,
}

impl Default for RawIssuer {
    fn default() -> Self {
        Self {
            kind: RawIssuerKind::AcmPca,
            ca_arn: None,
            validity: Duration::from_hours(7 * 24),
            template_arn: None,
            directory: None,
            key_algorithm: KeyAlgorithm::EcdsaP256,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawIssuerKind {
    AcmPca,
    Local,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTrust {
    kind: RawTrustKind,
    secret_id: Option<String>,
    file: Option<PathBuf>,
    clients: Option<RawTrustSource>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTrustSource {
    kind: RawTrustKind,
    secret_id: Option<String>,
    file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawTrustKind {
    #[default]
    SecretsManager,
    Issuer,
    File,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDiscovery {
    kind: RawDiscoveryKind,
    #[serde(deserialize_with = "texts")]
    asg_name: Option<Vec<String>>,
    addresses: AddressLookup,
    peers: Option<Vec<HostPort>>,
    #[serde(deserialize_with = "duration")]
    interval: Duration,
}

impl Default for RawDiscovery {
    fn default() -> Self {
        Self {
            kind: RawDiscoveryKind::Asg,
            asg_name: None,
            addresses: AddressLookup::Auto,
            peers: None,
            interval: Duration::from_secs(30),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawDiscoveryKind {
    Asg,
    Static,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawState {
    directory: PathBuf,
}

impl Default for RawState {
    fn default() -> Self {
        Self { directory: "/var/lib/nats-tls-agent".into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawControl {
    socket: PathBuf,
}

impl Default for RawControl {
    fn default() -> Self {
        Self { socket: "/run/nats-tls-agent/control.sock".into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawMetrics {
    #[serde(deserialize_with = "socket_address")]
    listen: SocketAddr,
}

impl Default for RawMetrics {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9464)) }
    }
}

/// A value that parses and still can't be used.
struct InvalidKey {
    key: &'static str,
    message: String,
}

fn invalid(key: &'static str, message: impl Into<String>) -> InvalidKey {
    InvalidKey { key, message: message.into() }
}

impl RawConfig {
    fn check(mut self) -> Result<Config, InvalidKey> {
        self.node.check()?;
        self.nats.name_secrets(&self.state.directory)?;
        self.nats.check()?;
        self.renewal.check()?;
        self.rollover.check()?;
        check_listeners(&[
            ("nats.listen", self.nats.listen),
            ("nats.cluster_listen", self.nats.cluster_listen),
            ("nats.monitor_listen", self.nats.monitor_listen),
            ("metrics.listen", self.metrics.listen),
        ])?;
        let control_socket = absolute("control.socket", self.control.socket)?;
        if control_socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(invalid(
                "control.socket",
                format!("is longer than {MAX_SOCKET_PATH} bytes, the longest path of a Unix socket"),
            ));
        }
        let state_directory = absolute("state.directory", self.state.directory)?;
        // The agent recognises a committed configuration by the paths in its text.
        if !state_directory.to_str().is_some_and(|path| path.chars().all(needs_no_escape)) {
            let what = "has a character that nats-server.conf can't hold as it is; use letters, digits and -_./";
            return Err(invalid("state.directory", format!("{} {what}", state_directory.display())));
        }
        let discovery = self.discovery.check()?;
        if let DiscoveryKind::Asg { asg_names, .. } = &discovery.kind
            && asg_names.len() > 1
            && self.nats.cluster_name.is_none()
        {
            let what = "is missing; discovery.asg_name names several groups, and their nodes need one cluster name";
            return Err(invalid("nats.cluster_name", what));
        }
        let issuer = self.issuer.check()?;
        let (trust, client_trust) = self.trust.check()?;
        Ok(Config {
            node: self.node,
            issuer,
            trust,
            client_trust,
            discovery,
            renewal: self.renewal,
            rollover: self.rollover,
            nats: self.nats,
            connection: self.connection.check()?,
            state_directory,
            control_socket,
            metrics_listen: self.metrics.listen,
        })
    }
}

impl RawIssuer {
    fn check(self) -> Result<IssuerConfig, InvalidKey> {
        if self.validity < MIN_VALIDITY || self.validity > MAX_VALIDITY {
            return Err(invalid("issuer.validity", "must lie between 30s and ten years"));
        }
        let kind = match self.kind {
            RawIssuerKind::AcmPca => {
                let ca_arn = self.ca_arn.ok_or_else(|| {
                    invalid(
                        "issuer.ca_arn",
                        "is missing; kind = \"acm-pca\" needs the ARN of the private CA that signs",
                    )
                })?;
                if self.directory.is_some() {
                    return Err(invalid("issuer.directory", "belongs to kind = \"local\"; remove it, or set the kind"));
                }
                let ca_arn = CaArn::try_from(ca_arn).map_err(|message| invalid("issuer.ca_arn", message))?;
                if let Some(template) = &self.template_arn {
                    let prefix = format!("arn:{}:acm-pca:::template/", ca_arn.partition());
                    if !template.starts_with(&prefix) {
                        return Err(invalid(
                            "issuer.template_arn",
                            format!("must begin with {prefix:?}, as the CA's partition is {:?}", ca_arn.partition()),
                        ));
                    }
                }
                IssuerKind::AcmPca { ca_arn, template_arn: self.template_arn }
            }
            RawIssuerKind::Local => {
                if self.ca_arn.is_some() {
                    return Err(invalid("issuer.ca_arn", "belongs to kind = \"acm-pca\"; remove it, or set the kind"));
                }
                if self.template_arn.is_some() {
                    return Err(invalid(
                        "issuer.template_arn",
                        "belongs to kind = \"acm-pca\"; remove it, or set the kind",
                    ));
                }
                let directory = self
                    .directory
                    .ok_or_else(|| invalid("issuer.directory", "is missing; kind = \"local\" keeps its CA there"))?;
                IssuerKind::Local { directory: absolute("issuer.directory", directory)? }
            }
        };
        Ok(IssuerConfig { kind, validity: self.validity, key_algorithm: self.key_algorithm })
    }
}

/// The keys of a table that names the source of a bundle.
struct TrustKeys {
    secret_id: &'static str,
    file: &'static str,
}

const TRUST: TrustKeys = TrustKeys { secret_id: "trust.secret_id", file: "trust.file" };
const CLIENT_TRUST: TrustKeys = TrustKeys { secret_id: "trust.clients.secret_id", file: "trust.clients.file" };

impl RawTrust {
    /// The source of the bundle, and the source of the bundle for what clients present.
    fn check(self) -> Result<(TrustConfig, Option<TrustConfig>), InvalidKey> {
        let clients = self.clients.map(|clients| clients.check(&CLIENT_TRUST)).transpose()?;
        let Self { kind, secret_id, file, .. } = self;
        Ok((RawTrustSource { kind, secret_id, file }.check(&TRUST)?, clients))
    }
}

impl RawTrustSource {
    fn check(self, keys: &TrustKeys) -> Result<TrustConfig, InvalidKey> {
        if self.secret_id.is_some() && !matches!(self.kind, RawTrustKind::SecretsManager) {
            return Err(invalid(keys.secret_id, "belongs to kind = \"secrets-manager\"; remove it, or set the kind"));
        }
        if self.file.is_some() && !matches!(self.kind, RawTrustKind::File) {
            return Err(invalid(keys.file, "belongs to kind = \"file\"; remove it, or set the kind"));
        }
        match self.kind {
            RawTrustKind::SecretsManager => {
                let secret_id = self.secret_id.ok_or_else(|| {
                    invalid(keys.secret_id, "is missing; kind = \"secrets-manager\" needs the name or ARN of the secret with the trust bundle")
                })?;
                let (secret_id, json_key) = match secret_id.split_once('#') {
                    Some((_, "")) => {
                        return Err(invalid(
                            keys.secret_id,
                            "names no key after the \"#\"; write \"NAME#KEY\", or \"NAME\"",
                        ));
                    }
                    Some((id, key)) => (id.to_owned(), Some(key.to_owned())),
                    None => (secret_id, None),
                };
                check_secret_id(keys.secret_id, &secret_id)?;
                Ok(TrustConfig::SecretsManager { secret_id, json_key })
            }
            RawTrustKind::Issuer => Ok(TrustConfig::Issuer),
            RawTrustKind::File => {
                let file = self
                    .file
                    .ok_or_else(|| invalid(keys.file, "is missing; kind = \"file\" reads the trust bundle from it"))?;
                Ok(TrustConfig::File(absolute(keys.file, file)?))
            }
        }
    }
}

impl RawDiscovery {
    fn check(self) -> Result<DiscoveryConfig, InvalidKey> {
        if self.interval < Duration::from_millis(100) || self.interval > MAX_PAUSE {
            return Err(invalid("discovery.interval", "must lie between 100ms and a day"));
        }
        let kind = match self.kind {
            RawDiscoveryKind::Asg => {
                if self.peers.is_some() {
                    return Err(invalid("discovery.peers", "belongs to kind = \"static\"; remove it, or set the kind"));
                }
                if self.addresses == AddressLookup::Ec2 && !cfg!(feature = "ec2") {
                    return Err(invalid(
                        "discovery.addresses",
                        "\"ec2\" is not in this build (Cargo feature `ec2`); use \"dns\"",
                    ));
                }
                let asg_names = check_groups(self.asg_name)?;
                DiscoveryKind::Asg { asg_names, addresses: self.addresses }
            }
            RawDiscoveryKind::Static => {
                if self.asg_name.is_some() {
                    return Err(invalid("discovery.asg_name", "belongs to kind = \"asg\"; remove it, or set the kind"));
                }
                let peers = self.peers.filter(|peers| !peers.is_empty()).ok_or_else(|| {
                    invalid("discovery.peers", "is missing; kind = \"static\" needs the peers, this node among them")
                })?;
                DiscoveryKind::Static { peers }
            }
        };
        Ok(DiscoveryConfig { kind, interval: self.interval })
    }
}

/// The names of Auto Scaling groups: 1 to 255 characters, and none of control
/// (<https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_CreateAutoScalingGroup.html>).
fn check_groups(names: Option<Vec<String>>) -> Result<Vec<String>, InvalidKey> {
    let key = "discovery.asg_name";
    let Some(names) = names else { return Ok(Vec::new()) };
    if names.is_empty() || names.len() > MAX_GROUPS {
        return Err(invalid(key, format!("must name 1 to {MAX_GROUPS} groups; leave it out for this instance's own")));
    }
    let is_wrong = |name: &&String| name.is_empty() || name.chars().count() > 255 || name.contains(char::is_control);
    if let Some(name) = names.iter().find(is_wrong) {
        return Err(invalid(key, format!("{name:?} is not the name of an Auto Scaling group")));
    }
    let mut seen = BTreeSet::new();
    if let Some(name) = names.iter().find(|name| !seen.insert(*name)) {
        return Err(invalid(key, format!("names {name:?} twice")));
    }
    Ok(names)
}

impl RenewalConfig {
    fn check(&self) -> Result<(), InvalidKey> {
        if !(0.1..=0.95).contains(&self.at) {
            return Err(invalid(
                "renewal.at",
                "must lie between 0.1 and 0.95: the share of the lifetime after which a leaf is renewed",
            ));
        }
        if self.retry_min < Duration::from_millis(10) {
            return Err(invalid("renewal.retry_min", "must be at least 10ms"));
        }
        if self.retry_max > MAX_PAUSE {
            return Err(invalid("renewal.retry_max", "must be a day at most"));
        }
        if self.retry_max < self.retry_min {
            return Err(invalid("renewal.retry_max", "must not be less than renewal.retry_min"));
        }
        Ok(())
    }
}

impl RolloverConfig {
    fn check(&self) -> Result<(), InvalidKey> {
        for (key, length) in [("rollover.client_notice", self.client_notice), ("rollover.deadline", self.deadline)] {
            if length > MAX_VALIDITY {
                return Err(invalid(key, "must be ten years at most"));
            }
        }
        Ok(())
    }
}

impl NatsConfig {
    /// Replaces each `secret:NAME` by the file that keeps the content of the secret.
    fn name_secrets(&mut self, state: &Path) -> Result<(), InvalidKey> {
        for include in &mut self.include {
            let Some(id) = include.to_str().and_then(|text| text.strip_prefix(PREFIX)) else { continue };
            check_secret_id("nats.include", id)?;
            let file = included::file_of(state, id);
            self.included_secrets.insert(file.clone(), id.to_owned());
            *include = file;
        }
        Ok(())
    }

    /// Names the files of included secrets in another state directory.
    pub(crate) fn keep_secrets_in(&mut self, state: &Path) {
        for (before, id) in std::mem::take(&mut self.included_secrets) {
            let file = included::file_of(state, &id);
            for include in self.include.iter_mut().filter(|include| **include == before) {
                include.clone_from(&file);
            }
            self.included_secrets.insert(file, id);
        }
    }

    fn check(&self) -> Result<(), InvalidKey> {
        // A pass finds out whether an include or the template exists. A daemon that ends with a configuration error is
        // not started again, and then nobody renews the certificate.
        let fixed = [("nats.config", &self.config), ("nats.pid_file", &self.pid_file)];
        let includes = self.include.iter().map(|include| ("nats.include", include));
        let template = self.template.iter().map(|template| ("nats.template", template));
        for (key, path) in fixed.into_iter().chain(includes).chain(template) {
            absolute(key, path.clone())?;
        }
        if let Some(name) = &self.cluster_name {
            check_name("nats.cluster_name", name)?;
        }
        if let Some(id) = &self.cluster_secret_id {
            check_secret_id("nats.cluster_secret_id", id)?;
        }
        if let Some(file) = &self.environment_file {
            absolute("nats.environment_file", file.clone())?;
        }
        match &self.system {
            System::CredsFile(file) => {
                absolute("nats.system.creds_file", file.clone())?;
            }
            System::Secret(id) => check_secret_id("nats.system.secret_id", id)?,
            System::Auto | System::Off => {}
        }
        if self.start_timeout > MAX_PAUSE {
            return Err(invalid("nats.start_timeout", "must be a day at most"));
        }
        if self.reload.timeout < Duration::from_secs(10) || self.reload.timeout > MAX_PAUSE {
            return Err(invalid("nats.reload.timeout", "must lie between 10s and a day"));
        }
        if let JetStream::On(limits) = &self.jetstream {
            absolute("nats.jetstream.store_dir", limits.store_dir.clone())?;
        }
        Ok(())
    }
}

/// No two listeners may use the same port of the same address. An unspecified address means all addresses.
fn check_listeners(listeners: &[(&'static str, SocketAddr)]) -> Result<(), InvalidKey> {
    for (index, (key, address)) in listeners.iter().enumerate() {
        if address.port() == 0 {
            return Err(invalid(key, "needs a port other than 0: others have to know it"));
        }
        let overlaps = |(_, other): &&(&str, SocketAddr)| {
            other.port() == address.port()
                && (other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified())
        };
        if let Some((taken, other)) = listeners[..index].iter().find(overlaps) {
            return Err(invalid(key, format!("{address} is taken by {taken}, {other}; choose another port")));
        }
    }
    Ok(())
}

/// A server or cluster name that nats-server accepts has no white space and no control characters.
fn check_name(key: &'static str, name: &str) -> Result<(), InvalidKey> {
    if name.is_empty() || name.len() > 255 || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(invalid(
            key,
            format!("{name:?} must be 1 to 255 characters without white space or control characters"),
        ));
    }
    Ok(())
}

/// Names consist of letters, digits and `/_+=.@-`, and ARNs also of colons
/// (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_CreateSecret.html>). The limit is 2,048
/// characters (`GetSecretValue`).
fn check_secret_id(key: &'static str, id: &str) -> Result<(), InvalidKey> {
    if id.starts_with("arn:") && id.split(':').nth(2) != Some("secretsmanager") {
        return Err(invalid(
            key,
            format!(
                "{id:?} is not the ARN of a secret; write the secret's name, or arn:…:secretsmanager:…:secret:NAME"
            ),
        ));
    }
    if id.is_empty() || id.len() > 2048 || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_+=.@-:!".contains(&b)) {
        return Err(invalid(key, format!("{id:?} is not the name or ARN of a secret")));
    }
    Ok(())
}

/// Whether nats-server.conf holds a character as it is: nats-server reads it unchanged, quoted or not.
pub(crate) fn needs_no_escape(character: char) -> bool {
    if character.is_ascii() {
        character.is_ascii_alphanumeric() || "-_./:@+=%~^&!?*[]".contains(character)
    } else {
        !character.is_control() && !character.is_whitespace()
    }
}

fn absolute(key: &'static str, path: PathBuf) -> Result<PathBuf, InvalidKey> {
    if path.is_absolute() { Ok(path) } else { Err(invalid(key, format!("{} is not an absolute path", path.display()))) }
}

/// A text that a parser of another crate reads. The parser's own message says neither what is expected nor what to write.
struct Quoted<T, E> {
    what: &'static str,
    examples: &'static str,
    parse: fn(&str) -> Result<T, E>,
}

impl<T, P: std::fmt::Display> serde::de::Visitor<'_> for Quoted<T, P> {
    type Value = T;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} in quotes, for instance {}", self.what, self.examples)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        let Self { what, examples, parse } = self;
        parse(text)
            .map_err(|error| E::custom(format!("{text:?} is not {what} ({error}); write for instance {examples}")))
    }
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let examples = "\"7d\", \"12h\" or \"30s\"";
    deserializer.deserialize_str(Quoted { what: "a duration", examples, parse: humantime::parse_duration })
}

fn socket_address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let (what, examples) = ("an address with a port", "\"0.0.0.0:4222\"");
    deserializer.deserialize_str(Quoted { what, examples, parse: str::parse::<SocketAddr> })
}

/// A text, or a list of texts.
fn texts<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    struct Texts;
    impl<'de> serde::de::Visitor<'de> for Texts {
        type Value = Vec<String>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("a name in quotes, or a list of names")
        }

        fn visit_str<E>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(vec![text.to_owned()])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, list: A) -> Result<Vec<String>, A::Error> {
            Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(list))
        }
    }
    deserializer.deserialize_any(Texts).map(Some)
}

fn some_ip_addresses<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<IpAddr>>, D::Error> {
    ip_addresses(deserializer).map(Some)
}

fn ip_addresses<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    struct Address(IpAddr);
    impl<'de> Deserialize<'de> for Address {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let (what, examples) = ("an IP address", "\"10.0.1.5\"");
            deserializer.deserialize_str(Quoted { what, examples, parse: str::parse }).map(Self)
        }
    }
    let addresses = Vec::<Address>::deserialize(deserializer)?;
    Ok(addresses.into_iter().map(|Address(address)| address).collect())
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// The dotted path of the innermost key whose entry covers the offset.
fn key_at(text: &str, offset: usize) -> Option<String> {
    fn descend(table: &DeTable<'_>, offset: usize, path: &mut Vec<String>) -> bool {
        for (key, value) in table {
            let direct = key.span().contains(&offset) || value.span().contains(&offset);
            path.push(key.get_ref().to_string());
            let inner = matches!(value.get_ref(), DeValue::Table(inner) if descend(inner, offset, path));
            if direct || inner {
                return true;
            }
            path.pop();
        }
        false
    }
    let document = DeTable::parse(text).ok()?;
    let mut path = Vec::new();
    descend(document.get_ref(), offset, &mut path).then(|| path.join("."))
}

/// The position of a dotted key in the text, or of the innermost table that would hold the key.
fn position_of(text: &str, key: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut found = None;
    for part in key.split('.') {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else { break };
        found = Some(name.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PCA: &str = "arn:aws:acm-pca:eu-west-1:111122223333:certificate-authority/8b1c-01";

    /// A configuration with the two keys that are enough on EC2, in two lines, followed by `rest`.
    fn ec2(rest: &str) -> String {
        format!("issuer.ca_arn = \"{PCA}\"\ntrust.secret_id = \"nats/ca\"\n{rest}")
    }

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("agent.toml"))
    }

    fn message(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn two_keys_are_enough_on_ec2_and_the_rest_is_the_contract() {
        let config = parse(&ec2("")).unwrap();
        let IssuerKind::AcmPca { ca_arn, template_arn: None } = config.issuer.kind else { panic!("{config:?}") };
        assert_eq!((ca_arn.as_str(), ca_arn.partition(), ca_arn.region()), (PCA, "aws", "eu-west-1"));
        assert_eq!(config.issuer.validity, Duration::from_hours(7 * 24));
        assert_eq!(config.issuer.key_algorithm, KeyAlgorithm::EcdsaP256);
        let TrustConfig::SecretsManager { secret_id, json_key: None } = config.trust else { panic!() };
        assert_eq!(secret_id, "nats/ca");
        let DiscoveryKind::Asg { asg_names, addresses: AddressLookup::Auto } = config.discovery.kind else { panic!() };
        assert!(asg_names.is_empty());
        assert_eq!(config.discovery.interval, Duration::from_secs(30));
        assert!((config.renewal.at - 0.67).abs() < f64::EPSILON);
        assert_eq!(
            (config.renewal.retry_min, config.renewal.retry_max),
            (Duration::from_secs(5), Duration::from_mins(10))
        );
        assert!(config.node.name.is_none() && config.node.addresses.is_none() && config.node.dns_names.is_empty());
        assert!(config.node.automatic_names && config.node.extra_addresses.is_empty());
        let nats = config.nats;
        assert_eq!(nats.server, Path::new("nats-server"));
        assert_eq!(nats.config, Path::new("/var/lib/nats-tls-agent/nats-server.conf"));
        assert_eq!(nats.listen.to_string(), "0.0.0.0:4222");
        assert_eq!(nats.cluster_listen.to_string(), "0.0.0.0:6222");
        assert_eq!(nats.monitor_listen.to_string(), "127.0.0.1:8222");
        assert_eq!(nats.client_auth, ClientAuth::Tls);
        assert_eq!(nats.jetstream, JetStream::On(JetStreamLimits::default()));
        assert_eq!(nats.pid_file, Path::new("/run/nats/nats-server.pid"));
        assert!(nats.template.is_none() && nats.include.is_empty() && nats.cluster_name.is_none());
        assert!(nats.cluster_secret_id.is_none());
        assert_eq!(config.state_directory, Path::new("/var/lib/nats-tls-agent"));
        assert_eq!(config.control_socket, Path::new("/run/nats-tls-agent/control.sock"));
        assert_eq!(config.metrics_listen.to_string(), "127.0.0.1:9464");
    }

    #[test]
    fn every_key_of_the_contract_is_known() {
        let config = parse(
            r#"
            [node]
            name = "n1"
            instance_id = "i-0123456789abcdef0"
            region = "eu-west-1"
            addresses = ["10.0.1.5", "fd00::5"]
            extra_addresses = ["10.0.9.9"]
            dns_names = ["NATS.internal."]
            automatic_names = false
            [issuer]
            kind = "local"
            directory = "/var/lib/ca"
            validity = "90s"
            key_algorithm = "rsa-2048"
            [trust]
            kind = "issuer"
            [discovery]
            kind = "static"
            peers = ["10.0.1.5:6222", "[fd00::6]:6222", "n3.internal:6222"]
            interval = "250ms"
            [renewal]
            at = 0.5
            retry_min = "1s"
            retry_max = "1m"
            [nats]
            server = "/opt/nats-server"
            config = "/etc/nats/nats.conf"
            listen = "0.0.0.0:14222"
            cluster_name = "prod"
            cluster_listen = "[::]:16222"
            monitor_listen = "127.0.0.1:18222"
            client_auth = "mtls"
            cluster_secret_id = "nats/routes"
            jetstream = { store_dir = "/data/js", max_mem = "1GB", max_file = "100GiB" }
            pid_file = "/run/nats.pid"
            system = { creds_file = "/etc/nats/system.creds" }
            [connection]
            secret_id = "nats/connection"
            urls = ["tls://nats.internal:4222"]

            [state]
            directory = "/var/lib/agent"
            [control]
            socket = "/run/agent.sock"
            [metrics]
            listen = "127.0.0.1:19464"
            "#,
        )
        .unwrap();
        assert_eq!(config.node.dns_names[0].as_str(), "nats.internal");
        assert!(!config.node.automatic_names && config.node.extra_addresses == [IpAddr::from([10, 0, 9, 9])]);
        assert!(matches!(config.issuer.kind, IssuerKind::Local { directory } if directory == Path::new("/var/lib/ca")));
        assert!(matches!(config.trust, TrustConfig::Issuer));
        let DiscoveryKind::Static { peers } = config.discovery.kind else { panic!() };
        assert_eq!((peers[1].host.as_str(), peers[1].port), ("fd00::6", 6222));
        let JetStream::On(limits) = config.nats.jetstream else { panic!() };
        assert_eq!(limits.max_file.unwrap().as_str(), "100GiB");
        assert_eq!(config.nats.system, System::CredsFile("/etc/nats/system.creds".into()));
    }

    #[test]
    fn the_group_is_a_text_or_a_list() {
        let groups = |rest: &str| match parse(&ec2(rest)).unwrap().discovery.kind {
            DiscoveryKind::Asg { asg_names, .. } => asg_names,
            DiscoveryKind::Static { .. } => Vec::new(),
        };
        assert_eq!(groups("discovery.asg_name = \"nats\""), ["nats"]);
        assert_eq!(groups("discovery.asg_name = [\"nats\"]"), ["nats"]);
        assert_eq!(groups("nats.cluster_name = \"n\"\ndiscovery.asg_name = [\"b\", \"a\"]"), ["b", "a"]);
    }

    #[test]
    fn an_error_names_file_line_and_key_and_says_what_to_write() {
        let cases = [
            (
                ec2("[nats]\nlissten = 1"),
                "agent.toml:4: nats.lissten: unknown field `lissten`, expected one of `server`, `config`, `template`, `include`, `listen`, `cluster_name`, `cluster_listen`, `monitor_listen`, `client_auth`, `cluster_secret_id`, `jetstream`, `pid_file`, `system`, `environment_file`, `start_timeout`, `reload`, `settings`",
            ),
            (
                ec2("[renewal]\nretry_min = 5"),
                "agent.toml:4: renewal.retry_min: invalid type: integer `5`, expected a duration in quotes, for instance \"7d\", \"12h\" or \"30s\"",
            ),
            (
                ec2("[renewal]\nretry_min = \"5\""),
                "agent.toml:4: renewal.retry_min: \"5\" is not a duration (time unit needed, for example 5sec or 5ms); write for instance \"7d\", \"12h\" or \"30s\"",
            ),
            (
                "[issuer]\n\nca_arn = \"arn:aws:acm:eu-west-1:111122223333:certificate/1\"".to_owned(),
                "agent.toml:3: issuer.ca_arn: this is an ARN of the service \"acm\", not of AWS Private CA (acm-pca); write for instance \"arn:aws:acm-pca:eu-west-1:111122223333:certificate-authority/ID\"",
            ),
            (
                String::new(),
                "agent.toml: issuer.ca_arn: is missing; kind = \"acm-pca\" needs the ARN of the private CA that signs",
            ),
            (
                format!("issuer.ca_arn = \"{PCA}\"\n[trust]\n"),
                "agent.toml:2: trust.secret_id: is missing; kind = \"secrets-manager\" needs the name or ARN of the secret with the trust bundle",
            ),
            (ec2("[state]\ndirectory = \"var\""), "agent.toml:4: state.directory: var is not an absolute path"),
            (
                ec2("[nats]\nlisten = \"4222\""),
                "agent.toml:4: nats.listen: \"4222\" is not an address with a port (invalid socket address syntax); write for instance \"0.0.0.0:4222\"",
            ),
            (
                ec2("[metrics]\nlisten = \"127.0.0.1:4222\""),
                "agent.toml:4: metrics.listen: 127.0.0.1:4222 is taken by nats.listen, 0.0.0.0:4222; choose another port",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(message(&text), expected);
        }
    }

    #[test]
    fn what_can_not_be_used_is_refused_with_its_key() {
        let cases = [
            ("natss.listen = 1", "natss: unknown field"),
            ("issuer.kind = \"locall\"", "issuer.kind: unknown variant"),
            ("issuer.validity = \"1s\"", "issuer.validity: must lie between"),
            ("issuer.validity = \"99y\"", "issuer.validity: must lie between"),
            ("issuer.template_arn = \"arn:aws-cn:acm-pca:::template/X/V1\"", "issuer.template_arn: must begin with"),
            ("issuer.directory = \"/ca\"", "issuer.directory: belongs to kind = \"local\""),
            ("trust.file = \"/ca.pem\"", "trust.file: belongs to kind = \"file\""),
            ("trust.kind = \"issuer\"", "trust.secret_id: belongs to kind = \"secrets-manager\""),
            ("trust.clients = {}", "trust.clients.secret_id: is missing"),
            ("trust.clients.file = \"/ca.pem\"", "trust.clients.file: belongs to kind = \"file\""),
            ("trust.clients = { kind = \"file\" }", "trust.clients.file: is missing"),
            ("discovery.peers = [\"a:1\"]", "discovery.peers: belongs to kind = \"static\""),
            ("discovery.kind = \"static\"", "discovery.peers: is missing"),
            ("discovery = { kind = \"static\", asg_name = \"a\" }", "discovery.asg_name: belongs to kind = \"asg\""),
            ("discovery.asg_name = []", "discovery.asg_name: must name 1 to 20 groups"),
            ("discovery.asg_name = \"\"", "discovery.asg_name: \"\" is not the name"),
            ("discovery.asg_name = [\"a\", \"a\"]", "discovery.asg_name: names \"a\" twice"),
            ("discovery.asg_name = 1", "expected a name in quotes, or a list of names"),
            ("discovery.asg_name = [\"a\", \"b\"]", "nats.cluster_name: is missing; discovery.asg_name names several"),
            ("discovery.interval = \"1ms\"", "discovery.interval: must lie between"),
            ("discovery.interval = \"10000y\"", "discovery.interval: must lie between"),
            ("discovery = { kind = \"static\", peers = [\"a\"] }", "discovery.peers: \"a\" is not a peer"),
            ("discovery = { kind = \"static\", peers = [\"a:0\"] }", "discovery.peers: \"a:0\" is not a peer"),
            ("discovery = { kind = \"static\", peers = [\"0.0.0.0:1\"] }", "\"0.0.0.0:1\" is not a peer"),
            ("discovery = { kind = \"static\", peers = [\"[::]:1\"] }", "\"[::]:1\" is not a peer"),
            ("state.directory = \"/var/my state\"", "state.directory: /var/my state has a character"),
            ("state.directory = \"/var/\\\"state\\\"\"", "state.directory: /var/\"state\" has a character"),
            ("node.addresses = []", "node.addresses: is empty"),
            ("node.addresses = [\"0.0.0.0\"]", "node.addresses: 0.0.0.0 is no address"),
            ("node.addresses = [\"10.0.0.300\"]", "write for instance \"10.0.1.5\""),
            ("node.extra_addresses = [\"::\"]", "node.extra_addresses: :: is no address"),
            ("node.extra_addresses = [\"nats\"]", "node.extra_addresses: \"nats\" is not an IP address"),
            ("node.automatic_names = false", "node.automatic_names: false leaves the certificate without a name"),
            ("node.dns_names = [\"a b\"]", "node.dns_names: \"a b\" is not a host name"),
            ("node.name = \"a b\"", "node.name: \"a b\" must be"),
            ("renewal.at = 1.5", "renewal.at: must lie between"),
            ("renewal.at = nan", "renewal.at: must lie between"),
            ("renewal.retry_min = \"10000y\"", "renewal.retry_max: must not be less"),
            ("renewal.retry_max = \"10000y\"", "renewal.retry_max: must be a day"),
            ("renewal.retry_max = \"1s\"", "renewal.retry_max: must not be less"),
            ("nats.config = \"nats.conf\"", "nats.config: nats.conf is not an absolute path"),
            ("nats.include = [\"auth.conf\"]", "nats.include: auth.conf is not an absolute path"),
            ("nats.template = \"own.tera\"", "nats.template: own.tera is not an absolute path"),
            ("nats.listen = \"0.0.0.0:0\"", "nats.listen: needs a port other than 0"),
            ("nats.cluster_listen = \"10.0.0.1:4222\"", "nats.cluster_listen: 10.0.0.1:4222 is taken by nats.listen"),
            (
                "nats.jetstream = \"yes\"",
                "nats.jetstream: invalid type: string \"yes\", expected true, false or a table",
            ),
            ("nats.jetstream.max_mem = \"1 GB\"", "nats.jetstream.max_mem: \"1 GB\" is not a size"),
            ("nats.jetstream.store = \"/js\"", "nats.jetstream.store: unknown field"),
            ("nats.jetstream.store_dir = \"js\"", "nats.jetstream.store_dir: js is not an absolute path"),
            ("nats.system = \"on\"", "nats.system: \"on\" is not a way to the system account; write \"auto\""),
            (
                "nats.system = true",
                "nats.system: invalid type: boolean `true`, expected \"auto\", \"off\", { creds_file",
            ),
            ("nats.system = {}", "nats.system: names neither creds_file nor secret_id"),
            ("nats.system = { creds_file = \"/a\", secret_id = \"b\" }", "nats.system: names both"),
            ("nats.system = { creds = \"/a\" }", "nats.system.creds: unknown field"),
            ("nats.system.creds_file = \"a\"", "nats.system.creds_file: a is not an absolute path"),
            ("nats.system.secret_id = \"a b\"", "nats.system.secret_id: \"a b\" is not the name"),
            (
                "nats.cluster_secret_id = \"arn:aws:ssm:x\"",
                "nats.cluster_secret_id: \"arn:aws:ssm:x\" is not the ARN of a secret",
            ),
        ];
        for (line, expected) in cases {
            let text = message(&ec2(line));
            assert!(text.contains(expected), "{line}: {text}");
            assert!(text.starts_with("agent.toml:"), "{text}");
        }
        let long = message(&ec2(&format!("control.socket = \"/{}\"", "a".repeat(120))));
        assert_eq!(long, "agent.toml:3: control.socket: is longer than 107 bytes, the longest path of a Unix socket");
    }

    /// A daemon that did not start without the file would renew nothing.
    #[test]
    fn an_included_secret_stands_for_a_file_of_the_state_directory_in_force() {
        let mut nats = parse(&ec2("nats.include = [\"/etc/a.conf\", \"secret:nats/accounts\"]")).unwrap().nats;
        let (file, id) = nats.included_secrets.first_key_value().unwrap();
        assert!(id == "nats/accounts" && file.starts_with("/var/lib/nats-tls-agent/included"), "{}", file.display());
        assert_eq!(nats.include, [Path::new("/etc/a.conf"), file]);
        nats.keep_secrets_in(Path::new("/other"));
        assert!(nats.include[1].starts_with("/other/included") && nats.included_secrets.contains_key(&nats.include[1]));
        for wrong in ["secret:", "secret:a b"] {
            let error = parse(&ec2(&format!("nats.include = [\"{wrong}\"]"))).unwrap_err().to_string();
            assert!(error.contains("nats.include: "), "{error}");
        }
    }

    #[test]
    fn an_include_or_a_template_that_is_missing_is_no_fault_of_the_configuration() {
        let config = parse(&ec2("nats.include = [\"/no/such/file\"]\nnats.template = \"/no/such/file\"")).unwrap();
        assert_eq!(config.nats.template.unwrap(), config.nats.include[0]);
    }

    #[test]
    fn jetstream_is_a_switch_or_a_table() {
        let jetstream = |text: &str| parse(&ec2(text)).unwrap().nats.jetstream;
        assert_eq!(jetstream("nats.jetstream = false"), JetStream::Off);
        assert_eq!(jetstream("nats.jetstream = true"), JetStream::On(JetStreamLimits::default()));
        let max_mem = Some(Size("1GB".to_owned()));
        assert_eq!(
            jetstream("[nats.jetstream]\nmax_mem = \"1GB\""),
            JetStream::On(JetStreamLimits { max_mem, ..JetStreamLimits::default() })
        );
    }

    #[test]
    fn a_size_is_what_nats_server_takes_for_one() {
        let size = |text: &str| Size::try_from(text.to_owned());
        for good in ["0", "1024", "1k", "1GB", "512mib", "100gI", "7P", "7EiB", "9223372036854775807"] {
            assert_eq!(size(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "GB",
            "-1",
            "1 GB",
            "1.5G",
            "1b",
            "1ZB",
            "1kbb",
            "1é",
            "8E1",
            "8EiB",
            "9223372036854775808",
            "99999999TB",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_may_name_the_key_of_its_json() {
        let secret = |id: &str| parse(&format!("issuer.ca_arn = \"{PCA}\"\ntrust.secret_id = \"{id}\""));
        let arn = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:nats/ca-AbCdEf";
        let TrustConfig::SecretsManager { secret_id, json_key } = secret(&format!("{arn}#bundle")).unwrap().trust
        else {
            panic!()
        };
        assert_eq!((secret_id.as_str(), json_key.as_deref()), (arn, Some("bundle")));
        for wrong in ["", "#key", "name#", "a b", PCA] {
            let error = secret(wrong).unwrap_err().to_string();
            assert!(error.starts_with("agent.toml:2: trust.secret_id: "), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_file_that_can_not_be_read_or_is_too_large_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("agent.toml");
        assert!(matches!(Config::load(&file).unwrap_err(), ConfigError::Read { .. }));
        std::fs::write(&file, ec2("")).unwrap();
        Config::load(&file).unwrap();
        std::fs::write(&file, "#".repeat(1024 * 1024 + 1)).unwrap();
        assert!(matches!(Config::load(&file).unwrap_err(), ConfigError::TooLarge { .. }));
        // A read of either file never ends.
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for endless in [pipe.as_path(), Path::new("/dev/zero")] {
            assert!(matches!(Config::load(endless).unwrap_err(), ConfigError::Read { .. }));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(?s).{0,200}") {
            prop_assert!(parse(&text).is_err());
        }

        #[test]
        fn arbitrary_values_never_panic(key in "[a-z]{1,9}\\.[a-z_]{1,9}", value in "[\"'\\[\\]{}=,.0-9a-z \n#]{0,30}") {
            let _either = parse(&ec2(&format!("{key} = {value}")));
        }

        #[test]
        fn altered_text_never_panics(position in any::<prop::sample::Index>(), with in any::<char>()) {
            let text = ec2("[nats]\nlisten = \"0.0.0.0:4222\"\njetstream = { max_mem = \"1GB\" }\n");
            let mut characters: Vec<char> = text.chars().collect();
            let position = position.index(characters.len());
            characters[position] = with;
            let _either = parse(&characters.into_iter().collect::<String>());
        }
    }
}
