#!/usr/bin/env bash
# Runs Complement, unmodified and pinned by go.mod, against Waxwing without a container engine. Needs root (for the
# servers' name servers and mounts), Rust, Go and openssl.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: complement/run.sh [OPTION]...

Runs every test and compares the results with complement/expected.txt; any difference fails the run.

  --only REGEX     run the tests that match (as go test's -run), print a summary, compare nothing
  --package NAME   run one package, such as csapi or msc3902; compare nothing
  --update         run every test and rewrite expected.txt
  --jobs N         run N packages at a time (2)
  --output DIR     where results and logs go (a new directory below the cache)

WAXWING_BIN names the server to test; without it `cargo build -p waxwing` makes one. RUST_LOG reaches the servers, and
so does each variable PASS_NAME, as NAME. Compiled tests are kept below ${XDG_CACHE_HOME:-~/.cache}/waxwing.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/waxwing/complement
module=github.com/matrix-org/complement
runs_kept=5

main() {
    local options=() output=
    while [ $# -gt 0 ]; do
        case $1 in
            --only | --package | --jobs)
                [ $# -gt 1 ] || { usage >&2; exit 2; }
                options+=("$1" "$2"); shift 2 ;;
            --output) [ $# -gt 1 ] || { usage >&2; exit 2; }; output=$2; shift 2 ;;
            --update) options+=("$1"); shift ;;
            -h | --help) usage; exit 0 ;;
            *) usage >&2; exit 2 ;;
        esac
    done
    if [ -z "$output" ]; then
        output=$(new_output)
    fi
    compile_tests
    build_programs
    exec "$target/waxwing-complement" test --server-binary "$server" --tests "$tests" \
        --expected "$here/expected.txt" --output "$output" --state "$(state_directory)" "${options[@]}"
}

# Sets `tests` to the directory of the compiled packages and their index, tests.txt.
compile_tests() {
    local key new package name
    key=$(cd "$here" && { cat go.mod go.sum complement.go; go env GOVERSION GOARCH; } | sha256sum | cut -c1-16)
    tests=$cache/tests-$key
    if [ -f "$tests/tests.txt" ]; then
        return
    fi
    echo "compiling Complement's tests" >&2
    mkdir -p "$cache"
    new=$(mktemp -d "$cache/compiling-XXXXXX")
    if ! (cd "$here" && go test -c -o "$new/" "$module/tests/..."); then
        rm -rf "$new"
        echo "Complement could not be compiled: is every module of complement/go.mod to be had here?" >&2
        exit 1
    fi
    (cd "$here" && go list "$module/tests/...") | while read -r package; do
        name=${package#"$module/"}
        # Even listing makes Complement clean up, so it gets an engine that isn't there.
        DOCKER_HOST=tcp://127.0.0.1:1 COMPLEMENT_BASE_IMAGE=none "$new/${name##*/}.test" -test.list . 2>/dev/null |
            sed -n "s|^Test|$name\tTest|p"
    done >"$new/index"
    mv "$new/index" "$new/tests.txt"
    rm -rf "$tests"
    mv "$new" "$tests"
}

# Sets `target` and `server`.
build_programs() {
    target=${CARGO_TARGET_DIR:-$root/target}/debug
    (cd "$root" && cargo build --quiet -p waxwing-complement --bin waxwing-complement)
    if [ -z "${WAXWING_BIN:-}" ]; then
        (cd "$root" && cargo build --quiet -p waxwing)
    fi
    server=${WAXWING_BIN:-$target/waxwing}
}

new_output() {
    local runs=$cache/runs
    mkdir -p "$runs"
    # The names sort by time.
    find "$runs" -mindepth 1 -maxdepth 1 -type d | sort -r | tail -n +"$runs_kept" | xargs -r rm -rf
    echo "$runs/$(date +%Y%m%d-%H%M%S)-$$"
}

# In memory where there is room: what the servers write is thrown away, and waiting for the disk only costs time.
state_directory() {
    local free
    free=$(df --output=avail /dev/shm 2>/dev/null | tail -n 1 || true)
    if [ "${free:-0}" -gt $((2 * 1024 * 1024)) ] && [ -w /dev/shm ]; then
        echo /dev/shm
    else
        echo "${TMPDIR:-/tmp}"
    fi
}

main "$@"
