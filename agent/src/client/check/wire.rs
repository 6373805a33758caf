//! The lines of NATS's protocol, as far as a login needs them
//! (<https://docs.nats.io/reference/reference-protocols/nats-protocol>).

use std::io;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// The longest line, in bytes. INFO with hundreds of `connect_urls` has some tens of kilobytes.
const MAX_LINE: u64 = 256 * 1024;
/// How much of a server's own words is repeated, in characters.
const MAX_WORDS: usize = 200;

/// What a server says of itself.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct Info {
    pub(super) server_name: String,
    pub(super) version: String,
    pub(super) tls_required: bool,
    pub(super) tls_available: bool,
    /// The client's number. A port of routes gives none.
    pub(super) client_id: Option<u64>,
    /// What a user with a key has to sign.
    pub(super) nonce: Option<String>,
}

impl Info {
    pub(super) fn offers_tls(&self) -> bool {
        self.tls_required || self.tls_available
    }

    pub(super) fn is_for_clients(&self) -> bool {
        self.client_id.is_some()
    }

    /// The same, with texts that a terminal can show. A greeting in the clear may come from anybody.
    fn readable(self) -> Self {
        let (server_name, version) = (readable(&self.server_name), readable(&self.version));
        Self { server_name, version, ..self }
    }
}

/// A line of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// `INFO {…}`.
    Info(Info),
    /// `-ERR '…'`, without the quotes.
    Error(String),
    /// `PONG`.
    Pong,
    /// Anything else.
    Other,
}

impl Line {
    fn of(text: &str) -> Self {
        if let Some(json) = text.strip_prefix("INFO ") {
            return serde_json::from_str::<Info>(json).map_or(Self::Other, |info| Self::Info(info.readable()));
        }
        match text.strip_prefix("-ERR") {
            Some(words) => Self::Error(readable(words)),
            None if text.trim() == "PONG" => Self::Pong,
            None => Self::Other,
        }
    }
}

/// A server's words on one line and of bounded length.
fn readable(words: &str) -> String {
    let words = words.trim().trim_matches('\'');
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WORDS).collect()
}

/// The lines of a connection.
pub(super) struct Lines<S> {
    stream: BufReader<S>,
}

impl<S: AsyncRead + Unpin> Lines<S> {
    pub(super) fn over(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// The next line. `None`: the connection has ended.
    pub(super) async fn next(&mut self) -> io::Result<Option<Line>> {
        let mut bytes = Vec::new();
        let read = (&mut self.stream).take(MAX_LINE).read_until(b'\n', &mut bytes).await?;
        Ok((read > 0).then(|| Line::of(String::from_utf8_lossy(&bytes).trim_end())))
    }

    /// An error that came in one go with the line before. A full nats-server sends its greeting and the error at once.
    pub(super) fn buffered_error(&self) -> Option<String> {
        let rest = String::from_utf8_lossy(self.stream.buffer());
        match Line::of(rest.lines().next()?) {
            Line::Error(said) => Some(said),
            _ => None,
        }
    }

    pub(super) fn get_mut(&mut self) -> &mut S {
        self.stream.get_mut()
    }

    /// The connection. What was read ahead is lost, and a server says nothing ahead of TLS.
    pub(super) fn into_inner(self) -> S {
        self.stream.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_lines_of_a_server_are_read_one_by_one() {
        let said = "INFO {\"server_name\":\"a\",\"version\":\"2.15.1\",\"tls_required\":true,\"client_id\":7}\r\n\
                    -ERR 'maximum connections exceeded'\r\nPONG\r\n+OK\r\nHTTP/1.1 400 Bad Request\r\n";
        let mut lines = Lines::over(said.as_bytes());
        let Some(Line::Info(info)) = lines.next().await.unwrap() else { panic!("no INFO") };
        assert!(info.offers_tls() && info.is_for_clients() && info.server_name == "a");
        assert_eq!(lines.buffered_error().as_deref(), Some("maximum connections exceeded"));
        assert_eq!(lines.next().await.unwrap(), Some(Line::Error("maximum connections exceeded".into())));
        assert_eq!(lines.next().await.unwrap(), Some(Line::Pong));
        assert_eq!(lines.next().await.unwrap(), Some(Line::Other));
        assert_eq!(lines.next().await.unwrap(), Some(Line::Other));
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[test]
    fn the_name_of_a_server_is_one_line_of_bounded_length() {
        let name = format!("a\\u001b[31m{}", "x".repeat(10_000));
        let Line::Info(info) = Line::of(&format!("INFO {{\"server_name\":\"{name}\"}}")) else { panic!("no INFO") };
        assert!(info.server_name.starts_with("a [31mx") && info.server_name.len() == MAX_WORDS, "{}", info.server_name);
    }

    proptest::proptest! {
        #[test]
        fn no_line_breaks_the_reader(text in "(?s)(INFO |-ERR )?.{0,200}") {
            let _read = Line::of(&text);
        }
    }
}
