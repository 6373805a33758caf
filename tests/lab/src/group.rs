//! The Auto Scaling group: its instances, and everything around them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use harness::imds::InstanceFacts;
use harness::traffic::{ClientTls, Endpoint};
use harness::{Failure, eventually};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cloud::{Cloud, REGION};
use crate::downloads::{Download, Downloads};
use crate::instance::{Instance, now};
use crate::metadata::MetadataService;
use crate::names::Names;
use crate::network;
use crate::services::Services;
use crate::timeline::{FIELDS, Timeline};

const CONVERGE_WITHIN: Duration = Duration::from_mins(4);
/// The pause between two looks at an instance. A look starts programs, which load the instance.
const LOOK: Duration = Duration::from_millis(200);

/// The group with all AWS services around it.
pub(crate) struct Group {
    pub(crate) instances: Vec<Instance>,
    pub(crate) services: Services,
    pub(crate) cloud: Cloud,
    metadata: MetadataService,
    names: Names,
    user_data: String,
    launched: u8,
    lab: PathBuf,
    _downloads: Downloads,
}

impl Group {
    /// Makes an empty group. `template` is the user data of new instances.
    pub(crate) async fn start(
        lab: &Path,
        template: &str,
        server: Download,
        agent: Download,
        package: &Path,
    ) -> Result<Self, Failure> {
        let work = lab.join("instances");
        std::fs::create_dir_all(&work)
            .map_err(|error| Failure::new(format!("could not make {}", work.display())).because(error))?;
        network::raise().await?;
        let cloud = Cloud::start(&work).await?;
        let user_data = cloud.user_data(template, &server, &agent)?;
        Ok(Self {
            instances: Vec::new(),
            services: Services::prepare(lab, package).await?,
            cloud,
            metadata: MetadataService::start().await?,
            names: Names::start(&work, REGION)?,
            user_data,
            launched: 0,
            lab: lab.to_path_buf(),
            _downloads: Downloads::start([server, agent]).await?,
        })
    }

    /// Scales out by one: launches an instance by the launch template, and boots it.
    pub(crate) async fn launch(&mut self) -> Result<(), Failure> {
        self.launched += 1;
        let mut instance = Instance::prepare(self.launched, &self.lab).await?;
        let address = IpAddr::from(instance.address);
        let facts = InstanceFacts {
            user_data: Some(self.user_data.clone()),
            ..InstanceFacts::new(&instance.id, REGION, address)
        };
        self.metadata.launch(address, facts);
        self.names.add(&instance.id, instance.address)?;
        self.cloud.launch(&instance.id, address);
        let booted = instance.boot().await;
        self.instances.push(instance);
        booted
    }

    /// Starts the machines of the services.
    pub(crate) async fn start_services(&mut self) -> Result<(), Failure> {
        self.services.start(&self.metadata).await
    }

    /// Scales in: Auto Scaling announces the termination, the instance shuts down, and its resources are removed.
    pub(crate) async fn terminate(&mut self, index: usize) -> Result<(), Failure> {
        let instance = &mut self.instances[index];
        self.cloud.set_state(&instance.id, "Terminating");
        self.metadata.set_lifecycle_state(instance.address.into(), "Terminated");
        instance.power_off().await?;
        self.cloud.terminate(&instance.id);
        self.names.remove(&instance.id)?;
        network::detach(&instance.id).await?;
        self.instances.remove(index);
        Ok(())
    }

    /// The ids of the instances, which are also the names of their servers.
    pub(crate) fn ids(&self) -> BTreeSet<String> {
        self.instances.iter().map(|instance| instance.id.clone()).collect()
    }

    /// Waits until every node is healthy and has routes to all other nodes. Every node must also list exactly the
    /// group's instances as peers with a route that is up. Returns the timelines of the nodes. `done` counts the nodes
    /// that are ready.
    pub(crate) async fn converged(&self, done: &AtomicUsize) -> Result<Vec<Timeline>, Failure> {
        let ids = self.ids();
        done.store(0, Ordering::Relaxed);
        let watched = self.instances.iter().map(async |instance| {
            let timeline = watch(instance, &ids).await?;
            done.fetch_add(1, Ordering::Relaxed);
            Ok(timeline)
        });
        try_join_all(watched).await
    }

