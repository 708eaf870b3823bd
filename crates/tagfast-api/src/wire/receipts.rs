//! Bodies of receipts.

use serde::{Deserialize, Serialize};
use tagfast_store::{Receipt, Verdict};
use utoipa::ToSchema;

use super::batch::DoneItem;
use super::constant::Fixed;
use crate::problem::ProblemBody;

/// What became of a write.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VerdictName {
    /// It is in the current history.
    Kept,
    /// A failover lost it and a repair brought it back.
    Repaired,
    /// A failover lost it for good; `reason` says why.
    Lost,
    /// The service cannot tell, or not yet; `reason` says why.
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
    /// What became of it.
    verdict: VerdictName,
    /// Why. Of `repaired`: `superseded` (later writes had decided everything that it decided),
    /// `event` (its published event brought it back). Of `lost`: `unreported` (no process that knew
    /// of it was left), `limit` (the content had no room for its tag), `conflict` (a conditional
    /// write decided otherwise), `late` (it was reported after the repair was closed). Of
    /// `unknown`: `pending` (the repair goes on: ask again), `expired` (it is too long ago),
    /// `restored` (a backup was restored).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    reason: Option<&'static str>,
    /// The write's id.
    write_id: String,
    /// The logical shard of its content.
    #[schema(maximum = 63)]
    shard: u8,
    /// The epoch in which it was acknowledged.
    epoch: String,
}

impl VerdictBody {
    pub(crate) fn new(receipt: &Receipt, verdict: Verdict) -> Self {
        Self {
            verdict: verdict.into(),
            reason: verdict.reason(),
            write_id: receipt.write_id.to_string(),
            shard: receipt.shard.number(),
            epoch: receipt.position.epoch.to_string(),
        }
    }
}

/// Receipts to check.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"receipts": [
    "IQAAEQAAAAAAAAS3AZClwnoLfD6dXytsHo9KcAAAAAAAAAS3AAAAAAAABLcBkKXCegx9QaOynH1eb4qRmtptmVFNsMUvHJAKr8wbXA",
]}))]
pub(crate) struct CheckReceipts {
    /// The `receipt` of the answer of each write; the same one may come twice.
    #[schema(min_items = 0, max_items = 500)]
    pub(crate) receipts: Vec<String>,
}

/// The verdict on one receipt of a batch, or a problem; `ok` tells which.
#[derive(Serialize, ToSchema)]
#[schema(as = CheckedReceipt)]
#[serde(untagged)]
pub(crate) enum CheckedReceipt<'a> {
    Done(DoneItem<VerdictBody>),
    #[schema(value_type = FailedReceipt<'static>)]
    Failed(Box<FailedReceipt<'a>>),
}

/// A receipt that could not be checked; the others are not affected.
#[derive(Serialize, ToSchema)]
#[schema(as = FailedReceipt)]
pub(crate) struct FailedReceipt<'a> {
    #[schema(inline)]
    ok: Fixed<false>,
    problem: ProblemBody<'a>,
}

impl<'a> CheckedReceipt<'a> {
    pub(crate) fn done(body: VerdictBody) -> Self {
        Self::Done(DoneItem::new(body))
    }

    pub(crate) fn failed(problem: ProblemBody<'a>) -> Self {
        Self::Failed(Box::new(FailedReceipt { ok: Fixed, problem }))
    }
}

/// The verdicts on the receipts of a batch, in their order.
#[derive(Serialize, ToSchema)]
#[schema(as = CheckedReceipts)]
pub(crate) struct CheckedReceiptsBody<'a> {
    pub(crate) results: Vec<CheckedReceipt<'a>>,
}
