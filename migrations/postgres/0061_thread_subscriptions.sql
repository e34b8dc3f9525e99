-- Which threads users follow, and which no longer (MSC4306). position: of the log row that announced the last change.
-- unsubscribed_at: the number of the room's newest event when the user ceased to follow the thread.
CREATE TABLE thread_subscriptions (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    root_id TEXT NOT NULL,
    subscribed BOOLEAN NOT NULL,
    automatic BOOLEAN NOT NULL,
    unsubscribed_at BIGINT,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, root_id)
);
CREATE INDEX thread_subscriptions_by_change ON thread_subscriptions (user_id, position);
