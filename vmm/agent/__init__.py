"""The host's end of the agent protocol (docs/protocol.md)."""
