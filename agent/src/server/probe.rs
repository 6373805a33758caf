//! A TLS handshake from outside: it shows which chain a port serves.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use std::net::SocketAddr;

use rustls::client::{ResolvesClientCert, WantsClientCert};
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ConfigBuilder, SignatureScheme};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::verifier::Verifier;
use crate::error::with_causes;
use crate::x509::chain::{Chain, ChainError, StoredChain};

/// The longest probe. On one host a probe takes milliseconds, to a peer one to three round trips.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The longest wait for what a port says in the clear.
const GREETING: Duration = Duration::from_millis(1500);
/// The longest wait for a refusal after a greeting. nats-server sends both in one go.
const REFUSAL: Duration = Duration::from_millis(250);
/// The longest wait for the greeting after TLS. The certificate is seen by then.
const GREETING_AFTER_TLS: Duration = Duration::from_secs(1);

/// nats-server's INFO line has some hundreds of bytes; with hundreds of `connect_urls` some tens of kilobytes.
const MAX_INFO: u64 = 256 * 1024;
/// The most CA names that are read from a request for a certificate. A bundle has fewer.
const MAX_ACCEPTED: usize = 1000;
/// How much of the other end's first words is kept for the case that TLS fails.
const MAX_HEARD: usize = 4 * 1024;

/// A TLS listener of nats-server.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Port {
    /// Clients.
    Client,
    /// Routes.
    Route,
    /// Gateways.
    Gateway,
    /// Leaf nodes.
    Leafnode,
    /// Clients over WebSocket.
    Websocket,
    /// MQTT clients.
    Mqtt,
    /// Monitoring over HTTPS.
    Monitor,
}

impl Port {
    /// How the port begins, without `handshake_first`. `server/{client,route,gateway,leafnode}.go`, 2.10 to 2.15.
    #[must_use]
    pub fn opening(self) -> Opening {
        match self {
            Self::Client | Self::Leafnode => Opening::Greeting,
            Self::Route | Self::Gateway => Opening::TlsThenGreeting,
            Self::Websocket | Self::Mqtt | Self::Monitor => Opening::Tls,
        }
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Client => "client",
            Self::Route => "route",
            Self::Gateway => "gateway",
            Self::Leafnode => "leafnode",
            Self::Websocket => "websocket",
            Self::Mqtt => "mqtt",
            Self::Monitor => "monitor",
        })
    }
}

/// What comes first on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// nats-server sends INFO in the clear, and then TLS begins.
    Greeting,
    /// TLS begins at once, and then nats-server sends INFO.
    TlsThenGreeting,
    /// TLS begins at once.
    Tls,
    /// Nobody knows who speaks first. A port that stays silent for a while counts as a port that waits for TLS.
    Either,
}

/// Why a port shows no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Silence {
    /// nats-server doesn't run.
    NotRunning,
    /// Nobody listens.
    Closed(String),
    /// The port answers nothing in time. A reload may be under way.
    Hangs(String),
    /// The port was probed just now, and nats-server throttles connections.
    Spared,
    /// nats-server has as many connections as it takes, or throttles new connections. It serves the others.
    Full(String),
    /// nats-server listens without TLS.
    Plain(String),
    /// The handshake fails.
    Failed(String),
}

impl Silence {
    /// Whether nats-server serves clients all the same.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Spared)
    }
}

impl std::fmt::Display for Silence {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Spared => formatter.write_str("the port was probed less than a second before"),
            Self::NotRunning => formatter.write_str("nats-server isn't running"),
            Self::Closed(text) | Self::Hangs(text) | Self::Full(text) | Self::Plain(text) | Self::Failed(text) => {
                formatter.write_str(text)
            }
        }
    }
}

impl From<&ProbeError> for Silence {
    fn from(error: &ProbeError) -> Self {
        let text = with_causes(error);
        match error {
            ProbeError::Connect { .. } => Self::Closed(text),
            ProbeError::Slow { .. } => Self::Hangs(text),
            ProbeError::Full { .. } => Self::Full(text),
            ProbeError::Plain { .. } => Self::Plain(text),
            ProbeError::Identity(_) | ProbeError::Key | ProbeError::Handshake { .. } | ProbeError::Chain { .. } => {
                Self::Failed(text)
            }
        }
    }
}

