//! What a member has read of its partitions and what that proves: heartbeats of the clusters, and
//! records by which each partition is known again. No I/O, no clock.
//!
//! A watermark counts only once the partition was seen to hold, after the heartbeat was read, a
//! record that was read before it: a topic that was made again has heartbeats too, and they say
//! nothing about what was published into the old one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use tagfast_domain::UnixMillis;
use tagfast_events::{
    Anchor, BusPosition, ClusterName, Continuity, Partition, Positions, Watermark,
};
use tokio::time::Instant;

/// A cluster without a heartbeat for this long is silent; heartbeats come once a second.
const SILENT_AFTER: Duration = Duration::from_millis(3500);
/// Partitions that a text names, at most.
const NAMED_PARTITIONS_MAX: usize = 8;

/// What was read of one partition.
struct PartitionFeed {
    /// Newest heartbeat of each cluster (Unix ms), and when it was read.
    heartbeats: BTreeMap<ClusterName, (UnixMillis, Instant)>,
    began_at: Instant,
    /// The newest record handed to the runtime.
    read: Option<Anchor>,
    /// The newest record that is known to be of the partition that was read all along.
    proven: Option<Anchor>,
    /// Watermarks that wait for a proof, oldest first.
    unproven: Vec<Watermark>,
    proven_watermarks: Vec<Watermark>,
}

/// What a verification covers: taken before it begins.
#[derive(Debug, Default)]
pub(crate) struct Verification {
    /// The records to look for.
    pub(crate) anchors: BTreeMap<Partition, Anchor>,
    /// What is proven if they are found: the newest record, and how many watermarks.
    covers: BTreeMap<Partition, (Option<Anchor>, usize)>,
}

/// What was read of all partitions of a member.
#[derive(Default)]
pub(crate) struct Feed {
    /// The clusters that feed each partition.
    clusters: BTreeMap<Partition, BTreeSet<ClusterName>>,
    partitions: BTreeMap<Partition, PartitionFeed>,
}

impl Feed {
    pub(crate) fn new(clusters: BTreeMap<Partition, BTreeSet<ClusterName>>) -> Self {
        Self { clusters, partitions: BTreeMap::new() }
    }

    /// Partitions are read from these positions on.
    pub(crate) fn begin(&mut self, positions: &Positions, now: Instant) {
        for (partition, BusPosition { anchor, .. }) in positions {
            let feed = PartitionFeed {
                heartbeats: BTreeMap::new(),
                began_at: now,
                read: *anchor,
                proven: *anchor,
                unproven: Vec::new(),
                proven_watermarks: Vec::new(),
            };
            self.partitions.insert(*partition, feed);
        }
    }

    pub(crate) fn end(&mut self, partition: Partition) {
        self.partitions.remove(&partition);
    }

    /// Notes the newest record of a polled batch of a partition.
    pub(crate) fn read(&mut self, partition: Partition, anchor: Anchor) {
        let Some(feed) = self.partitions.get_mut(&partition) else { return };
        feed.read = Some(anchor);
        // Nothing was read before: there is nothing that a different partition could lack.
        feed.proven.get_or_insert(anchor);
    }

    /// Notes a heartbeat: everything of the cluster committed before `at` (Unix ms) is below
    /// `next`.
    pub(crate) fn heartbeat(
        &mut self,
        partition: Partition,
        cluster: &ClusterName,
        (next, at): (u64, UnixMillis),
        now: Instant,
    ) {
        let Some(feed) = self.partitions.get_mut(&partition) else { return };
        feed.heartbeats.insert(cluster.clone(), (at, now));
        let all = self.clusters.get(&partition);
        let complete =
            all.is_none_or(|all| all.iter().all(|cluster| feed.heartbeats.contains_key(cluster)));
        let feeding = feed.heartbeats.iter().filter(|(cluster, _)| {
            // A cluster that does not feed the partition any more holds nothing back.
            all.is_none_or(|all| all.contains(*cluster))
        });
        if complete && let Some(complete_through) = feeding.map(|(_, (at, _))| *at).min() {
            feed.unproven.push(Watermark { next, complete_through });
        }
    }

