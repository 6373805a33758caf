//! The open connection to nats-server's system account, over TLS with the node's own leaf.
//!
//! nats-server answers there what no signal and no port tells: the end of a reload, or the reason of a refusal. An open
//! connection works on where a server has as many clients as it takes.

mod login;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, RequestErrorKind};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use self::login::Login;
use super::monitor::{Routez, Varz};
use crate::conf::listeners::First;
use crate::conf::system::INBOX;
use crate::config::{NatsConfig, System};
use crate::error::with_causes;
use crate::state::durable::FileError;
use crate::state::generation::Generations;
use crate::x509::chain::StoredChain;

/// The longest attempt to connect. On one host a connection takes milliseconds.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The longest wait for an answer. nats-server has most answers ready, and answers a reload once it is done.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long a nats-server that gave no answer is asked for no data: it is frozen, or busy with a reload.
const AFTER_SILENCE: Duration = Duration::from_secs(20);
/// nats-server pings every two minutes by itself, so the agent's own pings are a second guard.
const PING: Duration = Duration::from_mins(5);
/// The pauses between failed attempts.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// The largest answer. The answer about routes grows with the cluster, and the answer about JetStream with the streams.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// The agent asks for two things at a time.
const CAPACITY: usize = 16;

/// Whether there is a connection to the system account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nobody wants a connection, or nothing was tried yet.
    Unwanted,
    /// The connection is open.
    Up,
    /// There is no connection.
    Down {
        /// What kind of failure keeps the connection away.
        fault: Fault,
        /// The error, for a person.
        why: String,
    },
}

/// The kind of a failure of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There are no credentials, or they can't be used.
    Credentials,
    /// nats-server refuses the user, or the user isn't of the system account.
    Denied,
    /// nats-server can't be reached, doesn't answer, or isn't ours.
    Unreachable,
    /// The running nats-server has no user of the agent yet.
    NotYet,
}

/// What nats-server says of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The configuration is loaded.
    Loaded,
    /// The configuration is refused, and the one before stays: nats-server's own words.
    Refused(String),
}

/// Why the system account gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SystemError {
    /// The key of the agent's user is missing.
    #[error("there is no key of the agent's user of the system account; the next pass makes one")]
    NoKey,
    /// The running configuration doesn't have the agent's user.
    #[error("the running nats-server doesn't have the agent's user of the system account yet")]
    NotInConfiguration,
    /// A file can't be read.
    #[error("the credentials of the system account can't be read; check nats.system")]
    File(#[source] Arc<FileError>),
    /// There is no file of credentials.
    #[error("there is no {}, the credentials of the system account; write the file, or correct nats.system", .0.display())]
    NoCredentials(PathBuf),
    /// The file holds no credentials. The text names nothing of the file.
    #[error("{} holds no credentials of a user: a JWT and a seed; write both as `nsc generate creds` does", .0.display())]
    NotCredentials(PathBuf),
    /// The node's own key or certificate can't be used for TLS.
    #[error("could not prepare a connection to the system account with our own certificate")]
    Identity,
    /// nats-server refuses the user.
    #[error("nats-server refuses the agent's user of the system account at {0}")]
    Denied(SocketAddr),
    /// The user isn't of the system account.
    #[error("nobody answers {verb} for the agent's user; give the agent a user of the system account")]
    NoResponders {
        /// The question.
        verb: &'static str,
    },
    /// There is no connection.
    #[error("no connection to the system account at {address}")]
    Unreachable {
        /// The client port.
        address: SocketAddr,
        /// The client's error.
        #[source]
        source: Arc<ConnectError>,
    },
    /// The connection ended before the answer.
    #[error("the connection to the system account ended before the answer to {verb}")]
    Lost {
        /// The question.
        verb: &'static str,
    },
    /// No answer came in time.
    #[error("the system account gave no answer to {verb} within {} s", ANSWER_WITHIN.as_secs())]
    Silent {
        /// The question.
        verb: &'static str,
    },
    /// The answer can't be used.
    #[error("the system account's answer to {verb} can't be used: {what}")]
    Nonsense {
        /// The question.
        verb: &'static str,
        /// What is wrong with the answer.
        what: String,
    },
}

impl Link {
    /// The connection is down for this error.
    #[must_use]
    pub fn down(error: &SystemError) -> Self {
        Self::Down { fault: error.fault(), why: with_causes(error) }
    }
}

impl SystemError {
    /// The kind of the failure.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotInConfiguration => Fault::NotYet,
            Self::NoKey | Self::File(_) | Self::NoCredentials(_) | Self::NotCredentials(_) | Self::Identity => {
                Fault::Credentials
            }
            Self::Denied(_) | Self::NoResponders { .. } => Fault::Denied,
            Self::Unreachable { .. } | Self::Lost { .. } | Self::Silent { .. } | Self::Nonsense { .. } => {
                Fault::Unreachable
            }
        }
    }
}

/// The connection, or the way to it.
pub struct SystemConnection {
    login: Login,
    generations: Generations,
    attempts: Mutex<Attempts>,
}

