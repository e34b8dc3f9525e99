-- Delivery of push notifications. A pusher owes its gateway what came after `position` for as long as `marked`, the
-- newest position at which there was something for it, is past that.
ALTER TABLE pushers ADD COLUMN marked BIGINT NOT NULL DEFAULT 0;
-- Switched off, from whichever device, it owes nothing (MSC3881).
ALTER TABLE pushers ADD COLUMN enabled BOOLEAN NOT NULL DEFAULT TRUE;
ALTER TABLE pushers ADD COLUMN updated_at BIGINT NOT NULL DEFAULT 0;
-- While its gateway fails: when it is tried next, and how long was waited before (milliseconds).
ALTER TABLE pushers ADD COLUMN retry_at BIGINT;
ALTER TABLE pushers ADD COLUMN retry_interval BIGINT;
-- The number of unread messages that the gateway was told last.
ALTER TABLE pushers ADD COLUMN badge BIGINT;

-- How far readers of the log that survive a restart have come.
CREATE TABLE log_cursors (
    name TEXT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL
);
