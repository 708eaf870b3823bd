//! The book of dead letters of a cluster: a projection of the letters' topics in the schema
//! `tagfast_control` of the cluster that owns shard 0, beside the jobs and the acts.
//!
//! The topics are the truth of what was parked; what has become of a letter is known here alone.
//! How it fails: while that cluster has no primary nothing is listed or replayed. A failover that
//! loses the last second makes letters open again and reads the topics' ends once more; replaying a
//! letter twice changes nothing. What a replaced primary is told in its last moments is lost in the
//! same way, so no proof of its reign is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{EpochOrdinal, UnixMillis, Version};
use tagfast_events::letters::{PAGE_LETTERS, Value, content_of};
use tagfast_events::{
    Act, BookError, BusRecord, Cooldown, DeadLetter, Group, GroupLetters, Job, LetterBook,
    LetterClass, LetterCursor, LetterFilter, LetterPage, LetterState, NewJob, Partition,
    RecordKind, ReplayOutcome, Settled, StoredLetter,
};
use tagfast_sharding::LogicalShard;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row};

use crate::connect::{Connection, PgError, within};
use crate::options::limit;
use crate::store::PostgresStore;

/// Held by the session of the process that looks after letters. The migration and the relay have
/// the two numbers before it.
const LEAD: i64 = 0x7461_6766_6173_7403;
const COLUMNS: &str = "grp, part, pos, key, ver, at, cluster, emit, payload, headers, class, code, message, attempts, \
                       replays, state, reason, first_failed_at, last_failed_at";
const JOB_COLUMNS: &str =
    "id, dry_run, rate, at, letters, closed, busy, applied, superseded, failed, dropped";

/// Whoever leads asks every second whether it still does.
const ENDED_WHEN_SILENT: &str = "SET idle_session_timeout = '10s'";

type Values = Vec<Box<dyn ToSql + Sync + Send>>;

fn refs(values: &Values) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| value.as_ref() as &(dyn ToSql + Sync)).collect()
}

/// PostgreSQL's text holds everything but this.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

/// The conditions of a filter, with their values behind those that are there.
fn conditions(filter: &LetterFilter, state: &str, values: &mut Values) -> String {
    let mut sql = state.to_owned();
    for (text, value) in filter.conditions() {
        sql.push_str(" AND ");
        sql.push_str(&text);
        if let Some(value) = value {
            values.push(match value {
                Value::Text(text) => Box::new(without_nul(&text)),
                Value::Number(number) => Box::new(number),
            });
            sql.push_str(&format!("${}", values.len()));
        }
    }
    if !filter.ids.is_empty() {
        values.push(Box::new(filter.ids.clone()));
        sql.push_str(&format!(" AND letter_id = ANY(${})", values.len()));
    }
    sql
}

/// A row that this program did not write, or that was damaged.
fn damaged(what: &str) -> BookError {
    BookError(format!("a letter's {what} cannot be read"))
}

fn stored(row: &Row) -> Result<StoredLetter, BookError> {
    let number = |column: usize| row.get::<_, i64>(column).cast_unsigned();
    let headers: Vec<(String, String)> =
        serde_json::from_str(row.get(9)).map_err(|_| damaged("headers"))?;
    let decode = |(name, value): (String, String)| {
        use base64::Engine;
        let value = base64::engine::general_purpose::STANDARD.decode(value);
        value.map(|value| (name, value)).map_err(|_| damaged("headers"))
    };
    let record = BusRecord {
        kind: RecordKind::Event,
        partition: Partition(
            u16::try_from(row.get::<_, i32>(1)).map_err(|_| damaged("partition"))?,
        ),
        offset: number(2),
        key: row.get(3),
        version: Version::from_packed(number(4)).map_err(|_| damaged("version"))?,
        at: row.get(5),
        cluster: row.get::<_, &str>(6).into(),
        emit: EpochOrdinal(number(7)),
        headers: headers.into_iter().map(decode).collect::<Result<_, _>>()?,
        payload: row.get(8),
    };
    let count = |column: usize| u32::try_from(row.get::<_, i32>(column)).unwrap_or(0);
    let letter = DeadLetter {
        group: Group::named(row.get(0)).ok_or_else(|| damaged("group"))?,
        record,
        class: LetterClass::named(row.get(10)).ok_or_else(|| damaged("class"))?,
        code: row.get(11),
        message: row.get(12),
        attempts: count(13),
        first_failed_at: row.get(17),
        last_failed_at: row.get(18),
    };
    let state: LetterState = row.get::<_, &str>(15).parse().map_err(|_| damaged("state"))?;
    Ok(StoredLetter { letter, state, reason: row.get(16), replays: count(14) })
}