/// The open connection, and what came of the attempts before.
#[derive(Default)]
struct Attempts {
    open: Option<Arc<Open>>,
    failed: Option<(SystemError, Instant)>,
    failures: u32,
}

impl Attempts {
    fn are_up_at(&self, address: SocketAddr) -> bool {
        self.open.as_ref().is_some_and(|open| open.address == address && open.is_up())
    }

    /// The failure after which the next attempt or question is not due yet.
    fn pause(&self) -> Option<SystemError> {
        let (error, until) = self.failed.as_ref()?;
        (Instant::now() < *until).then(|| error.clone())
    }
}

struct Open {
    client: Client,
    address: SocketAddr,
    /// Whether the connection is up. nats-server's end is known here first.
    up: watch::Receiver<bool>,
}

impl Open {
    fn is_up(&self) -> bool {
        *self.up.borrow() && self.client.connection_state() == async_nats::connection::State::Connected
    }
}

impl SystemConnection {
    /// The connection that `[nats]` wants. `None`: it wants none.
    #[must_use]
    pub fn of(nats: &NatsConfig, state: &Path) -> Option<Self> {
        let login = match &nats.system {
            System::Off => return None,
            System::Auto => Login::Key { state: state.to_owned(), config: nats.config.clone() },
            System::CredsFile(file) => Login::Credentials(file.clone()),
            System::Secret(id) => Login::Credentials(crate::included::credentials_of(state, id)),
        };
        Some(Self { login, generations: Generations::of(state), attempts: Mutex::default() })
    }

    /// Whether [`Self::keep`] would connect to this address now.
    pub async fn would_dial(&self, address: SocketAddr) -> bool {
        let attempts = self.attempts.lock().await;
        !attempts.are_up_at(address) && attempts.pause().is_none()
    }

    /// Whether the connection to this address is open.
    pub async fn is_up_at(&self, address: SocketAddr) -> bool {
        self.attempts.lock().await.are_up_at(address)
    }

    /// Keeps the connection open, or makes a connection if an attempt is due. `ours` is the client's certificate.
    /// nats-server must show a leaf of this node. A nats-server that gave no answer just now keeps its
    /// connection, and counts as failed for a while.
    pub async fn keep(&self, ours: &StoredChain, address: SocketAddr, first: First) -> Result<(), SystemError> {
        let mut attempts = self.attempts.lock().await;
        if let Some(error) = attempts.pause() {
            return Err(error);
        }
        if attempts.are_up_at(address) {
            return Ok(());
        }
        attempts.open = None;
        match self.connect(ours, address, first).await {
            Ok(open) => {
                *attempts = Attempts { open: Some(Arc::new(open)), ..Attempts::default() };
                Ok(())
            }
            Err(error) => {
                attempts.failures = attempts.failures.saturating_add(1);
                let pause = FIRST_PAUSE.saturating_mul(1 << attempts.failures.min(6)).min(LONGEST_PAUSE);
                let pause = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                attempts.failed = Some((error.clone(), Instant::now() + pause));
                Err(error)
            }
        }
    }

    async fn connect(&self, ours: &StoredChain, address: SocketAddr, first: First) -> Result<Open, SystemError> {
        let tls = tls::config(ours, self.generations.leaves()).ok_or(SystemError::Identity)?;
        let (is_up, up) = watch::channel(true);
        let note = move |event| {
            match event {
                Event::Disconnected | Event::Closed => drop(is_up.send_replace(false)),
                Event::Connected => drop(is_up.send_replace(true)),
                _ => {}
            }
            std::future::ready(())
        };
        let mut options = self
            .login
            .options()?
            .name("nats-tls-agent")
            .require_tls(true)
            .tls_client_config(tls)
            .connection_timeout(CONNECT_WITHIN)
            .request_timeout(None)
            .ping_interval(PING)
            .ignore_discovered_servers()
            // The next connection is made with the leaf of that time, by `keep`.
            .max_reconnects(1)
            .client_capacity(CAPACITY)
            .subscription_capacity(CAPACITY)
            .read_buffer_capacity(4096)
            .event_callback(note);
        // Beside `auto` the client waits for INFO: nats-server doesn't wait for a slow beginning of TLS.
        if first == First::Client {
            options = options.tls_first();
        }
        if matches!(self.login, Login::Key { .. }) {
            options = options.custom_inbox_prefix(INBOX);
        }
        let client = connected(options, address).await?;
        Ok(Open { client, address, up })
    }

    /// Has nats-server load its configuration. nats-server answers once the reload is done, so a reload that takes longer
    /// than the wait gives no answer.
    pub async fn reload(&self) -> Result<Answer, SystemError> {
        let verb = "RELOAD";
        let answered = self.ask(verb, Bytes::new()).await?;
        Ok(match read::<serde::de::IgnoredAny>(verb, &answered)? {
            Said { error: Some(error), .. } => Answer::Refused(error.description),
            Said { error: None, .. } => Answer::Loaded,
        })
    }

    /// What `/varz` says.
    pub async fn varz(&self) -> Result<Varz, SystemError> {
        self.data("VARZ", Bytes::new()).await
    }

