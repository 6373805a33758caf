//! The VPC's resolver: the resource names of the instances, served by dnsmasq.
//!
//! `i-….REGION.compute.internal` resolves to the instance's private address if the launch template turns resource name
//! DNS A records on (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-naming.html>).

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use harness::Failure;
use harness::process::Process;
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::network::RESOLVER;

/// The name of the group in the certificates of its nodes, and in the connection document.
const GROUP: &str = "nats.internal";

/// A resolver, and the directory of hosts files that the resolver watches.
pub(crate) struct Names {
    dnsmasq: Process,
    directory: PathBuf,
    domain: String,
}

impl Names {
    /// Starts the resolver without names.
    pub(crate) fn start(directory: &Path, region: &str) -> Result<Self, Failure> {
        let hosts = directory.join("hosts");
        std::fs::create_dir_all(&hosts).map_err(|error| Failure::new("no directory for names").because(error))?;
        let mut command = Command::new("dnsmasq");
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"])
            .args(["--bind-interfaces", "--pid-file=", "--log-facility=-", "--local=/internal/"])
            .arg(format!("--listen-address={RESOLVER}"))
            .arg(format!("--hostsdir={}", hosts.display()))
            .process_group(0);
        let dnsmasq = Process::spawn("dnsmasq", &mut command, &directory.join("dnsmasq.log"))?;
        Ok(Self { dnsmasq, directory: hosts, domain: format!("{region}.compute.internal") })
    }

    /// Adds the name of a launched instance.
    pub(crate) fn add(&self, id: &str, address: Ipv4Addr) -> Result<(), Failure> {
        let file = self.directory.join(id);
        // The second name is the name of the whole group, as of a private hosted zone.
        let hosts = format!("{address} {id}.{} {GROUP}\n", self.domain);
        std::fs::write(file, hosts).map_err(|error| Failure::new(format!("could not name {id}")).because(error))
    }

    /// Removes the name of an instance.
    pub(crate) fn remove(&self, id: &str) -> Result<(), Failure> {
        std::fs::remove_file(self.directory.join(id))
            .map_err(|error| Failure::new(format!("could not remove the name of {id}")).because(error))?;
        // dnsmasq watches for new files only, so it needs a signal here.
        self.dnsmasq.signal(Signal::SIGHUP)
    }
}
