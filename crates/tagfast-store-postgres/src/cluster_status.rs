//! The status of the clusters, for operators and for readiness.
//!
//! How it fails: it does not; it says what a cluster lacks.

use std::sync::Arc;
use std::time::Duration;

use crate::health::calls::FailingCalls;
use crate::store::{ClusterHandle, PostgresStore};

/// The status of a cluster, for operators and for readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// The member that takes writes; `None`: none does.
    pub primary: Option<String>,
    /// The other members.
    pub replicas: Vec<String>,
    /// The epoch's ordinal; `None`: there is no primary.
    pub epoch: Option<u64>,
    /// Why it takes no writes; `None`: it does.
    pub problem: Option<String>,
    /// What weakens a promise on it, and what to do.
    pub warnings: Vec<String>,
    /// What the copy of its journal on disk lacks, and what to do; empty: nothing, or there is no
    /// copy.
    pub journal_problems: Vec<String>,
    /// The replicas that are older than `store.replica_max_age_ms`, each a sentence with its age.
    pub replicas_behind: Vec<String>,
    /// Long transactions that hold the relay, at most three: search and popular tags get no newer
    /// while they last.
    pub long_transactions: Vec<String>,
    /// Which of its calls fail, and why; empty: most of the last seconds' calls succeed.
    pub failing: Vec<FailingCalls>,
    /// For how long etcd has not answered, and why; `None`: it does.
    pub etcd_problem: Option<(Duration, String)>,
}

impl PostgresStore {
    /// The status of each cluster.
    pub fn status(&self) -> Vec<ClusterStatus> {
        let status = |handle: &ClusterHandle| {
            let topology = Arc::clone(&handle.cluster.topology.borrow());
            ClusterStatus {
                name: handle.cluster.name.clone(),
                primary: topology.primary.as_ref().map(|(_, node)| node.name.clone()),
                replicas: topology.replicas.iter().map(|n| n.name.clone()).collect(),
                epoch: topology.primary.as_ref().map(|(epoch, _)| epoch.ordinal.0),
                problem: topology.problem.clone(),
                warnings: topology.warnings.clone(),
                journal_problems: handle.cluster.copy_health.warnings(),
                replicas_behind: handle.cluster.replicas_behind(),
                long_transactions: handle.cluster.long_transactions.texts(),
                failing: handle.cluster.health.failing(),
                etcd_problem: handle.cluster.health.etcd_problem(),
            }
        };
        self.clusters().iter().map(status).collect()
    }
}
