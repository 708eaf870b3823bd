//! The book of dead letters of an embedded store: a table in each of its files, next to the events
//! of the same contents.
//!
//! Each file answers for its own letters and its own part of a job; what is asked of the book is
//! asked of all files and put together. A crash between two files of a job leaves a job of fewer
//! letters, which the next one finds open.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rusqlite::types::{FromSqlError, Value as SqlValue};
use rusqlite::{Connection, Row, ToSql, params, params_from_iter};
use tagfast_domain::{EpochOrdinal, UnixMillis, Version};
use tagfast_events::letters::{PAGE_LETTERS, Value, content_of};
use tagfast_events::{
    Act, BookError, BusRecord, ClusterName, Cooldown, DeadLetter, Group, GroupLetters, Job,
    LetterBook, LetterClass, LetterCursor, LetterFilter, LetterPage, LetterState, NewJob,
    Partition, RecordKind, ReplayOutcome, Settled, StoredLetter,
};

use crate::store::StoreFile;

/// The file that remembers acts.
const ACTS: usize = 0;

const COLUMNS: &str = "grp, pos, key, ver, at, emit, payload, headers, class, code, message, attempts, replays, state, \
                       reason, first_failed_at, last_failed_at";
const JOB_COLUMNS: &str =
    "id, dry_run, rate, at, letters, closed, busy, applied, superseded, failed, dropped";

/// Parks a letter; one that is there already stays as it is.
pub(crate) fn insert(conn: &Connection, letter: &DeadLetter) -> rusqlite::Result<()> {
    let record = &letter.record;
    let content = content_of(&record.key);
    let headers: Vec<(&str, String)> = record
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), STANDARD.encode(value)))
        .collect();
    let headers = serde_json::to_string(&headers)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    conn.prepare_cached(
        "INSERT OR IGNORE INTO bus_dlq (letter_id, grp, pos, key, ver, at, emit, payload, headers, class, code,
             message, attempts, replays, state, first_failed_at, last_failed_at, tenant, content_type, content_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, 0, 'open', ?14, ?15, ?16, ?17, ?18)",
    )?
    .execute(params![
        letter.id(),
        letter.group.0,
        record.offset.cast_signed(),
        record.key,
        record.version.packed().cast_signed(),
        record.at,
        record.emit.0.cast_signed(),
        record.payload,
        headers,
        letter.class.as_str(),
        letter.code,
        letter.message,
        letter.attempts,
        letter.first_failed_at,
        letter.last_failed_at,
        content.as_ref().map(|key| key.tenant.as_str()),
        content.as_ref().map(|key| key.content.content_type.as_str()),
        content.as_ref().map(|key| key.content.content_id.as_str()),
    ])?;
    Ok(())
}

fn bad(column: usize) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(
        column,
        rusqlite::types::Type::Text,
        Box::new(FromSqlError::InvalidType),
    )
}

/// Headers as they were stored; those of version 1 were none.
fn headers(text: &str) -> Option<Vec<(String, Vec<u8>)>> {
    if text == "{}" {
        return Some(Vec::new());
    }
    let named: Vec<(String, String)> = serde_json::from_str(text).ok()?;
    named.into_iter().map(|(name, value)| Some((name, STANDARD.decode(value).ok()?))).collect()
}

fn stored(row: &Row<'_>, partition: Partition) -> rusqlite::Result<StoredLetter> {
    let word = |column: usize| row.get::<_, String>(column);
    let version =
        Version::from_packed(row.get::<_, i64>(3)?.cast_unsigned()).map_err(|_| bad(3))?;
    let record = BusRecord {
        kind: RecordKind::Event,
        partition,
        offset: row.get::<_, i64>(1)?.cast_unsigned(),
        key: row.get(2)?,
        version,
        at: row.get(4)?,
        cluster: ClusterName::from(""),
        emit: EpochOrdinal(row.get::<_, i64>(5)?.cast_unsigned()),
        headers: headers(&word(7)?).ok_or_else(|| bad(7))?,
        payload: row.get(6)?,
    };
    let letter = DeadLetter {
        group: Group::named(&word(0)?).ok_or_else(|| bad(0))?,
        record,
        class: LetterClass::named(&word(8)?).ok_or_else(|| bad(8))?,
        code: word(9)?,
        message: word(10)?,
        attempts: row.get(11)?,
        first_failed_at: row.get(15)?,
        last_failed_at: row.get(16)?,
    };
    Ok(StoredLetter {
        letter,
        replays: row.get(12)?,
        state: word(13)?.parse().map_err(|_| bad(13))?,
        reason: row.get(14)?,
    })
}

