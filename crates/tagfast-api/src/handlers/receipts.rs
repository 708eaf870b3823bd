//! Receipts of writes.

use axum::response::Response;
use tagfast_store::Receipt;

use crate::problem::{Code, Problem, not_in_this_mode};
use crate::request::Read;
use crate::wire::receipts::VerdictBody;
use crate::wire::response::json;

/// The verdict on a write
///
/// A receipt that the service can no longer place is answered `unknown`, with the reason.
#[utoipa::path(
    get,
    path = "/v1/receipts/{token}",
    operation_id = "getReceipt",
    tag = "operations",
    params((
        "token" = String, Path,
        description = "The `receipt` of a write's answer.",
        pattern = "^[A-Za-z0-9_-]+$", min_length = 1, max_length = 4096,
        example = "IQAAEQAAAAAAAAS3AZClwnoLfD6dXytsHo9KcAAAAAAAAAS3AAAAAAAABLcBkKXCegx9QaOynH1eb4qRmtptmVFNsMUvHJAKr8wbXA",
    )),
    responses((status = 200, description = "The verdict", body = VerdictBody))
)]
pub(crate) async fn receipt(Read(request, _): Read) -> Result<Response, Problem> {
    let services = request.services();
    let receipt = Receipt::open(&services.sealer, request.tenant(), &request.path_segment(3)?)
        .map_err(|e| Problem::new(Code::BadToken, format!("receipt: {e}")))?;
    if !services.receipts {
        // Lost writes are not detected in this mode: `kept` could be wrong.
        return Err(not_in_this_mode("looking receipts up"));
    }
    let verdict = services.store.verdict(&receipt).await?;
    Ok(json(&VerdictBody {
        verdict: verdict.into(),
        reason: verdict.reason(),
        write_id: receipt.write_id.to_string(),
        shard: receipt.shard.number(),
        epoch: receipt.position.epoch.to_string(),
    }))
}
