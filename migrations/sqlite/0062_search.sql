-- The words of names, topics and those messages that are stored in the clear, in lower case. rowid: the event's number.
CREATE VIRTUAL TABLE search_index USING fts5(room_id UNINDEXED, text, tokenize = 'unicode61 remove_diacritics 0');
INSERT INTO search_index (rowid, room_id, text)
    SELECT sn, room_id, lower(json_extract(json, '$.content.body')) FROM events
    WHERE flags = 0 AND redacted_by IS NULL AND json_extract(json, '$.type') = 'm.room.message'
        AND json_type(json, '$.content.body') = 'text'
    UNION ALL SELECT sn, room_id, lower(json_extract(json, '$.content.name')) FROM events
    WHERE flags = 0 AND redacted_by IS NULL AND json_extract(json, '$.type') = 'm.room.name'
        AND json_type(json, '$.content.name') = 'text'
    UNION ALL SELECT sn, room_id, lower(json_extract(json, '$.content.topic')) FROM events
    WHERE flags = 0 AND redacted_by IS NULL AND json_extract(json, '$.type') = 'm.room.topic'
        AND json_type(json, '$.content.topic') = 'text';
