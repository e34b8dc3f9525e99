#!/usr/bin/env bash
# Runs every check and every test of Waxwing on a Debian 12 that has Rust, Go and Node.
#
#   ./test.sh         everything: formatting, lints, dependencies, Rust tests on SQLite and PostgreSQL, other
#                     people's clients, Synapse, the demo, Complement
#   ./test.sh quick   the inner loop: formatting, lints, unit and storage tests on both engines
#
# Each part runs, or the whole fails: nothing is skipped silently. As root it installs what is missing from Debian;
# otherwise it says what to install. WAXWING_ADVISORIES=1 checks the dependencies against the advisory database too,
# which is fetched from outside the package registries.
set -uo pipefail
cd "$(dirname "$0")"

readonly deny_version=0.20.2
target=${CARGO_TARGET_DIR:-$PWD/target}
readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/waxwing
mode=${1:-all}
started=$SECONDS
passed=0
failed=0
report=()

# Tests that need PostgreSQL must fail, not skip, when they are not told where it is.
export CI=${CI:-true}
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

# part NAME COMMAND...: runs one part and notes how it ended.
part() {
    local name=$1 began=$SECONDS outcome
    shift
    printf '\n==> %s\n' "$name"
    if "$@"; then
        outcome=passed
        passed=$((passed + 1))
    else
        outcome=FAILED
        failed=$((failed + 1))
    fi
    report+=("$(printf '%-7s %-45s %4d s' "$outcome" "$name" $((SECONDS - began)))")
}

# The programs that the tests call, by the package that has them.
install_packages() {
    local missing=() pair
    for pair in cc:gcc make:make openssl:openssl runuser:util-linux; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    [[ -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)
    [[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)
    if [[ ${#missing[@]} -gt 0 ]]; then
        if [[ $(id -u) -ne 0 ]]; then
            echo "missing Debian packages: ${missing[*]}"
            return 1
        fi
        apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" ||
            return 1
    fi
    scripts/postgres.sh install
}

install_deny() {
    local program=$cache/tools/bin/cargo-deny
    [[ -x $program && $("$program" --version) == "cargo-deny $deny_version" ]] && return
    # Lightly optimised: it is built far more often than it is run.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_TARGET_DIR=$cache/tools/build \
        cargo install --quiet --locked --force --root "$cache/tools" "cargo-deny@$deny_version" || return 1
    rm -rf "$cache/tools/build"
}

deny() {
    install_deny || return 1
    local checks=(bans licenses sources)
    if [[ ${WAXWING_ADVISORIES:-} == 1 ]]; then
        checks+=(advisories)
    else
        echo "advisories are not checked: set WAXWING_ADVISORIES=1 where their database can be fetched"
    fi
    "$cache/tools/bin/cargo-deny" --locked check --hide-inclusion-graph "${checks[@]}"
}

start_postgres() {
    local said
    postgres=$(mktemp -d) || return 1
    trap 'scripts/postgres.sh stop "$postgres"' EXIT
    said=$(scripts/postgres.sh start "$postgres") || return 1
    eval "$said"
}

start_s3() {
    local said
    s3=$(mktemp -d) || return 1
    trap 'scripts/postgres.sh stop "$postgres"; scripts/s3.sh stop "$s3"' EXIT
    said=$(scripts/s3.sh start "$s3") || return 1
    eval "$said"
}

# A NATS server for hints between nodes, built from its Go module.
install_nats() {
    local said
    said=$(scripts/nats.sh install) || return 1
    eval "$said"
}

# script FILE ARGUMENT...: a part that is a script of its own; a missing one is a failure.
script() {
    if [[ ! -x $1 ]]; then
        echo "$1 is missing"
        return 1
    fi
    "$@"
}

lint() {
    cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
}

# Always the whole workspace: with a part of it cargo would choose other features and build the dependencies again.
unit_and_storage_tests() {
    local targets=(--lib --bins --test tidy) file
    for file in homeserver/storage/tests/*.rs; do
        [[ -e $file ]] && targets+=(--test "$(basename "$file" .rs)")
    done
    cargo test --workspace --locked "${targets[@]}"
}

all_tests() {
    cargo test --workspace --locked --no-fail-fast
}

# live_tests [--postgres]: the client library against a running server.
live_tests() {
    WAXWING_BIN=$target/debug/waxwing scripts/with-server.sh "$@" \
        cargo test --workspace --locked --test live -- --ignored
}

# As ./demo.sh does it, but with the build that the tests have made already.
demo() {
    WAXWING_PROFILE=dev script ./demo.sh
}

# clients NAME: another project's client against a server of its own.
clients() {
    WAXWING_BIN=$target/debug/waxwing WAXWING_TEST_CLIENT=$target/debug/waxwing-client script scripts/clients.sh "$@"
}

# The other server that the network runs on, on one network with ours.
interop() {
    WAXWING_BIN=$target/debug/waxwing WAXWING_TEST_CLIENT=$target/debug/waxwing-client script scripts/interop.sh
}

complement() {
    WAXWING_BIN=$target/debug/waxwing script complement/run.sh
}

case $mode in
all | quick) ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac

part "system packages" install_packages
part "formatting" cargo fmt --all --check
part "lints" lint
part "PostgreSQL cluster" start_postgres
part "S3 store" start_s3
part "NATS server" install_nats
if [[ $mode == quick ]]; then
    part "unit and storage tests on both engines" unit_and_storage_tests
else
    part "dependencies: bans, licences, sources" deny
    part "Rust tests on both engines" all_tests
    part "client against a server on SQLite" live_tests
    part "client against a server on PostgreSQL" live_tests --postgres
    part "matrix-nio" clients nio
    part "matrix-js-sdk in Node" clients js
    part "matrix-js-sdk in a browser" clients browser
    part "matrix-sdk as Element X uses it" clients sdk
    part "application service on mautrix-python" clients mautrix
    part "Synapse" interop
    part "demo" demo
    part "Complement" complement
fi

printf '\n==> %s in %d s\n' "$mode" $((SECONDS - started))
printf '%s\n' "${report[@]}"
echo "parts: $passed passed, $failed failed"
[[ $failed -eq 0 ]]
