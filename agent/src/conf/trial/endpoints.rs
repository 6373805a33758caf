//! The listeners of a tree of settings.

use std::fmt;

use super::{block, find};
use crate::conf::tree::{Entry, Map, Origin, Value};

/// What nats-server listens for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listener {
    /// Clients.
    Client,
    /// Monitoring over HTTP.
    Http,
    /// Monitoring over HTTPS.
    Https,
    /// Go's profiling.
    Profiling,
    /// Routes.
    Cluster,
    /// Gateways.
    Gateway,
    /// Leaf nodes.
    Leafnodes,
    /// WebSocket clients.
    Websocket,
    /// MQTT clients.
    Mqtt,
}

impl Listener {
    /// The blocks with a listener of their own.
    pub(super) const BLOCKS: [Self; 5] = [Self::Cluster, Self::Gateway, Self::Leafnodes, Self::Websocket, Self::Mqtt];

    /// The names of every block with a listener of its own.
    pub(crate) fn with_a_block() -> impl Iterator<Item = &'static [&'static str]> {
        Self::BLOCKS.into_iter().map(Self::block_names)
    }

    /// Every name of the block (`server/opts.go`, up to 2.15.1). Listeners outside of a block have none.
    pub(crate) fn block_names(self) -> &'static [&'static str] {
        match self {
            Self::Client | Self::Http | Self::Https | Self::Profiling => &[],
            Self::Cluster => &["cluster"],
            Self::Gateway => &["gateway"],
            Self::Leafnodes => &["leafnodes", "leaf"],
            Self::Websocket => &["websocket", "ws"],
            Self::Mqtt => &["mqtt"],
        }
    }

    /// The listener that a refused reload is about: `config reload not supported for FIELD: …` (`server/reload.go`).
    pub(super) fn named_in(said: &str) -> Option<Self> {
        let (_, field) = said.split_once("config reload not supported for ")?;
        let fields = [
            ("Host", Self::Client),
            ("Port", Self::Client),
            ("HTTPHost", Self::Http),
            ("HTTPPort", Self::Http),
            ("HTTPSPort", Self::Https),
            ("ProfPort", Self::Profiling),
            ("cluster host", Self::Cluster),
            ("cluster port", Self::Cluster),
            ("Gateway", Self::Gateway),
            ("LeafNode", Self::Leafnodes),
            ("Websocket", Self::Websocket),
            ("MQTT", Self::Mqtt),
        ];
        let (field, _) = field.split_once(':')?;
        fields.into_iter().find(|(known, _)| *known == field).map(|(_, listener)| listener)
    }

    /// The word in nats-server's log line `Listening for … connections on …`, where it logs such a line.
    pub(super) fn logged_as(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Http => "http monitor",
            Self::Https => "https monitor",
            Self::Profiling => "profiling",
            Self::Cluster => "route",
            Self::Gateway => "gateway",
            Self::Leafnodes => "leafnode",
            Self::Websocket => "websocket clients",
            Self::Mqtt => "MQTT clients",
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Client => "listen",
            Self::Http => "http",
            Self::Https => "https",
            Self::Profiling => "prof_port",
            Self::Cluster => "cluster.listen",
            Self::Gateway => "gateway.listen",
            Self::Leafnodes => "leafnodes.listen",
            Self::Websocket => "websocket.listen",
            Self::Mqtt => "mqtt.listen",
        })
    }
}

/// A listener with its host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What listens.
    pub listener: Listener,
    /// The host as written, or nats-server's default where the settings name no host.
    pub host: String,
    /// The port. -1 is a port that the system chooses.
    pub port: i64,
    /// The place of the setting. `None` where the default applies.
    pub origin: Option<Origin>,
}

/// The host on which nats-server listens by default (`server/const.go`, `DEFAULT_HOST`).
const DEFAULT_HOST: &str = "0.0.0.0";
/// The client port by default (`server/const.go`, `DEFAULT_PORT`).
const DEFAULT_PORT: i64 = 4222;

