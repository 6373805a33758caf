//! `[connection]`: the connection document that the group keeps current.

use serde::Deserialize;

use super::{InvalidKey, check_secret_id, invalid};

/// The most URLs. A client tries each URL in turn.
pub(crate) const MAX_URLS: usize = 100;
/// The schemes that clients of nats-server know. A WebSocket client dials the last scheme.
const SCHEMES: [&str; 3] = ["tls", "nats", "wss"];

/// `[connection]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionConfig {
    /// The secret that holds the document.
    pub secret_id: String,
    /// The URLs of the document. Empty: the document names `node.dns_names`, else the nodes.
    pub urls: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConnection {
    secret_id: Option<String>,
    urls: Vec<String>,
}

impl RawConnection {
    pub(super) fn check(self) -> Result<Option<ConnectionConfig>, InvalidKey> {
        if self.urls.len() > MAX_URLS {
            return Err(invalid(
                "connection.urls",
                format!("names more than {MAX_URLS} URLs; name fewer, because a client tries each in turn"),
            ));
        }
        if let Some(url) = self.urls.iter().find(|url| !is_url(url)) {
            let example = "write for instance \"tls://nats.internal:4222\"";
            return Err(invalid("connection.urls", format!("{url:?} is no URL of a NATS server; {example}")));
        }
        let Some(secret_id) = self.secret_id else {
            if self.urls.is_empty() {
                return Ok(None);
            }
            return Err(invalid(
                "connection.secret_id",
                "is missing; the URLs stand in the secret that this key names",
            ));
        };
        check_secret_id("connection.secret_id", &secret_id)?;
        Ok(Some(ConnectionConfig { secret_id, urls: self.urls }))
    }
}

/// Whether the text is `SCHEME://HOST[:PORT]`, without a user, a path or a comma. The document separates URLs by commas.
fn is_url(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => (address, port),
        Some(_) => return false,
        None => rest.find(':').map_or((rest, ""), |at| rest.split_at(at)),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    SCHEMES.contains(&scheme)
        && !host.is_empty()
        && host.chars().all(is_name)
        && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(secret_id: Option<&str>, urls: &[&str]) -> Result<Option<ConnectionConfig>, String> {
        let urls = urls.iter().map(|url| (*url).to_owned()).collect();
        let raw = RawConnection { secret_id: secret_id.map(ToOwned::to_owned), urls };
        raw.check().map_err(|InvalidKey { key, message }| format!("{key}: {message}"))
    }

    #[test]
    fn a_document_has_a_secret_and_urls_that_clients_can_dial() {
        assert_eq!(check(None, &[]), Ok(None));
        let good = ["tls://nats.internal:4222", "nats://10.0.1.5", "tls://[fd00::1]:4222", "wss://nats.internal:443"];
        assert_eq!(check(Some("nats/connection"), &good).unwrap().unwrap().urls, good);
        for bad in [
            "nats.internal:4222",
            "http://a",
            "tls://",
            "tls://a:0",
            "tls://a,tls://b",
            "tls://u:p@a",
            "tls://[::1",
            "tls://a/b",
        ] {
            let error = check(Some("nats/connection"), &[bad]).unwrap_err();
            assert!(error.starts_with("connection.urls: ") && error.contains("tls://nats.internal:4222"), "{error}");
        }
        assert!(check(None, &["tls://a"]).unwrap_err().starts_with("connection.secret_id: is missing"));
        assert!(check(Some(""), &[]).is_err());
    }
}
