//! Instance metadata for all instances, at its usual address. The source address of a request identifies the instance.
//! On EC2 the hypervisor answers each instance about itself.
//!
//! [`harness::imds`] has the answers and their source pages.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use aws_double::wire::{self, Body};
use harness::Failure;
use harness::imds::{Answer, InstanceFacts, Metadata};
use hyper::{HeaderMap, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::network::METADATA;

type Instances = Arc<Mutex<BTreeMap<IpAddr, Metadata>>>;

/// The metadata service, which runs until it is dropped.
pub(crate) struct MetadataService {
    instances: Instances,
    server: JoinHandle<()>,
}

impl MetadataService {
    /// Listens on the address that instances use.
    pub(crate) async fn start() -> Result<Self, Failure> {
        let listener = TcpListener::bind((METADATA, 80))
            .await
            .map_err(|error| Failure::new("could not listen on the address of instance metadata").because(error))?;
        let instances = Instances::default();
        let asked = Arc::clone(&instances);
        let answer = move |request: Request<_>, _| std::future::ready(answer(&asked, &request));
        Ok(Self { instances, server: tokio::spawn(wire::serve(listener, answer)) })
    }

    /// Adds an instance with this address.
    pub(crate) fn launch(&self, address: IpAddr, facts: InstanceFacts) {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner).insert(address, Metadata::new(facts));
    }

    /// Sets the target lifecycle state of an instance, as Auto Scaling announces it.
    pub(crate) fn set_lifecycle_state(&self, address: IpAddr, state: &str) {
        if let Some(metadata) = self.instances.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&address) {
            metadata.facts.lifecycle_state = Some(state.into());
        }
    }
}

impl Drop for MetadataService {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn answer<B>(instances: &Instances, request: &Request<B>) -> Response<Body> {
    let (status, headers, text) = look_up(instances, request);
    let mut response = Body::respond(text, false);
    *response.status_mut() = status;
    response.headers_mut().extend(headers);
    response
}

fn look_up<B>(instances: &Instances, request: &Request<B>) -> Answer {
    let sender = request.extensions().get::<SocketAddr>().map(SocketAddr::ip);
    let mut instances = instances.lock().unwrap_or_else(PoisonError::into_inner);
    match sender.and_then(|sender| instances.get_mut(&sender)) {
        Some(metadata) => metadata.answer(request),
        None => (StatusCode::NOT_FOUND, HeaderMap::new(), String::new()),
    }
}

#[cfg(test)]
mod tests {
    use hyper::Method;

    use super::*;

    const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
    const TOKEN: &str = "x-aws-ec2-metadata-token";

    fn ask(instances: &Instances, from: u8, method: Method, path: &str, header: (&str, &str)) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path).header(header.0, header.1).body(()).unwrap();
        request.extensions_mut().insert(SocketAddr::from(([10, 77, 0, from], 50_000)));
        let (status, _, text) = look_up(instances, &request);
        (status.as_u16(), text)
    }

    #[test]
    fn each_instance_is_told_about_itself_and_a_stranger_nothing() {
        let instances = Instances::default();
        for number in [11, 12] {
            let address = IpAddr::from([10, 77, 0, number]);
            let facts = InstanceFacts::new(&format!("i-{number:017x}"), "eu-west-1", address);
            instances.lock().unwrap().insert(address, Metadata::new(facts));
        }
        for number in [11, 12] {
            let (status, token) = ask(&instances, number, Method::PUT, "/latest/api/token", (TTL, "60"));
            assert_eq!(status, 200);
            let id = ask(&instances, number, Method::GET, "/latest/meta-data/instance-id", (TOKEN, &token));
            assert_eq!(id, (200, format!("i-{number:017x}")));
        }
        assert_eq!(ask(&instances, 11, Method::GET, "/latest/meta-data/", (TOKEN, "guessed")).0, 401);
        assert_eq!(ask(&instances, 13, Method::PUT, "/latest/api/token", (TTL, "60")).0, 404);
    }
}
