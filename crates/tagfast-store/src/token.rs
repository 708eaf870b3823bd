//! Consistency tokens (what a client has written and seen) and receipts (one write).
//!
//! The body is a fixed binary layout inside a [`crate::Sealer`] string; golden vectors pin it. A
//! token holds up to 16 (content, version) pairs, exact for those contents, and a floor per touched
//! shard for everything else.

use std::collections::BTreeMap;

use tagfast_domain::{EpochId, TenantId, Version, WriteId};
use tagfast_sharding::{ContentHash, LogicalShard};

use crate::{History, SealError, SealKind, Sealer};

/// Maximum (content, version) pairs in a token; an older pair is covered by its shard's floor.
pub const TOKEN_PAIRS: usize = 16;

/// Fills a merged token that must count as full. No content has this hash, with all certainty that
/// 64 bits give.
const NO_CONTENT: ContentHash = ContentHash(0);

/// A store's log position. Within one epoch, larger is later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The epoch; positions of different epochs cannot be compared.
    pub epoch: EpochId,
    /// Transaction id; embedded: the same number as `lsn`.
    pub xid: u64,
    /// Log position; embedded: the file's newest event position.
    pub lsn: u64,
}

/// What a client has written and seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConsistencyToken {
    /// Contents and their seen versions, oldest first.
    pub pairs: Vec<(ContentHash, Version)>,
    /// The newest position seen per touched shard.
    pub floors: BTreeMap<LogicalShard, Position>,
}

impl ConsistencyToken {
    /// Adds one more answer.
    pub fn observe(&mut self, content: ContentHash, version: Version, position: Position) {
        let seen =
            self.pairs.iter().position(|(c, _)| *c == content).map(|i| self.pairs.remove(i).1);
        self.pairs.push((content, seen.map_or(version, |v| v.max(version))));
        let excess = self.pairs.len().saturating_sub(TOKEN_PAIRS);
        self.pairs.drain(..excess);
        let floor = self.floors.entry(LogicalShard::of_hash(content)).or_insert(position);
        // A different epoch replaces: the store that answered knows the current one.
        if floor.epoch != position.epoch {
            *floor = position;
        }
        // Either may be newer: a position that covers both maxima covers both positions.
        (floor.xid, floor.lsn) = (floor.xid.max(position.xid), floor.lsn.max(position.lsn));
    }

    /// Forgets what was seen of a content, when the newest state of the history does not show it
    /// any more: no later answer could.
    pub fn forget(&mut self, content: ContentHash) {
        self.pairs.retain(|(known, _)| *known != content);
    }

    /// Adds what a different token of the same client has seen, so that what satisfies the result
    /// satisfies both. `history` says which of two epochs demands more.
    ///
    /// The newest contents of both stay. The floor of its shard stands for a content that is pushed
    /// out, and for one that a full token may have pushed out, because that one may have seen a
    /// newer version than the other.
    pub fn merge<H: History + ?Sized>(&mut self, other: &Self, history: &H) {
        // By the distance from the newest end, so that neither pushes out all of the other.
        let mut seen: Vec<(usize, ContentHash, Version)> = Vec::new();
        for pairs in [&self.pairs, &other.pairs] {
            for (age, (content, version)) in pairs.iter().rev().enumerate() {
                match seen.iter_mut().find(|(_, known, _)| known == content) {
                    Some(known) => (known.0, known.2) = (known.0.min(age), known.2.max(*version)),
                    None => seen.push((age, *content, *version)),
                }
            }
        }
        let is_full = |token: &Self| token.pairs.len() >= TOKEN_PAIRS;
        let is_exact =
            |token: &Self, content| !is_full(token) || token.version_of(content).is_some();
        let must_be_full = is_full(self) || is_full(other) || seen.len() > TOKEN_PAIRS;
        seen.retain(|(_, content, _)| is_exact(self, *content) && is_exact(other, *content));
        seen.sort_by_key(|(age, ..)| std::cmp::Reverse(*age));
        seen.drain(..seen.len().saturating_sub(TOKEN_PAIRS));
        // Floors count in a full token alone: pairs of no content, the next to be pushed out.
        let missing = if must_be_full { TOKEN_PAIRS - seen.len() } else { 0 };
        let filler = std::iter::repeat_n((NO_CONTENT, Version::NONE), missing);
        let kept = seen.into_iter().map(|(_, content, version)| (content, version));
        self.pairs = filler.chain(kept).collect();

        for (shard, theirs) in &other.floors {
            let floor = self.floors.entry(*shard).or_insert(*theirs);
            if floor.epoch == theirs.epoch {
                (floor.xid, floor.lsn) = (floor.xid.max(theirs.xid), floor.lsn.max(theirs.lsn));
            } else if demand(history, *shard, theirs) > demand(history, *shard, floor) {
                *floor = *theirs;
            }
        }
    }

    /// The version this client has seen of a content; `None`: only the floor is known.
    pub fn version_of(&self, content: ContentHash) -> Option<Version> {
        self.pairs.iter().find(|(c, _)| *c == content).map(|(_, v)| *v)
    }

