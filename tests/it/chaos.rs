//! Three nodes of an Auto Scaling group with a JetStream stream of three replicas, under many faults. Certificates are
//! rotated one after the other. Meanwhile agents and servers are killed, AWS stalls, refuses or is gone, and disks fill
//! up.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use harness::acknowledged::Acknowledged;
use harness::eventually;
use harness::fleet::{Fleet, FleetNode, Identity};
use harness::gateway::{Fault, Rule};
use harness::nodes::at;
use harness::small_disk::SmallDisk;
use harness::soak;
use serde_json::Value;

use crate::AGENT;

const NODES: usize = 3;
const SOON: Duration = Duration::from_mins(1);
/// A renewal takes a fifth of a second. An event within this time after the request falls into the renewal or just
/// after the renewal.
const AMID: Duration = Duration::from_millis(250);
/// The stall is shorter than any call's time-out, so a held call succeeds without a retry.
const STALL: Duration = Duration::from_secs(2);

/// The fault that a node meets while it renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Nothing,
    AgentKilled,
    ServerKilled,
    IssuanceStalls,
    CollectionStalls,
    AwsGone,
    AwsAnswers(Fault),
    DiskFull,
}

const TROUBLES: [Trouble; 12] = [
    Trouble::Nothing,
    Trouble::AgentKilled,
    Trouble::ServerKilled,
    Trouble::IssuanceStalls,
    Trouble::CollectionStalls,
    Trouble::AwsGone,
    Trouble::Nothing,
    Trouble::AwsAnswers(Fault::Throttled),
    Trouble::AwsAnswers(Fault::Denied),
    Trouble::AwsAnswers(Fault::Nonsense),
    Trouble::DiskFull,
    Trouble::AgentKilled,
];

#[tokio::test]
async fn in_chaos_no_acknowledged_message_is_lost_and_rotations_alone_cost_no_client_its_connection() {
    let rotations = if soak::is_long() { 200 } else { 12 };
    let seed = soak::seed();
    let mut chaos = Chaos::start(seed).await;
    let ends: Vec<_> = (0..NODES).map(|index| chaos.fleet.endpoint(index)).collect();
    let clients = Acknowledged::start(&ends).await.unwrap();

    let mut round = 0;
    let mut troubles = Vec::new();
    while chaos.rotations < rotations || round < TROUBLES.len() {
        if troubles.is_empty() {
            troubles = TROUBLES.to_vec();
            chaos.random.shuffle(&mut troubles);
        }
        let trouble = troubles.pop().unwrap();
        let index = chaos.random.usize(..NODES);
        // Only one node at a time is affected. No cluster survives the loss of two nodes out of three.
        clients.replicated(SOON).await.unwrap();
        let before = clients.count();
        chaos.round(index, trouble).await;
        eventually(&format!("an acknowledgement after round {round}, {trouble}"), SOON, async || {
            if clients.count() > before { Ok(()) } else { Err(format!("still {before} acknowledgements")) }
        })
        .await
        .unwrap();
        round += 1;
    }

    clients.replicated(SOON).await.unwrap();
    let outcome = clients.stop().await.unwrap();
    assert_eq!(outcome.lost, 0, "{outcome:?}");
    assert_eq!(outcome.disconnects, chaos.servers_killed, "only a server's death costs its client the connection");
    // Each fault occurred at least once, if this machine allows it.
    assert!(chaos.disks.is_empty() || chaos.disks_filled > 0, "no disk was full in {round} rounds");
    soak::figure("chaos: seed", seed);
    soak::figure("chaos: rotations", chaos.rotations);
    soak::figure("chaos: agents killed", chaos.agents_killed);
    soak::figure("chaos: servers killed", chaos.servers_killed.iter().sum::<u64>());
    soak::figure("chaos: AWS stalled, gone or refusing", chaos.aws_troubles);
    soak::figure("chaos: disks filled", chaos.disks_filled);
    soak::figure("chaos: messages acknowledged", outcome.acknowledged);
    soak::figure("chaos: messages lost", outcome.lost);
    chaos.fleet.end().await.unwrap();
}

struct Chaos {
    fleet: Fleet,
    /// The small disks. The list is empty if the test can't mount.
    disks: Vec<SmallDisk>,
    random: fastrand::Rng,
    rotations: usize,
    agents_killed: u64,
    servers_killed: Vec<u64>,
    aws_troubles: u64,
    disks_filled: u64,
}

impl Chaos {
    async fn start(seed: u64) -> Self {
        let mut fleet = Fleet::launch(Path::new(AGENT), NODES, Identity::Given).await.unwrap();
        // The daily cap on issuances is twice what the validity needs.
        fleet.issuer = "validity = \"10m\"".into();
        fleet.renewal = "retry_min = \"100ms\"\nretry_max = \"1s\"".into();
        let disks = fleet.nodes.iter().map(|member| SmallDisk::mount(&member.node.state_directory()));
        let disks = disks.collect::<Result<_, _>>().unwrap_or_else(|failure| {
            soak::say(&format!("no disk will be full, as only root may mount: {}", failure.chain()));
            Vec::new()
        });
        fleet.start_all().await.unwrap();
        fleet.converged().await.unwrap();
        Self {
            fleet,
            disks,
            random: fastrand::Rng::with_seed(seed),
            rotations: 0,
            agents_killed: 0,
            servers_killed: vec![0; NODES],
            aws_troubles: 0,
            disks_filled: 0,
        }
    }

