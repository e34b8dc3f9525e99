-- Keys that this server used to sign with.
CREATE TABLE signing_keys (
    key_id TEXT NOT NULL PRIMARY KEY,
    public_key BLOB NOT NULL,
    -- Until when it counts.
    expired_at BIGINT NOT NULL,
    -- The id of the key that follows, and that key, readable with this one only.
    successor TEXT NOT NULL,
    sealed BLOB NOT NULL
);
