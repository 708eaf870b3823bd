//! Bodies of receipts.

use serde::Serialize;
use tagfast_store::Verdict;
use utoipa::ToSchema;

/// What became of a write.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VerdictName {
    /// It is in the current history.
    Kept,
    /// Reserved: a failover lost it and a repair brought it back.
    Repaired,
    /// Reserved: a failover lost it.
    Lost,
    /// The service cannot tell; `reason` says why.
    Unknown,
}

impl From<Verdict> for VerdictName {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Kept => Self::Kept,
            Verdict::Repaired { .. } => Self::Repaired,
            Verdict::Lost(_) => Self::Lost,
            Verdict::Unknown(_) => Self::Unknown,
        }
    }
}

/// The verdict on a write.
#[derive(Serialize, ToSchema)]
#[schema(as = ReceiptVerdict)]
pub(crate) struct VerdictBody {
    /// What became of it; `repaired` and `lost` are reserved.
    pub(crate) verdict: VerdictName,
    /// Why it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    /// The write's id.
    pub(crate) write_id: String,
    /// The logical shard of its content.
    #[schema(maximum = 63)]
    pub(crate) shard: u8,
    /// The epoch in which it was acknowledged.
    pub(crate) epoch: String,
}
