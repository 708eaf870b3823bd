//! The transactions of the dead-letter store.

use std::collections::BTreeMap;

use tagfast_domain::UnixMillis;
use tagfast_events::dead_letters::transitions::{Action, JobCounter};
use tagfast_events::{
    ConsumerGroup, DeadLetter, DeadLetterFilter, NewReplayJob, Partition, ReplayJob, ReplayOutcome,
    ReplayResult,
};
use tokio_postgres::{Client, Error, Row, Transaction};

use super::rows::{COLUMNS, JOB_COLUMNS, column_arrays};
use super::sql::{SqlValues, as_params, assignments, bind, condition, guard, without_nul};

/// Inserts dead letters that are not stored yet, and how far their topic was read.
pub(super) async fn ingest(
    client: &mut Client,
    group: ConsumerGroup,
    dead_letters: &[DeadLetter],
    offsets: &BTreeMap<Partition, u64>,
) -> Result<(), Error> {
    let tx = client.transaction().await?;
    if !dead_letters.is_empty() {
        let insert = "INSERT INTO tagfast_control.dead_letter (id, grp, part, pos, key, ver, at,
                cluster, emit, payload, headers, class, code, message, attempts, first_failed_at,
                last_failed_at, tenant, content_type, content_id)
            SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::bytea[],
                $6::bigint[], $7::bigint[], $8::text[], $9::bigint[], $10::bytea[], $11::text[],
                $12::text[], $13::text[], $14::text[], $15::int[], $16::bigint[], $17::bigint[],
                $18::text[], $19::text[], $20::text[])
            ON CONFLICT (id) DO NOTHING";
        tx.execute(insert, &as_params(&column_arrays(dead_letters))).await?;
    }
    let (parts, next): (Vec<i32>, Vec<i64>) = offsets
        .iter()
        .map(|(partition, next)| (i32::from(partition.0), next.cast_signed()))
        .unzip();
    let move_offsets = "INSERT INTO tagfast_control.dead_letter_ingest (grp, part, next)
        SELECT $1, * FROM unnest($2::int[], $3::bigint[])
        ON CONFLICT (grp, part) DO UPDATE SET next = excluded.next";
    tx.execute(move_offsets, &[&group.0, &parts, &next]).await?;
    tx.commit().await
}

/// Creates a job and assigns it the open, unassigned dead letters of a filter.
pub(super) async fn create_job(
    client: &mut Client,
    job: &NewReplayJob,
    filter: &DeadLetterFilter,
) -> Result<Row, Error> {
    let tx = client.transaction().await?;
    let mut values = SqlValues::new();
    let matching = condition("true", filter, &mut values);
    let count = format!(
        "SELECT count(*) FILTER (WHERE state <> 'open'),
             count(*) FILTER (WHERE state = 'open' AND job IS NOT NULL)
         FROM tagfast_control.dead_letter WHERE {matching}"
    );
    let row = tx.query_one(&count, &as_params(&values)).await?;
    let (closed, busy): (i64, i64) = (row.get(0), row.get(1));
    let assign = Action::Assign.transition();
    let mut values = SqlValues::new();
    let set = assignments(&assign, Some(&job.id), job.at, &mut values);
    let guard = guard(&assign, Some(&job.id), &mut values);
    let assignable = condition(&guard, filter, &mut values);
    let update = format!("UPDATE tagfast_control.dead_letter SET {set} WHERE {assignable}");
    let assigned = tx.execute(&update, &as_params(&values)).await?.cast_signed();
    let insert = format!(
        "INSERT INTO tagfast_control.replay_job (id, dry_run, rate, at, dead_letters, closed, busy)
         VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {JOB_COLUMNS}"
    );
    let rate = job.rate.cast_signed();
    let row = tx
        .query_one(&insert, &[&job.id, &job.dry_run, &rate, &job.at, &assigned, &closed, &busy])
        .await?;
    tx.commit().await?;
    Ok(row)
}

/// Does an action to those results of a job that have an outcome of `counter`; returns how many
/// dead letters were still in the job.
async fn complete_outcome(
    tx: &Transaction<'_>,
    job: &ReplayJob,
    results: &[ReplayResult],
    counter: JobCounter,
    at: UnixMillis,
) -> Result<u64, Error> {
    let of_counter = |r: &&ReplayResult| JobCounter::of_outcome(&r.outcome) == Some(counter);
    let of_counter: Vec<&ReplayResult> = results.iter().filter(of_counter).collect();
    let Some(first) = of_counter.first() else { return Ok(0) };
    let Some(action) = Action::of_outcome(&first.outcome, job.dry_run) else { return Ok(0) };
    let transition = action.transition();
    let ids: Vec<String> = of_counter.iter().map(|r| r.id.clone()).collect();
    let mut values = SqlValues::new();
    let set = assignments(&transition, None, at, &mut values);
    let guard = guard(&transition, Some(&job.id), &mut values);
    let ids = bind(&mut values, ids);
    let update = if transition.counts_failure {
        let (mut codes, mut messages) = (Vec::new(), Vec::new());
        for result in of_counter {
            if let ReplayOutcome::Failed { code, message } = &result.outcome {
                codes.push(without_nul(code));
                messages.push(without_nul(message));
            }
        }
        let (codes, messages) = (bind(&mut values, codes), bind(&mut values, messages));
        format!(
            "UPDATE tagfast_control.dead_letter AS d SET {set}, code = f.code, message = f.message
             FROM unnest({ids}::text[], {codes}::text[], {messages}::text[])
                 AS f (failed_id, code, message)
             WHERE d.id = f.failed_id AND {guard}"
        )
    } else {
        format!("UPDATE tagfast_control.dead_letter SET {set} WHERE id = ANY({ids}) AND {guard}")
    };
    tx.execute(&update, &as_params(&values)).await
}

