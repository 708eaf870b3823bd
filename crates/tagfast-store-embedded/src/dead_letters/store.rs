//! The dead-letter store of embedded mode: a table in each of the store's files, next to the events
//! of the same contents.
//!
//! Each file holds its own dead letters and its own part of a replay job; calls ask all files and
//! combine the answers.
//!
//! How it fails: a crash between two files of a job leaves a job with fewer dead letters; the next
//! job finds the others open.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, ToSql, params, params_from_iter};
use tagfast_domain::UnixMillis;
use tagfast_events::dead_letters::DEAD_LETTERS_PAGE_MAX;
use tagfast_events::dead_letters::transitions::{Action, JobCounter};
use tagfast_events::{
    AuditCursor, AuditEntry, AuditPage, AutoReplayPolicy, ConsumerGroup, DeadLetterCursor,
    DeadLetterFilter, DeadLetterPage, DeadLetterStore, DeadLetterStoreError, GroupDeadLetters,
    NewReplayJob, Partition, ReplayJob, ReplayOutcome, ReplayResult, StoredDeadLetter,
};
use tagfast_resilience::task;

use super::rows::{COLUMNS, JOB_COLUMNS, job_of, stored};
use super::sql::{assignments, condition, guard};
use crate::file::StoreFile;

/// Index of the file that holds the audit log.
const AUDIT_FILE: usize = 0;

fn list(
    conn: &Connection,
    partition: Partition,
    filter: &DeadLetterFilter,
    after: Option<&DeadLetterCursor>,
    limit: usize,
) -> rusqlite::Result<Vec<StoredDeadLetter>> {
    let (mut sql, mut values) = condition("1 = 1", filter);
    if let Some(after) = after {
        sql.push_str(" AND (last_failed_at, id) < (?, ?)");
        values.extend([Value::Integer(after.at), Value::Text(after.id.clone())]);
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM dead_letter WHERE {sql}
         ORDER BY last_failed_at DESC, id DESC LIMIT {limit}"
    );
    let mut select = conn.prepare_cached(&sql)?;
    select.query_map(params_from_iter(values), |row| stored(row, partition))?.collect()
}

