-- How far the states since a join without members are worked out again. place: the order in which the events came.
-- joined: a join of ours through another server; wanted: the state before it is still to be asked for.
-- verdict: 0 not judged yet, 1 shown, 2 rejected, 3 kept back until the end. state_after: the root after the event.
ALTER TABLE partial_events ADD COLUMN place BIGINT NOT NULL DEFAULT 0;
ALTER TABLE partial_events ADD COLUMN joined BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE partial_events ADD COLUMN wanted BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE partial_events ADD COLUMN verdict SMALLINT NOT NULL DEFAULT 0;
ALTER TABLE partial_events ADD COLUMN state_after BYTEA;
CREATE INDEX partial_events_place ON partial_events (room_id, place);
-- What was noted before: in the order of the log, after the join.
UPDATE partial_events SET place = COALESCE((SELECT e.sn FROM events e WHERE e.event_id = partial_events.event_id), 0);
INSERT INTO partial_events (room_id, event_id, roots, place, joined, wanted)
SELECT room_id, join_id, ''::bytea, -9000000000000000000, TRUE, TRUE FROM partial_rooms;
