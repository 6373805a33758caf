//! Whether a service can connect: each URL of the document is resolved, dialled, verified and logged in to.
//!
//! What goes wrong has a [`Fault`], and the fault has a code and a remedy.

mod attempt;
mod fault;
mod login;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use tokio_rustls::TlsConnector;

use self::attempt::attempt;
pub use self::fault::Fault;
use self::login::Credentials;
use crate::config::client::Login;
use crate::connection::Document;
use crate::error::with_causes;
use crate::state::durable::{self, FileError};
use crate::x509::chain::Chain;
use crate::x509::csr::PrivateKeyPem;

/// How long a URL may take in all.
const IN_ALL: Duration = Duration::from_secs(15);
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

/// What a server says about the document by which a client dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// A client verifies the server by the document.
    For,
    /// The server answers, and a client refuses its certificate.
    Against,
    /// The server says nothing about the document.
    Nothing,
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

impl Finding {
    /// What the server says about the document. A server shows its own certificate, and asks for the client's. The
    /// client verifies the server's certificate first (RFC 8446, 4.4; RFC 5246, 7.3).
    pub(crate) fn evidence(&self) -> Evidence {
        match self.fault {
            None | Some(Fault::CertificateRequired | Fault::CertificateRefused) => Evidence::For,
            Some(Fault::UnknownCa | Fault::WrongName) => Evidence::Against,
            Some(_) => Evidence::Nothing,
        }
    }
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
