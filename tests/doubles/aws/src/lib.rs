//! A model of AWS as its documentation describes it. It covers the agent's calls to Private CA, Secrets Manager, Auto
//! Scaling and EC2, in one account and Region.
//!
//! [`Account`] is pure: it does no I/O, never waits, and takes the time of every call as an argument. A simulation can
//! run a year of an account in seconds.
//!
//! The model includes documented behaviour that a convenient double omits. Issuance takes time, and validity is
//! honoured and limited. A token is remembered for five minutes. Calls are throttled, pages are short, and answers lag
//! behind. Each rule names its source page.
//!
//! [`http::AwsDouble`] serves an account to the real SDK on a loopback address, with a script of faults.

pub mod autoscaling;
pub mod ec2;
pub mod fault;
pub mod fleet;
pub mod http;
pub mod pca;
pub mod quota;
pub mod secrets;
pub mod wire;

use fleet::Fleet;
use pca::Pca;
use secrets::Secrets;

/// The account id in every ARN, taken from AWS's documentation.
pub const ACCOUNT_ID: &str = "111122223333";

/// One account in one Region.
#[derive(Debug)]
pub struct Account {
    /// Private CA.
    pub pca: Pca,
    /// Secrets Manager.
    pub secrets: Secrets,
    /// Auto Scaling and EC2.
    pub fleet: Fleet,
}

impl Account {
    /// An empty account with AWS's initial quotas.
    #[must_use]
    pub fn new(region: &str) -> Self {
        Self { pca: Pca::new(region), secrets: Secrets::new(region), fleet: Fleet::new(region) }
    }
}

/// A service's error answer, as its wire protocol carries it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ServiceError {
    /// The error code, for instance `ThrottlingException`.
    pub code: &'static str,
    /// The service's message.
    pub message: String,
}

impl ServiceError {
    /// An error answer with this code and message.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
