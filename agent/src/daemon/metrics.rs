//! The status and the counters as Prometheus metrics.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::published::Published;
use super::tally::Tally;
use crate::aws::calls::calls;
use crate::exposition::{self, register_gauge, register_gauges};
use crate::reason::Told;
use crate::status::{RouteState, ServedStatus, State, Status};

/// Serves `/metrics` for ever. The answer is 503 until the first pass has ended.
pub async fn serve(listener: TcpListener, published: watch::Receiver<Published>, tally: Arc<Tally>) {
    let scraped = move || {
        let published = published.borrow();
        published.status.as_ref().map(|status| registry(&published, status, &tally))
    };
    exposition::serve(listener, scraped).await;
}

/// A registry for one scrape. A scrape comes every few seconds at most, and between scrapes nothing is kept.
fn registry(published: &Published, status: &Status, tally: &Tally) -> Registry {
    let mut registry = Registry::with_prefix("nats_tls_agent");
    register_single(&mut registry, published, status);
    register_labelled(&mut registry, status, tally);
    register_counts(&mut registry, tally);
    registry
}

/// The gauges without labels. A gauge whose value is not known is left out.
fn register_single(registry: &mut Registry, published: &Published, status: &Status) {
    let mut gauge = |name: &str, help: &str, value: Option<i64>| register_gauge(registry, name, help, value);
    let unix = |time: OffsetDateTime| time.unix_timestamp();
    let leaf = status.leaf.as_ref();
    gauge(
        "leaf_not_after_timestamp_seconds",
        "End of the newest leaf, served or not, as Unix time",
        leaf.map(|leaf| unix(leaf.not_after)),
    );
    let issuer = leaf.and_then(|leaf| leaf.issuer_not_after).map(unix);
    gauge("issuer_not_after_timestamp_seconds", "End of the CA that issued the newest leaf, as Unix time", issuer);
    let generation = leaf.map(|leaf| i64::try_from(leaf.generation).unwrap_or(i64::MAX));
    gauge("leaf_generation", "Generation that holds the newest leaf", generation);
    let next = status.renewal.next.map(unix);
    gauge("renewal_next_timestamp_seconds", "Time when the next leaf is due, as Unix time", next);
    gauge("renewal_failures", "Issuances in a row that failed", Some(status.renewal.attempts.into()));
    let confirmed = status.served.as_ref().and_then(|served| served.confirmed_at).map(unix);
    let help = "Time when the committed configuration was last seen served, as Unix time";
    gauge("served_confirmed_timestamp_seconds", help, confirmed);
    let of_clients = status.trust.iter().flat_map(|trust| &trust.clients).flat_map(|clients| &clients.anchors);
    let anchors = status.trust.iter().flat_map(|trust| &trust.anchors).chain(of_clients);
    let first = anchors.map(|anchor| unix(anchor.not_after)).min();
    gauge("anchor_not_after_timestamp_seconds", "Earliest end of an anchor of nodes or clients, as Unix time", first);
    let last = published.last_pass.map(unix);
    gauge("last_pass_timestamp_seconds", "Time when the last pass ended, as Unix time", last);
}

