"""Seccomp profiles: read, made for one container, and compiled on the host to what the guest's
agent loads. The format is the OCI runtime specification's, with what Docker and containerd added
to it; the rules for its meaning are runc's (libcontainer/seccomp)."""
