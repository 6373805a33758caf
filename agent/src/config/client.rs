//! client.toml: the configuration of `agent client` on a service's machine.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;

use super::{
    CaArn, ConfigError, InvalidKey, MAX_PAUSE, MAX_VALIDITY, MIN_VALIDITY, absolute, check_name, check_secret_id,
    duration, invalid, parse_and_check, text_of,
};
use crate::x509::csr::KeyAlgorithm;
use crate::x509::san::{DnsName, Sans};

/// The configuration file that is read without `--config`.
pub const DEFAULT_PATH: &str = "/etc/nats-tls-agent/client.toml";

/// The symlink in the directory that names the files in force.
pub(crate) const CURRENT: &str = "current";

/// The longest URI of a certificate: the limit of SPIFFE
/// (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>).
const MAX_URI: usize = 2048;

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where the connection document comes from.
    pub source: DocumentSource,
    /// The AWS Region of the secret. `None`: as the SDK finds it.
    pub region: Option<String>,
    /// The directory of the files that a service reads.
    pub directory: PathBuf,
    /// The interval between two looks.
    pub interval: Duration,
    /// What happens after a change.
    pub on_change: Option<OnChange>,
    /// The certificate that is made here and renewed, if the service needs one.
    pub certificate: Option<CertificateConfig>,
    /// How the service logs in. `agent client check` tries it, and context.json names it.
    pub login: Login,
    /// The address on which `agent client run` serves metrics, if any.
    pub metrics_listen: Option<SocketAddr>,
}

/// `[client.certificate]`: a key that is made here, and a certificate of PCA.
#[derive(Clone, Debug)]
pub struct CertificateConfig {
    /// The CA that signs.
    pub ca_arn: CaArn,
    /// The ARN of the template.
    pub template_arn: String,
    /// The common name. It spreads renewals too.
    pub name: String,
    /// The names and URIs in the certificate.
    pub sans: Sans,
    /// The lifetime that is requested.
    pub validity: Duration,
    /// The algorithm of the key.
    pub key_algorithm: KeyAlgorithm,
}

/// Where the connection document comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentSource {
    /// A secret, by name or ARN.
    Secret(String),
    /// A file of the same content.
    File(PathBuf),
}

/// What happens after a change, and how long it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnChange {
    /// What is done.
    pub action: Action,
    /// The limit of its time.
    pub timeout: Duration,
}

/// What is done after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A signal to the process in a pid file.
    Signal {
        /// The file.
        pid_file: PathBuf,
        /// The signal.
        signal: Signal,
    },
    /// `systemctl reload` of a unit.
    Reload(String),
    /// A command, without a shell: the program and its arguments.
    Command(Vec<String>),
}

/// The login and the certificate of the service, as far as files hold them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Login {
    /// A file with the JWT and the seed of a user.
    pub creds_file: Option<PathBuf>,
    /// A user name.
    pub user: Option<String>,
    /// The file of the user's password.
    pub password_file: Option<PathBuf>,
    /// The service's certificate in PEM, where clients need a certificate.
    pub cert_file: Option<PathBuf>,
    /// The key of the certificate, PKCS#8 in PEM.
    pub key_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClientConfig {
    #[serde(default)]
    connection: RawSource,
    #[serde(default)]
    client: RawClient,
    #[serde(default)]
    login: Login,
    #[serde(default)]
    metrics: RawMetrics,
}