/// The gauges with one label each.
fn register_labelled(registry: &mut Registry, status: &Status, tally: &Tally) {
    let mut family = |name: &str, help: &str, label: &'static str, values: Vec<(String, i64)>| {
        register_gauges(registry, name, help, label, values);
    };
    let by_state = [State::Healthy, State::Degraded, State::Failing]
        .map(|state| (state.to_string(), (status.state == state).into()));
    family("state", "1 for the state that the node is in, 0 for every other state", "state", by_state.into());
    let by_code = |told: &[Told]| told.iter().map(|told| (told.code.clone(), 1)).collect();
    family("reasons", "Reasons why the node is not healthy, by their code", "code", by_code(&status.reasons));
    family("warnings", "Warnings that leave the state as it is, by their code", "code", by_code(&status.warnings));
    let listeners = status.served.iter().flat_map(ServedStatus::listeners);
    let ends = listeners.filter_map(|(name, leaf)| Some((name.to_string(), leaf.not_after?.unix_timestamp())));
    let help = "End of the leaf that the listener was last seen to serve, as Unix time";
    family("served_not_after_timestamp_seconds", help, "listener", ends.collect());
    let by_route = [RouteState::Up, RouteState::Down, RouteState::Unknown].map(|route| {
        let others = status.peers.iter().filter(|peer| !status.node.is_own(peer));
        let count = others.filter(|peer| peer.route == route).count();
        (route.to_string(), i64::try_from(count).unwrap_or(i64::MAX))
    });
    family("routes", "Other servers of the cluster, by the state of the route to them", "state", by_route.into());
    let answered = tally.answered().into_iter().map(|(source, at)| (source.as_str().to_owned(), at.unix_timestamp()));
    let help = "Time of the last good answer of a source, as Unix time";
    family("source_last_success_timestamp_seconds", help, "source", answered.collect());
    let version = vec![(env!("CARGO_PKG_VERSION").to_owned(), 1)];
    family("build_info", "1 for the version of the agent that runs", "version", version);
}

