#!/bin/sh
# Builds the server and the client, then lets two servers and two people prove what is stored.
# WAXWING_PROFILE=dev builds faster and runs slower. Further arguments go to `waxwing-client demo`.
set -eu
cd "$(dirname "$0")"
profile="${WAXWING_PROFILE:-release}"
case "$profile" in
    dev) folder=debug ;;
    *) folder="$profile" ;;
esac
# The names of settings begin with WAXWING_ too: this one is no setting.
unset WAXWING_PROFILE
cargo build --profile "$profile" --package waxwing --package waxwing-client
target="${CARGO_TARGET_DIR:-target}/$folder"
exec "$target/waxwing-client" demo --server-binary "$target/waxwing" "$@"
