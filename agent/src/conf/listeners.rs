//! The addresses on which a nats-server with a given configuration listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::loss::Facts;
use super::tree::Map;
use crate::config::NatsConfig;

/// The addresses at which nats-server can be dialled from this machine, and its pid file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// The client listener.
    pub client: SocketAddr,
    /// The route listener.
    pub route: SocketAddr,
    /// The monitoring listener.
    pub monitor: SocketAddr,
    /// The path of the pid file.
    pub pid_file: PathBuf,
}

impl Listeners {
    /// Reads the listeners from a configuration. What the configuration lacks comes from `[nats]`; so does everything
    /// without a configuration.
    #[must_use]
    pub fn of(tree: Option<&Map>, nats: &NatsConfig) -> Self {
        let facts = tree.and_then(|tree| Facts::of(tree).ok()).unwrap_or_default();
        let listener = |said: &Option<String>, default| dialable(said.as_deref().and_then(parse).unwrap_or(default));
        Self {
            client: listener(&facts.listen, nats.listen),
            route: listener(&facts.cluster_listen, nats.cluster_listen),
            monitor: listener(&facts.monitor_listen, nats.monitor_listen),
            pid_file: facts.pid_file.map_or_else(|| nats.pid_file.clone(), PathBuf::from),
        }
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
        assert_eq!(listeners.monitor, ([127, 0, 0, 1], 18222).into());
        assert_eq!(listeners.pid_file, PathBuf::from("/run/pid"));
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
