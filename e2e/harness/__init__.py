"""The end-to-end tests' library: every process that a test needs, owned and ended by it."""
