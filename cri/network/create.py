"""Which network the daemon gets."""
