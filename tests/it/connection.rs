//! The connection document: agents of a group keep it in a secret of moto, and a client connects by it alone. Whoever writes at
//! the same time, is killed or edits by hand, the document is right again after an interval.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use harness::eventually;
use harness::fleet::{Fleet, FleetNode, Identity};
use harness::gateway::{Call, Rule};
use harness::moto::REGION;
use nats_tls_agent::aws::AwsSettings;
use nats_tls_agent::connection::secret::ConnectionSecret;
use nats_tls_agent::connection::{Document, DocumentStore as _};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const SECRET: &str = "nats/connection";
const SOON: Duration = Duration::from_mins(1);

/// Connects by nothing but the keys of the document, as docs/clients.md says, and has a request answered.
pub(crate) async fn request_by(document: &Document, directory: &Path) -> String {
    let ca = directory.join("ca.pem");
    std::fs::write(&ca, &document.ca).unwrap();
    let urls: Vec<async_nats::ServerAddr> = document.urls().map(|url| url.parse().unwrap()).collect();
    let options = async_nats::ConnectOptions::new().require_tls(document.tls_required == "true");
    let client = options.add_root_certificates(ca).connect(urls).await.unwrap();
    let mut asked = futures_util::StreamExt::boxed(client.subscribe("ask").await.unwrap());
    let responder = client.clone();
    tokio::spawn(async move {
        while let Some(message) = futures_util::StreamExt::next(&mut asked).await {
            responder.publish(message.reply.unwrap(), "answered".into()).await.unwrap();
        }
    });
    let answer = client.request("ask", "".into()).await.unwrap();
    String::from_utf8(answer.payload.to_vec()).unwrap()
}

/// Credentials come from the metadata of the first instance, as an agent's credentials do.
async fn secret_of(fleet: &Fleet) -> ConnectionSecret {
    let imds_endpoint = fleet.nodes[0].imds.as_ref().map(harness::imds::ImdsStub::endpoint);
    let endpoint = Some(fleet.moto.endpoint().to_owned());
    let aws = AwsSettings { region: Some(REGION.into()), endpoint, imds_endpoint }.load().await;
    ConnectionSecret::new(&aws, SECRET)
}

struct Bench {
    fleet: Fleet,
    secret: ConnectionSecret,
}

impl Bench {
    async fn of(size: usize) -> Self {
        let agent = Path::new(env!("CARGO_BIN_EXE_agent"));
        let mut fleet = Fleet::launch(agent, size, Identity::Metadata).await.unwrap();
        fleet.discovery = format!("interval = \"1s\"\n[connection]\nsecret_id = \"{SECRET}\"");
        let secret = secret_of(&fleet).await;
        Self { fleet, secret }
    }

    /// The document, once there is a document that fits.
    async fn document(&self, what: &str, fits: impl Fn(&Document) -> bool) -> Document {
        let found = eventually(what, SOON, async || {
            let document = self.secret.document().await.map_err(|error| error.to_string())?;
            if fits(&document) { Ok(document) } else { Err(format!("{document:?}")) }
        });
        found.await.unwrap()
    }

    async fn version(&self) -> String {
        self.secret.read().await.unwrap().unwrap().version
    }
}

fn codes(status: &Value) -> Vec<&str> {
    status["warnings"].as_array().unwrap().iter().filter_map(|warning| warning["code"].as_str()).collect()
}

