//! The issuer's CA as a node sees the CA: a CA that doesn't issue, that ends, or that clients and peers don't trust. A node that
//! waits in a warm pool has a test too, and a node whose instance changes. The services are the AWS double.

use std::path::Path;
use std::time::Duration;

use aws_double::Account;
use aws_double::fault::Operation;
use aws_double::http::AwsDouble;
use aws_double::pca::{CaSettings, Status};
use aws_double::secrets::Content;
use harness::cluster::{Cluster, Node};
use harness::imds::{Fault, ImdsStub, InstanceFacts};
use harness::nodes::set;
use harness::{Failure, eventually, tools};
use serde_json::Value;
use tempfile::TempDir;

use crate::AGENT;
use crate::doctor::{assert_check, diagnose};

const REGION: &str = "eu-west-1";
const SOON: Duration = Duration::from_mins(1);
const OWN: &str = "i-00000000000000001";
const TRUST: &str = "nats-trust";

/// A node, its services, and a CA below a root. The bundle has the root.
struct World {
    double: AwsDouble,
    imds: ImdsStub,
    node: Node,
    cluster: Cluster,
    ca: String,
    root: String,
    _directory: TempDir,
}

impl World {
    async fn new(lifetime: time::Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cluster = cluster(directory.path()).unwrap();
        let mut node = cluster.node(1).unwrap();
        let double = AwsDouble::start(node.gateway(), Account::new(REGION)).await.unwrap();
        let (ca, root) = double.account(|aws, now| {
            let root = aws.pca.create_authority(CaSettings::root("root"), now).unwrap();
            let settings = CaSettings { lifetime, parent: Some(root.clone()), ..CaSettings::root("sub") };
            let ca = aws.pca.create_authority(settings, now).unwrap();
            aws.secrets.put(TRUST, Content::Text(aws.pca.authority(&root).unwrap().pem().into()), now).unwrap();
            aws.fleet.launch("nats", OWN, node.address.into(), "InService", now);
            (ca, root)
        });
        let imds = ImdsStub::start(InstanceFacts::new(OWN, REGION, node.address.into())).await.unwrap();
        node.agent.set_env("AWS_ENDPOINT_URL", &double.endpoint());
        node.agent.set_metadata(&imds.endpoint());
        let text = format!(
            "[issuer]\nca_arn = \"{ca}\"\nvalidity = \"7d\"\n[trust]\nsecret_id = \"{TRUST}\"\n[discovery]\naddresses = \"ec2\"\n\
             interval = \"200ms\"\n[renewal]\nretry_min = \"200ms\"\nretry_max = \"1s\"\n"
        );
        cluster.configure_with(&node, &text).unwrap();
        set(node.agent.config(), "nats.jetstream", "false").unwrap();
        Self { double, imds, node, cluster, ca, root, _directory: directory }
    }

    fn set_status(&self, status: Status) {
        self.double.account(|aws, _| aws.pca.set_status(&self.ca, status).unwrap());
    }

    fn requests(&self) -> usize {
        self.double.calls(Operation::IssueCertificate).len()
    }

    async fn status(&self) -> Result<Value, String> {
        let answer = self.node.agent.run(&["status", "--json"], SOON).await.map_err(|failure| failure.chain())?;
        answer.json().map_err(|failure| failure.chain())
    }
}

fn cluster(directory: &Path) -> Result<Cluster, Failure> {
    Cluster::new(directory, Path::new(AGENT), &tools::nats_server(tools::NATS_SERVER)?)
}

/// Each status of a CA is a failed check with a remedy of its own. A bundle that the CA doesn't chain to is a failed check too.
#[tokio::test]
async fn doctor_judges_the_ca_by_its_status_its_end_and_its_way_to_the_bundle() {
    let world = World::new(time::Duration::days(365)).await;
    for (status, remedy) in [
        (Status::Disabled, "--status ACTIVE"),
        (Status::Expired, "import-certificate-authority-certificate"),
        (Status::Deleted, "restore-certificate-authority"),
        (Status::PendingCertificate, "get-certificate-authority-csr"),
    ] {
        world.set_status(status);
        let (code, checks) = diagnose(&world.node).await;
        assert_eq!(code, Some(1), "{checks:?}");
        assert_check(&checks, "issuer", "failed", &[status.as_str(), remedy]);
    }
    world.set_status(Status::Active);
    let (_, checks) = diagnose(&world.node).await;
    assert_check(&checks, "issuer", "ok", &["ends at"]);
    assert_check(&checks, "issuer in trust", "ok", &["chains to the bundle"]);

    world.double.account(|aws, now| {
        let other = aws.pca.create_authority(CaSettings::root("root"), now).unwrap();
        aws.secrets.put(TRUST, Content::Text(aws.pca.authority(&other).unwrap().pem().into()), now).unwrap();
    });
    let (code, checks) = diagnose(&world.node).await;
    assert_eq!(code, Some(1), "{checks:?}");
    assert_check(&checks, "issuer in trust", "failed", &["none of CN=sub", "add the CA"]);
    assert_eq!(world.requests(), 0);
}

