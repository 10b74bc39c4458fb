#!/usr/bin/env bash
# tools/apt.sh PACKAGE...: installs those Debian packages that are missing. Nothing of theirs is started
# now (policy-rc.d), nor at boot.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
for package; do
  [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
printf 'installing %s\n' "${missing[*]}" >&2

# Units and init scripts that would start something at boot.
enabled() { find /etc/systemd/system /etc/rc?.d \( -path '*.wants/*' -o -name 'S*' \) 2>/dev/null | LC_ALL=C sort; }

readonly GUARD=/usr/sbin/policy-rc.d
if [ ! -e $GUARD ]; then
  trap 'rm -f $GUARD' EXIT
  printf '#!/bin/sh\nexit 101\n' >$GUARD
  chmod 755 $GUARD
fi
before=$(enabled)
mkdir -p .build
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >.build/apt.log 2>&1 || {
  tail -n 20 .build/apt.log >&2
  printf 'error: apt-get install failed\nhint: the whole log is .build/apt.log\n' >&2
  exit 1
}
comm -13 <(printf '%s\n' "$before") <(enabled) | xargs -r rm -f
