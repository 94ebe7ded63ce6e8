#!/usr/bin/env bash
# Makes the Debian package of programs that are built: `packaging/package.sh DIRECTORY`, for example
# target/dist after `just dist`. Says on stdout where it is. More options are those of `cargo deb`.
set -euo pipefail
built=$(realpath "${1:?which directory are the programs in?}")
shift
cd "$(dirname "$0")/.."

# As if they had just been built by the profile that is packaged.
stage=$PWD/target/packaging
rm -rf "$stage"
share=$stage/dist/share
mkdir -p "$share/doc/thrifty"
for program in $(sed -n '/^\[\[bin\]\]/,/^name/s/^name = "\(.*\)"/\1/p' Cargo.toml); do
  cp --reflink=auto "$built/$program" "$stage/dist/"
  "$built/$program" --generate "$share"
done
gzip -9n "$share"/man/*/*
gzip -9nc CHANGELOG.md >"$share/doc/thrifty/changelog.gz"
CARGO_TARGET_DIR=$stage cargo deb --no-build --quiet --output "$stage" "$@"
