//! Nodes that come back: the wait until a cluster is healthy, and what an operator does meanwhile
//! for a node that cannot get there by itself.
//!
//! A former primary that `pg_rewind` brought back begins its recovery at the redo position of the
//! last checkpoint that it has in common with the new primary. `pg_rewind` keeps the log from that
//! checkpoint's record on; where a segment ends between the two, and the new primary has removed
//! what lies before it, no node that it may ask has the beginning any more, and PostgreSQL waits
//! for it for ever. Patroni shows `starting` and does nothing. The larger `wal_keep_size` is, the
//! rarer this is; here it is small, so that tests of long loads meet it. `patronictl reinit` mends
//! it, so the wait does that, and says so.
//!
//! How it fails: with the state of each node that does not stream, and the last lines of its log,
//! into which Patroni and PostgreSQL both write.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::host::wait_until;
use super::info::NodeInfo;
use super::node_log::{last_lines, logs};
use super::patroni::{self, Member};
use super::running::Stack;

/// What the log of a node says each time that the primary has not got what it needs.
const LOG_IS_REMOVED: &str = "has already been removed";
/// How long a node says so before it is copied: one that follows the former primary may say it
/// until it follows the new one.
const LOG_REMOVED_WAIT: Duration = Duration::from_secs(5);

/// A replica that does not stream.
struct Absentee {
    node: NodeInfo,
    /// Patroni's word; `None`: it is no member now.
    state: Option<String>,
}

impl Absentee {
    /// The line that says that the primary has removed what this node needs.
    fn removed(&self) -> Option<String> {
        // While it is copied, the log has the lines from before.
        let waits = matches!(self.state.as_deref(), Some("starting" | "in archive recovery"));
        let tail = waits.then(|| last_lines(self.node.data_dir.parent()?)).flatten()?;
        tail.lines().rev().find(|line| line.contains(LOG_IS_REMOVED)).map(str::to_owned)
    }
}

impl Stack {
    /// Waits until a cluster has a primary and all other nodes stream from it. A node that needs
    /// what the primary has removed from its log is made a copy of the primary, which is written to
    /// standard error.
    ///
    /// # Errors
    /// The timeout passed; the error has the last lines of the logs.
    pub fn wait_until_healthy(&self, cluster: &str, timeout: Duration) -> Result<()> {
        let mut waiting: BTreeMap<String, Instant> = BTreeMap::new();
        let mut copied: Vec<String> = Vec::new();
        let healthy = wait_until(&format!("{cluster} to be healthy"), timeout, || {
            let absent = self.absentees(cluster)?;
            for absentee in &absent {
                let name = &absentee.node.name;
                let Some(line) = absentee.removed() else {
                    waiting.remove(name);
                    continue;
                };
                let since = *waiting.entry(name.clone()).or_insert_with(Instant::now);
                if since.elapsed() >= LOG_REMOVED_WAIT && !copied.contains(name) {
                    copy_again(&absentee.node, &line)?;
                    copied.push(name.clone());
                }
            }
            refuse(&absent)
        });
        healthy.map_err(|error| match self.absentees(cluster) {
            Ok(absent) => anyhow!("{error:#}{}", logs(absent.iter().map(|a| &a.node))),
            Err(_) => {
                let nodes = self.info.cluster(cluster).into_iter().flat_map(|info| &info.nodes);
                anyhow!("{error:#}{}", logs(nodes))
            }
        })
    }

    /// Whether a cluster has a primary and all other nodes stream from it.
    pub(super) fn check_health(&self, cluster: &str) -> Result<()> {
        refuse(&self.absentees(cluster)?)
    }

    /// The replicas of a cluster that do not stream, according to its primary.
    fn absentees(&self, cluster: &str) -> Result<Vec<Absentee>> {
        let info =
            self.info.cluster(cluster).with_context(|| format!("no cluster is named {cluster}"))?;
        let primary = self.primary(cluster)?;
        let members = patroni::members(primary.direct_patroni)?;
        let others = info.nodes.iter().filter(|node| node.name != primary.name);
        let absent = others.filter_map(|node| {
            let member: Option<&Member> = members.iter().find(|member| member.name == node.name);
            let state = member.map(|member| member.state.clone());
            let absentee = Absentee { node: node.clone(), state };
            (absentee.state.as_deref() != Some("streaming")).then_some(absentee)
        });
        Ok(absent.collect())
    }
}

/// An error when some replica does not stream.
fn refuse(absent: &[Absentee]) -> Result<()> {
    let say = |absentee: &Absentee| {
        let state = absentee.state.as_deref().unwrap_or("no member");
        format!("{} does not stream: {state}", absentee.node.name)
    };
    let problems: Vec<String> = absent.iter().map(say).collect();
    if problems.is_empty() { Ok(()) } else { bail!(problems.join(", ")) }
}

/// Has a node copied from the primary, as an operator does.
#[expect(clippy::print_stderr, reason = "who reads a measured time must see what was done in it")]
fn copy_again(node: &NodeInfo, line: &str) -> Result<()> {
    patroni::reinitialize(node)?;
    eprintln!("{}: copied again from the primary (patronictl reinit): {line}", node.name);
    Ok(())
}
