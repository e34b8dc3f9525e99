-- A repetition is recognised by its content too. The table was not used before.
DROP TABLE inbound_transactions;
CREATE TABLE inbound_transactions (
    origin TEXT NOT NULL,
    txn_id TEXT NOT NULL,
    -- The SHA-256 of the body.
    content_hash BYTEA NOT NULL,
    response TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    PRIMARY KEY (origin, txn_id)
);
CREATE INDEX inbound_transactions_by_time ON inbound_transactions (received_at);