/// Why a port showed no chain.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// rustls rejects the node's own certificate or key.
    #[error("could not prepare a TLS handshake with our own certificate")]
    Identity(#[source] rustls::Error),
    /// The node's own key is damaged.
    #[error("could not prepare a TLS handshake with our own certificate: its key is not PKCS#8 in PEM")]
    Key,
    /// Nobody listens at the address, or the network is down.
    #[error("could not connect to {address}")]
    Connect {
        /// The port.
        address: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The port listens and TLS fails.
    #[error("no TLS handshake with {address}")]
    Handshake {
        /// The port.
        address: String,
        /// rustls' or the system's error.
        #[source]
        source: std::io::Error,
    },
    /// The handshake showed no usable chain.
    #[error("{address} showed no usable certificate")]
    Chain {
        /// The port.
        address: String,
        /// What is wrong with the chain.
        #[source]
        source: ChainError,
    },
    /// The handshake took too long.
    #[error("no TLS handshake with {address} within {} s", TIMEOUT.as_secs())]
    Slow {
        /// The port.
        address: String,
    },
    /// nats-server takes no further connection on this port.
    #[error("{address} takes no connection now: {said}")]
    Full {
        /// The port.
        address: String,
        /// nats-server's own words.
        said: String,
    },
    /// A nats-server listens there that has no TLS on this port.
    #[error("{address} speaks NATS without TLS")]
    Plain {
        /// The port.
        address: String,
    },
}

/// Makes handshakes and presents the node's own leaf. The route port asks for a client certificate, and without one
/// nats-server logs an error.
#[derive(Clone)]
pub struct Prober {
    connector: tokio_rustls::TlsConnector,
}

impl Prober {
    /// Prepares handshakes with this key and chain.
    pub fn presenting(ours: &StoredChain) -> Result<Self, ProbeError> {
        let certs = ours.chain().certificates().cloned().collect();
        let key = ours.key().to_der().ok_or(ProbeError::Key)?;
        let config = Self::config()?.with_client_auth_cert(certs, key).map_err(ProbeError::Identity)?;
        Ok(Self { connector: Arc::new(config).into() })
    }

    /// Presents no certificate, for a node that has none. A port that wants one shows its own first (TLS 1.3).
    pub fn anonymous() -> Result<Self, ProbeError> {
        Ok(Self { connector: Arc::new(Self::config()?.with_no_client_auth()).into() })
    }

    fn config() -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, ProbeError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(ProbeError::Identity)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::of_any_leaf(provider)));
        Ok(config)
    }

    /// The chain that a listener at `address`, `host:port`, serves.
    pub async fn served(&self, address: &str, opening: Opening) -> Result<Chain, ProbeError> {
        let address = || address.to_owned();
        let probe = async {
            match self.handshake(&address(), opening).await {
                Err(error @ ProbeError::Handshake { .. }) => Err(match said_in_the_clear(&address()).await {
                    Said::Refusal(said) => ProbeError::Full { address: address(), said },
                    Said::PlainGreeting => ProbeError::Plain { address: address() },
                    Said::Nothing => error,
                }),
                served => served,
            }
        };
        tokio::time::timeout(TIMEOUT, probe).await.unwrap_or(Err(ProbeError::Slow { address: address() }))
    }

    /// The chain that a listener serves, and the distinguished names in DER of the CAs that it accepts.
    ///
    /// A listener that verifies clients names these CAs in its request for a certificate (RFC 8446, section 4.2.4; RFC 5246,
    /// section 7.4.4). nats-server names every CA of its `ca_file`.
    pub(crate) async fn shown(&self, address: &str, opening: Opening) -> Result<(Chain, Vec<Vec<u8>>), ProbeError> {
        let mut config = ClientConfig::clone(self.connector.config());
        let presented = Arc::new(Presented { ours: config.client_auth_cert_resolver, accepted: Mutex::default() });
        config.client_auth_cert_resolver = Arc::clone(&presented) as Arc<dyn ResolvesClientCert>;
        let chain = Self { connector: Arc::new(config).into() }.served(address, opening).await?;
        let accepted = std::mem::take(&mut *presented.accepted.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((chain, accepted))
    }

    /// A connection to a port that begins TLS at once, and the chain that the port shows. The caller decides whether the
    /// chain is the expected chain.
    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<(TlsStream<TcpStream>, Chain), ProbeError> {
        let at = || address.to_string();
        let stream =
            TcpStream::connect(address).await.map_err(|source| ProbeError::Connect { address: at(), source })?;
        let name = ServerName::IpAddress(address.ip().into());
        let stream = self.connector.connect(name, stream).await;
        let stream = stream.map_err(|source| ProbeError::Handshake { address: at(), source })?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let chain = Chain::new(shown).map_err(|source| ProbeError::Chain { address: at(), source })?;
        Ok((stream, chain))
    }

    async fn handshake(&self, address: &str, opening: Opening) -> Result<Chain, ProbeError> {
        let connect = |source| ProbeError::Connect { address: address.to_owned(), source };
        let mut stream = TcpStream::connect(address).await.map_err(connect)?;
        let handshake = |source| ProbeError::Handshake { address: address.to_owned(), source };
        let greets = match opening {
            Opening::Greeting => true,
            Opening::Either => tokio::time::timeout(GREETING, stream.readable()).await.is_ok(),
            Opening::TlsThenGreeting | Opening::Tls => false,
        };
        if greets {
            let (line, rest) = read_line(&mut stream).await.map_err(handshake)?;
            if !line.starts_with("INFO ") {
                return Err(handshake(std::io::Error::other("it doesn't greet as a nats-server")));
            }
            if let Some(said) = refusal_in(&rest) {
                return Err(ProbeError::Full { address: address.to_owned(), said });
            }
            if !offers_tls(&line) {
                return Err(ProbeError::Plain { address: address.to_owned() });
            }
        }
        let name = ServerName::IpAddress(stream.peer_addr().map_err(connect)?.ip().into());
        let mut stream = Overheard { stream, heard: Vec::new() };
        let mut tls = match self.connector.connect(name, &mut stream).await {
            Ok(tls) => tls,
            Err(source) => {
                return Err(match refusal_in(&String::from_utf8_lossy(&stream.heard)) {
                    Some(said) => ProbeError::Full { address: address.to_owned(), said },
                    None => handshake(source),
                });
            }
        };
        let served = tls.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        if !greets && matches!(opening, Opening::TlsThenGreeting | Opening::Either) {
            // nats-server sends its greeting now, and logs an error where the connection is closed already.
            let _greeting = tokio::time::timeout(GREETING_AFTER_TLS, read_line(&mut tls)).await;
        }
        let _closed = tls.shutdown().await;
        Chain::new(served).map_err(|source| ProbeError::Chain { address: address.to_owned(), source })
    }
}

