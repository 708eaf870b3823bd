//! Contents are written again, as they are, with a version of the epoch that has begun.
//!
//! What a replaced primary published and did not replicate is known to consumers and to nobody
//! else. A newer version of the state that there is replaces it. How it fails: as a group commit;
//! what was touched twice does no harm.

use tagfast_domain::{ContentKey, Epoch, Limits, UnixMillis};
use tagfast_failover::EpochRecord;

use crate::boot_time;
use crate::group::{Failed, Terms, Writing, read_slots, write_slots};
use crate::options::limit;

/// Touches contents. One that was written in this epoch already, before or meanwhile, needs it no
/// more.
pub(crate) async fn touch(
    server: &mut Writing,
    cluster: u16,
    epoch: &EpochRecord,
    keys: &[ContentKey],
    now: UnixMillis,
) -> Result<(), Failed> {
    let reign = Epoch { id: epoch.id, ordinal: epoch.ordinal };
    let limits = Limits::default();
    let terms = Terms { cluster, epoch, limits: &limits, now, locked: None };
    for group in keys.chunks(limit::GROUP) {
        let began = boot_time();
        let early = |error| Failed { error, outcome_unknown: false };
        let (mut slots, _) = read_slots(server, group.iter(), &terms).await.map_err(early)?;
        for slot in slots.iter_mut().flatten() {
            if slot.doc.version < reign.first_version() {
                slot.doc.version = slot.doc.version.next(&reign);
                slot.touched = true;
            }
        }
        write_slots(server, &mut slots, &terms, began).await?;
    }
    Ok(())
}
