//! A real nats-server as a process.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::Instant;

use crate::process::Process;
use crate::{Failure, eventually};

const READY_WITHIN: Duration = Duration::from_secs(15);
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// nats-server's signal channel holds one signal, so a SIGTERM right after other signals may be lost
/// (docs/nats-server.md).
const REPEAT_SIGTERM: Duration = Duration::from_millis(500);
const MONITOR_WITHIN: Duration = Duration::from_secs(5);
const MONITOR_LIMIT: usize = 4 * 1024 * 1024;

/// The files of a nats-server to start, and the listeners that its configuration names.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The path of the binary.
    pub binary: PathBuf,
    /// The path of the configuration (`-c`).
    pub config: PathBuf,
    /// `pid_file` of the configuration.
    pub pid_file: PathBuf,
    /// The client listener of the configuration.
    pub client: SocketAddr,
    /// The monitoring listener of the configuration, plain HTTP.
    pub monitor: SocketAddr,
    /// The path of the log.
    pub log: PathBuf,
    /// Arguments after the configuration.
    pub arguments: Vec<String>,
}

/// A running nats-server.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    launch: Launch,
}

impl NatsServer {
    /// Starts the server. Waits until the pid file names the server and the client port answers. A signal is safe only
    /// after that.
    ///
    /// # Errors
    /// The server ends by itself, or isn't ready within 15 seconds. The failure contains the end of its log.
    pub async fn start(launch: Launch) -> Result<Self, Failure> {
        let mut process = Process::spawn(
            "nats-server",
            Command::new(&launch.binary).arg("-c").arg(&launch.config).args(&launch.arguments),
            &launch.log,
        )?;
        let ready = eventually("nats-server's start", READY_WITHIN, async || {
            // A server that has ended makes further waiting useless.
            if let Err(ended) = process.check_running() {
                return Ok(Err(ended));
            }
            let pid = std::fs::read_to_string(&launch.pid_file).map_err(|error| format!("pid file: {error}"))?;
            if pid.trim().parse().ok() != process.pid() {
                return Err(format!("the pid file holds {pid:?}"));
            }
            TcpStream::connect(launch.client).await.map_err(|error| format!("{}: {error}", launch.client))?;
            Ok(Ok(()))
        });
        ready.await??;
        Ok(Self { process, launch })
    }

    /// The process id, until the end is noticed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// The files and listeners that the server was started with.
    #[must_use]
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Fails if the server has ended, with the end of its log.
    pub fn check_running(&mut self) -> Result<(), Failure> {
        self.process.check_running()
    }

    /// Sends SIGHUP, which reloads the configuration.
    pub fn reload(&self) -> Result<(), Failure> {
        self.process.signal(Signal::SIGHUP)
    }

    /// Sends SIGUSR2, which starts lame duck mode.
    pub fn lame_duck(&self) -> Result<(), Failure> {
        self.process.signal(Signal::SIGUSR2)
    }

    /// Sends any other signal, such as SIGSTOP for a server that hangs.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        self.process.signal(signal)
    }

    /// Sends SIGTERM again and again, until the server ends.
    ///
    /// # Errors
    /// The server still runs after 15 seconds. It is then killed.
    pub async fn stop(mut self) -> Result<ExitStatus, Failure> {
        let asked = Instant::now();
        while self.process.pid().is_some() && asked.elapsed() < STOP_WITHIN {
            self.process.signal(Signal::SIGTERM)?;
            self.process.ends(REPEAT_SIGTERM).await;
        }
        if self.process.pid().is_some() {
            self.process.kill().await?;
            return Err(Failure::new(format!("nats-server did not end within {STOP_WITHIN:?} of SIGTERM; killed it")));
        }
        self.process.ended(STOP_WITHIN).await
    }

    /// Waits until the server ends by itself, for instance after lame duck mode.
    pub async fn ended(self, within: Duration) -> Result<ExitStatus, Failure> {
        self.process.ended(within).await
    }

    /// Sends SIGKILL, and waits for the end.
    pub async fn kill(self) -> Result<ExitStatus, Failure> {
        self.process.kill().await
    }

    /// The answer to `/varz`.
    pub async fn varz(&self) -> Result<Value, Failure> {
        monitor(self.launch.monitor, "/varz").await
    }

    /// The names of the servers to which this server has routes. A route pool counts once.
    pub async fn routes(&self) -> Result<BTreeSet<String>, Failure> {
        Ok(remote_names(&monitor(self.launch.monitor, "/routez").await?))
    }
}

/// Reads a path of a monitoring listener over plain HTTP.
///
/// # Errors
/// No answer arrives within 5 seconds, or the answer isn't JSON of at most 4 MiB.
pub async fn monitor(address: SocketAddr, path: &str) -> Result<Value, Failure> {
    let asked = tokio::time::timeout(MONITOR_WITHIN, async { get(TcpStream::connect(address).await?, path).await });
    let cannot = |cause: Box<dyn std::error::Error + Send + Sync>| {
        Failure::new(format!("could not get http://{address}{path}")).because(cause)
    };
    asked.await.map_err(|late| cannot(late.into()))?.map_err(cannot)
}

/// Reads a path over an existing connection, for instance to a listener in another network namespace.
///
/// # Errors
/// No answer arrives within 5 seconds, or the answer isn't JSON of at most 4 MiB.
pub async fn monitor_over(stream: TcpStream, path: &str) -> Result<Value, Failure> {
    let cannot = |cause: Box<dyn std::error::Error + Send + Sync>| {
        Failure::new(format!("could not get {path} of nats-server's monitoring")).because(cause)
    };
    let asked = tokio::time::timeout(MONITOR_WITHIN, get(stream, path));
    asked.await.map_err(|late| cannot(late.into()))?.map_err(cannot)
}

/// The names of the servers in an answer to `/routez`. A route pool counts once.
#[must_use]
pub fn remote_names(answer: &Value) -> BTreeSet<String> {
    let routes = answer["routes"].as_array().map(Vec::as_slice).unwrap_or_default();
    routes.iter().filter_map(|route| Some(route["remote_name"].as_str()?.to_owned())).collect()
}

async fn get(stream: TcpStream, path: &str) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
    let address = stream.peer_addr()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, address.to_string())
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let body = sender.send_request(request).await?.into_body();
        let bytes = Limited::new(body, MONITOR_LIMIT).collect().await?.to_bytes();
        Ok(serde_json::from_slice(&bytes)?)
    };
    tokio::pin!(answer, connection);
    let mut connected = true;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            ended = &mut connection, if connected => {
                ended?;
                connected = false;
            }
        }
    }
}
