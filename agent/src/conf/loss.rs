//! What a configuration protects, and what a change of it would take away (invariant 12).
//!
//! nats-server reloads a configuration that drops `tls` or `jetstream`, or renames the cluster, without a warning (seen
//! on 2.9.10 and 2.15.1). The committing code therefore compares the facts here first.

mod access;
mod exchange;
mod facts;
mod limits;
mod permissions;
mod store;
mod tls;
mod values;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use facts::Facts;
pub use tls::Certificate;
pub(crate) use tls::{certificate_of, verifies};

/// What a configuration can take away. The names are those of `--allow-loss` and never change. Allowing one loss allows
/// no other.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ValueEnum, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// TLS on the client port
    #[value(name = "tls")]
    #[serde(rename = "tls")]
    ClientTls,
    /// TLS on routes
    ClusterTls,
    /// The check of client certificates
    ClientVerify,
    /// JetStream
    #[value(name = "jetstream")]
    #[serde(rename = "jetstream")]
    JetStream,
    /// The cluster's name
    ClusterName,
    /// The credential that routes must present
    ClusterCredential,
    /// Accounts and users
    Authorization,
    /// The agent's certificate on the client port
    ClientCertificate,
    /// The agent's certificate on routes
    ClusterCertificate,
    /// The further checks of routes' certificates
    ClusterVerify,
    /// TLS on the websocket listener
    WebsocketTls,
    /// The agent's certificate on the websocket listener
    WebsocketCertificate,
    /// The check of certificates on the websocket listener
    WebsocketVerify,
    /// TLS on the MQTT listener
    MqttTls,
    /// The agent's certificate on the MQTT listener
    MqttCertificate,
    /// The check of certificates on the MQTT listener
    MqttVerify,
    /// TLS on the leafnode listener
    LeafnodeTls,
    /// The agent's certificate on the leafnode listener
    LeafnodeCertificate,
    /// The check of certificates on the leafnode listener
    LeafnodeVerify,
    /// TLS to a leafnode remote
    LeafnodeRemoteTls,
    /// The agent's certificate towards a leafnode remote
    LeafnodeRemoteCertificate,
    /// The check of a leafnode remote's certificate
    LeafnodeRemoteVerify,
    /// TLS on the gateway listener
    GatewayTls,
    /// The agent's certificate on the gateway listener
    GatewayCertificate,
    /// The check of gateways' certificates
    GatewayVerify,
    /// TLS to a remote gateway
    GatewayRemoteTls,
    /// The agent's certificate towards a remote gateway
    GatewayRemoteCertificate,
    /// The check of a remote gateway's certificate
    GatewayRemoteVerify,
    /// TLS on the monitoring listener
    MonitoringTls,
    /// The gateway's name
    GatewayName,
    /// The credential that gateways must present
    GatewayCredential,
    /// The users of the leafnode listener
    LeafnodeAuthorization,
    /// The user or token of the websocket listener
    WebsocketAuthorization,
    /// The user or token of the MQTT listener
    MqttAuthorization,
    /// The refusal of clients without a user
    NoAuthUser,
    /// The refusal of websocket clients without a user
    WebsocketNoAuthUser,
    /// The refusal of MQTT clients without a user
    MqttNoAuthUser,
    /// The last user of a list
    Users,
    /// The permissions of a user
    UserPermissions,
    /// The password of a user
    UserPassword,
    /// An account
    Account,
    /// The token
    Token,
    /// The auth callout
    AuthCallout,
    /// The operator
    Operator,
    /// The trusted keys
    TrustedKeys,
    /// The account resolver
    Resolver,
    /// JetStream of an account
    #[value(name = "account-jetstream")]
    #[serde(rename = "account-jetstream")]
    AccountJetStream,
    /// The streams in JetStream's store
    #[value(name = "jetstream-store")]
    #[serde(rename = "jetstream-store")]
    JetStreamStore,
    /// A limit of JetStream that is lowered
    #[value(name = "jetstream-limits")]
    #[serde(rename = "jetstream-limits")]
    JetStreamLimits,
    /// A limit of nats-server that is lowered
    ServerLimits,
    /// A limit of an account that is lowered
    AccountLimits,
    /// A limit of an account's JetStream that is lowered
    #[value(name = "account-jetstream-limits")]
    #[serde(rename = "account-jetstream-limits")]
    AccountJetStreamLimits,
    /// An export of an account, or an importer of the export
    AccountExport,
    /// The list of accounts that may import an export
    PrivateExport,
    /// An import of an account
    AccountImport,
    /// Some of the subjects that a user's permissions close
    UserSubjects,
    /// The connection types or the proxy of a user
    UserConnections,
    /// The subjects that permissions keep from crossing routes
    ClusterPermissions,
    /// The subjects that a leafnode remote keeps from crossing
    LeafnodeRemotePermissions,
    /// The websocket listener
    Websocket,
    /// The MQTT listener
    Mqtt,
    /// The leafnode listener
    Leafnodes,
    /// A leafnode remote
    LeafnodeRemote,
    /// The gateway
    Gateway,
    /// A remote gateway
    GatewayRemote,
    /// The monitoring listener
    Monitoring,
}

impl std::fmt::Display for Loss {
    /// The name of the loss.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| formatter.write_str(value.get_name()))
    }
}

/// A loss, and what would happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenAway {
    /// The loss.
    pub loss: Loss,
    /// What would happen, for a person.
    pub what: String,
}

/// The largest number of things that the text of one loss names.
const MAX_NAMED: usize = 5;

/// The losses found so far, each once.
#[derive(Default)]
struct Found(Vec<(Loss, Vec<String>)>);

impl Found {
    fn add(&mut self, loss: Loss, what: impl Into<String>) {
        let what = what.into();
        match self.0.iter_mut().find(|(found, _)| *found == loss) {
            Some((_, all)) if all.contains(&what) || all.len() > MAX_NAMED => {}
            Some((_, all)) => all.push(what),
            None => self.0.push((loss, vec![what])),
        }
    }

    fn into_losses(self) -> Vec<TakenAway> {
        let text = |mut all: Vec<String>| {
            if let Some(last) = all.get_mut(MAX_NAMED) {
                "and more of this kind".clone_into(last);
            }
            all.join("; ")
        };
        self.0.into_iter().map(|(loss, all)| TakenAway { loss, what: text(all) }).collect()
    }
}

/// What committing `after` would take from `before`, the configuration in force. Without a configuration in force, a
/// missing TLS for clients or routes is a loss too.
#[must_use]
pub fn losses(before: Option<&Facts>, after: &Facts) -> Vec<TakenAway> {
    let first = Facts { client_tls: true, cluster_tls: true, limits: after.limits.clone(), ..Facts::default() };
    let before = before.unwrap_or(&first);
    let mut found = Found::default();
    facts::compare(before, after, &mut found);
    found.into_losses()
}

#[cfg(test)]
mod tests;