fn job_of(row: &Row) -> Job {
    let number = |column: usize| row.get::<_, i64>(column).unsigned_abs();
    Job {
        id: row.get(0),
        dry_run: row.get(1),
        rate: u32::try_from(row.get::<_, i32>(2)).unwrap_or(1),
        at: row.get(3),
        letters: number(4),
        closed: number(5),
        busy: number(6),
        applied: number(7),
        superseded: number(8),
        failed: number(9),
        dropped: number(10),
    }
}

/// The connection to the primary, opened when it is needed.
struct Desk {
    address: String,
    connection: Connection,
    leads: bool,
}

/// The book.
pub struct PostgresLetters {
    store: Arc<PostgresStore>,
    desk: Mutex<Option<Desk>>,
}

/// The desk while somebody works at it.
struct Held<'a>(MutexGuard<'a, Option<Desk>>);

impl Held<'_> {
    fn client(&mut self) -> Result<&mut Client, BookError> {
        let desk = self.0.as_mut().ok_or_else(|| BookError("the connection is gone".to_owned()))?;
        Ok(&mut desk.connection.client)
    }

    /// A connection that failed is thrown away.
    fn done<T>(mut self, result: Result<T, PgError>) -> Result<T, BookError> {
        result.map_err(|error| {
            *self.0 = None;
            BookError(error.to_string())
        })
    }
}

impl PostgresLetters {
    /// The book of a store's clusters.
    pub fn new(store: Arc<PostgresStore>) -> Self {
        Self { store, desk: Mutex::new(None) }
    }

    async fn held(&self) -> Result<Held<'_>, BookError> {
        let parts = self.store.parts(LogicalShard::of_hash(tagfast_sharding::ContentHash(0)));
        let until = Instant::now() + limit::READ;
        let no_primary = || BookError(format!("cluster {} has no primary", parts.cluster.name));
        let (_, node) = parts.cluster.primary(until).await.ok_or_else(no_primary)?;
        let waiting = tokio::time::timeout(2 * limit::WRITE, self.desk.lock()).await;
        let mut desk = waiting.map_err(|_| BookError("others are working at it".to_owned()))?;
        if desk
            .as_ref()
            .is_none_or(|d| d.address != node.address || d.connection.client.is_closed())
        {
            let opened = self.store.opener.open(&node.address, "letters").await;
            let connection = opened.map_err(|error| BookError(error.to_string()))?;
            let leave = connection.client.batch_execute(ENDED_WHEN_SILENT);
            within("a session's set-up", limit::WRITE, leave)
                .await
                .map_err(|error| BookError(error.to_string()))?;
            *desk = Some(Desk { address: node.address, connection, leads: false });
        }
        Ok(Held(desk))
    }

    async fn query(&self, sql: &str, values: &Values) -> Result<Vec<Row>, BookError> {
        let mut held = self.held().await?;
        let client = held.client()?;
        let rows = within("the letters", limit::WRITE, client.query(sql, &refs(values))).await;
        held.done(rows)
    }

    async fn execute(&self, sql: &str, values: &Values) -> Result<u64, BookError> {
        let mut held = self.held().await?;
        let client = held.client()?;
        let changed = within("the letters", limit::WRITE, client.execute(sql, &refs(values))).await;
        held.done(changed)
    }

    /// Behind which offsets of a group's topic letters are not in the book yet.
    pub async fn read_to(&self, group: Group) -> Result<BTreeMap<Partition, u64>, BookError> {
        let sql = "SELECT part, next FROM tagfast_control.letter_read WHERE grp = $1";
        let rows = self.query(sql, &vec![Box::new(group.0)]).await?;
        let position = |row: &Row| {
            let partition =
                u16::try_from(row.get::<_, i32>(0)).map_err(|_| damaged("partition"))?;
            Ok((Partition(partition), row.get::<_, i64>(1).cast_unsigned()))
        };
        rows.iter().map(position).collect()
    }

    /// Takes letters of a group's topic in, and how far it was read. One that is there already
    /// stays as it is.
    pub async fn take_in(
        &self,
        group: Group,
        letters: &[DeadLetter],
        read_to: &BTreeMap<Partition, u64>,
    ) -> Result<(), BookError> {
        let mut held = self.held().await?;
        let client = held.client()?;
        let done = within(
            "letters that are taken in",
            limit::WRITE,
            take_in(client, group, letters, read_to),
        )
        .await;
        held.done(done)
    }
}