    /// Causes a fault during a renewal, and checks that the node recovers without help.
    async fn round(&mut self, index: usize, trouble: Trouble) {
        let paid_before = self.fleet.nodes[index].gateway.certificates();
        let serial_before = self.healthy(index, "before its round").await;
        self.befall(index, trouble).await;
        let what = format!("after {trouble}");
        let mut serial = self.healthy(index, &what).await;
        // An agent that dies before it records the request never renews.
        if trouble != Trouble::AgentKilled {
            let another = format!("another certificate {what}");
            let settled = eventually(&another, SOON, async || {
                serial = self.healthy(index, &what).await;
                if serial == serial_before { Err(serial.clone()) } else { Ok(()) }
            });
            settled.await.unwrap();
        }
        let rotated = usize::from(serial != serial_before);
        let paid = self.fleet.nodes[index].gateway.certificates() - paid_before;
        assert_eq!(paid, rotated, "the paid certificates differ from the served certificates {what}");
        self.rotations += rotated;
    }

    async fn befall(&mut self, index: usize, trouble: Trouble) {
        let moment = AMID.mul_f64(self.random.f64());
        let member = &mut self.fleet.nodes[index];
        match trouble {
            Trouble::Nothing => drop(member.node.agent.renew().await.unwrap()),
            Trouble::AgentKilled => {
                drop(tokio::time::timeout(moment, member.node.agent.renew()).await);
                member.node.agent.kill().await.unwrap();
                member.node.agent.start().unwrap();
                self.agents_killed += 1;
            }
            Trouble::ServerKilled => {
                let server = member.node.server.take().unwrap();
                let dies = async {
                    tokio::time::sleep(moment).await;
                    server.kill().await.unwrap();
                };
                // The server dies after the commit or after the confirmation, depending on timing.
                let (_renewed, ()) = tokio::join!(member.node.agent.renew(), dies);
                self.servers_killed[index] += 1;
                self.fleet.serve(index).await.unwrap();
            }
            Trouble::IssuanceStalls => self.stall(index, "IssueCertificate").await,
            Trouble::CollectionStalls => self.stall(index, "GetCertificate").await,
            Trouble::AwsGone => {
                member.gateway.cut().await;
                refused(member, "acm-pca:").await;
                member.gateway.restore().await.unwrap();
                self.aws_troubles += 1;
            }
            Trouble::AwsAnswers(fault) => {
                member.gateway.set_fault(Some(fault));
                refused(member, "acm-pca:").await;
                member.gateway.set_fault(None);
                self.aws_troubles += 1;
            }
            Trouble::DiskFull => {
                let Some(disk) = self.disks.get(index) else {
                    drop(member.node.agent.renew().await.unwrap());
                    return;
                };
                disk.fill().unwrap();
                refused(member, "No space left").await;
                disk.free().unwrap();
                self.disks_filled += 1;
            }
        }
    }

    async fn stall(&mut self, index: usize, operation: &str) {
        let FleetNode { node, gateway, .. } = &mut self.fleet.nodes[index];
        gateway.set_rule(operation, Some(Rule::Hold));
        let goes_on = async {
            tokio::time::sleep(STALL.mul_f64(self.random.f64())).await;
            gateway.set_rule(operation, None);
        };
        let (renewed, ()) = tokio::join!(node.agent.renew(), goes_on);
        renewed.unwrap();
        self.aws_troubles += 1;
    }

    /// Waits until a node is healthy and serves its newest leaf. Returns the serial number of that leaf.
    async fn healthy(&self, index: usize, when: &str) -> String {
        let node = &self.fleet.nodes[index].node;
        eventually(&format!("{} healthy {when}", node.name), SOON, async || {
            let status: Value = node.agent.status().await.map_err(|failure| failure.chain())?;
            let leaf = at(&status, "leaf.sha256");
            let served = at(&status, "served.client.sha256") == leaf && at(&status, "served.route.sha256") == leaf;
            if status["state"] == "healthy" && served {
                Ok(at(&status, "leaf.serial").to_owned())
            } else {
                Err(format!("{}: {}", status["state"], status["reasons"]))
            }
        })
        .await
        .unwrap()
    }
}

/// Runs `agent renew`, which must fail and name this obstacle.
async fn refused(member: &FleetNode, why: &str) {
    let refusal = member.node.agent.renew().await.unwrap_err().chain();
    assert!(refusal.contains(why), "{refusal}");
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self:?}")
    }
}
