"""kubectl exec, attach and port-forward: the protocols, without I/O. See docs/streaming.md."""
