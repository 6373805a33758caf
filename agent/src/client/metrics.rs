//! What `agent client run` tells Prometheus: the last look, the files in force, and what is counted since the start.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{ClientError, ClientStatus};
use crate::clock::read_rfc3339;
use crate::connection::Document;
use crate::exposition::{register_gauge, register_gauges};
use crate::status::State;

/// The files in force, as far as metrics tell of them.
#[derive(Clone, Debug)]
pub(super) struct InForce {
    /// The number of the generation.
    pub(super) generation: u64,
    /// The document of the generation.
    pub(super) document: Document,
    /// NotAfter of the certificate of the service.
    pub(super) leaf_ends: Option<OffsetDateTime>,
}

/// What a look left.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) status: ClientStatus,
    pub(super) at: OffsetDateTime,
    /// When a look last brought everything up to date.
    pub(super) succeeded_at: Option<OffsetDateTime>,
    pub(super) in_force: Option<InForce>,
}

/// What is counted since the start.
#[derive(Debug, Default)]
struct Tally {
    refusals: Family<[(&'static str, &'static str); 1], Counter>,
    on_change_failures: Counter,
}

/// Where the looks are told.
#[derive(Debug)]
pub(super) struct Telling {
    looks: watch::Sender<Option<Look>>,
    tally: Arc<Tally>,
}

impl Telling {
    pub(super) fn new() -> Self {
        Self { looks: watch::Sender::new(None), tally: Arc::default() }
    }

    /// Counts what failed in a look, by the code of its reason.
    pub(super) fn count(&self, error: &ClientError, code: &'static str) {
        self.tally.refusals.get_or_create(&[("code", code)]).inc();
        if matches!(error, ClientError::NotTold(_)) {
            self.tally.on_change_failures.inc();
        }
    }

    /// Tells of a look. The time of the last success stays.
    pub(super) fn tell(&self, status: ClientStatus, at: OffsetDateTime, in_force: Option<InForce>) {
        self.looks.send_modify(|look| {
            let before = look.as_ref().and_then(|look| look.succeeded_at);
            let succeeded_at = if status.state == State::Healthy { Some(at) } else { before };
            *look = Some(Look { status, at, succeeded_at, in_force });
        });
    }

    /// The registry of one scrape. `None`: there was no look yet.
    pub(super) fn scraped(&self) -> impl Fn() -> Option<Registry> + use<> {
        let (looks, tally) = (self.looks.subscribe(), Arc::clone(&self.tally));
        move || looks.borrow().as_ref().map(|look| registry(look, &tally))
    }
}

