//! A shard scan over states in memory, for tests of consumers that rebuild from the shards.

use tagfast_domain::{ContentKey, Document, Effect, RecentWrite, TaggingsEvent, WriteId};
use tagfast_sharding::LogicalShard;

use crate::{ScanPage, ScanRequest};

/// The page that a scan with this request returns; `states` holds the newest event of every
/// content in key order.
pub fn scan_states<'a>(
    states: impl Iterator<Item = (&'a ContentKey, &'a TaggingsEvent)>,
    request: ScanRequest<'_>,
) -> ScanPage {
    let ScanRequest { shard, tenant, after, limit } = request;
    let mut page = ScanPage::default();
    let wanted = states.filter(|(key, _)| {
        LogicalShard::of(key) == shard
            && tenant.is_none_or(|t| *t == key.tenant)
            && after.is_none_or(|a| *key > a)
    });
    for (key, event) in wanted {
        if page.items.len() == limit {
            page.next = page.items.last().map(|(key, _)| key.clone());
            break;
        }
        let write = RecentWrite {
            id: WriteId([0; 16]),
            fingerprint: 0,
            version: event.version,
            at: event.at,
            effect: Effect::default(),
        };
        let document = Document {
            version: event.version,
            taggings: event.tags.clone(),
            recent: vec![write],
            ..Document::default()
        };
        page.items.push((key.clone(), document));
    }
    page
}
