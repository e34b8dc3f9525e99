-- Messages to devices come in the order of the log, and most are fetched a moment later. So they are kept in that order,
-- and filed under their devices only when there are many that were not fetched: a page of a tree of devices for each would be
-- more than all else that is written.
CREATE TABLE to_device_in_order (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    position INTEGER NOT NULL PRIMARY KEY,
    content TEXT NOT NULL,
    filed BOOLEAN NOT NULL DEFAULT TRUE
);
INSERT INTO to_device_in_order (user_id, device_id, position, content)
    SELECT user_id, device_id, position, content FROM to_device ORDER BY position;
DROP TABLE to_device;
ALTER TABLE to_device_in_order RENAME TO to_device;
CREATE INDEX to_device_by_device ON to_device (user_id, device_id, position) WHERE filed;
-- Those that are not filed come after this position.
INSERT INTO log_cursors (name, position) SELECT 'to_device', position FROM log_head WHERE id = 1;
