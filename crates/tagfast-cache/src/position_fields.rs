//! The fields of a user's hash of session positions in Redis, as text.
//!
//! | field | value |
//! |---|---|
//! | `cHASH` | version that the user wrote of the content with this hash (20 digits) |
//! | `fSS` | floor: epoch, transaction id and log position of the user's last write in shard `SS` |
//! | `n` | number of `c` fields |
//! | `full` | present once `c` fields were dropped: the floors stand for them |

use tagfast_domain::EpochId;
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::Position;

use crate::entry::digits;

/// Set when a content's version may have been dropped.
pub(crate) const FULL_FIELD: &str = "full";

pub(crate) fn content_field(content: ContentHash) -> String {
    format!("c{:016x}", content.0)
}

pub(crate) fn floor_field(shard: LogicalShard) -> String {
    format!("f{:02}", shard.number())
}

/// Transaction id and log position, 20 digits each: the part of a floor that the script compares.
pub(crate) fn encode_progress(position: &Position) -> String {
    format!("{} {}", digits(position.xid), digits(position.lsn))
}

/// Decodes a floor: epoch in hexadecimal, transaction id, log position.
pub(crate) fn decode_floor(text: &str) -> Option<Position> {
    let mut parts = text.split(' ');
    let epoch = u128::from_str_radix(parts.next()?, 16).ok()?;
    let (xid, lsn) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(Position { epoch: EpochId(epoch.to_be_bytes()), xid, lsn })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_decoded_as_they_are_encoded() {
        let at = Position { epoch: EpochId([0xab; 16]), xid: 7, lsn: u64::MAX };
        let text = format!("{} {}", at.epoch, encode_progress(&at));
        // The script cuts at these offsets.
        assert_eq!(
            (text.len(), &text[33..53], &text[54..74]),
            (74, digits(7).as_str(), digits(u64::MAX).as_str())
        );
        assert_eq!(decode_floor(&text), Some(at));
        assert_eq!(decode_floor("x"), None);
    }
}
