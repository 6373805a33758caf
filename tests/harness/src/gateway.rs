//! One node's gateway to AWS. Each call passes through and is recorded. A call can also be held, answered otherwise or
//! cut off.
//!
//! The gateway adds a guarantee of ACM PCA that moto lacks: "Idempotency tokens for IssueCertificate time out
//! after five minutes. Therefore, if you call IssueCertificate multiple times with the same idempotency token within
//! five minutes, AWS Private CA recognizes that you are requesting only one certificate and will issue only one"
//! (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>). No test takes five minutes,
//! so tokens don't expire here.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::{Failure, eventually};

const BODY_LIMIT: usize = 8 * 1024 * 1024;
const ISSUE: &str = "IssueCertificate";

/// A recorded call, whatever its result.
#[derive(Clone, Debug)]
pub struct Call {
    /// The operation, for instance `IssueCertificate`.
    pub operation: String,
    /// The request's body.
    pub request: String,
    /// Status and body of the answer, once there is an answer.
    pub answer: Option<(u16, String)>,
    /// Whether the call reached AWS. An answer of the gateway itself costs nothing.
    pub passed: bool,
}

impl Call {
    /// A text member of the request, for the JSON protocols.
    #[must_use]
    pub fn asked(&self, member: &str) -> Option<String> {
        text(&self.request, member)
    }

    /// A text member of the answer, for the JSON protocols.
    #[must_use]
    pub fn answered(&self, member: &str) -> Option<String> {
        text(&self.answer.as_ref()?.1, member)
    }
}

/// A rule for the calls of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The call waits in front of AWS until the rule is removed.
    Hold,
    /// AWS performs the request, and its answer is lost.
    LoseAnswer,
}

/// An answer that replaces AWS's own answer to every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The service throttles the call. The code is `ThrottlingException`
    /// (<https://docs.aws.amazon.com/privateca/latest/APIReference/CommonErrors.html>), `Throttling`
    /// (<https://docs.aws.amazon.com/autoscaling/ec2/APIReference/CommonErrors.html>) or `RequestLimitExceeded`
    /// (<https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-errors.html>).
    Throttled,
    /// The role lacks the permission: `AccessDeniedException`, `AccessDenied` or `UnauthorizedOperation` of the same
    /// pages.
    Denied,
    /// A proxy answers with status 200 and an HTML page.
    Nonsense,
}

/// The gateway on the node's own address. It is closed when this value is dropped.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    upstream: String,
    state: Arc<Mutex<State>>,
    rules: watch::Sender<Rules>,
    server: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    /// PCA's memory of idempotency tokens: the answer to each token.
    issued: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default)]
struct Rules {
    fault: Option<Fault>,
    held: BTreeSet<String>,
    lost: BTreeSet<String>,
}

impl Gateway {
    /// Listens on `address`, and passes calls on to `upstream`, which is `http://127.0.0.1:PORT`.
    pub async fn start(address: SocketAddr, upstream: &str) -> Result<Self, Failure> {
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let (state, rules) = (Arc::default(), watch::Sender::default());
        let mut gateway = Self { address, upstream, state, rules, server: None };
        gateway.restore().await?;
        Ok(gateway)
    }

    /// The value for `AWS_ENDPOINT_URL`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes AWS unreachable: connections are closed, and new connections are refused.
    pub async fn cut(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            // The task ends by cancellation, and the port is closed after that.
            drop(server.await);
        }
    }

    /// Makes AWS reachable again.
    pub async fn restore(&mut self) -> Result<(), Failure> {
        if self.server.is_none() {
            let listener = TcpListener::bind(self.address)
                .await
                .map_err(|error| Failure::new(format!("no gateway at {}", self.address)).because(error))?;
            let passage =
                Passage { upstream: self.upstream.clone(), state: self.state.clone(), rules: self.rules.subscribe() };
            self.server = Some(tokio::spawn(serve(listener, passage)));
        }
        Ok(())
    }

    /// Sets the fault of every later call. `None` removes it.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.rules.send_modify(|rules| rules.fault = fault);
    }

    /// Sets the rule for one operation. Held calls go on once the rule is removed.
    pub fn set_rule(&self, operation: &str, rule: Option<Rule>) {
        self.rules.send_modify(|rules| {
            for (of, set) in [(Rule::Hold, &mut rules.held), (Rule::LoseAnswer, &mut rules.lost)] {
                if rule == Some(of) {
                    set.insert(operation.to_owned());
                } else {
                    set.remove(operation);
                }
            }
        });
    }

    /// The calls of one operation, in order.
    #[must_use]
    pub fn calls(&self, operation: &str) -> Vec<Call> {
        lock(&self.state).calls.iter().filter(|call| call.operation == operation).cloned().collect()
    }

    /// All calls, in order.
    #[must_use]
    pub fn every_call(&self) -> Vec<Call> {
        lock(&self.state).calls.clone()
    }

    /// The number of paid certificates: requests that reached AWS and succeeded.
    #[must_use]
    pub fn certificates(&self) -> usize {
        let paid = |call: &Call| call.passed && call.answer.as_ref().is_some_and(|(status, _)| *status == 200);
        self.calls(ISSUE).iter().filter(|call| paid(call)).count()
    }

    /// Waits until `count` calls of an operation have arrived, and the last of them is held or answered.
    pub async fn reached(&self, operation: &str, count: usize, within: Duration) -> Result<(), Failure> {
        eventually(&format!("call {count} of {operation}"), within, async || {
            let calls = self.calls(operation);
            let is_held = self.rules.borrow().held.contains(operation);
            match calls.get(count.saturating_sub(1)) {
                Some(call) if is_held || call.answer.is_some() => Ok(()),
                _ => Err(format!("{} calls", calls.len())),
            }
        })
        .await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

#[derive(Clone, Debug)]
struct Passage {
    upstream: String,
    state: Arc<Mutex<State>>,
    rules: watch::Receiver<Rules>,
}

async fn serve(listener: TcpListener, passage: Passage) {
    // Dropping this task drops the set, and so ends the connections.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let passage = passage.clone();
        connections.spawn(async move {
            let answer = service_fn(|request| passage.clone().answer(request));
            // The client may close the connection or be killed at any time.
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await);
        });
    }
}

