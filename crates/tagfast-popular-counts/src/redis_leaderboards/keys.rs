//! Names of the keys, and which partition merges a tenant.

use std::fmt::Display;

use tagfast_domain::TenantId;
use tagfast_events::Partition;
use tagfast_popular::Window;
use tagfast_sharding::ContentHash;

/// Hash: partition -> time through which its counts are pushed.
pub(super) const PUSHED_THROUGH: &str = "tf:pa";
/// Hash: partition -> time through which its tenants' leaderboards are merged.
pub(super) const MERGED_THROUGH: &str = "tf:pw";

/// Claim of the partition's owner.
pub(super) fn owner(partition: Partition) -> String {
    format!("tf:po:{}", partition.0)
}

/// Counts of a tenant's tags in a partition.
pub(super) fn counts(partition: u16, tenant: impl Display, window: Window) -> String {
    format!("tf:pc:{partition}:{tenant}:{}", window.as_str())
}

/// Tenants with counts in the partition.
pub(super) fn counted_tenants(partition: Partition) -> String {
    format!("tf:pp:{}", partition.0)
}

/// Tags of a tenant to merge.
pub(super) fn dirty_tags(tenant: &str) -> String {
    format!("tf:pd:{tenant}")
}

/// Tags of a tenant that a merge has taken.
pub(super) fn merging_tags(tenant: &str) -> String {
    format!("tf:pm:{tenant}")
}

/// Tenants that the owner of the partition must merge.
pub(super) fn dirty_tenants(partition: Partition) -> String {
    format!("tf:pt:{}", partition.0)
}

/// Leaderboard of a tenant.
pub(super) fn leaderboard(tenant: &TenantId, window: Window) -> String {
    format!("tf:pl:{tenant}:{}", window.as_str())
}

/// Displays of a tenant's tags.
pub(super) fn displays(tenant: &TenantId) -> String {
    format!("tf:pn:{tenant}")
}

/// Time of the last change of a tenant's leaderboards.
pub(super) fn changed_at(tenant: &TenantId) -> String {
    format!("tf:pv:{tenant}")
}

/// The partition whose owner merges a tenant's leaderboards.
pub(super) fn merge_partition(tenant: &TenantId, partitions: u16) -> Partition {
    let hash = ContentHash::of_bytes(tenant.as_str().as_bytes()).0;
    Partition((hash % u64::from(partitions.max(1))) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenant_has_one_merge_partition() {
        let tenant: TenantId = "acme".parse().unwrap();
        assert_eq!(merge_partition(&tenant, 8), merge_partition(&tenant, 8));
        assert!(merge_partition(&tenant, 3).0 < 3);
    }
}
