#!/usr/bin/env bash
# Builds what the end-to-end tests drive Thaw with into .build/bin, unless it is there already: crictl,
# stream-client on Kubernetes' client library, crane, which serves a registry, critest and the ginkgo that runs it,
# and the kubelet, which takes the longest by far. The modules come from the Go module proxy.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/go/bin
export CGO_ENABLED=0

# build NAME PACKAGE [MODULE [COMMAND...]]: builds a package of the module e2e/tools/MODULE (NAME) by a command (go build).
build() {
  local out=$PWD/.build/bin/$1 stamp=.build/stamps/$1 module=e2e/tools/${3:-$1} key
  local command=("${@:4}")
  [ ${#command[@]} -gt 0 ] || command=(go build)
  key=$({ cat "$module"/go.{mod,sum} "$module"/*.go && printf '%s\n' "${command[@]}"; } | sha256sum | cut -d ' ' -f 1)
  [ -x "$out" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && return
  mkdir -p .build/bin .build/stamps
  printf 'building %s\n' "$1" >&2
  (cd "$module" && "${command[@]}" -o "$out" "$2")
  printf '%s\n' "$key" >"$stamp"
}

build crictl sigs.k8s.io/cri-tools/cmd/crictl
build stream-client .
build crane github.com/google/go-containerregistry/cmd/crane
build critest sigs.k8s.io/cri-tools/cmd/critest critest go test -c
build ginkgo github.com/onsi/ginkgo/v2/ginkgo critest

version=$(awk '$2 == "k8s.io/kubernetes" { print $3 }' e2e/tools/kubelet/go.mod)
build kubelet k8s.io/kubernetes/cmd/kubelet kubelet \
  go build -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version"
