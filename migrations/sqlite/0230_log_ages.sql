-- Where the log ended when: rows that are old enough and that nobody needs go.
CREATE TABLE log_ages (
    noted_at BIGINT NOT NULL PRIMARY KEY,
    position BIGINT NOT NULL
);
