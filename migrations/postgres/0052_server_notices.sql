-- The room in which the server writes to each user.
CREATE TABLE server_notice_rooms (
    user_id TEXT NOT NULL PRIMARY KEY,
    room_id TEXT NOT NULL
);
CREATE UNIQUE INDEX server_notice_rooms_by_room ON server_notice_rooms (room_id);
