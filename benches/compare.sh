#!/usr/bin/env bash
# Ratios, side by side in one run: a server that does nothing, one node, three nodes in memory, three on disk, and
# (where it is installed) three members of etcd; and what a million keys cost one node in memory. Everything on
# loopback, bounded in time, ended by its own pid.
#
#   bash benches/compare.sh [SECONDS] [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-5} rounds=${2:-3}
cargo build --quiet --profile dist --bin storeserver --bin storebench
cargo bench --quiet --no-run --bench etcd
bin=$PWD/target/dist
etcd_bench=$(ls -t target/release/deps/etcd-* | grep -v '\.d$' | head -n 1)
work=$(mktemp -d) pids=()
finish() { for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$work"; }
trap finish EXIT

serve() { # NAME PORT FLAGS...
  local name=$1 port=$2; shift 2
  mkdir -p "$work/$name"
  (cd "$work/$name" && exec "$bin/storeserver" --port "$port" "$@" 2>log) & pids+=($!)
}
ring() { # NAME FIRST_PORT FLAGS...
  local name=$1 first=$2; shift 2
  serve "$name-1" "$first" --ring "$name" --bootstrap "$@"
  for i in 1 2; do serve "$name-$((i + 1))" $((first + i)) --ring "$name" --peer "127.0.0.1:$first" "$@"; done
  for i in $(seq 300); do
    [ "$(cat "$work/$name"-*/log | grep -c 'joined ring')" -ge 2 ] && return
    sleep 0.1
  done
  echo "the ring $name did not come about" >&2; cat "$work/$name"-*/log >&2; exit 1
}
rate() { # OPERATION PORT
  "$bin/storebench" "$1" --peer "127.0.0.1:$2" --callers 64 --key-bytes 16 --value-bytes 100 --seconds "$seconds" \
    --json 2>/dev/null | sed 's/.*"requests_per_second":\([0-9]*\).*/\1/'
}
resident() { # PID
  awk '/^VmRSS:/ { printf "%d", $2 / 1024 }' "/proc/$1/status"
}

"$bin/storebench" null --listen 127.0.0.1:9800 2>/dev/null & pids+=($!)
serve one 9801 --ring one --bootstrap --memory
ring memory 9810 --memory
ring disk 9820
etcd=
if command -v etcd >/dev/null; then
  etcd=127.0.0.1:9830
  members=a=http://127.0.0.1:9840,b=http://127.0.0.1:9841,c=http://127.0.0.1:9842
  n=0
  for name in a b c; do
    etcd --name $name --data-dir "$work/etcd-$name" --initial-cluster "$members" --initial-cluster-state new \
      --listen-peer-urls "http://127.0.0.1:$((9840 + n))" --initial-advertise-peer-urls "http://127.0.0.1:$((9840 + n))" \
      --listen-client-urls "http://127.0.0.1:$((9830 + n))" --advertise-client-urls "http://127.0.0.1:$((9830 + n))" \
      >"$work/etcd-$name.log" 2>&1 & pids+=($!)
    n=$((n + 1))
  done
  sleep 5
fi
printf 'load before: %s\n' "$(cut -d' ' -f1-3 /proc/loadavg)"
for port in 9801 9810 9820; do "$bin/storebench" get --preload --peer "127.0.0.1:$port" --seconds 1 >/dev/null 2>&1; done
for round in $(seq "$rounds"); do
  null_put=$(rate put 9800) null_get=$(rate get 9800)
  one_put=$(rate put 9801) one_get=$(rate get 9801)
  memory_put=$(rate put 9810) memory_get=$(rate get 9810)
  disk_put=$(rate put 9820)
  etcd_put=0; [ -z "$etcd" ] || etcd_put=$("$etcd_bench" "$etcd" "$seconds" | cut -d' ' -f1)
  awk -v np="$null_put" -v ng="$null_get" -v op="$one_put" -v og="$one_get" -v mp="$memory_put" -v mg="$memory_get" \
    -v dp="$disk_put" -v ep="$etcd_put" -v r="$round" 'BEGIN {
    printf "round %d: null %d/%d  one %d/%d  three %d/%d  disk %d  etcd %d  (puts/gets a second)\n", r, np, ng, op, og, mp, mg, dp, ep
    printf "  one/null %.2f/%.2f  three/one %.2f/%.2f  disk/three %.2f", op/np, og/ng, mp/op, mg/og, dp/mp
    if (ep > 0) printf "  disk/etcd %.1f", dp/ep
    printf "\n" }'
done
serve million 9802 --ring million --bootstrap --memory
million=${pids[-1]}
until grep -q 'started ring' "$work/million/log"; do sleep 0.1; done
empty=$(resident "$million")
"$bin/storebench" get --preload --peer 127.0.0.1:9802 --keys 1000000 --key-bytes 16 --value-bytes 100 --seconds 1 \
  >/dev/null 2>&1
printf 'memory: %d MiB resident with 1,000,000 keys of 16 B and values of 100 B (%d MiB with none); asked: under 400 MB\n' \
  "$(resident "$million")" "$empty"
printf 'load after: %s\n' "$(cut -d' ' -f1-3 /proc/loadavg)"