impl Passage {
    async fn answer(mut self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let target = head.headers.get("x-amz-target").and_then(|target| target.to_str().ok()).map(ToOwned::to_owned);
        let Ok(body) = Limited::new(body, BODY_LIMIT).collect().await.map(http_body_util::Collected::to_bytes) else {
            return Ok(response(400, "the request breaks off or is too long".into()));
        };
        let text = String::from_utf8_lossy(&body).into_owned();
        let operation = operation(target.as_deref(), &text);
        let number = {
            let mut state = lock(&self.state);
            let call = Call { operation: operation.clone(), request: text.clone(), answer: None, passed: false };
            state.calls.push(call);
            state.calls.len() - 1
        };
        // The sender lives as long as the gateway, and longer than this task.
        drop(self.rules.wait_for(|rules| !rules.held.contains(&operation)).await);
        let rules = self.rules.borrow().clone();
        let token = (operation == ISSUE).then(|| self::text(&text, "IdempotencyToken")).flatten();
        let known = token.as_ref().and_then(|token| lock(&self.state).issued.get(token).cloned());
        let (status, answer, passed) = match (rules.fault, known) {
            (Some(fault), _) => {
                let (status, answer) = fault.answer(target.is_some(), &text);
                (status, answer, false)
            }
            (None, Some(known)) => (200, known, false),
            (None, None) => match self.pass_on(Request::from_parts(head, Full::new(body))).await {
                Ok((status, answer)) => (status, answer, true),
                Err(error) => (502, error.to_string(), true),
            },
        };
        {
            let mut state = lock(&self.state);
            state.calls[number].answer = Some((status, answer.clone()));
            state.calls[number].passed = passed;
            if let (Some(token), 200, true) = (token, status, passed) {
                state.issued.insert(token, answer.clone());
            }
        }
        if rules.lost.contains(&operation) {
            std::future::pending::<()>().await;
        }
        Ok(response(status, answer))
    }

    async fn pass_on(&self, mut request: Request<Full<Bytes>>) -> Result<(u16, String), Box<dyn Error + Send + Sync>> {
        request.headers_mut().insert(hyper::header::CONNECTION, "close".parse()?);
        let stream = TcpStream::connect(&self.upstream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let answer = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), BODY_LIMIT).collect().await?.to_bytes();
            Ok((status, String::from_utf8(body.to_vec())?))
        };
        let answer = answer.await;
        connection.abort();
        answer
    }
}

impl Fault {
    fn answer(self, json: bool, request: &str) -> (u16, String) {
        let ec2 = request.contains("Version=2016-11-15");
        let code = match (self, json, ec2) {
            (Self::Nonsense, ..) => return (200, "<html>Please log in to use the network.</html>".into()),
            (Self::Throttled, true, _) => "ThrottlingException",
            (Self::Throttled, false, false) => "Throttling",
            (Self::Throttled, false, true) => "RequestLimitExceeded",
            (Self::Denied, true, _) => "AccessDeniedException",
            (Self::Denied, false, false) => "AccessDenied",
            (Self::Denied, false, true) => "UnauthorizedOperation",
        };
        let body = if json {
            json!({"__type": code, "message": "no"}).to_string()
        } else if ec2 {
            format!("<Response><Errors><Error><Code>{code}</Code><Message>no</Message></Error></Errors></Response>")
        } else {
            format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
            )
        };
        (400, body)
    }
}

/// The name of the operation, from `ACMPrivateCA.IssueCertificate` in a header or `Action=DescribeInstances` in a form.
fn operation(target: Option<&str>, body: &str) -> String {
    let action = || body.split('&').find_map(|pair| pair.strip_prefix("Action="));
    let name = target.map_or_else(action, |target| target.rsplit('.').next());
    name.unwrap_or("unknown").to_owned()
}

fn text(json: &str, member: &str) -> Option<String> {
    let object: Value = serde_json::from_str(json).ok()?;
    object[member].as_str().map(ToOwned::to_owned)
}

fn response(status: u16, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    answer
}

/// A poisoned lock stays usable, because the records of a task that panicked are still correct.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_named_by_header_or_form() {
        assert_eq!(operation(Some("ACMPrivateCA.IssueCertificate"), "{}"), "IssueCertificate");
        assert_eq!(operation(None, "Action=DescribeInstances&Version=2016-11-15"), "DescribeInstances");
    }
}
