//! The status and the counters as Prometheus metrics, over HTTP.
//!
//! prometheus-client writes OpenMetrics alone. The text format of Prometheus differs from it in the names of counters and in
//! the last line, so the text format is made of the same output.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::published::Published;
use super::tally::Tally;
use crate::aws::calls::calls;
use crate::reason::Told;
use crate::status::{RouteState, ServedStatus, State, Status};

const MAX_CLIENTS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);

/// The text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why metrics can't be served.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {address} for metrics; change metrics.listen, or free the port")]
pub struct MetricsError {
    /// The address of `metrics.listen`.
    pub address: SocketAddr,
    /// What the system answered.
    #[source]
    pub source: std::io::Error,
}

/// Listens on the address of `metrics.listen`.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    TcpListener::bind(address).await.map_err(|source| MetricsError { address, source })
}

/// Serves `/metrics` for ever. The answer is 503 until the first pass has ended.
pub async fn serve(listener: TcpListener, published: watch::Receiver<Published>, tally: Arc<Tally>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        let (published, tally) = (published.clone(), Arc::clone(&tally));
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request: Request<_>| {
                let format = Format::asked_for(request.headers());
                let answer = respond(request.uri().path(), format, &published.borrow(), &tally);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let _slow_or_gone = tokio::time::timeout(PATIENCE, connection).await;
            drop(place);
        });
    }
}

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    OpenMetrics,
}

impl Format {
    /// OpenMetrics where the Accept header names it, in a version that is served, and prefers nothing else (RFC 9110,
    /// 12.5.1).
    fn asked_for(headers: &HeaderMap) -> Self {
        let (mut openmetrics, mut text) = (0.0_f32, 0.0_f32);
        let ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for range in ranges.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let value = |name: &str| {
                let of = |(key, _): &&(&str, &str)| key.trim().eq_ignore_ascii_case(name);
                parameters.iter().find(of).map(|(_, value)| value.trim().trim_matches('"'))
            };
            let quality = value("q").map_or(1.0, |quality| quality.parse().unwrap_or(0.0));
            match kind.as_str() {
                "application/openmetrics-text" if value("version").is_none_or(|version| version == "1.0.0") => {
                    openmetrics = openmetrics.max(quality);
                }
                "text/plain" => text = text.max(quality),
                _ => {}
            }
        }
        if openmetrics > 0.0 && openmetrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Text => TEXT,
            Self::OpenMetrics => OPENMETRICS,
        }
    }

    fn write(self, published: &Published, status: &Status, tally: &Tally) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &registry(published, status, tally))?;
        Ok(match self {
            Self::Text => to_text_format(&text),
            Self::OpenMetrics => text,
        })
    }
}

