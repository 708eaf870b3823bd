//! What the machine allows a server: open files, and connections that wait to be accepted.
//!
//! The soft limit of open files is raised to the hard one, and the server accepts no more
//! connections than that leaves room for: beyond it a connection would be accepted only to fail
//! when a file is to be opened for it. What is less than configured is logged at the start and
//! named in `/readyz` and `/v1/status`.

use std::io;
use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tagfast_resilience::ErrorChain;
use tokio::net::{TcpListener, TcpSocket};

/// Files that are open beside the connections of clients: the store with its write-ahead logs and
/// readers, segments of the index, connections to databases and brokers.
const OTHER_FILES: u64 = 512;
/// Connections that may wait in the kernel's queue to be accepted.
const LISTEN_BACKLOG: u32 = 4096;
/// The name of the feature in `/readyz`.
const FEATURE: &str = "connections";

/// What the machine does not allow: (feature, reason).
pub(crate) type MachineLimits = Vec<(String, String)>;

/// Raises the limit of open files and lowers `connections` to what fits.
pub(crate) fn fit_connections(connections: &mut usize) -> MachineLimits {
    let files = open_files();
    let fitting = fitting_connections(*connections, files);
    if fitting >= *connections {
        return Vec::new();
    }
    let reason = format!(
        "the process may open {files} files, which is enough for {fitting} connections at once; \
         server.max_connections is {connections}; raise the hard limit (ulimit -Hn, LimitNOFILE)"
    );
    tracing::warn!(files, connections = fitting, "{reason}");
    *connections = fitting;
    vec![(FEATURE.to_owned(), reason)]
}

/// How many connections of at most `wanted` fit a limit of open files. Half of a small limit is
/// left to the store.
fn fitting_connections(wanted: usize, files: u64) -> usize {
    let room = files.saturating_sub(OTHER_FILES.min(files / 2)).max(1);
    usize::try_from(room).map_or(wanted, |room| room.min(wanted))
}

/// The number of files that the process may open, after the soft limit was raised to the hard one.
fn open_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current.unwrap_or(u64::MAX);
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(
                error = %ErrorChain(&error),
                "the limit of open files cannot be raised"
            );
            current.unwrap_or(u64::MAX)
        }
    }
}

/// Listens on an address, with a queue of [`LISTEN_BACKLOG`] connections that wait to be accepted
/// if the kernel allows it.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(LISTEN_BACKLOG)?;
    if let Some(allowed) = somaxconn().filter(|allowed| *allowed < LISTEN_BACKLOG) {
        tracing::warn!(
            allowed,
            wanted = LISTEN_BACKLOG,
            "the kernel lets fewer connections wait to be accepted (net.core.somaxconn)"
        );
    }
    Ok(listener)
}

/// The kernel's bound of a listener's queue; `None`: it does not say.
fn somaxconn() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_the_store() {
        for (wanted, files, fitting) in [
            (10_000, u64::MAX, 10_000),
            (10_000, 1_048_576, 10_000),
            (10_000, 10_512, 10_000),
            (10_000, 10_511, 9_999),
            (10_000, 4096, 3584),
            (10_000, 1024, 512),
            (10_000, 256, 128),
            (100, 256, 100),
            (100, 0, 1),
        ] {
            assert_eq!(fitting_connections(wanted, files), fitting, "{wanted} of {files}");
        }
    }

    #[test]
    fn the_soft_limit_is_the_hard_one_afterwards() {
        let files = open_files();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!((current, current.unwrap_or(u64::MAX)), (maximum, files));
    }
}
