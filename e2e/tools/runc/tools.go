//go:build tools

// Package tools names runc apart from containerd, so that each is built with the versions of its own
// go.mod.
package tools

import _ "github.com/opencontainers/runc"
