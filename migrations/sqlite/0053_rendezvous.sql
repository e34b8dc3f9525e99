-- What two devices of a person pass to each other while one signs the other in (MSC4108, MSC4388).
CREATE TABLE rendezvous (
    id TEXT NOT NULL PRIMARY KEY,
    content_type TEXT NOT NULL,
    body BLOB NOT NULL,
    -- Grows with each write.
    revision BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX rendezvous_by_expiry ON rendezvous (expires_at);