/// Columns of letters, for one statement.
fn columns(letters: &[DeadLetter]) -> Values {
    use base64::Engine;
    let engine = base64::engine::general_purpose::STANDARD;
    let headers = |letter: &DeadLetter| {
        let named = letter
            .record
            .headers
            .iter()
            .map(|(name, value)| (without_nul(name), engine.encode(value)));
        // Names and base64: nothing in it can fail.
        serde_json::to_string(&named.collect::<Vec<_>>()).unwrap_or_else(|_| "[]".to_owned())
    };
    let content: Vec<_> = letters.iter().map(|letter| content_of(&letter.record.key)).collect();
    macro_rules! column {
        ($of:expr) => {
            Box::new(letters.iter().map($of).collect::<Vec<_>>())
        };
    }
    macro_rules! named {
        ($of:expr) => {
            Box::new(
                content.iter().map(|key| key.as_ref().map($of)).collect::<Vec<Option<String>>>(),
            )
        };
    }
    vec![
        column!(|l: &DeadLetter| l.id()),
        column!(|l: &DeadLetter| l.group.0.to_owned()),
        column!(|l: &DeadLetter| i32::from(l.record.partition.0)),
        column!(|l: &DeadLetter| l.record.offset.cast_signed()),
        column!(|l: &DeadLetter| l.record.key.clone()),
        column!(|l: &DeadLetter| l.record.version.packed().cast_signed()),
        column!(|l: &DeadLetter| l.record.at),
        column!(|l: &DeadLetter| without_nul(&l.record.cluster)),
        column!(|l: &DeadLetter| l.record.emit.0.cast_signed()),
        column!(|l: &DeadLetter| l.record.payload.clone()),
        column!(headers),
        column!(|l: &DeadLetter| l.class.as_str().to_owned()),
        column!(|l: &DeadLetter| without_nul(&l.code)),
        column!(|l: &DeadLetter| without_nul(&l.message)),
        column!(|l: &DeadLetter| l.attempts.cast_signed()),
        column!(|l: &DeadLetter| l.first_failed_at),
        column!(|l: &DeadLetter| l.last_failed_at),
        named!(|key| key.tenant.as_str().to_owned()),
        named!(|key| key.content.content_type.as_str().to_owned()),
        named!(|key| key.content.content_id.as_str().to_owned()),
    ]
}

async fn take_in(
    client: &mut Client,
    group: Group,
    letters: &[DeadLetter],
    read_to: &BTreeMap<Partition, u64>,
) -> Result<(), Error> {
    let tx = client.transaction().await?;
    if !letters.is_empty() {
        let insert = "INSERT INTO tagfast_control.letter (letter_id, grp, part, pos, key, ver, at, cluster, emit, payload,
                headers, class, code, message, attempts, first_failed_at, last_failed_at, tenant, content_type, content_id)
            SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::bytea[], $6::bigint[], $7::bigint[],
                $8::text[], $9::bigint[], $10::bytea[], $11::text[], $12::text[], $13::text[], $14::text[], $15::int[],
                $16::bigint[], $17::bigint[], $18::text[], $19::text[], $20::text[])
            ON CONFLICT (letter_id) DO NOTHING";
        tx.execute(insert, &refs(&columns(letters))).await?;
    }
    let (parts, next): (Vec<i32>, Vec<i64>) = read_to
        .iter()
        .map(|(partition, next)| (i32::from(partition.0), next.cast_signed()))
        .unzip();
    let moved =
        "INSERT INTO tagfast_control.letter_read (grp, part, next) SELECT $1, * FROM unnest($2::int[], $3::bigint[])
        ON CONFLICT (grp, part) DO UPDATE SET next = excluded.next";
    tx.execute(moved, &[&group.0, &parts, &next]).await?;
    tx.commit().await
}

