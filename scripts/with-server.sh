#!/usr/bin/env bash
# Runs a command against a fresh Waxwing with open registration and no rate limits, then ends and removes it.
#
#   scripts/with-server.sh [--postgres] COMMAND...
#   scripts/with-server.sh --restart [SIGNAL]
#   scripts/with-server.sh --audit
#
# The command finds the server in WAXWING_TEST_HOMESERVER. With --postgres the server gets a database of its own in
# the cluster of WAXWING_TEST_POSTGRES (see scripts/postgres.sh). WAXWING_BIN names a server that is built already.
# Settings beyond those below come in WAXWING_TEST_SETTINGS, as NAME=VALUE, one a line.
#
# With --restart, called by the command, the server ends by SIGNAL (TERM; KILL is a crash) and is started again at
# the same addresses. The call returns when it is ready. --audit, called by the command too, fails if the server's
# database has words in the clear.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

# Starts the server by the command line in $folder/command, one argument a line, and waits until it is ready.
start() {
    local arguments
    mapfile -t arguments <"$folder/command"
    (cd "$folder" && exec "${arguments[@]}" >said 2>>log </dev/null) &
    echo $! >"$folder/id"
    disown
    for _ in $(seq 300); do
        if grep -qs '^ready ' "$folder/said"; then
            return
        fi
        kill -0 "$(<"$folder/id")" 2>/dev/null || break
        sleep 0.1
    done
    echo "with-server.sh: the server did not start" >&2
    cat "$folder/said" "$folder/log" >&2 || true
    return 1
}

# end SIGNAL: ends the server, which may be the child of another run of this script, and waits until it has ended.
end() {
    local id
    id=$(<"$folder/id")
    kill -s "$1" "$id" 2>/dev/null || return 0
    for _ in $(seq 300); do
        # Ended and not waited for yet is ended: its files are closed, its lock is free. But only when its last thread
        # has ended too, not the first alone.
        [[ $(sed -n 's/^State:\t//p' "/proc/$id/status" 2>/dev/null) == [A-Y]* || \
            $(find "/proc/$id/task" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l) -gt 1 ]] || return 0
        sleep 0.1
    done
    echo "with-server.sh: the server did not end within 30 s" >&2
    kill -s KILL "$id" 2>/dev/null || true
    return 1
}

# The address in the line of $folder/said that begins with the word.
said() {
    sed -n "s/^ *$1 *//p" "$folder/said" | head -n 1
}

if [[ ${1:-} == --restart ]]; then
    folder=${WAXWING_TEST_SERVER:?only a command that this script runs can restart its server}
    end "${2:-TERM}"
    start
    exit
fi

if [[ ${1:-} == --audit ]]; then
    mapfile -t arguments <"${WAXWING_TEST_SERVER:?only a command that this script runs can audit its server}/command"
    exec "${arguments[0]}" audit "${arguments[@]:1}"
fi

postgres=
if [[ ${1:-} == --postgres ]]; then
    postgres=${WAXWING_TEST_POSTGRES:?where PostgreSQL is; scripts/postgres.sh starts one}
    shift
fi
[[ $# -gt 0 ]] || {
    sed -n '2,14s/^# \{0,1\}//p' "$0"
    exit 2
}

server=${WAXWING_BIN:-}
# It would be taken for a setting.
unset WAXWING_BIN
if [[ -z $server ]]; then
    (cd "$root" && cargo build --quiet --locked -p waxwing)
    server=${CARGO_TARGET_DIR:-$root/target}/debug/waxwing
fi

folder=$(mktemp -d)
database=
finish() {
    if [[ -e $folder/id ]]; then
        end TERM || true
    fi
    if [[ -n $database ]]; then
        psql -q "$postgres" -c "DROP DATABASE IF EXISTS $database" || true
    fi
    rm -rf "$folder"
}
trap finish EXIT

settings=(
    "data_dir=$folder/data" registration=open rate_limits.enabled=false
    listen.client=127.0.0.1:0 listen.federation=127.0.0.1:0 listen.metrics=
    password.memory_kib=64 password.iterations=1
)
if [[ -n $postgres ]]; then
    database=waxwing_$(head -c 8 /dev/urandom | od -An -tx1 | tr -d ' \n')
    psql -q "$postgres" -c "CREATE DATABASE $database"
    settings+=("database=${postgres%/*}/$database")
fi
if [[ -n ${WAXWING_TEST_SETTINGS:-} ]]; then
    mapfile -t -O ${#settings[@]} settings <<<"$WAXWING_TEST_SETTINGS"
    unset WAXWING_TEST_SETTINGS
fi
{
    realpath "$server"
    printf -- '--set\n%s\n' "${settings[@]}"
} >"$folder/command"

start
WAXWING_TEST_HOMESERVER=$(said clients)
export WAXWING_TEST_HOMESERVER WAXWING_TEST_SERVER=$folder
# Where a restart listens.
federation=$(said federation)
sed -i -e "s|^listen.client=.*|listen.client=${WAXWING_TEST_HOMESERVER#*//}|" \
    -e "s|^listen.federation=.*|listen.federation=${federation#*//}|" "$folder/command"
status=0
"$@" || status=$?
[[ $status -eq 0 ]] || tail -n 100 "$folder/log" >&2
exit $status
