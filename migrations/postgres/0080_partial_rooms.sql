-- Rooms that were joined without their members (MSC3706): what is known in advance, until the whole state is here.

-- The current state lacks members.
ALTER TABLE rooms ADD COLUMN partial BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX rooms_partial ON rooms (room_id) WHERE partial;

-- join_id: the join before which the whole state is wanted. since: about the log position of that join.
-- next_try: when another server is to be asked, milliseconds since the epoch.
CREATE TABLE partial_rooms (
    room_id TEXT NOT NULL PRIMARY KEY,
    join_id TEXT NOT NULL,
    resident TEXT NOT NULL,
    since BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    next_try BIGINT NOT NULL
);

-- The servers in such a room, as the server that let us in told them.
CREATE TABLE partial_servers (
    room_id TEXT NOT NULL,
    server TEXT NOT NULL,
    PRIMARY KEY (room_id, server)
);
CREATE INDEX partial_servers_by_server ON partial_servers (server);

-- The events that came since the join: their states are worked out again from the whole one.
-- roots: the states fetched for prev_events that are not here, 32 bytes each.
CREATE TABLE partial_events (
    room_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    roots BYTEA NOT NULL,
    PRIMARY KEY (room_id, event_id)
);

-- Users who told of changed devices while it was not known whether they are in the room.
CREATE TABLE held_device_lists (
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    PRIMARY KEY (room_id, user_id)
);