async fn begin(client: &mut Client, job: &NewJob, filter: &LetterFilter) -> Result<Row, Error> {
    let tx = client.transaction().await?;
    let mut values: Values = Vec::new();
    let wanted = conditions(filter, "true", &mut values);
    let count = format!(
        "SELECT count(*) FILTER (WHERE state <> 'open'), count(*) FILTER (WHERE state = 'open' AND job IS NOT NULL)
         FROM tagfast_control.letter WHERE {wanted}"
    );
    let row = tx.query_one(&count, &refs(&values)).await?;
    let (closed, busy): (i64, i64) = (row.get(0), row.get(1));
    let mut values: Values = vec![Box::new(job.id.clone())];
    let open = conditions(filter, "state = 'open' AND job IS NULL", &mut values);
    let letters = tx
        .execute(
            &format!("UPDATE tagfast_control.letter SET job = $1 WHERE {open}"),
            &refs(&values),
        )
        .await?;
    let insert = format!(
        "INSERT INTO tagfast_control.letter_job (id, dry_run, rate, at, letters, closed, busy)
         VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {JOB_COLUMNS}"
    );
    let (rate, letters) = (job.rate.cast_signed(), letters.cast_signed());
    let row = tx
        .query_one(&insert, &[&job.id, &job.dry_run, &rate, &job.at, &letters, &closed, &busy])
        .await?;
    tx.commit().await?;
    Ok(row)
}

async fn settle(
    client: &mut Client,
    job: &Job,
    settled: &[Settled],
    at: UnixMillis,
) -> Result<(), Error> {
    let ids = |wanted: fn(&ReplayOutcome) -> bool| -> Vec<&str> {
        settled.iter().filter(|s| wanted(&s.outcome)).map(|s| s.id.as_str()).collect()
    };
    let applied = ids(|outcome| matches!(outcome, ReplayOutcome::Applied));
    let superseded = ids(|outcome| matches!(outcome, ReplayOutcome::Superseded));
    let (mut failed, mut codes, mut messages) = (Vec::new(), Vec::new(), Vec::new());
    for Settled { id, outcome } in settled {
        if let ReplayOutcome::Failed { code, message } = outcome {
            failed.push(id.as_str());
            codes.push(without_nul(code));
            messages.push(without_nul(message));
        }
    }
    let tx = client.transaction().await?;
    let counts = if job.dry_run {
        let put_back =
            "UPDATE tagfast_control.letter SET job = NULL WHERE letter_id = ANY($1) AND job = $2";
        let mut counts = [0; 3];
        for (count, ids) in counts.iter_mut().zip([&applied, &superseded, &failed]) {
            *count = tx.execute(put_back, &[ids, &job.id]).await?;
        }
        counts
    } else {
        let close = "UPDATE tagfast_control.letter SET job = NULL, state = $3, closed_at = $4
            WHERE letter_id = ANY($1) AND job = $2";
        let (replayed, gone) = (LetterState::Replayed.as_str(), LetterState::Superseded.as_str());
        let again = "UPDATE tagfast_control.letter l SET job = NULL, replays = replays + 1, attempts = attempts + 1,
                code = f.code, message = f.message, last_failed_at = $5
            FROM unnest($1::text[], $3::text[], $4::text[]) AS f (id, code, message)
            WHERE l.letter_id = f.id AND l.job = $2";
        [
            tx.execute(close, &[&applied, &job.id, &replayed, &at]).await?,
            tx.execute(close, &[&superseded, &job.id, &gone, &at]).await?,
            tx.execute(again, &[&failed, &job.id, &codes, &messages, &at]).await?,
        ]
    };
    let counts = counts.map(u64::cast_signed);
    let count = "UPDATE tagfast_control.letter_job SET applied = applied + $2, superseded = superseded + $3,
        failed = failed + $4 WHERE id = $1";
    tx.execute(count, &[&job.id, &counts[0], &counts[1], &counts[2]]).await?;
    tx.commit().await
}

async fn discard(
    client: &mut Client,
    filter: &LetterFilter,
    reason: &str,
    at: UnixMillis,
) -> Result<u64, Error> {
    let tx = client.transaction().await?;
    let mut values: Values = Vec::new();
    let open = conditions(filter, "state = 'open'", &mut values);
    let dropped = format!(
        "UPDATE tagfast_control.letter_job j SET dropped = dropped + taken.n FROM
             (SELECT job, count(*) AS n FROM tagfast_control.letter WHERE job IS NOT NULL AND {open} GROUP BY job) AS taken
         WHERE j.id = taken.job"
    );
    tx.execute(&dropped, &refs(&values)).await?;
    let mut values: Values = vec![Box::new(without_nul(reason)), Box::new(at)];
    let open = conditions(filter, "state = 'open'", &mut values);
    let close = format!(
        "UPDATE tagfast_control.letter SET state = 'discarded', reason = $1, closed_at = $2, job = NULL WHERE {open}"
    );
    let discarded = tx.execute(&close, &refs(&values)).await?;
    tx.commit().await?;
    Ok(discarded)
}

