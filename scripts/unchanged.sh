#!/usr/bin/env bash
# Runs a command and fails when it changed, added or removed a file.
#
#   scripts/unchanged.sh PATH... -- COMMAND [ARGUMENT...]
set -euo pipefail

paths=()
while [ "$1" != -- ]; do
	paths+=("$1")
	shift
done
shift

sums() { find "${paths[@]}" -type f -print0 | sort -z | xargs -0 sha256sum; }

before=$(sums)
"$@"
after=$(sums)
if ! diff <(printf '%s\n' "$before") <(printf '%s\n' "$after"); then
	echo "changed by: $*   (run it and commit the result)" >&2
	exit 1
fi
