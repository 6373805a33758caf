//! What a pass is asked for, and why it ended before its end.

use serde::{Deserialize, Serialize};

use super::commit_point::DeployError;
use crate::conf::effective::SettingsError;
use crate::conf::loss::Loss;
use crate::conf::render::RenderError;
use crate::issue::ObtainError;
use crate::issue::journal::JournalError;
use crate::reason::{Code, Reason, mistake};
use crate::state::durable::FileError;
use crate::trust::{Fingerprint, RejectedChain};

/// What a pass is asked for beyond the ordinary.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct PassRequest {
    /// A new certificate, whether or not one is due.
    pub renew: bool,
    /// Losses that are meant.
    #[serde(default)]
    pub allow_loss: Vec<Loss>,
    /// Clients get no notice of a new CA.
    #[serde(default)]
    pub now: bool,
    /// CAs that this node distrusts from now on.
    #[serde(default)]
    pub distrust: Vec<Fingerprint>,
}

/// Who is asked in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The source of the trust bundle.
    Bundle,
    /// The source of the bundle for what clients present.
    ClientBundle,
    /// Discovery.
    Peers,
    /// The source of the cluster credential.
    Credential,
    /// The included secrets.
    Included,
    /// The secret of the connection document.
    Connection,
    /// The issuer.
    Issuer,
}

impl Source {
    /// The name in the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::ClientBundle => "client_bundle",
            Self::Peers => "peers",
            Self::Credential => "credential",
            Self::Included => "included",
            Self::Connection => "connection",
            Self::Issuer => "issuer",
        }
    }
}

/// Why a pass ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// No certificate.
    #[error(transparent)]
    Obtain(#[from] ObtainError),
    /// The certificate that came isn't accepted.
    #[error("the issued certificate is not accepted")]
    Rejected(#[from] RejectedChain),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no effective configuration.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The configuration isn't in force.
    #[error(transparent)]
    Deploy(#[from] DeployError),
    /// The pass waits for the next try after a failure, or for an answer that is missing.
    #[error("{0}")]
    Waits(Reason),
}

impl PassError {
    /// Whether the way from a generation to a server that serves it failed. That way is tried again at its own pace, and
    /// never leads to an issuance.
    pub(crate) fn is_of_deployment(&self) -> bool {
        matches!(self, Self::Journal(_) | Self::File(_) | Self::Settings(_) | Self::Deploy(_))
    }
}

impl From<&PassError> for Reason {
    fn from(error: &PassError) -> Self {
        let (code, subject) = match error {
            PassError::Waits(reason) => return reason.clone(),
            PassError::Obtain(error) => return error.into(),
            PassError::Journal(error) => return error.into(),
            PassError::File(error) => return error.into(),
            PassError::Deploy(error) => return error.into(),
            PassError::Rejected(_) => (Code::CertificateRejected, None),
            PassError::Settings(SettingsError::Render(error)) => of_template(error),
            PassError::Settings(error @ SettingsError::Unreadable(_)) => {
                (Code::ConfigurationUnreadable, Some(mistake(error)))
            }
            PassError::Settings(error) => (Code::SettingsRefused, Some(mistake(error))),
        };
        Self::failed(code, subject, error)
    }
}

fn of_template(error: &RenderError) -> (Code, Option<String>) {
    match error {
        RenderError::Credential(_) => (Code::CredentialInvalid, None),
        error => (Code::TemplateUnusable, Some(mistake(error))),
    }
}