fn create_job(
    conn: &Connection,
    job: &NewReplayJob,
    filter: &DeadLetterFilter,
) -> rusqlite::Result<ReplayJob> {
    let (condition_sql, values) = condition("1 = 1", filter);
    let (closed, busy): (i64, i64) = conn
        .prepare_cached(&format!(
            "SELECT count(*) FILTER (WHERE state <> 'open'),
                 count(*) FILTER (WHERE state = 'open' AND job IS NOT NULL)
             FROM dead_letter WHERE {condition_sql}"
        ))?
        .query_row(params_from_iter(values), |row| Ok((row.get(0)?, row.get(1)?)))?;
    let assign = Action::Assign.transition();
    let (set, mut values) = assignments(&assign, Some(&job.id), job.at);
    let (condition_sql, filter_values) = condition(&guard(&assign), filter);
    values.extend(filter_values);
    let assigned = conn
        .prepare_cached(&format!("UPDATE dead_letter SET {set} WHERE {condition_sql}"))?
        .execute(params_from_iter(values))?;
    conn.prepare_cached(
        "INSERT INTO replay_job (id, dry_run, rate, at, dead_letters, closed, busy)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![job.id, job.dry_run, job.rate, job.at, assigned as i64, closed, busy])?;
    conn.prepare_cached(&format!("SELECT {JOB_COLUMNS} FROM replay_job WHERE id = ?1"))?
        .query_row([&job.id], job_of)
}

fn complete(
    conn: &Connection,
    job: &ReplayJob,
    results: &[ReplayResult],
    at: UnixMillis,
) -> rusqlite::Result<()> {
    let mut counts = [0i64; JobCounter::ALL.len()];
    for ReplayResult { id, outcome } in results {
        let action = Action::of_outcome(outcome, job.dry_run);
        let Some((action, counter)) = action.zip(JobCounter::of_outcome(outcome)) else { continue };
        let transition = action.transition();
        let (mut set, mut values) = assignments(&transition, None, at);
        if let (true, ReplayOutcome::Failed { code, message }) =
            (transition.counts_failure, outcome)
        {
            set.push_str(", code = ?, message = ?");
            values.extend([Value::Text(code.clone()), Value::Text(message.clone())]);
        }
        values.extend([Value::Text(job.id.clone()), Value::Text(id.clone())]);
        let guard = guard(&transition);
        let changed = conn
            .prepare_cached(&format!("UPDATE dead_letter SET {set} WHERE {guard} AND id = ?"))?
            .execute(params_from_iter(values))?;
        counts[counter as usize] += changed as i64;
    }
    conn.prepare_cached(
        "UPDATE replay_job SET applied = applied + ?2, superseded = superseded + ?3,
             failed = failed + ?4
         WHERE id = ?1",
    )?
    .execute(params![job.id, counts[0], counts[1], counts[2]])?;
    Ok(())
}

fn discard(
    conn: &Connection,
    filter: &DeadLetterFilter,
    reason: &str,
    at: UnixMillis,
) -> rusqlite::Result<u64> {
    let transition = Action::Discard.transition();
    let (condition_sql, filter_values) = condition(&guard(&transition), filter);
    conn.prepare_cached(&format!(
        "UPDATE replay_job SET dropped = dropped + taken.n FROM
             (SELECT job, count(*) AS n FROM dead_letter
              WHERE job IS NOT NULL AND {condition_sql} GROUP BY job) AS taken
         WHERE replay_job.id = taken.job"
    ))?
    .execute(params_from_iter(filter_values.clone()))?;
    let (set, mut values) = assignments(&transition, None, at);
    values.push(Value::Text(reason.to_owned()));
    values.extend(filter_values);
    let discarded = conn
        .prepare_cached(&format!("UPDATE dead_letter SET {set}, reason = ? WHERE {condition_sql}"))?
        .execute(params_from_iter(values))?;
    Ok(discarded as u64)
}

/// Takes dead letters of the oldest unfinished job of a file; `None` if no job has any.
fn take_batch(
    conn: &Connection,
    partition: Partition,
    group: ConsumerGroup,
    limit: usize,
) -> rusqlite::Result<Option<(ReplayJob, Vec<StoredDeadLetter>)>> {
    let mut select = conn.prepare_cached(&format!(
        "SELECT {JOB_COLUMNS} FROM replay_job
         WHERE id IN (SELECT job FROM dead_letter WHERE job IS NOT NULL AND grp = ?1)
         ORDER BY at, id LIMIT 1"
    ))?;
    let oldest = select.query_map([group.0], job_of)?.next().transpose()?;
    let Some(job) = oldest else { return Ok(None) };
    let mut select = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM dead_letter WHERE job = ?1 AND grp = ?2 AND state = 'open'
         ORDER BY pos LIMIT ?3"
    ))?;
    let read = |row: &Row<'_>| stored(row, partition);
    let rows = select.query_map(params![job.id, group.0, limit as i64], read)?;
    Ok(Some((job, rows.collect::<Result<Vec<_>, _>>()?)))
}

/// The dead-letter store.
pub struct EmbeddedDeadLetters {
    files: Arc<Vec<StoreFile>>,
}

fn partition(index: usize) -> Partition {
    Partition(index as u16)
}

impl EmbeddedDeadLetters {
    pub(crate) fn new(files: Arc<Vec<StoreFile>>) -> Self {
        Self { files }
    }

    /// Reads these files; `None`: all.
    async fn read<T: Send + 'static>(
        &self,
        only: Option<Vec<usize>>,
        read: impl Fn(&Connection, Partition) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<Vec<T>, DeadLetterStoreError> {
        let files = Arc::clone(&self.files);
        let work = move || {
            let all = only.unwrap_or_else(|| (0..files.len()).collect());
            let wanted = all.into_iter().filter_map(|n| Some((n, files.get(n)?)));
            wanted
                .map(|(n, file)| file.readers.walk(|conn| read(conn, partition(n))))
                .collect::<Result<Vec<T>, _>>()
        };
        task::blocking(work)
            .await
            .map_err(DeadLetterStoreError::unavailable)?
            .map_err(DeadLetterStoreError::unavailable)
    }

    /// Changes every file, one after the other.
    async fn change<T: Send + 'static>(
        &self,
        work: impl Fn(&Connection) -> rusqlite::Result<T> + Clone + Send + 'static,
    ) -> Result<Vec<T>, DeadLetterStoreError> {
        let mut results = Vec::with_capacity(self.files.len());
        for file in self.files.iter() {
            results.push(
                file.state
                    .queue
                    .run_on_writer(work.clone())
                    .await
                    .map_err(DeadLetterStoreError::unavailable)?,
            );
        }
        Ok(results)
    }
}

