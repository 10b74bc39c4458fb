"""From CRI's messages to the OCI runtime spec of the guest agent: pure functions.

The rules are containerd's (internal/cri/server/container_create.go, internal/cri/opts) where CRI
leaves a choice; docs/protocol.md lists the subset of the specification that the agent knows. What
cannot be done in a microVM is refused by name, never left out.
"""
