CREATE TABLE idempotency_key (slice INTEGER NOT NULL, id BLOB NOT NULL, request INTEGER NOT NULL,
                              PRIMARY KEY (slice, id)) WITHOUT ROWID;
CREATE INDEX content_never_written ON content (k) WHERE ver = 0;
PRAGMA user_version = 5;
