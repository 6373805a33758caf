//! What is said over the control socket: one line of JSON asks, lines of JSON answer.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::conf::loss::Loss;
use crate::progress::Step;
use crate::reason::{Code, Told};
use crate::status::{LeafStatus, PassStatus, Status};
use crate::trust::Fingerprint;

/// Who may ask. Of a client's groups only the primary group is among its credentials.
pub(super) const ASKERS: &str = "root, as the daemon's user, or as a user whose primary group is the daemon's";

/// What is asked.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case", tag = "command", deny_unknown_fields)]
pub enum Request {
    /// What the last pass found.
    Status,
    /// A pass with a new certificate.
    Renew {
        /// Losses that are meant.
        #[serde(default)]
        allow_loss: Vec<Loss>,
        /// Clients get no notice of a new CA.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        now: bool,
        /// CAs that this node distrusts from now on. A daemon that doesn't know the field refuses the request.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        distrust: Vec<Fingerprint>,
    },
}

/// One line of an answer.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A step is done; more lines follow.
    Step(Step),
    /// The status.
    Status(Box<Status>),
    /// The daemon makes its first pass, so there is no status yet.
    NoPassYet {
        /// The first pass.
        pass: Option<PassStatus>,
    },
    /// The new certificate is in force.
    Renewed(Box<Renewed>),
    /// The daemon refuses, or the new certificate is not in force.
    Refused(Refusal),
}

/// Why the daemon refuses.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The client's user may not ask.
    MayNotAsk {
        /// The client's user.
        uid: u32,
        /// The client's primary group.
        gid: u32,
    },
    /// The line is no request.
    NoRequest {
        /// What is wrong with the line.
        why: String,
    },
    /// The daemon is stopping.
    Stopping,
    /// The daemon can do nothing yet.
    Reason(Told),
    /// The pass did not bring a new certificate into force.
    NotRenewed {
        /// Why not.
        reason: Told,
        /// The certificate that was issued and is not in force. Nobody pays for it again.
        kept: Option<RenewedLeaf>,
    },
}

impl Refusal {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::MayNotAsk { .. } => "may_not_ask",
            Self::NoRequest { .. } => "no_request",
            Self::Stopping => Code::AgentStopping.as_str(),
            Self::Reason(reason) | Self::NotRenewed { reason, .. } => &reason.code,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MayNotAsk { uid, gid } => {
                write!(formatter, "uid {uid} (gid {gid}) may not ask this daemon; run this as {ASKERS}")
            }
            Self::NoRequest { why } => write!(formatter, "that is no request: {why}"),
            Self::Stopping => formatter.write_str("the daemon is stopping"),
            Self::Reason(reason) | Self::NotRenewed { reason, kept: None } => write!(formatter, "{reason}"),
            Self::NotRenewed { reason, kept: Some(kept) } => write!(
                formatter,
                "{reason}. The new certificate {} is kept as generation {}; the daemon deploys it without another issuance",
                kept.serial, kept.generation
            ),
        }
    }
}

/// What `agent renew` ends with.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Renewed {
    /// How far the new certificate came.
    pub result: RenewalResult,
    /// The leaf before, if there was a leaf.
    pub old: Option<RenewedLeaf>,
    /// The leaf now.
    pub new: RenewedLeaf,
    /// How the reload was confirmed, or why there was no reload.
    pub confirmed_by: String,
    /// Seconds from the request to the result.
    pub seconds: f64,
}

/// How far a new certificate came.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RenewalResult {
    /// nats-server is seen to serve it.
    Confirmed,
    /// No nats-server runs. Its next start reads the certificate.
    Committed,
}

impl fmt::Display for RenewalResult {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Confirmed => "confirmed",
            Self::Committed => "committed",
        })
    }
}

/// A leaf, in brief.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct RenewedLeaf {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// End of validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// The generation that holds the leaf.
    pub generation: u64,
}

impl From<&LeafStatus> for RenewedLeaf {
    fn from(leaf: &LeafStatus) -> Self {
        Self { serial: leaf.serial.clone(), not_after: leaf.not_after, generation: leaf.generation }
    }
}
