//! The embedded store: SQLite files, group commit, the outbox as the durable bus.
