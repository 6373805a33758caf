//! The addresses on which a nats-server with a given configuration listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::loss::{Certificate, Facts, certificate_of, verifies};
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
    /// Who speaks first on the client listener.
    pub client_first: First,
    /// Whether nats-server throttles new connections of clients (`connection_rate_limit`).
    pub client_is_throttled: bool,
    /// The other listeners with TLS.
    pub others: Vec<TlsListener>,
    /// Which leaf nodes have to show a certificate.
    pub leaf_nodes: LeafNodes,
    /// The path of the pid file.
    pub pid_file: PathBuf,
}

/// Which leaf nodes have to show a certificate that chains to a CA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafNodes {
    /// The leaf nodes that dial this node: the listener has `verify`.
    pub accepted: bool,
    /// The leaf nodes that this node dials by TLS.
    pub dialled: bool,
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
    /// Who speaks first, where the protocol leaves a choice (`handshake_first`).
    pub first: First,
}

/// Who speaks first on a listener of clients or leaf nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// nats-server sends INFO in the clear.
    Server,
    /// The other end begins TLS (`handshake_first`).
    Client,
    /// The other end begins TLS within 50 ms, or else nats-server sends INFO in the clear (`handshake_first: auto`).
    Fallback,
    /// One of the two. A reload may be changing the setting.
    Either,
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
            client_first: tree.map_or(First::Either, |_| first(client_tls)),
            client_is_throttled: client_tls.is_some_and(|tls| find(tls, &["connection_rate_limit"]).is_some()),
            others: tree.map(others).unwrap_or_default(),
            leaf_nodes: tree.map(leaf_nodes).unwrap_or_default(),
            pid_file: facts.pid_file.map_or_else(|| nats.pid_file.clone(), PathBuf::from),
        }
    }

    /// The same listeners while nats-server may take over another configuration. A reload takes `handshake_first` over.
    #[must_use]
    pub fn while_becoming(mut self, next: &Self) -> Self {
        if self.client_first != next.client_first {
            self.client_first = First::Either;
        }
        for listener in &mut self.others {
            let next = next.others.iter().find(|next| next.listener == listener.listener);
            if next.is_some_and(|next| next.first != listener.first) {
                listener.first = First::Either;
            }
        }
        self
    }
}

/// Whether a listener of clients asks for their certificates: the client port, websocket or MQTT.
#[must_use]
pub(crate) fn asks_clients(tree: &Map) -> bool {
    let is_of_clients =
        |listener: &Listener| matches!(listener, Listener::Client | Listener::Websocket | Listener::Mqtt);
    let listeners = endpoints(tree).into_iter().map(|endpoint| endpoint.listener).filter(is_of_clients);
    listeners.filter_map(|listener| tls_of(listener, tree)).any(verifies)
}

fn leaf_nodes(tree: &Map) -> LeafNodes {
    let remotes = block(tree, Listener::Leafnodes.block_names()).and_then(|leafnodes| find(leafnodes, &["remotes"]));
    let mut remotes = remotes.and_then(|entry| entry.value.as_array()).unwrap_or_default().iter();
    LeafNodes {
        accepted: tls_of(Listener::Leafnodes, tree).is_some_and(verifies),
        dialled: remotes.any(|remote| remote.value.as_map().is_some_and(|remote| block(remote, &["tls"]).is_some())),
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
        Some(TlsListener { listener: endpoint.listener, address: host, certificate, first: first(tls) })
    };
    endpoints(tree).into_iter().filter_map(other).collect()
}

/// The `tls` block of a listener. Monitoring has the block of clients (`server/server.go`, `startMonitoring`).
fn tls_of(listener: Listener, tree: &Map) -> Option<&Map> {
    let names = listener.block_names();
    let around = if names.is_empty() { Some(tree) } else { block(tree, names) };
    block(around?, &["tls"])
}

/// With `auto` or a duration nats-server greets a client that waits. A client that begins TLS is served without that wait.
fn first(tls: Option<&Map>) -> First {
    let is_off = |value: &Value| match value {
        Value::Text(text) => ["false", "off"].iter().any(|off| text.eq_ignore_ascii_case(off)),
        value => *value == Value::Bool(false),
    };
    let is_auto = |value: &Value| matches!(value, Value::Text(text) if text.eq_ignore_ascii_case("auto"));
    match tls.and_then(|tls| find(tls, &["handshake_first", "first", "immediate"])) {
        Some(entry) if is_auto(&entry.value) => First::Fallback,
        Some(entry) if !is_off(&entry.value) => First::Client,
        _ => First::Server,
    }
}

/// A listener as nats-server reads it: `host:port`, or a port alone. A host name gives `None`, and `[nats]` applies.
fn parse(text: &str) -> Option<SocketAddr> {
    let port = || text.trim_start_matches(':').parse().ok();
    text.parse().ok().or_else(|| port().map(|port| SocketAddr::from(([0, 0, 0, 0], port))))
}

