//! Bodies that need no caller: index, health and readiness.

use serde::Serialize;
use utoipa::ToSchema;

use super::admin::PartProblemBody;
use super::meta::DegradedBody;

/// The service and where to go from here.
#[derive(Serialize, ToSchema)]
#[schema(as = Index)]
pub(crate) struct IndexBody {
    pub(crate) name: ServiceName,
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
    pub(crate) status: HealthStatus,
}

/// The name of the service.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ServiceName {
    Tagfast,
}

/// The health of a process that answers.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HealthStatus {
    Ok,
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
