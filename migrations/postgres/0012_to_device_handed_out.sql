-- Up to where the messages of a device's queue have been in an answer to it: only those go when it says that it has them.
CREATE TABLE to_device_handed_out (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id)
);
