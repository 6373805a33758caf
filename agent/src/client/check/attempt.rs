//! One URL: resolved, dialled, verified and logged in to.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use super::fault::{Failed, Fault, is_in_the_clear, refused, silent_failed, tls_failed};
use super::wire::{Info, Line, Lines};
use super::{Presented, Scope};
use crate::error::with_causes;

/// The port of a NATS server where a URL has none.
const DEFAULT_PORT: u16 = 4222;
/// How long a name or a connection may take.
const CONNECT: Duration = Duration::from_secs(4);
/// How long a silent server is waited for before TLS is tried too, on a connection of its own. nats-server greets within
/// milliseconds, and ports that begin with TLS stay silent. nats-server ends a silent connection after two seconds.
const GREETING: Duration = Duration::from_millis(1500);
/// How long a handshake may take, and a greeting after a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The most addresses of a name that are dialled.
const MOST_ADDRESSES: usize = 8;

/// The scheme, the host and the port of a URL.
fn parts(url: &str) -> Option<(&str, &str, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let rest = rest.trim_end_matches('/');
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(DEFAULT_PORT), |port| port.parse().ok())?;
    (!host.is_empty()).then_some((scheme, host, port))
}

pub(super) async fn attempt(
    url: &str,
    presented: &Presented,
    scope: Scope,
    address: &mut Option<SocketAddr>,
) -> Result<String, Failed> {
    let (scheme, host, port) = parts(url).ok_or_else(|| (Fault::NoUrl, "the text is no URL".to_owned()))?;
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|error| (Fault::NoUrl, format!("{host:?} can't be the name of a server: {error}")))?;
    let stream = connect(host, port, address).await?;
    if scheme == "wss" {
        drop(handshake(name, stream, presented).await?.map_err(|error| tls_failed(&error, presented))?);
        return Ok("its certificate is verified; a login over WebSocket isn't tried".into());
    }
    let mut lines = Lines::over(stream);
    let (stream, info, late) = match opening(&mut lines, (host, port), &name, presented, address).await? {
        Opening::Greeted { info, after } => {
            if let Some(said) = lines.buffered_error() {
                return Err(refused(&said));
            }
            // A server that is this slow is worth a word, although a service may connect.
            let late =
                (after > GREETING).then(|| format!(", and is slow: it greets after {:.1} s", after.as_secs_f64()));
            let shaken = handshake(name, lines.into_inner(), presented).await?;
            (shaken.map_err(|error| tls_failed(&error, presented))?, Some(info), late.unwrap_or_default())
        }
        Opening::Silent(shaken) => {
            (shaken.map_err(|error| silent_failed(&error, port, presented))?, None, String::new())
        }
    };
    if scope == Scope::Server {
        return Ok(format!("its certificate is verified{late}"));
    }
    let mut lines = Lines::over(stream);
    let info = match info {
        Some(info) => info,
        None => greeted_after_tls(&mut lines, port, presented).await?,
    };
    log_in(&mut lines, &info, presented).await.map(|found| found + &late)
}

/// How a server begins.
enum Opening {
    /// With its greeting in the clear, this long after the connection.
    Greeted { info: Info, after: Duration },
    /// With TLS, as a port of routes or a client port with `handshake_first` does.
    Silent(Box<io::Result<TlsStream<TcpStream>>>),
}

/// Waits for the greeting. A port that stays silent may begin with TLS, or the server may be slow. So TLS is tried on another
/// connection, and the greeting is waited for on the first connection meanwhile.
async fn opening(
    lines: &mut Lines<TcpStream>,
    (host, port): (&str, u16),
    name: &ServerName<'static>,
    presented: &Presented,
    address: &mut Option<SocketAddr>,
) -> Result<Opening, Failed> {
    let begun = Instant::now();
    let opened = |line: &Line| greeted(line).map(|info| Opening::Greeted { info, after: begun.elapsed() });
    let silent = |shaken| Opening::Silent(Box::new(shaken));
    let shaken = async {
        let stream = connect(host, port, address).await?;
        handshake(name.clone(), stream, presented).await
    };
    let (mut shaken, mut greeting) = (std::pin::pin!(shaken), std::pin::pin!(lines.next()));
    match tokio::time::timeout(GREETING, greeting.as_mut()).await {
        Ok(Ok(Some(line))) => return opened(&line),
        Ok(Ok(None)) => return shaken.await.map(silent),
        Ok(Err(error)) => return Err((Fault::Closed, with_causes(&error))),
        Err(_) => {}
    }
    let tried = tokio::select! {
        biased;
        heard = greeting.as_mut() => return match heard {
            Ok(Some(line)) => opened(&line),
            // nats-server ends a connection on which no TLS begins in time.
            Ok(None) | Err(_) => shaken.await.map(silent),
        },
        tried = shaken.as_mut() => tried?,
    };
    // An answer without TLS may be a late greeting. Then a greeting is on its way on the first connection too.
    if tried.as_ref().err().is_some_and(is_in_the_clear)
        && let Ok(Ok(Some(line))) = tokio::time::timeout(GREETING, greeting).await
    {
        return opened(&line);
    }
    Ok(silent(tried))
}

