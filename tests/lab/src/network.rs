//! The network of the instances: a bridge with AWS's own addresses, and a network namespace for each instance.
//!
//! The lab itself runs in a network namespace, the hub, so the whole network ends with the lab.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use harness::Failure;
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use crate::command::run;

/// The hub's address on the instances' subnet. Everything except instance metadata and DNS is here.
pub(crate) const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The address of instance metadata
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>).
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The address of the VPC's resolver: "the Route 53 Resolver […] can also be reached at 169.254.169.253"
/// (<https://docs.aws.amazon.com/vpc/latest/userguide/AmazonDNS-concepts.html>).
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);

const BRIDGE: &str = "hub";
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// The private address of an instance.
pub(crate) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

/// The path that `ip netns` gives a network namespace.
pub(crate) fn path(namespace: &str) -> String {
    format!("/run/netns/{namespace}")
}

/// Turns the network namespace of this process into the hub.
pub(crate) async fn raise() -> Result<(), Failure> {
    ip("link set lo up").await?;
    ip(&format!("link add {BRIDGE} type bridge")).await?;
    for address in [format!("{HUB}/24"), format!("{METADATA}/32"), format!("{RESOLVER}/32")] {
        ip(&format!("address add {address} dev {BRIDGE}")).await?;
    }
    ip(&format!("link set {BRIDGE} up")).await
}

/// Makes an instance's network namespace, with a cable to the bridge. The namespace survives a reboot of the instance.
pub(crate) async fn attach(namespace: &str, number: u8) -> Result<(), Failure> {
    let (port, address) = (format!("node{number}"), address(number));
    ip(&format!("netns add {namespace}")).await?;
    ip(&format!("link add {port} type veth peer name host0 netns {namespace}")).await?;
    ip(&format!("link set {port} master {BRIDGE} up")).await?;
    ip(&format!("-n {namespace} link set lo up")).await?;
    ip(&format!("-n {namespace} address add {address}/24 dev host0")).await?;
    ip(&format!("-n {namespace} link set host0 up")).await?;
    ip(&format!("-n {namespace} route add default via {HUB}")).await
}

/// Removes the namespace together with the cable.
pub(crate) async fn detach(namespace: &str) -> Result<(), Failure> {
    ip(&format!("netns delete {namespace}")).await
}

async fn ip(arguments: &str) -> Result<(), Failure> {
    run("ip", arguments.split(' ')).await.map(drop)
}

/// Connects to a listener inside an instance, as from its loopback interface. A socket stays in the namespace in which
/// it was made, so a thread enters the namespace, connects and ends.
pub(crate) async fn connect(namespace: &str, address: SocketAddr) -> Result<tokio::net::TcpStream, Failure> {
    let (path, (sender, connected)) = (path(namespace), oneshot::channel());
    let cannot = || Failure::new(format!("could not connect to {address} in {namespace}"));
    std::thread::spawn(move || {
        let connect = || {
            let namespace = std::fs::File::open(path)?;
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            let stream = TcpStream::connect_timeout(&address, CONNECT_WITHIN)?;
            stream.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(stream)
        };
        // The receiver may be gone.
        drop(sender.send(connect()));
    });
    let stream = connected.await.map_err(|gone| cannot().because(gone))?;
    let stream = stream.and_then(tokio::net::TcpStream::from_std);
    stream.map_err(|error| cannot().because(error))
}
