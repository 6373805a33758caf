//! A TLS handshake from outside: it shows which chain a port serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::x509::chain::{Chain, ChainError, StoredChain};

/// The longest probe. On one host a probe takes milliseconds, to a peer one to three round trips.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The longest wait for a client port's greeting. After it the port counts as a port that begins TLS at once.
const GREETING: Duration = Duration::from_millis(1500);

/// nats-server's INFO line has some hundreds of bytes; with hundreds of `connect_urls` some tens of kilobytes.
const MAX_INFO: u64 = 256 * 1024;

/// One of nats-server's two TLS listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Sends INFO in the clear, then begins TLS. With `handshake_first` it begins TLS at once.
    Client,
    /// Begins TLS at once.
    Route,
}

impl std::fmt::Display for Port {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Client => "client",
            Self::Route => "route",
        })
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
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The port listens and TLS fails.
    #[error("no TLS handshake with {address}")]
    Handshake {
        /// The port.
        address: SocketAddr,
        /// rustls' or the system's error.
        #[source]
        source: std::io::Error,
    },
    /// The handshake showed no usable chain.
    #[error("{address} showed no usable certificate")]
    Chain {
        /// The port.
        address: SocketAddr,
        /// What is wrong with the chain.
        #[source]
        source: ChainError,
    },
    /// The handshake took too long.
    #[error("no TLS handshake with {address} within {} s", TIMEOUT.as_secs())]
    Slow {
        /// The port.
        address: SocketAddr,
    },
    /// A nats-server listens there that has no TLS on this port.
    #[error("{address} speaks NATS without TLS")]
    Plain {
        /// The port.
        address: SocketAddr,
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
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)));
        Ok(config)
    }

    /// The chain that the port serves.
    pub async fn served(&self, address: SocketAddr, port: Port) -> Result<Chain, ProbeError> {
        let probe = async {
            match self.handshake(address, port).await {
                Err(ProbeError::Handshake { .. }) if speaks_without_tls(address).await => {
                    Err(ProbeError::Plain { address })
                }
                served => served,
            }
        };
        tokio::time::timeout(TIMEOUT, probe).await.unwrap_or(Err(ProbeError::Slow { address }))
    }

    /// A connection to a port that begins TLS at once, and the chain that the port shows. The caller decides whether the
    /// chain is the expected chain.
    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<(TlsStream<TcpStream>, Chain), ProbeError> {
        let stream = TcpStream::connect(address).await.map_err(|source| ProbeError::Connect { address, source })?;
        let name = ServerName::IpAddress(address.ip().into());
        let stream =
            self.connector.connect(name, stream).await.map_err(|source| ProbeError::Handshake { address, source })?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let chain = Chain::new(shown).map_err(|source| ProbeError::Chain { address, source })?;
        Ok((stream, chain))
    }

    async fn handshake(&self, address: SocketAddr, port: Port) -> Result<Chain, ProbeError> {
        let mut stream = TcpStream::connect(address).await.map_err(|source| ProbeError::Connect { address, source })?;
        let handshake = |source| ProbeError::Handshake { address, source };
        // With `handshake_first` nats-server waits for the client and sends nothing.
        let greets = port == Port::Client && tokio::time::timeout(GREETING, stream.readable()).await.is_ok();
        if greets && !read_line(&mut stream).await.map_err(handshake)?.starts_with(b"INFO ") {
            return Err(handshake(std::io::Error::other("it doesn't greet as a nats-server")));
        }
        let name = ServerName::IpAddress(address.ip().into());
        let mut stream = self.connector.connect(name, stream).await.map_err(handshake)?;
        let served = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        if port == Port::Route {
            // nats-server sends its greeting now, and logs an error where the connection is closed already.
            let _greeting = read_line(&mut stream).await;
        }
        let _closed = stream.shutdown().await;
        Chain::new(served).map_err(|source| ProbeError::Chain { address, source })
    }
}

/// Whether a port greets as a nats-server that offers no TLS there. With TLS, a route port sends no greeting, and the
/// greeting of a client port says so.
async fn speaks_without_tls(address: SocketAddr) -> bool {
    let greeting = async { read_line(TcpStream::connect(address).await?).await };
    match tokio::time::timeout(GREETING, greeting).await {
        Ok(Ok(line)) => {
            let line = String::from_utf8_lossy(&line);
            line.starts_with("INFO ") && !line.contains("tls_required") && !line.contains("tls_available")
        }
        _ => false,
    }
}

/// Reads an INFO line. nats-server sends nothing after it until it is answered, so nothing is read ahead of a handshake.
async fn read_line(stream: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_INFO)).read_until(b'\n', &mut line).await?;
    Ok(line)
}

/// Accepts any certificate: the caller compares it with its own afterwards. The signature that proves the key is checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
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
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls_first = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let _end = stream.read(&mut [0]).await;
        });
        let served = Prober::presenting(&ours).unwrap().served(address, Port::Client).await.unwrap();
        assert_eq!(&served, ours.chain());
        tls_first.await.unwrap();
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
            for port in [Port::Client, Port::Route] {
                let error = Prober::anonymous().unwrap().served(address, port).await.unwrap_err();
                assert_eq!(matches!(error, ProbeError::Plain { .. }), is_plain, "{greeting}: {error}");
            }
            server.abort();
        }
    }
}
