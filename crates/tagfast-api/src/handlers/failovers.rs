//! Failovers: what each did to acknowledged writes.
//!
//! Callers without the scope `admin` see when a failover was and what became of the writes of their
//! own tenant; counts over all tenants and names of machines are for operators.

use std::sync::Arc;

use axum::response::Response;
use serde::Deserialize;
use tagfast_domain::{EpochId, EpochOrdinal, TenantId, WriteId};
use tagfast_store::{
    FailoverCursor, FailoverReader, FailoverReport, FailoverWritesRequest, StoreError, VerdictKind,
};
use utoipa::IntoParams;

use super::lists::{bad_cursor, cut_page, open_cursor, seal_cursor, visible_tenant};
use crate::auth::Scope;
use crate::params::PageItems;
use crate::problem::{Code, Problem, not_in_this_mode};
use crate::request::{ApiRequest, Read};
use crate::wire::failovers::{
    FailoverBody, FailoverReportBody, FailoverWritesBody, FailoversBody, ListedVerdict,
};
use crate::wire::response::json;

/// First bytes of a cursor of the list of failovers. Their ninth byte is no byte of UTF-8 and no
/// other list's, so that no list takes the cursor of a different one.
const FAILOVERS_CURSOR: &[u8] = b"failover\xFEl";
/// First bytes of a cursor of the list of a failover's writes.
const WRITES_CURSOR: &[u8] = b"failover\xFEw";

fn reader(request: &ApiRequest) -> Result<&Arc<dyn FailoverReader>, Problem> {
    request.services().failovers.as_ref().ok_or_else(|| not_in_this_mode("failovers"))
}

fn of_read(error: StoreError) -> Problem {
    Problem::from(error).of_read()
}

fn seal(request: &ApiRequest, list: &[u8], place: &[u8]) -> String {
    seal_cursor(request, &[list, place].concat())
}

/// The place in a list that a cursor names.
fn open<const BYTES: usize>(
    request: &ApiRequest,
    list: &[u8],
    sealed: &str,
) -> Result<[u8; BYTES], Problem> {
    let body = open_cursor(request, sealed)?;
    let place = body.strip_prefix(list).and_then(|place| place.try_into().ok());
    place.ok_or_else(bad_cursor)
}

fn seal_failover(request: &ApiRequest, at: FailoverCursor) -> String {
    seal(request, FAILOVERS_CURSOR, &[at.ordinal.0.to_be_bytes().as_slice(), &at.epoch.0].concat())
}

fn open_failover(request: &ApiRequest, sealed: &str) -> Result<FailoverCursor, Problem> {
    let place: [u8; 24] = open(request, FAILOVERS_CURSOR, sealed)?;
    let (ordinal, epoch) = place.split_first_chunk::<8>().ok_or_else(bad_cursor)?;
    Ok(FailoverCursor {
        ordinal: EpochOrdinal(u64::from_be_bytes(*ordinal)),
        epoch: EpochId(epoch.try_into().map_err(|_| bad_cursor())?),
    })
}

/// What a page of a failover's writes is bound to.
fn writes_list(epoch: EpochId, verdict: Option<VerdictKind>, tenant: Option<&TenantId>) -> Vec<u8> {
    let verdict = match verdict {
        None => 0,
        Some(VerdictKind::Repaired) => 1,
        Some(VerdictKind::Lost) => 2,
    };
    let tenant = tenant.map(TenantId::as_str).unwrap_or_default();
    [WRITES_CURSOR, &epoch.0, &[verdict], tenant.as_bytes(), &[0]].concat()
}

/// The failover that a path names.
async fn failover(request: &ApiRequest) -> Result<FailoverReport, Problem> {
    let not_found = || {
        Problem::new(
            Code::FailoverNotFound,
            "no failover began an epoch with this id; it has 32 hexadecimal digits",
        )
    };
    let reader = reader(request)?;
    let id = request.path_segment(3)?;
    let epoch = hex::decode(&*id).ok().and_then(|bytes| bytes.try_into().ok());
    let epoch = EpochId(epoch.ok_or_else(not_found)?);
    reader.failover(epoch).await.map_err(of_read)?.ok_or_else(not_found)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// Largest number of failovers.
    #[serde(default)]
    #[param(
        value_type = Option<u32>, required = false, minimum = 1, maximum = 500, example = 50
    )]
    limit: PageItems<50, 500>,
    /// `next_cursor` of the previous page.
    #[param(required = false)]
    cursor: Option<String>,
}

