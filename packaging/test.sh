#!/usr/bin/env bash
# Makes the Debian package of programs that are built, installs it, runs its service as systemd would, and
# purges it: `packaging/test.sh target/debug`. What needs root is left out without it, and said so.
set -euo pipefail
built=$(realpath "${1:?which directory are the programs in?}")
cd "$(dirname "$0")/.."

fail() { echo "FAILED: $*" >&2; exit 1; }
step() { echo "-- $* ($SECONDS s)"; }
leave_out() { echo "NOT TESTED: $*"; exit 0; }

# Waits until a command succeeds.
until_true() {
  for _ in $(seq 600); do
    if "$@"; then return; fi
    sleep 0.05
  done
  fail "waited in vain: $*"
}

command -v dpkg-deb >/dev/null || leave_out "the Debian package, for this is no Debian"
cargo deb --version >/dev/null 2>&1 || { step "cargo-deb"; cargo install cargo-deb --locked --quiet; }

step "the package"
package=$(packaging/package.sh "$built" --fast)
files=$(dpkg-deb -c "$package")
for program in target/packaging/dist/*; do
  [ -f "$program" ] || continue
  name=$(basename "$program")
  for file in "bin/$name" "bash-completion/completions/$name" "_$name" "$name.fish" "$name.[18].gz"; do
    grep -q "/$file\$" <<<"$files" || fail "$file is not in the package"
  done
done
for file in systemd/system/thrifty.service etc/default/thrifty doc/thrifty/{README.md,LICENSE-MIT,changelog.gz}; do
  grep -q "/$file\$" <<<"$files" || fail "$file is not in the package"
done
if command -v lintian >/dev/null; then lintian --fail-on error "$package"; fi

[ "$(id -u)" = 0 ] || leave_out "the package's installation, which needs root"
command -v python3 >/dev/null || leave_out "the package's installation, for python3 is missing"
if dpkg -s thrifty >/dev/null 2>&1 || [ -e /var/lib/thrifty ]; then
  leave_out "the package's installation, for thrifty is installed here, and its data would be lost"
fi

run=$(mktemp -d)
chmod 755 "$run"
service=
# Whatever happens, nothing is left.
clean() {
  if [ -n "$service" ] && kill -0 "$service" 2>/dev/null; then kill -9 "$(cat "$run/pid")" || true; fi
  dpkg --purge thrifty >/dev/null 2>&1 || true
  rm -rf "$run"
}
trap clean EXIT

step "installing"
dpkg -i "$package" >"$run/dpkg" 2>&1 || { cat "$run/dpkg"; fail "it can't be installed"; }
unit=/usr/lib/systemd/system/thrifty.service
if command -v systemd-analyze >/dev/null; then
  wrong=$(systemd-analyze verify "$unit" 2>&1 | grep -F thrifty | grep -vF "Command 'man" || true)
  [ -z "$wrong" ] || fail "$wrong"
fi
for name in storeserver storectl storectl-leave; do
  # Some images leave out all manual pages.
  if [ -e /usr/share/man/man1/storeput.1.gz ] && command -v man >/dev/null; then
    man -w "$name" >/dev/null || fail "no manual page of $name"
  fi
done
for name in storeserver storectl; do
  bash -c "source /usr/share/bash-completion/completions/$name && complete -p $name" >/dev/null
done

# What an administrator would change.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.77.1.1", 0)); print(s.getsockname()[1])')
address=127.77.1.1:$port
configure() {
  sed -i "/^#\?THRIFTY_\(LISTEN\|RING\|ARGS\)=/d" /etc/default/thrifty
  printf '%s\n' "THRIFTY_LISTEN=$address" "THRIFTY_RING=packaging-$$" "THRIFTY_ARGS=$1" >>/etc/default/thrifty
}
notified() { grep -qs "$1" "$run/notified"; }
start() {
  rm -f "$run"/{notified,pid}
  python3 packaging/as_systemd.py "$unit" "$run/notified" "$run/pid" 1 2>"$run/stderr" &
  service=$!
}
stop() {
  kill -TERM "$(cat "$run/pid")"
  local code=0
  wait "$service" || code=$?
  service=
  [ "$code" = 0 ] || { cat "$run/stderr"; fail "SIGTERM ended the service with $code"; }
  notified '^STOPPING=1$' || fail "the service did not say that it stops"
}
beats() { [ "$(grep -c '^WATCHDOG=1$' "$run/notified")" -ge "$1" ]; }

step "the service serves"
configure --bootstrap
start
until_true notified '^READY=1$'
until_true notified "^STATUS=serving ring packaging-$$ of 1\$"
until_true beats 4
storeput --peer "$address" a apple
[ "$(storeget --peer "$address" a)" = apple ] || fail "what was stored is not there"
id=$(storectl --peer "$address" status --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["nodes"][0]["id"])')
[ "$(stat -c %u /var/lib/thrifty/node)" = 61919 ] || fail "the data is not the service's user's"
stop

step "started again, it is the same member with its data"
configure ""
start
until_true notified '^READY=1$'
[ "$(storeget --peer "$address" a)" = apple ] || fail "what was stored is not there any more"
storectl --peer "$address" status --json | grep -q "\"$id\"" || fail "another member came back"
grep -q resuming "$run/stderr" || fail "it did not resume"
stop

step "its directory can be set aside"
configure "--replace=$id"
start
until_true notified '^STATUS=looking for'
[ -d /var/lib/thrifty/node.removed-1 ] || fail "the former data was not kept"
stop

step "purging"
dpkg --remove thrifty >/dev/null 2>&1
[ -d /var/lib/thrifty/node ] || fail "removing the package deleted the data"
# Where systemd keeps the data of services with DynamicUser=.
if [ -d /var/lib/private ]; then mkdir /var/lib/private/thrifty; fi
dpkg --purge thrifty >"$run/purge" 2>&1
grep -q "deleting this node's data" "$run/purge" || fail "it was not said that the data is deleted"
for file in /usr/bin/storeserver $unit /etc/default/thrifty /var/lib/thrifty /var/lib/private/thrifty \
  /usr/share/doc/thrifty /etc/systemd/system/thrifty.service; do
  if [ -e "$file" ] || [ -L "$file" ]; then fail "$file was left behind"; fi
done
if pgrep -x storeserver -U 61919 >/dev/null; then fail "a process was left behind"; fi

echo "the Debian package can be installed, serves, restarts and goes ($SECONDS s)"
