//! Consistency tokens and receipts: what they hold, how large they get, their frozen form.

use proptest::prelude::*;
use tagfast_domain::{EpochId, Version, WriteId};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::seal::SEALED_BYTES;
use tagfast_store::token::TOKEN_PAIRS;
use tagfast_store::{ConsistencyToken, History, Position, Receipt, SealError, SealKind};

use crate::seal::{sealer, tenant};

fn version(n: u64) -> Version {
    Version::from_packed(n).expect("63 bits")
}

fn position(epoch: u8, lsn: u64) -> Position {
    Position { epoch: EpochId([epoch; 16]), xid: lsn, lsn }
}

fn shard(number: u8) -> LogicalShard {
    LogicalShard::from_number(number).expect("a shard")
}

#[test]
fn a_sealed_token_is_frozen() {
    let mut token = ConsistencyToken::default();
    token.observe(ContentHash(0x0102_0304_0506_0708), version(9), position(0xEE, 77));
    let sealed = token.seal(&sealer(1), &tenant("acme"));
    assert_eq!(
        sealed,
        "EQEBAgMEBQYHCAAAAAAAAAAJAQju7u7u7u7u7u7u7u7u7u7uAAAAAAAAAE0AAAAAAAAATX2eAeUjkzLJHaXVsQ8w0ms"
    );
    assert_eq!(ConsistencyToken::open(&sealer(1), &tenant("acme"), &sealed), Ok(token));
}

#[test]
fn a_sealed_receipt_is_frozen() {
    let receipt = Receipt {
        cluster: 0x0102,
        shard: shard(63),
        inside_lsn: 5,
        position: Position { epoch: EpochId([0xEE; 16]), xid: 6, lsn: 7 },
        write_id: WriteId([0xAA; 16]),
    };
    let sealed = receipt.seal(&sealer(1), &tenant("acme"));
    assert_eq!(
        sealed,
        "IQECPwAAAAAAAAAF7u7u7u7u7u7u7u7u7u7u7gAAAAAAAAAGAAAAAAAAAAeqqqqqqqqqqqqqqqqqqqqqyKDA89tCip5_ghhgWhwP3g"
    );
    assert_eq!(Receipt::open(&sealer(1), &tenant("acme"), &sealed), Ok(receipt));
    assert_eq!(
        ConsistencyToken::open(&sealer(1), &tenant("acme"), &sealed),
        Err(SealError::WrongKind)
    );
    assert_eq!(Receipt::open(&sealer(1), &tenant("other"), &sealed), Err(SealError::WrongMac));
}

#[test]
fn the_newest_sixteen_contents_are_kept() {
    let mut token = ConsistencyToken::default();
    for n in 0..20 {
        token.observe(ContentHash(n), version(100 + n), position(1, n + 1));
    }
    assert_eq!(token.pairs.len(), TOKEN_PAIRS);
    assert_eq!(
        (token.version_of(ContentHash(3)), token.version_of(ContentHash(4))),
        (None, Some(version(104)))
    );
    assert_eq!(
        token.floors.len(),
        20,
        "the floor of its shard covers a content that was pushed out"
    );
    // Seen again: it moves to the newest end and is not pushed out next.
    token.observe(ContentHash(4), version(104), position(1, 50));
    token.observe(ContentHash(99), version(1), position(1, 51));
    assert!(
        token.version_of(ContentHash(4)).is_some() && token.version_of(ContentHash(5)).is_none()
    );
}

#[test]
fn what_was_seen_never_shrinks_within_an_epoch() {
    let mut token = ConsistencyToken::default();
    let content = ContentHash(64);
    token.observe(content, version(10), position(1, 100));
    token.observe(content, version(7), position(1, 90));
    assert_eq!(token.version_of(content), Some(version(10)), "an older answer takes nothing back");
    assert_eq!(token.floors[&shard(0)], position(1, 100));
    token.observe(content, version(11), position(2, 3));
    assert_eq!(
        token.floors[&shard(0)],
        position(2, 3),
        "positions of two epochs cannot be compared: the newer answer counts"
    );
}

/// The largest token there can be: all shards touched, all pairs used.
#[test]
fn the_largest_token_fits_a_header() {
    let mut token = ConsistencyToken::default();
    for n in 0..64 {
        let at = Position { epoch: EpochId([0xFF; 16]), xid: u64::MAX, lsn: u64::MAX };
        token.observe(ContentHash(u64::MAX - n), version(i64::MAX as u64), at);
    }
    assert_eq!((token.pairs.len(), token.floors.len()), (16, 64));
    let longest = tenant(&"t".repeat(64));
    let sealed = token.seal(&sealer(1), &longest);
    assert!(sealed.len() <= SEALED_BYTES, "{} bytes", sealed.len());
    assert_eq!(ConsistencyToken::open(&sealer(1), &longest, &sealed), Ok(token));
}

#[test]
fn bodies_that_are_no_tokens_are_refused() {
    let acme = tenant("acme");
    let mut too_many = vec![17];
    too_many.extend([0; 17 * 16 + 1]);
    let mut no_such_shard = vec![0, 1, 64];
    no_such_shard.extend([0; 32]);
    let mut too_large = vec![1];
    too_large.extend([0xFF; 16]);
    too_large.push(0);
    for body in [vec![], vec![1], vec![0, 1], vec![0, 0, 0], too_many, no_such_shard, too_large] {
        let sealed = sealer(1).seal(SealKind::Consistency, &acme, &body);
        assert_eq!(
            ConsistencyToken::open(&sealer(1), &acme, &sealed),
            Err(SealError::Malformed),
            "{body:?}"
        );
    }
    for length in (0..80).filter(|l| *l != 59) {
        let sealed = sealer(1).seal(SealKind::Receipt, &acme, &vec![0; length]);
        assert_eq!(
            Receipt::open(&sealer(1), &acme, &sealed),
            Err(SealError::Malformed),
            "{length} bytes"
        );
    }
}

