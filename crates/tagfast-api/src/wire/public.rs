//! Bodies that need no caller: index, health and readiness.

use serde::Serialize;
use utoipa::ToSchema;

use super::admin::PartProblemBody;
use super::meta::DegradedBody;

/// The service and where to go from here.
#[derive(Serialize, ToSchema)]
#[schema(as = Index)]
pub(crate) struct IndexBody {
    /// `tagfast`.
    #[schema(value_type = String, pattern = "^tagfast$")]
    pub(crate) name: &'static str,
    /// The program's version.
    #[schema(value_type = String)]
    pub(crate) version: &'static str,
    pub(crate) links: IndexLinks,
}

/// Paths of this service.
#[derive(Serialize, ToSchema)]
#[schema(as = IndexLinks)]
pub(crate) struct IndexLinks {
    /// The reference of all calls, for people.
    #[schema(value_type = String)]
    pub(crate) docs: &'static str,
    /// The reference of all calls, OpenAPI 3.1.
    #[schema(value_type = String)]
    pub(crate) openapi: &'static str,
    /// Whether the process answers.
    #[schema(value_type = String)]
    pub(crate) health: &'static str,
    /// Whether the service can do its work.
    #[schema(value_type = String)]
    pub(crate) ready: &'static str,
    /// Metrics in Prometheus' text format.
    #[schema(value_type = String)]
    pub(crate) metrics: &'static str,
    /// The status of all parts (scope `admin`).
    #[schema(value_type = String)]
    pub(crate) status: &'static str,
}

/// The process answers.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
pub(crate) struct HealthBody {
    #[schema(value_type = String, pattern = "^ok$")]
    pub(crate) status: &'static str,
}

/// Whether the service can do its work.
#[derive(Serialize, ToSchema)]
#[schema(as = Ready)]
pub(crate) struct ReadyBody {
    pub(crate) ready: bool,
    /// Parts that are not ready, and why.
    pub(crate) not_ready: Vec<PartProblemBody>,
    /// Degraded features; the service is ready nevertheless.
    pub(crate) degraded: Vec<DegradedBody>,
}
