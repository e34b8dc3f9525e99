-- Events that are sent later, unless their sender says otherwise before (MSC4140). delay, running_since and due are
-- milliseconds; due = running_since + delay.
CREATE TABLE delayed_events (
    delay_id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    appservice TEXT,
    room_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    state_key TEXT,
    content TEXT NOT NULL,
    sticky_ms BIGINT,
    delay BIGINT NOT NULL,
    running_since BIGINT NOT NULL,
    due BIGINT NOT NULL
);
CREATE INDEX delayed_events_by_user ON delayed_events (user_id, due);
CREATE INDEX delayed_events_by_due ON delayed_events (due);
CREATE INDEX delayed_events_by_state ON delayed_events (room_id, kind, state_key) WHERE state_key IS NOT NULL;
