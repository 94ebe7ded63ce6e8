#!/usr/bin/env bash
# Keys that everybody reads: how many reads at ONE a second rings of 1, 2, 3 and 4 nodes (on loopback, in memory) answer
# that are asked in turn, with the nodes' caches and without: of one key, and of 10,000 of which some are read far more
# often than others. Each node may have a small part of a processor only (a cgroup's quota, which takes root), so that
# nodes are what is scarce, and not the machine; beside each figure is how much of its part the idlest node had, and of a
# processor the client. Bounded in time, ended by its own pids.
#
#   bash benches/hot_key.sh [SECONDS_OF_EACH] [PERCENT_OF_A_PROCESSOR] [ZIPF_EXPONENT] [MOST_NODES]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-3} percent=${2:-10} zipf=${3:-1.2} most=${4:-4} port=9830
cargo build --quiet --release --bin storeserver --bin storebench
bin=$PWD/target/release
work=$(mktemp -d) pids=() groups=()
finish() {
  for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  for group in "${groups[@]}"; do rmdir "$group" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT
cpu=/sys/fs/cgroup/cpu
[ -d "$cpu" ] || cpu=/sys/fs/cgroup
mkdir "$cpu/thrifty-$$" 2>/dev/null || { echo "hot_key.sh limits nodes by cgroups and can't write $cpu: run it as root" >&2; exit 1; }
groups+=("$cpu/thrifty-$$")

period=20000
group() { # NAME [PERCENT]: makes a group in $group. None of them waits for others' work on this machine.
  group=$cpu/thrifty-$$-$1 quota=$((period * ${2:-1000} / 100))
  [ -f "$cpu/cpu.cfs_quota_us" ] || echo +cpu >"$cpu/cgroup.subtree_control"
  mkdir "$group" && groups+=("$group")
  if [ -f "$group/cpu.cfs_quota_us" ]; then
    echo $period >"$group/cpu.cfs_period_us"; echo $quota >"$group/cpu.cfs_quota_us"; echo 16384 >"$group/cpu.shares"
  else
    echo "$quota $period" >"$group/cpu.max"; echo 1600 >"$group/cpu.weight"
  fi
}
used() { # PID: hundredths of a second of processor time
  awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"
}
declare -A ring # CACHE: pids of its nodes
serve() { # CACHE NUMBER FLAGS...
  local cache=$1 number=$2 at; shift 2
  at=$((port + number - 1)); [ "$cache" = on ] || at=$((at + 10))
  mkdir "$work/$cache-$number" && touch "$work/$cache-$number/log"
  (cd "$work/$cache-$number" && exec "$bin/storeserver" --port $at --ring "hot-$cache" --memory "$@" 2>log) & pids+=($!)
  until grep -qE 'started ring|joined ring' "$work/$cache-$number/log"; do
    kill -0 "${pids[-1]}" || { cat "$work/$cache-$number/log" >&2; exit 1; }
    sleep 0.1
  done
  ring[$cache]+=" ${pids[-1]}"
}
bench() { # PORT SECONDS FLAGS...
  local at=$1 time=$2; shift 2
  (echo $BASHPID >"$client/cgroup.procs"
   exec "$bin/storebench" get --peer "127.0.0.1:$at" --consistency one --callers 512 --seconds "$time" --json "$@" 2>/dev/null)
}
measure() { # CACHE FLAGS...: reads a second, the idlest node's part of its share, the client's of a processor
  local cache=$1 before=() at=$port began ended least=100000 node i=0 mine; shift
  [ "$cache" = on ] || at=$((at + 10))
  bench $at 1 "$@" >/dev/null
  for node in ${ring[$cache]}; do before+=("$(used "$node")"); done
  began=${EPOCHREALTIME/./}
  mine=$({ TIMEFORMAT='%U %S'; time bench $at "$seconds" --warmup 0 "$@" >"$work/told"; } 2>&1)
  ended=${EPOCHREALTIME/./}
  for node in ${ring[$cache]}; do
    part=$((($(used "$node") - before[i]) * 10000 * 10000 / (ended - began) / percent)); i=$((i + 1))
    [ $part -ge $least ] || least=$part
  done
  grep -q '"unavailable":0' "$work/told" || { cat "$work/told" >&2; exit 1; }
  rate=$(sed 's/.*"requests_per_second":\([0-9]*\).*/\1/' "$work/told") nodes_had=$least
  client_had=$(awk -v m="$mine" -v t=$((ended - began)) 'BEGIN { split(m, a); printf "%d", (a[1] + a[2]) * 1e8 / t }')
}

group client; client=$group
printf 'load before: %s; %s%% of a processor for each node, zipf %s\n' "$(cut -d' ' -f1-3 /proc/loadavg)" "$percent" "$zipf"
printf '%-13s | %-35s | %s\n' '' 'one key' '10,000 keys' 'nodes  cache' 'reads/s  of one  node had  client' \
  'reads/s  of one  node had  client'
declare -A first
for count in $(seq "$most"); do
  for cache in off on; do
    ttl=1s at=$port; [ "$cache" = on ] || { ttl=0; at=$((at + 10)); }
    how=(--bootstrap); [ "$count" = 1 ] || how=(--peer "127.0.0.1:$at")
    # It joins at the pace of the others, and is limited then.
    serve $cache "$count" --cache-ttl $ttl "${how[@]}"
    [ "$count" != 1 ] || bench "$at" 1 --preload --keys 10000 >/dev/null
    group "$cache-$count" "$percent"; echo "${pids[-1]}" >"$group/cgroup.procs"
  done
  for cache in off on; do
    line=
    for keys in "--keys 1" "--keys 10000 --zipf $zipf"; do
      # shellcheck disable=SC2086
      measure $cache --any-node $keys
      : "${first[$cache$keys]:=$rate}"
      line+=$(awk -v r="$rate" -v f="${first[$cache$keys]}" -v n="$nodes_had" -v c="$client_had" \
        'BEGIN { printf " | %7d   %4.1fx      %3d%%    %3d%%  ", r, r / f, n, c }')
    done
    printf '%-6s %-6s%s\n' "$count" $cache "$line"
  done
done
printf 'load after: %s\n' "$(cut -d' ' -f1-3 /proc/loadavg)"
