//! Whether a service can connect: each URL of the document is resolved, dialled, verified and logged in to.
//!
//! What goes wrong has a [`Fault`], and the fault has a code and a remedy.

mod login;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use self::login::Credentials;
use self::wire::{Info, Line, Lines};
use crate::config::client::Login;
use crate::connection::Document;
use crate::error::with_causes;
use crate::state::durable::{self, FileError};
use crate::x509::chain::Chain;
use crate::x509::csr::PrivateKeyPem;

/// The port of a NATS server where a URL has none.
const DEFAULT_PORT: u16 = 4222;
/// The port of routes in this project's configuration and in nats-server's own examples.
const ROUTE_PORT: u16 = 6222;
/// How long a URL may take in all.
const IN_ALL: Duration = Duration::from_secs(15);
/// How long a name or a connection may take.
const CONNECT: Duration = Duration::from_secs(4);
/// How long a server may take to speak. nats-server greets within milliseconds, and ports that begin with TLS stay silent.
/// nats-server ends a silent connection after two seconds.
const GREETING: Duration = Duration::from_millis(1500);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The most addresses of a name that are dialled.
const MOST_ADDRESSES: usize = 8;
/// The largest key or certificate file, in bytes.
const MAX_FILE: u64 = 256 * 1024;

/// How far a check goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To the certificate of the server.
    Server,
    /// To the login.
    Login,
}

macro_rules! faults {
    ($($(#[$doc:meta])+ $name:ident = $code:literal, $remedy:literal;)+) => {
        /// What keeps a service from connecting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($(#[$doc])+ $name,)+ }

        impl Fault {
            /// Every fault.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable code.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// What to do.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)+ }
            }
        }
    };
}

faults! {
    /// The text is no URL of a NATS server.
    NoUrl = "no_url", "write tls://HOST:PORT in connection.urls of the nodes";
    /// The name has no address.
    NoResolve = "no_resolve", "check the name, this machine's resolver and the private zone of the VPC";
    /// Nobody listens at the address.
    Refused = "connection_refused", "check the port, and that nats-server runs there";
    /// The address doesn't answer.
    NoAnswer = "no_answer", "check security groups, routes and the address";
    /// The server offers no TLS.
    NotTls = "not_tls", "this nats-server has no TLS: the server is no node of this cluster, or its configuration lost the tls block";
    /// Something other than a NATS server answers.
    NotNats = "not_nats", "check the port: clients connect to the port of nats.listen, 4222 by default";
    /// The port belongs to routes between servers.
    RoutePort = "route_port", "this is the port of routes between servers: use the port of nats.listen, 4222 by default";
    /// No CA of the document signed the certificate.
    UnknownCa = "unknown_ca", "compare NATS_CA of the document with the CA of the server: another cluster answers, or the document is old";
    /// The certificate doesn't have the name that was dialled.
    WrongName = "wrong_name", "dial a name of the certificate, or add this name to node.dns_names";
    /// The certificate has ended.
    Expired = "expired", "see `agent status` on that node, and set this machine's clock if the clock is ahead";
    /// The certificate's time has not begun.
    NotYetValid = "not_yet_valid", "set this machine's clock, which is behind";
    /// The server wants a certificate of the client, and gets none.
    CertificateRequired = "certificate_required", "give the service a certificate: [client.certificate], or login.cert_file and login.key_file";
    /// The server refuses the client's certificate.
    CertificateRefused = "certificate_refused", "use a certificate of the cluster's CA that has not ended and has the usage clientAuth";
    /// The certificate or the key of the service can't be used.
    CertificateUnusable = "certificate_unusable", "correct login.cert_file and login.key_file; `agent client fetch` makes the certificate of [client.certificate]";
    /// The credentials of the service can't be used.
    CredentialsUnusable = "credentials_unusable", "correct the files under [login]";
    /// The server refuses the login.
    Authorization = "authorization", "check user, password or credentials under [login] against the accounts of the cluster";
    /// The server takes no further client.
    Full = "server_full", "raise max_connections of nats-server, or add a node";
    /// TLS fails for another reason.
    TlsFailed = "tls_failed", "see the cause; `agent doctor` on the node checks the same port";
    /// The server closed the connection.
    Closed = "closed", "see the log of nats-server at this time";
}

impl Fault {
    /// Whether the fault shows that another CA signed the server's certificate.
    #[must_use]
    pub(crate) fn speaks_against_ca(self) -> bool {
        self == Self::UnknownCa
    }
}

/// What the check of a URL found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The URL.
    pub url: String,
    /// The address that answered.
    pub address: Option<SocketAddr>,
    /// `None`: a service can connect.
    pub fault: Option<Fault>,
    /// What was found, with the cause.
    pub found: String,
}

