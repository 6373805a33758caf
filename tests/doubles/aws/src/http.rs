//! An account served to the real SDK: plain HTTP on a loopback address, with a script of faults.
//!
//! Signatures are not checked.

mod answer;
mod form;
mod operations;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use self::answer::Answer;
use crate::fault::{Fault, Operation, Protocol, Script};
use crate::wire::{self, Body, Reset};
use crate::{Account, ServiceError};

const MAX_REQUEST: usize = 1024 * 1024;

/// A recorded call, whatever its result.
#[derive(Clone, Debug)]
pub struct Call {
    /// The operation.
    pub operation: Operation,
    /// The time of the call.
    pub at: OffsetDateTime,
    /// The request's body.
    pub request: String,
    /// Status and body of the answer, once there is an answer. The padding of a huge answer is left out.
    pub answer: Option<(u16, String)>,
    /// The fault that the script assigned.
    pub fault: Option<Fault>,
}

impl Call {
    /// A text member of the request, for the JSON protocols.
    #[must_use]
    pub fn asked(&self, member: &str) -> Option<String> {
        let object: serde_json::Value = serde_json::from_str(&self.request).ok()?;
        object[member].as_str().map(ToOwned::to_owned)
    }
}

/// An account served on an address until it is dropped.
#[derive(Debug)]
pub struct AwsDouble {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    server: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    account: Account,
    script: Script,
    calls: Vec<Call>,
}

impl AwsDouble {
    /// Serves an account on `address`. Port 0 means any free port.
    ///
    /// # Errors
    /// The address can't be bound.
    pub async fn start(address: SocketAddr, account: Account) -> std::io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared { account, script: Script::default(), calls: Vec::new() }));
        let mut double = Self { address, shared, server: None };
        double.restore().await?;
        Ok(double)
    }

    /// The value for `AWS_ENDPOINT_URL`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes or reads the account at the current time.
    pub fn account<T>(&self, look: impl FnOnce(&mut Account, OffsetDateTime) -> T) -> T {
        look(&mut lock(&self.shared).account, now())
    }

    /// Sets the standing fault of an operation's calls. `None` removes it.
    pub fn set_fault(&self, operation: Operation, fault: Option<Fault>) {
        lock(&self.shared).script.set(operation, fault);
    }

    /// Queues faults for an operation's next calls. They come before the standing fault.
    pub fn queue_faults(&self, operation: Operation, faults: impl IntoIterator<Item = Option<Fault>>) {
        lock(&self.shared).script.queue(operation, faults);
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
    ///
    /// # Errors
    /// The address can't be bound.
    pub async fn restore(&mut self) -> std::io::Result<()> {
        if self.server.is_none() {
            let listener = TcpListener::bind(self.address).await?;
            self.address = listener.local_addr()?;
            let shared = Arc::clone(&self.shared);
            let answer = move |request, reset| answer(request, Arc::clone(&shared), reset);
            self.server = Some(tokio::spawn(wire::serve(listener, answer)));
        }
        Ok(())
    }

    /// The calls of one operation, in order.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> Vec<Call> {
        lock(&self.shared).calls.iter().filter(|call| call.operation == operation).cloned().collect()
    }

    /// The number of paid certificates.
    #[must_use]
    pub fn certificates(&self) -> usize {
        lock(&self.shared).account.pca.paid().len()
    }
}

impl Drop for AwsDouble {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// A poisoned lock stays usable, because the records of a task that panicked are still correct.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::disallowed_methods, reason = "the model's time comes from here")]
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

async fn answer(request: Request<Incoming>, shared: Arc<Mutex<Shared>>, reset: Reset) -> Response<Body> {
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok()).map(ToOwned::to_owned);
    let Ok(body) = Limited::new(request.into_body(), MAX_REQUEST).collect().await else {
        return Answer::status(400).respond();
    };
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    let action = || form::Form::parse(&body).text("Action");
    let name = target.as_deref().map_or_else(action, |target| target.rsplit('.').next().map(ToOwned::to_owned));
    let Some(operation) = name.as_deref().and_then(Operation::parse) else {
        return Answer::error(Protocol::Json, &ServiceError::new("UnknownOperationException", "")).respond();
    };
    let (number, fault) = {
        let mut shared = lock(&shared);
        let fault = shared.script.next(operation);
        let (request, fault_noted) = (body.clone(), fault.clone());
        shared.calls.push(Call { operation, at: now(), request, answer: None, fault: fault_noted });
        (shared.calls.len() - 1, fault)
    };
    match fault {
        Some(Fault::Hang) => std::future::pending::<()>().await,
        Some(Fault::Reset) => reset.connection().await,
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        _ => {}
    }
    let in_place = fault.as_ref().and_then(|fault| Answer::in_place(operation.protocol(), fault));
    let answer = in_place.unwrap_or_else(|| {
        let done = operations::perform(&mut lock(&shared).account, operation, &body, fault.as_ref(), now());
        done.unwrap_or_else(|error| Answer::error(operation.protocol(), &error))
    });
    if fault == Some(Fault::LoseAnswer) {
        std::future::pending::<()>().await;
    }
    let answer = answer.spoilt(fault.as_ref());
    lock(&shared).calls[number].answer = Some((answer.status, answer.text.clone()));
    answer.respond()
}