async fn take(
    client: &mut Client,
    group: Group,
    partitions: &[i32],
    limit: i64,
) -> Result<Option<(Row, Vec<Row>)>, Error> {
    let oldest = format!(
        "SELECT {JOB_COLUMNS} FROM tagfast_control.letter_job WHERE id IN
             (SELECT job FROM tagfast_control.letter WHERE job IS NOT NULL AND grp = $1 AND part = ANY($2))
         ORDER BY at, id LIMIT 1"
    );
    let Some(job) = client.query_opt(&oldest, &[&group.0, &partitions]).await? else {
        return Ok(None);
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM tagfast_control.letter
         WHERE job = $1 AND grp = $2 AND part = ANY($3) AND state = 'open' ORDER BY pos, part LIMIT $4"
    );
    let letters =
        client.query(&sql, &[&job.get::<_, &str>(0), &group.0, &partitions, &limit]).await?;
    Ok(Some((job, letters)))
}

async fn forget(client: &mut Client, before: UnixMillis) -> Result<(), Error> {
    let tx = client.transaction().await?;
    tx.execute(
        "DELETE FROM tagfast_control.letter WHERE state <> 'open' AND closed_at < $1",
        &[&before],
    )
    .await?;
    let jobs = "DELETE FROM tagfast_control.letter_job j WHERE at < $1
        AND NOT EXISTS (SELECT FROM tagfast_control.letter l WHERE l.job = j.id)";
    tx.execute(jobs, &[&before]).await?;
    tx.execute("DELETE FROM tagfast_control.letter_act WHERE at < $1", &[&before]).await?;
    tx.commit().await
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[async_trait]
impl LetterBook for PostgresLetters {
    async fn list(
        &self,
        filter: &LetterFilter,
        after: Option<&LetterCursor>,
        limit: usize,
    ) -> Result<LetterPage, BookError> {
        let limit = limit.clamp(1, PAGE_LETTERS);
        let mut values: Values = Vec::new();
        let mut wanted = conditions(filter, "true", &mut values);
        if let Some(after) = after {
            let n = values.len();
            wanted.push_str(&format!(
                " AND (last_failed_at, letter_id) < (${}, ${})",
                n + 1,
                n + 2
            ));
            values.push(Box::new(after.at));
            values.push(Box::new(without_nul(&after.id)));
        }
        let sql = format!(
            "SELECT {COLUMNS} FROM tagfast_control.letter WHERE {wanted}
             ORDER BY last_failed_at DESC, letter_id DESC LIMIT {}",
            limit + 1
        );
        let found = self.query(&sql, &values).await?;
        Ok(LetterPage::of(found.iter().map(stored).collect::<Result<_, _>>()?, limit))
    }

    async fn open_letters(&self, cooldown: Cooldown) -> Result<Vec<GroupLetters>, BookError> {
        let sql =
            "SELECT grp, count(*), count(*) FILTER (WHERE class = 'poison' OR replays >= $1), min(first_failed_at)
            FROM tagfast_control.letter WHERE state = 'open' GROUP BY grp";
        let counted = self.query(sql, &vec![Box::new(cooldown.times.cast_signed())]).await?;
        let of_group = |group: Group| {
            let row = counted.iter().find(|row| row.get::<_, &str>(0) == group.0);
            let number =
                |column: usize| row.map_or(0, |row| row.get::<_, i64>(column).unsigned_abs());
            GroupLetters {
                group,
                open: number(1),
                need_a_person: number(2),
                oldest: row.map(|row| row.get(3)),
            }
        };
        Ok(Group::ALL.map(of_group).into())
    }

    async fn begin(&self, job: &NewJob, filter: &LetterFilter) -> Result<Job, BookError> {
        let filter = LetterFilter { state: None, ..filter.clone() };
        let mut held = self.held().await?;
        let begun = within("a job", limit::WRITE, begin(held.client()?, job, &filter)).await;
        held.done(begun).map(|row| job_of(&row))
    }

    async fn job(&self, id: &str) -> Result<Option<Job>, BookError> {
        let sql = format!("SELECT {JOB_COLUMNS} FROM tagfast_control.letter_job WHERE id = $1");
        Ok(self.query(&sql, &vec![Box::new(without_nul(id))]).await?.first().map(job_of))
    }

    async fn take(
        &self,
        group: Group,
        partitions: &[Partition],
        limit: usize,
    ) -> Result<Option<(Job, Vec<StoredLetter>)>, BookError> {
        let partitions: Vec<i32> =
            partitions.iter().map(|partition| i32::from(partition.0)).collect();
        let mut held = self.held().await?;
        let taking = take(held.client()?, group, &partitions, rows(limit));
        let taken = within("letters of a job", limit::WRITE, taking).await;
        let Some((job, letters)) = held.done(taken)? else { return Ok(None) };
        Ok(Some((job_of(&job), letters.iter().map(stored).collect::<Result<_, _>>()?)))
    }

    async fn settle(
        &self,
        job: &Job,
        settled: &[Settled],
        at: UnixMillis,
    ) -> Result<(), BookError> {
        let mut held = self.held().await?;
        let done = within(
            "what became of letters",
            limit::WRITE,
            settle(held.client()?, job, settled, at),
        )
        .await;
        held.done(done)
    }

    async fn discard(
        &self,
        filter: &LetterFilter,
        reason: &str,
        at: UnixMillis,
    ) -> Result<u64, BookError> {
        let filter = LetterFilter { state: None, ..filter.clone() };
        let mut held = self.held().await?;
        let done = within(
            "letters that are discarded",
            limit::WRITE,
            discard(held.client()?, &filter, reason, at),
        )
        .await;
        held.done(done)
    }

    async fn note(&self, act: &Act) -> Result<(), BookError> {
        let sql = "INSERT INTO tagfast_control.letter_act (at, by, action, detail, letters) VALUES ($1, $2, $3, $4, $5)";
        let (by, detail) = (without_nul(&act.by), without_nul(&act.detail));
        let values: Values = vec![
            Box::new(act.at),
            Box::new(by),
            Box::new(act.action.clone()),
            Box::new(detail),
            Box::new(act.letters.cast_signed()),
        ];
        self.execute(sql, &values).await.map(drop)
    }

    async fn acts(&self, before: Option<UnixMillis>, limit: usize) -> Result<Vec<Act>, BookError> {
        let sql =
            "SELECT at, by, action, detail, letters FROM tagfast_control.letter_act WHERE at < $1
            ORDER BY at DESC, n DESC LIMIT $2";
        let limit = rows(limit.clamp(1, PAGE_LETTERS));
        let found =
            self.query(sql, &vec![Box::new(before.unwrap_or(i64::MAX)), Box::new(limit)]).await?;
        let act = |row: &Row| Act {
            at: row.get(0),
            by: row.get(1),
            action: row.get(2),
            detail: row.get(3),
            letters: row.get::<_, i64>(4).unsigned_abs(),
        };
        Ok(found.iter().map(act).collect())
    }

    async fn leads(&self) -> Result<bool, BookError> {
        let mut held = self.held().await?;
        let known = held.0.as_ref().is_some_and(|desk| desk.leads);
        // Who leads only shows that it lives: each call of the lock would have to be undone on its
        // own. A process that stands still is ended by PostgreSQL after a while and another
        // one leads.
        let sql = if known { "SELECT true" } else { "SELECT pg_try_advisory_lock($1)" };
        let client = held.client()?;
        let asked = async {
            let row = if known {
                client.query_one(sql, &[]).await
            } else {
                client.query_one(sql, &[&LEAD]).await
            };
            row.map(|row| row.get::<_, bool>(0))
        };
        let leads = within("the lead", limit::WRITE, asked).await;
        if let (Ok(leads), Some(desk)) = (&leads, held.0.as_mut()) {
            desk.leads = *leads;
        }
        held.done(leads)
    }

    async fn forget(&self, before: UnixMillis) -> Result<(), BookError> {
        let mut held = self.held().await?;
        let done = within("old letters", limit::WRITE, forget(held.client()?, before)).await;
        held.done(done)
    }
}
