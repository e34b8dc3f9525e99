-- Events that other servers were told to be received, and that are still to be taken in: what fills a gap takes longer
-- than a sender waits, and a gap that cannot be filled now may be later.
-- place: the order in which they came. next_try: milliseconds since the epoch.
CREATE TABLE staged_pdus (
    room_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    origin TEXT NOT NULL,
    json TEXT NOT NULL,
    place BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    next_try BIGINT NOT NULL,
    PRIMARY KEY (room_id, event_id)
);
CREATE INDEX staged_pdus_by_time ON staged_pdus (next_try);
