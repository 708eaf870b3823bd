-- What version 2 added to version 1. Never edit it.
ALTER TABLE bus_dlq ADD COLUMN tenant TEXT;
ALTER TABLE bus_dlq ADD COLUMN content_type TEXT;
ALTER TABLE bus_dlq ADD COLUMN content_id TEXT;
ALTER TABLE bus_dlq ADD COLUMN closed_at INTEGER;
ALTER TABLE bus_dlq ADD COLUMN job TEXT;
UPDATE bus_dlq SET tenant = CAST(substr(key, 1, instr(key, x'00') - 1) AS TEXT),
    content_type = CAST(substr(substr(key, instr(key, x'00') + 1), 1,
                               instr(substr(key, instr(key, x'00') + 1), x'00') - 1) AS TEXT),
    content_id = CAST(substr(substr(key, instr(key, x'00') + 1),
                             instr(substr(key, instr(key, x'00') + 1), x'00') + 1) AS TEXT)
    WHERE instr(key, x'00') > 0;
CREATE INDEX bus_dlq_order ON bus_dlq (last_failed_at, letter_id);
CREATE INDEX bus_dlq_state ON bus_dlq (state, last_failed_at, letter_id);
CREATE INDEX bus_dlq_job ON bus_dlq (job, grp, pos) WHERE job IS NOT NULL;
CREATE TABLE letter_job (id TEXT PRIMARY KEY, dry_run INTEGER NOT NULL, rate INTEGER NOT NULL, at INTEGER NOT NULL,
                         letters INTEGER NOT NULL, closed INTEGER NOT NULL, busy INTEGER NOT NULL,
                         applied INTEGER NOT NULL DEFAULT 0, superseded INTEGER NOT NULL DEFAULT 0,
                         failed INTEGER NOT NULL DEFAULT 0, dropped INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE letter_act (n INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, by TEXT NOT NULL, action TEXT NOT NULL,
                         detail TEXT NOT NULL, letters INTEGER NOT NULL);
PRAGMA user_version = 2;