/// The address at which this machine can dial a listener: an unspecified address becomes loopback.
pub(crate) fn dialable(listen: SocketAddr) -> SocketAddr {
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
    fn only_a_listener_of_clients_asks_clients_for_certificates() {
        let nats = NatsConfig::default();
        for (text, asks) in [
            ("tls { verify: true }", true),
            ("TLS { Verify_And_Map: true }", true),
            ("websocket { port: 443, tls { verify: true } }", true),
            ("mqtt { port: 8883, tls { verify: true } }", true),
            ("mqtt { tls { verify: true } }", false),
            ("tls { verify: false }\ncluster { tls { verify: true } }\nleafnodes { tls { verify: true } }", false),
            ("", false),
        ] {
            assert_eq!(asks_clients(&crate::conf::read(text, &nats.config).unwrap()), asks, "{text}");
        }
    }

    #[test]
    fn leaf_nodes_are_verified_by_verify_where_they_dial_and_by_tls_where_this_node_dials() {
        let remotes =
            |tls: &str| format!("leafnodes {{ remotes: [{{ url: \"nats://a\" }}, {{ url: \"tls://b\" {tls} }}] }}");
        for (text, accepted, dialled) in [
            ("leafnodes { port: -1, tls { verify: true } }", true, false),
            ("leafnodes { port: 7422, tls { cert_file: a, key_file: b } }", false, false),
            (&remotes(""), false, false),
            (&remotes(", tls { ca_file: c }"), false, true),
        ] {
            assert_eq!(listeners(text).leaf_nodes, LeafNodes { accepted, dialled }, "{text}");
        }
    }

    fn listeners(text: &str) -> Listeners {
        let nats = NatsConfig::default();
        Listeners::of(Some(&crate::conf::read(text, &nats.config).unwrap()), &nats)
    }

    /// 0 is no listener, and nobody knows the port of -1.
    #[test]
    fn each_listener_with_tls_is_listed_as_this_machine_dials_it() {
        use Certificate::{Foreign, Own};

        let text = "http: 8222\ncluster { listen: 6222, tls { cert_file: a, key_file: b } }\n\
                    websocket { host: ws.internal, port: 443, tls { cert_file: a, key_file: b } }\n\
                    mqtt { port: 8883, tls { cert_file: /s/generations/000007/cert.pem, key_file: b } }\n\
                    leafnodes { listen: \"[::]:7422\", tls { cert_file: a, key_file: b, handshake_first: auto } }\n\
                    gateway { listen: 10.0.0.1:7222 }\n";
        let listed = |text: &str| {
            let others = listeners(text).others.into_iter();
            others.map(|it| (it.listener, it.address, it.certificate, it.first)).collect::<Vec<_>>()
        };
        let expected = [
            (Listener::Leafnodes, "[::1]:7422".to_owned(), Foreign, First::Fallback),
            (Listener::Websocket, "ws.internal:443".to_owned(), Foreign, First::Server),
            (Listener::Mqtt, "127.0.0.1:8883".to_owned(), Own, First::Server),
        ];
        assert_eq!(listed(text), expected);
        for port in ["0", "-1"] {
            assert!(
                listed(&format!("mqtt {{ port: {port}, tls {{ cert_file: a, key_file: b }} }}")).is_empty(),
                "{port}"
            );
        }
        let https = "tls { cert_file: a, key_file: b }\nhttps: \"0.0.0.0:8443\"";
        assert_eq!(listed(https)[0].1, "127.0.0.1:8443");
        assert_eq!(listed("https: 8443"), []);
    }

    #[test]
    fn the_tree_says_who_speaks_first_and_during_a_change_either_may() {
        let client = |first: &str| listeners(&format!("tls {{ cert_file: a, key_file: b, handshake_first: {first} }}"));
        for (value, first) in [
            ("true", First::Client),
            ("on", First::Client),
            ("\"auto\"", First::Fallback),
            ("\"300ms\"", First::Client),
            ("false", First::Server),
            ("\"off\"", First::Server),
        ] {
            assert_eq!(client(value).client_first, first, "{value}");
        }
        assert_eq!(listeners("").client_first, First::Server);
        let changed = client("false").while_becoming(&client("true"));
        assert_eq!(changed.client_first, First::Either);
        assert_eq!(client("true").while_becoming(&client("\"300ms\"")).client_first, First::Client);
        let leaf = |first: &str| {
            listeners(&format!(
                "leafnodes {{ port: 7422, tls {{ cert_file: a, key_file: b, handshake_first: {first} }} }}"
            ))
        };
        assert_eq!(leaf("false").while_becoming(&leaf("true")).others[0].first, First::Either);
        assert_eq!(leaf("true").while_becoming(&listeners("")).others[0].first, First::Client);
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
