-- Rooms and stretches of history that are being forgotten, and how far that has come. kind: 1 a room, 2 history.
-- phase: 10 and more are ends. parameters and progress are JSON. Times are milliseconds since the epoch.
CREATE TABLE purges (
    purge_id TEXT NOT NULL PRIMARY KEY,
    kind SMALLINT NOT NULL,
    room_id TEXT NOT NULL,
    phase SMALLINT NOT NULL,
    parameters TEXT NOT NULL,
    progress TEXT NOT NULL,
    error TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX purges_by_room ON purges (room_id, created_at);
CREATE INDEX purges_under_way ON purges (created_at) WHERE phase < 10;
-- Nodes of states of purged events that have not been looked at yet.
CREATE TABLE purge_nodes (
    purge_id TEXT NOT NULL,
    node BYTEA NOT NULL,
    PRIMARY KEY (purge_id, node)
);
-- When a node was last written: one that is made again while a purge is under way stays.
ALTER TABLE state_nodes ADD COLUMN written_at BIGINT NOT NULL DEFAULT 0;
-- Rooms that nobody of this server may enter. By whom; empty: by a purge, while it lasts.
CREATE TABLE blocked_rooms (
    room_id TEXT NOT NULL PRIMARY KEY,
    blocked_by TEXT NOT NULL,
    blocked_at BIGINT NOT NULL
);
