-- Which files each event names (mxc:// in its content): a file that a forgotten event named goes with it only when no
-- other event names it.
CREATE TABLE media_uses (
    server_name TEXT NOT NULL,
    media_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (server_name, media_id, event_id)
);
-- The files that the events forgotten by a purge named, until they were looked at.
CREATE TABLE purge_media (
    purge_id TEXT NOT NULL,
    server_name TEXT NOT NULL,
    media_id TEXT NOT NULL,
    PRIMARY KEY (purge_id, server_name, media_id)
);
-- No rule removes it, nor does a quarantine of everything that its uploader has here.
ALTER TABLE media ADD COLUMN protected BOOLEAN NOT NULL DEFAULT FALSE;
-- Events of before this table are noted later, up to the number in this row.
INSERT INTO settings (name, value) SELECT 'media_uses', 'complete' WHERE NOT EXISTS (SELECT 1 FROM events);