/// The conditions of a filter behind `WHERE`, and their values. `state` is what the statement says
/// of it itself.
fn conditions(filter: &LetterFilter, state: &str) -> (String, Vec<SqlValue>) {
    let (mut sql, mut values) = (state.to_owned(), Vec::new());
    for (text, value) in filter.conditions() {
        sql.push_str(" AND ");
        sql.push_str(&text);
        if let Some(value) = value {
            sql.push('?');
            values.push(match value {
                Value::Text(text) => SqlValue::Text(text),
                Value::Number(number) => SqlValue::Integer(number),
            });
        }
    }
    if !filter.ids.is_empty() {
        sql.push_str(" AND letter_id IN (");
        sql.push_str(&vec!["?"; filter.ids.len()].join(","));
        sql.push(')');
        values.extend(filter.ids.iter().cloned().map(SqlValue::Text));
    }
    (sql, values)
}

fn list(
    conn: &Connection,
    partition: Partition,
    filter: &LetterFilter,
    after: Option<&LetterCursor>,
    limit: usize,
) -> rusqlite::Result<Vec<StoredLetter>> {
    let (mut sql, mut values) = conditions(filter, "1 = 1");
    if let Some(after) = after {
        sql.push_str(" AND (last_failed_at, letter_id) < (?, ?)");
        values.extend([SqlValue::Integer(after.at), SqlValue::Text(after.id.clone())]);
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM bus_dlq WHERE {sql} ORDER BY last_failed_at DESC, letter_id DESC LIMIT {limit}"
    );
    let mut select = conn.prepare_cached(&sql)?;
    select.query_map(params_from_iter(values), |row| stored(row, partition))?.collect()
}

fn job_of(row: &Row<'_>) -> rusqlite::Result<Job> {
    let number = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
    Ok(Job {
        id: row.get(0)?,
        dry_run: row.get(1)?,
        rate: row.get(2)?,
        at: row.get(3)?,
        letters: number(4)?,
        closed: number(5)?,
        busy: number(6)?,
        applied: number(7)?,
        superseded: number(8)?,
        failed: number(9)?,
        dropped: number(10)?,
    })
}

