-- What is known of files beyond the first version: the hash of their bytes, and whether they are served without a token.
ALTER TABLE media ADD COLUMN sha256 TEXT;
ALTER TABLE media ADD COLUMN token_only BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX media_uploader ON media (uploader);
CREATE INDEX media_sha256 ON media (sha256);
CREATE INDEX media_last_access ON media (last_access_at);
CREATE INDEX media_awaited ON media (upload_expires_at);

-- Objects that no row names: to be removed once they are due. One that is being written stands here, due in a while.
CREATE TABLE media_garbage (
    object TEXT NOT NULL PRIMARY KEY,
    due_at BIGINT NOT NULL
);
CREATE INDEX media_garbage_due ON media_garbage (due_at);

-- Users whose files are to be removed, until the last one is.
CREATE TABLE media_erasures (
    user_id TEXT NOT NULL PRIMARY KEY
);

-- What pages on the web say of themselves. A page has a row for each time it was read.
CREATE TABLE url_previews (
    -- SHA-256 of the address.
    url_hash TEXT NOT NULL,
    fetched_at BIGINT NOT NULL,
    -- Until when it answers requests.
    expires_at BIGINT NOT NULL,
    -- The answer, JSON.
    answer TEXT NOT NULL,
    -- The picture's media id, removed with the row.
    image TEXT,
    PRIMARY KEY (url_hash, fetched_at)
);
CREATE INDEX url_previews_fetched ON url_previews (fetched_at);
