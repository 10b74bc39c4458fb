//go:build tools

// Package tools names what critest is built from, so that go.mod keeps what it needs: its specs (critest itself is
// a test, which nothing can import), and ginkgo's command, which runs them side by side.
package tools

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/framework"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
