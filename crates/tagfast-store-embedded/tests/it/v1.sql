-- A file as schema version 1 made it: kept for ever, so that later programs are tested against it.
PRAGMA application_id = 1415669574;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE epoch (ordinal INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, minted_at INTEGER NOT NULL, fences TEXT);
CREATE TABLE content (k BLOB PRIMARY KEY, ver INTEGER NOT NULL, doc BLOB NOT NULL);
CREATE TABLE applied (k BLOB NOT NULL, wid BLOB NOT NULL, fingerprint INTEGER NOT NULL, effect BLOB NOT NULL,
                      ver INTEGER NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (k, wid)) WITHOUT ROWID;
CREATE INDEX applied_at ON applied (at);
CREATE TABLE bus_event (pos INTEGER PRIMARY KEY AUTOINCREMENT, stripe INTEGER NOT NULL, key BLOB NOT NULL,
                        ver INTEGER NOT NULL, at INTEGER NOT NULL, emit INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE bus_offset (grp TEXT PRIMARY KEY, pos INTEGER NOT NULL, emit INTEGER NOT NULL,
                         updated_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE bus_dlq (letter_id TEXT PRIMARY KEY, grp TEXT NOT NULL, pos INTEGER NOT NULL, key BLOB NOT NULL,
                      ver INTEGER NOT NULL, at INTEGER NOT NULL, emit INTEGER NOT NULL, payload BLOB NOT NULL,
                      headers TEXT NOT NULL, class TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL,
                      attempts INTEGER NOT NULL, replays INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT,
                      first_failed_at INTEGER NOT NULL, last_failed_at INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
