#!/usr/bin/env bash
# A store that speaks the S3 protocol, for tests, on a loopback port: moto's server.
#
#   scripts/s3.sh start FOLDER   starts it and prints the variable that tests read
#   scripts/s3.sh stop  FOLDER   stops it and removes the folder
#
# For a shell:  eval "$(scripts/s3.sh start /tmp/s3)"
set -euo pipefail

readonly moto=5.2.1
readonly venv=${XDG_CACHE_HOME:-$HOME/.cache}/waxwing/s3-$moto
folder=${2:?a folder}

# The program: as it is installed, or in an environment of its own.
program() {
    command -v moto_server && return
    if [[ ! -x $venv/bin/moto_server ]]; then
        python3 -m venv "$venv" >&2 && "$venv/bin/pip" install --quiet "moto[server]==$moto" >&2 || return 1
    fi
    echo "$venv/bin/moto_server"
}

case ${1:-} in
start)
    server=$(program)
    mkdir -p "$folder"
    port=$((20000 + $$ % 10000))
    "$server" -H 127.0.0.1 -p "$port" >"$folder/log" 2>&1 &
    echo $! >"$folder/pid"
    for _ in $(seq 150); do
        if curl --silent --noproxy '*' --output /dev/null "http://127.0.0.1:$port/"; then
            echo "export WAXWING_TEST_S3=http://127.0.0.1:$port"
            exit 0
        fi
        sleep 0.2
    done
    echo "s3.sh: the server did not start; see $folder/log" >&2
    exit 1
    ;;
stop)
    if [[ -f $folder/pid ]]; then kill "$(<"$folder/pid")" 2>/dev/null || true; fi
    rm -rf "$folder"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