fn any_position() -> impl Strategy<Value = Position> {
    (any::<[u8; 16]>(), any::<u64>(), any::<u64>()).prop_map(|(epoch, xid, lsn)| Position {
        epoch: EpochId(epoch),
        xid,
        lsn,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tokens_round_trip(seen in prop::collection::vec((any::<u64>(), 0..=i64::MAX as u64, any_position()), 0..90)) {
        let mut token = ConsistencyToken::default();
        for (content, packed, at) in seen {
            token.observe(ContentHash(content), version(packed), at);
            prop_assert!(token.version_of(ContentHash(content)) >= Some(version(packed)));
            prop_assert!(token.floors.contains_key(&LogicalShard::of_hash(ContentHash(content))));
        }
        prop_assert!(token.pairs.len() <= TOKEN_PAIRS && token.floors.len() <= 64);
        let sealed = token.seal(&sealer(3), &tenant("acme"));
        prop_assert!(sealed.len() <= SEALED_BYTES);
        prop_assert_eq!(ConsistencyToken::open(&sealer(3), &tenant("acme"), &sealed), Ok(token));
    }

    #[test]
    fn receipts_round_trip(cluster in any::<u16>(), number in 0u8..64, inside_lsn in any::<u64>(), at in any_position(), id in any::<[u8; 16]>()) {
        let receipt = Receipt { cluster, shard: shard(number), inside_lsn, position: at, write_id: WriteId(id) };
        let sealed = receipt.seal(&sealer(3), &tenant("acme"));
        prop_assert_eq!(Receipt::open(&sealer(3), &tenant("acme"), &sealed), Ok(receipt));
    }

    /// Bodies that carry a true MAC and yet are not ours: of another version of the program.
    #[test]
    fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..400)) {
        for kind in [SealKind::Consistency, SealKind::Receipt] {
            let sealed = sealer(3).seal(kind, &tenant("acme"), &body);
            let _ = ConsistencyToken::open(&sealer(3), &tenant("acme"), &sealed);
            let _ = Receipt::open(&sealer(3), &tenant("acme"), &sealed);
        }
    }
}

/// Epoch 2 is current, epoch 1 ended at LSN 100; later ones are not known yet.
struct TwoEpochs;

impl History for TwoEpochs {
    fn current(&self, _: LogicalShard) -> Option<EpochId> {
        Some(EpochId([2; 16]))
    }

    fn epoch_end(&self, _: LogicalShard, epoch: EpochId) -> Option<u64> {
        match epoch.0[0] {
            2 => Some(u64::MAX),
            1 => Some(100),
            _ => None,
        }
    }
}

#[test]
fn of_two_epochs_the_more_demanding_floor_stays() {
    let of = |at: Position| {
        let mut token = ConsistencyToken::default();
        token.observe(ContentHash(0), version(1), at);
        token
    };
    // From the least demanding to the most: kept by the current epoch, current, lost, unknown.
    let ranks = [position(1, 100), position(2, 1), position(1, 101), position(3, 1)];
    for (low, less) in ranks.iter().enumerate() {
        for more in ranks.iter().skip(low + 1).filter(|more| more.epoch != less.epoch) {
            for (first, second) in [(less, more), (more, less)] {
                let mut merged = of(*first);
                merged.merge(&of(*second), &TwoEpochs);
                assert_eq!(merged.floors[&shard(0)], *more, "{first:?} and {second:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever two sessions have seen of one epoch, their merged token covers: by its version, or
    /// by its shard's floor where the content was pushed out of a full token.
    #[test]
    fn a_merged_token_covers_what_each_has_seen(
        one in prop::collection::vec((1u64..60, 1u64..999), 0..40),
        other in prop::collection::vec((1u64..60, 1u64..999), 0..40),
    ) {
        // One session never goes back: what it sees later is not older.
        let of = |seen: &[(u64, u64)]| {
            let mut token = ConsistencyToken::default();
            let mut seen = seen.to_vec();
            seen.sort_by_key(|(_, lsn)| *lsn);
            for (content, lsn) in seen {
                token.observe(ContentHash(content), version(lsn), position(2, lsn));
            }
            token
        };
        let mut merged = of(&one);
        merged.merge(&of(&other), &TwoEpochs);
        prop_assert!(merged.pairs.len() <= TOKEN_PAIRS && merged.floors.len() <= 64);
        for (content, lsn) in one.iter().chain(&other) {
            let content = ContentHash(*content);
            let floor = merged.floors[&LogicalShard::of_hash(content)];
            prop_assert!(floor.lsn >= *lsn && floor.xid >= *lsn);
            match merged.version_of(content) {
                Some(seen) => prop_assert!(seen >= version(*lsn)),
                None => prop_assert_eq!(merged.pairs.len(), TOKEN_PAIRS, "nothing was dropped early"),
            }
        }
        let (one, other) = (of(&one), of(&other));
        if one.pairs.len().max(other.pairs.len()) < TOKEN_PAIRS {
            for (newest, _) in one.pairs.last().into_iter().chain(other.pairs.last()) {
                prop_assert!(merged.version_of(*newest).is_some(), "the newest of each stays");
            }
        }
        let sealed = merged.seal(&sealer(3), &tenant("acme"));
        prop_assert!(sealed.len() <= SEALED_BYTES);
        let same = merged.clone();
        merged.merge(&same, &TwoEpochs);
        prop_assert_eq!(merged, same, "what is known already changes nothing");
    }
}
