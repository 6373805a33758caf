//! The server seam: everything that the agent does to nats-server and sees of it.

pub mod monitor;
pub mod probe;
pub mod process;
pub mod standing;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::monitor::{Routez, Varz};
use self::probe::{Port, ProbeError, Prober};
use self::process::{NatsProcess, ProcessError};
use crate::conf::listeners::Listeners;
use crate::conf::render::Rendered;
use crate::config::NatsConfig;
use crate::error::with_causes;
use crate::trust::VerifiedChain;

/// The oldest nats-server that the agent works with: the first with pooled routes, whose behaviour is measured.
pub const OLDEST: (u32, u32) = (2, 10);

/// `-t` takes milliseconds; a machine that is booting may take its time.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_OUTPUT: u64 = 64 * 1024;

/// Whether there is a nats-server, as far as its pid file and its process tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nobody has looked yet.
    Unseen,
    /// None runs: normal before its first start.
    Absent(String),
    /// It runs.
    Running(i32),
    /// The pid file names something else, or can't be used.
    Foreign(String),
}

/// What a port serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// SHA-256 of the leaf's DER, hexadecimal.
    pub sha256: String,
    /// The leaf and what was presented with it, in DER.
    pub certificates: Vec<Vec<u8>>,
}

/// How long a handshake stands for what a server serves that says of itself that nothing was loaded since.
const HANDSHAKE_STANDS: Duration = Duration::from_mins(5);

/// What can be seen of nats-server from outside.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The process.
    pub presence: Presence,
    /// What it says about itself; nothing where monitoring doesn't answer.
    pub varz: Option<Varz>,
    /// Its routes.
    pub routez: Option<Routez>,
    /// What the client port serves, or why nothing could be seen.
    pub client: Result<Served, String>,
    /// The same of the route port.
    pub route: Result<Served, String>,
    /// When the two ports were asked.
    pub asked: Instant,
}

impl Observed {
    /// Nobody has looked yet.
    #[must_use]
    pub fn unseen() -> Self {
        Self { presence: Presence::Unseen, ..Self::absent(String::new()) }
    }

    /// nats-server doesn't run.
    #[must_use]
    pub fn absent(why: String) -> Self {
        let none = || Err("nats-server isn't running".to_owned());
        Self {
            presence: Presence::Absent(why),
            varz: None,
            routez: None,
            client: none(),
            route: none(),
            asked: Instant::now(),
        }
    }

    /// How many of the three ports answered as a nats-server does.
    pub(crate) fn ports_seen(&self) -> u8 {
        u8::from(self.client.is_ok()) + u8::from(self.route.is_ok()) + u8::from(self.varz.is_some())
    }

    /// Whether the ports need not be asked again: it is the same server with the same configuration loaded, and the
    /// last handshakes were good and not long ago. Each of them is a line or two in nats-server's log.
    fn still_holds(&self, presence: &Presence, varz: Option<&Varz>) -> bool {
        self.presence == *presence
            && varz.is_some()
            && self.varz.as_ref() == varz
            && self.client.is_ok()
            && self.route.is_ok()
            && self.asked.elapsed() < HANDSHAKE_STANDS
    }
}

/// Why nats-server couldn't be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The binary can't be started.
    #[error("could not run {} {arguments}; install nats-server, or set nats.server to its path", .server.display())]
    Spawn {
        /// The binary.
        server: PathBuf,
        /// With these arguments.
        arguments: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The binary didn't end.
    #[error("{} {arguments} did not end within {} s", .server.display(), COMMAND_TIMEOUT.as_secs())]
    Slow {
        /// The binary.
        server: PathBuf,
        /// With these arguments.
        arguments: String,
    },
    /// The binary is no nats-server, or an old one.
    #[error("{} is {found:?}; the agent needs nats-server {}.{} or later: install one, or set nats.server to its path", .server.display(), OLDEST.0, OLDEST.1)]
    Version {
        /// The binary.
        server: PathBuf,
        /// What `--version` printed.
        found: String,
    },
    /// `nats-server -t` refuses the configuration.
    #[error(
        "nats-server -t refuses the configuration, so it is not applied; correct nats.template, nats.include or the setting that it \
         names: {message}"
    )]
    Refused {
        /// What it printed, without the time.
        message: String,
    },
    /// There is no process to signal, or not the right one.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The process is not ready for a signal.
    #[error(
        "nats-server (pid {pid}) doesn't listen on its client port {address}, so it is starting or draining, and a signal \
         now could kill or hang it; it is signalled when it listens"
    )]
    NotListening {
        /// The process.
        pid: i32,
        /// Its client port.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: ProbeError,
    },
}

/// nats-server, as the agent needs it.
#[async_trait]
pub trait Server: Send + Sync {
    /// Has the server's own binary check a configuration, and returns the digest that it prints (from 2.11 on).
    async fn validate(&self, candidate: &Path) -> Result<Option<String>, ServerError>;

    /// Looks at the running server, presenting `chain` in handshakes. Never fails: what can't be seen is said so. Where
    /// what was seen `last` still holds, the ports are not asked again.
    async fn observe(&self, chain: Option<&VerifiedChain>, at: &Listeners, last: Option<&Observed>) -> Observed;

    /// Tells the running server to read its configuration again; returns its pid.
    async fn reload(&self, chain: &VerifiedChain, at: &Listeners) -> Result<i32, ServerError>;
}

/// The real nats-server of this machine.
pub struct NatsServer {
    binary: PathBuf,
    config: PathBuf,
}

impl NatsServer {
    /// As `[nats]` describes it.
    #[must_use]
    pub fn new(nats: &NatsConfig) -> Self {
        Self { binary: nats.server.clone(), config: nats.config.clone() }
    }

