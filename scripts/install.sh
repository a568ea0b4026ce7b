#!/usr/bin/env bash
# Installs what this machine lacks, with apt, and leaves alone what is there.
#
#   scripts/install.sh redis sentinel curl gcc npm      any of these; what is already there costs nothing
set -euo pipefail

wanted=()
for what in "$@"; do
	case "$what" in
	# callrelay starts its own server process; a system service is not needed and not started.
	redis) command -v redis-server valkey-server >/dev/null || wanted+=(redis-server) ;;
	# For tests of failover; like redis, it is not started as a service.
	sentinel) command -v redis-sentinel >/dev/null || wanted+=(redis-sentinel) ;;
	curl) command -v curl >/dev/null || wanted+=(curl ca-certificates) ;;
	# The race detector links with it.
	gcc) command -v gcc >/dev/null || wanted+=(gcc libc6-dev) ;;
	# For buf, which is installed from tools/package-lock.json.
	npm) command -v npm >/dev/null || wanted+=(nodejs npm) ;;
	*) echo "install.sh: unknown: $what" >&2; exit 1 ;;
	esac
done

if ! command -v go >/dev/null; then
	echo "Go is not installed (1.26 or newer is needed): https://go.dev/doc/install" >&2
	exit 1
fi

[ ${#wanted[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
	as_root=(sudo)
fi
if ! command -v apt-get >/dev/null || { [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; }; then
	echo "missing, and cannot be installed from here (needs apt-get, as root or with sudo): ${wanted[*]}" >&2
	exit 1
fi

echo "installing: ${wanted[*]}"
# While this file says 101, Debian's packages install their services without starting them.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
	"${as_root[@]}" chmod +x $policy
	trap '"${as_root[@]}" rm -f $policy' EXIT
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${wanted[@]}" </dev/null
for service in redis-server redis-sentinel; do
	case " ${wanted[*]} " in
	*" $service "*)
		if [ -d /run/systemd/system ]; then
			"${as_root[@]}" systemctl disable --quiet "$service.service"
		fi
		;;
	esac
done
