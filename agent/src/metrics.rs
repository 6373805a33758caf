//! The status, as Prometheus reads it.

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

use crate::status::{Route, State, Status};

const MAX_CLIENTS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);

/// Why metrics can't be served.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {address} for metrics; change metrics.listen, or free the port")]
pub struct MetricsError {
    /// There.
    pub address: SocketAddr,
    /// What the system said.
    #[source]
    pub source: std::io::Error,
}

/// Listens.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    TcpListener::bind(address).await.map_err(|source| MetricsError { address, source })
}

/// Serves `/metrics` for ever.
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
    for (name, route) in [("peers_up", Route::Up), ("peers_down", Route::Down), ("peers_unknown", Route::Unknown)] {
        let count = status.peers.iter().filter(|peer| peer.route == route).count();
        gauge(name, "Servers of the cluster by route", i64::try_from(count).unwrap_or(i64::MAX));
    }
    let by_state = Family::<Vec<(String, String)>, Gauge>::default();
    for state in [State::Healthy, State::Degraded, State::Failing] {
        by_state.get_or_create(&vec![("state".into(), state.to_string())]).set((status.state == state).into());
    }
    registry.register("state", "1 for the state that the node is in", by_state);
    registry
}