impl Serialize for Finding {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::json!({
            "url": self.url,
            "address": self.address,
            "verdict": if self.fault.is_some() { "failed" } else { "ok" },
            "code": self.fault.map(Fault::code),
            "found": self.found,
            "remedy": self.fault.map(Fault::remedy),
        })
        .serialize(serializer)
    }
}

/// A fault and its cause.
type Failed = (Fault, String);

/// Why there is nothing to present to a server.
#[derive(Debug, thiserror::Error)]
pub enum Unpresentable {
    /// The document has no usable bundle.
    #[error("the connection document holds no usable trust bundle under NATS_CA")]
    Bundle,
    /// The certificate or the key of the service can't be used.
    #[error("{0}")]
    Certificate(String),
    /// The credentials can't be used.
    #[error("{0}")]
    Credentials(String),
}

impl Unpresentable {
    /// The fault of each URL.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Bundle => Fault::UnknownCa,
            Self::Certificate(_) => Fault::CertificateUnusable,
            Self::Credentials(_) => Fault::CredentialsUnusable,
        }
    }
}

/// What a service trusts and presents.
pub struct Presented {
    connector: TlsConnector,
    credentials: Credentials,
    has_certificate: bool,
    needs_certificate: bool,
}

impl Presented {
    /// Reads the files of the login.
    pub fn of(document: &Document, login: &Login) -> Result<Self, Unpresentable> {
        let bundle = document.bundle().ok_or(Unpresentable::Bundle)?;
        let mut roots = RootCertStore::empty();
        for anchor in &bundle.anchors {
            roots.add(CertificateDer::from(anchor.der.clone())).map_err(|_| Unpresentable::Bundle)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|_| Unpresentable::Bundle)?.with_root_certificates(roots);
        let config = match (&login.cert_file, &login.key_file) {
            (Some(cert), Some(key)) => {
                let unusable = |what: String| Unpresentable::Certificate(what);
                let chain = Chain::from_pem(&file(cert).map_err(|error| unusable(with_causes(&error)))?);
                let chain = chain.map_err(|error| unusable(format!("{}: {}", cert.display(), with_causes(&error))))?;
                let text = String::from_utf8(file(key).map_err(|error| unusable(with_causes(&error)))?);
                let key_der = text.ok().and_then(|text| PrivateKeyPem::new(text.into()).to_der());
                let key_der = key_der.ok_or_else(|| unusable(format!("{} is no PKCS#8 key in PEM", key.display())))?;
                let certificates = chain.certificates().cloned().collect();
                config.with_client_auth_cert(certificates, key_der).map_err(|error| unusable(with_causes(&error)))?
            }
            _ => config.with_no_client_auth(),
        };
        Ok(Self {
            connector: Arc::new(config).into(),
            credentials: Credentials::read(login).map_err(Unpresentable::Credentials)?,
            has_certificate: login.cert_file.is_some(),
            needs_certificate: document.needs_certificate(),
        })
    }
}

fn file(path: &std::path::Path) -> Result<Vec<u8>, FileError> {
    let missing = || FileError::on("read", path)(io::ErrorKind::NotFound.into());
    durable::read_if_there(path, MAX_FILE)?.ok_or_else(missing)
}

/// Checks one URL. The check takes 15 seconds at most.
pub async fn check(url: &str, presented: &Presented, scope: Scope) -> Finding {
    let mut address = None;
    let tried = tokio::time::timeout(IN_ALL, attempt(url, presented, scope, &mut address)).await;
    let tried = tried.unwrap_or_else(|_| Err((Fault::NoAnswer, format!("no result within {} s", IN_ALL.as_secs()))));
    let (fault, found) = match tried {
        Ok(found) => (None, found),
        Err((fault, found)) => (Some(fault), found),
    };
    Finding { url: url.to_owned(), address, fault, found }
}

/// The scheme, the host and the port of a URL.
fn parts(url: &str) -> Option<(&str, &str, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let rest = rest.trim_end_matches('/');
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(DEFAULT_PORT), |port| port.parse().ok())?;
    (!host.is_empty()).then_some((scheme, host, port))
}

