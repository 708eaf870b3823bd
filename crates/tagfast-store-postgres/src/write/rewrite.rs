//! Writes contents again, unchanged, with a version of the epoch that has begun.
//!
//! Only consumers have what a replaced primary published and did not replicate. A newer version of
//! the current state replaces it there.
//!
//! How it fails: like a group commit. Rewriting a content twice is harmless.

use tagfast_domain::{ContentKey, Epoch, Limits, UnixMillis};
use tagfast_store::{CommitContext, WriteBatch};

use crate::boot_clock::boot_time;
use crate::options::limit;
use crate::write::session::WriteSession;
use crate::write::slots::{GroupCommitError, GroupContext, NewKeys, load_documents, write_slots};

/// Rewrites contents, except those that were already written in this epoch.
pub(crate) async fn rewrite_in_epoch(
    session: &mut WriteSession,
    cluster: u16,
    epoch: &Epoch,
    contents: &[ContentKey],
    now: UnixMillis,
) -> Result<(), GroupCommitError> {
    let limits = Limits::default();
    let commit = CommitContext { cluster, epoch, limits: &limits, now };
    let context = GroupContext { commit, lane_lock: None, is_canary: false, journals: false };
    for contents in contents.chunks(limit::COMMIT_BATCH_MAX) {
        let began = boot_time();
        let mut batch = WriteBatch::new(commit, contents.len());
        load_documents(session, &mut batch, contents.iter(), &context)
            .await
            .map_err(GroupCommitError::before_commit)?;
        for (_, slot) in batch.slots_mut() {
            slot.force_version(epoch);
        }
        write_slots(session, &mut batch, &NewKeys::default(), &context, began).await?;
    }
    Ok(())
}