/// Failovers of the clusters
///
/// Newest first. Counts and names of machines only with the scope `admin`.
#[utoipa::path(
    get,
    path = "/v1/failovers",
    operation_id = "listFailovers",
    tag = "operations",
    params(ListParams),
    responses((
        status = 200, description = "A page of failovers", body = FailoversBody<'static>,
    ))
)]
pub(crate) async fn list(Read(request, params): Read<ListParams>) -> Result<Response, Problem> {
    let reader = reader(&request)?;
    let limit = params.limit.checked()?;
    let before = params.cursor.map(|sealed| open_failover(&request, &sealed)).transpose()?;
    // One more than the page, to know whether it is the last one.
    let mut reports = reader.failovers(before, limit + 1).await.map_err(of_read)?;
    let last = cut_page(&mut reports, limit);
    let next_cursor = last.map(|last| seal_failover(&request, last.cursor()));
    let is_admin = request.caller.may(Scope::Admin);
    let items = reports.iter().map(|report| FailoverBody::new(report, is_admin)).collect();
    Ok(json(&FailoversBody { items, next_cursor }))
}

/// One failover
///
/// With what each process reported of it, and the times of its phases. Counts and names of machines
/// only with the scope `admin`.
#[utoipa::path(
    get,
    path = "/v1/failovers/{epoch}",
    operation_id = "getFailover",
    tag = "operations",
    params((
        "epoch" = String, Path,
        description = "The epoch that the failover began.",
        pattern = "^[0-9a-f]{32}$", min_length = 32, max_length = 32,
        example = "9ec37e1a5c0b4f6d8a21d3e4f5061728",
    )),
    responses((
        status = 200, description = "The failover", body = FailoverReportBody<'static>,
    ))
)]
pub(crate) async fn show(Read(request, _): Read) -> Result<Response, Problem> {
    let report = failover(&request).await?;
    Ok(json(&FailoverReportBody::new(&report, request.caller.may(Scope::Admin))))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct WritesParams {
    /// Their verdict; without it all that were not simply kept.
    #[param(value_type = ListedVerdict, inline, required = false, example = "lost")]
    verdict: Option<ListedVerdict>,
    /// The tenant; a tenant other than the caller's needs the scope `admin`.
    #[param(required = false)]
    tenant: Option<String>,
    /// Largest number of writes.
    #[serde(default)]
    #[param(
        value_type = Option<u32>, required = false, minimum = 1, maximum = 500, example = 50
    )]
    limit: PageItems<50, 500>,
    /// `next_cursor` of the previous page.
    #[param(required = false)]
    cursor: Option<String>,
}

/// The writes that a failover did not simply keep
///
/// In the order of their ids; remembered for seven days. Without the scope `admin` only those of
/// the caller's tenant.
#[utoipa::path(
    get,
    path = "/v1/failovers/{epoch}/writes",
    operation_id = "listFailoverWrites",
    tag = "operations",
    params(
        (
            "epoch" = String, Path,
            description = "The epoch that the failover began.",
            pattern = "^[0-9a-f]{32}$", min_length = 32, max_length = 32,
            example = "9ec37e1a5c0b4f6d8a21d3e4f5061728",
        ),
        WritesParams,
    ),
    responses((
        status = 200, description = "A page of writes", body = FailoverWritesBody<'static>,
    ))
)]
pub(crate) async fn writes(Read(request, params): Read<WritesParams>) -> Result<Response, Problem> {
    let reader = reader(&request)?;
    let limit = params.limit.checked()?;
    let wanted = params.tenant.map(|wanted| TenantId::parse(&wanted)).transpose()?;
    let tenant = visible_tenant(&request, request.tenant().clone(), wanted)?;
    let verdict = params.verdict.map(VerdictKind::from);
    let epoch = failover(&request).await?.epoch;
    let list = writes_list(epoch, verdict, tenant.as_ref());
    let after = params.cursor.map(|sealed| open(&request, &list, &sealed).map(WriteId));
    let wanted = FailoverWritesRequest {
        epoch,
        verdict,
        tenant: tenant.as_ref(),
        after: after.transpose()?,
        // One more than the page, to know whether it is the last one.
        limit: limit + 1,
    };
    let mut writes = reader.failover_writes(&wanted).await.map_err(of_read)?;
    let last = cut_page(&mut writes, limit);
    let next_cursor = last.map(|last| seal(&request, &list, &last.write_id.0));
    Ok(json(&FailoverWritesBody { items: writes.iter().map(Into::into).collect(), next_cursor }))
}
