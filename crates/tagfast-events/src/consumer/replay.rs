//! Replays dead letters through the same sink and in the same order of steps as records.

use std::collections::BTreeMap;
use std::sync::Arc;

use tagfast_domain::ContentKey;

use super::context::Context;
use super::state::{ReplayOutcome, ReplayRequest, StopRequested};
use crate::envelope;
use crate::sink::{RecordVerdict, SinkRecord};

/// Judges dead letters by version alone: a state of a replaced epoch has a smaller version than the
/// state that replaced it. Replies once the applied records are durable.
pub(super) async fn replay(
    context: &mut Context,
    request: ReplayRequest,
) -> Result<(), StopRequested> {
    let ReplayRequest { records, dry_run, reply } = request;
    let mut outcomes = vec![ReplayOutcome::NotHere; records.len()];
    let mut newest: BTreeMap<ContentKey, (usize, SinkRecord)> = BTreeMap::new();
    for (n, record) in records.iter().enumerate() {
        if !context.progress.has(record.partition) {
            continue;
        }
        let event = match envelope::decode_keyed(record) {
            Ok(event) => event,
            Err(error) => {
                let (code, message) = (error.code().to_owned(), error.to_string());
                outcomes[n] = ReplayOutcome::Failed { code, message };
                continue;
            }
        };
        outcomes[n] = ReplayOutcome::Superseded;
        if newest.get(&event.key).is_none_or(|(_, known)| known.event.version < event.version) {
            let key = event.key.clone();
            let (partition, offset) = (record.partition, record.offset);
            newest.insert(key, (n, SinkRecord { partition, offset, event: Arc::new(event) }));
        }
    }
    let (places, records): (Vec<usize>, Vec<SinkRecord>) = newest.into_values().unzip();
    let applied = if dry_run {
        predict(context, &records).await?
    } else {
        apply_durably(context, records).await?
    };
    for (place, outcome) in places.into_iter().zip(applied) {
        outcomes[place] = outcome;
    }
    // The caller may have gone: applied records stay applied.
    let _ = reply.send(outcomes);
    Ok(())
}

/// Compares versions with the sink's; applies nothing.
async fn predict(
    context: &mut Context,
    records: &[SinkRecord],
) -> Result<Vec<ReplayOutcome>, StopRequested> {
    let keys: Arc<Vec<ContentKey>> =
        Arc::new(records.iter().map(|r| r.event.key.clone()).collect());
    let sink = Arc::clone(&context.sink);
    let known = context
        .retry_until_ok(|| {
            let (sink, keys) = (Arc::clone(&sink), Arc::clone(&keys));
            async move { sink.versions(&keys).await }
        })
        .await?;
    let predicted = records.iter().zip(known).map(|(record, known)| {
        let superseded = known.is_some_and(|known| known >= record.event.version);
        if superseded { ReplayOutcome::Superseded } else { ReplayOutcome::Applied }
    });
    Ok(predicted.collect())
}

async fn apply_durably(
    context: &mut Context,
    records: Vec<SinkRecord>,
) -> Result<Vec<ReplayOutcome>, StopRequested> {
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let (sink, records) = (Arc::clone(&context.sink), Arc::new(records));
    let verdicts = context
        .retry_until_ok(|| {
            let (sink, records) = (Arc::clone(&sink), Arc::clone(&records));
            async move {
                let verdicts = sink.apply(&records).await?;
                sink.flush().await?;
                Ok(verdicts)
            }
        })
        .await?;
    let outcomes = verdicts.into_iter().map(|verdict| match verdict {
        RecordVerdict::Applied => ReplayOutcome::Applied,
        RecordVerdict::Superseded => ReplayOutcome::Superseded,
        RecordVerdict::Poison { code, message } | RecordVerdict::Failed { code, message } => {
            ReplayOutcome::Failed { code: code.to_owned(), message }
        }
    });
    Ok(outcomes.collect())
}