/// Off by default: a machine may have the agents of several services, and each agent needs a port of its own.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawMetrics {
    listen: Option<SocketAddr>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSource {
    secret_id: Option<String>,
    file: Option<PathBuf>,
    region: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawClient {
    directory: PathBuf,
    #[serde(deserialize_with = "duration")]
    interval: Duration,
    on_change: Option<RawOnChange>,
    certificate: Option<RawCertificate>,
}

impl Default for RawClient {
    fn default() -> Self {
        let directory = "/var/lib/nats-tls-client".into();
        Self { directory, interval: Duration::from_mins(1), on_change: None, certificate: None }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCertificate {
    ca_arn: String,
    template_arn: Option<String>,
    name: String,
    #[serde(default)]
    dns_names: BTreeSet<DnsName>,
    #[serde(default)]
    uris: BTreeSet<String>,
    #[serde(default = "a_week", deserialize_with = "duration")]
    validity: Duration,
    #[serde(default)]
    key_algorithm: KeyAlgorithm,
}

fn a_week() -> Duration {
    Duration::from_hours(7 * 24)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOnChange {
    pid_file: Option<PathBuf>,
    signal: Option<String>,
    reload: Option<String>,
    command: Option<Vec<String>>,
    #[serde(default = "half_a_minute", deserialize_with = "duration")]
    timeout: Duration,
}

fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}

impl ClientConfig {
    /// Reads and checks the file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&text_of(file)?, file)
    }

    /// Checks the text. `file` only appears in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        parse_and_check(text, file, RawClientConfig::check)
    }
}

impl RawClientConfig {
    fn check(self) -> Result<ClientConfig, InvalidKey> {
        let RawSource { secret_id, file, region } = self.connection;
        let source = match (secret_id, file) {
            (Some(id), None) => {
                check_secret_id("connection.secret_id", &id)?;
                DocumentSource::Secret(id)
            }
            (None, Some(file)) => DocumentSource::File(absolute("connection.file", file)?),
            (None, None) => {
                let what = "is missing; name the secret that the agents of the group keep, or connection.file";
                return Err(invalid("connection.secret_id", what));
            }
            (Some(_), Some(_)) => {
                return Err(invalid("connection.file", "stands beside connection.secret_id; remove one of them"));
            }
        };
        let RawClient { directory, interval, on_change, certificate } = self.client;
        if interval < Duration::from_secs(1) || interval > MAX_PAUSE {
            return Err(invalid("client.interval", "must lie between 1s and a day"));
        }
        let directory = absolute("client.directory", directory)?;
        let certificate = certificate.map(RawCertificate::check).transpose()?;
        let mut login = self.login.check()?;
        if certificate.is_some() {
            if login.cert_file.is_some() {
                return Err(invalid("login.cert_file", "stands beside [client.certificate]; remove one of them"));
            }
            let current = directory.join(CURRENT);
            (login.cert_file, login.key_file) = (Some(current.join("cert.pem")), Some(current.join("key.pem")));
        }
        let on_change = on_change.map(RawOnChange::check).transpose()?;
        let metrics_listen = self.metrics.listen;
        Ok(ClientConfig { source, region, directory, interval, on_change, certificate, login, metrics_listen })
    }
}

impl RawCertificate {
    fn check(self) -> Result<CertificateConfig, InvalidKey> {
        let ca_arn = CaArn::try_from(self.ca_arn).map_err(|message| invalid("client.certificate.ca_arn", message))?;
        let prefix = format!("arn:{}:acm-pca:::template/", ca_arn.partition());
        let template_arn = self.template_arn.unwrap_or_else(|| format!("{prefix}EndEntityClientAuthCertificate/V1"));
        if !template_arn.starts_with(&prefix) {
            return Err(invalid("client.certificate.template_arn", format!("must begin with {prefix:?}")));
        }
        check_name("client.certificate.name", &self.name)?;
        let is_uri = |uri: &String| {
            uri.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty())
                && uri.len() <= MAX_URI
                && uri.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if let Some(uri) = self.uris.iter().find(|uri| !is_uri(uri)) {
            let what = format!("{uri:?} is no URI; write for instance \"spiffe://prod/app\"");
            return Err(invalid("client.certificate.uris", what));
        }
        if self.validity < MIN_VALIDITY || self.validity > MAX_VALIDITY {
            return Err(invalid("client.certificate.validity", "must lie between 30s and ten years"));
        }
        Ok(CertificateConfig {
            ca_arn,
            template_arn,
            name: self.name,
            sans: Sans { dns: self.dns_names, uris: self.uris, ..Sans::default() },
            validity: self.validity,
            key_algorithm: self.key_algorithm,
        })
    }
}

impl RawOnChange {
    fn check(self) -> Result<OnChange, InvalidKey> {
        let Self { pid_file, signal, reload, command, timeout } = self;
        if timeout < Duration::from_secs(1) || timeout > Duration::from_mins(10) {
            return Err(invalid("client.on_change.timeout", "must lie between 1s and 10m"));
        }
        let action = match (pid_file, signal, reload, command) {
            (Some(pid_file), signal, None, None) => Action::Signal {
                pid_file: absolute("client.on_change.pid_file", pid_file)?,
                signal: signal.as_deref().map_or(Ok(Signal::SIGHUP), named_signal)?,
            },
            (None, None, Some(unit), None) => Action::Reload(checked_unit(unit)?),
            (None, None, None, Some(command)) if command.first().is_some_and(|program| !program.is_empty()) => {
                Action::Command(command)
            }
            _ => {
                let what = "has one of three forms: { pid_file = \"…\", signal = \"HUP\" }, { reload = \"app.service\" }, or \
                            { command = [\"/usr/bin/app\", \"reload\"] }";
                return Err(invalid("client.on_change", what));
            }
        };
        Ok(OnChange { action, timeout })
    }
}

/// A signal by its name, with or without `SIG`. A signal that ends a process at once is no signal to reload.
fn named_signal(name: &str) -> Result<Signal, InvalidKey> {
    match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => Ok(Signal::SIGHUP),
        "USR1" => Ok(Signal::SIGUSR1),
        "USR2" => Ok(Signal::SIGUSR2),
        "TERM" => Ok(Signal::SIGTERM),
        _ => Err(invalid("client.on_change.signal", format!("{name:?} is not one of HUP, USR1, USR2 and TERM"))),
    }
}

/// A unit's name must not look like an option of systemctl.
fn checked_unit(unit: String) -> Result<String, InvalidKey> {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if unit.is_empty() || unit.starts_with('-') || !unit.chars().all(is_fit) {
        return Err(invalid(
            "client.on_change.reload",
            format!("{unit:?} is no name of a unit, such as \"app.service\""),
        ));
    }
    Ok(unit)
}

