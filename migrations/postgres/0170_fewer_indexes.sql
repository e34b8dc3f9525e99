-- Each index is a page that every send writes. What was sent is found through the log, a room's events in the log
-- through the events, and times by the order of the room's timeline, but for events that are out of it.
DROP INDEX transactions_by_response;
DROP INDEX log_by_room;
CREATE INDEX log_by_room ON log (room_id, position) WHERE room_id IS NOT NULL AND kind <> 1;

-- False: no event of the room's timeline before it has a later time among those that are not out of time.
ALTER TABLE events ADD COLUMN out_of_time BOOLEAN NOT NULL DEFAULT TRUE;
DROP INDEX events_by_time;
CREATE INDEX events_by_time ON events (room_id, ts) WHERE out_of_time;
-- The time of the newest event that is not out of time.
ALTER TABLE rooms ADD COLUMN newest_ts BIGINT NOT NULL DEFAULT 0;

-- SQLite: answers to sends that the log tells are in `transactions` up to this position.
INSERT INTO log_cursors (name, position) SELECT 'transactions', position FROM log_head WHERE id = 1;

-- A device has few keys: the next one is found among them all.
DROP INDEX one_time_keys_in_order;
-- To-device messages are found by their devices.
DROP INDEX log_by_user;
CREATE INDEX log_by_user ON log (user_id, position) WHERE user_id IS NOT NULL AND kind <> 6;
