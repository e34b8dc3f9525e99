#!/usr/bin/env bash
# Runs the same load against Waxwing and against Synapse, in turn, on this machine; prints medians and ratios.
#
#   scripts/compare.sh [--repeats N] [--servers "NAME..."] [--output FOLDER] [--two] [-- LOAD...]
#
#   NAME      waxwing, waxwing-postgres, synapse, synapse-postgres; without -postgres on SQLite. Default: all four
#   FOLDER    where results.jsonl and table.md go; results are added to what is there. Default: a new folder
#   --two     starts two of each, which federate with each other, and measures what happens between them
#   LOAD      what `waxwing-client load` shall do, one after the other with + between. Default: all --size small --step
#
# Every run has a server of its own on empty data, without rate limits and presence; fsync is on. WAXWING_BIN and
# WAXWING_CLIENT name programs that are built already (release builds, or the figures mean nothing); without them
# they are built. Synapse is installed from PyPI into a folder of its own under ~/.cache/waxwing.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

readonly synapse_version=1.163.2
readonly psycopg_version=2.9.13
readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/waxwing
readonly python=$cache/synapse-$synapse_version/bin/python

repeats=3
servers="waxwing waxwing-postgres synapse synapse-postgres"
output=
two=
while [[ $# -gt 0 ]]; do
    case $1 in
    --repeats | --servers | --output) printf -v "${1#--}" %s "${2:?$1 needs a value}" && shift 2 ;;
    --two) two=yes && shift ;;
    --) shift && break ;;
    *)
        sed -n '2,14s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
    esac