fn registry(look: &Look, tally: &Tally) -> Registry {
    let mut registry = Registry::with_prefix("nats_tls_client");
    let Look { status, at, succeeded_at, in_force } = look;
    let unix = |time: OffsetDateTime| time.unix_timestamp();
    let document = in_force.as_ref().map(|files| &files.document);
    let mut gauge = |name: &str, help: &str, value: Option<i64>| register_gauge(&mut registry, name, help, value);
    gauge("last_look_timestamp_seconds", "Time when the last look ended, as Unix time", Some(unix(*at)));
    let help = "Time when a look last left everything up to date, as Unix time";
    gauge("last_success_timestamp_seconds", help, succeeded_at.map(unix));
    let generation = in_force.as_ref().map(|files| i64::try_from(files.generation).unwrap_or(i64::MAX));
    gauge("generation", "Generation of the files in force", generation);
    let version = document.map(|document| i64::try_from(document.version).unwrap_or(i64::MAX));
    gauge("document_version", "Version of the connection document in force", version);
    let changed_at = document.and_then(|document| read_rfc3339(&document.changed_at)).map(unix);
    gauge("document_changed_timestamp_seconds", "Time when this document changed, as Unix time", changed_at);
    let anchors = document.and_then(Document::bundle).map(|bundle| bundle.anchors).unwrap_or_default();
    let first = anchors.iter().map(|anchor| unix(anchor.not_after)).min();
    gauge("anchor_not_after_timestamp_seconds", "Earliest end of an anchor in ca.pem, as Unix time", first);
    let leaf = in_force.as_ref().and_then(|files| files.leaf_ends).map(unix);
    gauge("leaf_not_after_timestamp_seconds", "End of the certificate of the service, as Unix time", leaf);
    let states = [State::Healthy, State::Degraded, State::Failing];
    let by_state = states.map(|state| (state.to_string(), (status.state == state).into()));
    let help = "1 for the state that the files are in, 0 for every other state";
    register_gauges(&mut registry, "state", help, "state", by_state);
    let by_code = status.reasons.iter().map(|reason| (reason.code.clone(), 1));
    register_gauges(&mut registry, "reasons", "Reasons why the files are not healthy, by their code", "code", by_code);
    let build = [(env!("CARGO_PKG_VERSION").to_owned(), 1)];
    register_gauges(&mut registry, "build_info", "1 for the version of the agent that runs", "version", build);
    registry.register("refusals", "What failed in a look, by the code of the reason", tally.refusals.clone());
    let help = "Times that on_change failed to tell the service of new files";
    registry.register("on_change_failures", help, tally.on_change_failures.clone());
    registry
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::super::on_change::NotTold;
    use super::*;
    use crate::exposition;
    use crate::reason::{Reason, Told};
    use crate::x509::test_ca::{Ca, NOW};

    fn status(state: State, reasons: &[ClientError]) -> ClientStatus {
        let reasons = reasons.iter().map(|error| Told::from(&Reason::from(error))).collect();
        ClientStatus { state, reasons, files: None, changed_at: None, checked_at: String::new() }
    }

    fn in_force() -> InForce {
        let (ca, changed_at) = (Ca::root("ca").pem, "1970-01-01T00:00:05Z".into());
        let document = Document { ca, version: 1, changed_at, ..Document::default() };
        InForce { generation: 7, document, leaf_ends: Some(OffsetDateTime::UNIX_EPOCH + Duration::from_secs(9)) }
    }

    fn samples(telling: &Telling) -> Vec<String> {
        let text = exposition::text(&telling.scraped()().unwrap());
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.contains("build_info"));
        let mut samples: Vec<_> =
            lines.filter_map(|line| line.strip_prefix("nats_tls_client_")).map(str::to_owned).collect();
        samples.sort();
        samples
    }

    #[test]
    fn everything_that_is_known_of_the_files_is_a_number_and_what_is_not_known_is_absent() {
        let telling = Telling::new();
        assert!(telling.scraped()().is_none());
        let at = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(20);
        telling.tell(status(State::Failing, &[ClientError::Missing(PathBuf::from("/c"))]), at, None);
        let expected = [
            "last_look_timestamp_seconds 20",
            "on_change_failures_total 0",
            "reasons{code=\"connection_invalid\"} 1",
            "state{state=\"degraded\"} 0",
            "state{state=\"failing\"} 1",
            "state{state=\"healthy\"} 0",
        ];
        assert_eq!(samples(&telling), expected);

        telling.tell(status(State::Healthy, &[]), at, Some(in_force()));
        let failed = ClientError::NotTold(NotTold::NoPid(PathBuf::from("/p")));
        telling.count(&failed, "client_on_change");
        telling.count(&ClientError::Bundle, "connection_invalid");
        telling.tell(status(State::Degraded, &[failed]), at + Duration::from_secs(10), Some(in_force()));
        let anchor = in_force().document.bundle().unwrap().anchors[0].not_after.unix_timestamp();
        assert!(anchor > NOW.unix_timestamp());
        let anchor = format!("anchor_not_after_timestamp_seconds {anchor}");
        let expected = [
            anchor.as_str(),
            "document_changed_timestamp_seconds 5",
            "document_version 1",
            "generation 7",
            "last_look_timestamp_seconds 30",
            "last_success_timestamp_seconds 20",
            "leaf_not_after_timestamp_seconds 9",
            "on_change_failures_total 1",
            "reasons{code=\"client_on_change\"} 1",
            "refusals_total{code=\"client_on_change\"} 1",
            "refusals_total{code=\"connection_invalid\"} 1",
            "state{state=\"degraded\"} 1",
            "state{state=\"failing\"} 0",
            "state{state=\"healthy\"} 0",
        ];
        assert_eq!(samples(&telling), expected);
    }
}
