//! The connections of gateways and leaf nodes that only a restart of nats-server closes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use time::OffsetDateTime;

use super::inquiry::{Inquiry, Question};
use super::monitor::{MonitorError, readable_time};
use crate::conf::listeners::LeafNodes;

/// The longest shown name, in characters. The other end chooses its name.
const MAX_NAME: usize = 64;
/// The largest number of remembered leaf nodes.
const MAX_LEAF_NODES: usize = 1_024;

/// The connections that stay, by names that a person knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remotes {
    /// The names of the clusters with a TLS gateway connection from before the given time.
    pub gateways: BTreeSet<String>,
    /// Every leaf node without a number, by its name and address. nats-server tells no age of such a connection, and no command
    /// closes the connection.
    pub leaf_nodes: BTreeSet<String>,
}

/// What `/gatewayz` says (nats-server 2.10.26, 2.12.8 and 2.15.1).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Gatewayz {
    outbound_gateways: BTreeMap<String, Gateway>,
    inbound_gateways: BTreeMap<String, Vec<Gateway>>,
}

#[derive(Deserialize)]
struct Gateway {
    connection: Option<Connection>,
}

#[derive(Deserialize)]
struct Connection {
    #[serde(default, deserialize_with = "readable_time")]
    start: Option<OffsetDateTime>,
    /// Empty for a connection without TLS.
    #[serde(default)]
    tls_version: String,
}

/// What `/leafz` says.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Leafz {
    leafs: Option<Vec<Leaf>>,
}

#[derive(Deserialize)]
struct Leaf {
    /// The number by which nats-server closes the connection. 2.12.8 and 2.15.1 tell the number; 2.10.26 has no such field.
    id: Option<u64>,
    /// Whether this node dialled.
    #[serde(default)]
    is_spoke: bool,
    #[serde(default)]
    name: String,
    #[serde(default)]
    ip: String,
    #[serde(default)]
    port: u16,
}

/// Looks for gateway connections from before `than`, and for leaf nodes that no command closes. `verified` says which leaf nodes had
/// to show a certificate.
pub(super) async fn look(
    inquiry: Inquiry<'_>,
    verified: LeafNodes,
    than: OffsetDateTime,
) -> Result<Remotes, MonitorError> {
    let gatewayz: Gatewayz = inquiry.ask_port_first(&Question::plain("GATEWAYZ", "/gatewayz")).await?;
    let leafz: Leafz = inquiry.ask_port_first(&Question::plain("LEAFZ", "/leafz")).await?;
    Ok(Remotes { gateways: gatewayz.older(than), leaf_nodes: leafz.without_a_number(verified) })
}

impl Gatewayz {
    /// The clusters with a connection older than `than`. A connection without a readable time counts.
    fn older(&self, than: OffsetDateTime) -> BTreeSet<String> {
        let outbound = self.outbound_gateways.iter();
        let inbound =
            self.inbound_gateways.iter().flat_map(|(name, all)| all.iter().map(move |gateway| (name, gateway)));
        let is_older = |connection: &Connection| {
            !connection.tls_version.is_empty() && connection.start.is_none_or(|start| start < than)
        };
        let older = outbound.chain(inbound).filter(|(_, gateway)| gateway.connection.as_ref().is_some_and(is_older));
        older.map(|(name, _)| shown(name)).collect()
    }
}

impl Leafz {
    fn without_a_number(&self, verified: LeafNodes) -> BTreeSet<String> {
        let is_verified = |leaf: &&Leaf| if leaf.is_spoke { verified.dialled } else { verified.accepted };
        let leafs = self.leafs.iter().flatten().filter(|leaf| leaf.id.is_none()).filter(is_verified);
        let named = |leaf: &Leaf| {
            let address = match leaf.ip.parse::<IpAddr>() {
                Ok(ip) => SocketAddr::new(ip, leaf.port).to_string(),
                Err(_) => format!("{}:{}", shown(&leaf.ip), leaf.port),
            };
            format!("{} at {address}", shown(&leaf.name))
        };
        leafs.take(MAX_LEAF_NODES).map(named).collect()
    }
}

/// A name of another server, fit for a line of text.
fn shown(name: &str) -> String {
    name.chars().take(MAX_NAME).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn an_older_connection_with_tls_counts_in_both_directions() {
        let gateway = |start: &str, tls: &str| serde_json::json!({"connection": {"start": start, "tls_version": tls}});
        let (before, after) = ("2026-03-01T11:59:59.5Z", "2026-03-01T12:00:00Z");
        let answer = serde_json::json!({
            "outbound_gateways": {"out": gateway(before, "1.3"), "new": gateway(after, "1.3"), "plain": gateway(before, "")},
            "inbound_gateways": {
                "in": [gateway(after, "1.3"), gateway(before, "1.3")], "odd": [gateway("yesterday", "1.3")], "none": [{}],
            },
        });
        let gatewayz: Gatewayz = serde_json::from_value(answer).unwrap();
        let older: Vec<String> = gatewayz.older(datetime!(2026-03-01 12:00 UTC)).into_iter().collect();
        assert_eq!(older, ["in", "odd", "out"]);
        let nothing: Gatewayz = serde_json::from_str("{}").unwrap();
        assert!(nothing.older(datetime!(2026-03-01 12:00 UTC)).is_empty());
    }

    #[test]
    fn a_leaf_node_with_a_number_is_closed_with_the_clients_and_is_not_told() {
        let answer = serde_json::json!({"leafs": [
            {"name": "a", "ip": "10.0.0.1", "port": 7},
            {"id": 6, "name": "b", "ip": "10.0.0.2", "port": 8},
            {"name": "c", "ip": "fd00::1", "port": 9, "is_spoke": true},
            {"name": format!("\u{1b}[31m{}", "x".repeat(99)), "ip": "nowhere", "port": 7},
        ]});
        let leafz: Leafz = serde_json::from_value(answer).unwrap();
        let odd = format!(" [31m{} at nowhere:7", "x".repeat(59));
        for (accepted, dialled, wanted) in [
            (true, true, vec![odd.as_str(), "a at 10.0.0.1:7", "c at [fd00::1]:9"]),
            (true, false, vec![odd.as_str(), "a at 10.0.0.1:7"]),
            (false, true, vec!["c at [fd00::1]:9"]),
        ] {
            let told = leafz.without_a_number(LeafNodes { accepted, dialled });
            assert_eq!(told.iter().map(String::as_str).collect::<Vec<_>>(), wanted);
        }
        let nothing: Leafz = serde_json::from_str(r#"{"leafs": null}"#).unwrap();
        assert!(nothing.without_a_number(LeafNodes { accepted: true, dialled: true }).is_empty());
    }
}
