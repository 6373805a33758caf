//! The clients that are connected to nats-server.

use serde::Deserialize;

use super::monitor::{MonitorError, get};
use crate::conf::listeners::Monitor;
use crate::x509::chain::StoredChain;

/// `auth=true` shows what a client sends as its user. A token is shown as a word that stands for it.
const PATH: &str = "/connz?auth=true&limit=8192";

#[derive(Deserialize)]
struct Connz {
    connections: Vec<Connection>,
    total: usize,
}

#[derive(Deserialize)]
struct Connection {
    #[serde(default)]
    authorized_user: String,
}

/// Whether a connected client sends a user or a token. Without authentication nats-server ignores both. `None`: more
/// clients are connected than one answer shows.
pub(super) async fn send_users(monitor: &Monitor, ours: Option<&StoredChain>) -> Result<Option<bool>, MonitorError> {
    let Connz { connections, total } = get(monitor, ours, PATH).await?;
    let sends = connections.iter().any(|client| !client.authorized_user.is_empty());
    Ok(if sends || connections.len() >= total { Some(sends) } else { None })
}
