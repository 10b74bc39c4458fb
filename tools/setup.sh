#!/usr/bin/env bash
# Prepares a Debian 12 machine to build, test and run Thaw. Idempotent: each part leaves a stamp over
# its inputs under .build/stamps, and is skipped while they are the same.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly STAMPS=.build/stamps
readonly AGENT=.build/thaw-agent REHEARSAL=.build/thaw-rehearsal STAND_IN=vmm/qemu/stand_in.so
RUST_MIN=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' guest_agent/Cargo.toml)
readonly RUST_MIN GO_MIN=1.24

# What Thaw runs on, what its tests drive, and what the demo shows.
readonly PACKAGES=(
  qemu-system-x86 squashfs-tools docker-registry iproute2 nftables containernetworking-plugins
  e2fsprogs zstd xz-utils kmod busybox-static python3-venv ca-certificates procps util-linux systemd
)

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
  exit 1
}
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# fresh PART KEY: whether PART was already made from inputs of this KEY.
fresh() { [ -f "$STAMPS/$1" ] && [ "$(<"$STAMPS/$1")" = "$2" ]; }
stamp() { mkdir -p "$STAMPS"; printf '%s\n' "$2" >"$STAMPS/$1"; }
key_of() {
  find "$@" \( -path guest_agent/target -o -path guest_agent/fuzz -o -name tests -o -name __pycache__ \) -prune -o -type f -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1
}

check_host() {
  local name=unknown
  # shellcheck source=/dev/null
  [ ! -r /etc/os-release ] || name=$(. /etc/os-release && printf '%s %s' "${ID:-unknown}" "${VERSION_ID:-}")
  [ "$name" = "debian 12" ] || die "this is $name, not Debian 12" "use the image of Dockerfile.dev"
  [ "$(id -u)" = 0 ] || die "setup must run as root" "sudo make setup"
  PATH=$PATH:$HOME/.cargo/bin:/usr/local/go/bin
  local python=python3
  command -v $python >/dev/null || die "python3 is missing" "apt-get install python3 python3-venv"
  $python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$($python --version) is too old" "Thaw needs Python 3.11 or newer; Debian 12 has it as python3"
  local tool found
  for tool in cargo rustc; do
    command -v $tool >/dev/null || die "$tool is missing" "install Rust $RUST_MIN or newer through rustup (Debian 12 has 0.66, too old)"
    found=$($tool --version | cut -d ' ' -f 2)
    at_least "$found" "$RUST_MIN" || die "$tool $found ($(command -v $tool)) is too old" \
      "the guest agent needs Rust $RUST_MIN or newer: install it through rustup, and put it before Debian's in PATH"
  done
  command -v go >/dev/null || die "go is missing" "install Go $GO_MIN or newer in /usr/local/go (Debian 12 has 1.19, too old)"
  found=$(go env GOVERSION)
  found=${found#go}
  at_least "$found" "$GO_MIN" || die "go $found is too old" "crictl needs Go $GO_MIN or newer: install it in /usr/local/go"
}

make_venv() {
  say "making .venv"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' ||
    die "pip could not install Thaw's dependencies" "pip's own message is above"
}

build_agent() {
  say "building the guest agent"
  (cd guest_agent && cargo build --quiet --release --locked)
  local host
  host=$(rustc -vV | sed -n 's/^host: //p')
  cp "guest_agent/target/$host/release/thaw-agent" "guest_agent/target/$host/release/thaw-rehearsal" .build/
}

# Not needed to run: it spares memory.
build_stand_in() {
  say "building what stands in for libraries of QEMU's"
  rustc --edition 2024 --crate-type staticlib --emit obj -C panic=abort -C opt-level=s -C relocation-model=pic \
    -o .build/stand_in.o vmm/qemu/stand_in.rs
  cc -shared -nostdlib -s -Wl,-z,now -Wl,--version-script=vmm/qemu/stand_in.map -o "$STAND_IN" .build/stand_in.o
}

build_guest() {
  say "building the guest image"
  .venv/bin/python -m vmm.guest_image --out "$PWD/.build/guest" --agent "$PWD/$AGENT"
}

mkdir -p .build
check_host

key=$(printf '%s\n' "${PACKAGES[@]}" | sha256sum | cut -d ' ' -f 1)
fresh packages "$key" || { tools/apt.sh "${PACKAGES[@]}" && stamp packages "$key"; }

key=$(key_of pyproject.toml)
{ fresh venv "$key" && [ -x .venv/bin/thawd ]; } || { make_venv && stamp venv "$key"; }

# A module that is compiled as it is imported leaves its process, and all that are forked from it, larger.
.venv/bin/python -m compileall -q hostlib vmm images shim cri cli

key=$(key_of guest_agent)
{ fresh agent "$key" && [ -x "$AGENT" ] && [ -x "$REHEARSAL" ]; } || { build_agent && stamp agent "$key"; }

key=$(key_of vmm/qemu/stand_in.rs vmm/qemu/stand_in.map)
{ fresh stand-in "$key" && [ -f "$STAND_IN" ]; } || { build_stand_in && stamp stand-in "$key"; }

key=$(key_of "$AGENT" "$REHEARSAL" hostlib vmm/guest.py vmm/guest_image)
{ fresh guest "$key" && [ -f .build/guest/guest.json ]; } || { build_guest && stamp guest "$key"; }