/// What is counted since the start of the daemon.
fn register_counts(registry: &mut Registry, tally: &Tally) {
    registry.register("reloads", "Reloads that nats-server was told to make, by outcome", tally.reloads.clone());
    let help = "Reloads after which the previous configuration was put back";
    registry.register("reload_rollbacks", help, tally.rollbacks.clone());
    let help = "Clients that reloads disconnected";
    registry.register("reload_disconnected_clients", help, tally.disconnected.clone());
    let help = "Clients that the agent closed because a distrusted CA may have let them in";
    registry.register("distrusted_connections_closed", help, tally.closed.clone());
    registry.register("deployments_failed", "Passes that failed to deploy", tally.deployments_failed.clone());
    registry.register("issuances", "Passes that asked the issuer, by outcome", tally.issuances.clone());
    let help = "Time from the signal to a reload that is confirmed";
    registry.register("reload_duration_seconds", help, tally.reload_seconds.clone());
    registry.register("pass_duration_seconds", "Time that a pass takes", tally.pass_seconds.clone());
    let called = Family::<[(&'static str, &'static str); 3], Counter>::default();
    for ((call, outcome), count) in calls() {
        let (service, operation) = call.split_once(':').unwrap_or(("", call));
        let labels = [("service", service), ("operation", operation), ("outcome", outcome.as_str())];
        called.get_or_create(&labels).inc_by(count);
    }
    registry.register("aws_calls", "Calls to AWS, by service, operation and outcome", called);
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::reason::{Reason, Told};
    use crate::status::{AnchorStatus, LeafStatus, NodeStatus, PeerStatus, RenewalStatus, ServedLeaf, TrustStatus};

    fn first_pass() -> Status {
        Status {
            reasons: vec![Told::from(&Reason::NoCertificate)],
            renewal: RenewalStatus { next: None, attempts: 2, last_error: Some("PCA is away".into()) },
            ..Status::bare(State::Failing)
        }
    }

    fn healthy() -> Status {
        let anchor = |not_after| AnchorStatus { subject: "CN=ca".into(), sha256: "0c".into(), not_after };
        let served =
            |not_after| ServedLeaf { sha256: "0a".into(), not_after: Some(not_after), ..ServedLeaf::default() };
        let peer = |id: &str, route| PeerStatus {
            id: id.into(),
            address: "10.0.1.1:6222".into(),
            state: "InService".into(),
            route,
        };
        Status {
            state: State::Healthy,
            reasons: Vec::new(),
            leaf: Some(LeafStatus {
                serial: "01".into(),
                not_before: datetime!(1970-01-01 00:00:01 UTC),
                not_after: datetime!(1970-01-01 00:00:02 UTC),
                issuer: "CN=ca".into(),
                issuer_not_after: Some(datetime!(1970-01-01 00:00:10 UTC)),
                sans: Vec::new(),
                sha256: "0a".into(),
                generation: 7,
            }),
            served: Some(ServedStatus {
                client: Some(served(datetime!(1970-01-01 00:00:06 UTC))),
                route: Some(served(datetime!(1970-01-01 00:00:07 UTC))),
                confirmed_at: Some(datetime!(1970-01-01 00:00:04 UTC)),
                ..ServedStatus::default()
            }),
            trust: Some(TrustStatus {
                anchors: vec![anchor(datetime!(1970-01-01 00:00:09 UTC)), anchor(datetime!(1970-01-01 00:00:05 UTC))],
                source: "issuer".into(),
                version: "1".into(),
                clients: None,
            }),
            node: NodeStatus { name: "own".into(), ..NodeStatus::default() },
            peers: vec![peer("own", RouteState::Up), peer("n2", RouteState::Up), peer("n3", RouteState::Unknown)],
            renewal: RenewalStatus { next: Some(datetime!(1970-01-01 00:00:03 UTC)), attempts: 0, last_error: None },
            ..first_pass()
        }
    }

    /// The gauges in order, without the comments and with a placeholder for the agent's version.
    fn gauges(status: Status) -> Vec<String> {
        let last_pass = Some(datetime!(1970-01-01 00:00:08 UTC));
        let published = Published { last_pass, status: Some(status), pass: None };
        let status = published.status.as_ref().unwrap();
        let text = exposition::text(&registry(&published, status, &Tally::default()));
        let is_count =
            |line: &str| ["_total{", "_total ", "_bucket{", "_sum ", "_count "].iter().any(|of| line.contains(of));
        let lines = text.lines().filter(|line| !line.starts_with('#') && !is_count(line));
        let lines = lines.map(|line| line.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
        let mut samples: Vec<_> =
            lines.map(|line| line.strip_prefix("nats_tls_agent_").unwrap_or(&line).to_owned()).collect();
        samples.sort();
        samples
    }

    #[test]
    fn everything_that_is_known_of_a_node_is_a_number() {
        let warning = || Told::from(&Reason::NoRoute);
        let expected = [
            "anchor_not_after_timestamp_seconds 5",
            "build_info{version=\"VERSION\"} 1",
            "issuer_not_after_timestamp_seconds 10",
            "last_pass_timestamp_seconds 8",
            "leaf_generation 7",
            "leaf_not_after_timestamp_seconds 2",
            "renewal_failures 0",
            "renewal_next_timestamp_seconds 3",
            "routes{state=\"down\"} 0",
            "routes{state=\"unknown\"} 1",
            "routes{state=\"up\"} 1",
            "served_confirmed_timestamp_seconds 4",
            "served_not_after_timestamp_seconds{listener=\"client\"} 6",
            "served_not_after_timestamp_seconds{listener=\"route\"} 7",
            "state{state=\"degraded\"} 0",
            "state{state=\"failing\"} 0",
            "state{state=\"healthy\"} 1",
            "warnings{code=\"no_route\"} 2",
        ];
        assert_eq!(gauges(Status { warnings: vec![warning(), warning()], ..healthy() }), expected);
    }

    /// A NotAfter of zero would mean a certificate that ended in 1970.
    #[test]
    fn what_is_not_known_yet_is_absent() {
        let expected = [
            "build_info{version=\"VERSION\"} 1",
            "last_pass_timestamp_seconds 8",
            "reasons{code=\"no_certificate\"} 1",
            "renewal_failures 2",
            "routes{state=\"down\"} 0",
            "routes{state=\"unknown\"} 0",
            "routes{state=\"up\"} 0",
            "state{state=\"degraded\"} 0",
            "state{state=\"failing\"} 1",
            "state{state=\"healthy\"} 0",
        ];
        assert_eq!(gauges(first_pass()), expected);
    }
}
