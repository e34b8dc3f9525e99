#!/usr/bin/env bash
# A private PostgreSQL 15 cluster for tests: its own folder, a loopback port of its own, fsync on.
#
#   scripts/postgres.sh start [FOLDER]   starts it and prints the variable that tests read
#   scripts/postgres.sh stop  [FOLDER]   stops it and removes the folder
#   scripts/postgres.sh install          installs the server's programs from Debian, and no system cluster
#
# For a shell:  eval "$(scripts/postgres.sh start)"
set -euo pipefail

readonly version=15
readonly user=waxwing
folder=${2:-${TMPDIR:-/tmp}/waxwing-postgres-$(id -u)}

fail() {
    echo "postgres.sh: $*" >&2
    exit 1
}

programs() {
    local at
    for at in "/usr/lib/postgresql/$version/bin" "$(pg_config --bindir 2>/dev/null || true)"; do
        if [[ -x $at/initdb && -x $at/postgres && "$("$at/postgres" --version)" == *" $version."* ]]; then
            echo "$at"
            return
        fi
    done
    return 1
}

# PostgreSQL refuses to run as root.
as_owner() {
    if [[ $(id -u) -eq 0 ]]; then
        (cd / && runuser -u "$owner" -- "$@")
    else
        "$@"
    fi
}

install() {
    programs >/dev/null && return
    [[ $(id -u) -eq 0 ]] || fail "PostgreSQL $version is missing; run as root: $0 install"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends postgresql-common
    # Otherwise the package makes and starts a cluster that listens on the usual port.
    sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    apt-get install -qq -y --no-install-recommends "postgresql-$version"
    programs >/dev/null || fail "PostgreSQL $version is still missing after its installation"
}

running() {
    as_owner "$bin/pg_ctl" -D "$folder/data" status >/dev/null 2>&1
}

start() {
    if [[ -f $folder/url ]] && running; then
        echo "export WAXWING_TEST_POSTGRES='$(cat "$folder/url")'"
        return
    fi
    [[ -e $folder/url ]] && rm -rf "$folder"
    mkdir -p "$folder"
    [[ -z $(ls -A "$folder") ]] || fail "$folder holds something else"
    chmod 0700 "$folder"
    local password port attempt
    password=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
    (umask 077 && echo "$password" >"$folder/password")
    [[ $(id -u) -eq 0 ]] && chown -R "$owner" "$folder"
    # `password` and not SCRAM: tests connect often, and the client's side of SCRAM is slow without optimisation.
    as_owner "$bin/initdb" -D "$folder/data" -U "$user" --pwfile "$folder/password" --auth=password \
        --encoding=UTF8 --locale=C >"$folder/log" 2>&1 || { cat "$folder/log" >&2; fail "initdb failed"; }
    for attempt in 1 2 3 4 5; do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        if as_owner "$bin/pg_ctl" -D "$folder/data" -w -t 60 -l "$folder/server.log" start \
            -o "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories=$folder \
                -c max_connections=400 -c fsync=on" >/dev/null 2>&1; then
            echo "postgres://$user:$password@127.0.0.1:$port/postgres" >"$folder/url"
            echo "export WAXWING_TEST_POSTGRES='$(cat "$folder/url")'"
            return
        fi
        echo "postgres.sh: attempt $attempt at port $port failed" >&2
    done
    cat "$folder/server.log" >&2
    fail "the cluster does not start"
}

stop() {
    [[ -d $folder ]] || return 0
    [[ -d $folder/data ]] || fail "$folder is no cluster of this script"
    if running; then
        as_owner "$bin/pg_ctl" -D "$folder/data" -w -m fast stop >/dev/null
    fi
    rm -rf "$folder"
}

case ${1:-} in
install) install ;;
start | stop)
    bin=$(programs) || fail "PostgreSQL $version is missing; run: $0 install"
    owner=$(id -un)
    if [[ $(id -u) -eq 0 ]]; then
        owner=nobody
        if id postgres >/dev/null 2>&1; then owner=postgres; fi
    fi
    "$1"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
