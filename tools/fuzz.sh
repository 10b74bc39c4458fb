#!/usr/bin/env bash
# Fuzzes the agent's parsers (cargo-fuzz), the host's decoder, the streaming server's protocols and the log writer (atheris).
#   tools/fuzz.sh [SECONDS] [TARGET...]    so many seconds for each target; default 60, and all of them
# New inputs and crashes go to .build/fuzz; the saved ones beside the sources are only read, and run by `make unit` too.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly SECONDS_EACH=${1:-60} VERSION=0.13.2
readonly AGENT=(frames request accounts) HOST=(host-frames spdy channels log)
readonly WORK=$PWD/.build/fuzz AGENT_SAVED=$PWD/guest_agent/fuzz/corpus STREAMING_SAVED=$PWD/cri/streaming/tests/corpus LOG_SAVED=$PWD/shim/tests/corpus/log
PATH=$WORK/bin:$PATH
# The sanitizer is an unstable option of the compiler; no nightly one is asked for.
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$WORK/target

if [ $# -gt 1 ]; then targets=("${@:2}"); else targets=("${AGENT[@]}" "${HOST[@]}"); fi

cargo_fuzz() {
  [ "$(cargo-fuzz --version 2>/dev/null)" = "cargo-fuzz $VERSION" ] && return
  printf 'fuzz: building cargo-fuzz\n' >&2
  cargo install --quiet cargo-fuzz --locked --version "$VERSION" --root "$WORK"
}

atheris() {
  .venv/bin/python -c 'import atheris' 2>/dev/null ||
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
}

# run TARGET SAVED COMMAND...: a fuzzer with its folder for finds and the saved inputs.
run() {
  local found=$WORK/$1
  printf 'fuzz: %s\n' "$1" >&2
  mkdir -p "$found/corpus"
  "${@:3}" "$found/corpus" "$2" "${separator[@]}" \
    -max_total_time="$SECONDS_EACH" -max_len=8192 -len_control=1000 -timeout=10 -artifact_prefix="$found/" -verbosity=0 -print_final_stats=1
}

for target in "${targets[@]}"; do
  separator=()
  case $target in
    frames | request | accounts)
      cargo_fuzz
      # libFuzzer's own options come after -- with cargo-fuzz.
      separator=(--)
      run "$target" "$AGENT_SAVED/$target" \
        cargo fuzz run --fuzz-dir guest_agent/fuzz --target "$(rustc -vV | sed -n 's/^host: //p')" "$target"
      ;;
    host-frames)
      atheris
      run "$target" "$AGENT_SAVED/frames" .venv/bin/python -m vmm.tests.fuzz_codec
      ;;
    spdy | channels)
      atheris
      run "$target" "$STREAMING_SAVED/$target" .venv/bin/python -m cri.streaming.tests.fuzz "$target"
      ;;
    log)
      atheris
      run "$target" "$LOG_SAVED" .venv/bin/python -m shim.tests.fuzz_log
      ;;
    *)
      printf 'fuzz: there is no target %s; there are: %s\n' "$target" "${AGENT[*]} ${HOST[*]}" >&2
      exit 2
      ;;
  esac
done
