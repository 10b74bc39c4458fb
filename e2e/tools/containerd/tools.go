//go:build tools

// Package tools names the commands of the container runtime that the benchmarks compare Thaw with, so
// that go.mod keeps what they need.
package tools

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
)
