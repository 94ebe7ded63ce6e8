#!/usr/bin/env bash
# Sets the clients up and tries them on a server.
#
#   test.sh [DIRECTORY OF storeserver]      default: target/debug of this repository
#
# All that is made lies under target/clients. Python, Node, a C++ compiler and gRPC for it are
# installed with apt-get if they are missing, and only then.
set -euo pipefail

passed=0 failed=0 pids=()

finish() {
    local code=$?
    trap - EXIT
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    [ "$code" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ] || exit 1
}
trap finish EXIT
trap 'exit 130' INT TERM

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
binaries=$(cd "${1:-$root/target/debug}" && pwd)
work=$root/target/clients
# Nothing may be read from the log of an earlier run.
rm -rf "$work/logs"
mkdir -p "$work/logs" "$work/node"

export PYTHONDONTWRITEBYTECODE=1
# gRPC would take a proxy for these addresses, too.
export no_grpc_proxy=127.9.8.7
# Only what is said here counts for the server.
unset "${!THRIFTY_@}"

# ---- What has to be there -------------------------------------------------------------------

apt_install() {
    local sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get -qq update
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

# Some distributions ship python3 without what makes a venv.
python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3 python3-venv
{ command -v node && command -v npm; } >/dev/null || apt_install nodejs npm
{ command -v g++ && command -v make && command -v protoc && command -v grpc_cpp_plugin &&
    pkg-config --exists grpc++ protobuf libcrypto; } >/dev/null ||
    apt_install g++ make pkg-config protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libgrpc++-dev \
        libssl-dev

# It compiles while the others are fetched.
make --silent -j 2 -C "$here/cpp" OUT="$work/cpp" 2>"$work/logs/make" &
making=$!
pids+=("$making")

python=$work/python/bin/python
bash "$here/python/setup.sh" "$work/python"

# Modules are found beside the script that imports them, so the script is copied to them. It lies
# as deep there as here, and finds proto/ the same way.
cp "$here/node/package.json" "$here/node/client.mjs" "$work/node/"
(cd "$work/node" && npm install --silent --ignore-scripts --no-package-lock --no-audit --no-fund --no-update-notifier)

wait "$making" || { cat "$work/logs/make" >&2; exit 1; }

# ---- How things are checked -----------------------------------------------------------------

python_client() { "$python" "$here/python/client.py" "$@"; }
python_routing_client() { "$python" "$here/python/routing.py" "$@"; }
node_client() { node "$work/node/client.mjs" "$@"; }
cpp_client() { "$work/cpp/client" "$@"; }
cpp_routing_client() { "$work/cpp/routing" "$@"; }

# check NAME CODE STDOUT COMMAND...: the command ends with this code and prints just this.
check() {
    local name=$1 code=$2 expected=$3 got=0 out
    shift 3
    # The dot keeps newlines at the end.
    out=$({ "$@" 2>"$work/logs/stderr" || got=$?; printf '.%s' "$got"; })
    if [ "$out" = "$expected.$code" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name: expected '$expected.$code', got '$out' (stdout.code)"
        cat "$work/logs/stderr"
    fi
}

# fed TEXT COMMAND...: the command with this text, of which printf makes bytes, on its stdin.
fed() { printf "$1" | "${@:2}"; }

# sorted COMMAND...: the lines that it prints, in order.
sorted() { "$@" | LC_ALL=C sort; }

# codes COMMAND...: what its lines begin with.
codes() { "$@" | cut -d ' ' -f 1 | tr '\n' ' '; }

# address PID LOG: waits until the process has written where it listens, and prints that.
address() {
    local pid=$1 log=$2 found
    local until=$((SECONDS + 30))
    while [ "$SECONDS" -lt "$until" ]; do
        # The log is there as soon as the process is.
        found=$(sed -n 's/.*listens on \([^ ,]*\).*/\1/p' "$log" 2>/dev/null || true)
        if [ -n "$found" ]; then
            echo "$found"
            return
        fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    echo "it did not say where it listens:" >&2
    cat "$log" >&2 || true
    return 1
}

# stop PID: asks the process to stop, and returns its exit code. For this shell, not a subshell of it.
stop() {
    local pid=$1 until=$((SECONDS + 30))
    kill -TERM "$pid"
    while kill -0 "$pid" 2>/dev/null; do
        [ "$SECONDS" -lt "$until" ] || kill -KILL "$pid"
        sleep 0.05
    done
    wait "$pid"
}

# ---- A server, and the clients --------------------------------------------------------------

# A ring of its own: it neither looks for others on this machine nor lets itself be found.
"$binaries/storeserver" --memory --listen 127.9.8.7:0 --bootstrap --ring "clients-test-$$" 2>"$work/logs/storeserver" &
server=$!
pids+=("$server")
at=$(address "$server" "$work/logs/storeserver")

# It listens a moment before it serves: until then, nothing is done.
until_ready=$((SECONDS + 30)) code=0
while [ "$SECONDS" -lt "$until_ready" ]; do
    code=0
    node_client "$at" get nothing 2>"$work/logs/stderr" || code=$?
    [ "$code" -eq 3 ] || break
    sleep 0.05
done
[ "$code" -eq 1 ] || { cat "$work/logs/stderr" >&2; exit 1; }

for client in python python_routing node cpp cpp_routing; do
    run=${client}_client
    check "$client: get of what is missing" 1 '' "$run" "$at" get "$client key"
    check "$client: put" 0 '' "$run" "$at" put "$client key" 'a value: Größe 5'
    check "$client: get" 0 'a value: Größe 5' "$run" "$at" get "$client key"
    check "$client: put once more" 0 '' "$run" "$at" put "$client key" ''
    check "$client: get of nothing" 0 '' "$run" "$at" get "$client key"
    check "$client: del" 0 '' "$run" "$at" del "$client key"
    check "$client: get of what was deleted" 1 '' "$run" "$at" get "$client key"
    check "$client: del once more" 0 '' "$run" "$at" del "$client key"
    check "$client: a key that is refused" 2 '' "$run" "$at" get ''
    check "$client: no command" 2 '' "$run" "$at"
    check "$client: no value" 2 '' "$run" "$at" put key
    check "$client: put for an hour" 0 '' "$run" "$at" put --ttl-ms 3600000 brief value
    check "$client: get within the hour" 0 value "$run" "$at" get brief
    check "$client: put for a millisecond" 0 '' "$run" "$at" put --ttl-ms 1 brief value
    check "$client: get after it" 1 '' "$run" "$at" get brief
    check "$client: put for no time" 2 '' "$run" "$at" put --ttl-ms 0 brief value
    check "$client: put for no number" 2 '' "$run" "$at" put --ttl-ms -1 brief value
    check "$client: batch of writes" 0 $'0 done\n0 done\n0 done\n' \
        fed "put $client/1 one\nput $client/2 Größe 5\nput $client/3 " "$run" "$at" batch
    check "$client: batch" 1 $'0 Größe 5\n0 \n1 NOT_FOUND: no such key\n0 done\n' \
        fed "get $client/2\nget $client/3\nget $client/4\ndel $client/1\n" "$run" "$at" batch
    check "$client: batch with one that is refused" 2 '' fed "del $client/2\nget $client/2 3\n" "$run" "$at" batch
    check "$client: ls" 0 "$client/2"$'\n'"$client/3"$'\n' sorted "$run" "$at" ls "$client/"
    check "$client: ls of nothing" 0 '' "$run" "$at" ls "$client//"
    check "$client: no node" 3 '' "$run" 127.9.8.7:1 get key
done

check 'put by Python' 0 '' python_client "$at" put 'ключ/1' 'by Python 鍵'
check 'get by Node' 0 'by Python 鍵' node_client "$at" get 'ключ/1'
check 'put by Node' 0 '' node_client "$at" put 'ключ/1' 'by Node 鍵'
check 'get by Python' 0 'by Node 鍵' python_client "$at" get 'ключ/1'
check 'get by the owner' 0 'by Node 鍵' python_routing_client "$at" get 'ключ/1'
check 'put by C++' 0 '' cpp_routing_client "$at" put 'ключ/1' 'by C++ 鍵'
check 'get by Node of what C++ put' 0 'by C++ 鍵' node_client "$at" get 'ключ/1'
check 'get by C++' 0 'by C++ 鍵' cpp_client "$at" get 'ключ/1'
check 'del by Node' 0 '' node_client "$at" del 'ключ/1'
check 'get of what Node deleted' 1 '' python_client "$at" get 'ключ/1'

check 'the routing test in Python' 0 '' "$python" "$here/python/test_routing.py" "$at"
check 'the routing test in C++' 0 '' "$work/cpp/test_routing" "$root/testdata/ring_vectors.json" "$at"

# ---- What failures mean ---------------------------------------------------------------------

"$python" "$here/python/faulty.py" >"$work/logs/faulty" 2>&1 &
faulty=$!
pids+=("$faulty")
faulty_at=$(address "$faulty" "$work/logs/faulty")

for client in python node cpp; do
    run=${client}_client
    for write in 'put KEY value' 'del KEY'; do
        for case in UNAVAILABLE+RetryInfo:3 UNAVAILABLE:5 ABORTED:5 DEADLINE_EXCEEDED:5 INTERNAL:5 \
            RESOURCE_EXHAUSTED:3 INVALID_ARGUMENT:2 UNIMPLEMENTED:2; do
            read -ra words <<<"${write/KEY/${case%:*}}"
            check "$client: ${words[*]}" "${case#*:}" '' "$run" "$faulty_at" "${words[@]}"
        done
    done
    for case in UNAVAILABLE:3 DEADLINE_EXCEEDED:3 NOT_FOUND:1; do
        check "$client: get ${case%:*}" "${case#*:}" '' "$run" "$faulty_at" get "${case%:*}"
    done
    for case in UNAVAILABLE+RetryInfo:3 UNAVAILABLE:5 DEADLINE_EXCEEDED:5 INVALID_ARGUMENT:2; do
        check "$client: batch ${case%:*}" "${case#*:}" '' fed "del ${case%:*}\nget a\n" "$run" "$faulty_at" batch
    done
    check "$client: batch of gets" 3 '' fed 'get UNAVAILABLE\nget a\n' "$run" "$faulty_at" batch
    check "$client: batch without results" 5 '' fed 'get few\nput a b\n' "$run" "$faulty_at" batch
    check "$client: batch of which items fail" 5 '5 3 1 5 3 2 3 ' codes \
        fed 'put each a\nget ABORTED?\nget NOT_FOUND\ndel ABORTED?\nput UNAVAILABLE a\ndel INVALID_ARGUMENT\nget OUT_OF_RANGE' "$run" "$faulty_at" batch
    check "$client: batch of which gets fail" 3 '3 3 ' codes fed 'get each\nget ABORTED?\n' "$run" "$faulty_at" batch
    check "$client: ls of a stream that breaks" 0 '0 1 2 3 4 5 6 7 8 9 the ' codes "$run" "$faulty_at" ls broken
    for case in UNAVAILABLE:3 INVALID_ARGUMENT:2; do
        check "$client: ls ${case%:*}" "${case#*:}" '' "$run" "$faulty_at" ls "${case%:*}"
    done
done

# ---- The end --------------------------------------------------------------------------------

code=0
stop "$server" || code=$?
check 'the server stops' 0 '' test "$code" -eq 0
for client in python node cpp; do
    check "$client: the server is gone" 3 '' "${client}_client" "$at" put key value
done