/// Presents our own certificate whatever CAs the other end names, and notes these CAs.
#[derive(Debug)]
struct Presented {
    ours: Arc<dyn ResolvesClientCert>,
    accepted: Mutex<Vec<Vec<u8>>>,
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, named: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let named = named.iter().take(MAX_ACCEPTED).map(|name| name.to_vec()).collect();
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = named;
        self.ours.resolve(&[], schemes)
    }

    fn has_certs(&self) -> bool {
        self.ours.has_certs()
    }
}

/// What a port says in the clear.
enum Said {
    /// The greeting of a nats-server that offers no TLS there.
    PlainGreeting,
    /// nats-server takes no connection now, in its own words.
    Refusal(String),
    /// Nothing that explains a handshake that failed.
    Nothing,
}

/// Asks a port whose handshake failed without a word. With TLS, a route port sends no greeting, and the greeting of a client port says so.
/// A full client port sends its greeting and an error at once (docs/nats-server.md).
async fn said_in_the_clear(address: &str) -> Said {
    let greeting = async {
        let mut stream = TcpStream::connect(address).await?;
        let read = read_line(&mut stream).await?;
        Ok::<_, std::io::Error>((stream, read))
    };
    let Ok(Ok((mut stream, (line, rest)))) = tokio::time::timeout(GREETING, greeting).await else {
        return Said::Nothing;
    };
    if !line.starts_with("INFO ") {
        return Said::Nothing;
    }
    let later = match tokio::time::timeout(REFUSAL, read_line(&mut stream)).await {
        Ok(Ok((later, _))) => later,
        _ => String::new(),
    };
    if let Some(said) = refusal_in(&rest).or_else(|| refusal_in(&later)) {
        return Said::Refusal(said);
    }
    if offers_tls(&line) { Said::Nothing } else { Said::PlainGreeting }
}

/// Whether a greeting says that TLS follows, or may follow.
fn offers_tls(info: &str) -> bool {
    info.contains("tls_required") || info.contains("tls_available")
}

/// Reads a line, and returns it with what came after the line in one go. nats-server sends nothing after INFO until it is
/// answered, but an error.
async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(String, String)> {
    let mut read = Vec::new();
    let mut stream = BufReader::new(stream.take(MAX_INFO));
    stream.read_until(b'\n', &mut read).await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&read), text(stream.buffer())))
}

