//! Metrics of the kernel's queue of connections that wait to be accepted, from `/proc/net`; absent
//! where there is none.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;

use tagfast_resilience::{counter, define_metrics, gauge};

define_metrics! {
    /// Metrics of the queue in front of the server.
    pub(crate) const METRICS;

    /// Connections that wait in the kernel's queue to be accepted. Above 0 for long: the server has
    /// `server.max_connections` open, or no file left for another one.
    gauge WAITING = "tagfast_listen_waiting_connections";

    /// Connections that the kernel dropped since the start because the queue of a listener was
    /// full; of all listeners in this network namespace. Any increase: clients wait for seconds.
    counter OVERFLOWS = "tagfast_listen_overflows_total";
}

/// State of a listening socket in `/proc/net/tcp`.
const STATE_LISTEN: &str = "0A";

/// The queue of one listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ListenQueue {
    address: SocketAddr,
    /// The kernel's count when the server started.
    overflows_before: u64,
}

impl ListenQueue {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, overflows_before: overflows().unwrap_or_default() }
    }

    /// Sets the metrics to their present values.
    pub(crate) fn record(&self) {
        let table = if self.address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
        if let Ok(file) = std::fs::File::open(table) {
            gauge!(WAITING).set(waiting(BufReader::new(file), self.address.port()) as f64);
        }
        if let Some(overflows) = overflows() {
            counter!(OVERFLOWS).absolute(overflows.saturating_sub(self.overflows_before));
        }
    }
}

/// Connections in the queues of the listeners on a port. The table begins with the listeners; the
/// rest, which can be long, is not read.
fn waiting(table: impl BufRead, port: u16) -> u64 {
    let port = format!("{port:04X}");
    let mut waiting = 0;
    for line in table.lines().map_while(Result::ok).skip(1) {
        let mut fields = line.split_whitespace().skip(1);
        let (Some(local), _, Some(state)) = (fields.next(), fields.next(), fields.next()) else {
            break;
        };
        if state != STATE_LISTEN {
            break;
        }
        let queue = fields.next().and_then(|queues| queues.split_once(':'));
        let length = queue.and_then(|(_, length)| u64::from_str_radix(length, 16).ok());
        if local.rsplit_once(':').is_some_and(|(_, local)| local == port) {
            waiting += length.unwrap_or_default();
        }
    }
    waiting
}

/// Connections that the kernel has dropped because a listener's queue was full.
fn overflows() -> Option<u64> {
    overflows_in(&std::fs::read_to_string("/proc/net/netstat").ok()?)
}

fn overflows_in(netstat: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(name, _)| *name == "ListenOverflows")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_of_a_port_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n\
             0: 0100007F:1B9E 00000000:0000 0A 00000000:0000044B 00:00000000 00000000\n\
             1: 00000000:07E8 00000000:0000 0A 00000000:00000002 00:00000000 00000000\n\
             2: 0100007F:1B9E 0100007F:9C40 01 00000000:00000063 00:00000000 00000000\n";
        assert_eq!(waiting(table.as_bytes(), 7070), 0x44b);
        assert_eq!(waiting(table.as_bytes(), 2024), 2);
        assert_eq!(waiting(table.as_bytes(), 1), 0);
        assert_eq!(waiting("".as_bytes(), 1), 0);
    }

    #[test]
    fn overflows_are_found_by_name() {
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 23 45\n\
             IpExt: InNoRoutes\nIpExt: 7\n";
        assert_eq!(overflows_in(netstat), Some(23));
        assert_eq!(overflows_in("TcpExt: SyncookiesSent\nTcpExt: 1\n"), None);
        assert_eq!(overflows_in(""), None);
    }
}
