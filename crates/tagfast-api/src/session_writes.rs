//! Writes of a session that a failover may have lost: the receipts that come with a view.
//!
//! A receipt past the end of its epoch is looked up. Its view comes from the primary, and says so
//! if the write is lost. Any other receipt changes nothing and costs no question.
//!
//! How it fails: a verdict that cannot be had is no error. The view comes from the primary where
//! that answers, and says that it may lack the session's writes.

use tagfast_store::{Consistency, Degraded, ReadOptions, Receipt, TagStore, Verdict, WRITE_LOST};

use crate::wire::meta::Meta;

/// A verdict could not be had: the view may lack the write.
const UNKNOWN: Degraded = Degraded { feature: "session", reason: "failover" };

/// What the receipts of a request ask of its views.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionWrites {
    needs_primary: bool,
    degraded: Vec<Degraded>,
}

impl SessionWrites {
    /// Looks up what became of the writes.
    pub(crate) async fn of(store: &dyn TagStore, receipts: &[Receipt]) -> Self {
        let mut session = Self::default();
        if receipts.is_empty() {
            return session;
        }
        for (receipt, verdict) in receipts.iter().zip(store.verdicts(receipts).await) {
            let position = receipt.position;
            let is_past_end = store.epoch_end(receipt.shard, position.epoch) < Some(position.lsn);
            let (needs_primary, degraded) = match verdict {
                Ok(Verdict::Kept) => (is_past_end, None),
                Ok(Verdict::Repaired { .. } | Verdict::Unknown(_)) => (true, None),
                Ok(Verdict::Lost(_)) => (true, Some(WRITE_LOST)),
                Err(_) => (false, Some(UNKNOWN)),
            };
            session.needs_primary |= needs_primary;
            session.degraded.extend(degraded.filter(|d| !session.degraded.contains(d)));
        }
        session
    }

    /// The options of a view that shows what became of the writes.
    pub(crate) fn options<'a>(&self, options: ReadOptions<'a>) -> ReadOptions<'a> {
        let consistency =
            if self.needs_primary { Consistency::Strong } else { options.consistency };
        let primary_first = options.primary_first || !self.degraded.is_empty();
        ReadOptions { consistency, primary_first, ..options }
    }

    /// Whether there is anything to say in a view.
    pub(crate) fn is_degraded(&self) -> bool {
        !self.degraded.is_empty()
    }

    /// Says in a view what was lost. `known`: what it says already.
    pub(crate) fn mark(&self, meta: &mut Meta, known: &[Degraded]) {
        let new = self.degraded.iter().filter(|degraded| !known.contains(degraded));
        new.for_each(|degraded| meta.degrade(degraded.feature, degraded.reason));
    }
}
