#!/usr/bin/env bash
# Runs other people's Matrix clients, unmodified and pinned, against a fresh Waxwing together with waxwing-client.
#
#   scripts/clients.sh [--postgres] [CLIENT...]
#
# The clients, all of them when none is named:
#
#   mautrix   an application service on mautrix-python with its own encryption, told everything by transactions
#   nio       matrix-nio (Python) with libolm, and its newer release with vodozemac
#   js        matrix-js-sdk with its Rust crypto, in Node
#   browser   matrix-js-sdk with its Rust crypto and IndexedDB, on a page in Chromium
#   sdk       matrix-sdk (Rust) over sliding sync as Element X uses it: sync service, list of rooms, send queue
#
# Each has a folder in homeserver/tests/clients and a function client_NAME here. What is missing on a Debian 12 with
# Rust, Go and Node is installed: Debian's packages as root, the clients from their package registries, below
# ${XDG_CACHE_HOME:-~/.cache}/waxwing/clients and in node_modules. What cannot be installed is a failure, as is a message that cannot be
# decrypted. WAXWING_BIN and WAXWING_TEST_CLIENT name programs that are built already; --postgres as in with-server.sh.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
readonly folder=$root/homeserver/tests/clients
readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/waxwing/clients
readonly all=(mautrix nio js browser sdk)

usage() {
    sed -n '2,17s/^# \{0,1\}//p' "$0"
    exit 2
}

# shellcheck source=scripts/install.sh
source "$root/scripts/install.sh"

# node_packages FOLDER: installs what the folder's lock file names, where that has not been done.
node_packages() {
    local key lock
    debian node:nodejs npm:npm
    key=$({ cat "$1/package-lock.json"; node --version; } | sha256sum | cut -c1-16)
    mkdir -p "$cache"
    exec {lock}>"$cache/node-$(sha256sum <<<"$1" | cut -c1-16).lock"
    flock "$lock"
    if [[ $(cat "$1/node_modules/.installed" 2>/dev/null) != "$key" ]]; then
        (cd "$1" && npm ci --loglevel=error --no-audit --no-fund --ignore-scripts)
        echo "$key" >"$1/node_modules/.installed"
    fi
    exec {lock}>&-
}

# scenario COMMAND...: runs a command beside a server of its own, whose database must have no words in the clear then.
scenario() {
    local with_server=$root/scripts/with-server.sh
    "$with_server" "${database[@]}" "${BASH_SOURCE[0]}" --audited "$@"
}

# audited COMMAND...: the command, then the audit of its server, of which the verdict is shown when it is good.
audited() {
    local said
    "$@"
    said=$("$root/scripts/with-server.sh" --audit) || {
        echo "$said"
        return 1
    }
    sed -n 's/^verdict: /   /p' <<<"$said"
}

if [[ ${1:-} == --audited ]]; then
    audited "${@:2}"
    exit
fi

client_mautrix() {
    local place
    python_environment mautrix "$folder/mautrix/requirements.txt"
    place=$(mktemp -d)
    "$python" "$folder/mautrix/scenario.py" register "$place"
    WAXWING_TEST_SETTINGS="appservices=$place/registrations" \
        scenario "$python" "$folder/mautrix/scenario.py" run "$place"
    rm -rf "$place"
}

client_nio() {
    local version
    for version in libolm vodozemac; do
        python_environment "nio-$version" "$folder/nio/requirements-$version.txt"
        scenario "$python" "$folder/nio/scenario.py"
    done
}

client_js() {
    node_packages "$folder/js"
    scenario node "$folder/js/node.mjs"
}

client_browser() {
    debian chromium:chromium
    node_packages "$folder/js"
    scenario node "$folder/js/browser.mjs"
}

client_sdk() {
    debian cc:gcc
    CARGO_TARGET_DIR=$cache/sdk cargo build --quiet --locked --manifest-path "$folder/sdk/Cargo.toml"
    WAXWING_TEST_RESTART=$root/scripts/with-server.sh scenario "$cache/sdk/debug/waxwing-test-sdk"
}

database=()
if [[ ${1:-} == --postgres ]]; then
    database=(--postgres)
    shift
fi
chosen=()
for name in "${@:-all}"; do
    if [[ $name == all ]]; then
        chosen+=("${all[@]}")
    elif [[ " ${all[*]} " == *" $name "* ]]; then
        chosen+=("$name")
    else
        usage
    fi
done

target=${CARGO_TARGET_DIR:-$root/target}
build=()
[[ -n ${WAXWING_BIN:-} ]] || build+=(-p waxwing)
[[ -n ${WAXWING_TEST_CLIENT:-} ]] || build+=(-p waxwing-client)
if [[ ${#build[@]} -gt 0 ]]; then
    (cd "$root" && cargo build --quiet --locked "${build[@]}")
fi
WAXWING_BIN=$(realpath "${WAXWING_BIN:-$target/debug/waxwing}")
WAXWING_TEST_CLIENT=$(realpath "${WAXWING_TEST_CLIENT:-$target/debug/waxwing-client}")
export WAXWING_BIN WAXWING_TEST_CLIENT PYTHONDONTWRITEBYTECODE=1

for name in "${chosen[@]}"; do
    printf -- '-- %s\n' "$name"
    began=$SECONDS
    # Not in a condition: errexit would not hold inside.
    "client_$name"
    printf -- '-- %s passed in %d s\n' "$name" $((SECONDS - began))
done
