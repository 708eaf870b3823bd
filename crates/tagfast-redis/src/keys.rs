//! Every Redis key and channel of the product.
//!
//! | key | type | TTL | written by | read by | holds |
//! |---|---|---|---|---|---|
//! | `tf:v:SS:tenant/type/id` | string | 1 h | API nodes (cache fill) | API nodes | view of one content |
//! | `tf:q:SS` | hash | none | cache fill script | invalidation subscriber | `gen`, `seq`: last message of the stripe |
//! | `tf:i:SS` | channel | - | cache fill script | invalidation subscriber | `gen seq version key` of a changed content |
//! | `tf:gen` | string | none | any node that connects | all nodes | `id run_id unix_seconds`: which Redis this is, since when |
//! | `tf:p:tenant/user` | hash | 75 s | API nodes (write) | API nodes (session read) | last writes of a user |
//! | `tf:po:P` | string | none | owner of partition P | owner of P | random claim that fences earlier owners |
//! | `tf:pc:P:tenant:window` | hash | none | owner of P | owner of the tenant's leaderboards | tag -> count in P |
//! | `tf:pp:P` | set | none | owner of P | owner of P | tenants with counts in P |
//! | `tf:pa` | hash | none | owners of partitions | owners of leaderboards | P -> Unix ms through which its counts are pushed |
//! | `tf:pd:tenant` | set | none | owners of partitions | owner of the leaderboards | tags to be merged |
//! | `tf:pm:tenant` | set | none | owner of the leaderboards | owner of the leaderboards | tags being merged |
//! | `tf:pt:P` | set | none | owners of partitions | owner of P | tenants whose leaderboards P's owner must merge |
//! | `tf:pl:tenant:window` | sorted set | none | owner of the leaderboards | API nodes | the leaderboard: tag by count |
//! | `tf:pn:tenant` | hash | none | owner of the leaderboards | API nodes | tag -> first spelling |
//! | `tf:px:tenant` | sorted set | none | owner of the leaderboards | API nodes | every tag that contents carry, by name |
//! | `tf:pv:tenant` | string | none | owner of the leaderboards | API nodes | server time of the last merge |
//! | `tf:pw` | hash | none | owners of leaderboards | API nodes | P -> Unix ms through which its leaderboards are merged |
//!
//! `SS` is a logical shard with two digits (cache code calls it a stripe), `P` a bus partition,
//! `window` one of `all`, `1h`, `24h`, `7d`. The first three are in the cache Redis, which may
//! evict keys that have a TTL; the others are in the state Redis, which must not evict anything.
//!
//! Scripts that build keys from their arguments take the patterns from here too: [`expand`].

/// Identity of a state Redis: `id run_id unix_seconds`.
pub const GENERATION: &str = "tf:gen";
/// Hash partition -> Unix ms: everything committed before it is pushed to `tf:pc:`.
pub const PUSHED_THROUGH: &str = "tf:pa";
/// Hash partition -> Unix ms: everything committed before it is on the leaderboards that the
/// partition's owner merges.
pub const MERGED_THROUGH: &str = "tf:pw";

const CHANNEL: &str = "tf:i:";
const POSITIONS: &str = "tf:p:";
const PARTITION_CLAIM: &str = "tf:po:";
const PARTITION_COUNTS: &str = "tf:pc:";
const PARTITION_TENANTS: &str = "tf:pp:";
const DIRTY_TAGS: &str = "tf:pd:";
const MERGING_TAGS: &str = "tf:pm:";
const TENANTS_TO_MERGE: &str = "tf:pt:";
const LEADERBOARD: &str = "tf:pl:";
const DISPLAY_NAMES: &str = "tf:pn:";
const LEADERBOARD_VERSION: &str = "tf:pv:";
const TAG_NAMES: &str = "tf:px:";

/// Placeholders of [`expand`]. A name that begins with another one stands before it.
const PLACEHOLDERS: [(&str, &str); 9] = [
    ("$partition_counts", PARTITION_COUNTS),
    ("$partition_tenants", PARTITION_TENANTS),
    ("$dirty_tags", DIRTY_TAGS),
    ("$merging_tags", MERGING_TAGS),
    ("$tenants_to_merge", TENANTS_TO_MERGE),
    ("$leaderboard_version", LEADERBOARD_VERSION),
    ("$leaderboard", LEADERBOARD),
    ("$display_names", DISPLAY_NAMES),
    ("$tag_names", TAG_NAMES),
];

