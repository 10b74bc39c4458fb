//go:build tools

// Package tools names the command that the end-to-end tests build, so that go.mod keeps what it needs: crane, whose
// `registry serve` is a registry of another make than docker-registry.
package tools

import _ "github.com/google/go-containerregistry/cmd/crane"
