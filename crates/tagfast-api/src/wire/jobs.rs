//! Bodies of jobs: replays of dead letters.

use serde::Serialize;
use tagfast_events::ReplayJob;
use utoipa::ToSchema;

use crate::time::Rfc3339;

/// A replay job and its progress.
#[derive(Serialize, ToSchema)]
#[schema(as = ReplayJob)]
pub(crate) struct ReplayJobBody {
    id: String,
    dry_run: bool,
    rate: u32,
    #[schema(value_type = String, format = DateTime)]
    created_at: Rfc3339,
    /// Dead letters of the job: the open ones that its filter matched.
    dead_letters: u64,
    /// Matched dead letters that were no longer open.
    closed: u64,
    /// Matched dead letters that belong to a different replay job.
    busy: u64,
    /// Applied; in a dry run: would be applied.
    applied: u64,
    /// Not applied, because a newer state had been applied.
    superseded: u64,
    /// Failed again; they stay open.
    failed: u64,
    /// Discarded while the job ran.
    dropped: u64,
    /// Not processed yet.
    left: u64,
}

impl From<ReplayJob> for ReplayJobBody {
    fn from(job: ReplayJob) -> Self {
        Self {
            left: job.left(),
            id: job.id,
            dry_run: job.dry_run,
            rate: job.rate,
            created_at: Rfc3339(job.at),
            dead_letters: job.dead_letters,
            closed: job.closed,
            busy: job.busy,
            applied: job.applied,
            superseded: job.superseded,
            failed: job.failed,
            dropped: job.dropped,
        }
    }
}
