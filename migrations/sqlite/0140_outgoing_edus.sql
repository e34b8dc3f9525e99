-- News of our users' devices goes the way of events: one row for all servers that get it. Its room and event are empty.
ALTER TABLE outgoing ADD COLUMN edu TEXT;
