#!/usr/bin/env bash
# Each module has to stand alone: vetted without the workspace, with a tidy go.mod, and with the versions that the
# workspace uses. The workspace hides all three mistakes.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=0
for dir in $(go list -m -f '{{.Dir}}'); do
	echo "-- ${dir#"$PWD"/}"
	(cd "$dir" && GOWORK=off go vet ./... && GOWORK=off go mod tidy -diff) || failed=1
done
mapfile -t files < <(go list -m -f '{{.Dir}}/go.mod')
scripts/unchanged.sh "${files[@]}" -- go work sync || failed=1
exit $failed