    /// What is to be verified; `None` if nothing new was read.
    pub(crate) fn verification(&self) -> Option<Verification> {
        let mut verification = Verification::default();
        for (partition, feed) in &self.partitions {
            if feed.unproven.is_empty() && feed.read == feed.proven {
                continue;
            }
            let Some(anchor) = feed.proven else { continue };
            verification.anchors.insert(*partition, anchor);
            verification.covers.insert(*partition, (feed.read, feed.unproven.len()));
        }
        (!verification.anchors.is_empty()).then_some(verification)
    }

    /// Notes the result of a verification. Returns a partition that is not the one that was read.
    pub(crate) fn verified(
        &mut self,
        verification: &Verification,
        result: &BTreeMap<Partition, Continuity>,
    ) -> Option<Partition> {
        let mut replaced = None;
        for (partition, (read, watermarks)) in &verification.covers {
            let Some(feed) = self.partitions.get_mut(partition) else { continue };
            // It has begun again meanwhile.
            if feed.proven.as_ref() != verification.anchors.get(partition) {
                continue;
            }
            match result.get(partition) {
                Some(Continuity::Proven) => {
                    feed.proven = *read;
                    let proven = feed.unproven.drain(..(*watermarks).min(feed.unproven.len()));
                    feed.proven_watermarks.extend(proven);
                }
                // Without the record nothing can be proven any more, so that it begins again.
                Some(Continuity::Broken | Continuity::Unknown) => {
                    replaced.get_or_insert(*partition);
                }
                None => {}
            }
        }
        replaced
    }

    /// Drops watermarks that a newer one below the position includes.
    pub(crate) fn reached(&mut self, positions: &Positions) {
        for (partition, position) in positions {
            let Some(feed) = self.partitions.get_mut(partition) else { continue };
            let known = &mut feed.proven_watermarks;
            let reached = known.iter().rposition(|w| w.next <= position.next).unwrap_or(0);
            known.drain(..reached);
        }
    }

    pub(crate) fn watermarks(&self) -> BTreeMap<Partition, Vec<Watermark>> {
        let known = |(p, feed): (&Partition, &PartitionFeed)| (*p, feed.proven_watermarks.clone());
        self.partitions.iter().map(known).collect()
    }

    pub(crate) fn anchors(&self) -> BTreeMap<Partition, Anchor> {
        self.partitions.iter().filter_map(|(p, feed)| Some((*p, feed.proven?))).collect()
    }

