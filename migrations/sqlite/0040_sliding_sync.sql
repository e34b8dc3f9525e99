-- Connections of sliding sync, one for each (user, device, conn_id), and what each has sent of which room.
CREATE TABLE sliding_connections (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    conn_id TEXT NOT NULL,
    -- Names this life of the connection in its positions: another when the client begins anew.
    connection BIGINT NOT NULL,
    -- The newest state that was given out, and the one before it, which stays until the client comes with the newest.
    version BIGINT NOT NULL,
    previous BIGINT NOT NULL,
    used_at BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, conn_id)
);
CREATE UNIQUE INDEX sliding_connections_by_name ON sliding_connections (connection);
CREATE INDEX sliding_connections_by_use ON sliding_connections (used_at);

-- What a room looked like to the client from a version of the connection's state on.
CREATE TABLE sliding_rooms (
    connection BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (connection, room_id, version)
);

-- The sets of required state that its rooms name.
CREATE TABLE sliding_configs (
    connection BIGINT NOT NULL,
    config BIGINT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (connection, config)
);
