//! A TLS handshake from outside: which leaf does a port serve?

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::trust::VerifiedChain;

/// How long a probe takes at most: on one host it takes milliseconds, to a peer a round trip or three.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// How long a client port may take to greet. Thereafter it is taken for one that begins TLS at once.
const GREETING: Duration = Duration::from_millis(1500);

/// nats-server's INFO line is some hundreds of bytes; with hundreds of `connect_urls` some tens of kilobytes.
const MAX_INFO: u64 = 256 * 1024;

/// Which of nats-server's two listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Sends INFO in the clear, then begins TLS; with `handshake_first` begins TLS at once.
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

/// Why a port showed no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Our own certificate or key can't be presented.
    #[error("could not prepare a TLS handshake with our own certificate")]
    Identity(#[source] rustls::Error),
    /// The key isn't PEM.
    #[error("could not prepare a TLS handshake with our own certificate")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// Nobody listens there, or it can't be reached.
    #[error("could not connect to {address}")]
    Connect {
        /// There.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It listens, but there was no TLS.
    #[error("no TLS handshake with {address}")]
    Handshake {
        /// There.
        address: SocketAddr,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// It took too long.
    #[error("no TLS handshake with {address} within {} s", TIMEOUT.as_secs())]
    Slow {
        /// There.
        address: SocketAddr,
    },
}

/// Makes handshakes that present our own leaf: the route port asks for one, and would log an error without.
#[derive(Clone)]
pub struct Prober {
    connector: tokio_rustls::TlsConnector,
}

impl Prober {
    /// Presents this chain, or no certificate.
    pub fn presenting(chain: Option<&VerifiedChain>) -> Result<Self, ProbeError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(ProbeError::Identity)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)));
        let config = match chain {
            None => builder.with_no_client_auth(),
            Some(chain) => {
                let certs = CertificateDer::pem_slice_iter(chain.cert_pem.as_bytes())
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(ProbeError::Pem)?;
                let key = PrivateKeyDer::from_pem_slice(chain.key.expose().as_bytes()).map_err(ProbeError::Pem)?;
                builder.with_client_auth_cert(certs, key).map_err(ProbeError::Identity)?
            }
        };
        Ok(Self { connector: Arc::new(config).into() })
    }

    /// The certificates that the port serves, leaf first, in DER.
    pub async fn served(&self, address: SocketAddr, port: Port) -> Result<Vec<Vec<u8>>, ProbeError> {
        tokio::time::timeout(TIMEOUT, self.handshake(address, port)).await.unwrap_or(Err(ProbeError::Slow { address }))
    }

    async fn handshake(&self, address: SocketAddr, port: Port) -> Result<Vec<Vec<u8>>, ProbeError> {
        let mut stream = TcpStream::connect(address).await.map_err(|source| ProbeError::Connect { address, source })?;
        let handshake = |source| ProbeError::Handshake { address, source };
        // One with `handshake_first` waits for the client, so nothing comes.
        let greets = port == Port::Client && tokio::time::timeout(GREETING, stream.readable()).await.is_ok();
        if greets && !read_line(&mut stream).await.map_err(handshake)?.starts_with(b"INFO ") {
            return Err(handshake(std::io::Error::other("it doesn't greet as a nats-server")));
        }
        let name = ServerName::IpAddress(address.ip().into());
        let mut stream = self.connector.connect(name, stream).await.map_err(handshake)?;
        let served = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let served = served.iter().map(|certificate| certificate.to_vec()).collect();
        if port == Port::Route {
            // It greets now. A connection that is gone by then would be an error in its log.
            let _greeting = read_line(&mut stream).await;
        }
        let _closed = stream.shutdown().await;
        Ok(served)
    }
}

/// Reads an INFO line. nats-server sends nothing after it until it is answered, so nothing is read ahead of a handshake.
async fn read_line(stream: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_INFO)).read_until(b'\n', &mut line).await?;
    Ok(line)
}

/// Accepts any certificate, as it is compared with ours afterwards; the signature that proves the key is checked.
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
    use crate::x509::csr::PrivateKeyPem;
    use crate::x509::leaf::Leaf;
    use crate::x509::test_ca::{Ca, key};

    fn chain() -> VerifiedChain {
        let (pair, key): (_, PrivateKeyPem) = key();
        let leaf = Ca::root("root").leaf(&pair);
        VerifiedChain { key, leaf: Leaf::parse(leaf.der()).unwrap(), cert_pem: leaf.pem() }
    }

    #[tokio::test]
    async fn a_client_port_that_waits_for_the_handshake_shows_its_certificate_too() {
        let ours = chain();
        let certs = ours.certificates().into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::from_pem_slice(ours.key.expose().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certs, key)
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
        assert_eq!(served, ours.certificates());
        tls_first.await.unwrap();
    }
}
