//! The steps of a pass, reported to the log and to a waiting person.

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::x509::csr::KeyAlgorithm;

/// One completed step of a pass.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// A pending issuance is resumed.
    Resumed {
        /// The certificate's handle at the issuer, if the issuer has given one.
        handle: Option<String>,
    },
    /// A fresh key and its CSR are made.
    KeyMade {
        /// The key's algorithm.
        algorithm: KeyAlgorithm,
    },
    /// The issuer has accepted the request.
    Requested {
        /// The certificate's handle at the issuer.
        handle: String,
    },
    /// The certificate is accepted and stored in a generation.
    Issued {
        /// The certificate's serial number, hexadecimal.
        serial: String,
        /// The generation's number.
        generation: u64,
    },
    /// New settings are tried in a child of nats-server.
    Trying,
    /// `nats-server -t` accepts the configuration.
    Validated {
        /// The digest that `nats-server -t` printed. Servers before 2.11 print none.
        digest: Option<String>,
    },
    /// The configuration is renamed into place.
    Committed {
        /// The number of the generation that the configuration names.
        generation: u64,
    },
    /// nats-server was told to reload.
    Signalled {
        /// The pid of nats-server.
        pid: i32,
    },
    /// nats-server still loads the configuration.
    StillLoads,
    /// nats-server serves the committed configuration.
    Confirmed {
        /// The evidence.
        by: String,
    },
    /// The reload disconnected clients.
    Disconnected {
        /// The number of clients.
        clients: u64,
    },
    /// Clients were closed that a distrusted CA may have let in.
    Closed {
        /// The number of clients.
        clients: u64,
    },
    /// The reload was not confirmed, and the previous configuration is back in place.
    RolledBack {
        /// The reason why the reload was not confirmed.
        reason: String,
    },
}

impl std::fmt::Display for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Resumed { handle: Some(handle) } => write!(formatter, "resuming the certificate {handle}"),
            Self::Resumed { handle: None } => write!(formatter, "resuming a request that may not have arrived"),
            Self::KeyMade { algorithm } => write!(formatter, "made a fresh {algorithm} key and its CSR"),
            Self::Requested { handle } => write!(formatter, "requested {handle}"),
            Self::Issued { serial, generation } => write!(formatter, "issued {serial}, generation {generation}"),
            Self::Trying => formatter.write_str("trying the new settings in a child of nats-server"),
            Self::Validated { digest: Some(digest) } => write!(formatter, "nats-server -t accepts it, {digest}"),
            Self::Validated { digest: None } => write!(formatter, "nats-server -t accepts it"),
            Self::Committed { generation } => write!(formatter, "committed generation {generation}"),
            Self::Signalled { pid } => write!(formatter, "told nats-server (pid {pid}) to reload"),
            Self::StillLoads => formatter.write_str("nats-server still loads the configuration"),
            Self::Confirmed { by } => write!(formatter, "confirmed: {by}"),
            Self::Disconnected { clients } => write!(formatter, "clients that the reload disconnected: {clients}"),
            Self::Closed { clients } => {
                write!(formatter, "clients closed that a distrusted CA may have let in: {clients}")
            }
            Self::RolledBack { reason } => write!(formatter, "rolled back: {reason}"),
        }
    }
}

/// The searchable log fields of a step.
#[derive(Default)]
struct Fields<'a> {
    name: &'static str,
    generation: Option<u64>,
    serial: Option<&'a str>,
    certificate: Option<&'a str>,
    pid: Option<i32>,
}

impl Step {
    fn fields(&self) -> Fields<'_> {
        let of = |name| Fields { name, ..Fields::default() };
        match self {
            Self::Resumed { handle } => Fields { certificate: handle.as_deref(), ..of("resumed") },
            Self::KeyMade { .. } => of("key_made"),
            Self::Requested { handle } => Fields { certificate: Some(handle), ..of("requested") },
            Self::Issued { serial, generation } => {
                Fields { serial: Some(serial), generation: Some(*generation), ..of("issued") }
            }
            Self::Trying => of("trying"),
            Self::Validated { .. } => of("validated"),
            Self::Committed { generation } => Fields { generation: Some(*generation), ..of("committed") },
            Self::Signalled { pid } => Fields { pid: Some(*pid), ..of("signalled") },
            Self::StillLoads => of("still_loads"),
            Self::Confirmed { .. } => of("confirmed"),
            Self::Disconnected { .. } => of("disconnected"),
            Self::Closed { .. } => of("closed"),
            Self::RolledBack { .. } => of("rolled_back"),
        }
    }
}

/// Where steps are reported: the log always, and a listener if there is one.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    listener: Option<mpsc::UnboundedSender<Step>>,
}

impl Progress {
    /// Reports to the log and to `listener`.
    #[must_use]
    pub fn to(listener: mpsc::UnboundedSender<Step>) -> Self {
        Self { listener: Some(listener) }
    }

    /// Reports a step. The loss of the listener is ignored.
    pub fn report(&self, step: Step) {
        let Fields { name, generation, serial, certificate, pid } = step.fields();
        tracing::info!(step = name, generation, serial, certificate, pid, "{step}");
        if let Some(listener) = &self.listener {
            let _gone = listener.send(step);
        }
    }
}
