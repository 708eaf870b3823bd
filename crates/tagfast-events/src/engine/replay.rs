//! Letters that are applied again, through the same sink and in the same order of steps as records.

use std::collections::BTreeMap;
use std::sync::Arc;

use tagfast_domain::ContentKey;

use super::{Engine, StopAsked};
use crate::envelope;
use crate::letters::ReplayOutcome;
use crate::runtime::Replay;
use crate::sink::{RecordVerdict, SinkRecord};

impl Engine {
    /// Judges letters by version alone: what a replaced epoch published has a smaller one than what
    /// replaced it. Answers when what was applied is durable.
    pub(super) async fn replay(&mut self, replay: Replay) -> Result<(), StopAsked> {
        let Replay { letters, dry_run, reply } = replay;
        let mut outcomes = vec![ReplayOutcome::NotHere; letters.len()];
        let mut newest: BTreeMap<ContentKey, (usize, SinkRecord)> = BTreeMap::new();
        for (n, record) in letters.iter().enumerate() {
            if !self.progress.has(record.partition) {
                continue;
            }
            let event = match envelope::decode_keyed(record) {
                Ok(event) => event,
                Err(error) => {
                    outcomes[n] = ReplayOutcome::Failed {
                        code: error.code().to_owned(),
                        message: error.to_string(),
                    };
                    continue;
                }
            };
            outcomes[n] = ReplayOutcome::Superseded;
            if newest.get(&event.key).is_none_or(|(_, known)| known.event.version < event.version) {
                let key = event.key.clone();
                let record = SinkRecord {
                    partition: record.partition,
                    offset: record.offset,
                    event: Arc::new(event),
                };
                newest.insert(key, (n, record));
            }
        }
        let (places, records): (Vec<usize>, Vec<SinkRecord>) = newest.into_values().unzip();
        let judged =
            if dry_run { self.judge(&records).await? } else { self.apply_letters(records).await? };
        for (place, outcome) in places.into_iter().zip(judged) {
            outcomes[place] = outcome;
        }
        // Who asked may have gone: what was applied stays applied.
        let _ = reply.send(outcomes);
        Ok(())
    }

    async fn judge(&mut self, records: &[SinkRecord]) -> Result<Vec<ReplayOutcome>, StopAsked> {
        let keys: Arc<Vec<ContentKey>> =
            Arc::new(records.iter().map(|r| r.event.key.clone()).collect());
        let sink = Arc::clone(&self.sink);
        let known = self
            .insist(|| {
                let (sink, keys) = (Arc::clone(&sink), Arc::clone(&keys));
                async move { sink.versions(&keys).await }
            })
            .await?;
        let judged = records.iter().zip(known).map(|(record, known)| {
            let superseded = known.is_some_and(|known| known >= record.event.version);
            if superseded { ReplayOutcome::Superseded } else { ReplayOutcome::Applied }
        });
        Ok(judged.collect())
    }

    async fn apply_letters(
        &mut self,
        records: Vec<SinkRecord>,
    ) -> Result<Vec<ReplayOutcome>, StopAsked> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let (sink, records) = (Arc::clone(&self.sink), Arc::new(records));
        let verdicts = self
            .insist(|| {
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
}
