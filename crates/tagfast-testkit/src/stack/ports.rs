//! Ports for servers.
//!
//! A server that is down for a while must find its port free when it is started again, so no other
//! process may pick it meanwhile: each process claims ranges of ports. A claim is an abstract Unix
//! socket, which the kernel frees with the process and which belongs to a network namespace, as
//! ports do.
//!
//! How it fails: more stacks at a time than there are ranges; the error says so.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};

use anyhow::{Result, bail};
use parking_lot::Mutex;

/// The first port; all are below those that the kernel assigns to outgoing connections.
const PORT_MIN: u16 = 11_000;
const RANGE_PORTS: u16 = 500;
const RANGES: u16 = 40;

/// The ports of this process.
static PORTS: Mutex<Ports> = Mutex::new(Ports::new("tagfast-ports"));

/// Free ports. This process gets each port only once, and no other process gets it.
///
/// # Errors
/// Other processes have all ranges of ports.
pub fn free_ports(ip: IpAddr, count: usize) -> Result<Vec<SocketAddr>> {
    PORTS.lock().take(ip, count)
}

/// Ranges that were claimed.
struct Ports {
    /// What the names of claims begin with.
    name: &'static str,
    claims: Vec<UnixListener>,
    /// What is left of the newest one.
    left: std::ops::Range<u16>,
}

impl Ports {
    const fn new(name: &'static str) -> Self {
        Self { name, claims: Vec::new(), left: 0..0 }
    }

    fn take(&mut self, ip: IpAddr, count: usize) -> Result<Vec<SocketAddr>> {
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            match self.left.next() {
                None => self.claim()?,
                Some(port) => {
                    let address = SocketAddr::new(ip, port);
                    // A program that claims nothing may have it.
                    found.extend(TcpListener::bind(address).is_ok().then_some(address));
                }
            }
        }
        Ok(found)
    }

    fn claim(&mut self) -> Result<()> {
        // Not always the same ones: a port that was just closed is not usable for a moment.
        let first = fastrand::u16(..RANGES);
        for range in (first..RANGES).chain(0..first) {
            let first_port = PORT_MIN + range * RANGE_PORTS;
            let name = format!("{}-{first_port}", self.name);
            if let Ok(claim) = UnixListener::bind_addr(&UnixAddress::from_abstract_name(name)?) {
                self.claims.push(claim);
                self.left = first_port..first_port + RANGE_PORTS;
                return Ok(());
            }
        }
        let end = PORT_MIN + RANGES * RANGE_PORTS;
        bail!("other processes have all {RANGES} ranges of ports between {PORT_MIN} and {end}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const COUNT: usize = RANGE_PORTS as usize + 20;

    /// Ports that only a test claims.
    fn ports(test: &str) -> impl Fn() -> Ports {
        let name: &'static str = format!("tagfast-{test}-{}", std::process::id()).leak();
        move || Ports::new(name)
    }

    #[test]
    fn each_port_is_given_once_also_beside_other_processes() {
        let ip = "127.0.0.1".parse().expect("an address");
        let ports = ports("once");
        let (mut one, mut other) = (ports(), ports());
        let mut given = BTreeSet::new();
        for process in [&mut one, &mut other] {
            given.extend(process.take(ip, COUNT).expect("ports"));
        }
        assert_eq!(given.len(), 2 * COUNT);
    }

    #[test]
    fn ranges_have_an_end_and_are_free_again_with_their_process() {
        let ports = ports("ranges");
        let mut process = ports();
        for _ in 0..RANGES {
            process.claim().expect("a range");
        }
        let error = ports().claim().expect_err("there is none left");
        assert!(error.to_string().contains("other processes have all 40 ranges"), "{error}");
        drop(process);
        ports().claim().expect("a range");
    }
}