/// OpenMetrics as the text format. There the name of a counter's family ends with `_total`, as its samples do, and there is
/// no mark at the end.
fn to_text_format(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + 256);
    let mut help = None;
    for line in openmetrics.lines() {
        if line.starts_with("# HELP ") {
            help = Some(line);
            continue;
        }
        let mut words = line.splitn(4, ' ');
        let head = (words.next(), words.next(), words.next(), words.next());
        if let (Some("#"), Some("TYPE"), Some(family), Some(kind)) = head {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some(help) = help.take().and_then(|help| help.strip_prefix("# HELP ")?.strip_prefix(family)) {
                text.extend(["# HELP ", family, suffix, help, "\n"]);
            }
            text.extend(["# TYPE ", family, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

fn respond(path: &str, format: Format, published: &Published, tally: &Tally) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    match (path, &published.status) {
        ("/metrics", Some(status)) => {
            if let Ok(text) = format.write(published, status, tally) {
                *response.body_mut() = Full::from(text);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
            } else {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
        }
        ("/metrics", None) => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    response
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
    let mut gauge = |name: &str, help: &str, value: Option<i64>| {
        let Some(value) = value else { return };
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
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
    gauge("anchor_not_after_timestamp_seconds", "Earliest end of an anchor in the trust bundle, as Unix time", first);
    let last = published.last_pass.map(unix);
    gauge("last_pass_timestamp_seconds", "Time when the last pass ended, as Unix time", last);
}

/// The gauges with one label each.
fn register_labelled(registry: &mut Registry, status: &Status, tally: &Tally) {
    let mut family = |name: &str, help: &str, label: &'static str, values: Vec<(String, i64)>| {
        let family = Family::<[(&'static str, String); 1], Gauge>::default();
        for (of, value) in values {
            family.get_or_create(&[(label, of)]).inc_by(value);
        }
        registry.register(name, help, family);
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

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

    fn written(format: Format, status: Status) -> String {
        let published =
            Published { last_pass: Some(datetime!(1970-01-01 00:00:08 UTC)), status: Some(status), pass: None };
        format.write(&published, published.status.as_ref().unwrap(), &Tally::default()).unwrap()
    }

    /// The gauges in order, without the comments and with a placeholder for the agent's version.
    fn gauges(status: Status) -> Vec<String> {
        let text = written(Format::Text, status);
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

    /// Each family of the text format has its help, its type, and samples of its name.
    #[test]
    fn the_text_format_is_openmetrics_with_other_names_of_counters() {
        let openmetrics = written(Format::OpenMetrics, healthy());
        let text = to_text_format(&openmetrics);
        assert!(openmetrics.ends_with("# EOF\n") && !text.contains("# EOF"), "{text}");
        let samples =
            |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(samples(&text), samples(&openmetrics));
        let counter = "# HELP nats_tls_agent_reload_rollbacks_total Reloads after which the previous configuration was put \
                       back.\n# TYPE nats_tls_agent_reload_rollbacks_total counter\nnats_tls_agent_reload_rollbacks_total 0\n";
        assert!(text.contains(counter), "{text}");
        let mut family = "";
        for line in text.lines() {
            match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
                ["#", "HELP", named, _] => family = named,
                ["#", "TYPE", named, kind] => {
                    assert_eq!(named, family);
                    assert_eq!(named.ends_with("_total"), kind == "counter", "{line}");
                }
                _ => assert!(line.starts_with(family), "{line} in {family}"),
            }
        }
    }

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        let asked_for = |accept: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(ACCEPT, HeaderValue::from_static(value));
            }
            Format::asked_for(&headers)
        };
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;\
                            escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for named in [
            &[prometheus_2][..],
            &[prometheus_3],
            &["application/openmetrics-text"],
            &["Application/OpenMetrics-Text; version=\"1.0.0\"; q=1"],
            &["text/html", "application/openmetrics-text"],
        ] {
            assert_eq!(asked_for(named), Format::OpenMetrics, "{named:?}");
        }
        for other in [
            &[][..],
            &["*/*"],
            &["application/*"],
            &["text/plain"],
            &["text/plain, application/openmetrics-text;q=0.9"],
            &["application/openmetrics-text;q=0"],
            &["application/openmetrics-text;q=many"],
            &["application/openmetrics-text;version=0.0.1"],
            &[",;=,q"],
        ] {
            assert_eq!(asked_for(other), Format::Text, "{other:?}");
        }
    }

    async fn served(status: Option<Status>) -> SocketAddr {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_sender, watched) = watch::channel(Published { status, ..Published::default() });
        tokio::spawn(serve(listener, watched, Arc::default()));
        address
    }

    /// The answer's status line and its content type.
    async fn asked(address: SocketAddr, path: &str, accept: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let kind = answer.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
        (answer.lines().next().unwrap_or_default().to_owned(), kind.to_owned())
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        asked(address, path, "*/*").await.0
    }

    #[tokio::test]
    async fn the_answer_names_its_format() {
        let address = served(Some(healthy())).await;
        assert_eq!(asked(address, "/metrics", "*/*").await.1, TEXT);
        assert_eq!(asked(address, "/metrics", "application/openmetrics-text").await.1, OPENMETRICS);
    }

    #[tokio::test]
    async fn there_is_one_path_and_it_answers_after_the_first_pass() {
        let (ready, early) = (served(Some(healthy())).await, served(None).await);
        assert_eq!(get(ready, "/metrics").await, "HTTP/1.1 200 OK");
        assert_eq!(get(early, "/metrics").await, "HTTP/1.1 503 Service Unavailable");
        for path in ["/", "/metrics/", "/status"] {
            assert_eq!(get(ready, path).await, "HTTP/1.1 404 Not Found", "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_08_slow_clients_that_take_every_place_are_given_up() {
        let address = served(Some(healthy())).await;
        let started = tokio::time::Instant::now();
        let mut slow = Vec::new();
        for _ in 0..MAX_CLIENTS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost:").await.unwrap();
            slow.push(stream);
        }
        assert_eq!(get(address, "/metrics").await, "HTTP/1.1 200 OK");
        assert!(started.elapsed() >= PATIENCE, "{:?}: they took no place", started.elapsed());
        assert!(started.elapsed() < 2 * PATIENCE, "{:?}", started.elapsed());
    }
}
