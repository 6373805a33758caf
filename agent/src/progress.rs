//! What a pass is doing, for whoever is waiting for it: a person at a terminal, the log.

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::x509::csr::KeyAlgorithm;

/// One step of a pass that is done.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// An issuance that was under way goes on.
    Resumed {
        /// The certificate's name at the issuer, if it has one already.
        handle: Option<String>,
    },
    /// A fresh key and its CSR are journalled.
    KeyMade {
        /// The key's algorithm.
        algorithm: KeyAlgorithm,
    },
    /// The issuer has taken the request.
    Requested {
        /// The certificate's name at the issuer.
        handle: String,
    },
    /// The certificate is accepted and safe in a generation.
    Issued {
        /// Its serial, hexadecimal.
        serial: String,
        /// The generation.
        generation: u64,
    },
    /// `nats-server -t` accepts the configuration.
    Validated {
        /// The digest that it printed.
        digest: Option<String>,
    },
    /// The configuration is in place.
    Committed {
        /// The generation that it names.
        generation: u64,
    },
    /// nats-server was told to reload.
    Signalled {
        /// Its pid.
        pid: i32,
    },
    /// nats-server serves what was committed.
    Confirmed {
        /// How that was seen.
        by: String,
    },
    /// The reload was not confirmed, and the previous configuration is back.
    RolledBack {
        /// Why.
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
            Self::Validated { digest: Some(digest) } => write!(formatter, "nats-server -t accepts it, {digest}"),
            Self::Validated { digest: None } => write!(formatter, "nats-server -t accepts it"),
            Self::Committed { generation } => write!(formatter, "committed generation {generation}"),
            Self::Signalled { pid } => write!(formatter, "told nats-server (pid {pid}) to reload"),
            Self::Confirmed { by } => write!(formatter, "confirmed: {by}"),
            Self::RolledBack { reason } => write!(formatter, "rolled back: {reason}"),
        }
    }
}

/// What of a step a log can be searched for.
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
            Self::Validated { .. } => of("validated"),
            Self::Committed { generation } => Fields { generation: Some(*generation), ..of("committed") },
            Self::Signalled { pid } => Fields { pid: Some(*pid), ..of("signalled") },
            Self::Confirmed { .. } => of("confirmed"),
            Self::RolledBack { .. } => of("rolled_back"),
        }
    }
}

/// Where steps are reported: always the log, and whoever waits.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    listener: Option<mpsc::UnboundedSender<Step>>,
}

impl Progress {
    /// Reports to a listener too.
    #[must_use]
    pub fn to(listener: mpsc::UnboundedSender<Step>) -> Self {
        Self { listener: Some(listener) }
    }

    /// Reports a step. A listener that has gone is no matter.
    pub fn report(&self, step: Step) {
        let Fields { name, generation, serial, certificate, pid } = step.fields();
        tracing::info!(step = name, generation, serial, certificate, pid, "{step}");
        if let Some(listener) = &self.listener {
            let _gone = listener.send(step);
        }
    }
}