    /// Checks every instance beyond its status: the connections to AWS and to the peers, and the machine's other units.
    pub(crate) async fn sound(&self) -> Result<(), Failure> {
        let asked = self.instances.iter().map(async |instance| {
            instance.run(["bash", "--login", "-c", "agent doctor"]).await?;
            let failed = instance.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).await?;
            if failed.is_empty() { Ok(()) } else { Err(Failure::new(format!("failed on {}: {failed}", instance.id))) }
        });
        try_join_all(asked).await.map(drop)
    }

    /// A client endpoint of an instance. The client trusts the group's CA and nothing else.
    pub(crate) fn endpoint(&self, index: usize) -> Endpoint {
        let tls = ClientTls { ca: self.cloud.ca_file.clone(), certificate: None };
        Endpoint { address: self.instances[index].clients(), others: Vec::new(), tls: Some(tls) }
    }

    /// The diagnostics of all instances, for a failure.
    pub(crate) async fn last_words(&self) -> String {
        let machines = self.instances.iter().chain(&self.services.machines);
        join_all(machines.map(Instance::last_words)).await.join("\n")
    }

    /// Cuts the power of all instances.
    pub(crate) async fn end(mut self) -> Result<(), Failure> {
        let machines = self.instances.iter_mut().chain(&mut self.services.machines);
        try_join_all(machines.map(Instance::kill)).await.map(drop)
    }
}

async fn watch(instance: &Instance, ids: &BTreeSet<String>) -> Result<Timeline, Failure> {
    let others: BTreeSet<String> = ids.iter().filter(|id| **id != instance.id).cloned().collect();
    let mut timeline = Timeline::default();
    let what = format!("{} healthy, with routes to all others", instance.id);
    let seen = eventually(&what, CONVERGE_WITHIN, async || {
        let looked = look(instance, &others, ids, &mut timeline).await;
        if looked.is_err() {
            tokio::time::sleep(LOOK).await;
        }
        looked
    });
    seen.await?;
    timeline.read(&instance.journal(FIELDS).await?);
    // Every first boot logs the code of a reason, because nats-server doesn't run at first.
    if timeline.has_code() {
        Ok(timeline)
    } else {
        Err(Failure::new(format!("no entry in the journal of {} has NATS_TLS_AGENT_CODE", instance.id)))
    }
}

async fn look(
    instance: &Instance,
    others: &BTreeSet<String>,
    ids: &BTreeSet<String>,
    timeline: &mut Timeline,
) -> Result<(), String> {
    let routes = instance.routes().await.map_err(|failure| failure.chain())?;
    if routes == *others {
        timeline.meshed.get_or_insert_with(now);
    }
    let status = instance.status().await.map_err(|failure| failure.chain())?;
    timeline.confirmed = timeline.confirmed.or_else(|| confirmed_at(&status));
    if status["state"] != "healthy" {
        return Err(format!("{}: {}", status["state"], status["reasons"]));
    }
    timeline.healthy.get_or_insert_with(now);
    // The list dates from the agent's last look, up to half a minute ago.
    if harness::fleet::peers(&status, "up") != *ids {
        return Err(format!("not all up: {}", status["peers"]));
    }
    if routes == *others { Ok(()) } else { Err(format!("routes with {routes:?} in place of {others:?}")) }
}

/// The time since which both ports are known to serve the newest leaf, if they do.
fn confirmed_at(status: &Value) -> Option<OffsetDateTime> {
    let leaf = status["leaf"]["sha256"].as_str()?;
    let served = &status["served"];
    let is_served = |port: &str| served[port]["sha256"] == leaf;
    let at = served["confirmed_at"].as_str().filter(|_| is_served("client") && is_served("route"))?;
    OffsetDateTime::parse(at, &Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_leaf_is_confirmed_when_both_ports_show_it() {
        let status = |route: &str| {
            json!({
                "leaf": {"sha256": "0a"},
                "served": {
                    "client": {"sha256": "0a"}, "route": {"sha256": route}, "confirmed_at": "1970-01-01T00:00:07Z",
                },
            })
        };
        assert_eq!(confirmed_at(&status("0a")).unwrap().unix_timestamp(), 7);
        assert_eq!(confirmed_at(&status("0b")), None);
        assert_eq!(confirmed_at(&json!({"leaf": null, "served": null})), None);
    }
}
