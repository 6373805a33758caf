//! A relay before nats-server's client port, in the place of the gate. The relay reads what clients send, so that it can
//! spoil the agent's connection to the system account alone.
//!
//! Towards the agent the relay presents the certificate that nats-server serves at this moment, with the node's own key.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use harness::Failure;
use nats_tls_agent::conf::system::INBOX;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// The delay of a slow request. The agent waits five seconds for an answer.
const SLOW: Duration = Duration::from_secs(8);

/// The treatment of the agent's connection. Other connections pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Treatment {
    /// The relay forwards everything.
    #[default]
    Passes,
    /// The relay closes the connection in the place of a reload.
    Gone,
    /// The relay forwards a reload late.
    Slow,
    /// The relay answers a reload, and nats-server doesn't hear of it.
    Lying,
    /// The relay refuses the agent's user, and closes an established connection.
    Denied,
}

impl Treatment {
    /// The name of the fault.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Passes => "passes",
            Self::Gone => "gone",
            Self::Slow => "slow",
            Self::Lying => "lying",
            Self::Denied => "denied",
        }
    }
}

/// A relay that ends when dropped.
pub(super) struct Relay {
    listen: SocketAddr,
    way: Arc<Way>,
    tasks: JoinSet<()>,
}

impl Relay {
    /// A relay that doesn't listen yet. It leaves a file beside `mark` for each fault that a reload meets.
    pub(super) fn new(listen: SocketAddr, to: SocketAddr, state: &Path, mark: &Path) -> Self {
        let way = Way {
            to,
            generations: state.join("generations"),
            mark: mark.to_owned(),
            treatment: watch::Sender::default(),
            agents: watch::Sender::default(),
        };
        Self { listen, way: Arc::new(way), tasks: JoinSet::new() }
    }

