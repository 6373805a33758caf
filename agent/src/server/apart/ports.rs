//! Whether nats-server can listen where its settings say.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};

use nix::errno::Errno;
use tokio::net::TcpSocket;

use super::{Consequence, Fault, HiddenFault};
use crate::conf::tree::Map;
use crate::conf::trial::{Endpoint, endpoints};

pub(super) fn faults(new: &Map, running: Option<&Map>) -> Vec<HiddenFault> {
    let (wanted, own) = (endpoints(new), running.map(endpoints).unwrap_or_default());
    let mut faults = Vec::new();
    for (index, endpoint) in wanted.iter().enumerate() {
        let earlier = wanted.iter().take(index).find(|other| overlap(other, endpoint));
        let fault = match earlier {
            Some(other) => Some(Fault::SharedPort { port: endpoint.port, other: other.listener }),
            // The running server itself uses the port.
            None if own.iter().any(|own| own.port == endpoint.port) => None,
            None => fault_at(endpoint),
        };
        faults.extend(fault.map(|fault| HiddenFault {
            setting: endpoint.listener.to_string(),
            origin: endpoint.origin.clone(),
            fault,
            consequence: Consequence::WontStart,
        }));
    }
    faults
}

/// Whether two listeners of one server can't both listen. An unspecified address takes the port of every address.
fn overlap(one: &Endpoint, other: &Endpoint) -> bool {
    let is_unspecified = |host: &str| host.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
    one.port > 0
        && one.port == other.port
        && (one.host == other.host || is_unspecified(&one.host) || is_unspecified(&other.host))
}

fn fault_at(endpoint: &Endpoint) -> Option<Fault> {
    let (host, port) = (endpoint.host.clone(), endpoint.port);
    if port == -1 {
        return None;
    }
    let Some(number) = u16::try_from(port).ok().filter(|number| *number > 0) else {
        return Some(Fault::NoPort { port });
    };
    let Ok(addresses) = (host.as_str(), number).to_socket_addrs() else { return Some(Fault::HostUnknown { host }) };
    // Go listens on the first IPv4 address of a name, or on the first address where no IPv4 address exists
    // (`net.Listen`).
    let addresses: Vec<_> = addresses.collect();
    let Some(address) = addresses.iter().find(|address| address.is_ipv4()).or_else(|| addresses.first()) else {
        return Some(Fault::HostUnknown { host });
    };
    match bind(*address).map_err(|error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)) {
        Err(Errno::EADDRINUSE) => Some(Fault::PortInUse { host, port }),
        Err(Errno::EADDRNOTAVAIL) => Some(Fault::AddressNotHere { host }),
        // A port below 1024 needs a right that nats-server may have and the agent lacks.
        _ => None,
    }
}

/// Binds without listening. A listening socket would take the port from a nats-server that starts at this moment. A
/// bound socket leaves the port free, because Go sets `SO_REUSEADDR` too. The bind still fails where another socket
/// listens.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}