    /// The binary's version, refused if it is older than [`OLDEST`].
    pub async fn version(&self) -> Result<String, ServerError> {
        let (_, output) = self.run(&["--version".as_ref()]).await?;
        let found = output.trim().to_owned();
        let version = found.rsplit(['v', ' ']).next().unwrap_or_default();
        let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) if found.starts_with("nats-server") && (major, minor) >= OLDEST => {
                Ok(version.to_owned())
            }
            _ => Err(ServerError::Version { server: self.binary.clone(), found }),
        }
    }

    async fn run(&self, arguments: &[&std::ffi::OsStr]) -> Result<(bool, String), ServerError> {
        let shown = || arguments.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let spawn = |source| ServerError::Spawn { server: self.binary.clone(), arguments: shown(), source };
        let mut child = tokio::process::Command::new(&self.binary)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(spawn)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let finish = async {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            tokio::try_join!(
                async {
                    if let Some(pipe) = stdout { pipe.take(MAX_OUTPUT).read_to_end(&mut out).await } else { Ok(0) }
                },
                async {
                    if let Some(pipe) = stderr { pipe.take(MAX_OUTPUT).read_to_end(&mut err).await } else { Ok(0) }
                },
            )?;
            let status = child.wait().await?;
            out.extend_from_slice(&err);
            Ok((status.success(), String::from_utf8_lossy(&out).into_owned()))
        };
        tokio::time::timeout(COMMAND_TIMEOUT, finish)
            .await
            .map_err(|_elapsed| ServerError::Slow { server: self.binary.clone(), arguments: shown() })?
            .map_err(spawn)
    }
}

#[async_trait]
impl Server for NatsServer {
    async fn validate(&self, candidate: &Path) -> Result<Option<String>, ServerError> {
        self.version().await?;
        let (accepted, output) = self.run(&["-t".as_ref(), "-c".as_ref(), candidate.as_os_str()]).await?;
        if accepted {
            return Ok(digest_in(&output));
        }
        // nats-server quotes what it stumbles over.
        let text = std::fs::read_to_string(candidate).unwrap_or_default();
        let message = Rendered::from_text(Zeroizing::new(text)).hide_from(output.trim());
        Err(ServerError::Refused { message })
    }

    async fn observe(&self, chain: Option<&VerifiedChain>, at: &Listeners, last: Option<&Observed>) -> Observed {
        let presence = match NatsProcess::find(&at.pid_file, &self.binary, &self.config) {
            Ok(process) => Presence::Running(process.pid),
            Err(ProcessError::Absent(why)) => {
                if served_at(chain, at.client, Port::Client).await.is_err() {
                    return Observed::absent(why);
                }
                Presence::Foreign(format!(
                    "{why}, and yet {} serves TLS: check nats.pid_file and nats.listen",
                    at.client
                ))
            }
            Err(error) => Presence::Foreign(with_causes(&error)),
        };
        let (varz, routez) = tokio::join!(monitor::varz(at.monitor), monitor::routez(at.monitor));
        if let Err(error) = &varz {
            tracing::debug!("{}", with_causes(error));
        }
        let (varz, routez) = (varz.ok(), routez.ok());
        if let Some(last) = last.filter(|last| last.still_holds(&presence, varz.as_ref())) {
            return Observed { routez, ..last.clone() };
        }
        let (client, route) =
            tokio::join!(served_at(chain, at.client, Port::Client), served_at(chain, at.route, Port::Route));
        Observed { presence, varz, routez, client, route, asked: Instant::now() }
    }

    /// A SIGHUP in the first milliseconds of nats-server's life kills it, and during lame duck mode it hangs 2.15.1. In
    /// both it doesn't accept clients, so an open client port is asked for first.
    async fn reload(&self, chain: &VerifiedChain, at: &Listeners) -> Result<i32, ServerError> {
        let process = NatsProcess::find(&at.pid_file, &self.binary, &self.config)?;
        let probed = match Prober::presenting(Some(chain)) {
            Ok(prober) => prober.served(at.client, Port::Client).await,
            Err(error) => Err(error),
        };
        if let Err(source @ (ProbeError::Connect { .. } | ProbeError::Slow { .. })) = probed {
            return Err(ServerError::NotListening { pid: process.pid, address: at.client, source });
        }
        process.hang_up()?;
        Ok(process.pid)
    }
}

async fn served_at(chain: Option<&VerifiedChain>, address: SocketAddr, port: Port) -> Result<Served, String> {
    let served = async { Prober::presenting(chain)?.served(address, port).await };
    let certificates = served.await.map_err(|error| with_causes(&error))?;
    match certificates.first() {
        Some(leaf) => Ok(Served { sha256: crate::digest::sha256_hex(leaf), certificates }),
        None => Err(format!("{address} showed no certificate")),
    }
}

/// The digest in what `-t` prints: `… configuration file … is valid (sha256:…)` (2.11 and later).
fn digest_in(output: &str) -> Option<String> {
    let start = output.find("sha256:")?;
    let digest: String =
        output[start + "sha256:".len()..].chars().take_while(char::is_ascii_hexdigit).take(64).collect();
    (digest.len() == 64).then(|| format!("sha256:{digest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_digest_that_nats_server_prints() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let line = format!("nats-server: configuration file /etc/nats.conf is valid ({digest})\n");
        assert_eq!(digest_in(&line), Some(digest));
        assert_eq!(digest_in("nats-server: configuration file /etc/nats.conf is valid\n"), None);
        assert_eq!(digest_in("(sha256:0a)"), None);
    }
}
