//! Receipts of writes.

use axum::response::Response;
use tagfast_store::{Receipt, StoreError, Verdict};

use super::batch::{check_size, no_answer};
use crate::problem::{Code, Problem};
use crate::request::{ApiRequest, Read};
use crate::wire::receipts::{CheckReceipts, CheckedReceipt, CheckedReceiptsBody, VerdictBody};
use crate::wire::response::json;

/// Opens a receipt of the caller's tenant.
fn open(request: &ApiRequest, sealed: &str) -> Result<Receipt, Problem> {
    Receipt::open(&request.services().sealer, request.tenant(), sealed)
        .map_err(|e| Problem::new(Code::BadToken, format!("receipt: {e}")))
}

fn of_read(error: StoreError) -> Problem {
    Problem::from(error).of_read()
}

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
    let receipt = open(&request, &request.path_segment(3)?)?;
    let verdict = request.services().store.verdict(&receipt).await.map_err(of_read)?;
    Ok(json(&VerdictBody::new(&receipt, verdict)))
}

/// The verdicts on up to 500 writes
///
/// One result per receipt, in the order of the receipts. A receipt that is damaged or belongs to a
/// different tenant has a problem, and so has one whose cluster does not answer; the others are not
/// affected.
#[utoipa::path(
    post,
    path = "/v1/receipts:check",
    operation_id = "checkReceipts",
    tag = "operations",
    request_body = CheckReceipts,
    responses((
        status = 200, description = "One result per receipt",
        body = CheckedReceiptsBody<'static>,
    ))
)]
pub(crate) async fn check(Read(mut request, _): Read) -> Result<Response, Problem> {
    let batch: CheckReceipts = request.json().await?;
    check_size(&request, batch.receipts.len())?;
    let opened: Vec<_> = batch.receipts.iter().map(|sealed| open(&request, sealed)).collect();
    let receipts: Vec<Receipt> = opened.iter().flatten().copied().collect();
    let mut verdicts = request.services().store.verdicts(&receipts).await.into_iter();
    let checked = opened.into_iter().map(|opened| {
        let receipt = opened?;
        let verdict = verdicts.next().ok_or_else(no_answer)?.map_err(of_read)?;
        Ok((receipt, verdict))
    });
    let checked: Vec<Result<(Receipt, Verdict), Problem>> = checked.collect();
    let trace = request.trace_id();
    let results = checked.iter().map(|checked| match checked {
        Ok((receipt, verdict)) => CheckedReceipt::done(VerdictBody::new(receipt, *verdict)),
        Err(problem) => CheckedReceipt::failed(problem.body(&trace)),
    });
    Ok(json(&CheckedReceiptsBody { results: results.collect() }))
}
