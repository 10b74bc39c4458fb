#!/usr/bin/env bash
# Builds crictl from the Go module proxy into .build/bin, unless it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/go/bin
key=$(sha256sum e2e/tools/crictl/go.sum | cut -d ' ' -f 1)
out=$PWD/.build/bin/crictl
[ -x "$out" ] && [ "$(cat .build/stamps/crictl 2>/dev/null)" = "$key" ] && exit 0
mkdir -p .build/bin .build/stamps
printf 'building crictl\n' >&2
(cd e2e/tools/crictl && CGO_ENABLED=0 go build -o "$out" sigs.k8s.io/cri-tools/cmd/crictl)
printf '%s\n' "$key" >.build/stamps/crictl
