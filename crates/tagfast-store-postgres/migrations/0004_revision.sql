-- Schema version 4: how often a row was written. With the version it guards an optimistic commit: a write that
-- changes no tag is remembered in the document without a new version. An older program ignores the column.
ALTER TABLE content ADD COLUMN rev bigint NOT NULL DEFAULT 0;
