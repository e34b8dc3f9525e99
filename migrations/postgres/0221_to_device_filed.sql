-- On SQLite messages are filed under their devices many at a time; here they always are.
ALTER TABLE to_device ADD COLUMN filed BOOLEAN NOT NULL DEFAULT TRUE;
