//! Loopback ports and addresses that no other test uses at the same time, in this process or another.
//!
//! An advisory lock on a file reserves a block. The kernel releases the lock when its holder ends, for any reason.
//! Ports lie below the range that Linux gives to outgoing connections (32768 and up), so no outgoing connection blocks
//! a port.

use std::fs::{File, OpenOptions, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use crate::Failure;

const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 16;
const BLOCKS: u8 = u8::MAX;
/// The number of hosts in the largest cluster of a test.
const HOSTS: u8 = 8;

/// A reserved block: up to 16 ports, and the loopback network `127.100.BLOCK.0/24`. Nodes on that network look like
/// separate hosts with the same ports. Dropping the block frees it.
#[derive(Debug)]
pub struct Block {
    number: u8,
    _lock: File,
}

impl Block {
    /// Reserves the next block that nobody else has reserved and whose ports are free.
    ///
    /// # Errors
    /// The lock files can't be made, or all 255 blocks are reserved.
    pub fn reserve() -> Result<Self, Failure> {
        Self::reserve_in(&lock_directory())
    }

    fn reserve_in(locks: &Path) -> Result<Self, Failure> {
        // Each process starts at another block, so that a port rests before it is used again.
        let start = std::process::id().wrapping_mul(7) % u32::from(BLOCKS);
        for number in (0..BLOCKS).map(|n| u8::try_from((u32::from(n) + start) % u32::from(BLOCKS)).unwrap_or(n)) {
            if let Some(block) = Self::lock(number, locks)?.filter(Self::is_free) {
                return Ok(block);
            }
        }
        Err(Failure::new(format!(
            "all {BLOCKS} blocks of ports from {FIRST_PORT} on are taken; see who holds the locks in {}",
            locks.display()
        )))
    }

    /// The block, unless somebody else has locked the block.
    fn lock(number: u8, locks: &Path) -> Result<Option<Self>, Failure> {
        let cannot = |path: &Path| Failure::new(format!("could not reserve ports by a lock on {}", path.display()));
        std::fs::create_dir_all(locks).map_err(|error| cannot(locks).because(error))?;
        let path = locks.join(number.to_string());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| cannot(&path).because(error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { number, _lock: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(cannot(&path).because(error)),
        }
    }

    /// Port `index` of the block, from 0 to 15. A higher index wraps around.
    #[must_use]
    pub fn port(&self, index: u16) -> u16 {
        FIRST_PORT + u16::from(self.number) * PORTS + index % PORTS
    }

    /// The address of host `number` in the block's own loopback network.
    #[must_use]
    pub fn host(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 100, self.number, number)
    }

    /// Programs that ignore these locks may listen on the ports. A node of the last holder may still run.
    fn is_free(&self) -> bool {
        let addresses = || (1..=HOSTS).map(|number| self.host(number)).chain([Ipv4Addr::LOCALHOST]);
        let can_listen = |address, index| TcpListener::bind(SocketAddr::from((address, self.port(index)))).is_ok();
        (0..PORTS).all(|index| addresses().all(|address| can_listen(address, index)))
    }
}

/// Ports of 127.0.0.1, reserved until this value is dropped.
#[derive(Debug)]
pub struct Ports {
    blocks: Vec<Block>,
    numbers: Vec<u16>,
}

impl Ports {
    /// The ports, as many as requested.
    #[must_use]
    pub fn numbers(&self) -> &[u16] {
        &self.numbers
    }

    /// The blocks of the ports.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }
}

/// Reserves ports of 127.0.0.1.
pub fn free_ports(count: usize) -> Result<Ports, Failure> {
    let mut ports = Ports { blocks: Vec::new(), numbers: Vec::with_capacity(count) };
    while ports.numbers.len() < count {
        let block = Block::reserve()?;
        ports.numbers.extend((0..PORTS).map(|index| block.port(index)).take(count - ports.numbers.len()));
        ports.blocks.push(block);
    }
    Ok(ports)
}

/// Each user has a directory, so that no user's files block another user.
fn lock_directory() -> PathBuf {
    std::env::temp_dir().join(format!("nats-tls-agent-ports-{}", nix::unistd::getuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn threads_never_share_a_port() {
        let held: Vec<Ports> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| free_ports(20).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let distinct: BTreeSet<u16> = held.iter().flat_map(|ports| ports.numbers().iter().copied()).collect();
        assert_eq!(distinct.len(), 8 * 20);
    }

    /// `flock(1)` of util-linux is the other process. Other tests may use the ports of the block meanwhile.
    #[test]
    fn another_process_keeps_its_block_until_it_ends() {
        let locks = tempfile::tempdir().unwrap();
        let first = Block::reserve_in(locks.path()).unwrap().number;
        let is_mine = || Block::lock(first, locks.path()).unwrap().is_some();
        assert!(is_mine());
        let mut other = Command::new("flock")
            .arg(locks.path().join(first.to_string()))
            .args(["sh", "-c", "echo locked; read _"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(other.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "locked\n");
        assert!(!is_mine());
        assert_ne!(Block::reserve_in(locks.path()).unwrap().number, first);
        drop(other.stdin.take());
        other.wait().unwrap();
        assert!(is_mine());
    }

    #[test]
    fn a_block_with_a_stranger_on_a_port_is_passed_over() {
        let first = Block::reserve().unwrap();
        for address in [Ipv4Addr::LOCALHOST, first.host(1), first.host(HOSTS)] {
            let stranger = TcpListener::bind((address, first.port(3))).unwrap();
            assert!(!first.is_free(), "{address}");
            drop(stranger);
            assert!(first.is_free(), "{address}");
        }
    }

    #[test]
    fn hosts_of_a_block_differ_and_are_loopback() {
        let block = Block::reserve().unwrap();
        assert_ne!(block.host(1), block.host(2));
        assert!(block.host(1).is_loopback());
    }
}
