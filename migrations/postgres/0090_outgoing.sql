-- Events that other servers get: one row, however many servers. Each destination has a cursor.
CREATE TABLE outgoing (
    -- The row of the log that announces it.
    position BIGINT NOT NULL PRIMARY KEY,
    room_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    servers_id TEXT NOT NULL
);
CREATE INDEX outgoing_by_room ON outgoing (room_id, position);
CREATE INDEX outgoing_by_servers ON outgoing (servers_id);

-- The servers of a room at some time, by the hash of their names.
CREATE TABLE server_sets (
    id TEXT NOT NULL PRIMARY KEY,
    -- JSON, in order.
    servers TEXT NOT NULL,
    -- The last event for them.
    used_at BIGINT NOT NULL
);

-- A transaction is named after what is in it now.
ALTER TABLE destinations DROP COLUMN open_upto;
-- A destination that fails has everything up to here.
ALTER TABLE destinations ADD COLUMN delivered_upto BIGINT NOT NULL DEFAULT 0;
UPDATE destinations SET delivered_upto = (SELECT position FROM log_head WHERE id = 1);
