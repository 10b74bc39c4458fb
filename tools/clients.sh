#!/usr/bin/env bash
# Builds what the end-to-end tests drive Thaw with into .build/bin, unless it is there already: crictl,
# stream-client on Kubernetes' client library, and crane, which serves a registry. The modules come from the Go module proxy.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/go/bin
export CGO_ENABLED=0

# build NAME PACKAGE: builds a package of the module e2e/tools/NAME.
build() {
  local out=$PWD/.build/bin/$1 stamp=.build/stamps/$1 key
  key=$(cat "e2e/tools/$1"/go.sum "e2e/tools/$1"/*.go | sha256sum | cut -d ' ' -f 1)
  [ -x "$out" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && return
  mkdir -p .build/bin .build/stamps
  printf 'building %s\n' "$1" >&2
  (cd "e2e/tools/$1" && go build -o "$out" "$2")
  printf '%s\n' "$key" >"$stamp"
}

build crictl sigs.k8s.io/cri-tools/cmd/crictl
build stream-client .
build crane github.com/google/go-containerregistry/cmd/crane
