-- Events that every reader of a room gets to see while they are sticky (MSC4354). expires_at: milliseconds.
CREATE TABLE sticky_events (
    event_id TEXT NOT NULL PRIMARY KEY,
    room_id TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX sticky_events_by_room ON sticky_events (room_id, expires_at);
