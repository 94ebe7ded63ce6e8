# What one does with this project. `just` lists it.

default:
    @just --list

# All that has to pass before a change lands.
ci:
    bash .ci/run

# The tests, without the stories with real processes.
test:
    cargo test --lib

# The stories: real binaries, real signals.
stories:
    cargo test --test it

# Real processes killed, hung and cut off from each other: `just torture 1000 1000000`.
torture kills="1000" keys="1000000":
    THRIFTY_TORTURE_KILLS={{kills}} THRIFTY_TORTURE_KEYS={{keys}} \
        cargo test --release --test it torture -- --nocapture

# Nodes join and leave one after the other under load; nothing is lost, nothing read wrongly: `just changes 100`.
changes count="100":
    THRIFTY_CHANGES={{count}} cargo test --release --test it changes:: -- --nocapture

# A node is cut off while so many keys are written: how soon, and with how many bytes, it catches up.
heal keys="100000":
    THRIFTY_HEAL_KEYS={{keys}} cargo test --release --test it partition:: -- --nocapture

# One node of three is killed under load: what that does to requests, and for how long.
killed rate="2000" seconds="10":
    THRIFTY_KILLED_RATE={{rate}} THRIFTY_KILLED_SECONDS={{seconds}} \
        cargo test --release --test it killed:: -- --nocapture

# Simulate many rings: `just simulate 20000 0`.
simulate seeds="20000" first="0":
    THRIFTY_SIM_SEEDS={{seeds}} THRIFTY_SIM_FIRST_SEED={{first}} \
        cargo test --release --no-default-features --test sim -- --nocapture --skip mutant

# Run the whole shell on a simulated network: `just turmoil 5000 0`.
turmoil seeds="5000" first="0":
    THRIFTY_TURMOIL_SEEDS={{seeds}} THRIFTY_TURMOIL_FIRST_SEED={{first}} \
        cargo test --release --no-default-features --features store --test turmoil -- --nocapture

# How many seeds it takes to find each planted bug.
mutants seeds="3000":
    THRIFTY_SIM_MUTANT_SEEDS={{seeds}} \
        cargo test --release --no-default-features --features mutants --test sim -- --nocapture mutant

# Every schedule of a small transition: `just model 2` goes further and takes minutes.
model depth="1":
    THRIFTY_MODEL_DEPTH={{depth}} \
        cargo test --release --no-default-features --features mutants --test model -- --nocapture --test-threads=1

# Feed a decoder bytes from outside: `just fuzz layout 10000000`. What it keeps lands in fuzz/target.
fuzz target runs="1000000":
    command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked
    mkdir -p fuzz/target/kept/{{target}}
    cargo +nightly fuzz run --sanitizer none {{target}} \
        fuzz/target/kept/{{target}} fuzz/corpus/{{target}} fuzz/seeds/{{target}} -- -runs={{runs}} -max_len=2048

# Add to the committed corpus what fuzzing found and it does not reach.
fuzz-keep target:
    cargo +nightly fuzz run --sanitizer none {{target}} \
        fuzz/corpus/{{target}} fuzz/seeds/{{target}} fuzz/target/kept/{{target}} -- -merge=1 -use_counters=0 -max_len=2048

# What the pure layers cost.
bench:
    cargo bench --bench core

# The binaries as they are packaged.
dist:
    cargo build --profile dist --bins

# A Debian package of them, with a service of systemd.
package: dist
    command -v cargo-deb >/dev/null || cargo install cargo-deb --locked
    bash packaging/package.sh target/dist

# A ring of three against one node and against a server that does nothing.
compare:
    bash benches/compare.sh

# Ten times what a ring can serve: `just overload 3`.
overload nodes="3" seconds="15" *flags:
    bash benches/overload.sh {{nodes}} {{seconds}} {{flags}}

# Reads of keys that everybody reads, by number of nodes, with their caches and without. Takes root.
hot-key seconds="3" percent="10":
    bash benches/hot_key.sh {{seconds}} {{percent}}

# What good clients keep of their rate under each kind of abuse.
abuse:
    cargo test --release --test it abuse::good_clients -- --ignored --nocapture
