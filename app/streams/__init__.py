"""From Redis Streams to sockets: ids, resume, reading, tail, hub, subscriber, wire."""
