//! AWS as its documentation describes it: Private CA, Secrets Manager, Auto Scaling and EC2, as far as the agent calls
//! them, in one account and Region.
//!
//! [`Account`] is pure: it does no I/O, never waits, and takes the time of every call as an argument, so that a simulation
//! can run a year of it in seconds. What the documentation says and a convenient double leaves out is what it is for:
//! issuance takes time, validity is honoured and limited, a token is remembered for five minutes, calls are throttled,
//! pages are short, and answers lag behind. Each rule names the page that it follows.
//!
//! [`http::AwsDouble`] is an account that the real SDK talks to, on a loopback address, with a script of faults.

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

/// The account's id in every ARN: the one that AWS's documentation uses.
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
    /// An empty account, with the quotas that AWS gives at first.
    #[must_use]
    pub fn new(region: &str) -> Self {
        Self { pca: Pca::new(region), secrets: Secrets::new(region), fleet: Fleet::new(region) }
    }
}

/// A service's refusal, as its wire protocol carries it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ServiceError {
    /// `ThrottlingException` and the like.
    pub code: &'static str,
    /// The service's own words.
    pub message: String,
}

impl ServiceError {
    /// A refusal.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
