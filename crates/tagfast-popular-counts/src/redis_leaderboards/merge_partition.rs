//! Which partition's owner merges a tenant.

use tagfast_domain::TenantId;
use tagfast_events::Partition;
use tagfast_sharding::ContentHash;

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
