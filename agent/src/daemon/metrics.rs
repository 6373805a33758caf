//! The status as Prometheus metrics, over HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::status::{RouteState, State, Status};

const MAX_CLIENTS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);

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
pub async fn serve(listener: TcpListener, status: watch::Receiver<Option<Status>>) {
    let places = std::sync::Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        let status = status.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request: Request<_>| {
                let answer = respond(request.uri().path(), status.borrow().as_ref());
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

fn respond(path: &str, status: Option<&Status>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    match (path, status) {
        ("/metrics", Some(status)) => {
            let mut text = String::new();
            if encode(&mut text, &registry(status)).is_ok() {
                *response.body_mut() = Full::from(text);
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
            } else {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
        }
        ("/metrics", None) => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    response
}

fn registry(status: &Status) -> Registry {
    let mut registry = Registry::with_prefix("nats_tls_agent");
    let mut gauge = |name: &str, help: &str, value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    if let Some(leaf) = &status.leaf {
        gauge("leaf_not_after_seconds", "End of the newest leaf, Unix time", leaf.not_after.unix_timestamp());
        gauge("leaf_generation", "Generation of the newest leaf", i64::try_from(leaf.generation).unwrap_or(i64::MAX));
    }
    if let Some(next) = status.renewal.next {
        gauge("renewal_next_seconds", "When the next leaf is due, Unix time", next.unix_timestamp());
    }
    gauge("renewal_failures", "Failed renewals in a row", status.renewal.attempts.into());
    let confirmed = status.served.as_ref().and_then(|served| served.confirmed_at);
    if let Some(confirmed) = confirmed {
        gauge(
            "served_confirmed_seconds",
            "When the committed leaf was last seen served, Unix time",
            confirmed.unix_timestamp(),
        );
    }
    if let Some(first) = status.trust.iter().flat_map(|trust| &trust.anchors).map(|anchor| anchor.not_after).min() {
        gauge("anchor_not_after_seconds", "Earliest end of an anchor, Unix time", first.unix_timestamp());
    }
    let mut family = |name: &str, help: &str, label: &'static str, values: Vec<(String, i64)>| {
        let family = Family::<[(&'static str, String); 1], Gauge>::default();
        for (of, value) in values {
            family.get_or_create(&[(label, of)]).set(value);
        }
        registry.register(name, help, family);
    };
    let by_state = [State::Healthy, State::Degraded, State::Failing]
        .map(|state| (state.to_string(), (status.state == state).into()));
    family("state", "1 for the state that the node is in", "state", by_state.into());
    let by_route = [RouteState::Up, RouteState::Down, RouteState::Unknown].map(|route| {
        let count = status.peers.iter().filter(|peer| peer.route == route).count();
        (route.to_string(), i64::try_from(count).unwrap_or(i64::MAX))
    });
    family("peers", "Servers of the cluster, this one included, by whether there is a route", "route", by_route.into());
    let version = vec![(env!("CARGO_PKG_VERSION").to_owned(), 1)];
    family("build_info", "1 for the version of the agent that runs", "version", version);
    registry
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::reason::{Reason, Told};
    use crate::status::{
        AnchorStatus, LeafStatus, NatsStatus, NodeStatus, PeerStatus, RenewalStatus, ServedStatus, TrustStatus,
    };

    fn first_pass() -> Status {
        Status {
            state: State::Failing,
            reasons: vec![Told::from(&Reason::NoCertificate)],
            warnings: Vec::new(),
            node: NodeStatus::default(),
            leaf: None,
            served: None,
            trust: None,
            peers: Vec::new(),
            renewal: RenewalStatus { next: None, attempts: 2, last_error: Some("PCA is away".into()) },
            settings: crate::status::SettingsStatus::default(),
            nats: NatsStatus::default(),
        }
    }

    fn healthy() -> Status {
        let anchor = |not_after| AnchorStatus { subject: "CN=ca".into(), sha256: "0c".into(), not_after };
        let peer =
            |route| PeerStatus { id: "n".into(), address: "10.0.1.1:6222".into(), state: "InService".into(), route };
        Status {
            state: State::Healthy,
            reasons: Vec::new(),
            leaf: Some(LeafStatus {
                serial: "01".into(),
                not_before: datetime!(1970-01-01 00:00:01 UTC),
                not_after: datetime!(1970-01-01 00:00:02 UTC),
                issuer: "CN=ca".into(),
                sans: Vec::new(),
                sha256: "0a".into(),
                generation: 7,
            }),
            served: Some(ServedStatus {
                confirmed_at: Some(datetime!(1970-01-01 00:00:04 UTC)),
                ..ServedStatus::default()
            }),
            trust: Some(TrustStatus {
                anchors: vec![anchor(datetime!(1970-01-01 00:00:09 UTC)), anchor(datetime!(1970-01-01 00:00:05 UTC))],
                source: "issuer".into(),
                version: "1".into(),
            }),
            peers: vec![peer(RouteState::Up), peer(RouteState::Up), peer(RouteState::Unknown)],
            renewal: RenewalStatus { next: Some(datetime!(1970-01-01 00:00:03 UTC)), attempts: 0, last_error: None },
            settings: crate::status::SettingsStatus::default(),
            ..first_pass()
        }
    }

    /// The samples in order, without the comments and with a placeholder for the agent's version.
    fn samples(status: &Status) -> Vec<String> {
        let mut text = String::new();
        encode(&mut text, &registry(status)).unwrap();
        assert!(text.ends_with("# EOF\n"), "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let lines = lines.map(|line| line.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
        let mut samples: Vec<_> =
            lines.map(|line| line.strip_prefix("nats_tls_agent_").unwrap_or(&line).to_owned()).collect();
        samples.sort();
        samples
    }

    #[test]
    fn everything_that_is_known_of_a_node_is_a_number() {
        let expected = [
            "anchor_not_after_seconds 5",
            "build_info{version=\"VERSION\"} 1",
            "leaf_generation 7",
            "leaf_not_after_seconds 2",
            "peers{route=\"down\"} 0",
            "peers{route=\"unknown\"} 1",
            "peers{route=\"up\"} 2",
            "renewal_failures 0",
            "renewal_next_seconds 3",
            "served_confirmed_seconds 4",
            "state{state=\"degraded\"} 0",
            "state{state=\"failing\"} 0",
            "state{state=\"healthy\"} 1",
        ];
        assert_eq!(samples(&healthy()), expected);
    }

    /// A NotAfter of zero would mean a certificate that ended in 1970.
    #[test]
    fn what_is_not_known_yet_is_absent() {
        let expected = [
            "build_info{version=\"VERSION\"} 1",
            "peers{route=\"down\"} 0",
            "peers{route=\"unknown\"} 0",
            "peers{route=\"up\"} 0",
            "renewal_failures 2",
            "state{state=\"degraded\"} 0",
            "state{state=\"failing\"} 1",
            "state{state=\"healthy\"} 0",
        ];
        assert_eq!(samples(&first_pass()), expected);
    }

    async fn served(status: Option<Status>) -> SocketAddr {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_sender, watched) = watch::channel(status);
        tokio::spawn(serve(listener, watched));
        address
    }

    /// The status line of the answer.
    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
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
