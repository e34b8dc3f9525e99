#!/usr/bin/env bash
# Runs the previous release's program beside this one on one PostgreSQL, and upgrades it node by node.
#
#   scripts/upgrade.sh
#
# scripts/previous-release names the commit (or tag) of the previous release; it is built in a folder of its own under
# ~/.cache/waxwing. WAXWING_PREVIOUS_BIN names a program that is built already. WAXWING_TEST_POSTGRES names the cluster; without
# it one is started for as long as this takes.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/waxwing
previous=$(cat "$root/scripts/previous-release")

if [[ -z ${WAXWING_PREVIOUS_BIN:-} ]]; then
    source=$cache/previous/source
    rm -rf "$source"
    mkdir -p "$cache/previous"
    git -C "$root" worktree prune
    git -C "$root" worktree add --detach --force "$source" "$previous" >&2
    trap 'git -C "$root" worktree remove --force "$source"' EXIT
    (cd "$source" && CARGO_TARGET_DIR=$cache/previous/target CARGO_INCREMENTAL=0 cargo build --locked -p waxwing)
    WAXWING_PREVIOUS_BIN=$cache/previous/target/debug/waxwing
fi
export WAXWING_PREVIOUS_BIN

if [[ -z ${WAXWING_TEST_POSTGRES:-} ]]; then
    postgres=$(mktemp -d)
    eval "$("$root/scripts/postgres.sh" start "$postgres")"
    run() { (cd "$root" && CI=true cargo test --workspace --locked --test e2e -- upgrade::); }
    outcome=0
    run || outcome=$?
    "$root/scripts/postgres.sh" stop "$postgres"
    exit "$outcome"
fi
cd "$root"
CI=true cargo test --workspace --locked --test e2e -- upgrade::
