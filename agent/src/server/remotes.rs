//! The connections of gateways and leaf nodes that nobody but nats-server itself can close.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use time::OffsetDateTime;

use super::inquiry::{Inquiry, Question};
use super::monitor::{MonitorError, readable_time};

/// The connections that stay, as a person knows their other ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remotes {
    /// The names of the clusters behind gateway connections with TLS that are older than asked for.
    pub gateways: BTreeSet<String>,
    /// Every leaf node without a number, by its name and address. nats-server tells no age of such a connection, and closes
    /// none.
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
    /// Empty: without TLS.
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
    /// The number by which nats-server closes the connection. 2.10.26 tells none; 2.12.8 and 2.15.1 do.
    id: Option<u64>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    ip: String,
    #[serde(default)]
    port: u16,
}

/// Looks for gateway connections from before `than`, and for leaf nodes that nats-server closes for nobody.
pub(super) async fn look(inquiry: Inquiry<'_>, than: OffsetDateTime) -> Result<Remotes, MonitorError> {
    let gatewayz: Gatewayz = inquiry.ask(&Question::plain("GATEWAYZ", "/gatewayz")).await?;
    let leafz: Leafz = inquiry.ask(&Question::plain("LEAFZ", "/leafz")).await?;
    Ok(Remotes { gateways: gatewayz.older(than), leaf_nodes: leafz.without_a_number() })
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
        older.map(|(name, _)| name.clone()).collect()
    }
}

impl Leafz {
    fn without_a_number(&self) -> BTreeSet<String> {
        let leafs = self.leafs.iter().flatten().filter(|leaf| leaf.id.is_none());
        leafs.map(|leaf| format!("{} at {}:{}", leaf.name, leaf.ip, leaf.port)).collect()
    }
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
        let answer = r#"{"leafs": [{"name": "a", "ip": "10.0.0.1", "port": 7}, {"id": 6, "name": "b", "ip": "::1", "port": 8}]}"#;
        let leafz: Leafz = serde_json::from_str(answer).unwrap();
        assert_eq!(leafz.without_a_number(), ["a at 10.0.0.1:7".to_owned()].into());
        let nothing: Leafz = serde_json::from_str(r#"{"leafs": null}"#).unwrap();
        assert!(nothing.without_a_number().is_empty());
    }
}
