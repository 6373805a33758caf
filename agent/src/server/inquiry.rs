//! Questions to nats-server about itself, through its system account or its monitoring port.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::monitor::{self, MonitorError};
use super::system::SystemConnection;
use crate::conf::listeners::Monitor;
use crate::error::with_causes;
use crate::x509::chain::StoredChain;

/// A question, for the system account and for the monitoring port (`server/events.go` and `server/monitor.go` of nats-server
/// 2.15.1).
pub(super) struct Question {
    /// The last word of the subject `$SYS.REQ.SERVER.<id>.VERB`.
    pub(super) verb: &'static str,
    /// The options there, as JSON.
    pub(super) options: String,
    /// The path and the query at the monitoring port.
    pub(super) path: String,
}

impl Question {
    /// A question without options.
    pub(super) fn plain(verb: &'static str, path: &str) -> Self {
        Self { verb, options: "{}".into(), path: path.into() }
    }
}

/// The ways to ask a nats-server.
#[derive(Clone, Copy)]
pub(super) struct Inquiry<'a> {
    /// The connection to the system account, if the agent wants a connection.
    pub(super) system: Option<&'a SystemConnection>,
    /// The monitoring port.
    pub(super) monitor: &'a Monitor,
    /// The chain that a monitoring port with TLS may show.
    pub(super) ours: Option<&'a StoredChain>,
}

/// What `/healthz` says.
#[derive(Debug, Deserialize)]
struct Health {
    status: String,
}

impl Inquiry<'_> {
    /// The answer to a question. The monitoring port is asked if the system account gives no answer.
    pub(super) async fn ask<T: DeserializeOwned>(&self, question: &Question) -> Result<T, MonitorError> {
        match self.ask_system(question).await {
            Some(answer) => Ok(answer),
            None => monitor::get(self.monitor, self.ours, &question.path).await,
        }
    }

    /// Whether this server's JetStream keeps up with the meta leader. Elsewhere the health is "unavailable", and `/healthz`
    /// answers 503.
    pub(super) async fn is_current(&self) -> Result<bool, MonitorError> {
        let question = Question {
            verb: "HEALTHZ",
            options: r#"{"js-meta-only":true}"#.into(),
            path: "/healthz?js-meta-only=true".into(),
        };
        match self.ask_system::<Health>(&question).await {
            Some(health) => Ok(health.status != "unavailable"),
            None => Ok(!monitor::is_unavailable(self.monitor, self.ours, &question.path).await?),
        }
    }

    /// The answer to a question that a user of `nats.system` may lack the permission for. Such a user gets no answer, and the agent
    /// then takes the system account for silent. So the monitoring port is asked first.
    pub(super) async fn ask_port_first<T: DeserializeOwned>(&self, question: &Question) -> Result<T, MonitorError> {
        match monitor::get(self.monitor, self.ours, &question.path).await {
            Ok(answer) => Ok(answer),
            Err(error) => self.ask_system(question).await.ok_or(error),
        }
    }

    async fn ask_system<T: DeserializeOwned>(&self, question: &Question) -> Option<T> {
        let answer = self.system?.data(question.verb, Bytes::from(question.options.clone())).await;
        answer.inspect_err(|error| tracing::debug!("{}", with_causes(error))).ok()
    }
}
