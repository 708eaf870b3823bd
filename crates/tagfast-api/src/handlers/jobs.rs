//! Jobs: replays of dead letters in progress. `POST /v1/dead-letters:replay` starts one.

use axum::response::Response;

use super::dead_letters::{dead_letter_store, not_found};
use crate::problem::Problem;
use crate::request::Admin;
use crate::wire::jobs::ReplayJobBody;
use crate::wire::response::json;

/// The progress of a replay job
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    operation_id = "getJob",
    tag = "operations",
    params((
        "id" = String, Path,
        description = "The job's `id`.",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64,
        example = "0190a5c2-7a0b-7c3e-9d5f-2b6c1e8f4a70",
    )),
    responses((status = 200, description = "The replay job", body = ReplayJobBody))
)]
pub(crate) async fn job(Admin(request, _): Admin) -> Result<Response, Problem> {
    let found = dead_letter_store(&request)?.job(&request.path_segment(3)?).await?;
    let job = found.ok_or_else(|| not_found("there is no replay job with this id"))?;
    Ok(json(&ReplayJobBody::from(job)))
}
