//! A network namespace for every PostgreSQL node, all on one bridge, so that a network partition is
//! a link that goes down.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result};

use super::host::run;

/// The network of one stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Network {
    /// Part of every name, so that stacks do not collide.
    tag: String,
    subnet: u8,
}

impl Network {
    /// Creates the bridge.
    pub(super) fn make(tag: &str) -> Result<Self> {
        for subnet in 0..=255 {
            let network = Self { tag: tag.to_owned(), subnet };
            let bridge = network.bridge();
            let address = format!("{}/24", network.host());
            let routes = run(Command::new("ip").args(["-4", "addr", "show"]))?;
            if routes.contains(&format!(" {address} ")) {
                continue;
            }
            run(Command::new("ip").args(["link", "add", &bridge, "type", "bridge"]))
                .context("network namespaces need root and a kernel with bridges")?;
            run(Command::new("ip").args(["addr", "add", &address, "dev", &bridge]))?;
            run(Command::new("ip").args(["link", "set", &bridge, "up"]))?;
            return Ok(network);
        }
        anyhow::bail!("no free subnet below 10.213.0.0/16")
    }

    fn bridge(&self) -> String {
        format!("tf{}", self.tag)
    }

    /// Address of the host on the bridge.
    pub(super) fn host(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 213, self.subnet, 1))
    }

    /// Creates the namespace of node `n` (from 0); returns its name and address.
    pub(super) fn node(&self, n: u8) -> Result<(String, IpAddr)> {
        let namespace = format!("tf{}n{n}", self.tag);
        let (outside, inside) = (link_of(&namespace), "eth0");
        let ip = IpAddr::V4(Ipv4Addr::new(10, 213, self.subnet, 10 + n));
        let ip_command = |args: &[&str]| run(Command::new("ip").args(args));
        ip_command(&["netns", "add", &namespace])?;
        ip_command(&[
            "link", "add", &outside, "type", "veth", "peer", "name", inside, "netns", &namespace,
        ])?;
        ip_command(&["link", "set", &outside, "master", &self.bridge(), "up"])?;
        ip_command(&["-n", &namespace, "addr", "add", &format!("{ip}/24"), "dev", inside])?;
        ip_command(&["-n", &namespace, "link", "set", inside, "up"])?;
        ip_command(&["-n", &namespace, "link", "set", "lo", "up"])?;
        Ok((namespace, ip))
    }
}

/// Name of the host's end of a namespace's link.
pub(super) fn link_of(namespace: &str) -> String {
    format!("v{namespace}")
}

/// Takes a namespace's link down or up.
pub(super) fn set_link(namespace: &str, up: bool) -> Result<()> {
    let state = if up { "up" } else { "down" };
    run(Command::new("ip").args(["link", "set", &link_of(namespace), state])).map(drop)
}

/// Lets packets from a namespace to a port vanish, or arrive again.
pub(super) fn set_unreachable(
    namespace: &str,
    port: SocketAddr,
    is_unreachable: bool,
) -> Result<()> {
    let change = if is_unreachable { "add" } else { "del" };
    let (ip, port) = (port.ip().to_string(), port.port().to_string());
    let mut command = Command::new("ip");
    command.args(["-n", namespace, "rule", change, "blackhole", "to", &ip, "ipproto", "tcp"]);
    run(command.args(["dport", &port])).map(drop)
}

/// Removes the namespaces and links of a stack with this tag; ignores what is already gone.
pub(super) fn remove(tag: &str) {
    let Ok(list) = run(Command::new("ip").args(["netns", "list"])) else { return };
    let prefix = format!("tf{tag}n");
    for namespace in list
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| name.starts_with(&prefix))
    {
        let _ = run(Command::new("ip").args(["link", "del", &link_of(namespace)]));
        let _ = run(Command::new("ip").args(["netns", "del", namespace]));
    }
    let _ = run(Command::new("ip").args(["link", "del", &format!("tf{tag}")]));
}
