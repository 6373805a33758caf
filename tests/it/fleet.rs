//! Fleets: an Auto Scaling group in moto, with a real nats-server and the built agent on the address of each instance.

#![allow(clippy::print_stdout, reason = "the test's output shows the measurements")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use harness::eventually;
use harness::fleet::{Fleet, FleetNode, GROUP, Identity, peers};
use harness::gateway::{Fault, Rule};
use harness::imds;
use harness::moto::REGION;
use harness::traffic::{Tally, Traffic};
use nix::sys::signal::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(30);
/// An agent sees a change of the group within an interval, which is one second here. Twenty seconds leave room for a busy
/// machine, but not for the default interval of 30 seconds.
const FOLLOW_WITHIN: Duration = Duration::from_secs(20);
const RATE: u32 = 2000;

async fn fleet(size: usize, identity: Identity) -> Fleet {
    Fleet::launch(Path::new(env!("CARGO_BIN_EXE_agent")), size, identity).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_of_five_meshes_over_tls_from_two_keys_and_its_node() {
    let mut fleet = fleet(5, Identity::Given).await;
    let begun = Instant::now();
    fleet.start_all().await.unwrap();
    let statuses = fleet.converged().await.unwrap();
    println!("five agents and five nats-servers formed a healthy mesh in {:?}", begun.elapsed());
    assert_eq!(fleet.certificates(), 5);
    for (member, status) in fleet.nodes.iter().zip(&statuses) {
        assert_eq!(peers(status, "up").len(), 5, "{status}");
        assert!(status["leaf"]["issuer"].as_str().unwrap().contains("fleet"), "{status}");
        serves_mutual_tls_below_the_ca(&fleet, member, status).await;
    }

    // The group terminates an instance. The other nodes keep its route while its nats-server still answers.
    let traffic = Traffic::start(&fleet.ring(4), RATE).await.unwrap();
    let doomed = &fleet.nodes[4];
    let (id, address) = (doomed.instance.id.clone(), doomed.node.route());
    fleet.moto.terminate(&id).await.unwrap();
    for member in &fleet.nodes[..4] {
        warned(member, &format!("{id} left the group and still answers at {address}")).await;
        assert!(member.node.rendered_routes().unwrap().contains(&address));
    }
    fleet.die(4).await.unwrap();
    println!("time until each node dropped the dead node's route: {}", followed_by(&fleet, Instant::now()).await);

    let old: BTreeSet<String> = fleet.nodes.iter().map(|member| member.instance.id.clone()).collect();
    let asked = Instant::now();
    let launched = fleet.moto.resize(GROUP, 5).await.unwrap();
    println!("the call that adds a node took {:?}", asked.elapsed());
    let new = launched.into_iter().find(|instance| !old.contains(&instance.id)).unwrap();
    fleet.add(new).await.unwrap();
    fleet.boot(4).unwrap();
    println!("time from that call until each node had the new node's route: {}", followed_by(&fleet, asked).await);
    fleet.serve(4).await.unwrap();
    let statuses = fleet.converged().await.unwrap();
    println!("five nodes were healthy {:?} after that call", asked.elapsed());
    let tally = traffic.stop().await.unwrap();
    println!("traffic between the four remaining nodes: {}", figures(&tally));
    assert_eq!((tally.lost(), tally.duplicates, tally.disconnects, tally.reconnects), (0, 0, 0, 0), "{tally:?}");

    let traffic = Traffic::start(&fleet.ring(5), RATE).await.unwrap();
    let begun = Instant::now();
    for (member, before) in fleet.nodes.iter().zip(&statuses) {
        amid(&traffic, 1000).await;
        let renewing = Instant::now();
        let renewed = member.node.agent.renew().await.unwrap();
        println!("{}: renewed and confirmed in {:?}", member.node.name, renewing.elapsed());
        assert_eq!((&renewed["result"], &renewed["old"]["serial"]), (&"confirmed".into(), &before["leaf"]["serial"]));
        let status = member.node.healthy(SOON).await.unwrap();
        assert_eq!(status["leaf"]["serial"], renewed["new"]["serial"]);
        assert_ne!(status["leaf"]["serial"], before["leaf"]["serial"]);
        assert_eq!(status["served"]["client"]["sha256"], status["served"]["route"]["sha256"]);
        assert_eq!(status["served"]["client"]["sha256"], status["leaf"]["sha256"]);
    }
    amid(&traffic, 1000).await;
    let span = begun.elapsed().as_secs_f64();
    let tally = traffic.stop().await.unwrap();
    println!("traffic while all five nodes renewed: {} in {span:.1} s", figures(&tally));
    assert_eq!((tally.lost(), tally.duplicates, tally.disconnects, tally.reconnects), (0, 0, 0, 0), "{tally:?}");
    // The publishers reached the rate, so the figures hold for 2,000 messages a second.
    assert!(f64::from(u32::try_from(tally.sent).unwrap()) / span > f64::from(RATE) * 0.8, "{tally:?} in {span} s");
    fleet.converged().await.unwrap();
    // The dead node's gateway counted its certificate, and is gone. Four of the first five certificates remain. The
    // new node adds one certificate, and the renewals add five.
    assert_eq!(fleet.certificates(), 4 + 1 + 5);
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_comes_from_instance_metadata_alone() {
    let mut fleet = fleet(3, Identity::Metadata).await;
    // The nodes set "ec2", set the default "auto", or set nothing. "auto" falls back to EC2, because no instance-id
    // host name resolves here.
    for (index, addresses) in ["addresses = \"ec2\"", "addresses = \"auto\"", ""].into_iter().enumerate() {
        fleet.discovery = format!("interval = \"1s\"\n{addresses}");
        fleet.boot(index).unwrap();
    }
    for index in 0..3 {
        fleet.serve(index).await.unwrap();
    }
    for (member, status) in fleet.nodes.iter().zip(fleet.converged().await.unwrap()) {
        let (id, address) = (&member.instance.id, member.instance.address);
        let config = std::fs::read_to_string(member.node.agent.config()).unwrap();
        assert!(!config.contains("[node]"), "{config}");
        let rendered = std::fs::read_to_string(member.node.nats_config()).unwrap();
        assert!(rendered.contains(&format!("server_name: \"{id}\"")), "{rendered}");
        assert_eq!(member.node.server.as_ref().unwrap().varz().await.unwrap()["server_name"], id.as_str());
        let dashed = address.to_string().replace('.', "-");
        let expected = [
            format!("{id}.{REGION}.compute.internal"),
            format!("ip-{dashed}.{REGION}.compute.internal"),
            address.to_string(),
        ];
        assert_eq!(status["leaf"]["sans"], serde_json::json!(expected));
        serves_mutual_tls_below_the_ca(&fleet, member, &status).await;

        let imds = member.imds.as_ref().unwrap();
        let asked = imds.asked();
        for path in ["/latest/dynamic/instance-identity/document", "/latest/meta-data/iam/security-credentials/nats"] {
            assert!(asked.iter().any(|asked| asked.trim_end_matches('/') == path), "{path} is not in {asked:?}");
        }
        assert!(imds.refused().is_empty(), "requests without a session: {:?}", imds.refused());
        // The agent requests the other two instances' addresses once, because an instance keeps its address.
        member.gateway.reached("DescribeAutoScalingGroups", 3, SOON).await.unwrap();
        assert_eq!(member.gateway.calls("DescribeInstances").len(), 1);
    }
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_07_aws_being_away_throttling_or_talking_nonsense_disturbs_no_node() {
    let mut fleet = fleet(4, Identity::Given).await;
    // The agent asks the trust source every ten intervals. It retries after ten intervals at the latest.
    fleet.discovery = "interval = \"200ms\"".into();
    fleet.renewal = "retry_min = \"200ms\"".into();
    fleet.start_all().await.unwrap();
    let statuses = fleet.converged().await.unwrap();
    let traffic = Traffic::start(&fleet.ring(4), RATE).await.unwrap();
    let committed = committed(&fleet);

    fleet.nodes[0].gateway.cut().await;
    for (index, fault) in [(1, Fault::Throttled), (2, Fault::Denied), (3, Fault::Nonsense)] {
        fleet.nodes[index].gateway.set_fault(Some(fault));
    }
    let expected = ["could not reach the endpoint", "Throttling", "AccessDenied", "could not be read"];
    for (member, expected) in fleet.nodes.iter().zip(expected) {
        for call in ["autoscaling:DescribeAutoScalingGroups", "secretsmanager:GetSecretValue"] {
            degraded(member, &[call, expected]).await;
        }
        let refused = member.node.agent.renew().await.unwrap_err().to_string();
        assert!(refused.contains("exit status 1"), "{refused}");
        assert!(refused.contains("acm-pca:") && refused.contains(expected), "{refused}");
        degraded(member, &["no new certificate", "acm-pca:", expected]).await;
    }
    // An agent that restarts during the outage reads the last good answers from its disk. The last node loses that
    // file, and its agent still sees the served leaf.
    for (index, member) in fleet.nodes.iter_mut().enumerate() {
        member.node.agent.stop().await.unwrap();
        if index == 3 {
            std::fs::remove_file(member.node.state_directory().join("last-good.json")).unwrap();
        }
        member.node.agent.start().unwrap();
    }
    for (member, before) in fleet.nodes.iter().zip(&statuses) {
        let status = degraded(member, &["autoscaling:"]).await;
        let known = if member.instance.id == fleet.nodes[3].instance.id { 0 } else { 4 };
        assert_eq!(peers(&status, "up").len(), known, "{status}");
        assert_eq!(status["leaf"], before["leaf"]);
        assert_eq!(status["served"]["client"], before["served"]["client"]);
    }
    assert_eq!(self::committed(&fleet), committed, "a configuration was written");
    amid(&traffic, 1000).await;

    let back = Instant::now();
    fleet.nodes[0].gateway.restore().await.unwrap();
    for member in &fleet.nodes {
        member.gateway.set_fault(None);
    }
    let recovered = fleet.converged().await.unwrap();
    println!("four nodes were healthy {:?} after AWS was back", back.elapsed());
    // Each node completes its requested renewal exactly once.
    for ((member, before), after) in fleet.nodes.iter().zip(&statuses).zip(&recovered) {
        eventually("the requested renewal", SOON, async || {
            let status = member.node.agent.status().await.map_err(|failure| failure.chain())?;
            let renewed = status["leaf"]["serial"] != before["leaf"]["serial"] && status["state"] == "healthy";
            if renewed { Ok(()) } else { Err(format!("{} {}", status["state"], status["leaf"]["serial"])) }
        })
        .await
        .unwrap();
        assert_eq!(member.gateway.certificates(), 2, "{after}");
    }
    let tally = traffic.stop().await.unwrap();
    println!("traffic during the outage: {}", figures(&tally));
    assert_eq!((tally.lost(), tally.disconnects, tally.reconnects), (0, 0, 0), "{tally:?}");
    fleet.end().await.unwrap();
}

/// An agent that restarts during the outage doesn't know its identity. The agent waits, and reports the outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_07_instance_metadata_being_away_disturbs_no_node_and_is_shown() {
    let mut fleet = fleet(2, Identity::Metadata).await;
    fleet.renewal = "retry_min = \"200ms\"\nretry_max = \"1s\"".into();
    fleet.start_all().await.unwrap();
    let before = fleet.converged().await.unwrap().remove(0);
    let committed = committed(&fleet);
    let away = ["instance metadata", "/latest/", "no session token"];

    let FleetNode { node, imds: Some(imds), .. } = &mut fleet.nodes[0] else { panic!("no metadata") };
    imds.set_fault(Some(imds::Fault::Disabled));
    // The daemon can't apply the changed configuration. It continues with its current configuration.
    node.agent.signal(Signal::SIGHUP).unwrap();
    eventually("the refusal of the change", SOON, async || {
        let log = node.agent.log_tail(3);
        if log.contains("the configuration in force stays") { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    assert_eq!(node.agent.renew().await.unwrap()["result"], "confirmed");
    let renewed = degraded(&fleet.nodes[0], &["the configuration in force stays", away[0]]).await;
    assert_ne!(renewed["leaf"], before["leaf"]);
    // The daemon applies the change without help once instance metadata is back.
    let FleetNode { node, imds: Some(imds), .. } = &mut fleet.nodes[0] else { panic!("no metadata") };
    imds.set_fault(None);
    let renewed = node.healthy(SOON).await.unwrap();
    imds.set_fault(Some(imds::Fault::Disabled));

    // `agent status` reports the outage without a daemon, and also with a waiting daemon.
    node.agent.stop().await.unwrap();
    let alone = degraded(&fleet.nodes[0], &away).await;
    degraded(&fleet.nodes[0], &["the agent isn't running"]).await;
    fleet.nodes[0].node.agent.start().unwrap();
    let waiting = degraded(&fleet.nodes[0], &away).await;
    for status in [alone, waiting] {
        for known in ["leaf", "served", "trust", "peers"] {
            let mut expected = renewed[known].clone();
            if known == "served" {
                // Neither `agent status` nor a waiting daemon confirms a reload.
                expected["confirmed_at"] = Value::Null;
            }
            assert_eq!(status[known], expected, "{known}");
        }
    }
    let refused = fleet.nodes[0].node.agent.renew().await.unwrap_err().to_string();
    assert!(refused.contains("exit status 1") && refused.contains("instance metadata"), "{refused}");
    assert_eq!(self::committed(&fleet)[1], committed[1]);

    fleet.nodes[0].imds.as_ref().unwrap().set_fault(None);
    let after = fleet.converged().await.unwrap().remove(0);
    assert_eq!(after["leaf"], renewed["leaf"]);
    assert_eq!(fleet.certificates(), 3);
    fleet.end().await.unwrap();
}

/// Only a dead peer can show a removal, because the agent always keeps a peer that still answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_06_an_answer_that_is_empty_or_leaves_this_node_out_removes_no_route() {
    let mut fleet = fleet(3, Identity::Given).await;
    fleet.discovery = "interval = \"300ms\"".into();
    fleet.start_all().await.unwrap();
    fleet.converged().await.unwrap();
    let all = fleet.routes();
    let dead = fleet.nodes[2].node.route();
    let ids: Vec<String> = fleet.nodes.iter().map(|member| member.instance.id.clone()).collect();
    fleet.die(2).await.unwrap();

    // The first node and the dead node leave the group. The second node stays in the group, and drops the dead node's
    // route.
    fleet.moto.detach(GROUP, &[&ids[0], &ids[2]]).await.unwrap();
    warned(&fleet.nodes[0], "discovery left this node out").await;
    let second = &fleet.nodes[1];
    eventually("the second node's routes without the dead node", SOON, async || {
        let rendered = second.node.rendered_routes().map_err(|failure| failure.chain())?;
        let expected = all.iter().copied().filter(|route| *route != dead).collect();
        if rendered == expected { Ok(()) } else { Err(format!("{rendered:?}")) }
    })
    .await
    .unwrap();
    warned(second, &format!("{} left the group and still answers", ids[0])).await;
    assert_eq!(fleet.nodes[0].node.rendered_routes().unwrap(), all);

    // The group is now empty. The last good set of peers survives the agent's death.
    let kept = fleet.nodes[1].node.rendered_routes().unwrap();
    fleet.moto.detach(GROUP, &[&ids[1]]).await.unwrap();
    for member in &fleet.nodes {
        warned(member, "discovery returned no peer at all").await;
    }
    for member in &mut fleet.nodes {
        member.node.agent.kill().await.unwrap();
        member.node.agent.start().unwrap();
    }
    for member in &fleet.nodes {
        degraded(member, &["knows no group of"]).await;
    }
    assert_eq!(fleet.nodes[0].node.rendered_routes().unwrap(), all);
    assert_eq!(fleet.nodes[1].node.rendered_routes().unwrap(), kept);

    fleet.moto.attach(GROUP, &[&ids[0], &ids[1]]).await.unwrap();
    fleet.converged().await.unwrap();
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_11_an_agent_killed_once_pca_has_issued_resumes_that_very_certificate() {
    let mut fleet = fleet(1, Identity::Given).await;

    // The agent dies at its first boot with the ARN in the journal. The restarted agent requests no second certificate.
    fleet.nodes[0].gateway.set_rule("GetCertificate", Some(Rule::Hold));
    fleet.boot(0).unwrap();
    crash_and_resume(&mut fleet, "GetCertificate", 1).await;
    fleet.serve(0).await.unwrap();
    fleet.converged().await.unwrap();
    serves_the_certificate_that_was_issued(&fleet, 1).await;
    assert_eq!(fleet.nodes[0].gateway.calls("IssueCertificate").len(), 1);

    // The agent dies in the same way during a renewal.
    crash_in_a_renewal(&mut fleet, "GetCertificate", Rule::Hold).await;
    serves_the_certificate_that_was_issued(&fleet, 2).await;
    assert_eq!(fleet.nodes[0].gateway.calls("IssueCertificate").len(), 2);

    // The agent dies before the ARN arrives. The restarted agent repeats the same request with the same token.
    crash_in_a_renewal(&mut fleet, "IssueCertificate", Rule::LoseAnswer).await;
    let issued = fleet.nodes[0].gateway.calls("IssueCertificate");
    let [.., lost, repeated] = &issued[..] else { panic!("{issued:?}") };
    for member in ["IdempotencyToken", "Csr", "SigningAlgorithm", "TemplateArn"] {
        assert_eq!(lost.asked(member), repeated.asked(member), "{member}");
        assert!(lost.asked(member).is_some(), "{member}");
    }
    serves_the_certificate_that_was_issued(&fleet, 3).await;
    assert_eq!(issued.len(), 4);
    fleet.end().await.unwrap();
}

/// Runs `agent renew`, and kills the agent at the next call of `operation`. The rule keeps that call's answer from the
/// agent.
async fn crash_in_a_renewal(fleet: &mut Fleet, operation: &str, rule: Rule) {
    let before = fleet.nodes[0].node.healthy(SOON).await.unwrap();
    let FleetNode { node, gateway, .. } = &fleet.nodes[0];
    gateway.set_rule(operation, Some(rule));
    let next = gateway.calls(operation).len() + 1;
    tokio::select! {
        answer = node.agent.run(&["renew"], SOON) => panic!("{answer:?}"),
        reached = gateway.reached(operation, next, SOON) => reached.unwrap(),
    }
    crash_and_resume(fleet, operation, next).await;
    let node = &fleet.nodes[0].node;
    eventually("the resumed renewal", SOON, async || {
        let status = node.agent.status().await.map_err(|failure| failure.chain())?;
        let resumed = status["leaf"]["serial"] != before["leaf"]["serial"] && status["state"] == "healthy";
        if resumed { Ok(()) } else { Err(format!("{} {}", status["state"], status["reasons"])) }
    })
    .await
    .unwrap();
}

/// Kills the agent with `kill -9` at the `count`th call of `operation`, and restarts the agent without the rule.
async fn crash_and_resume(fleet: &mut Fleet, operation: &str, count: usize) {
    let FleetNode { node, gateway, .. } = &mut fleet.nodes[0];
    gateway.reached(operation, count, SOON).await.unwrap();
    node.agent.kill().await.unwrap();
    gateway.set_rule(operation, None);
    node.agent.start().unwrap();
}

/// Checks that the only node serves the newest of `count` paid certificates.
async fn serves_the_certificate_that_was_issued(fleet: &Fleet, count: usize) {
    let member = &fleet.nodes[0];
    let status = member.node.healthy(SOON).await.unwrap();
    assert_eq!(member.gateway.certificates(), count);
    let arn = member.gateway.calls("IssueCertificate").last().unwrap().answered("CertificateArn").unwrap();
    let fetched = member.gateway.calls("GetCertificate");
    let fetched: BTreeSet<_> = fetched.iter().filter_map(|call| call.asked("CertificateArn")).collect();
    assert_eq!(fetched.len(), count, "{fetched:?}");
    assert!(fetched.contains(&arn), "{arn} is not among {fetched:?}");
    let pem = fleet.moto.certificate(&fleet.ca, &arn).await.unwrap();
    let issued = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let served = served_by(fleet, member, true).await.unwrap();
    assert_eq!(served[0], issued);
    assert_eq!(status["served"]["client"]["sha256"], status["leaf"]["sha256"]);
}

/// Waits for a degraded status with a reason that contains all `parts`.
async fn degraded(member: &FleetNode, parts: &[&str]) -> Value {
    says(member, "reasons", parts, "degraded").await
}

/// Waits for a healthy status with a warning that contains `part`. JetStream may elect its first meta leader late on a busy machine.
async fn warned(member: &FleetNode, part: &str) -> Value {
    says(member, "warnings", &[part], "healthy").await
}

async fn says(member: &FleetNode, list: &str, parts: &[&str], state: &str) -> Value {
    eventually(&format!("{}: {list} with {parts:?}", member.node.name), SOON, async || {
        let status = member.node.agent.status().await.map_err(|failure| failure.chain())?;
        let lines = status[list].as_array().into_iter().flatten();
        let mut lines = lines.filter_map(|line| line["text"].as_str());
        let said = lines.any(|line| parts.iter().all(|part| line.contains(part)));
        let mut reasons = status["reasons"].as_array().into_iter().flatten();
        let is_of_jetstream = |reason: &Value| reason["code"] == "jetstream_without_leader";
        let is_well = state == "healthy" && reasons.all(is_of_jetstream);
        let is_as_told = status["state"] == state || is_well;
        if said && is_as_told { Ok(status) } else { Err(format!("{} {}", status["state"], status[list])) }
    })
    .await
    .unwrap()
}

/// The text and the modification time of every committed configuration. Two results are equal only if no agent wrote a
/// configuration in between.
fn committed(fleet: &Fleet) -> Vec<(String, std::time::SystemTime)> {
    let of = |member: &FleetNode| {
        let config = member.node.nats_config();
        (std::fs::read_to_string(&config).unwrap(), std::fs::metadata(&config).unwrap().modified().unwrap())
    };
    fleet.nodes.iter().map(of).collect()
}

/// Waits until each node's committed routes equal the fleet's routes. Returns the time that each node took.
async fn followed_by(fleet: &Fleet, since: Instant) -> String {
    let expected = fleet.routes();
    let mut took = Vec::new();
    let mut waiting: Vec<&FleetNode> = fleet.nodes.iter().collect();
    eventually("the routes of every node", FOLLOW_WITHIN, async || {
        waiting.retain(|member| {
            let there = member.node.rendered_routes().is_ok_and(|routes| routes == expected);
            if there {
                took.push(format!("{:.2} s", since.elapsed().as_secs_f64()));
            }
            !there
        });
        if waiting.is_empty() { Ok(()) } else { Err(format!("{} nodes still have other routes", waiting.len())) }
    })
    .await
    .unwrap();
    took.join(", ")
}

fn figures(tally: &Tally) -> String {
    let Tally { sent, received, duplicates, disconnects, reconnects, latency } = tally;
    format!(
        "{sent} sent, {received} received, {} lost, {duplicates} duplicates, {disconnects} disconnects, {reconnects} \
         reconnects, p50 {:?}, p99 {:?}, max {:?}",
        tally.lost(),
        latency.p50,
        latency.p99,
        latency.max
    )
}

/// Waits for `more` further messages.
async fn amid(traffic: &Traffic, more: u64) {
    let enough = traffic.progress().received + more;
    eventually("messages", SOON, async || match traffic.progress().received {
        received if received >= enough => Ok(()),
        received => Err(format!("{received} of {enough}")),
    })
    .await
    .unwrap();
}

/// Checks the node's route port. The port serves the leaf in the status. That leaf chains to moto's CA and names the
/// node's address. The port refuses a peer without a certificate. The traffic shows that clients accept the client
/// port.
async fn serves_mutual_tls_below_the_ca(fleet: &Fleet, member: &FleetNode, status: &Value) {
    let served = served_by(fleet, member, true).await.unwrap();
    let sha256 = nats_tls_agent::digest::sha256_hex(&served[0]);
    assert_eq!(status["served"]["route"]["sha256"], sha256.as_str());
    assert_eq!(status["served"]["client"]["sha256"], sha256.as_str());
    let refused = served_by(fleet, member, false).await.unwrap_err().to_string();
    assert!(refused.contains("CertificateRequired"), "{refused}");
    let varz = member.node.server.as_ref().unwrap().varz().await.unwrap();
    assert_eq!((&varz["tls_required"], &varz["cluster"]["tls_required"]), (&true.into(), &true.into()), "{varz}");
}

/// Returns the chain that the route port serves, verified against moto's CA alone and for the node's address. With
/// `presenting`, the client presents the node's own leaf. The function waits for data from the server, because the
/// server sends data only to an accepted client.
async fn served_by(
    fleet: &Fleet,
    member: &FleetNode,
    presenting: bool,
) -> std::io::Result<Vec<CertificateDer<'static>>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(fleet.ca.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let config = if presenting {
        let generation = member.node.newest_generation().unwrap();
        let chain = CertificateDer::pem_file_iter(generation.join("cert.pem")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(generation.join("key.pem")).unwrap();
        config.with_client_auth_cert(chain, key).unwrap()
    } else {
        config.with_no_client_auth()
    };
    let address: SocketAddr = member.node.route();
    let handshake = async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let name = ServerName::from(address.ip());
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.read_u8().await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        Ok(chain.iter().map(|certificate| certificate.clone().into_owned()).collect())
    };
    tokio::time::timeout(SOON, handshake).await?
}
