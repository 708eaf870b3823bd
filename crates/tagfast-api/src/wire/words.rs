//! Closed sets of words that other crates write as text: they are here for the OpenAPI
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

/// What is done with writes to bound the loss of a failover.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the store writes the word; this lists the words")]
pub(crate) enum GuardStateName {
    /// They are acknowledged at once.
    Open,
    /// The same, in small groups.
    Throttled,
    /// A write is acknowledged only when a replica has it.
    Holding,
    /// New writes are refused before they reach the database.
    Refusing,
}

/// Calls of a cluster that fail together.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the store writes the word; this lists the words")]
pub(crate) enum CallKindName {
    Writes,
    Reads,
}
