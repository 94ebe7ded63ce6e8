#!/usr/bin/env bash
# What a ring of NODES (on loopback, in memory) still does when it is asked for ten times what it can serve: the rate
# before, during and after, and what the nodes take in memory meanwhile. All nodes share one processor and what asks
# them has another one, so that neither takes from the other. Bounded in time, ended by its own pids.
#
#   bash benches/overload.sh [NODES] [SECONDS_OF_EACH_PHASE] [FLAGS OF storebench overload...]
set -euo pipefail
cd "$(dirname "$0")/.."
nodes=${1:-3} seconds=${2:-15} most_mib=1024
shift $(($# < 2 ? $# : 2))
cargo build --quiet --profile dist --bin storeserver --bin storebench
bin=$PWD/target/dist
work=$(mktemp -d) pids=()
finish() { for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$work"; }
trap finish EXIT
serving=(env) asking=(env)
if [ "$(nproc)" -ge 2 ] && command -v taskset >/dev/null; then serving=(taskset -c 0) asking=(taskset -c 1); fi
memory() { # FIELD: of the node that has the most, in MiB
  for pid in "${pids[@]}"; do awk -v field="$1:" '$1 == field { printf "%d\n", $2 / 1024 }' "/proc/$pid/status"; done | sort -n | tail -n 1
}

for i in $(seq "$nodes"); do
  how=(--bootstrap); [ "$i" = 1 ] || how=(--peer 127.0.0.1:9850)
  mkdir "$work/$i" && touch "$work/$i/log"
  (cd "$work/$i" && exec "${serving[@]}" "$bin/storeserver" --port $((9849 + i)) --ring overload --memory "${how[@]}" 2>log) & pids+=($!)
  until grep -qE 'started ring|joined ring' "$work/$i/log"; do
    kill -0 "${pids[-1]}" || { cat "$work/$i/log" >&2; exit 1; }
    sleep 0.1
  done
done
printf 'load before: %s\n' "$(cut -d' ' -f1-3 /proc/loadavg)"
before=$(memory VmRSS) held=0
"${asking[@]}" "$bin/storebench" overload --peer 127.0.0.1:9850 --seconds "$seconds" --timeout 2 "$@" 2>"$work/said" || held=$?
[ "$held" = 0 ] || tail -n 1 "$work/said"
most=$(memory VmHWM)
printf 'memory: a node had %s MiB before, %s MiB at the most (%s are allowed), %s MiB after\n' \
  "$before" "$most" "$most_mib" "$(memory VmRSS)"
printf 'load after: %s\n' "$(cut -d' ' -f1-3 /proc/loadavg)"
if [ "$held" = 0 ] && [ "$most" -le "$most_mib" ]; then echo "overload: HELD"; else echo "overload: NOT HELD"; exit 1; fi
