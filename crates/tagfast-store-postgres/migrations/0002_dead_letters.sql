-- Schema version 2: dead letters, on the cluster that owns shard 0.
CREATE SCHEMA tagfast_control;
CREATE TABLE tagfast_control.letter (letter_id text COLLATE "C" PRIMARY KEY, grp text NOT NULL, part int NOT NULL,
    pos bigint NOT NULL, key bytea NOT NULL, ver bigint NOT NULL, at bigint NOT NULL, cluster text NOT NULL,
    emit bigint NOT NULL, payload bytea NOT NULL, headers text NOT NULL, class text NOT NULL, code text NOT NULL,
    message text NOT NULL, attempts int NOT NULL, replays int NOT NULL DEFAULT 0, state text NOT NULL DEFAULT 'open',
    reason text, first_failed_at bigint NOT NULL, last_failed_at bigint NOT NULL, tenant text, content_type text,
    content_id text COLLATE "C", closed_at bigint, job text);
CREATE INDEX letter_order ON tagfast_control.letter (last_failed_at, letter_id);
CREATE INDEX letter_state ON tagfast_control.letter (state, last_failed_at, letter_id);
CREATE INDEX letter_job_of ON tagfast_control.letter (job, grp, pos) WHERE job IS NOT NULL;
CREATE TABLE tagfast_control.letter_read (grp text NOT NULL, part int NOT NULL, next bigint NOT NULL,
    PRIMARY KEY (grp, part));
CREATE TABLE tagfast_control.letter_job (id text PRIMARY KEY, dry_run bool NOT NULL, rate int NOT NULL, at bigint NOT NULL,
    letters bigint NOT NULL, closed bigint NOT NULL, busy bigint NOT NULL, applied bigint NOT NULL DEFAULT 0,
    superseded bigint NOT NULL DEFAULT 0, failed bigint NOT NULL DEFAULT 0, dropped bigint NOT NULL DEFAULT 0);
CREATE TABLE tagfast_control.letter_act (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at bigint NOT NULL,
    by text NOT NULL, action text NOT NULL, detail text NOT NULL, letters bigint NOT NULL);
CREATE INDEX letter_act_order ON tagfast_control.letter_act (at, n);
