//! The gates before nats-server's ports, and the wrapper around the nats-server command.
//!
//! A gate listens on the port that the agent calls. nats-server itself listens on another port, which its arguments name.
//! A front hides the arguments from the agent.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use harness::Failure;
use harness::cluster::Node;
use harness::nodes::set;
use rcgen::CertifiedKey;
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::relay::Relay;
use super::world::Ports;

/// The treatment of new connections. Established connections stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Passage {
    /// The gate lets connections through.
    #[default]
    Open,
    /// The gate accepts connections and then does nothing.
    Silent,
    /// The gate resets connections.
    Resets,
    /// The gate sends this text and closes.
    Says(&'static str),
    /// The gate greets clients as nats-server does, and serves another certificate.
    Masquerades,
    /// The gate begins TLS at once, as routes do, and serves another certificate.
    MasqueradesToRoutes,
}

/// A gate that ends when dropped.
pub(super) struct Gate {
    listen: SocketAddr,
    to: SocketAddr,
    mode: watch::Sender<Passage>,
    tasks: JoinSet<()>,
}

impl Gate {
    pub(super) async fn start(listen: SocketAddr, to: SocketAddr) -> Result<Self, Failure> {
        let mut gate = Self::new(listen, to);
        gate.open().await?;
        Ok(gate)
    }

    /// A gate that doesn't listen yet.
    fn new(listen: SocketAddr, to: SocketAddr) -> Self {
        Self { listen, to, mode: watch::Sender::new(Passage::Open), tasks: JoinSet::new() }
    }

    async fn open(&mut self) -> Result<(), Failure> {
        let (listen, to, seen) = (self.listen, self.to, self.mode.subscribe());
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|error| Failure::new(format!("no gate at {listen}")).because(error))?;
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let mode = seen.borrow().clone();
                connections.spawn(pass(stream, to, mode));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(())
    }

    pub(super) fn set(&self, mode: Passage) {
        self.mode.send_replace(mode);
    }

    pub(super) fn is_open(&self) -> bool {
        *self.mode.borrow() == Passage::Open
    }

    /// Ends the gate, and waits until its port is free.
    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn pass(mut stream: TcpStream, to: SocketAddr, mode: Passage) {
    match mode {
        Passage::Open => {
            if let Ok(mut server) = TcpStream::connect(to).await {
                // Either side may close first.
                drop(tokio::io::copy_bidirectional(&mut stream, &mut server).await);
            }
        }
        Passage::Silent => std::future::pending().await,
        Passage::Resets => drop(stream.set_zero_linger()),
        Passage::Says(text) => {
            let mut asked = [0; 1024];
            // A client may wait for the greeting.
            let asks = async { stream.readable().await.and_then(|()| stream.try_read(&mut asked)) };
            drop(tokio::time::timeout(std::time::Duration::from_millis(50), asks).await);
            drop(stream.write_all(text.as_bytes()).await);
            drop(stream.shutdown().await);
        }
        Passage::Masquerades => {
            let greeting =
                "INFO {\"server_id\":\"x\",\"version\":\"2.15.1\",\"max_payload\":1048576,\"tls_required\":true}\r\n";
            drop(stream.write_all(greeting.as_bytes()).await);
            drop(another_server().accept(stream).await);
        }
        Passage::MasqueradesToRoutes => drop(another_server().accept(stream).await),
    }
}

/// A server with a self-signed certificate.
fn another_server() -> TlsAcceptor {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["another.internal".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// The gates of a node, and its wrapper.
pub(super) struct Gates {
    pub(super) client: Gate,
    pub(super) route: Gate,
    pub(super) monitor: Gate,
    /// Stands in the place of the client port's gate.
    pub(super) relay: Option<Relay>,
    mode_file: PathBuf,
}

impl Gates {
    pub(super) fn before(node: &mut Node, server: &Path, wrapper: &Path, ports: Ports) -> Result<Self, Failure> {
        let io = |error: std::io::Error| Failure::new("could not make a wrapper").because(error);
        let directory = wrapper.parent().unwrap_or(wrapper);
        std::fs::create_dir_all(directory).map_err(io)?;
        let mode_file = directory.join("mode");
        let text = format!(
            "#!/bin/sh\n# Does to `nats-server -t` what the file says.\nmode=$(cat '{mode}' 2>/dev/null)\n\
             if [ \"$1\" = -t ]; then\n  case $mode in\n    refuses) echo 'x.conf:1:1: unknown field' >&2; exit 1;;\n\
             \x20   crashes) kill -SEGV $$;;\n    hangs) exec sleep 600;;\n\n\
             \x20   silent) '{server}' \"$@\" >/dev/null 2>&1; code=$?; : >'{mode}.silent'; exit $code;;\n  esac\nfi\n\
             exec '{server}' \"$@\"\n",
            mode = mode_file.display(),
            server = server.display()
        );
        std::fs::write(wrapper, text).map_err(io)?;
        std::fs::set_permissions(wrapper, std::fs::Permissions::from_mode(0o755)).map_err(io)?;

        let behind = |address: SocketAddr| SocketAddr::new(address.ip(), address.port() + 8);
        let (client, route, monitor) = (behind(node.client()), behind(node.route()), behind(node.monitor()));
        // The arguments go over the configuration, also at a reload.
        node.server_arguments = [
            ["-p".to_owned(), client.port().to_string()],
            ["-m".to_owned(), monitor.port().to_string()],
            ["--cluster".to_owned(), format!("nats://{route}")],
        ]
        .concat();
        set(node.agent.config(), "nats.server", &format!("\"{}\"", wrapper.display()))?;
        let relay = || Relay::new(node.client(), client, &node.state_directory(), &mode_file);
        Ok(Self {
            relay: (ports == Ports::Relayed).then(relay),
            client: Gate::new(node.client(), client),
            route: Gate::new(node.route(), route),
            monitor: Gate::new(node.monitor(), monitor),
            mode_file,
        })
    }

    /// Opens the ports of the gates, after the first commit and before nats-server's start. A trial of settings finds the
    /// ports taken otherwise.
    pub(super) async fn open(&mut self) -> Result<(), Failure> {
        let client = if let Some(relay) = &mut self.relay {
            relay.open().await?;
            None
        } else {
            Some(&mut self.client)
        };
        for gate in client.into_iter().chain([&mut self.route, &mut self.monitor]) {
            if gate.tasks.is_empty() {
                gate.open().await?;
            }
        }
        Ok(())
    }

    /// Ends the gates.
    pub(super) async fn end(self) {
        for gate in [self.client, self.route, self.monitor] {
            gate.end().await;
        }
        if let Some(relay) = self.relay {
            relay.end().await;
        }
    }

    /// Whether the wrapper ever completed this action, or the relay met this fault.
    pub(super) fn has_done(&self, mode: &str) -> bool {
        self.mark(mode).exists()
    }

    fn mark(&self, mode: &str) -> PathBuf {
        self.mode_file.with_extension(mode)
    }

    /// Sets the wrapper's action from now on.
    pub(super) fn set_check(&self, mode: &str) {
        std::fs::write(&self.mode_file, mode).unwrap();
    }
}
