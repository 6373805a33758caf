//! A stand-in for an account server (`resolver: URL(…)`).
//!
//! nats-server asks for the bare URL when it starts, and ends where it gets no 200 (`server/accounts.go`,
//! `URLAccResolver`). Accounts are not needed for a start, and this server knows none.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The largest request that is read, in bytes.
const MAX_REQUEST: usize = 4 * 1024;
const TIMEOUT: Duration = Duration::from_secs(2);

/// The stand-in. It answers while [`AccountServer::serve`] is polled.
pub(super) struct AccountServer(TcpListener);

impl AccountServer {
    /// Listens on a port of loopback.
    pub(super) async fn bind() -> std::io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok((Self(listener), address))
    }

    /// Answers one request after the other, and never ends.
    pub(super) async fn serve(&self) -> Infallible {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => _ = tokio::time::timeout(TIMEOUT, answer(stream)).await,
                // An error such as too many open files may last, so the next attempt waits.
                Err(_) => tokio::time::sleep(TIMEOUT).await,
            }
        }
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    stream.write_all(reply(&request).as_bytes()).await?;
    stream.shutdown().await
}

/// `/N/` is the bare URL of resolver N. A longer path names an account.
fn reply(request: &[u8]) -> String {
    let request = String::from_utf8_lossy(request);
    let path = request.split_whitespace().nth(1).unwrap_or_default();
    let is_bare = path.trim_matches('/').bytes().all(|byte| byte.is_ascii_digit());
    let status = if is_bare { "200 OK" } else { "404 Not Found" };
    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bare_url_is_there_and_accounts_are_not() {
        assert!(reply(b"GET /0/ HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
        assert!(reply(b"GET /0/AAKGXBTHGL7 HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(reply(b"").starts_with("HTTP/1.1 "));
    }
}
