#!/usr/bin/env bash
# Builds what the benchmarks compare Thaw with from the Go module proxy into .build/peer/bin, unless it
# is there already: containerd, its runc shim, and runc (without libseccomp, which needs a header;
# containerd asks for no filter unless a pod does).
#
# tools/peer.sh --check: builds nothing; exit code 1 unless all of it is there.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/go/bin
readonly CONTAINERD=github.com/containerd/containerd/v2 RUNC=github.com/opencontainers/runc
readonly OUT=$PWD/.build/peer/bin STAMP=.build/stamps/peer

key=$(cat tools/peer.sh e2e/tools/{containerd,runc}/go.{mod,sum} | sha256sum | cut -d ' ' -f 1)
[ -x "$OUT/runc" ] && [ "$(cat $STAMP 2>/dev/null)" = "$key" ] && exit 0
[ "${1:-}" != --check ] || exit 1

# version_of FOLDER MODULE: the version that the folder's go.mod requires.
version_of() { awk -v module="$2" '$1 == "require" && $2 == module { print $3 }' "e2e/tools/$1/go.mod"; }

# build FOLDER PACKAGE LDFLAGS: builds a package into OUT.
build() {
  printf 'peer: building %s\n' "${2##*/}" >&2
  (cd "e2e/tools/$1" && go build -trimpath -ldflags "-s -w $3" -o "$OUT/${2##*/}" "$2")
}

# The linker holds some 2 GB for containerd; modules and build cache take 3 GB of disk.
memory=$(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo)
disk=$(df -Pm . | awk 'NR == 2 { print $4 }')
if [ "$memory" -lt 3000 ] || [ "$disk" -lt 4000 ]; then
  printf 'error: the peer cannot be built: %s MiB of memory and %s MiB of disk are free\n' "$memory" "$disk" >&2
  printf 'hint: it takes 3000 and 4000; .venv/bin/python -m bench --no-peer measures Thaw alone\n' >&2
  exit 1
fi
printf 'peer: building containerd and runc from source, once; on 2 cores this takes 4 to 8 minutes\n' >&2
mkdir -p "$OUT" .build/stamps
version="-X $CONTAINERD/version.Version=$(version_of containerd $CONTAINERD)"
export CGO_ENABLED=0
build containerd $CONTAINERD/cmd/containerd "$version"
build containerd $CONTAINERD/cmd/containerd-shim-runc-v2 "$version"
CGO_ENABLED=1 build runc $RUNC "-X main.version=$(version_of runc $RUNC)"
printf '%s\n' "$key" >$STAMP