fn begin(conn: &Connection, job: &NewJob, filter: &LetterFilter) -> rusqlite::Result<Job> {
    let (sql, values) = conditions(filter, "1 = 1");
    let others = "count(*) FILTER (WHERE state <> 'open'), count(*) FILTER (WHERE state = 'open' AND job IS NOT NULL)";
    let (closed, busy): (i64, i64) = conn
        .prepare_cached(&format!("SELECT {others} FROM bus_dlq WHERE {sql}"))?
        .query_row(params_from_iter(values), |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (sql, values) = conditions(filter, "state = 'open' AND job IS NULL");
    let values = std::iter::once(SqlValue::Text(job.id.clone())).chain(values);
    let letters = conn
        .prepare_cached(&format!("UPDATE bus_dlq SET job = ? WHERE {sql}"))?
        .execute(params_from_iter(values))?;
    conn.prepare_cached(
        "INSERT INTO letter_job (id, dry_run, rate, at, letters, closed, busy) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![job.id, job.dry_run, job.rate, job.at, letters as i64, closed, busy])?;
    conn.prepare_cached(&format!("SELECT {JOB_COLUMNS} FROM letter_job WHERE id = ?1"))?
        .query_row([&job.id], job_of)
}

fn settle(
    conn: &Connection,
    job: &Job,
    settled: &[Settled],
    at: UnixMillis,
) -> rusqlite::Result<()> {
    let put_back = "UPDATE bus_dlq SET job = NULL WHERE letter_id = ?1 AND job = ?2";
    let close = "UPDATE bus_dlq SET job = NULL, state = ?3, closed_at = ?4 WHERE letter_id = ?1 AND job = ?2";
    let again = "UPDATE bus_dlq SET job = NULL, replays = replays + 1, attempts = attempts + 1,
                     code = ?3, message = ?4, last_failed_at = ?5 WHERE letter_id = ?1 AND job = ?2";
    let mut counts = [0i64; 3];
    for Settled { id, outcome } in settled {
        let place = match outcome {
            ReplayOutcome::Applied => 0,
            ReplayOutcome::Superseded => 1,
            ReplayOutcome::Failed { .. } => 2,
            ReplayOutcome::NotHere => continue,
        };
        let moved = match outcome {
            _ if job.dry_run => conn.prepare_cached(put_back)?.execute(params![id, job.id]),
            ReplayOutcome::Failed { code, message } => {
                conn.prepare_cached(again)?.execute(params![id, job.id, code, message, at])
            }
            ReplayOutcome::Applied => conn.prepare_cached(close)?.execute(params![
                id,
                job.id,
                LetterState::Replayed.as_str(),
                at
            ]),
            ReplayOutcome::Superseded | ReplayOutcome::NotHere => conn
                .prepare_cached(close)?
                .execute(params![id, job.id, LetterState::Superseded.as_str(), at]),
        };
        counts[place] += moved? as i64;
    }
    conn.prepare_cached(
        "UPDATE letter_job SET applied = applied + ?2, superseded = superseded + ?3, failed = failed + ?4
         WHERE id = ?1",
    )?
    .execute(params![job.id, counts[0], counts[1], counts[2]])?;
    Ok(())
}

fn discard(
    conn: &Connection,
    filter: &LetterFilter,
    reason: &str,
    at: UnixMillis,
) -> rusqlite::Result<u64> {
    let (sql, values) = conditions(filter, "state = 'open'");
    conn.prepare_cached(&format!(
        "UPDATE letter_job SET dropped = dropped + taken.n FROM
             (SELECT job, count(*) AS n FROM bus_dlq WHERE job IS NOT NULL AND {sql} GROUP BY job) AS taken
         WHERE letter_job.id = taken.job"
    ))?
    .execute(params_from_iter(values.clone()))?;
    let values =
        [SqlValue::Text(reason.to_owned()), SqlValue::Integer(at)].into_iter().chain(values);
    let discarded = conn
        .prepare_cached(&format!(
            "UPDATE bus_dlq SET state = 'discarded', reason = ?, closed_at = ?, job = NULL WHERE {sql}"
        ))?
        .execute(params_from_iter(values))?;
    Ok(discarded as u64)
}

/// The book.
pub struct EmbeddedLetters {
    files: Arc<Vec<StoreFile>>,
}

fn unavailable(error: impl std::fmt::Display) -> BookError {
    BookError(error.to_string())
}

fn partition(index: usize) -> Partition {
    Partition(index as u16)
}

impl EmbeddedLetters {
    pub(crate) fn new(files: Arc<Vec<StoreFile>>) -> Self {
        Self { files }
    }

    /// Reads every file, or some of them.
    async fn read<T: Send + 'static>(
        &self,
        only: Option<Vec<usize>>,
        read: impl Fn(&Connection, Partition) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<Vec<T>, BookError> {
        let files = Arc::clone(&self.files);
        let work = move || {
            let all = only.unwrap_or_else(|| (0..files.len()).collect());
            let wanted = all.into_iter().filter_map(|n| Some((n, files.get(n)?)));
            wanted
                .map(|(n, file)| file.readers.walk(|conn| read(conn, partition(n))))
                .collect::<Result<Vec<T>, _>>()
        };
        tokio::task::spawn_blocking(work).await.map_err(unavailable)?.map_err(unavailable)
    }

    /// Changes every file, one after the other.
    async fn change<T: Send + 'static>(
        &self,
        work: impl Fn(&Connection) -> rusqlite::Result<T> + Clone + Send + 'static,
    ) -> Result<Vec<T>, BookError> {
        let mut results = Vec::with_capacity(self.files.len());
        for file in self.files.iter() {
            results.push(file.state.queue.aside(work.clone()).await.map_err(unavailable)?);
        }
        Ok(results)
    }
}

fn added(jobs: impl IntoIterator<Item = Job>) -> Option<Job> {
    jobs.into_iter().reduce(|a, b| Job {
        letters: a.letters + b.letters,
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
impl LetterBook for EmbeddedLetters {
    async fn list(
        &self,
        filter: &LetterFilter,
        after: Option<&LetterCursor>,
        limit: usize,
    ) -> Result<LetterPage, BookError> {
        let limit = limit.clamp(1, PAGE_LETTERS);
        let (filter, after) = (filter.clone(), after.cloned());
        let lists = self
            .read(None, move |conn, p| list(conn, p, &filter, after.as_ref(), limit + 1))
            .await?;
        let mut letters: Vec<StoredLetter> = lists.into_iter().flatten().collect();
        letters.sort_by_cached_key(|stored| {
            std::cmp::Reverse((stored.letter.last_failed_at, stored.letter.id()))
        });
        Ok(LetterPage::of(letters, limit))
    }

    async fn open_letters(&self, cooldown: Cooldown) -> Result<Vec<GroupLetters>, BookError> {
        let counted = self
            .read(None, move |conn, _| {
                let mut select = conn.prepare_cached(
                    "SELECT grp, count(*), sum(class = 'poison' OR replays >= ?1), min(first_failed_at)
                     FROM bus_dlq WHERE state = 'open' GROUP BY grp",
                )?;
                let rows = select.query_map([cooldown.times], |row| {
                    let number = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
                    Ok((row.get::<_, String>(0)?, number(1)?, number(2)?, row.get::<_, UnixMillis>(3)?))
                })?;
                rows.collect::<Result<Vec<_>, _>>()
            })
            .await?;
        let mut groups =
            Group::ALL.map(|group| GroupLetters { group, open: 0, need_a_person: 0, oldest: None });
        for (name, open, need_a_person, oldest) in counted.into_iter().flatten() {
            let Some(known) = groups.iter_mut().find(|known| known.group.0 == name) else {
                continue;
            };
            known.open += open;
            known.need_a_person += need_a_person;
            known.oldest = Some(known.oldest.map_or(oldest, |at| at.min(oldest)));
        }
        Ok(groups.into())
    }

    async fn begin(&self, job: &NewJob, filter: &LetterFilter) -> Result<Job, BookError> {
        let (job, filter) = (job.clone(), LetterFilter { state: None, ..filter.clone() });
        let parts = self.change(move |conn| begin(conn, &job, &filter)).await?;
        added(parts).ok_or_else(|| BookError("the store has no files".to_owned()))
    }

    async fn job(&self, id: &str) -> Result<Option<Job>, BookError> {
        let id = id.to_owned();
        let parts = self
            .read(None, move |conn, _| {
                let mut select = conn.prepare_cached(&format!(
                    "SELECT {JOB_COLUMNS} FROM letter_job WHERE id = ?1"
                ))?;
                select.query_map([&id], job_of)?.collect::<Result<Vec<_>, _>>()
            })
            .await?;
        Ok(added(parts.into_iter().flatten()))
    }

    async fn take(
        &self,
        group: Group,
        partitions: &[Partition],
        limit: usize,
    ) -> Result<Option<(Job, Vec<StoredLetter>)>, BookError> {
        let only = partitions.iter().map(|p| usize::from(p.0)).collect();
        let mut jobs = self
            .read(Some(only), move |conn, p| {
                let mut select = conn.prepare_cached(&format!(
                    "SELECT {JOB_COLUMNS} FROM letter_job
                     WHERE id IN (SELECT job FROM bus_dlq WHERE job IS NOT NULL AND grp = ?1) ORDER BY at, id LIMIT 1"
                ))?;
                let oldest = select.query_map([group.0], job_of)?.next().transpose()?;
                let Some(job) = oldest else { return Ok(None) };
                let mut select = conn.prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM bus_dlq WHERE job = ?1 AND grp = ?2 AND state = 'open' ORDER BY pos LIMIT ?3"
                ))?;
                let rows = select.query_map(params![job.id, group.0, limit as i64], |row| stored(row, p))?;
                Ok(Some((job, rows.collect::<Result<Vec<_>, _>>()?)))
            })
            .await?
            .into_iter()
            .flatten()
            .collect::<Vec<_>>();
        jobs.sort_by(|(a, _), (b, _)| (a.at, &a.id).cmp(&(b.at, &b.id)));
        let Some((first, _)) = jobs.first() else { return Ok(None) };
        let id = first.id.clone();
        let (parts, letters): (Vec<Job>, Vec<Vec<StoredLetter>>) =
            jobs.into_iter().filter(|(job, _)| job.id == id).unzip();
        let letters = letters.into_iter().flatten().take(limit).collect();
        Ok(added(parts).map(|job| (job, letters)))
    }

    async fn settle(
        &self,
        job: &Job,
        settled: &[Settled],
        at: UnixMillis,
    ) -> Result<(), BookError> {
        for (index, file) in self.files.iter().enumerate() {
            // `group/partition/offset`: only the file of the partition has the letter.
            let here = format!("/{index}/");
            let mine: Vec<Settled> =
                settled.iter().filter(|s| s.id.contains(&here)).cloned().collect();
            if !mine.is_empty() {
                let job = job.clone();
                file.state
                    .queue
                    .aside(move |conn| settle(conn, &job, &mine, at))
                    .await
                    .map_err(unavailable)?;
            }
        }
        Ok(())
    }

    async fn discard(
        &self,
        filter: &LetterFilter,
        reason: &str,
        at: UnixMillis,
    ) -> Result<u64, BookError> {
        let (filter, reason) = (LetterFilter { state: None, ..filter.clone() }, reason.to_owned());
        Ok(self.change(move |conn| discard(conn, &filter, &reason, at)).await?.into_iter().sum())
    }

    async fn note(&self, act: &Act) -> Result<(), BookError> {
        let act = act.clone();
        let note = move |conn: &Connection| {
            let letters = act.letters.cast_signed();
            let values: [&dyn ToSql; 5] = [&act.at, &act.by, &act.action, &act.detail, &letters];
            conn.prepare_cached("INSERT INTO letter_act (at, by, action, detail, letters) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(values)
                .map(drop)
        };
        self.files[ACTS].state.queue.aside(note).await.map_err(unavailable)
    }

    async fn acts(&self, before: Option<UnixMillis>, limit: usize) -> Result<Vec<Act>, BookError> {
        let limit = limit.clamp(1, PAGE_LETTERS) as i64;
        let acts = self
            .read(Some(vec![ACTS]), move |conn, _| {
                let mut select = conn.prepare_cached(
                    "SELECT at, by, action, detail, letters FROM letter_act WHERE at < ?1
                     ORDER BY at DESC, n DESC LIMIT ?2",
                )?;
                let rows = select.query_map(params![before.unwrap_or(i64::MAX), limit], |row| {
                    let letters = row.get::<_, i64>(4)?.unsigned_abs();
                    Ok(Act {
                        at: row.get(0)?,
                        by: row.get(1)?,
                        action: row.get(2)?,
                        detail: row.get(3)?,
                        letters,
                    })
                })?;
                rows.collect::<Result<Vec<_>, _>>()
            })
            .await?;
        Ok(acts.into_iter().flatten().collect())
    }

    async fn leads(&self) -> Result<bool, BookError> {
        Ok(true)
    }

    async fn forget(&self, before: UnixMillis) -> Result<(), BookError> {
        let forget = move |conn: &Connection| {
            conn.execute("DELETE FROM bus_dlq WHERE state <> 'open' AND closed_at < ?1", [before])?;
            let jobs = "DELETE FROM letter_job WHERE at < ?1 AND id NOT IN
                            (SELECT job FROM bus_dlq WHERE job IS NOT NULL)";
            conn.execute(jobs, [before])?;
            conn.execute("DELETE FROM letter_act WHERE at < ?1", [before]).map(drop)
        };
        self.change(forget).await.map(drop)
    }
}
