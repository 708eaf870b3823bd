-- Schema version 5: the request that an idempotency key came with. The tables are written in turn, with those of
-- evicted write ids. An older program ignores them.
CREATE TABLE idempotency_key_0 (id bytea PRIMARY KEY, request bigint NOT NULL);
CREATE TABLE idempotency_key_1 (id bytea PRIMARY KEY, request bigint NOT NULL);
CREATE TABLE idempotency_key_2 (id bytea PRIMARY KEY, request bigint NOT NULL);
CREATE INDEX content_never_written ON content (k) WHERE ver = 0;
