//! HTTP with connections that can be reset and answers that break off, for doubles of services.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Resets the connection of a request.
#[derive(Clone, Debug, Default)]
pub struct Reset(Arc<Notify>);

impl Reset {
    /// Resets the connection, and never returns, so that no answer is sent.
    pub async fn connection(&self) {
        self.0.notify_one();
        std::future::pending::<()>().await;
    }
}

/// Answers every request. Each request has its sender's [`std::net::SocketAddr`] among its extensions. Dropping this
/// future ends all connections.
pub async fn serve<A, F>(listener: TcpListener, answer: A)
where
    A: Fn(Request<Incoming>, Reset) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Ok((stream, sender)) = listener.accept().await {
        connections.spawn(connection(stream, sender, answer.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection<A, F>(stream: TcpStream, sender: SocketAddr, answer: A)
where
    A: Fn(Request<Incoming>, Reset) -> F,
    F: Future<Output = Response<Body>>,
{
    let reset = Reset::default();
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(sender);
        let answer = answer(request, reset.clone());
        async { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // The client may close the connection at any time.
        _ = &mut connection => {}
        () = reset.0.notified() => {
            let stream = connection.into_parts().io.into_inner();
            // Zero linger time makes the close a reset.
            drop(stream.set_zero_linger());
        }
    }
}

/// A body of one chunk, after which the connection may break.
#[derive(Debug)]
pub struct Body {
    chunk: Option<Bytes>,
    breaks_off: bool,
}

impl Body {
    /// A response with these bytes.
    #[must_use]
    pub fn of(bytes: Bytes) -> Response<Self> {
        let length = bytes.len();
        let mut response = Response::new(Self { chunk: Some(bytes), breaks_off: false });
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        response
    }

    /// A response with this text, or with its first half if `breaks_off` is set.
    #[must_use]
    pub fn respond(mut text: String, breaks_off: bool) -> Response<Self> {
        let length = text.len();
        if breaks_off {
            text.truncate((0..=length / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        }
        let mut response = Response::new(Self { chunk: Some(text.into()), breaks_off });
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        response
    }
}

/// The error by which an answer breaks off.
#[derive(Debug, thiserror::Error)]
#[error("the script breaks off the answer")]
pub struct BrokenOff;

impl From<Infallible> for BrokenOff {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match self.chunk.take().filter(|chunk| !chunk.is_empty()) {
            Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            None if self.breaks_off => Poll::Ready(Some(Err(BrokenOff))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.chunk.as_ref().is_none_or(Bytes::is_empty) && !self.breaks_off
    }
}
