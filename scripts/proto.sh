#!/usr/bin/env bash
# Checks the protos: style, format, compatibility with the last release, and that the generated code is theirs.
set -euo pipefail
cd "$(dirname "$0")/.."

make -s bin/tools/buf
PATH="$PWD/bin/tools:$PATH"
buf lint
buf format -d --exit-code

release=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true)
if [ -n "$release" ]; then
	buf breaking --against ".git#tag=$release"
else
	echo "buf breaking: there is no release tag to compare with yet"
fi

scripts/unchanged.sh gen -- make -s generate
