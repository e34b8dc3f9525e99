#!/usr/bin/env bash
# A NATS server, which tests start on loopback ports of their own.
#
#   scripts/nats.sh install   builds it from its Go module, where it is not yet, and prints the variable that tests read
#   scripts/nats.sh start FOLDER [OPTION...]   starts one and prints its address, for a look by hand
#   scripts/nats.sh stop  FOLDER               stops it and removes the folder
#
# For a shell:  eval "$(scripts/nats.sh install)"
set -euo pipefail

readonly version=v2.14.3
readonly tools=${XDG_CACHE_HOME:-$HOME/.cache}/waxwing/tools
readonly server=$tools/bin/nats-server-$version

install() {
    if [[ ! -x $server ]]; then
        command -v go >/dev/null || { echo "nats.sh: Go is missing" >&2; exit 1; }
        local folder
        folder=$(mktemp -d)
        GOBIN=$folder GOFLAGS='' CGO_ENABLED=0 go install -trimpath "github.com/nats-io/nats-server/v2@$version" >&2
        mkdir -p "$tools/bin"
        mv "$folder/nats-server" "$server"
        rmdir "$folder"
    fi
    echo "export WAXWING_TEST_NATS_SERVER='$server'"
}

case ${1:-} in
install) install ;;
start)
    install >/dev/null
    folder=${2:?a folder}
    mkdir -p "$folder"
    port=$((20000 + $$ % 10000))
    "$server" --addr 127.0.0.1 --port "$port" "${@:3}" >"$folder/log" 2>&1 &
    echo $! >"$folder/pid"
    for _ in $(seq 50); do
        if grep -q 'Server is ready' "$folder/log"; then
            echo "nats://127.0.0.1:$port"
            exit 0
        fi
        sleep 0.1
    done
    cat "$folder/log" >&2
    exit 1
    ;;
stop)
    folder=${2:?a folder}
    if [[ -f $folder/pid ]]; then kill "$(<"$folder/pid")" 2>/dev/null || true; fi
    rm -rf "$folder"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