    /// The sealed form, at most [`crate::seal::SEALED_BYTES`] long.
    pub fn seal(&self, sealer: &Sealer, tenant: &TenantId) -> String {
        let mut body = Vec::with_capacity(2 + self.pairs.len() * 16 + self.floors.len() * 33);
        body.push(self.pairs.len() as u8);
        for (content, version) in &self.pairs {
            body.extend_from_slice(&content.0.to_be_bytes());
            body.extend_from_slice(&version.packed().to_be_bytes());
        }
        body.push(self.floors.len() as u8);
        for (shard, floor) in &self.floors {
            body.push(shard.number());
            put_position(&mut body, floor);
        }
        sealer.seal(SealKind::Consistency, tenant, &body)
    }

    /// Opens a sealed token.
    ///
    /// # Errors
    ///
    /// As [`Sealer::open`], and [`SealError::Malformed`] for an unknown layout.
    pub fn open(sealer: &Sealer, tenant: &TenantId, sealed: &str) -> Result<Self, SealError> {
        let body = sealer.open(SealKind::Consistency, tenant, sealed)?;
        Self::parse(&body).ok_or(SealError::Malformed)
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let mut rest = body;
        let mut token = Self::default();
        for _ in 0..take::<1>(&mut rest)?[0] {
            let content = ContentHash(u64::from_be_bytes(take(&mut rest)?));
            token
                .pairs
                .push((content, Version::from_packed(u64::from_be_bytes(take(&mut rest)?)).ok()?));
        }
        for _ in 0..take::<1>(&mut rest)?[0] {
            let shard = LogicalShard::from_number(take::<1>(&mut rest)?[0])?;
            token.floors.insert(shard, take_position(&mut rest)?);
        }
        (rest.is_empty() && token.pairs.len() <= TOKEN_PAIRS).then_some(token)
    }
}

/// How much a floor demands of a reader of its shard, compared with floors of other epochs. What
/// satisfies the higher one satisfies the lower one, because only the current epoch and what is
/// beyond it can still be missed.
fn demand<H: History + ?Sized>(history: &H, shard: LogicalShard, floor: &Position) -> u8 {
    match history.epoch_end(shard, floor.epoch) {
        // Perhaps a newer epoch, which this process is still to learn of.
        None => 3,
        // Lost by a failover or restore: read where it is newest, and reported.
        Some(end) if floor.lsn > end => 2,
        Some(_) if history.current(shard) == Some(floor.epoch) => 1,
        // Every snapshot of the current epoch has it.
        Some(_) => 0,
    }
}

/// Identifies one acknowledged write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The cluster that committed it; embedded: 0.
    pub cluster: u16,
    /// The logical shard.
    pub shard: LogicalShard,
    /// The log position inside the transaction (L1): below the commit. Embedded: as
    /// `position.lsn`.
    pub inside_lsn: u64,
    /// The position at or after the commit (L2), with its epoch.
    pub position: Position,
    /// The write.
    pub write_id: WriteId,
}

impl Receipt {
    /// The sealed form.
    pub fn seal(&self, sealer: &Sealer, tenant: &TenantId) -> String {
        let mut body = Vec::with_capacity(2 + 1 + 8 + 32 + 16);
        body.extend_from_slice(&self.cluster.to_be_bytes());
        body.push(self.shard.number());
        body.extend_from_slice(&self.inside_lsn.to_be_bytes());
        put_position(&mut body, &self.position);
        body.extend_from_slice(&self.write_id.0);
        sealer.seal(SealKind::Receipt, tenant, &body)
    }

    /// Opens a sealed receipt.
    ///
    /// # Errors
    ///
    /// As [`Sealer::open`], and [`SealError::Malformed`] for an unknown layout.
    pub fn open(sealer: &Sealer, tenant: &TenantId, sealed: &str) -> Result<Self, SealError> {
        let body = sealer.open(SealKind::Receipt, tenant, sealed)?;
        Self::parse(&body).ok_or(SealError::Malformed)
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let mut rest = body;
        let receipt = Self {
            cluster: u16::from_be_bytes(take(&mut rest)?),
            shard: LogicalShard::from_number(take::<1>(&mut rest)?[0])?,
            inside_lsn: u64::from_be_bytes(take(&mut rest)?),
            position: take_position(&mut rest)?,
            write_id: WriteId(take(&mut rest)?),
        };
        rest.is_empty().then_some(receipt)
    }
}

fn put_position(body: &mut Vec<u8>, position: &Position) {
    body.extend_from_slice(&position.epoch.0);
    body.extend_from_slice(&position.xid.to_be_bytes());
    body.extend_from_slice(&position.lsn.to_be_bytes());
}

fn take_position(rest: &mut &[u8]) -> Option<Position> {
    Some(Position {
        epoch: EpochId(take(rest)?),
        xid: u64::from_be_bytes(take(rest)?),
        lsn: u64::from_be_bytes(take(rest)?),
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_at_checked(N)?;
    *rest = tail;
    head.try_into().ok()
}