    pub(super) async fn open(&mut self) -> Result<(), Failure> {
        if !self.tasks.is_empty() {
            return Ok(());
        }
        let (listen, way) = (self.listen, Arc::clone(&self.way));
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|error| Failure::new(format!("no relay at {listen}")).because(error))?;
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let way = Arc::clone(&way);
                connections.spawn(async move {
                    // Either side may close first, and a probe closes after its handshake.
                    drop(way.pass(stream).await);
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(())
    }

    pub(super) fn set(&self, treatment: Treatment) {
        self.way.treatment.send_replace(treatment);
    }

    /// Waits until the agent has its connection.
    pub(super) async fn connected(&self, within: Duration) -> Result<(), String> {
        let mut agents = self.way.agents.subscribe();
        match tokio::time::timeout(within, agents.wait_for(|count| *count > 0)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err("the agent made no connection to the system account".to_owned()),
        }
    }

    /// Ends the relay, and waits until its port is free.
    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

/// The way from clients to nats-server.
struct Way {
    to: SocketAddr,
    generations: PathBuf,
    mark: PathBuf,
    treatment: watch::Sender<Treatment>,
    /// The number of connections of the agent.
    agents: watch::Sender<usize>,
}

impl Way {
    async fn pass(&self, mut client: TcpStream) -> std::io::Result<()> {
        let mut server = TcpStream::connect(self.to).await?;
        // nats-server waits for TLS after its greeting.
        let mut greeting = Vec::new();
        while !greeting.ends_with(b"\r\n") {
            if server.read_buf(&mut greeting).await? == 0 {
                break;
            }
        }
        client.write_all(&greeting).await?;
        let server = self.connector()?.connect(self.to.ip().into(), server).await?;
        let leaf = server.get_ref().1.peer_certificates().and_then(|shown| shown.first()).cloned();
        let client = self.acceptor(leaf.as_ref())?.accept(client).await?;

        let mut treatment = self.treatment.subscribe();
        let mut passage = Passing { way: self, client, server, agent: None, late: None };
        let (mut asked, mut answered) = (Vec::new(), Vec::new());
        loop {
            while let Some(length) = length_of_operation(&asked) {
                let operation = asked.drain(..length).collect();
                let now = *treatment.borrow_and_update();
                if passage.forward(operation, now).await?.is_break() {
                    return passage.client.shutdown().await;
                }
            }
            let Passing { client, server, agent, late, .. } = &mut passage;
            server.flush().await?;
            client.flush().await?;
            tokio::select! {
                read = client.read_buf(&mut asked) => if read? == 0 {
                    return server.shutdown().await;
                },
                read = server.read_buf(&mut answered) => {
                    if read? == 0 {
                        return client.shutdown().await;
                    }
                    client.write_all(&answered).await?;
                    answered.clear();
                }
                operation = due(late) => server.write_all(&operation).await?,
                () = denied(&mut treatment), if agent.is_some() => return client.shutdown().await,
            }
        }
    }

    /// Trusts the roots of every generation.
    fn connector(&self) -> std::io::Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        for generation in self.generations()? {
            for root in CertificateDer::pem_file_iter(generation.join("ca.pem")).into_iter().flatten().flatten() {
                roots.add(root).map_err(std::io::Error::other)?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(std::io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
        Ok(Arc::new(config).into())
    }

    /// Presents the generation that has this leaf.
    fn acceptor(&self, leaf: Option<&CertificateDer<'_>>) -> std::io::Result<TlsAcceptor> {
        for generation in self.generations()? {
            let Ok(certificates) = CertificateDer::pem_file_iter(generation.join("cert.pem")) else { continue };
            let chain: Vec<_> = certificates.flatten().collect();
            if chain.first() != leaf {
                continue;
            }
            let key = PrivateKeyDer::from_pem_file(generation.join("key.pem")).map_err(std::io::Error::other)?;
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let config = config.map_err(std::io::Error::other)?.with_no_client_auth().with_single_cert(chain, key);
            return Ok(Arc::new(config.map_err(std::io::Error::other)?).into());
        }
        Err(std::io::Error::other("nats-server serves the leaf of no generation"))
    }

    fn generations(&self) -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(&self.generations)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn leave_mark(&self, met: Treatment) {
        std::fs::write(self.mark.with_extension(met.word()), "").unwrap();
    }
}

/// A connection between a client and nats-server.
struct Passing<'a> {
    way: &'a Way,
    client: server::TlsStream<TcpStream>,
    server: client::TlsStream<TcpStream>,
    agent: Option<Agent<'a>>,
    /// A request that nats-server gets at this time.
    late: Option<(Instant, Vec<u8>)>,
}

impl Passing<'_> {
    /// Treats an operation of the client. A break ends the connection.
    async fn forward(&mut self, operation: Vec<u8>, now: Treatment) -> std::io::Result<ControlFlow<()>> {
        let words = words(&operation);
        match (words.as_slice(), &mut self.agent) {
            (["CONNECT", ..], _) if words.concat().contains("\"name\":\"nats-tls-agent\"") => {
                if now == Treatment::Denied {
                    self.client.write_all(b"-ERR 'Authorization Violation'\r\n").await?;
                    return Ok(ControlFlow::Break(()));
                }
                self.agent = Some(Agent::connected(&self.way.agents));
            }
            (["SUB", subject, .., sid], Some(agent)) if subject.starts_with(INBOX) => (*sid).clone_into(&mut agent.sid),
            (["PUB" | "HPUB", subject, reply, ..], Some(agent))
                if subject.starts_with("$SYS.REQ.SERVER.") && subject.ends_with(".RELOAD") =>
            {
                self.way.leave_mark(now);
                match now {
                    Treatment::Passes | Treatment::Denied => {}
                    Treatment::Gone => return Ok(ControlFlow::Break(())),
                    Treatment::Slow => {
                        self.late = Some((Instant::now() + SLOW, operation));
                        return Ok(ControlFlow::Continue(()));
                    }
                    // The agent has no other question open, so this cuts no message of nats-server in two.
                    Treatment::Lying => {
                        let said = "{\"server\":{\"id\":\"x\"}}";
                        let answer = format!("MSG {reply} {} {}\r\n{said}\r\n", agent.sid, said.len());
                        self.client.write_all(answer.as_bytes()).await?;
                        return Ok(ControlFlow::Continue(()));
                    }
                }
            }
            _ => {}
        }
        self.server.write_all(&operation).await?;
        Ok(ControlFlow::Continue(()))
    }
}

/// Waits for the time of a late request.
async fn due(late: &mut Option<(Instant, Vec<u8>)>) -> Vec<u8> {
    let Some((time, _)) = late else { return std::future::pending().await };
    tokio::time::sleep_until(*time).await;
    late.take().map(|(_, operation)| operation).unwrap_or_default()
}

/// Waits until the agent's user is refused.
async fn denied(treatment: &mut watch::Receiver<Treatment>) {
    if treatment.wait_for(|treatment| *treatment == Treatment::Denied).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A connection of the agent, which counts until it is dropped.
struct Agent<'a> {
    count: &'a watch::Sender<usize>,
    /// The subscription of its inbox.
    sid: String,
}

impl<'a> Agent<'a> {
    fn connected(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self { count, sid: String::new() }
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count -= 1);
    }
}

/// The length of the first whole operation in what a client sent. A message has its length in its last word.
fn length_of_operation(sent: &[u8]) -> Option<usize> {
    let line = sent.windows(2).position(|end| end == b"\r\n")? + 2;
    let words = words(&sent[..line]);
    let payload = match words.first() {
        Some(&("PUB" | "HPUB")) => words.last()?.parse::<usize>().ok()? + 2,
        _ => 0,
    };
    (sent.len() >= line + payload).then_some(line + payload)
}

/// The words of an operation's first line.
fn words(operation: &[u8]) -> Vec<&str> {
    let line = operation.split(|byte| *byte == b'\r').next().unwrap_or_default();
    std::str::from_utf8(line).unwrap_or_default().split_ascii_whitespace().collect()
}
