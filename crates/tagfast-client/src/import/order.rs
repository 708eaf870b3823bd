//! Decides which batch may be sent next, so that the lines of one content are applied in the order
//! of the file, whatever the number of requests in flight.
//!
//! Invariant: a batch is handed out only when every earlier batch with one of its contents is
//! finished, with all its retries. A batch never has a content twice: a server that answers two
//! lines of one content in one request may refuse the first for a moment and apply the second.
//! The earliest batch waits for nothing, so the queue never stands still.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::reader::Batch;

/// The batches that are not finished, in the order of the file.
#[derive(Default)]
pub(super) struct BatchQueue {
    next_id: u64,
    waiting: BTreeMap<u64, WaitingBatch>,
    /// Ids of the waiting batches that wait for no other one.
    ready: BTreeSet<u64>,
    /// Contents of the batches that were handed out.
    running: HashMap<u64, Vec<u64>>,
    /// The last unfinished batch with a content, by the content's hash.
    last_with: HashMap<u64, u64>,
    /// Ids of the batches that wait for a batch; one entry for each shared content.
    waits_for: HashMap<u64, Vec<u64>>,
    /// Size of the items of all unfinished batches, in bytes.
    bytes: usize,
}

struct WaitingBatch {
    batch: Batch,
    /// Contents of which an earlier batch is unfinished.
    blocked: usize,
}

impl BatchQueue {
    /// Adds a batch behind all others.
    pub(super) fn push(&mut self, batch: Batch) {
        let id = self.next_id;
        self.next_id += 1;
        let mut blocked = 0;
        for entry in &batch.entries {
            if let Some(earlier) = self.last_with.insert(entry.content, id) {
                self.waits_for.entry(earlier).or_default().push(id);
                blocked += 1;
            }
        }
        if blocked == 0 {
            self.ready.insert(id);
        }
        self.bytes += batch.bytes();
        self.waiting.insert(id, WaitingBatch { batch, blocked });
    }

    /// Takes the earliest batch that may be sent, with its id; `None` = all wait, or none is left.
    pub(super) fn take(&mut self) -> Option<(u64, Batch)> {
        let id = self.ready.pop_first()?;
        let batch = self.waiting.remove(&id)?.batch;
        self.running.insert(id, batch.entries.iter().map(|e| e.content).collect());
        Some((id, batch))
    }

    /// The batch with this id, of `bytes` bytes, is answered.
    pub(super) fn finish(&mut self, id: u64, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        for content in self.running.remove(&id).unwrap_or_default() {
            if self.last_with.get(&content) == Some(&id) {
                self.last_with.remove(&content);
            }
        }
        for later in self.waits_for.remove(&id).unwrap_or_default() {
            if let Some(waiting) = self.waiting.get_mut(&later) {
                waiting.blocked -= 1;
                if waiting.blocked == 0 {
                    self.ready.insert(later);
                }
            }
        }
    }

    /// Whether every batch is handed out.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Size of the items of all unfinished batches, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::reader::{ImportEntry, layered};
    use super::*;

    proptest! {
        /// Whatever the lines, the batches' sizes and the order of the answers: no content is in
        /// two requests at once, its lines are sent in their order, and none is left behind.
        #[test]
        fn a_content_is_in_one_request_and_its_lines_keep_their_order(
            contents in proptest::collection::vec(0u64..12, 1..200),
            segment in 1usize..60,
            lines_max in 1usize..9,
            parallel in 1usize..7,
            choices in proptest::collection::vec(any::<usize>(), 200),
        ) {
            let mut queue = BatchQueue::default();
            let entries: Vec<ImportEntry> = contents
                .iter()
                .enumerate()
                .map(|(n, content)| ImportEntry {
                    line: n as u64 + 1,
                    item: vec![0; 3],
                    tags: 1,
                    content: *content,
                })
                .collect();
            let mut segments = entries.chunks(segment).map(<[_]>::to_vec);
            let mut in_flight: Vec<(u64, Batch)> = Vec::new();
            let mut sent: HashMap<u64, Vec<u64>> = HashMap::new();
            let mut choices = choices.into_iter().cycle();
            let mut choose = |n: usize| choices.next().unwrap_or(0) % n.max(1);
            loop {
                if choose(2) == 0 || (in_flight.is_empty() && queue.is_empty()) {
                    match segments.next() {
                        Some(lines) => layered(lines, lines_max).into_iter().for_each(|batch| {
                            queue.push(batch);
                        }),
                        None if in_flight.is_empty() && queue.is_empty() => break,
                        None => {}
                    }
                }
                while in_flight.len() < parallel {
                    let Some((id, batch)) = queue.take() else { break };
                    for entry in &batch.entries {
                        let busy = in_flight
                            .iter()
                            .flat_map(|(_, b)| &b.entries)
                            .any(|e| e.content == entry.content);
                        prop_assert!(!busy, "content {} is in two requests", entry.content);
                        sent.entry(entry.content).or_default().push(entry.line);
                    }
                    in_flight.push((id, batch));
                }
                if in_flight.is_empty() {
                    prop_assert!(queue.is_empty(), "the queue stands still");
                    continue;
                }
                let (id, batch) = in_flight.swap_remove(choose(in_flight.len()));
                queue.finish(id, batch.bytes());
            }
            prop_assert_eq!(queue.bytes(), 0);
            prop_assert_eq!(sent.values().map(Vec::len).sum::<usize>(), contents.len());
            for (content, lines) in sent {
                prop_assert!(lines.is_sorted(), "content {content}: {lines:?}");
            }
        }
    }
}