impl Login {
    fn check(self) -> Result<Self, InvalidKey> {
        let files = [
            ("login.creds_file", &self.creds_file),
            ("login.password_file", &self.password_file),
            ("login.cert_file", &self.cert_file),
            ("login.key_file", &self.key_file),
        ];
        for (key, file) in files {
            if let Some(file) = file {
                absolute(key, file.clone())?;
            }
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Err(invalid("login.user", "and login.password_file belong together; give both or none"));
        }
        if self.user.is_some() && self.creds_file.is_some() {
            return Err(invalid("login.creds_file", "stands beside login.user; remove one of them"));
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(invalid("login.cert_file", "and login.key_file belong together; give both or none"));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ClientConfig, String> {
        ClientConfig::parse(text, Path::new("client.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn one_key_is_enough() {
        let config = parse("connection.secret_id = \"nats/connection\"").unwrap();
        assert_eq!(config.source, DocumentSource::Secret("nats/connection".into()));
        assert_eq!(
            (config.directory.to_str(), config.interval),
            (Some("/var/lib/nats-tls-client"), Duration::from_mins(1))
        );
        assert!(config.on_change.is_none() && config.login == Login::default() && config.metrics_listen.is_none());
    }

    #[test]
    fn on_change_has_one_of_three_forms() {
        let on_change = |value: &str| {
            parse(&format!("connection.file = \"/c.json\"\n[client]\non_change = {value}"))
                .map(|config| config.on_change.unwrap())
        };
        let signal = Action::Signal { pid_file: "/run/app.pid".into(), signal: Signal::SIGUSR1 };
        assert_eq!(on_change("{ pid_file = \"/run/app.pid\", signal = \"SIGUSR1\" }").unwrap().action, signal);
        assert_eq!(on_change("{ reload = \"app.service\" }").unwrap().action, Action::Reload("app.service".into()));
        let command = on_change("{ command = [\"/usr/bin/app\", \"reload\"], timeout = \"5s\" }").unwrap();
        assert_eq!(command.timeout, Duration::from_secs(5));
        assert_eq!(command.action, Action::Command(vec!["/usr/bin/app".into(), "reload".into()]));
        for (wrong, key) in [
            ("{}", "client.on_change"),
            ("{ command = [] }", "client.on_change"),
            ("{ reload = \"a\", command = [\"b\"] }", "client.on_change"),
            ("{ reload = \"--now\" }", "client.on_change.reload"),
            ("{ pid_file = \"/a\", signal = \"KILL\" }", "client.on_change.signal"),
            ("{ pid_file = \"a\" }", "client.on_change.pid_file"),
            ("{ command = [\"a\"], timeout = \"1h\" }", "client.on_change.timeout"),
        ] {
            let error = on_change(wrong).unwrap_err();
            assert!(error.starts_with(&format!("client.toml:3: {key}: ")), "{error}");
        }
    }

    #[test]
    fn a_certificate_has_names_and_the_template_of_clients() {
        let arn = "arn:aws-cn:acm-pca:cn-north-1:111122223333:certificate-authority/1";
        let with = |rest: &str| {
            let certificate = format!("[client.certificate]\nca_arn = \"{arn}\"\nname = \"app\"\n{rest}");
            parse(&format!("connection.file = \"/c\"\n{certificate}"))
        };
        let config = with("uris = [\"spiffe://prod/app\"]\ndns_names = [\"app.internal\"]").unwrap();
        let certificate = config.certificate.unwrap();
        assert_eq!(certificate.template_arn, "arn:aws-cn:acm-pca:::template/EndEntityClientAuthCertificate/V1");
        assert!(certificate.sans.uris.contains("spiffe://prod/app") && certificate.sans.dns.len() == 1);
        assert_eq!(config.login.cert_file, Some("/var/lib/nats-tls-client/current/cert.pem".into()));
        for (wrong, key) in [
            ("uris = [\"app\"]", "client.certificate.uris"),
            ("validity = \"1s\"", "client.certificate.validity"),
            (
                "template_arn = \"arn:aws:acm-pca:::template/EndEntityCertificate/V1\"",
                "client.certificate.template_arn",
            ),
            ("[login]\ncert_file = \"/a\"\nkey_file = \"/b\"", "login.cert_file: stands beside [client.certificate]"),
        ] {
            let error = with(wrong).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_key() {
        for (text, key) in [
            ("", "connection.secret_id: is missing"),
            ("connection = { secret_id = \"a\", file = \"/b\" }", "connection.file: stands beside"),
            ("connection.file = \"b\"", "connection.file: b is not an absolute path"),
            ("connection.file = \"/b\"\nclient.interval = \"10ms\"", "client.interval: must lie"),
            ("connection.file = \"/b\"\nlogin.user = \"a\"", "login.user: and login.password_file belong together"),
            (
                "connection.file = \"/b\"\nlogin.cert_file = \"/a\"",
                "login.cert_file: and login.key_file belong together",
            ),
            ("connection.file = \"/b\"\nclient.intervall = \"1s\"", "unknown field `intervall`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }
}
