-- The first schema. The PostgreSQL file of the same name differs only in types (BYTEA for BLOB).
-- Times are milliseconds since the Unix epoch. JSON is TEXT, kept as it came.

-- The one log: a row for each fact that a reader may need. Positions are taken last in a transaction, under the lock
-- of log_head, so that no reader meets a smaller one later. `lowest` counts down for events that came from history.
CREATE TABLE log_head (
    id SMALLINT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL,
    lowest BIGINT NOT NULL
);
INSERT INTO log_head (id, position, lowest) VALUES (1, 0, 0);

CREATE TABLE log (
    position INTEGER NOT NULL PRIMARY KEY,
    kind SMALLINT NOT NULL,
    room_id TEXT,
    user_id TEXT,
    reference TEXT,
    data TEXT
);
CREATE INDEX log_by_room ON log (room_id, position) WHERE room_id IS NOT NULL;
CREATE INDEX log_by_user ON log (user_id, position) WHERE user_id IS NOT NULL;
CREATE INDEX log_of_device_lists ON log (position) WHERE kind = 7;

-- A room is one row that changes.
CREATE TABLE rooms (
    room_id TEXT NOT NULL PRIMARY KEY,
    version TEXT NOT NULL,
    state_root BLOB NOT NULL,
    -- JSON: [[event id, depth], …]
    extremities TEXT NOT NULL,
    revision BIGINT NOT NULL,
    published BOOLEAN NOT NULL DEFAULT FALSE,
    encrypted BOOLEAN NOT NULL DEFAULT FALSE
);
CREATE INDEX rooms_published ON rooms (room_id) WHERE published;

-- sn: the log position of a live event; below zero for one that came from history or stands outside the graph.
CREATE TABLE events (
    sn INTEGER NOT NULL PRIMARY KEY,
    event_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    flags SMALLINT NOT NULL,
    state_before BLOB,
    redacted_by TEXT,
    -- When it was sent, by its sender's clock.
    ts BIGINT NOT NULL,
    json TEXT NOT NULL
);
CREATE UNIQUE INDEX events_by_id ON events (event_id);
CREATE INDEX events_by_room ON events (room_id, sn);
CREATE INDEX events_by_time ON events (room_id, ts);

-- Events named by prev_events that we do not have: where history ends for us.
CREATE TABLE backward_extremities (
    room_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (room_id, event_id)
);

-- Redactions that came before what they redact, or could not be judged yet.
CREATE TABLE pending_redactions (
    target_id TEXT NOT NULL,
    redaction_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    PRIMARY KEY (target_id, redaction_id)
);

CREATE TABLE relations (
    parent_id TEXT NOT NULL,
    sn BIGINT NOT NULL,
    child_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    rel_type TEXT NOT NULL,
    kind TEXT NOT NULL,
    sender TEXT NOT NULL,
    PRIMARY KEY (parent_id, child_id)
);
CREATE INDEX relations_by_child ON relations (child_id);
CREATE INDEX relations_by_room ON relations (room_id, rel_type, sn);

CREATE TABLE state_nodes (
    id BLOB NOT NULL PRIMARY KEY,
    bytes BLOB NOT NULL
);

-- Each user's present membership of each room, with what a room list needs. Also invitations and knocks to rooms that
-- this server is not in: those have the stripped state in `stripped`.
CREATE TABLE members (
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    membership TEXT NOT NULL,
    event_id TEXT NOT NULL,
    sender TEXT NOT NULL,
    local BOOLEAN NOT NULL,
    server TEXT NOT NULL,
    sn BIGINT NOT NULL,
    display_name TEXT,
    avatar_url TEXT,
    stripped TEXT,
    forgotten BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (room_id, user_id)
);
CREATE INDEX members_by_user ON members (user_id, membership);
CREATE INDEX members_by_server ON members (server, membership, room_id);

CREATE TABLE aliases (
    alias TEXT NOT NULL PRIMARY KEY,
    room_id TEXT NOT NULL,
    creator TEXT NOT NULL
);
CREATE INDEX aliases_by_room ON aliases (room_id);

