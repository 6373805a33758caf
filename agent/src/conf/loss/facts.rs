//! The facts of a configuration, read from its effective tree.

use std::collections::BTreeMap;

use super::access::{self, Access};
use super::limits::Limits;
use super::permissions::{Change, Permissions};
use super::store::{self, Store};
use super::tls::{self, Listeners, is_on, may_be_on};
use super::values::{block, is_given, text};
use super::{Found, Loss};
use crate::conf::tree::{Ambiguous, Map};

/// The listeners, protections and capabilities that a configuration gives nats-server. Facts hold no password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts, not states")]
pub struct Facts {
    /// `server_name`.
    pub server_name: Option<String>,
    /// Client listener: `host:port`, or the port alone.
    pub listen: Option<String>,
    /// Route listener: `host:port`, or the port alone.
    pub cluster_listen: Option<String>,
    /// Monitoring listener: `host:port`, or the port alone.
    pub monitor_listen: Option<String>,
    /// Monitoring is served with TLS alone, with the certificate of clients.
    pub monitor_tls: bool,
    /// `cert_file` of clients.
    pub client_certificate: Option<String>,
    /// The path of the pid file.
    pub pid_file: Option<String>,
    /// Clients must use TLS: a certificate is configured, and `allow_non_tls` is off.
    pub client_tls: bool,
    /// Clients must present a certificate.
    pub client_verify: bool,
    /// Routes use TLS, and the dialling end verifies the other end.
    pub cluster_tls: bool,
    /// The cluster's name.
    pub cluster_name: Option<String>,
    /// Routes must present a user name and a password.
    pub cluster_credential: bool,
    /// JetStream is on.
    pub jetstream: bool,
    pub(super) gateway_name: Option<String>,
    pub(super) gateway_credential: bool,
    pub(super) listeners: Listeners,
    pub(super) access: Access,
    pub(super) store: Option<Store>,
    pub(super) cluster_permissions: Permissions,
    pub(super) limits: Limits,
    pub(super) jetstream_limits: BTreeMap<&'static str, i64>,
}

impl Facts {
    /// The facts of an effective tree. Two names of one setting are an error.
    pub fn of(top: &Map) -> Result<Self, Ambiguous> {
        let cluster = block(top, &["cluster"])?;
        let gateway = block(top, &["gateway"])?;
        let client_tls = block(top, &["tls"])?;
        let cluster_tls = block(&cluster, &["tls"])?;
        Ok(Self {
            server_name: text(top, &["server_name"])?,
            listen: listener(top)?,
            cluster_listen: listener(&cluster)?,
            monitor_listen: monitor_listener(top)?,
            monitor_tls: tls::is_monitored_with_tls(top)?,
            client_certificate: text(&client_tls, &["cert_file"])?,
            pid_file: text(top, &["pidfile", "pid_file"])?,
            client_tls: tls::has_certificate(&client_tls)? && !may_be_on(top, "allow_non_tls")?,
            client_verify: is_on(&client_tls, "verify")? || is_on(&client_tls, "verify_and_map")?,
            cluster_tls: tls::has_certificate(&cluster_tls)? && !may_be_on(&cluster_tls, "insecure")?,
            cluster_name: text(&cluster, &["name"])?,
            cluster_credential: credential(&cluster)?,
            jetstream: store::is_on(top)?,
            gateway_name: text(&gateway, &["name"])?,
            gateway_credential: credential(&gateway)?,
            listeners: Listeners::of(top)?,
            access: Access::of(top)?,
            store: Store::of(top)?,
            cluster_permissions: cluster_permissions(&cluster)?,
            limits: Limits::of_server(top)?,
            jetstream_limits: Limits::of_jetstream(top)?,
        })
    }
}

/// Whether `authorization` in a block asks for a user name and a password.
fn credential(map: &Map) -> Result<bool, Ambiguous> {
    let authorization = block(map, &["authorization"])?;
    Ok(is_given(&authorization, &["user", "username"])? && is_given(&authorization, &["pass", "password"])?)
}

/// The permissions of routes. Those in `authorization` apply where the cluster has none.
fn cluster_permissions(cluster: &Map) -> Result<Permissions, Ambiguous> {
    let authorization = block(cluster, &["authorization"])?;
    let below = authorization.find(&["default_permissions", "default_permission", "permissions"])?;
    Permissions::of(cluster.find(&["permissions"])?.or(below))
}

fn listener(map: &Map) -> Result<Option<String>, Ambiguous> {
    if let Some(listen) = text(map, &["listen"])? {
        return Ok(Some(listen));
    }
    let port = text(map, &["port"])?;
    Ok(match (text(map, &["host", "net"])?, port) {
        (Some(host), Some(port)) if host.contains(':') => Some(format!("[{host}]:{port}")),
        (Some(host), Some(port)) => Some(format!("{host}:{port}")),
        (_, port) => port,
    })
}

fn monitor_listener(top: &Map) -> Result<Option<String>, Ambiguous> {
    let names: [&[&str]; 2] = if tls::is_monitored_with_tls(top)? {
        [&["https"], &["https_port"]]
    } else {
        [&["http"], &["http_port", "monitor_port"]]
    };
    Ok(text(top, names[0])?.or(text(top, names[1])?))
}

/// What `after` lacks of `before`.
pub(super) fn compare(before: &Facts, after: &Facts, found: &mut Found) {
    if before.client_tls && !after.client_tls {
        found.add(Loss::ClientTls, "clients could connect without TLS");
    }
    if before.cluster_tls && !after.cluster_tls {
        found.add(Loss::ClusterTls, "routes would run without TLS, or without checks of certificates");
    }
    tls::compare(&before.listeners, &after.listeners, found);
    if before.jetstream && !after.jetstream {
        found.add(Loss::JetStream, "JetStream would be switched off, and its streams with it");
    }
    if let (Some(before), Some(after)) = (&before.store, &after.store) {
        store::compare(before, after, found);
    }
    if before.jetstream && after.jetstream {
        for (name, limit) in &after.jetstream_limits {
            if before.jetstream_limits.get(name).is_some_and(|before| limit < before) {
                found.add(Loss::JetStreamLimits, format!("JetStream would have a lower {name}"));
            }
        }
    }
    for name in after.limits.lowered(&before.limits) {
        found.add(Loss::ServerLimits, format!("nats-server would have a lower {name}"));
    }
    if after.cluster_permissions.change_from(&before.cluster_permissions) > Change::Kept {
        found.add(Loss::ClusterPermissions, "more subjects could cross the routes");
    }
    renamed("cluster", Loss::ClusterName, [&before.cluster_name, &after.cluster_name], found);
    if after.listeners.has_gateway() {
        renamed("gateway", Loss::GatewayName, [&before.gateway_name, &after.gateway_name], found);
    }
    if before.cluster_credential && !after.cluster_credential {
        found.add(Loss::ClusterCredential, "routes would no longer need the cluster credential");
    }
    if before.gateway_credential && !after.gateway_credential && after.listeners.has_gateway() {
        found.add(Loss::GatewayCredential, "gateways would no longer need a user and a password");
    }
    access::compare(&before.access, &after.access, found);
}

fn renamed(kind: &str, loss: Loss, names: [&Option<String>; 2], found: &mut Found) {
    match names {
        [Some(before), Some(after)] if before != after => {
            found.add(loss, format!("the {kind} {before:?} would be renamed to {after:?}, away from its peers"));
        }
        [Some(before), None] => found.add(loss, format!("the {kind} {before:?} would lose its name")),
        _ => {}
    }
}