async fn attempt(
    url: &str,
    presented: &Presented,
    scope: Scope,
    address: &mut Option<SocketAddr>,
) -> Result<String, Failed> {
    let (scheme, host, port) = parts(url).ok_or_else(|| (Fault::NoUrl, "the text is no URL".to_owned()))?;
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|error| (Fault::NoUrl, format!("{host:?} can't be the name of a server: {error}")))?;
    let stream = connect(host, port, address).await?;
    if scheme == "wss" {
        drop(handshake(name, stream, presented).await?.map_err(|error| tls_failed(&error, presented))?);
        return Ok("its certificate is verified; a login over WebSocket isn't tried".into());
    }
    let mut lines = Lines::over(stream);
    let info = match tokio::time::timeout(GREETING, lines.next()).await {
        Ok(Ok(Some(line))) => Some(greeted(&line)?),
        Ok(Err(error)) => return Err((Fault::Closed, with_causes(&error))),
        // A port that begins with TLS waits for the client: a port of routes, or a client port with handshake_first.
        Ok(Ok(None)) | Err(_) => None,
    };
    if let Some(said) = lines.buffered_error() {
        return Err(refused(&said));
    }
    let stream = match &info {
        Some(_) => lines.into_inner(),
        // nats-server may end the silent connection at any moment, so TLS begins on another connection.
        None => connect(host, port, address).await?,
    };
    let stream = match (handshake(name, stream, presented).await?, &info) {
        (Ok(stream), _) => stream,
        (Err(error), Some(_)) => return Err(tls_failed(&error, presented)),
        (Err(error), None) => return Err(silent_failed(&error, port, presented)),
    };
    if scope == Scope::Server {
        return Ok("its certificate is verified".into());
    }
    let mut lines = Lines::over(stream);
    let info = match info {
        Some(info) => info,
        None => greeted_after_tls(&mut lines, port, presented).await?,
    };
    log_in(&mut lines, &info, presented).await
}

/// A handshake, which fails with a fault of its own where it takes too long.
async fn handshake(
    name: ServerName<'static>,
    stream: TcpStream,
    presented: &Presented,
) -> Result<io::Result<tokio_rustls::client::TlsStream<TcpStream>>, Failed> {
    let tried = tokio::time::timeout(HANDSHAKE, presented.connector.connect(name, stream)).await;
    tried.map_err(|_| {
        (Fault::NoAnswer, format!("it says nothing, and no TLS handshake ends within {} s", HANDSHAKE.as_secs()))
    })
}

/// Dials the addresses of a name, one after another.
async fn connect(host: &str, port: u16, address: &mut Option<SocketAddr>) -> Result<TcpStream, Failed> {
    let addresses = tokio::time::timeout(CONNECT, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<_> = match addresses {
        Ok(Ok(addresses)) => addresses.take(MOST_ADDRESSES).collect(),
        Ok(Err(error)) => return Err((Fault::NoResolve, format!("{host} doesn't resolve: {error}"))),
        Err(_) => return Err((Fault::NoResolve, format!("{host} doesn't resolve within {} s", CONNECT.as_secs()))),
    };
    let mut failed = (Fault::NoResolve, format!("{host} has no address"));
    for candidate in addresses {
        *address = Some(candidate);
        failed = match tokio::time::timeout(CONNECT, TcpStream::connect(candidate)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                (Fault::Refused, format!("nobody listens at {candidate}"))
            }
            Ok(Err(error)) => (Fault::NoAnswer, format!("could not connect to {candidate}: {error}")),
            Err(_) => (Fault::NoAnswer, format!("{candidate} doesn't answer within {} s", CONNECT.as_secs())),
        };
    }
    Err(failed)
}

/// The greeting in the clear.
fn greeted(line: &Line) -> Result<Info, Failed> {
    match line {
        Line::Info(info) if info.offers_tls() => Ok(info.clone()),
        Line::Info(_) => Err((Fault::NotTls, "it is a nats-server that offers no TLS on this port".into())),
        Line::Error(said) => Err(refused(said)),
        Line::Pong | Line::Other => Err((Fault::NotNats, "what speaks there is no nats-server".into())),
    }
}

/// The greeting after TLS, on a port that was silent before. A port of routes sends an INFO without a client's id.
async fn greeted_after_tls(
    lines: &mut Lines<tokio_rustls::client::TlsStream<TcpStream>>,
    port: u16,
    presented: &Presented,
) -> Result<Info, Failed> {
    match tokio::time::timeout(GREETING, lines.next()).await {
        Ok(Ok(Some(Line::Info(info)))) if info.is_for_clients() => Ok(info),
        Ok(Ok(Some(Line::Info(_)))) => Err((Fault::RoutePort, "it greets as servers greet each other".into())),
        Ok(Ok(Some(Line::Error(said)))) => Err(refused(&said)),
        Ok(Err(error)) => Err(silent_failed(&error, port, presented)),
        Ok(Ok(_)) | Err(_) => Err((Fault::NotNats, "it has TLS, and doesn't greet as a nats-server".into())),
    }
}

