-- Closed accounts whose events are shown only to those who could see them before.
ALTER TABLE users ADD COLUMN erased BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX users_erased ON users (user_id) WHERE erased;