/// The CA ends before a leaf of seven days would. The leaf ends with the CA, and status and doctor warn.
#[tokio::test]
async fn a_ca_that_ends_soon_signs_a_leaf_that_ends_with_it_and_status_and_doctor_warn() {
    let mut world = World::new(time::Duration::days(3)).await;
    world.node.agent.start().unwrap();
    world.node.committed().await.unwrap();
    world.cluster.start_server(&mut world.node).await.unwrap();
    let status = world.node.healthy(SOON).await.unwrap();
    let ends = world.double.account(|aws, _| aws.pca.authority(&world.ca).unwrap().not_after());
    let at = |text: &Value| {
        let format = &time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(text.as_str().unwrap(), format).unwrap()
    };
    let before = at(&status["leaf"]["issuer_not_after"]) - at(&status["leaf"]["not_after"]);
    assert!((time::Duration::ZERO..time::Duration::minutes(2)).contains(&before), "{before}");
    assert_eq!(at(&status["leaf"]["issuer_not_after"]), ends.replace_nanosecond(0).unwrap());
    let warnings = status["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|warning| warning["code"] == "issuer_ends"), "{warnings:?}");
    assert_eq!(world.requests(), 1, "PCA refused nothing");
    let (_, checks) = diagnose(&world.node).await;
    assert_check(&checks, "issuer", "warning", &["before a certificate of issuer.validity would"]);
    assert!(world.double.account(|aws, _| aws.pca.authority(&world.root).is_ok()));
}

/// A node in the pool is no failure. A hook of the pool that waits for a healthy node therefore comes to its end.
#[tokio::test]
async fn an_instance_in_a_warm_pool_waits_for_service_and_then_proceeds() {
    let mut world = World::new(time::Duration::days(365)).await;
    let set = |world: &World, target: &str| {
        world.imds.change(|facts| facts.lifecycle_state = Some(target.to_owned()));
    };
    set(&world, "Warmed:Stopped");
    world.node.agent.start().unwrap();
    let waits = async || {
        let status = world.status().await?;
        let codes = status["warnings"].as_array().into_iter().flatten().map(|warning| &warning["code"]);
        let waits = codes.into_iter().any(|code| code == "in_warm_pool");
        if waits { Ok(status) } else { Err(format!("it doesn't wait: {status}")) }
    };
    let status = eventually("the warm pool in the status", SOON, waits).await.unwrap();
    assert_eq!(status["state"], "healthy", "{status}");
    let (code, checks) = diagnose(&world.node).await;
    assert_eq!(code, Some(0), "{checks:?}");
    assert_check(&checks, "lifecycle", "warning", &["Warmed:Stopped", "until it goes into service"]);
    assert_eq!(world.requests(), 0);
    assert!(!world.node.nats_config().exists());

    set(&world, "InService");
    world.node.committed().await.unwrap();
    world.cluster.start_server(&mut world.node).await.unwrap();
    world.node.healthy(SOON).await.unwrap();
    assert_eq!(world.requests(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_the_instance_gets_later_is_certified_and_metadata_that_is_away_changes_nothing() {
    let mut world = World::new(time::Duration::days(365)).await;
    world.node.agent.start().unwrap();
    world.node.committed().await.unwrap();
    world.cluster.start_server(&mut world.node).await.unwrap();
    world.node.healthy(SOON).await.unwrap();
    assert_eq!(world.requests(), 1);
    let later = "127.0.0.201";
    world.imds.set_fault(Some(Fault::Status(500)));
    world.imds.change(|facts| facts.addresses.push(later.parse().unwrap()));
    let asked = world.imds.asked().len();
    eventually("a question that fails", SOON, async || {
        let more = world.imds.asked().len() - asked;
        if more > 0 { Ok(()) } else { Err(format!("{more} questions")) }
    })
    .await
    .unwrap();
    world.node.healthy(SOON).await.unwrap();
    assert_eq!(world.requests(), 1);
    world.imds.set_fault(None);
    let certified = async || {
        let status = world.status().await?;
        let sans = status["leaf"]["sans"].as_array().is_some_and(|sans| sans.iter().any(|san| san == later));
        if sans && status["state"] == "healthy" { Ok(()) } else { Err(format!("not certified: {status}")) }
    };
    eventually("the new address in the leaf", SOON, certified).await.unwrap();
    assert_eq!(world.requests(), 2);
}