/// Every listener that a server with these settings opens. A block without a port opens none.
#[must_use]
pub fn endpoints(tree: &Map) -> Vec<Endpoint> {
    let client = client(tree);
    let mut found = vec![client.clone()];
    for (listener, listen, port) in [
        (Listener::Http, "http", &["http_port", "monitor_port"][..]),
        (Listener::Https, "https", &["https_port"]),
        (Listener::Profiling, "", &["prof_port"]),
    ] {
        let entry = find(tree, &[listen]).or_else(|| find(tree, port));
        found.extend(entry.and_then(|entry| monitor(listener, entry, &client.host)));
    }
    for listener in Listener::BLOCKS {
        found.extend(block(tree, listener.block_names()).and_then(|settings| of_block(listener, settings)));
    }
    found
}

/// The client listener, which every server has.
fn client(tree: &Map) -> Endpoint {
    let set = settings_of(Listener::Client, tree);
    let origin = set.as_ref().and_then(|set| set.origin.clone());
    let host = set.as_ref().map_or(DEFAULT_HOST, |set| &set.host).to_owned();
    let port = set.map_or(0, |set| set.port);
    Endpoint { listener: Listener::Client, host, port: if port == 0 { DEFAULT_PORT } else { port }, origin }
}

/// A monitoring or profiling listener. Without a host of its own it has the client's host.
fn monitor(listener: Listener, entry: &Entry, client_host: &str) -> Option<Endpoint> {
    let (host, port) = host_and_port(&entry.value)?;
    let host = if host.is_empty() { client_host.to_owned() } else { host };
    let origin = Some(entry.origin.clone());
    (port != 0).then_some(Endpoint { listener, host, port, origin })
}

/// The listener of a block, where the block sets a port.
pub(super) fn of_block(listener: Listener, settings: &Map) -> Option<Endpoint> {
    settings_of(listener, settings).filter(|endpoint| endpoint.port != 0)
}

fn settings_of(listener: Listener, settings: &Map) -> Option<Endpoint> {
    let (listen, port) = (find(settings, &["listen"]), find(settings, &["port"]));
    let entry = listen.or(port).or_else(|| find(settings, &["host", "net"]))?;
    let (host, port) = if let Some(listen) = listen {
        host_and_port(&listen.value)?
    } else {
        let host = find(settings, &["host", "net"]).and_then(|host| host.value.as_text()).unwrap_or_default();
        (host.to_owned(), port.and_then(|port| integer(&port.value)).unwrap_or_default())
    };
    let host = if host.is_empty() { DEFAULT_HOST.to_owned() } else { host };
    Some(Endpoint { listener, host, port, origin: Some(entry.origin.clone()) })
}

fn integer(value: &Value) -> Option<i64> {
    if let Value::Integer(number) = value { Some(*number) } else { None }
}

/// A port alone, or `host:port` as Go's `net.SplitHostPort` reads it.
fn host_and_port(value: &Value) -> Option<(String, i64)> {
    if let Some(port) = integer(value) {
        return Some((String::new(), port));
    }
    let (host, port) = value.as_text()?.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn listed(text: &str) -> Vec<String> {
        let tree = crate::conf::read(text, Path::new("test.conf")).unwrap();
        endpoints(&tree).iter().map(|found| format!("{} {} {}", found.listener, found.host, found.port)).collect()
    }

    #[test]
    fn a_server_without_settings_listens_for_clients() {
        assert_eq!(listed(""), ["listen 0.0.0.0 4222"]);
        assert_eq!(listed("port: 0"), ["listen 0.0.0.0 4222"]);
    }

    #[test]
    fn every_form_of_a_listener_is_read() {
        let text = "LISTEN: 127.0.0.1:1\nhttp: \"[::1]:2\"\nhttps_port: 3\nprof_port: 4\ncluster { port: 5 }\n\
                    leaf { host: h, port: 6 }\nws { listen: 7 }\nmqtt { listen: \"localhost:8\" }\ngateway { port: -1 }";
        assert_eq!(
            listed(text),
            [
                "listen 127.0.0.1 1",
                "http ::1 2",
                "https 127.0.0.1 3",
                "prof_port 127.0.0.1 4",
                "cluster.listen 0.0.0.0 5",
                "gateway.listen 0.0.0.0 -1",
                "leafnodes.listen h 6",
                "websocket.listen 0.0.0.0 7",
                "mqtt.listen localhost 8",
            ]
        );
    }

    #[test]
    fn a_block_without_a_port_does_not_listen() {
        assert_eq!(listed("cluster { name: c }\nleafnodes {}\nwebsocket { host: h }\nhttp_port: 0").len(), 1);
    }
}