async fn warned(member: &FleetNode, code: &str) {
    let warned = eventually(code, SOON, async || {
        let status = member.node.agent.status().await.map_err(|error| error.to_string())?;
        if codes(&status).contains(&code) { Ok(()) } else { Err(status.to_string()) }
    });
    warned.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_keep_a_document_by_which_alone_a_client_connects() {
    let mut bench = Bench::of(2).await;
    bench.fleet.start_all().await.unwrap();
    bench.fleet.converged().await.unwrap();
    // A secret that isn't there disturbs nothing.
    let first = bench.fleet.nodes.iter().min_by_key(|member| member.instance.address).unwrap();
    warned(first, "connection_refused").await;
    first.node.healthy(SOON).await.unwrap();

    bench.fleet.moto.put_secret(SECRET, r#"{"NATS_USER": "app"}"#).await.unwrap();
    let document = bench.document("the document", |document| !document.url.is_empty()).await;
    let mut clients: Vec<_> =
        bench.fleet.nodes.iter().map(|member| format!("tls://{}", member.node.client())).collect();
    clients.sort();
    assert_eq!(document.urls().collect::<Vec<_>>(), clients);
    assert_eq!((document.ca.trim(), document.cluster.as_str()), (bench.fleet.ca.pem.trim(), "nats"));
    assert_eq!(document.others["NATS_USER"], "app");
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(request_by(&document, directory.path()).await, "answered");

    // Nothing differs, so nothing is written, whoever looks.
    let version = bench.version().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(bench.version().await, version);
    for member in &bench.fleet.nodes {
        let status = member.node.healthy(SOON).await.unwrap();
        assert!(codes(&status).iter().all(|code| !code.starts_with("connection")), "{status}");
    }
    bench.fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_hangs_holds_nothing_up_and_one_that_dies_leaves_the_document_whole() {
    let mut bench = Bench::of(1).await;
    bench.fleet.moto.put_secret(SECRET, "{}").await.unwrap();
    bench.fleet.nodes[0].gateway.set_rule("PutSecretValue", Some(Rule::Hold));
    bench.fleet.start_all().await.unwrap();
    let member = &bench.fleet.nodes[0];
    member.gateway.reached("PutSecretValue", 1, SOON).await.unwrap();
    member.node.healthy(SOON).await.unwrap();
    member.node.agent.renew().await.unwrap();
    assert_eq!(bench.secret.read().await.unwrap().unwrap().content.as_slice(), b"{}");

    let member = &mut bench.fleet.nodes[0];
    member.node.agent.kill().await.unwrap();
    member.gateway.set_rule("PutSecretValue", None);
    member.gateway.set_rule("PutSecretValue", Some(Rule::LoseAnswer));
    member.node.agent.start().unwrap();
    let document = bench.document("the document of the next process", |document| !document.url.is_empty()).await;
    // The answer was lost. The next look finds the document, and makes no second version.
    let version = bench.version().await;
    bench.fleet.nodes[0].gateway.set_rule("PutSecretValue", None);
    bench.fleet.nodes[0].node.healthy(SOON).await.unwrap();
    assert_eq!((bench.version().await, document.urls().count()), (version, 1));
    bench.fleet.end().await.unwrap();
}

/// A version of the secret, and its content.
type Seen = (String, Vec<u8>);

/// Reads the secret again and again until the sender says so. Returns each version that was seen, in order.
fn watched(secret: ConnectionSecret) -> (watch::Sender<bool>, JoinHandle<Vec<Seen>>) {
    let (end, is_over) = watch::channel(false);
    let watching = tokio::spawn(async move {
        let mut seen: Vec<Seen> = Vec::new();
        loop {
            let is_last = *is_over.borrow();
            if let Ok(Some(stored)) = secret.read().await {
                let now = (stored.version, stored.content.to_vec());
                if seen.last() != Some(&now) {
                    seen.push(now);
                }
            }
            if is_last {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    (end, watching)
}

/// The calls for the document in a node's gateway, since there were `before` calls.
fn visits(member: &FleetNode, before: usize) -> Vec<Call> {
    let calls = member.gateway.every_call().into_iter().skip(before);
    calls.filter(|call| call.asked("SecretId").as_deref() == Some(SECRET)).collect()
}

/// Each node knows itself alone, as after a split of the network, so each node is the first. Both writes are held in front of AWS
/// until both are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_both_think_they_are_the_writer_and_an_edit_by_hand_leave_no_wrong_document() {
    let mut bench = Bench::of(2).await;
    let clients: Vec<_> = bench.fleet.nodes.iter().map(|member| format!("tls://{}", member.node.client())).collect();
    let edits = ["{}", "{\"NATS_URL\": \"tls://wrong:4222\"}"];
    bench.fleet.moto.put_secret(SECRET, edits[0]).await.unwrap();
    let (end, watching) = watched(secret_of(&bench.fleet).await);
    for index in 0..2 {
        let member = &bench.fleet.nodes[index];
        member.gateway.set_rule("PutSecretValue", Some(Rule::Hold));
        let own = member.node.route();
        bench.fleet.discovery = format!(
            "kind = \"static\"\npeers = [\"{own}\"]\ninterval = \"1s\"\n[connection]\nsecret_id = \"{SECRET}\"\nurls = {clients:?}"
        );
        bench.fleet.boot(index).unwrap();
    }
    for index in 0..2 {
        bench.fleet.serve(index).await.unwrap();
    }
    let is_right = |document: &Document| document.urls().eq(clients.iter().map(String::as_str));
    for (round, edit) in edits.iter().enumerate() {
        // The calls of each node, and its writes among them.
        let mut before = [(0, 0); 2];
        if round > 0 {
            // An agent waits ten minutes before it puts a secret right once more. Its next process knows nothing of the first time.
            for (member, before) in bench.fleet.nodes.iter_mut().zip(&mut before) {
                member.node.agent.kill().await.unwrap();
                member.node.agent.start().unwrap();
                looks_again(member).await;
                member.gateway.set_rule("PutSecretValue", Some(Rule::Hold));
                *before = (member.gateway.every_call().len(), member.gateway.calls("PutSecretValue").len());
            }
            bench.fleet.moto.put_secret(SECRET, edit).await.unwrap();
        }
        for (member, (before, writes)) in bench.fleet.nodes.iter().zip(before) {
            member.gateway.reached("PutSecretValue", writes + 1, SOON).await.unwrap();
            // A node looks once in an interval, and the first look that finds the edit is followed by the write.
            let calls = visits(member, before);
            let first = calls.iter().position(|call| call.answered("SecretString").as_deref() == Some(edit));
            assert_eq!(calls[first.unwrap() + 1].operation, "PutSecretValue", "{calls:?}");
        }
        bench.fleet.nodes.iter().for_each(|member| member.gateway.set_rule("PutSecretValue", None));
        bench.document("the document of two writers", is_right).await;
    }
    end.send(true).unwrap();
    // Every version of an agent was right from its first moment on, and two agents made one version of each change.
    for (version, content) in watching.await.unwrap() {
        let document = || serde_json::from_slice(&content).unwrap();
        let is_by_agent = version.starts_with("nats-tls-agent-");
        assert!(!is_by_agent || is_right(&document()), "{version}: {}", String::from_utf8_lossy(&content));
    }
    let writes = bench.fleet.nodes.iter().flat_map(|member| member.gateway.calls("PutSecretValue"));
    let writes: Vec<_> = writes.map(|call| call.asked("ClientRequestToken").unwrap()).collect();
    assert_eq!(writes.iter().collect::<BTreeSet<_>>().len(), edits.len(), "{writes:?}");
    assert!(writes.len() >= 2 * edits.len(), "{writes:?}");
    bench.fleet.end().await.unwrap();
}

/// Waits until a node has looked at the document once more.
async fn looks_again(member: &FleetNode) {
    let before = member.gateway.every_call().len();
    let looked = eventually("a look at the document", SOON, async || {
        if visits(member, before).is_empty() { Err("no call".into()) } else { Ok(()) }
    });
    looked.await.unwrap();
}
