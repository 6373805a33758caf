//! Whether a syslog answers. Without an answer nats-server ends, at a start and at a reload.

use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::Fault;

/// Where Go looks for the syslog of the machine (`log/syslog/syslog_unix.go`).
const LOCAL: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];
const TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn local_fault() -> Option<Fault> {
    let answers = LOCAL.iter().any(|path| connect_unix(Path::new(path)).is_ok());
    (!answers).then_some(Fault::NoSyslog)
}

fn connect_unix(path: &Path) -> io::Result<()> {
    let datagram = UnixDatagram::unbound()?.connect(path);
    datagram.or_else(|_| UnixStream::connect(path).map(drop))
}

/// The fault of a `remote_syslog`. A datagram is never refused, so a udp address must only resolve.
pub(super) fn remote_fault(url: &str) -> Option<Fault> {
    let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
    let place = rest.trim_start_matches('/');
    let address = place.split(['/', '?', '#']).next().unwrap_or_default();
    let connected = match scheme {
        "udp" => address.to_socket_addrs().map(drop),
        "tcp" => connect_tcp(address),
        "unix" => connect_unix(Path::new(rest.strip_prefix("//").unwrap_or(rest))),
        _ => return Some(Fault::SyslogScheme { scheme: scheme.to_owned() }),
    };
    let address = address.rsplit('@').next().unwrap_or_default().to_owned();
    connected.err().map(|error| Fault::SyslogUnreachable { address, kind: error.kind() })
}

fn connect_tcp(address: &str) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    // A name may have many addresses, and each attempt takes time.
    for address in address.to_socket_addrs()?.take(3) {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}
