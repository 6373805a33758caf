//! The clients that are connected to nats-server.

use serde::Deserialize;

use super::monitor::{MonitorError, get};
use crate::conf::listeners::Monitor;
use crate::x509::chain::StoredChain;

/// The clients of one answer. An answer of this size stays below the limit of an answer.
const PAGE: usize = 1_024;
/// Of more clients nobody knows what they send.
const MAX_PAGES: usize = 64;

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
/// clients are connected than the agent looks at.
///
/// `auth=true` shows what a client sends as its user. In the place of a token some versions show a word.
pub(super) async fn send_users(monitor: &Monitor, ours: Option<&StoredChain>) -> Result<Option<bool>, MonitorError> {
    for page in 0..MAX_PAGES {
        let path = format!("/connz?auth=true&limit={PAGE}&offset={}", page * PAGE);
        let Connz { connections, total } = get(monitor, ours, path).await?;
        if connections.iter().any(|client| !client.authorized_user.is_empty()) {
            return Ok(Some(true));
        }
        if connections.is_empty() || page * PAGE + connections.len() >= total {
            return Ok(Some(false));
        }
    }
    Ok(None)
}