/// Sums the parts of one job; `None` without a part.
fn sum_parts(jobs: impl IntoIterator<Item = ReplayJob>) -> Option<ReplayJob> {
    jobs.into_iter().reduce(|a, b| ReplayJob {
        dead_letters: a.dead_letters + b.dead_letters,
        closed: a.closed + b.closed,
        busy: a.busy + b.busy,
        applied: a.applied + b.applied,
        superseded: a.superseded + b.superseded,
        failed: a.failed + b.failed,
        dropped: a.dropped + b.dropped,
        ..a
    })
}

#[async_trait]
impl DeadLetterStore for EmbeddedDeadLetters {
    async fn list(
        &self,
        filter: &DeadLetterFilter,
        after: Option<&DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, DeadLetterStoreError> {
        let limit = limit.clamp(1, DEAD_LETTERS_PAGE_MAX);
        let (filter, after) = (filter.clone(), after.cloned());
        let lists = self
            .read(None, move |conn, p| list(conn, p, &filter, after.as_ref(), limit + 1))
            .await?;
        let mut dead_letters: Vec<StoredDeadLetter> = lists.into_iter().flatten().collect();
        dead_letters.sort_by_cached_key(|stored| {
            std::cmp::Reverse((stored.dead_letter.last_failed_at, stored.dead_letter.id()))
        });
        Ok(DeadLetterPage::of(dead_letters, limit))
    }

    async fn open_counts(
        &self,
        policy: AutoReplayPolicy,
    ) -> Result<Vec<GroupDeadLetters>, DeadLetterStoreError> {
        let counted = self
            .read(None, move |conn, _| {
                let mut select = conn.prepare_cached(
                    "SELECT grp, count(*), sum(class = 'poison' OR replays >= ?1),
                         min(first_failed_at)
                     FROM dead_letter WHERE state = 'open' GROUP BY grp",
                )?;
                let rows = select.query_map([policy.times], |row| {
                    let number = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
                    Ok((
                        row.get::<_, String>(0)?,
                        number(1)?,
                        number(2)?,
                        row.get::<_, UnixMillis>(3)?,
                    ))
                })?;
                rows.collect::<Result<Vec<_>, _>>()
            })
            .await?;
        let mut groups = ConsumerGroup::ALL.map(|group| GroupDeadLetters {
            group,
            open: 0,
            needs_attention: 0,
            oldest: None,
        });
        for (name, open, needs_attention, oldest) in counted.into_iter().flatten() {
            let Some(known) = groups.iter_mut().find(|known| known.group.0 == name) else {
                continue;
            };
            known.open += open;
            known.needs_attention += needs_attention;
            known.oldest = Some(known.oldest.map_or(oldest, |at| at.min(oldest)));
        }
        Ok(groups.into())
    }

    async fn create_job(
        &self,
        job: &NewReplayJob,
        filter: &DeadLetterFilter,
    ) -> Result<ReplayJob, DeadLetterStoreError> {
        let (job, filter) = (job.clone(), DeadLetterFilter { state: None, ..filter.clone() });
        let parts = self.change(move |conn| create_job(conn, &job, &filter)).await?;
        sum_parts(parts).ok_or_else(|| DeadLetterStoreError::unavailable("the store has no files"))
    }

    async fn job(&self, id: &str) -> Result<Option<ReplayJob>, DeadLetterStoreError> {
        let id = id.to_owned();
        let parts = self
            .read(None, move |conn, _| {
                let mut select = conn.prepare_cached(&format!(
                    "SELECT {JOB_COLUMNS} FROM replay_job WHERE id = ?1"
                ))?;
                select.query_map([&id], job_of)?.collect::<Result<Vec<_>, _>>()
            })
            .await?;
        Ok(sum_parts(parts.into_iter().flatten()))
    }

    async fn take_batch(
        &self,
        group: ConsumerGroup,
        partitions: &[Partition],
        limit: usize,
    ) -> Result<Option<(ReplayJob, Vec<StoredDeadLetter>)>, DeadLetterStoreError> {
        let only = partitions.iter().map(|p| usize::from(p.0)).collect();
        let found = self.read(Some(only), move |conn, p| take_batch(conn, p, group, limit)).await?;
        let mut jobs: Vec<_> = found.into_iter().flatten().collect();
        jobs.sort_by(|(a, _), (b, _)| (a.at, &a.id).cmp(&(b.at, &b.id)));
        let Some((first, _)) = jobs.first() else { return Ok(None) };
        let id = first.id.clone();
        let (parts, dead_letters): (Vec<ReplayJob>, Vec<Vec<StoredDeadLetter>>) =
            jobs.into_iter().filter(|(job, _)| job.id == id).unzip();
        let dead_letters = dead_letters.into_iter().flatten().take(limit).collect();
        Ok(sum_parts(parts).map(|job| (job, dead_letters)))
    }

    async fn complete(
        &self,
        job: &ReplayJob,
        results: &[ReplayResult],
        at: UnixMillis,
    ) -> Result<(), DeadLetterStoreError> {
        for (index, file) in self.files.iter().enumerate() {
            // An id is `group/partition/offset`: only the partition's file has the dead letter.
            let here = format!("/{index}/");
            let mine: Vec<ReplayResult> =
                results.iter().filter(|r| r.id.contains(&here)).cloned().collect();
            if !mine.is_empty() {
                let job = job.clone();
                let work = move |conn: &Connection| complete(conn, &job, &mine, at);
                let done = file.state.queue.run_on_writer(work).await;
                done.map_err(DeadLetterStoreError::unavailable)?;
            }
        }
        Ok(())
    }

    async fn discard(
        &self,
        filter: &DeadLetterFilter,
        reason: &str,
        at: UnixMillis,
    ) -> Result<u64, DeadLetterStoreError> {
        let (filter, reason) =
            (DeadLetterFilter { state: None, ..filter.clone() }, reason.to_owned());
        Ok(self.change(move |conn| discard(conn, &filter, &reason, at)).await?.into_iter().sum())
    }

    async fn audit(&self, entry: &AuditEntry) -> Result<(), DeadLetterStoreError> {
        let entry = entry.clone();
        let append = move |conn: &Connection| {
            let AuditEntry { at, actor, action, detail, dead_letters } = &entry;
            let dead_letters = dead_letters.cast_signed();
            let values: [&dyn ToSql; 5] = [at, actor, action, detail, &dead_letters];
            conn.prepare_cached(
                "INSERT INTO dead_letter_audit (at, actor, action, detail, dead_letters)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(values)
            .map(drop)
        };
        let appended = self.files[AUDIT_FILE].state.queue.run_on_writer(append).await;
        appended.map_err(DeadLetterStoreError::unavailable)
    }

    async fn audit_log(
        &self,
        after: AuditCursor,
        limit: usize,
    ) -> Result<AuditPage, DeadLetterStoreError> {
        let limit = limit.clamp(1, DEAD_LETTERS_PAGE_MAX);
        let numbered = self
            .read(Some(vec![AUDIT_FILE]), move |conn, _| {
                let mut select = conn.prepare_cached(
                    "SELECT at, actor, action, detail, dead_letters, id FROM dead_letter_audit
                     WHERE (at, id) < (?1, ?2) ORDER BY at DESC, id DESC LIMIT ?3",
                )?;
                let more = limit as i64 + 1;
                let rows = select.query_map(params![after.at, after.id, more], |row| {
                    let dead_letters = row.get::<_, i64>(4)?.unsigned_abs();
                    let entry = AuditEntry {
                        at: row.get(0)?,
                        actor: row.get(1)?,
                        action: row.get(2)?,
                        detail: row.get(3)?,
                        dead_letters,
                    };
                    Ok((row.get(5)?, entry))
                })?;
                rows.collect::<Result<Vec<_>, _>>()
            })
            .await?;
        Ok(AuditPage::of(numbered.into_iter().flatten().collect(), limit))
    }

    /// The only process of an embedded store always leads.
    async fn try_lead(&self) -> Result<bool, DeadLetterStoreError> {
        Ok(true)
    }

    async fn purge_closed_before(&self, before: UnixMillis) -> Result<(), DeadLetterStoreError> {
        let purge = move |conn: &Connection| {
            let dead_letters = "DELETE FROM dead_letter WHERE state <> 'open' AND closed_at < ?1";
            conn.execute(dead_letters, [before])?;
            let jobs = "DELETE FROM replay_job WHERE at < ?1 AND id NOT IN
                            (SELECT job FROM dead_letter WHERE job IS NOT NULL)";
            conn.execute(jobs, [before])?;
            conn.execute("DELETE FROM dead_letter_audit WHERE at < ?1", [before]).map(drop)
        };
        self.change(purge).await.map(drop)
    }
}
