//! Closed sets of words that the composition root writes as text: they are here for the OpenAPI
//! document alone.

use utoipa::ToSchema;

/// Where contents are kept.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the composition root writes the word; this lists the words")]
pub(crate) enum ModeName {
    /// In files of this machine.
    Embedded,
    /// On PostgreSQL clusters.
    Postgres,
}

/// A long operation.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the composition root writes the word; this lists the words")]
pub(crate) enum OperationName {
    /// Rebuilds the search index.
    Reindex,
    /// Compares the counts with the shards.
    Recount,
}

/// What a consumer is doing.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the composition root writes the word; this lists the words")]
pub(crate) enum ConsumerStateName {
    /// It joins its group.
    Starting,
    /// It copies the shards.
    Rebuilding,
    /// It consumes.
    Running,
    /// It waits for the sink or the bus to work again.
    Paused,
    /// It has ended.
    Stopped,
}
