//! Names: the instance-id host names that `discovery.addresses = "dns"` looks up.
//!
//! The agent runs in its own mount namespace, in which `/etc/resolv.conf` names the test's stub. Only root can mount.
//! As another user, the test reports the missing right and ends.

#![expect(clippy::print_stdout, reason = "the output names the checks that could not run")]

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aws_double::fault::{Fault, Operation};
use harness::Failure;
use harness::services::own_names_obstacle;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::world::{OWN, Setup, World, peer};
use super::{Told, Trial, Trigger, boot_all, serve_all, table};

/// The stub's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    /// The address of the peer whose number the name contains.
    Address,
    /// The node's own address for its own name, and NXDOMAIN for every other name.
    Own,
    /// A response code of RFC 1035, section 4.1.1: 2 SERVFAIL, 3 NXDOMAIN, 5 REFUSED.
    Code(u8),
    /// No answer.
    Silence,
    /// An answer of two bytes. A header has twelve.
    Nonsense,
}

/// A name server on the node's own address that ends when dropped.
pub(super) struct Stub {
    reply: Arc<Mutex<Reply>>,
    server: JoinHandle<()>,
}

impl Stub {
    pub(super) async fn start(address: Ipv4Addr) -> Result<Self, Failure> {
        let socket = UdpSocket::bind((address, 53))
            .await
            .map_err(|error| Failure::new(format!("no name server at {address}")).because(error))?;
        let reply = Arc::new(Mutex::new(Reply::Address));
        let shared = Arc::clone(&reply);
        let server = tokio::spawn(async move {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                let reply = *shared.lock().unwrap();
                if let Some(answer) = answer(&packet[..length], reply, address) {
                    drop(socket.send_to(&answer, from).await);
                }
            }
        });
        Ok(Self { reply, server })
    }

    /// Ends the name server, and waits until its port is free.
    pub(super) async fn end(mut self) {
        self.server.abort();
        // The task ends by cancellation.
        drop((&mut self.server).await);
    }

    fn set(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The answer to a question for an A record. Other types get an empty answer.
fn answer(query: &[u8], reply: Reply, own: Ipv4Addr) -> Option<Vec<u8>> {
    let question_length = query.get(12..)?.iter().position(|byte| *byte == 0)? + 5;
    let question = query.get(12..12 + question_length)?;
    let label = question.get(1..1 + usize::from(*question.first()?))?;
    let number = u8::from_str_radix(std::str::from_utf8(label).ok()?.get(17..)?, 16).ok();
    let is_a = question[question_length - 4..] == [0, 1, 0, 1];
    let (code, address) = match reply {
        Reply::Silence => return None,
        Reply::Nonsense => return Some(query[..2].to_vec()),
        Reply::Code(code) => (code, None),
        Reply::Own if number == Some(OWN) => (0, is_a.then_some(own.into())),
        Reply::Own => (3, None),
        Reply::Address => (0, number.filter(|_| is_a).map(|number| peer(own, number))),
    };
    let mut packet = query[..2].to_vec();
    packet.extend([0x85, 0x80 | code, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    packet.extend_from_slice(question);
    if let Some(IpAddr::V4(address)) = address {
        // The record points to the question's name: A, IN, a time to live of zero, four bytes.
        packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        packet.extend(address.octets());
    }
    Some(packet)
}

/// The agent in a mount namespace in which the first node of the cluster is the name server.
pub(super) fn wrapper(directory: &Path, agent: &str) -> Result<PathBuf, Failure> {
    let io = |error: std::io::Error| Failure::new("could not make a wrapper").because(error);
    let (wrapper, resolv) = (directory.join("agent"), directory.join("resolv.conf"));
    let text = format!(
        "#!/bin/sh\nset -e\n[ -n \"$IN_NAMESPACE\" ] || IN_NAMESPACE=1 exec unshare --mount \"$0\" \"$@\"\n\
         mount --bind '{}' /etc/resolv.conf\nexec '{agent}' \"$@\"\n",
        resolv.display()
    );
    std::fs::write(&wrapper, text).map_err(io)?;
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).map_err(io)?;
    Ok(wrapper)
}

/// Tells a node's agent where its name server is.
pub(super) fn configure(directory: &Path, address: Ipv4Addr) -> Result<(), Failure> {
    std::fs::write(directory.join("resolv.conf"), format!("nameserver {address}\noptions timeout:1 attempts:1\n"))
        .map_err(|error| Failure::new("could not write resolv.conf").because(error))
}

fn trials() -> Vec<Trial> {
    let faults = [
        ("NXDOMAIN", Reply::Code(3)),
        ("SERVFAIL", Reply::Code(2)),
        ("REFUSED", Reply::Code(5)),
        ("hangs", Reply::Silence),
        ("nonsense", Reply::Nonsense),
    ];
    let trial = |(fault, reply)| {
        let switch = move |world: &World, on: bool| {
            world.names.as_ref().unwrap().set(if on { reply } else { Reply::Address });
        };
        let told = Told::Warned(vec!["is in the group, but its address could not be found yet"]);
        Trial { call: "DNS", fault, told, switch: Arc::new(switch) }
    };
    faults.map(trial).into()
}

/// Whether the test can give the agent a name server.
async fn has_namespaces() -> bool {
    let obstacle = own_names_obstacle().await;
    if let Some(obstacle) = obstacle {
        println!("not run: {obstacle}");
    }
    obstacle.is_none()
}

/// The names are those of a group with two launch templates, of which only the first enables resource name DNS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_instances_without_a_name_ec2_is_asked_and_what_it_does_not_say_leaves_them_without_an_address() {
    if !has_namespaces().await {
        return;
    }
    let switch = |world: &World, on: bool| {
        world.names.as_ref().unwrap().set(Reply::Own);
        world.double.set_fault(Operation::DescribeInstances, on.then_some(Fault::Denied));
    };
    let told = Told::Warned(vec!["is in the group, but its address could not be found yet"]);
    let trial = Trial { call: "DNS", fault: "some names only", told, switch: Arc::new(switch) };
    let setup = Setup { addresses: "auto", names: true, ..Setup::default() };
    for cell in boot_all(setup, vec![trial]).await {
        assert_eq!(cell.outcome, Ok("warned".into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_07_a_name_server_that_is_out_of_order_disturbs_no_node() {
    if !has_namespaces().await {
        return;
    }
    let setup = || Setup { addresses: "dns", names: true, ..Setup::default() };
    table::check("DNS, at first boot", &boot_all(setup(), trials()).await);
    table::check("DNS, in a serving node", &serve_all(vec![(setup(), Trigger::NewPeer, trials())]).await);
}
