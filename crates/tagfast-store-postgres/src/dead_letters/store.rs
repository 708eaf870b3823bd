//! The dead-letter store of a cluster: a projection of the dead-letter topics in the schema
//! `tagfast_control` of the cluster that owns shard 0, next to the replay jobs and the audit log.
//!
//! The topics are the source of truth for parked records; only this store knows their states.
//!
//! How it fails: while that cluster has no primary, nothing is listed or replayed. A failover that
//! loses the last second makes dead letters open again and reads the ends of the topics once more;
//! replaying a dead letter twice changes nothing. What a replaced primary accepts in its last
//! moments is lost in the same way, so no leadership proof is required here.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::UnixMillis;
use tagfast_events::dead_letters::{DEAD_LETTERS_PAGE_MAX, IngestTarget, ReadOffsets};
use tagfast_events::{
    AuditCursor, AuditEntry, AuditPage, AutoReplayPolicy, ConsumerGroup, DeadLetter,
    DeadLetterCursor, DeadLetterFilter, DeadLetterPage, DeadLetterStore, DeadLetterStoreError,
    GroupDeadLetters, NewReplayJob, Partition, ReplayJob, ReplayResult, StoredDeadLetter,
};
use tokio_postgres::Row;

use super::leader_session::LeaderSession;
use super::rows::{COLUMNS, JOB_COLUMNS, damaged, job_of, stored};
use super::sql::{SqlValues, as_params, bind, condition, without_nul};
use super::statements;
use crate::connect::within;
use crate::options::limit;
use crate::store::PostgresStore;

/// The dead-letter store.
pub struct PostgresDeadLetters {
    session: LeaderSession,
}

/// Runs one of [`statements`] on the session.
macro_rules! run {
    ($self:ident, $what:literal, $statement:ident($($argument:expr),*)) => {{
        let mut session = $self.session.acquire().await?;
        let running = statements::$statement(session.client()?, $($argument),*);
        let result = within($what, limit::COMMIT_TIMEOUT, running).await;
        session.finish(result)
    }};
}

impl PostgresDeadLetters {
    /// The dead letters of a store's clusters. Opens no connection yet.
    pub fn new(store: Arc<PostgresStore>) -> Self {
        Self { session: LeaderSession::new(store) }
    }

    async fn query(&self, sql: &str, values: &SqlValues) -> Result<Vec<Row>, DeadLetterStoreError> {
        let mut session = self.session.acquire().await?;
        let params = as_params(values);
        let rows = session.client()?.query(sql, &params);
        let rows = within("a query of dead letters", limit::COMMIT_TIMEOUT, rows).await;
        session.finish(rows)
    }

    /// How far a group's dead-letter topic is ingested.
    ///
    /// # Errors
    ///
    /// [`DeadLetterStoreError::Unavailable`].
    pub async fn ingested_through(
        &self,
        group: ConsumerGroup,
    ) -> Result<ReadOffsets, DeadLetterStoreError> {
        let sql = "SELECT part, next FROM tagfast_control.dead_letter_ingest WHERE grp = $1";
        let rows = self.query(sql, &vec![Box::new(group.0)]).await?;
        let offset = |row: &Row| {
            let partition =
                u16::try_from(row.get::<_, i32>(0)).map_err(|_| damaged("partition"))?;
            Ok((Partition(partition), row.get::<_, i64>(1).cast_unsigned()))
        };
        rows.iter().map(offset).collect()
    }

    /// Stores dead letters of a group's topic and how far it was read, in one transaction. A dead
    /// letter that is already stored stays as it is.
    ///
    /// # Errors
    ///
    /// [`DeadLetterStoreError::Unavailable`].
    pub async fn ingest(
        &self,
        group: ConsumerGroup,
        dead_letters: &[DeadLetter],
        offsets: &BTreeMap<Partition, u64>,
    ) -> Result<(), DeadLetterStoreError> {
        run!(self, "ingesting dead letters", ingest(group, dead_letters, offsets))
    }
}

#[async_trait]
impl IngestTarget for PostgresDeadLetters {
    async fn ingested_through(
        &self,
        group: ConsumerGroup,
    ) -> Result<ReadOffsets, DeadLetterStoreError> {
        Self::ingested_through(self, group).await
    }

    async fn ingest(
        &self,
        group: ConsumerGroup,
        dead_letters: &[DeadLetter],
        offsets: &ReadOffsets,
    ) -> Result<(), DeadLetterStoreError> {
        Self::ingest(self, group, dead_letters, offsets).await
    }
}