    /// What `/routez` says.
    pub async fn routez(&self) -> Result<Routez, SystemError> {
        self.data("ROUTEZ", Bytes::new()).await
    }

    /// Closes a client. `false`: the client is gone already. The agent's own connection stays open.
    pub(super) async fn kick(&self, client: u64) -> Result<bool, SystemError> {
        let verb = "KICK";
        // A user that may not ask for this gets no answer, and other questions need no pause then.
        let answered = self.ask_once(verb, format!(r#"{{"cid":{client}}}"#).into()).await?;
        Ok(read::<serde::de::IgnoredAny>(verb, &answered)?.error.is_none())
    }

    /// The number that nats-server gave the agent's own connection, if the connection is open.
    pub(super) async fn own_client(&self) -> Option<u64> {
        let attempts = self.attempts.lock().await;
        attempts.open.as_ref().filter(|open| open.is_up()).map(|open| open.client.server_info().client_id)
    }

    /// The data of an answer. `options` is nats-server's JSON of options, empty for none.
    pub(super) async fn data<T: DeserializeOwned>(&self, verb: &'static str, options: Bytes) -> Result<T, SystemError> {
        // A nats-server that gave no answer just now is asked for no data.
        if let Some(error) = self.attempts.lock().await.pause() {
            return Err(error);
        }
        let answered = self.ask(verb, options).await?;
        let said = read(verb, &answered)?;
        let what = said.error.map_or_else(|| "it holds no data".to_owned(), |error| error.description);
        said.data.ok_or(SystemError::Nonsense { verb, what })
    }

    /// Asks the server that the connection leads to. A server that gives no answer is left alone for a while.
    async fn ask(&self, verb: &'static str, options: Bytes) -> Result<Bytes, SystemError> {
        let answered = self.ask_once(verb, options).await;
        if let Err(error @ SystemError::Silent { .. }) = &answered {
            self.attempts.lock().await.failed = Some((error.clone(), Instant::now() + AFTER_SILENCE));
        }
        answered
    }

    async fn ask_once(&self, verb: &'static str, options: Bytes) -> Result<Bytes, SystemError> {
        let open = self.attempts.lock().await.open.clone();
        let open = open.filter(|open| open.is_up()).ok_or(SystemError::Lost { verb })?;
        let subject = format!("$SYS.REQ.SERVER.{}.{verb}", open.client.server_info().server_id);
        let mut up = open.up.clone();
        let answered = tokio::select! {
            answered = tokio::time::timeout(ANSWER_WITHIN, open.client.request(subject, options)) => answered,
            _ended = up.wait_for(|is_up| !is_up) => return Err(SystemError::Lost { verb }),
        };
        let message = answered.map_err(|_late| SystemError::Silent { verb })?;
        let message = message.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => SystemError::NoResponders { verb },
            _ => SystemError::Lost { verb },
        })?;
        if message.payload.len() > MAX_ANSWER {
            return Err(SystemError::Nonsense { verb, what: format!("it is larger than {MAX_ANSWER} bytes") });
        }
        Ok(message.payload)
    }
}

async fn connected(options: ConnectOptions, address: SocketAddr) -> Result<Client, SystemError> {
    options.connect(format!("tls://{address}")).await.map_err(|source| match source.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => SystemError::Denied(address),
        _ => SystemError::Unreachable { address, source: Arc::new(source) },
    })
}

/// The envelope of an answer.
#[derive(Deserialize)]
struct Said<T> {
    /// Every answer of nats-server names the server.
    #[serde(rename = "server")]
    _server: serde::de::IgnoredAny,
    #[serde(default = "none")]
    data: Option<T>,
    #[serde(default)]
    error: Option<SaidError>,
}

fn none<T>() -> Option<T> {
    None
}

#[derive(Deserialize)]
struct SaidError {
    #[serde(default)]
    description: String,
}

fn read<T: DeserializeOwned>(verb: &'static str, answer: &[u8]) -> Result<Said<T>, SystemError> {
    serde_json::from_slice(answer).map_err(|error| SystemError::Nonsense { verb, what: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_data_an_error_or_nonsense() {
        let loaded = read::<serde::de::IgnoredAny>("RELOAD", br#"{"server":{"id":"N"}}"#).unwrap();
        assert!(loaded.error.is_none() && loaded.data.is_none());
        let refused = br#"{"server":{},"error":{"code":500,"description":"n.conf:1:1: unknown field"}}"#;
        let refused = read::<serde::de::IgnoredAny>("RELOAD", refused).unwrap();
        assert_eq!(refused.error.unwrap().description, "n.conf:1:1: unknown field");
        let routez = read::<Routez>("ROUTEZ", br#"{"server":{},"data":{"routes":[]}}"#).unwrap();
        assert!(routez.data.unwrap().routes.is_empty());
        for nonsense in [&b""[..], b"[]", b"{}", b"{\"server\":{},\"data\":7}", b"\xff"] {
            assert!(read::<Routez>("ROUTEZ", nonsense).is_err());
        }
    }
}