async fn log_in(
    lines: &mut Lines<tokio_rustls::client::TlsStream<TcpStream>>,
    info: &Info,
    presented: &Presented,
) -> Result<String, Failed> {
    let connect = presented.credentials.connect(info).map_err(|what| (Fault::CredentialsUnusable, what))?;
    let words = Zeroizing::new(format!("CONNECT {}\r\nPING\r\n", connect.as_str()));
    let sent = lines.get_mut().write_all(words.as_bytes()).await;
    sent.map_err(|error| tls_failed(&error, presented))?;
    loop {
        match lines.next().await {
            Ok(Some(Line::Pong)) => return Ok(format!("{} {} takes the login", info.server_name, info.version)),
            Ok(Some(Line::Error(said))) => return Err(refused(&said)),
            Ok(Some(Line::Info(_) | Line::Other)) => {}
            Ok(None) => return Err((Fault::Closed, "it closes the connection after the login".into())),
            Err(error) => return Err(tls_failed(&error, presented)),
        }
    }
}

/// What a full nats-server says with `-ERR` (`server/errors.go`, 2.10 to 2.15).
const FULL: [&str; 3] = ["maximum connections", "maximum account active connections", "connection throttling"];

/// What a nats-server says with `-ERR` (`server/errors.go`, 2.10 to 2.15).
fn refused(said: &str) -> Failed {
    let lower = said.to_ascii_lowercase();
    let fault = match () {
        () if lower.contains("authorization") || lower.contains("authentication") => Fault::Authorization,
        () if FULL.iter().any(|words| lower.contains(words)) => Fault::Full,
        () => Fault::Closed,
    };
    (fault, format!("nats-server says: {said}"))
}

/// A handshake or a read that failed on a port that speaks TLS to clients.
fn tls_failed(error: &io::Error, presented: &Presented) -> Failed {
    let words = with_causes(error);
    let fault = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(refused)) => of_certificate(refused),
        Some(rustls::Error::AlertReceived(alert)) if is_about_certificate(*alert) => {
            if presented.has_certificate {
                Fault::CertificateRefused
            } else {
                Fault::CertificateRequired
            }
        }
        Some(rustls::Error::InvalidMessage(_)) => Fault::NotNats,
        Some(_) => Fault::TlsFailed,
        None => Fault::Closed,
    };
    (fault, words)
}

/// A failure on a port that was silent before TLS. A port that asks for a certificate is a port of routes, where clients need
/// no certificate or the number is [`ROUTE_PORT`].
fn silent_failed(error: &io::Error, port: u16, presented: &Presented) -> Failed {
    let (fault, words) = tls_failed(error, presented);
    let asks = matches!(fault, Fault::CertificateRequired | Fault::CertificateRefused);
    if asks && (!presented.needs_certificate || port == ROUTE_PORT) {
        return (
            Fault::RoutePort,
            format!("it is silent until TLS, and asks for the certificate of a server ({words})"),
        );
    }
    match fault {
        Fault::Closed => (Fault::NotNats, format!("it says nothing, and has no TLS ({words})")),
        fault => (fault, words),
    }
}

fn of_certificate(refused: &CertificateError) -> Fault {
    match refused {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Fault::UnknownCa,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Fault::WrongName,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Fault::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Fault::NotYetValid,
        _ => Fault::TlsFailed,
    }
}

/// The alerts by which a server refuses the certificate of a client, or the lack of a certificate: RFC 8446, section 6.2. With
/// TLS 1.2 Go sends `bad_certificate` for both.
fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_fault_has_a_code_and_a_remedy_of_its_own() {
        let codes: BTreeSet<_> = Fault::ALL.iter().map(|fault| fault.code()).collect();
        let remedies: BTreeSet<_> = Fault::ALL.iter().map(|fault| fault.remedy()).collect();
        assert_eq!((codes.len(), remedies.len()), (Fault::ALL.len(), Fault::ALL.len()));
    }

    #[test]
    fn a_url_has_a_scheme_a_host_and_a_port() {
        assert_eq!(parts("tls://nats.internal:4333"), Some(("tls", "nats.internal", 4333)));
        assert_eq!(parts("nats://10.0.1.5"), Some(("nats", "10.0.1.5", 4222)));
        assert_eq!(parts("tls://[fd00::1]:4333"), Some(("tls", "fd00::1", 4333)));
        for wrong in ["nats.internal:4222", "tls://", "tls://a:b", "tls://a:99999"] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_words_of_nats_server_are_a_fault() {
        for (said, fault) in [
            ("Authorization Violation", Fault::Authorization),
            ("User Authentication Expired", Fault::Authorization),
            ("maximum connections exceeded", Fault::Full),
            ("maximum account active connections exceeded", Fault::Full),
            ("Stale Connection", Fault::Closed),
        ] {
            assert_eq!(refused(said).0, fault, "{said}");
        }
    }
}
