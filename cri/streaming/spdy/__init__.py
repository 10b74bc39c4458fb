"""SPDY/3.1 without I/O: bytes in, events out, and bytes to send. See docs/streaming.md."""
