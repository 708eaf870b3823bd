//! The state of the clusters.

use axum::response::Response;

use crate::problem::{Problem, not_in_this_mode};
use crate::request::Admin;
use crate::wire::clusters::{ClusterBody, ClustersBody};
use crate::wire::response::json;

/// The state of the clusters
///
/// As the process that answers sees them; ask each. The answer comes from memory, also while a
/// cluster is down, and every sample has its time. A primary is named under its epoch alone: two
/// never are, whatever the nodes say of themselves.
#[utoipa::path(
    get,
    path = "/v1/clusters",
    operation_id = "listClusters",
    tag = "operations",
    responses((status = 200, description = "The clusters", body = ClustersBody))
)]
pub(crate) async fn list(Admin(request, _): Admin) -> Result<Response, Problem> {
    let clusters = request.services().clusters.as_ref();
    let clusters = clusters.ok_or_else(|| not_in_this_mode("clusters"))?.clusters();
    Ok(json(&ClustersBody {
        items: clusters.into_iter().map(ClusterBody::from).collect(),
        next_cursor: None,
    }))
}