/// The cached view of a content. `content` is the encoded key: tenant, type and id, separated by
/// zero bytes. A slash takes their place, which neither tenants nor types may contain.
pub fn view(shard: u8, content: &[u8]) -> Vec<u8> {
    let mut key = format!("tf:v:{shard:02}:").into_bytes();
    key.extend(content.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }));
    key
}

/// The sequence of a stripe's invalidation messages: fields `gen` and `seq`.
pub fn sequence(shard: u8) -> String {
    format!("tf:q:{shard:02}")
}

/// The pub/sub channel of a stripe's invalidation messages.
pub fn invalidation_channel(shard: u8) -> String {
    format!("{CHANNEL}{shard:02}")
}

/// The shard of an invalidation channel; `None` for any other channel.
pub fn shard_of_channel(channel: &str) -> Option<u8> {
    channel.strip_prefix(CHANNEL)?.parse().ok()
}

/// The last writes of a user.
pub fn positions(tenant: &str, user: &str) -> String {
    format!("{POSITIONS}{tenant}/{user}")
}

/// The claim of a partition's owner.
pub fn partition_claim(partition: u16) -> String {
    format!("{PARTITION_CLAIM}{partition}")
}

/// The counts of one partition for a tenant and a window.
pub fn partition_counts(partition: u16, tenant: &str, window: &str) -> String {
    format!("{PARTITION_COUNTS}{partition}:{tenant}:{window}")
}

/// The tenants that a partition has counts of.
pub fn partition_tenants(partition: u16) -> String {
    format!("{PARTITION_TENANTS}{partition}")
}

/// The tags of a tenant that must be merged into its leaderboards.
pub fn dirty_tags(tenant: &str) -> String {
    format!("{DIRTY_TAGS}{tenant}")
}

/// The tags of a tenant that are being merged.
pub fn merging_tags(tenant: &str) -> String {
    format!("{MERGING_TAGS}{tenant}")
}

/// The tenants whose leaderboards the owner of a partition must merge.
pub fn tenants_to_merge(partition: u16) -> String {
    format!("{TENANTS_TO_MERGE}{partition}")
}

/// The leaderboard of a tenant and a window.
pub fn leaderboard(tenant: &str, window: &str) -> String {
    format!("{LEADERBOARD}{tenant}:{window}")
}

/// The first spelling of each tag on a tenant's leaderboards.
pub fn display_names(tenant: &str) -> String {
    format!("{DISPLAY_NAMES}{tenant}")
}

/// All tags of a tenant with the same score, so that they are in the order of their names.
pub fn tag_names(tenant: &str) -> String {
    format!("{TAG_NAMES}{tenant}")
}

/// The server time at which a tenant's leaderboards changed last.
pub fn leaderboard_version(tenant: &str) -> String {
    format!("{LEADERBOARD_VERSION}{tenant}")
}

/// Replaces the placeholders of a Lua script by key prefixes: `$partition_counts`,
/// `$partition_tenants`, `$dirty_tags`, `$merging_tags`, `$tenants_to_merge`,
/// `$leaderboard_version`, `$leaderboard`, `$display_names`.
///
/// `'$dirty_tags' .. tenant` in the script yields the key of [`dirty_tags`].
pub fn expand(script: &str) -> String {
    let replace = |script: String, (name, prefix): &(&str, &str)| script.replace(name, prefix);
    PLACEHOLDERS.iter().fold(script.to_owned(), replace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_pinned() {
        assert_eq!(view(7, b"acme\0test.doc\0a/b"), b"tf:v:07:acme/test.doc/a/b");
        assert_eq!((sequence(7), invalidation_channel(63)), ("tf:q:07".into(), "tf:i:63".into()));
        assert_eq!(shard_of_channel(&invalidation_channel(7)), Some(7));
        assert_eq!(shard_of_channel("tf:q:07"), None);
        assert_eq!(positions("acme", "ana"), "tf:p:acme/ana");
        assert_eq!(partition_counts(3, "acme", "24h"), "tf:pc:3:acme:24h");
        assert_eq!(leaderboard("acme", "all"), "tf:pl:acme:all");
    }

    #[test]
    fn scripts_build_the_same_keys() {
        let script = "'$partition_counts' '$partition_tenants' '$dirty_tags' '$merging_tags' \
                      '$tenants_to_merge' '$leaderboard' '$leaderboard_version' '$display_names'";
        assert_eq!(
            expand(script),
            "'tf:pc:' 'tf:pp:' 'tf:pd:' 'tf:pm:' 'tf:pt:' 'tf:pl:' 'tf:pv:' 'tf:pn:'"
        );
    }
}