CREATE TABLE users (
    user_id TEXT NOT NULL PRIMARY KEY,
    password_hash TEXT,
    admin BOOLEAN NOT NULL DEFAULT FALSE,
    guest BOOLEAN NOT NULL DEFAULT FALSE,
    deactivated BOOLEAN NOT NULL DEFAULT FALSE,
    locked BOOLEAN NOT NULL DEFAULT FALSE,
    suspended BOOLEAN NOT NULL DEFAULT FALSE,
    appservice TEXT,
    created_at BIGINT NOT NULL
);

CREATE TABLE devices (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    display_name TEXT,
    created_at BIGINT NOT NULL,
    last_seen_at BIGINT,
    last_seen_ip TEXT,
    user_agent TEXT,
    PRIMARY KEY (user_id, device_id)
);

-- Tokens are kept as their SHA-256.
CREATE TABLE access_tokens (
    token_hash BLOB NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    device_id TEXT,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    -- The refresh token that was given out together with this one.
    refresh_hash BLOB,
    used BOOLEAN NOT NULL DEFAULT FALSE
);
CREATE INDEX access_tokens_by_device ON access_tokens (user_id, device_id);

CREATE TABLE refresh_tokens (
    token_hash BLOB NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- The refresh token that replaced this one; this one dies when its successor (or its access token) is used.
    next_hash BLOB
);
CREATE INDEX refresh_tokens_by_device ON refresh_tokens (user_id, device_id);

CREATE TABLE registration_tokens (
    token TEXT NOT NULL PRIMARY KEY,
    uses_allowed BIGINT,
    pending BIGINT NOT NULL DEFAULT 0,
    completed BIGINT NOT NULL DEFAULT 0,
    expires_at BIGINT,
    admin BOOLEAN NOT NULL DEFAULT FALSE
);

CREATE TABLE login_tokens (
    token_hash BLOB NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE TABLE openid_tokens (
    token_hash BLOB NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE TABLE uia_sessions (
    session TEXT NOT NULL PRIMARY KEY,
    data TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE profiles (
    user_id TEXT NOT NULL,
    field TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (user_id, field)
);

-- room_id is empty for global account data.
CREATE TABLE account_data (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (user_id, room_id, kind)
);

CREATE TABLE filters (
    user_id TEXT NOT NULL,
    filter_id TEXT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (user_id, filter_id)
);

-- thread: empty for an unthreaded receipt, `main`, or the id of the thread's root.
CREATE TABLE receipts (
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    thread TEXT NOT NULL,
    event_id TEXT NOT NULL,
    event_sn BIGINT,
    data TEXT NOT NULL,
    PRIMARY KEY (room_id, user_id, kind, thread)
);
CREATE INDEX receipts_by_user ON receipts (user_id, room_id);

CREATE TABLE to_device (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id, position)
);

-- Messages from other servers that were taken already.
CREATE TABLE to_device_seen (
    sender TEXT NOT NULL,
    message_id TEXT NOT NULL,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (sender, message_id)
);

-- Identity keys of devices, of this server's users and cached of others'.
CREATE TABLE device_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    json TEXT NOT NULL,
    display_name TEXT,
    PRIMARY KEY (user_id, device_id)
);

CREATE TABLE one_time_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    -- Order of upload, in which keys are handed out.
    upload_order BIGINT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm, key_id)
);
CREATE INDEX one_time_keys_in_order ON one_time_keys (user_id, device_id, algorithm, upload_order);

CREATE TABLE fallback_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    json TEXT NOT NULL,
    used BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (user_id, device_id, algorithm)
);

CREATE TABLE cross_signing_keys (
    user_id TEXT NOT NULL,
    usage TEXT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (user_id, usage)
);

-- Signatures uploaded by `signer_id` over the key `target_key` (a device id or a public key) of `target_id`.
CREATE TABLE key_signatures (
    target_id TEXT NOT NULL,
    target_key TEXT NOT NULL,
    signer_id TEXT NOT NULL,
    signer_key TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (target_id, target_key, signer_id, signer_key)
);

-- What is known of another server's device lists.
CREATE TABLE remote_device_lists (
    user_id TEXT NOT NULL PRIMARY KEY,
    stream_id BIGINT NOT NULL,
    stale BOOLEAN NOT NULL,
    -- The log position from which on it holds: a room shared only since later does not vouch for it.
    since BIGINT NOT NULL,
    -- Grows with each change told to us: a list that was asked for before a change is stale when it comes.
    generation BIGINT NOT NULL
);

