//! Prometheus metrics over HTTP: the formats, and the one path `/metrics`.
//!
//! prometheus-client writes OpenMetrics alone. The text format of Prometheus has other names of counters and no mark at the
//! end. So the text format is made of the output in OpenMetrics.

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
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

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

/// Serves `/metrics` for ever. `registry` makes the registry of one scrape. The answer is 503 while there is no registry.
pub async fn serve(listener: TcpListener, registry: impl Fn() -> Option<Registry> + Send + Sync + 'static) {
    let (places, registry) = (Arc::new(Semaphore::new(MAX_CLIENTS)), Arc::new(registry));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        let registry = Arc::clone(&registry);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request: Request<_>| {
                let answer = respond(request.uri().path(), Format::asked_for(request.headers()), &*registry);
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

/// The text of a registry in Prometheus's own format.
#[cfg(test)]
pub(crate) fn text(registry: &Registry) -> String {
    Format::Text.write(registry).unwrap_or_default()
}

/// Registers a gauge. A gauge whose value is not known is left out.
pub(crate) fn register_gauge(registry: &mut Registry, name: &str, help: &str, value: Option<i64>) {
    let Some(value) = value else { return };
    let gauge = Gauge::<i64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

/// Registers a gauge with one label. Equal values of the label are added up.
pub(crate) fn register_gauges(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl IntoIterator<Item = (String, i64)>,
) {
    let family = Family::<[(&'static str, String); 1], Gauge>::default();
    for (of, value) in values {
        family.get_or_create(&[(label, of)]).inc_by(value);
    }
    registry.register(name, help, family);
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

    fn write(self, registry: &Registry) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, registry)?;
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

fn respond(path: &str, format: Format, registry: impl Fn() -> Option<Registry>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    match (path, (path == "/metrics").then(registry).flatten()) {
        ("/metrics", Some(registry)) => {
            if let Ok(text) = format.write(&registry) {
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

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    fn some() -> Registry {
        let mut registry = Registry::with_prefix("nats_tls_agent");
        register_gauge(&mut registry, "leaf_generation", "Generation that holds the newest leaf", Some(7));
        register_gauge(&mut registry, "absent", "Nothing that is known", None);
        let states = [("up", 2), ("down", 0)].map(|(state, count)| (state.to_owned(), count));
        register_gauges(&mut registry, "routes", "Other servers", "state", states);
        let help = "Reloads after which the previous configuration was put back";
        registry.register("reload_rollbacks", help, Counter::<u64>::default());
        registry
    }

    /// Each family of the text format has its help, its type, and samples of its name.
    #[test]
    fn the_text_format_is_openmetrics_with_other_names_of_counters() {
        let openmetrics = Format::OpenMetrics.write(&some()).unwrap();
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

    async fn served(registry: fn() -> Option<Registry>) -> SocketAddr {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, registry));
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
        let address = served(|| Some(some())).await;
        assert_eq!(asked(address, "/metrics", "*/*").await.1, TEXT);
        assert_eq!(asked(address, "/metrics", "application/openmetrics-text").await.1, OPENMETRICS);
    }

    #[tokio::test]
    async fn there_is_one_path_and_it_answers_once_there_is_something_to_tell() {
        let (ready, early) = (served(|| Some(some())).await, served(|| None).await);
        assert_eq!(get(ready, "/metrics").await, "HTTP/1.1 200 OK");
        assert_eq!(get(early, "/metrics").await, "HTTP/1.1 503 Service Unavailable");
        for path in ["/", "/metrics/", "/status"] {
            assert_eq!(get(ready, path).await, "HTTP/1.1 404 Not Found", "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_08_slow_clients_that_take_every_place_are_given_up() {
        let address = served(|| Some(some())).await;
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
