-- Schema version 1: epochs, contents, the outbox and its relay's cursor.
CREATE TABLE epoch (ordinal bigint PRIMARY KEY, id bytea UNIQUE NOT NULL, parent_id bytea, reign bigint NOT NULL,
    timeline int NOT NULL, fork_lsn pg_lsn, minted_at timestamptz NOT NULL, minted_by text NOT NULL,
    reconciled_at timestamptz, repair_closed_at timestamptz);
CREATE TABLE content (k bytea PRIMARY KEY, ver bigint NOT NULL, doc bytea NOT NULL) WITH (fillfactor = 80);
CREATE TABLE applied_0 (k bytea NOT NULL, wid bytea NOT NULL, fingerprint bigint NOT NULL, effect bytea NOT NULL,
    ver bigint NOT NULL, at bigint NOT NULL);
CREATE INDEX applied_0_id ON applied_0 (wid);
CREATE TABLE applied_1 (LIKE applied_0);
CREATE INDEX applied_1_id ON applied_1 (wid);
CREATE TABLE applied_2 (LIKE applied_0);
CREATE INDEX applied_2_id ON applied_2 (wid);
CREATE TABLE outbox_0 (xid xid8 NOT NULL DEFAULT pg_current_xact_id(), n int NOT NULL, k bytea NOT NULL,
    event bytea NOT NULL);
CREATE INDEX outbox_0_order ON outbox_0 (xid, n);
CREATE TABLE outbox_1 (LIKE outbox_0 INCLUDING DEFAULTS);
CREATE INDEX outbox_1_order ON outbox_1 (xid, n);
CREATE TABLE outbox_2 (LIKE outbox_0 INCLUDING DEFAULTS);
CREATE INDEX outbox_2_order ON outbox_2 (xid, n);
CREATE TABLE turn (one bool PRIMARY KEY DEFAULT true CHECK (one), outbox int NOT NULL DEFAULT 0,
    applied int NOT NULL DEFAULT 0, applied_since timestamptz NOT NULL DEFAULT clock_timestamp());
INSERT INTO turn DEFAULT VALUES;
CREATE TABLE relay_cursor (one bool PRIMARY KEY DEFAULT true CHECK (one), epoch bytea NOT NULL, xid xid8 NOT NULL,
    n int NOT NULL);
