-- Schema version 6: what repairs did to the writes that failovers had lost, and when the verdicts about them became
-- final. An older program ignores both.
CREATE TABLE repair_log (wid bytea PRIMARY KEY, k bytea NOT NULL, from_epoch bytea NOT NULL, in_epoch bigint NOT NULL,
    verdict text NOT NULL, reason text, ver bigint NOT NULL, at timestamptz NOT NULL);
CREATE INDEX repair_log_epoch ON repair_log (in_epoch, wid);
CREATE INDEX repair_log_age ON repair_log (at);
ALTER TABLE epoch ADD COLUMN verdicts_final_at timestamptz;
