//! Bodies of receipts.

use serde::Serialize;
use utoipa::ToSchema;

/// The verdict on a write.
#[derive(Serialize, ToSchema)]
#[schema(as = Verdict)]
pub(crate) struct VerdictBody {
    /// `kept` or `unknown`; `repaired` and `lost` are reserved.
    #[schema(value_type = String, pattern = "^(kept|repaired|lost|unknown)$")]
    pub(crate) verdict: &'static str,
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