/// Stores the outcomes of a job's dead letters and counts them in the job.
pub(super) async fn complete(
    client: &mut Client,
    job: &ReplayJob,
    results: &[ReplayResult],
    at: UnixMillis,
) -> Result<(), Error> {
    let tx = client.transaction().await?;
    let mut counts = [0i64; JobCounter::ALL.len()];
    for (count, counter) in counts.iter_mut().zip(JobCounter::ALL) {
        *count = complete_outcome(&tx, job, results, counter, at).await?.cast_signed();
    }
    let count = "UPDATE tagfast_control.replay_job SET applied = applied + $2,
        superseded = superseded + $3, failed = failed + $4 WHERE id = $1";
    tx.execute(count, &[&job.id, &counts[0], &counts[1], &counts[2]]).await?;
    tx.commit().await
}

/// Discards the open dead letters of a filter; returns how many.
pub(super) async fn discard(
    client: &mut Client,
    filter: &DeadLetterFilter,
    reason: &str,
    at: UnixMillis,
) -> Result<u64, Error> {
    let transition = Action::Discard.transition();
    let tx = client.transaction().await?;
    let mut values = SqlValues::new();
    let guard_sql = guard(&transition, None, &mut values);
    let open = condition(&guard_sql, filter, &mut values);
    let drop_from_jobs = format!(
        "UPDATE tagfast_control.replay_job AS j SET dropped = dropped + taken.n FROM
             (SELECT job, count(*) AS n FROM tagfast_control.dead_letter
              WHERE job IS NOT NULL AND {open} GROUP BY job) AS taken
         WHERE j.id = taken.job"
    );
    tx.execute(&drop_from_jobs, &as_params(&values)).await?;
    let mut values = SqlValues::new();
    let set = assignments(&transition, None, at, &mut values);
    let reason = bind(&mut values, without_nul(reason));
    let guard_sql = guard(&transition, None, &mut values);
    let open = condition(&guard_sql, filter, &mut values);
    let close =
        format!("UPDATE tagfast_control.dead_letter SET {set}, reason = {reason} WHERE {open}");
    let discarded = tx.execute(&close, &as_params(&values)).await?;
    tx.commit().await?;
    Ok(discarded)
}

/// Takes dead letters of the oldest unfinished job; `None` if no job has any here.
pub(super) async fn take_batch(
    client: &mut Client,
    group: ConsumerGroup,
    partitions: &[i32],
    limit: i64,
) -> Result<Option<(Row, Vec<Row>)>, Error> {
    let oldest = format!(
        "SELECT {JOB_COLUMNS} FROM tagfast_control.replay_job WHERE id IN
             (SELECT job FROM tagfast_control.dead_letter
              WHERE job IS NOT NULL AND grp = $1 AND part = ANY($2))
         ORDER BY at, id LIMIT 1"
    );
    let Some(job) = client.query_opt(&oldest, &[&group.0, &partitions]).await? else {
        return Ok(None);
    };
    let select = format!(
        "SELECT {COLUMNS} FROM tagfast_control.dead_letter
         WHERE job = $1 AND grp = $2 AND part = ANY($3) AND state = 'open'
         ORDER BY pos, part LIMIT $4"
    );
    let dead_letters =
        client.query(&select, &[&job.get::<_, &str>(0), &group.0, &partitions, &limit]).await?;
    Ok(Some((job, dead_letters)))
}

/// Deletes closed dead letters, finished jobs and audit entries older than a time.
pub(super) async fn purge_closed_before(
    client: &mut Client,
    before: UnixMillis,
) -> Result<(), Error> {
    let tx = client.transaction().await?;
    let statements = [
        "DELETE FROM tagfast_control.dead_letter WHERE state <> 'open' AND closed_at < $1",
        "DELETE FROM tagfast_control.replay_job j WHERE at < $1
         AND NOT EXISTS (SELECT FROM tagfast_control.dead_letter d WHERE d.job = j.id)",
        "DELETE FROM tagfast_control.dead_letter_audit WHERE at < $1",
    ];
    for statement in statements {
        tx.execute(statement, &[&before]).await?;
    }
    tx.commit().await
}
