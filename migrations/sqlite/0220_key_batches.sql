-- One-time keys as they were uploaded: a row for some fifty of them, from which one after the other is taken. A row for
-- each would be two entries of two trees for each.
-- `ids` and `keys`: a line for each key, in the order of upload. `next` is the number of the line that is handed out
-- next, counted from 2, and `ends` the number after the last. (SQLite stores 0 and 1 without a byte and 2 to 127 in one:
-- so the row keeps its length when a key is taken, and only the page where it begins is written.)
-- Keys of before are in `one_time_keys` until their device uploads again.
CREATE TABLE key_batches (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    batch BIGINT NOT NULL,
    next BIGINT NOT NULL,
    ends BIGINT NOT NULL,
    ids TEXT NOT NULL,
    keys TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm, batch)
);
-- Signatures that a user made over others' keys.
CREATE INDEX key_signatures_by_signer ON key_signatures (signer_id) WHERE signer_id <> target_id;
