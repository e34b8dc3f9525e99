-- Which servers are in a room is asked with each join of a federated room, and with each change of a device for all rooms
-- of its user: found server by server, however many members there are.
CREATE INDEX members_joined ON members (room_id, server) WHERE membership = 'join';
