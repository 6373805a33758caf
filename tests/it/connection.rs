//! The connection document: two agents of a group keep it in a secret of moto, and a client connects by it alone.

use std::path::Path;
use std::time::Duration;

use harness::eventually;
use harness::fleet::{Fleet, FleetNode, Identity};
use harness::gateway::Rule;
use harness::moto::REGION;
use nats_tls_agent::aws::AwsSettings;
use nats_tls_agent::connection::secret::ConnectionSecret;
use nats_tls_agent::connection::{Document, DocumentStore as _};
use serde_json::Value;

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

struct Bench {
    fleet: Fleet,
    secret: ConnectionSecret,
}

impl Bench {
    async fn of(size: usize) -> Self {
        let agent = Path::new(env!("CARGO_BIN_EXE_agent"));
        let mut fleet = Fleet::launch(agent, size, Identity::Metadata).await.unwrap();
        fleet.discovery = format!("interval = \"1s\"\n[connection]\nsecret_id = \"{SECRET}\"");
        // Credentials come from the metadata of the first instance, as those of an agent do.
        let imds_endpoint = fleet.nodes[0].imds.as_ref().map(harness::imds::ImdsStub::endpoint);
        let endpoint = Some(fleet.moto.endpoint().to_owned());
        let aws = AwsSettings { region: Some(REGION.into()), endpoint, imds_endpoint }.load().await;
        Self { fleet, secret: ConnectionSecret::new(&aws, SECRET) }
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