/// A handshake, which fails with a fault of its own where it takes too long.
async fn handshake(
    name: ServerName<'static>,
    stream: TcpStream,
    presented: &Presented,
) -> Result<io::Result<TlsStream<TcpStream>>, Failed> {
    let tried = tokio::time::timeout(HANDSHAKE, presented.connector.connect(name, stream)).await;
    tried.map_err(|_| {
        (Fault::NoAnswer, format!("it says nothing, and no TLS handshake ends within {} s", HANDSHAKE.as_secs()))
    })
}

/// Dials the addresses of a name, one after another.
async fn connect(host: &str, port: u16, address: &mut Option<SocketAddr>) -> Result<TcpStream, Failed> {
    let addresses = tokio::time::timeout(CONNECT, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<_> = match addresses {
        Ok(Ok(addresses)) => addresses.take(MOST_ADDRESSES).collect(),
        Ok(Err(error)) => return Err((Fault::NoResolve, format!("{host} doesn't resolve: {error}"))),
        Err(_) => return Err((Fault::NoResolve, format!("{host} doesn't resolve within {} s", CONNECT.as_secs()))),
    };
    let mut failed = (Fault::NoResolve, format!("{host} has no address"));
    for candidate in addresses {
        *address = Some(candidate);
        failed = match tokio::time::timeout(CONNECT, TcpStream::connect(candidate)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                (Fault::Refused, format!("nobody listens at {candidate}"))
            }
            Ok(Err(error)) => (Fault::NoAnswer, format!("could not connect to {candidate}: {error}")),
            Err(_) => (Fault::NoAnswer, format!("{candidate} doesn't answer within {} s", CONNECT.as_secs())),
        };
    }
    Err(failed)
}

/// The greeting in the clear.
fn greeted(line: &Line) -> Result<Info, Failed> {
    match line {
        Line::Info(info) if info.offers_tls() => Ok(info.clone()),
        Line::Info(_) => Err((Fault::NotTls, "it is a nats-server that offers no TLS on this port".into())),
        Line::Error(said) => Err(refused(said)),
        Line::Pong | Line::Other => Err((Fault::NotNats, "what speaks there is no nats-server".into())),
    }
}

/// The greeting after TLS, on a port that was silent before. A port of routes sends an INFO without a client's id.
async fn greeted_after_tls(
    lines: &mut Lines<TlsStream<TcpStream>>,
    port: u16,
    presented: &Presented,
) -> Result<Info, Failed> {
    match tokio::time::timeout(HANDSHAKE, lines.next()).await {
        Ok(Ok(Some(Line::Info(info)))) if info.is_for_clients() => Ok(info),
        Ok(Ok(Some(Line::Info(_)))) => Err((Fault::RoutePort, "it greets as servers greet each other".into())),
        Ok(Ok(Some(Line::Error(said)))) => Err(refused(&said)),
        Ok(Err(error)) => Err(silent_failed(&error, port, presented)),
        Ok(Ok(_)) => Err((Fault::NotNats, "it has TLS, and doesn't greet as a nats-server".into())),
        Err(_) => Err(still_silent(lines).await),
    }
}

/// Why a server says nothing after TLS. A web server waits for the client, and a slow server doesn't answer either.
async fn still_silent(lines: &mut Lines<TlsStream<TcpStream>>) -> Failed {
    let asked = async {
        lines.get_mut().write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        lines.next().await
    };
    match tokio::time::timeout(GREETING, asked).await {
        Ok(Ok(Some(Line::Other))) => (Fault::NotNats, "it has TLS, and is a web server".into()),
        _ => (Fault::NoAnswer, format!("it has TLS, and says nothing within {} s", HANDSHAKE.as_secs())),
    }
}

async fn log_in(lines: &mut Lines<TlsStream<TcpStream>>, info: &Info, presented: &Presented) -> Result<String, Failed> {
    let connect = presented.credentials.connect(info).map_err(|what| (Fault::CredentialsUnusable, what))?;
    let words = Zeroizing::new(format!("CONNECT {}\r\nPING\r\n", connect.as_str()));
    let sent = lines.get_mut().write_all(words.as_bytes()).await;
    sent.map_err(|error| tls_failed(&error, presented))?;
    loop {
        match lines.next().await {
            Ok(Some(Line::Pong)) => return Ok(format!("{} {} takes the login", info.server_name, info.version)),
            Ok(Some(Line::Error(said))) => return Err(refused(&said)),
            Ok(Some(Line::Info(_) | Line::Other)) => {}
            Ok(None) => return Err((Fault::Closed, "it closes the connection after the login".into())),
            Err(error) => return Err(tls_failed(&error, presented)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_scheme_a_host_and_a_port() {
        assert_eq!(parts("tls://nats.internal:4333"), Some(("tls", "nats.internal", 4333)));
        assert_eq!(parts("nats://10.0.1.5"), Some(("nats", "10.0.1.5", 4222)));
        assert_eq!(parts("tls://[fd00::1]:4333"), Some(("tls", "fd00::1", 4333)));
        for wrong in ["nats.internal:4222", "tls://", "tls://a:b", "tls://a:99999"] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }
}