-- How many changes of each of our users' device lists other servers were told of.
CREATE TABLE device_list_streams (
    user_id TEXT NOT NULL PRIMARY KEY,
    stream_id BIGINT NOT NULL
);

CREATE TABLE backup_versions (
    user_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    algorithm TEXT NOT NULL,
    auth_data TEXT NOT NULL,
    etag BIGINT NOT NULL,
    deleted BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (user_id, version)
);

CREATE TABLE backup_keys (
    user_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    first_message_index BIGINT NOT NULL,
    forwarded_count BIGINT NOT NULL,
    is_verified BOOLEAN NOT NULL,
    session_data TEXT NOT NULL,
    PRIMARY KEY (user_id, version, room_id, session_id)
);

CREATE TABLE media (
    server_name TEXT NOT NULL,
    media_id TEXT NOT NULL,
    -- The name of the object in the store; empty while an upload is awaited.
    object TEXT NOT NULL,
    content_type TEXT,
    file_name TEXT,
    size BIGINT NOT NULL,
    uploader TEXT,
    created_at BIGINT NOT NULL,
    last_access_at BIGINT NOT NULL,
    -- Uploaded by a client that says it is encrypted, or not.
    upload_expires_at BIGINT,
    quarantined BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (server_name, media_id)
);

CREATE TABLE thumbnails (
    server_name TEXT NOT NULL,
    media_id TEXT NOT NULL,
    width BIGINT NOT NULL,
    height BIGINT NOT NULL,
    method TEXT NOT NULL,
    animated BOOLEAN NOT NULL,
    object TEXT NOT NULL,
    content_type TEXT NOT NULL,
    size BIGINT NOT NULL,
    PRIMARY KEY (server_name, media_id, width, height, method, animated)
);

-- Answers of requests with a transaction id, given again when the request is repeated.
CREATE TABLE transactions (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    txn_id TEXT NOT NULL,
    response TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, endpoint, txn_id)
);
-- From an event to the transaction id that its sender's device gave it.
CREATE INDEX transactions_by_response ON transactions (response, user_id, device_id);

CREATE TABLE server_keys (
    server_name TEXT NOT NULL,
    key_id TEXT NOT NULL,
    public_key BLOB NOT NULL,
    valid_until BIGINT NOT NULL,
    PRIMARY KEY (server_name, key_id)
);

CREATE TABLE server_key_documents (
    server_name TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL,
    fetched_at BIGINT NOT NULL
);

CREATE TABLE destinations (
    destination TEXT NOT NULL PRIMARY KEY,
    failing_since BIGINT,
    retry_at BIGINT,
    retry_interval BIGINT,
    -- The last row of the transaction that is being tried.
    open_upto BIGINT
);

-- What waits for each destination. reference: the event id of a PDU; json: the EDU.
CREATE TABLE outbox (
    destination TEXT NOT NULL,
    position BIGINT NOT NULL,
    room_id TEXT,
    reference TEXT,
    json TEXT,
    PRIMARY KEY (destination, position)
);
CREATE INDEX outbox_by_position ON outbox (position);

-- Answers to transactions of other servers.
CREATE TABLE inbound_transactions (
    origin TEXT NOT NULL,
    txn_id TEXT NOT NULL,
    response TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    PRIMARY KEY (origin, txn_id)
);

CREATE TABLE pushers (
    user_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    pushkey TEXT NOT NULL,
    device_id TEXT,
    json TEXT NOT NULL,
    position BIGINT NOT NULL,
    failing_since BIGINT,
    PRIMARY KEY (user_id, app_id, pushkey)
);

CREATE TABLE reports (
    report_id TEXT NOT NULL PRIMARY KEY,
    reporter TEXT NOT NULL,
    target TEXT NOT NULL,
    room_id TEXT,
    reason TEXT,
    created_at BIGINT NOT NULL
);

-- Exceptions from sealing that an operator made, and other small facts about the server.
CREATE TABLE settings (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE TABLE appservice_transactions (
    appservice TEXT NOT NULL,
    txn_id BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (appservice, txn_id)
);
CREATE TABLE appservice_cursors (
    appservice TEXT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL,
    next_txn BIGINT NOT NULL
);
