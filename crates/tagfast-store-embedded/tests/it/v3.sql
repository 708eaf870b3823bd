-- What version 3 changed in version 2. Never edit it.
ALTER TABLE epoch RENAME COLUMN fences TO ends;
ALTER TABLE bus_dlq RENAME TO dead_letter;
ALTER TABLE dead_letter RENAME COLUMN letter_id TO id;
DROP INDEX bus_dlq_order;
DROP INDEX bus_dlq_state;
DROP INDEX bus_dlq_job;
CREATE INDEX dead_letter_order ON dead_letter (last_failed_at, id);
CREATE INDEX dead_letter_state ON dead_letter (state, last_failed_at, id);
CREATE INDEX dead_letter_job ON dead_letter (job, grp, pos) WHERE job IS NOT NULL;
ALTER TABLE letter_job RENAME TO replay_job;
ALTER TABLE replay_job RENAME COLUMN letters TO dead_letters;
ALTER TABLE letter_act RENAME TO dead_letter_audit;
ALTER TABLE dead_letter_audit RENAME COLUMN n TO id;
ALTER TABLE dead_letter_audit RENAME COLUMN by TO actor;
ALTER TABLE dead_letter_audit RENAME COLUMN letters TO dead_letters;
PRAGMA user_version = 3;
