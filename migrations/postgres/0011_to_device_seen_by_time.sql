-- What was taken long ago is looked for from time to time.
CREATE INDEX to_device_seen_by_time ON to_device_seen (seen_at);