fn row_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[async_trait]
impl DeadLetterStore for PostgresDeadLetters {
    async fn list(
        &self,
        filter: &DeadLetterFilter,
        after: Option<&DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, DeadLetterStoreError> {
        let limit = limit.clamp(1, DEAD_LETTERS_PAGE_MAX);
        let mut values = SqlValues::new();
        let mut matching = condition("true", filter, &mut values);
        if let Some(after) = after {
            let at = bind(&mut values, after.at);
            let id = bind(&mut values, without_nul(&after.id));
            matching.push_str(&format!(" AND (last_failed_at, id) < ({at}, {id})"));
        }
        let sql = format!(
            "SELECT {COLUMNS} FROM tagfast_control.dead_letter WHERE {matching}
             ORDER BY last_failed_at DESC, id DESC LIMIT {}",
            limit + 1
        );
        let found = self.query(&sql, &values).await?;
        Ok(DeadLetterPage::of(found.iter().map(stored).collect::<Result<_, _>>()?, limit))
    }

    async fn open_counts(
        &self,
        policy: AutoReplayPolicy,
    ) -> Result<Vec<GroupDeadLetters>, DeadLetterStoreError> {
        let sql = "SELECT grp, count(*),
                count(*) FILTER (WHERE class = 'poison' OR replays >= $1), min(first_failed_at)
            FROM tagfast_control.dead_letter WHERE state = 'open' GROUP BY grp";
        let counted = self.query(sql, &vec![Box::new(policy.times.cast_signed())]).await?;
        let of_group = |group: ConsumerGroup| {
            let row = counted.iter().find(|row| row.get::<_, &str>(0) == group.0);
            let number =
                |column: usize| row.map_or(0, |row| row.get::<_, i64>(column).unsigned_abs());
            GroupDeadLetters {
                group,
                open: number(1),
                needs_attention: number(2),
                oldest: row.map(|row| row.get(3)),
            }
        };
        Ok(ConsumerGroup::ALL.map(of_group).into())
    }

    async fn create_job(
        &self,
        job: &NewReplayJob,
        filter: &DeadLetterFilter,
    ) -> Result<ReplayJob, DeadLetterStoreError> {
        let filter = DeadLetterFilter { state: None, ..filter.clone() };
        run!(self, "creating a replay job", create_job(job, &filter)).map(|row| job_of(&row))
    }

    async fn job(&self, id: &str) -> Result<Option<ReplayJob>, DeadLetterStoreError> {
        let sql = format!("SELECT {JOB_COLUMNS} FROM tagfast_control.replay_job WHERE id = $1");
        Ok(self.query(&sql, &vec![Box::new(without_nul(id))]).await?.first().map(job_of))
    }

    async fn take_batch(
        &self,
        group: ConsumerGroup,
        partitions: &[Partition],
        limit: usize,
    ) -> Result<Option<(ReplayJob, Vec<StoredDeadLetter>)>, DeadLetterStoreError> {
        let partitions: Vec<i32> =
            partitions.iter().map(|partition| i32::from(partition.0)).collect();
        let limit = row_limit(limit);
        let taken =
            run!(self, "taking dead letters of a job", take_batch(group, &partitions, limit))?;
        let Some((job, dead_letters)) = taken else { return Ok(None) };
        Ok(Some((job_of(&job), dead_letters.iter().map(stored).collect::<Result<_, _>>()?)))
    }

    async fn complete(
        &self,
        job: &ReplayJob,
        results: &[ReplayResult],
        at: UnixMillis,
    ) -> Result<(), DeadLetterStoreError> {
        run!(self, "storing replay outcomes", complete(job, results, at))
    }

    async fn discard(
        &self,
        filter: &DeadLetterFilter,
        reason: &str,
        at: UnixMillis,
    ) -> Result<u64, DeadLetterStoreError> {
        let filter = DeadLetterFilter { state: None, ..filter.clone() };
        run!(self, "discarding dead letters", discard(&filter, reason, at))
    }

    async fn audit(&self, entry: &AuditEntry) -> Result<(), DeadLetterStoreError> {
        let sql = "INSERT INTO tagfast_control.dead_letter_audit
            (at, actor, action, detail, dead_letters) VALUES ($1, $2, $3, $4, $5)";
        let values: SqlValues = vec![
            Box::new(entry.at),
            Box::new(without_nul(&entry.actor)),
            Box::new(entry.action.clone()),
            Box::new(without_nul(&entry.detail)),
            Box::new(entry.dead_letters.cast_signed()),
        ];
        self.query(sql, &values).await.map(drop)
    }

    async fn audit_log(
        &self,
        after: AuditCursor,
        limit: usize,
    ) -> Result<AuditPage, DeadLetterStoreError> {
        let sql = "SELECT at, actor, action, detail, dead_letters, id
            FROM tagfast_control.dead_letter_audit WHERE (at, id) < ($1, $2)
            ORDER BY at DESC, id DESC LIMIT $3";
        let limit = limit.clamp(1, DEAD_LETTERS_PAGE_MAX);
        let values: SqlValues =
            vec![Box::new(after.at), Box::new(after.id), Box::new(row_limit(limit + 1))];
        let found = self.query(sql, &values).await?;
        let numbered = |row: &Row| {
            let entry = AuditEntry {
                at: row.get(0),
                actor: row.get(1),
                action: row.get(2),
                detail: row.get(3),
                dead_letters: row.get::<_, i64>(4).unsigned_abs(),
            };
            (row.get(5), entry)
        };
        Ok(AuditPage::of(found.iter().map(numbered).collect(), limit))
    }

    async fn try_lead(&self) -> Result<bool, DeadLetterStoreError> {
        self.session.acquire().await?.try_lead().await
    }

    async fn purge_closed_before(&self, before: UnixMillis) -> Result<(), DeadLetterStoreError> {
        run!(self, "purging dead letters", purge_closed_before(before))
    }
}