done
load=("$@")
[[ ${#load[@]} -gt 0 ]] || load=(all --size small --step)
[[ -n $output ]] || output=$(mktemp -d -t waxwing-compare-XXXXXX)
mkdir -p "$output"
readonly results=$output/results.jsonl

fail() {
    echo "compare.sh: $*" >&2
    exit 1
}

install_synapse() {
    [[ -x $python ]] && "$python" -c "import psycopg2, synapse; assert synapse.__version__ == '$synapse_version'" \
        2>/dev/null && return
    local folder=$cache/synapse-$synapse_version
    echo "installing Synapse $synapse_version" >&2
    rm -rf "$folder"
    mkdir -p "$cache"
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check "matrix-synapse==$synapse_version" \
        "psycopg2-binary==$psycopg_version"
}

programs() {
    if [[ -z ${WAXWING_BIN:-} || -z ${WAXWING_CLIENT:-} ]]; then
        (cd "$root" && cargo build --release --locked -p waxwing -p waxwing-client)
    fi
    local built=${CARGO_TARGET_DIR:-$root/target}/release
    waxwing=$(realpath "${WAXWING_BIN:-$built/waxwing}")
    client=$(realpath "${WAXWING_CLIENT:-$built/waxwing-client}")
    # They would be taken for settings of the server.
    unset WAXWING_BIN WAXWING_CLIENT
    [[ $servers != *synapse* ]] || install_synapse
    [[ $servers != *postgres* ]] || "$root/scripts/postgres.sh" install
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# One authority for this comparison, and a certificate for localhost.
certificates() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=compare.sh" \
        -keyout "$work/authority.key" -out "$work/authority.pem" 2>/dev/null
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=localhost" \
        -keyout "$work/localhost.key" -out "$work/localhost.csr" 2>/dev/null
    openssl x509 -req -in "$work/localhost.csr" -CA "$work/authority.pem" -CAkey "$work/authority.key" \
        -CAcreateserial -days 2 -out "$work/localhost.pem" -extfile <(echo "subjectAltName=DNS:localhost") 2>/dev/null
}

# waxwing_command FOLDER PORT FEDERATION_PORT [DATABASE]: writes the command line.
waxwing_command() {
    local settings=(
        "server_name=localhost:$3" "data_dir=$1/data" registration=open presence=false
        rate_limits.enabled=false "listen.client=127.0.0.1:$2" "listen.federation=127.0.0.1:$3" listen.metrics=
        "tls.certificate=$work/localhost.pem" "tls.key=$work/localhost.key"
        "tls.extra_roots=[\"$work/authority.pem\"]" federation.allow_private_addresses=true
        password.memory_kib=64 password.iterations=1 log.level=warn
    )
    [[ -z ${4:-} ]] || settings+=("database=$4")
    {
        echo "$waxwing"
        printf -- '--set\n%s\n' "${settings[@]}"
    } >"$1/command"
}

# synapse_command FOLDER PORT FEDERATION_PORT [DATABASE]
synapse_command() {
    local database="name: sqlite3, args: {database: \"$1/data/homeserver.db\"}"
    if [[ -n ${4:-} ]]; then
        database="name: psycopg2, args: {dsn: \"$4\", cp_min: 5, cp_max: 10}"
    fi
    local much="{per_second: 1000000, burst_count: 1000000}"
    cat >"$1/homeserver.yaml" <<YAML
server_name: "localhost:$3"
pid_file: "$1/pid"
listeners:
  - {port: $2, type: http, bind_addresses: ["127.0.0.1"], resources: [{names: [client], compress: false}]}
  - {port: $3, type: http, tls: true, bind_addresses: ["127.0.0.1"], resources: [{names: [federation, keys, media]}]}
database: {$database}
log_config: "$1/log.yaml"
media_store_path: "$1/data/media"
signing_key_path: "$1/signing.key"
tls_certificate_path: "$work/localhost.pem"
tls_private_key_path: "$work/localhost.key"
federation_custom_ca_list: ["$work/authority.pem"]
ip_range_blacklist: []
trusted_key_servers: []
suppress_key_server_warning: true
report_stats: false
macaroon_secret_key: "compare"
form_secret: "compare"
enable_registration: true
enable_registration_without_verification: true
bcrypt_rounds: 4
max_upload_size: 100M
presence: {enabled: false}
rc_message: $much
rc_registration: $much
rc_admin_redaction: $much
rc_room_creation: $much
rc_media_create: $much
rc_key_requests: $much
rc_third_party_invite: $much
rc_login: {address: $much, account: $much, failed_attempts: $much}
rc_joins: {local: $much, remote: $much}
rc_joins_per_room: $much
rc_invites: {per_room: $much, per_user: $much, per_issuer: $much}
rc_federation: {window_size: 1000, sleep_limit: 1000000, sleep_delay: 1, reject_limit: 1000000, concurrent: 100}
YAML
    cat >"$1/log.yaml" <<YAML
version: 1
handlers: {file: {class: logging.FileHandler, filename: "$1/log"}}
root: {level: WARNING, handlers: [file]}
disable_existing_loggers: false
YAML
    (cd "$1" && "$python" -m synapse.app.homeserver -c homeserver.yaml --generate-keys)
    printf '%s\n' "$python" -m synapse.app.homeserver -c "$1/homeserver.yaml" >"$1/command"
}

# start FOLDER PORT: starts what stands in FOLDER/command and waits until it serves; sets `took` to milliseconds.
start() {
    local arguments began
    mapfile -t arguments <"$1/command"
    began=$(date +%s%N)
    (cd "$1" && exec "${arguments[@]}" >said 2>&1 </dev/null) &
    echo $! >"$1/id"
    for _ in $(seq 3000); do
        if curl -sf -o /dev/null "http://127.0.0.1:$2/_matrix/client/versions"; then
            took=$((($(date +%s%N) - began) / 1000000))
            return
        fi
        kill -0 "$(<"$1/id")" 2>/dev/null || break
        sleep 0.01
    done
    cat "$1/said" >&2
    fail "the server in $1 did not start"
}

end() {
    [[ -e $1/id ]] || return 0
    kill -s TERM "$(<"$1/id")" 2>/dev/null || true
    wait "$(<"$1/id")" 2>/dev/null || true
    rm -f "$1/id"
}

# Everything that runs is below this folder; at the end nothing of it is left.
work=$(mktemp -d)
chmod 0755 "$work"
finish() {
    local folder
    for folder in "$work"/run/*/; do
        end "$folder"
        [[ ! -d $folder/postgres ]] || "$root/scripts/postgres.sh" stop "$folder/postgres" || true
    done
    rm -rf "$work"
}
trap finish EXIT

# prepare NAME FOLDER: a server on empty data. Sets port, processes and data.
prepare() {
    local name=$1 folder=$2 url=
    mkdir -p "$folder/data"
    chmod 0755 "$folder"
    port=$(free_port)
    data=$folder/data
    database_process=
    if [[ $name == *-postgres ]]; then
        url=$("$root/scripts/postgres.sh" start "$folder/postgres" | sed "s/^[^']*'//; s/'$//")
        database_process=,$(head -n 1 "$folder/postgres/data/postmaster.pid")
        data+=,$folder/postgres/data
    fi
    "${name%-postgres}_command" "$folder" "$port" "$(free_port)" "$url"
    start "$folder" "$port"
    processes=$(<"$folder/id")$database_process
}

note_start() {
    printf '{"scenario":"%s","label":"%s","measures":[],"start_ms":%d}\n' "$1" "$2" "$3" >>"$results"
}

# measure NAME: one run of everything.
measure() {
    local name=$1 folder=$work/run/first arguments=()
    rm -rf "$work/run"
    if [[ -n $two ]]; then
        prepare "$name" "$work/run/second"
        arguments=(--to "http://127.0.0.1:$port" --to-pid "$processes")
    fi
    prepare "$name" "$folder"
    note_start "start, empty" "$name" "$took"
    arguments+=(--server "http://127.0.0.1:$port" --label "$name" --pid "$processes" --data "$data")
    local words=() word
    for word in "${load[@]}" +; do
        if [[ $word != + ]]; then
            words+=("$word")
            continue
        fi
        "$client" load "${words[@]}" "${arguments[@]}" >>"$results" ||
            echo "compare.sh: ${words[*]} did not go well with $name" >&2
        words=()
    done
    end "$folder"
    start "$folder" "$port"
    note_start "start, filled" "$name" "$took"
    for folder in "$work"/run/*/; do
        end "$folder"
        [[ ! -d $folder/postgres ]] || "$root/scripts/postgres.sh" stop "$folder/postgres"
    done
}

programs
certificates
for repeat in $(seq "$repeats"); do
    for name in $servers; do
        [[ $name =~ ^(waxwing|synapse)(-postgres)?$ ]] || fail "there is no server $name"
        echo "run $repeat of $repeats: $name" >&2
        measure "$name"
    done
done
against=$(grep -om1 '"label":"synapse"' "$results" >/dev/null && echo synapse || echo "${servers%% *}")
"$client" load table "$results" --against "$against" | tee "$output/table.md"
echo "results are in $output" >&2