/// nats-server's words of an error line.
fn refusal_in(line: &str) -> Option<String> {
    Some(line.strip_prefix("-ERR ")?.trim().trim_matches('\'').to_owned())
}

/// A connection, with the first bytes that came from the other end. Where TLS fails, they tell why without another connection,
/// which a rate limit would count.
struct Overheard {
    stream: TcpStream,
    heard: Vec<u8>,
}

impl AsyncRead for Overheard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = &buffer.filled()[before..];
        let room = MAX_HEARD.saturating_sub(self.heard.len()).min(read.len());
        self.heard.extend_from_slice(&read[..room]);
        polled
    }
}

impl AsyncWrite for Overheard {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls::ServerConfig;
    use tokio::net::TcpListener;

    use super::*;
    use crate::x509::test_ca::{Ca, key};

    fn stored() -> StoredChain {
        let (pair, key) = key();
        StoredChain::new(key, Chain::new(vec![Ca::root("root").leaf(&pair).der().clone()]).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_client_port_that_waits_for_the_handshake_shows_its_certificate_too() {
        let ours = stored();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(ours.chain().certificates().cloned().collect(), ours.key().to_der().unwrap())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        for opening in [Opening::Tls, Opening::TlsThenGreeting, Opening::Either] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let acceptor = acceptor.clone();
            let tls_first = tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = acceptor.accept(stream).await.unwrap();
                let _end = stream.read(&mut [0]).await;
            });
            let served = Prober::presenting(&ours).unwrap().served(&address, opening).await.unwrap();
            assert_eq!(&served, ours.chain(), "{opening:?}");
            tls_first.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_port_without_tls_is_told_from_a_port_whose_handshake_fails() {
        for (greeting, is_plain) in [
            ("INFO {\"server_id\":\"N\"}\r\n", true),
            ("INFO {\"tls_required\":true}\r\n", false),
            ("INFO {\"tls_available\":true}\r\n", false),
            ("HTTP/1.1 400 Bad Request\r\n", false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let _gone = stream.write_all(greeting.as_bytes()).await;
                    let _end = stream.read(&mut [0; 16]).await;
                    let _gone = stream.write_all(b"-ERR 'Unknown Protocol Operation'\r\n").await;
                }
            });
            for opening in [Opening::Greeting, Opening::TlsThenGreeting] {
                let error = Prober::anonymous().unwrap().served(&address.to_string(), opening).await.unwrap_err();
                assert_eq!(matches!(error, ProbeError::Plain { .. }), is_plain, "{greeting}: {error}");
            }
            server.abort();
        }
    }

    /// A port that says these words to each connection, and then reads. Returns its address, and the number of
    /// connections and of bytes that it got.
    async fn port(words: &'static [u8], pause: Duration) -> (String, Arc<[AtomicUsize; 2]>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let counted = Arc::clone(&counts);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counted[0].fetch_add(1, Ordering::Relaxed);
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    tokio::time::sleep(pause).await;
                    let _gone = stream.write_all(words).await;
                    let mut buffer = [0; 1024];
                    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                        counted[1].fetch_add(count, Ordering::Relaxed);
                    }
                });
            }
        });
        (address, counts)
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_has_not_greeted_yet_is_slow_and_is_not_spoken_to() {
        let (address, counts) = port(b"INFO {\"tls_required\":true}\r\n", TIMEOUT * 2).await;
        let error = Prober::anonymous().unwrap().served(&address, Opening::Greeting).await.unwrap_err();
        assert!(matches!(Silence::from(&error), Silence::Hangs(_)), "{error}");
        let [connections, bytes] = &*counts;
        assert_eq!((connections.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed)), (1, 0));
    }

    #[tokio::test]
    async fn a_port_that_is_full_or_throttled_says_so_to_one_connection() {
        let full: &[u8] = b"INFO {\"tls_required\":true}\r\n-ERR 'maximum connections exceeded'\r\n";
        let throttled: &[u8] = b"-ERR 'Connection throttling is active. Please try again later.'\r\n";
        for (words, opening) in
            [(full, Opening::Greeting), (full, Opening::Either), (throttled, Opening::TlsThenGreeting)]
        {
            let (address, counts) = port(words, Duration::ZERO).await;
            let error = Prober::anonymous().unwrap().served(&address, opening).await.unwrap_err();
            assert!(matches!(error, ProbeError::Full { .. }), "{error}");
            assert_eq!(counts[0].load(Ordering::Relaxed), 1, "{opening:?}");
        }
    }
}
