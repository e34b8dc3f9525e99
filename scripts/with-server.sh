#!/usr/bin/env bash
# Runs a command against a fresh Waxwing with open registration and no rate limits, then ends and removes it.
#
#   scripts/with-server.sh [--postgres] COMMAND...
#
# The command finds the server in WAXWING_TEST_HOMESERVER. With --postgres the server gets a database of its own in
# the cluster of WAXWING_TEST_POSTGRES (see scripts/postgres.sh). WAXWING_BIN names a server that is built already.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

postgres=
if [[ ${1:-} == --postgres ]]; then
    postgres=${WAXWING_TEST_POSTGRES:?where PostgreSQL is; scripts/postgres.sh starts one}
    shift
fi
[[ $# -gt 0 ]] || {
    sed -n '2,7s/^# \{0,1\}//p' "$0"
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
id=
finish() {
    if [[ -n $id ]]; then
        kill "$id" 2>/dev/null || true
        wait "$id" 2>/dev/null || true
    fi
    if [[ -n $database ]]; then
        psql -q "$postgres" -c "DROP DATABASE IF EXISTS $database" || true
    fi
    rm -rf "$folder"
}
trap finish EXIT

settings=(
    --set "data_dir=$folder/data" --set registration=open --set rate_limits.enabled=false
    --set listen.client=127.0.0.1:0 --set listen.federation=127.0.0.1:0 --set listen.metrics=
    --set password.memory_kib=64 --set password.iterations=1
)
if [[ -n $postgres ]]; then
    database=waxwing_$(head -c 8 /dev/urandom | od -An -tx1 | tr -d ' \n')
    psql -q "$postgres" -c "CREATE DATABASE $database"
    settings+=(--set "database=${postgres%/*}/$database")
fi

(cd "$folder" && exec "$server" "${settings[@]}" >said 2>log) &
id=$!
for _ in $(seq 300); do
    if grep -qs '^ready ' "$folder/said"; then
        WAXWING_TEST_HOMESERVER=$(sed -n 's/^ *clients *//p' "$folder/said" | head -n 1)
        export WAXWING_TEST_HOMESERVER
        status=0
        "$@" || status=$?
        [[ $status -eq 0 ]] || tail -n 100 "$folder/log" >&2
        exit $status
    fi
    kill -0 "$id" 2>/dev/null || break
    sleep 0.1
done
echo "with-server.sh: the server did not start" >&2
cat "$folder/said" "$folder/log" >&2 || true
exit 1
