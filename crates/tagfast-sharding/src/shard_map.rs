//! The shard map: which cluster owns each logical shard.

use crate::logical_shard::{LogicalShard, SHARDS};

/// A cluster's position in the map, counted from 0.
pub type ClusterIndex = u16;

/// Assigns every logical shard to exactly one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardMap {
    version: u64,
    owner: Vec<ClusterIndex>,
}

/// Why a shard map is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardMapError {
    /// An item of a shard list is neither a number nor a range.
    #[error("`{0}` is not a shard or a range of shards; write for example `0-31,40`")]
    NotARange(String),
    /// A shard number above 63.
    #[error("shard {0} does not exist; shards are numbered 0 to {last}", last = SHARDS - 1)]
    NoSuchShard(u32),
    /// Two clusters claim the same shard.
    #[error("shard {shard} belongs to both {first} and {second}")]
    Overlap {
        /// Number of the shard.
        shard: u8,
        /// Name of the cluster that comes first in the list.
        first: String,
        /// Name of the cluster that claims it again.
        second: String,
    },
    /// No cluster owns this shard.
    #[error("no cluster owns shard {0}")]
    Missing(u8),
}

impl ShardMap {
    /// Builds a map from (cluster name, shard list) pairs; a pair's position is the cluster's
    /// index. `version` orders maps: the larger one is newer.
    ///
    /// # Errors
    /// A [`ShardMapError`] when a list cannot be parsed or a shard has no owner or two.
    pub fn new<'a>(
        version: u64,
        clusters: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, ShardMapError> {
        let mut names: Vec<&str> = Vec::new();
        let mut owner: Vec<Option<ClusterIndex>> = vec![None; usize::from(SHARDS)];
        for (index, (name, list)) in clusters.into_iter().enumerate() {
            names.push(name);
            for shard in parse(list)? {
                match &mut owner[usize::from(shard)] {
                    Some(first) => {
                        let first = names[usize::from(*first)].to_owned();
                        return Err(ShardMapError::Overlap {
                            shard,
                            first,
                            second: name.to_owned(),
                        });
                    }
                    free @ None => *free = Some(index as ClusterIndex),
                }
            }
        }
        let missing = |shard: usize| ShardMapError::Missing(shard as u8);
        let owner = owner
            .into_iter()
            .enumerate()
            .map(|(s, o)| o.ok_or_else(|| missing(s)))
            .collect::<Result<_, _>>()?;
        Ok(Self { version, owner })
    }

    /// The cluster that owns a shard.
    pub fn cluster_of(&self, shard: LogicalShard) -> ClusterIndex {
        self.owner[usize::from(shard.number())]
    }

    /// Version of the map; the larger one is newer.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// Parses a shard list such as `0-31,40`.
fn parse(list: &str) -> Result<Vec<u8>, ShardMapError> {
    let mut shards = Vec::new();
    for part in list.split(',').map(str::trim) {
        let bad = || ShardMapError::NotARange(part.to_owned());
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| bad());
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(bad());
        }
        for shard in [first, last] {
            if shard >= u32::from(SHARDS) {
                return Err(ShardMapError::NoSuchShard(shard));
            }
        }
        shards.extend((first..=last).map(|s| s as u8));
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_has_one_cluster() {
        let map = ShardMap::new(3, [("a", "0-31"), ("b", "32-62, 63")]).expect("a map");
        let of = |n| map.cluster_of(LogicalShard::from_number(n).expect("a shard"));
        assert_eq!((of(0), of(31), of(32), of(63), map.version()), (0, 0, 1, 1, 3));
        let all: Vec<String> = (0..64).map(|n| n.to_string()).collect();
        assert!(ShardMap::new(1, all.iter().map(|n| ("c", n.as_str()))).is_ok(), "64 clusters");
    }

    #[test]
    fn wrong_maps_are_refused() {
        let error = |clusters: &[(&str, &str)]| {
            ShardMap::new(1, clusters.iter().copied()).expect_err("refused")
        };
        assert_eq!(error(&[("a", "0-62")]), ShardMapError::Missing(63));
        assert_eq!(
            error(&[("a", "0-40"), ("b", "40-63")]),
            ShardMapError::Overlap { shard: 40, first: "a".into(), second: "b".into() }
        );
        assert_eq!(error(&[("a", "0-64")]), ShardMapError::NoSuchShard(64));
        assert_eq!(error(&[("a", "5-1")]), ShardMapError::NotARange("5-1".into()));
        assert_eq!(error(&[("a", "all")]), ShardMapError::NotARange("all".into()));
    }
}
