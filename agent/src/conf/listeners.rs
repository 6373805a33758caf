//! The addresses on which a nats-server with a given configuration listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::loss::{Certificate, Facts, certificate_of};
use super::tree::{Map, Value};
use super::trial::{Endpoint, Listener, block, endpoints, find};
use crate::config::NatsConfig;

/// The addresses at which nats-server can be dialled from this machine, and its pid file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// The client listener.
    pub client: SocketAddr,
    /// The route listener.
    pub route: SocketAddr,
    /// The monitoring listener.
    pub monitor: Monitor,
    /// Whether the client listener begins TLS at once (`handshake_first`).
    pub client_is_tls_first: bool,
    /// Whether nats-server throttles new connections of clients (`connection_rate_limit`).
    pub client_is_throttled: bool,
    /// The other listeners with TLS.
    pub others: Vec<TlsListener>,
    /// The path of the pid file.
    pub pid_file: PathBuf,
}

/// A listener with TLS beside the client and the route listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsListener {
    /// What listens.
    pub listener: Listener,
    /// `host:port`, as this machine can dial it. The host may be a name.
    pub address: String,
    /// Whose certificate it serves.
    pub certificate: Certificate,
    /// Whether TLS begins at once where nats-server would greet first (`handshake_first`).
    pub is_tls_first: bool,
}

/// Where and how monitoring answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// The address.
    pub address: SocketAddr,
    /// `None`: without TLS.
    pub tls: Option<MonitorTls>,
}

/// TLS of monitoring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorTls {
    /// The file of the certificate. `None`: the configuration names a list of certificates.
    pub cert_file: Option<PathBuf>,
}

impl Listeners {
    /// Reads the listeners from a configuration. What the configuration lacks comes from `[nats]`; so does everything
    /// without a configuration.
    #[must_use]
    pub fn of(tree: Option<&Map>, nats: &NatsConfig) -> Self {
        let facts = tree.and_then(|tree| Facts::of(tree).ok()).unwrap_or_default();
        let listener = |said: &Option<String>, default| dialable(said.as_deref().and_then(parse).unwrap_or(default));
        let client_tls = tree.and_then(|tree| tls_of(Listener::Client, tree));
        Self {
            client: listener(&facts.listen, nats.listen),
            route: listener(&facts.cluster_listen, nats.cluster_listen),
            monitor: Monitor {
                address: listener(&facts.monitor_listen, nats.monitor_listen),
                tls: facts.monitor_tls.then(|| MonitorTls { cert_file: facts.client_certificate.map(PathBuf::from) }),
            },
            client_is_tls_first: is_tls_first(client_tls),
            client_is_throttled: client_tls.is_some_and(|tls| find(tls, &["connection_rate_limit"]).is_some()),
            others: tree.map(others).unwrap_or_default(),
            pid_file: facts.pid_file.map_or_else(|| nats.pid_file.clone(), PathBuf::from),
        }
    }
}

/// The listeners with TLS beside client and route listener. A port that the system chooses can't be dialled.
fn others(tree: &Map) -> Vec<TlsListener> {
    let other = |endpoint: Endpoint| {
        let is_other =
            !matches!(endpoint.listener, Listener::Client | Listener::Cluster | Listener::Http | Listener::Profiling);
        let port = u16::try_from(endpoint.port).ok().filter(|port| is_other && *port != 0)?;
        let tls = tls_of(endpoint.listener, tree);
        let certificate = certificate_of(tls?)?;
        let host = match endpoint.host.parse() {
            Ok(ip) => dialable(SocketAddr::new(ip, port)).to_string(),
            Err(_) => format!("{}:{port}", endpoint.host),
        };
        let is_tls_first = is_tls_first(tls);
        Some(TlsListener { listener: endpoint.listener, address: host, certificate, is_tls_first })
    };
    endpoints(tree).into_iter().filter_map(other).collect()
}

/// The `tls` block of a listener. Monitoring has the block of clients (`server/server.go`, `startMonitoring`).
fn tls_of(listener: Listener, tree: &Map) -> Option<&Map> {
    let names = listener.block_names();
    let around = if names.is_empty() { Some(tree) } else { block(tree, names) };
    block(around?, &["tls"])
}

/// Whether `handshake_first` is `true`. With `auto` or a duration nats-server greets a client that waits.
fn is_tls_first(tls: Option<&Map>) -> bool {
    let names = ["handshake_first", "first", "immediate"];
    tls.and_then(|tls| find(tls, &names)).is_some_and(|entry| entry.value == Value::Bool(true))
}

/// A listener as nats-server reads it: `host:port`, or a port alone. A host name gives `None`, and `[nats]` applies.
fn parse(text: &str) -> Option<SocketAddr> {
    let port = || text.trim_start_matches(':').parse().ok();
    text.parse().ok().or_else(|| port().map(|port| SocketAddr::from(([0, 0, 0, 0], port))))
}

/// The address at which this machine can dial a listener: an unspecified address becomes loopback.
fn dialable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_says_where_its_server_listens() {
        let nats = NatsConfig::default();
        let text = "listen: 10.0.0.1:14222\nhttp: 18222\npid_file: /run/pid\ncluster { listen: \"0.0.0.0:16222\" }";
        let tree = crate::conf::read(text, &nats.config).unwrap();
        let listeners = Listeners::of(Some(&tree), &nats);
        assert_eq!(listeners.client, ([10, 0, 0, 1], 14222).into());
        assert_eq!(listeners.route, ([127, 0, 0, 1], 16222).into());
        assert_eq!(listeners.monitor, Monitor { address: ([127, 0, 0, 1], 18222).into(), tls: None });
        assert_eq!(listeners.pid_file, PathBuf::from("/run/pid"));
    }

    #[test]
    fn monitoring_with_tls_alone_serves_the_certificate_of_clients() {
        let nats = NatsConfig::default();
        let monitor = |text: &str| Listeners::of(crate::conf::read(text, &nats.config).ok().as_ref(), &nats).monitor;
        let tls = |cert_file: Option<&str>| Some(MonitorTls { cert_file: cert_file.map(PathBuf::from) });
        for (text, address, expected) in [
            ("https: \"10.0.0.1:8443\", tls { cert_file: /c }", ([10, 0, 0, 1], 8443), tls(Some("/c"))),
            ("https_port: 8443, tls { certs: [] }", ([127, 0, 0, 1], 8443), tls(None)),
            ("http_port: 1, tls { cert_file: /c }", ([127, 0, 0, 1], 1), None),
            ("http_port: 0, https_port: 2", ([127, 0, 0, 1], 2), tls(None)),
        ] {
            assert_eq!(monitor(text), Monitor { address: address.into(), tls: expected }, "{text}");
        }
    }

    #[test]
    fn what_a_configuration_does_not_say_is_as_the_agents_own_says() {
        let nats = NatsConfig::default();
        for tree in [None, crate::conf::read("server_name: n1", &nats.config).ok()] {
            let listeners = Listeners::of(tree.as_ref(), &nats);
            assert_eq!(listeners.client, ([127, 0, 0, 1], 4222).into());
            assert_eq!(listeners.pid_file, nats.pid_file);
        }
    }
}
