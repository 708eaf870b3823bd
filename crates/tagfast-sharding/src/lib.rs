//! Logical shards: which of the 64 a content belongs to, and which file or cluster holds a shard. Pure.
