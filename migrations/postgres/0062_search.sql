-- The words of names, topics and those messages that are stored in the clear, in lower case. rowid: the event's number,
-- named as SQLite names it.
CREATE TABLE search_index (
    rowid BIGINT NOT NULL PRIMARY KEY,
    room_id TEXT NOT NULL,
    text TEXT NOT NULL,
    words TSVECTOR NOT NULL GENERATED ALWAYS AS (to_tsvector('simple', text)) STORED
);
CREATE INDEX search_index_words ON search_index USING gin (words);
-- What cannot be text in PostgreSQL (a NUL) stays out.
INSERT INTO search_index (rowid, room_id, text)
    SELECT sn, room_id, lower(left(found, 65536)) FROM (
        SELECT sn, room_id, CASE json::json->>'type'
            WHEN 'm.room.message' THEN json::json->'content'->>'body'
            WHEN 'm.room.name' THEN json::json->'content'->>'name'
            WHEN 'm.room.topic' THEN json::json->'content'->>'topic' END AS found
        FROM events WHERE flags = 0 AND redacted_by IS NULL AND json NOT LIKE '%\u0000%'
    ) AS texts WHERE found IS NOT NULL;
