-- The lists of rooms that application services keep for the networks that they bridge to.
CREATE TABLE appservice_rooms (
    appservice TEXT NOT NULL,
    network_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    PRIMARY KEY (appservice, network_id, room_id)
);
