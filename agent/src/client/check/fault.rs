//! What keeps a service from connecting: each fault with its code and its remedy, and how a failure becomes a fault.

use std::io;

use rustls::{AlertDescription, CertificateError};

use super::Presented;
use crate::error::with_causes;

/// The port of routes in this project's configuration and in nats-server's own examples.
const ROUTE_PORT: u16 = 6222;

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
    NoAnswer = "no_answer", "check security groups, routes, the address, and the load of that machine";
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

/// A fault and its cause.
pub(super) type Failed = (Fault, String);

/// What a full nats-server says with `-ERR` (`server/errors.go`, 2.10 to 2.15).
const FULL: [&str; 3] = ["maximum connections", "maximum account active connections", "connection throttling"];

/// What a nats-server says with `-ERR` (`server/errors.go`, 2.10 to 2.15).
pub(super) fn refused(said: &str) -> Failed {
    let lower = said.to_ascii_lowercase();
    let fault = match () {
        () if lower.contains("authorization") || lower.contains("authentication") => Fault::Authorization,
        () if FULL.iter().any(|words| lower.contains(words)) => Fault::Full,
        () => Fault::Closed,
    };
    (fault, format!("nats-server says: {said}"))
}

/// A handshake or a read that failed on a port that speaks TLS to clients.
pub(super) fn tls_failed(error: &io::Error, presented: &Presented) -> Failed {
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
pub(super) fn silent_failed(error: &io::Error, port: u16, presented: &Presented) -> Failed {
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

/// Whether a handshake failed because the server speaks without TLS.
pub(super) fn is_in_the_clear(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidMessage(_)))
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
