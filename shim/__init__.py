"""The per-pod process: owner of one microVM, its pod, containers, logs and exit codes."""