    /// The clusters without a heartbeat, with their partitions, and what to do; `None` if every
    /// cluster is heard in every partition that it feeds.
    pub(crate) fn silence(&self, now: Instant) -> Option<String> {
        let mut silent: BTreeMap<&str, (Duration, Vec<u16>)> = BTreeMap::new();
        for (partition, feed) in &self.partitions {
            for cluster in self.clusters.get(partition).into_iter().flatten() {
                let heard = feed.heartbeats.get(cluster).map_or(feed.began_at, |(_, read)| *read);
                let quiet = now.saturating_duration_since(heard);
                if quiet > SILENT_AFTER {
                    let known = silent.entry(cluster).or_default();
                    known.0 = known.0.max(quiet);
                    known.1.push(partition.0);
                }
            }
        }
        let (cluster, (quiet, partitions)) = silent.first_key_value()?;
        let named: Vec<String> =
            partitions.iter().take(NAMED_PARTITIONS_MAX).map(u16::to_string).collect();
        let mut text = format!(
            "no heartbeat of cluster {cluster} for {} s in partitions {}",
            quiet.as_secs(),
            named.join(", ")
        );
        if partitions.len() > named.len() {
            let _ = write!(text, " and {} more", partitions.len() - named.len());
        }
        if silent.len() > 1 {
            let _ = write!(text, "; nor of {} more clusters", silent.len() - 1);
        }
        text.push_str(
            ": look at the relay of that cluster (its primary, tagfast_relay_failures_total) and \
             at the topic",
        );
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition(0);

    fn at(offset: u64, fingerprint: u64) -> Anchor {
        Anchor { offset, fingerprint }
    }

    fn feed(clusters: &[&str]) -> Feed {
        let clusters = clusters.iter().map(|c| ClusterName::from(*c)).collect();
        Feed::new(BTreeMap::from([(P, clusters)]))
    }

    fn begun(clusters: &[&str], now: Instant) -> Feed {
        let mut feed = feed(clusters);
        let position = BusPosition { next: 5, anchor: Some(at(4, 1)), ..BusPosition::default() };
        feed.begin(&Positions::from([(P, position)]), now);
        feed
    }

    fn answer(continuity: Continuity) -> BTreeMap<Partition, Continuity> {
        BTreeMap::from([(P, continuity)])
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_counts_once_its_partition_is_proven() {
        let now = Instant::now();
        let mut feed = begun(&["c0"], now);
        feed.heartbeat(P, &"c0".into(), (6, 100), now);
        feed.read(P, at(5, 2));
        assert!(feed.watermarks()[&P].is_empty(), "it may be of a topic that was made again");
        let first = feed.verification().expect("something was read");
        assert_eq!(first.anchors, BTreeMap::from([(P, at(4, 1))]), "read before the heartbeat");
        // Read while the verification runs: not covered by it.
        feed.heartbeat(P, &"c0".into(), (7, 200), now);
        feed.read(P, at(6, 3));
        assert_eq!(feed.verified(&first, &answer(Continuity::Proven)), None);
        assert_eq!(feed.watermarks()[&P], [Watermark { next: 6, complete_through: 100 }]);
        assert_eq!(feed.anchors()[&P], at(5, 2));
        let second = feed.verification().expect("more was read");
        assert_eq!(feed.verified(&second, &answer(Continuity::Broken)), Some(P));
        assert_eq!(feed.watermarks()[&P].len(), 1, "nothing of the different one counts");
        assert_eq!(feed.anchors()[&P], at(5, 2), "and no position rests on it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_is_complete_as_far_as_its_slowest_cluster() {
        let now = Instant::now();
        let mut feed = begun(&["c0", "c1"], now);
        let mut next = 5;
        let mut hear = |feed: &mut Feed, cluster: &str, through| {
            next += 1;
            feed.heartbeat(P, &cluster.into(), (next, through), now);
            feed.read(P, at(next - 1, next));
            let verification = feed.verification().expect("something was read");
            feed.verified(&verification, &answer(Continuity::Proven));
            feed.watermarks()[&P].last().map(|w| w.complete_through)
        };
        assert_eq!(hear(&mut feed, "c0", 100), None, "of c1 nothing is known");
        assert_eq!(hear(&mut feed, "c1", 50), Some(50));
        assert_eq!(hear(&mut feed, "c0", 900), Some(50), "c1 is silent");
        assert_eq!(hear(&mut feed, "gone", 10), Some(50), "it does not feed the partition");
        assert_eq!(hear(&mut feed, "c1", 950), Some(900));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_cluster_is_named_with_its_partitions() {
        let mut feed = begun(&["c0", "c1"], Instant::now());
        feed.heartbeat(P, &"c0".into(), (6, 100), Instant::now());
        assert_eq!(feed.silence(Instant::now()), None);
        tokio::time::advance(SILENT_AFTER + Duration::from_millis(1)).await;
        feed.heartbeat(P, &"c0".into(), (7, 100), Instant::now());
        let text = feed.silence(Instant::now()).expect("c1 is silent");
        assert!(text.starts_with("no heartbeat of cluster c1 for 3 s in partitions 0:"), "{text}");
        feed.heartbeat(P, &"c1".into(), (8, 100), Instant::now());
        assert_eq!(feed.silence(Instant::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_that_began_again_is_not_judged_by_an_older_verification() {
        let now = Instant::now();
        let mut feed = begun(&["c0"], now);
        feed.read(P, at(5, 2));
        let old = feed.verification().expect("something was read");
        let position = BusPosition { next: 2, anchor: Some(at(1, 9)), ..BusPosition::default() };
        feed.begin(&Positions::from([(P, position)]), now);
        assert_eq!(feed.verified(&old, &answer(Continuity::Broken)), None);
        assert_eq!(feed.anchors()[&P], at(1, 9));
    }
}
