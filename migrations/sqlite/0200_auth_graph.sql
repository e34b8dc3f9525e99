-- The auth graph of each room: what its state events are authorised by, as numbers, so that state resolution can walk
-- without reading events. The PostgreSQL file of the same name differs only in types (BYTEA for BLOB).

-- An event's number in the graph, higher than those of its auth events; 0: none, it is no state event. NULL: not placed
-- yet, since it was stored by a program that did not know of the graph, or before its auth events.
ALTER TABLE events ADD COLUMN auth_number BIGINT;
CREATE INDEX events_unplaced ON events (room_id, sn) WHERE auth_number IS NULL;
-- The last number that was given.
ALTER TABLE log_head ADD COLUMN auth_numbers BIGINT NOT NULL DEFAULT 0;

-- room_key: the first eight bytes of the SHA-256 of the room's id; two rooms that share one only slow each other down.
-- auth: for each auth event, by how much its number is lower; LEB128.
CREATE TABLE auth_graph (
    room_key BIGINT NOT NULL,
    number BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    auth BLOB NOT NULL,
    PRIMARY KEY (room_key, number)
) WITHOUT ROWID;
