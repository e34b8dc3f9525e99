-- What other servers say of how many events relate to an event (MSC2836). children: JSON, counts by relation type.
CREATE TABLE relation_claims (
    event_id TEXT NOT NULL PRIMARY KEY,
    children TEXT NOT NULL,
    hash TEXT NOT NULL
);
