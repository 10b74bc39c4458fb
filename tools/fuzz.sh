#!/usr/bin/env bash
# Fuzzes the agent's parsers (cargo-fuzz) and the host's decoder (atheris), each for so many seconds. New inputs and
# crashes go to .build/fuzz; the saved ones in guest_agent/fuzz/corpus are only read, and run by `make unit` too.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly SECONDS_EACH=${1:-60} VERSION=0.13.2
readonly WORK=$PWD/.build/fuzz SAVED=$PWD/guest_agent/fuzz/corpus
PATH=$WORK/bin:$PATH
# The sanitizer is an unstable option of the compiler; no nightly one is asked for.
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$WORK/target

if [ "$(cargo-fuzz --version 2>/dev/null)" != "cargo-fuzz $VERSION" ]; then
  printf 'fuzz: building cargo-fuzz\n' >&2
  cargo install --quiet cargo-fuzz --locked --version "$VERSION" --root "$WORK"
fi
.venv/bin/python -c 'import atheris' 2>/dev/null ||
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'

# run FOLDER COMMAND...: a fuzzer with its folder for finds and the saved inputs.
run() {
  local found=$WORK/$1
  printf 'fuzz: %s\n' "$1" >&2
  mkdir -p "$found/corpus"
  "${@:3}" "$found/corpus" "$SAVED/$2" "${separator[@]}" \
    -max_total_time="$SECONDS_EACH" -max_len=8192 -timeout=10 -artifact_prefix="$found/" -verbosity=0 -print_final_stats=1
}

# libFuzzer's own options come after -- with cargo-fuzz.
separator=(--)
for target in frames request accounts; do
  run $target $target cargo fuzz run --fuzz-dir guest_agent/fuzz --target "$(rustc -vV | sed -n 's/^host: //p')" $target
done
separator=()
run host-frames frames .venv/bin/python -m vmm.tests.fuzz_codec
