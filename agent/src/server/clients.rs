//! The clients that are connected to nats-server, the clients that a reload disconnected, and the end of clients.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use time::OffsetDateTime;

use super::inquiry::{Inquiry, Question};
use super::monitor::MonitorError;
use super::{Cut, Load};
use crate::error::with_causes;

/// The clients of one answer. An answer of this size stays below the limit of an answer.
const PAGE: usize = 1_024;
/// Of more clients nobody knows what they send.
const MAX_PAGES: usize = 64;

/// The clients of one round of closing. More clients that connect anew at once would delay each other's handshakes.
const KICKS: usize = 256;

/// A younger connection may still log in. A reload doesn't cause the refusal of such a login.
const LOGIN: Duration = Duration::from_secs(5);
/// nats-server notes a closed connection in a goroutine, so the noted end is a little later than the end.
const NOTED_WITHIN: Duration = Duration::from_millis(250);

#[derive(Deserialize)]
struct Connz {
    connections: Vec<Connection>,
    total: usize,
}

#[derive(Deserialize)]
struct Connection {
    #[serde(default)]
    cid: u64,
    #[serde(default)]
    kind: String,
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
    /// The certificates that the client presented. nats-server shows them with `auth`, and names no issuer.
    #[serde(default)]
    tls_peer_certs: Vec<serde::de::IgnoredAny>,
}

impl Connection {
    /// Whether a reload from `load.begun` to `load.ended` closed this client. The words are those of `ClosedState` (nats-server
    /// 2.15.1), and `server/reload.go` says which of them a reload uses:
    ///
    /// - "Authentication Failure": the user has another password, or is refused now.
    /// - "Client Closed": the user is gone or has moved to another account. A client that leaves by itself has the same reason.
    /// - "Maximum Connections Exceeded": `max_connections` was lowered.
    /// - "Credentials Revoked", "Proxy Not Trusted": the account says so now.
    /// - "TLS Handshake Failure", after the handshake: the certificate is pinned no longer.
    fn was_closed_by(&self, load: &Load) -> bool {
        let is_of_reload = match self.reason.as_str() {
            "Authentication Failure"
            | "Client Closed"
            | "Maximum Connections Exceeded"
            | "Credentials Revoked"
            | "Proxy Not Trusted" => true,
            "TLS Handshake Failure" => !self.tls_version.is_empty(),
            _ => false,
        };
        let is_client = self.kind.is_empty() || self.kind == "Client";
        is_of_reload
            && is_client
            && self.start + LOGIN < load.begun
            && self.stop.is_some_and(|stop| stop >= load.begun && stop <= load.ended + NOTED_WITHIN)
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

/// Closes clients that presented a certificate and were connected before `than`: the oldest first, [`KICKS`] at most. An answer
/// names no issuer, so a client of another CA is closed too, and connects anew at once.
///
/// Only the system account closes a client. A client stays open where the system account gives no answer.
pub(super) async fn close_older(inquiry: Inquiry<'_>, than: OffsetDateTime) -> Result<Cut, MonitorError> {
    let own = match inquiry.system {
        Some(system) => system.own_client().await,
        None => None,
    };
    let mut older = BTreeSet::new();
    for page in 0..MAX_PAGES {
        let offset = page * PAGE;
        // The connection that was made first comes first.
        let question = Question {
            verb: "CONNZ",
            options: format!(r#"{{"auth":true,"sort":"cid","limit":{PAGE},"offset":{offset}}}"#),
            path: format!("/connz?auth=true&sort=cid&limit={PAGE}&offset={offset}"),
        };
        let Connz { connections, total } = inquiry.ask(&question).await?;
        let presented = |client: &&Connection| client.start < than && !client.tls_peer_certs.is_empty();
        older.extend(connections.iter().filter(presented).map(|client| client.cid).filter(|cid| Some(*cid) != own));
        let is_newer = |client: &Connection| client.start >= than;
        if offset + connections.len() >= total || connections.last().is_none_or(is_newer) {
            break;
        }
    }
    let (mut closed, mut gone) = (0, 0);
    for client in older.iter().take(KICKS) {
        let Some(system) = inquiry.system else { break };
        match system.kick(*client).await {
            Ok(true) => closed += 1,
            Ok(false) => gone += 1,
            Err(error) => {
                tracing::debug!("{}", with_causes(&error));
                break;
            }
        }
    }
    Ok(Cut { closed, open: (older.len() as u64).saturating_sub(closed + gone) })
}

/// The number of clients that a reload closed. A client counts that was connected before.
///
/// nats-server remembers the last 10,000 closed connections (`max_closed_clients`), so the number is a lower limit after
/// more. A client that leaves by itself during the reload counts too.
pub(super) async fn closed_by(inquiry: Inquiry<'_>, load: &Load) -> Result<u64, MonitorError> {
    // Connections that end meanwhile move others to the next page.
    let mut closed = BTreeSet::new();
    for page in 0..MAX_PAGES {
        let offset = page * PAGE;
        // 1 is the state of a closed connection. The connection that was closed last comes first.
        let question = Question {
            verb: "CONNZ",
            options: format!(r#"{{"state":1,"sort":"stop","limit":{PAGE},"offset":{offset}}}"#),
            path: format!("/connz?state=closed&sort=stop&limit={PAGE}&offset={offset}"),
        };
        let Connz { connections, .. } = inquiry.ask(&question).await?;
        closed.extend(connections.iter().filter(|client| client.was_closed_by(load)).map(|client| client.cid));
        let is_earlier = |client: &Connection| client.stop.is_none_or(|stop| stop < load.begun);
        if connections.len() < PAGE || connections.last().is_none_or(is_earlier) {
            break;
        }
    }
    Ok(closed.len() as u64)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_client_counts_that_was_connected_before_and_that_the_reload_closed() {
        let load = Load { begun: datetime!(2026-03-01 12:00 UTC), ended: datetime!(2026-03-01 12:00:10 UTC) };
        let (before, during) = (datetime!(2026-03-01 11:00 UTC), datetime!(2026-03-01 12:00:05 UTC));
        let just_before = datetime!(2026-03-01 11:59:58 UTC);
        let after = datetime!(2026-03-01 12:00:11 UTC);
        for (kind, start, stop, reason, tls_version, counts) in [
            ("Client", before, during, "Authentication Failure", "1.3", true),
            ("", before, during, "Authentication Failure", "1.3", true),
            ("Leafnode", before, during, "Authentication Failure", "1.3", false),
            ("Client", just_before, during, "Authentication Failure", "1.3", false),
            ("Client", before, before, "Authentication Failure", "1.3", false),
            ("Client", before, after, "Authentication Failure", "1.3", false),
            ("Client", before, during, "Maximum Connections Exceeded", "", true),
            ("Client", before, during, "Client Closed", "1.3", true),
            ("Client", before, during, "Stale Connection", "1.3", false),
            ("Client", before, during, "TLS Handshake Failure", "", false),
            ("Client", before, during, "TLS Handshake Failure", "1.3", true),
        ] {
            let client = Connection {
                cid: 1,
                kind: kind.into(),
                authorized_user: String::new(),
                start,
                stop: Some(stop),
                reason: reason.into(),
                tls_version: tls_version.into(),
                tls_peer_certs: Vec::new(),
            };
            assert_eq!(client.was_closed_by(&load), counts, "{kind} {start} {stop} {reason}");
        }
    }
}
