//! The clients that are connected to nats-server, and the clients that it disconnected.

use std::time::Duration;

use serde::Deserialize;
use time::OffsetDateTime;

use super::inquiry::{Inquiry, Question};
use super::monitor::MonitorError;

/// The clients of one answer. An answer of this size stays below the limit of an answer.
const PAGE: usize = 1_024;
/// Of more clients nobody knows what they send.
const MAX_PAGES: usize = 64;

/// A younger connection may not have logged in yet. Its refusal is no matter of a reload. nats-server allows two seconds for
/// a login (`authorization { timeout }`).
const LOGIN: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Connz {
    connections: Vec<Connection>,
    total: usize,
}

#[derive(Deserialize)]
struct Connection {
    #[serde(default)]
    authorized_user: String,
    #[serde(with = "time::serde::rfc3339")]
    start: OffsetDateTime,
    #[serde(default, with = "time::serde::rfc3339::option")]
    stop: Option<OffsetDateTime>,
    /// Why a closed connection was closed.
    #[serde(default)]
    reason: String,
    /// Empty: the TLS handshake had not ended.
    #[serde(default)]
    tls_version: String,
}

impl Connection {
    /// Whether nats-server's own decision ended a connection that stood before `since`. A reload ends the connections of
    /// users that it refuses, of a lowered `max_connections`, of deleted accounts and of certificates that are no longer
    /// pinned (`server/reload.go` of nats-server 2.15.1). The words are those of `ClosedState`.
    fn was_cut_since(&self, since: OffsetDateTime) -> bool {
        let is_decision = match self.reason.as_str() {
            "Authentication Failure" | "Maximum Connections Exceeded" | "Credentials Revoked" | "Missing Account" => {
                true
            }
            "TLS Handshake Failure" => !self.tls_version.is_empty(),
            _ => false,
        };
        is_decision && self.start + LOGIN < since
    }
}

/// Whether a connected client sends a user or a token. Without authentication nats-server ignores both. `None`: more
/// clients are connected than the agent looks at.
///
/// `auth=true` shows what a client sends as its user. In the place of a token some versions show a word.
pub(super) async fn send_users(inquiry: Inquiry<'_>) -> Result<Option<bool>, MonitorError> {
    for page in 0..MAX_PAGES {
        let offset = page * PAGE;
        let question = Question {
            verb: "CONNZ",
            options: format!(r#"{{"auth":true,"limit":{PAGE},"offset":{offset}}}"#),
            path: format!("/connz?auth=true&limit={PAGE}&offset={offset}"),
        };
        let Connz { connections, total } = inquiry.ask(&question).await?;
        if connections.iter().any(|client| !client.authorized_user.is_empty()) {
            return Ok(Some(true));
        }
        if connections.is_empty() || offset + connections.len() >= total {
            return Ok(Some(false));
        }
    }
    Ok(None)
}

/// The clients that were connected before `since` and that nats-server has disconnected by its own decision after it.
/// nats-server remembers the last 10,000 closed connections (`max_closed_clients`). The move of a client to another account
/// is not told from a client that leaves, so it doesn't count.
pub(super) async fn cut_since(inquiry: Inquiry<'_>, since: OffsetDateTime) -> Result<u64, MonitorError> {
    let mut cut = 0;
    for page in 0..MAX_PAGES {
        let offset = page * PAGE;
        // 1 is the state of a closed connection. The connection that was closed last comes first.
        let question = Question {
            verb: "CONNZ",
            options: format!(r#"{{"state":1,"sort":"stop","limit":{PAGE},"offset":{offset}}}"#),
            path: format!("/connz?state=closed&sort=stop&limit={PAGE}&offset={offset}"),
        };
        let Connz { connections, .. } = inquiry.ask(&question).await?;
        let is_late = |client: &&Connection| client.stop.is_some_and(|stop| stop >= since);
        let late: Vec<_> = connections.iter().take_while(is_late).collect();
        cut += late.iter().filter(|client| client.was_cut_since(since)).count() as u64;
        if late.len() < connections.len() || connections.len() < PAGE {
            break;
        }
    }
    Ok(cut)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn only_a_decision_of_nats_server_about_a_client_that_stood_before_counts() {
        let since = datetime!(2026-03-01 12:00 UTC);
        let closed = |start, reason: &str, tls_version: &str| Connection {
            authorized_user: String::new(),
            start,
            stop: Some(since),
            reason: reason.into(),
            tls_version: tls_version.into(),
        };
        let (before, after) = (datetime!(2026-03-01 11:00 UTC), datetime!(2026-03-01 11:59:59 UTC));
        for (start, reason, tls_version, counts) in [
            (before, "Authentication Failure", "1.3", true),
            (after, "Authentication Failure", "1.3", false),
            (before, "Maximum Connections Exceeded", "", true),
            (before, "Client Closed", "1.3", false),
            (before, "TLS Handshake Failure", "", false),
            (before, "TLS Handshake Failure", "1.3", true),
        ] {
            assert_eq!(closed(start, reason, tls_version).was_cut_since(since), counts, "{reason}");
        }
    }
}
