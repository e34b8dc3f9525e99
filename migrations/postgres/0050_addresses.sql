-- E-mail addresses (and, by the same table, other third-party identifiers) of accounts. An address is one account's.
CREATE TABLE threepids (
    medium TEXT NOT NULL,
    address TEXT NOT NULL,
    user_id TEXT NOT NULL,
    validated_at BIGINT NOT NULL,
    added_at BIGINT NOT NULL,
    PRIMARY KEY (medium, address)
);
CREATE INDEX threepids_by_user ON threepids (user_id);

-- Addresses that are being validated. The token of the mail is not kept: it follows from sid, address and the server's
-- key. client_secret is the SHA-256 of what the client made up.
CREATE TABLE validations (
    sid TEXT NOT NULL PRIMARY KEY,
    purpose TEXT NOT NULL,
    medium TEXT NOT NULL,
    address TEXT NOT NULL,
    client_secret TEXT NOT NULL,
    send_attempt BIGINT NOT NULL,
    next_link TEXT,
    created_at BIGINT NOT NULL,
    -- How many letters were sent.
    letters BIGINT NOT NULL DEFAULT 1,
    wrong_tokens BIGINT NOT NULL DEFAULT 0,
    validated_at BIGINT,
    -- When what it was validated for was done with it.
    used_at BIGINT
);
CREATE UNIQUE INDEX validations_by_request ON validations (purpose, medium, address, client_secret);
CREATE INDEX validations_by_age ON validations (created_at);
