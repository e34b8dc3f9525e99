#!/usr/bin/env bash
# Runs Synapse, unmodified and pinned, and Waxwing in one federation on loopback, and compares what they hold.
#
#   scripts/interop.sh [STORY|vVERSION...]
#
# The stories are in homeserver/tests/interop; without one, all are told. Python and what Synapse is made of are
# installed where they are missing: Debian's packages as root, Synapse from PyPI below
# ${XDG_CACHE_HOME:-~/.cache}/waxwing/clients. What cannot be installed is a failure. WAXWING_BIN and
# WAXWING_TEST_CLIENT name programs that are built already.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
readonly folder=$root/homeserver/tests/interop
readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/waxwing/clients

if [[ ${1:-} == -* ]]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
fi

# shellcheck source=scripts/install.sh
source "$root/scripts/install.sh"

python_environment synapse "$folder/requirements.txt"
INTEROP_SYNAPSE=$python
python_environment nio-vodozemac "$root/homeserver/tests/clients/nio/requirements-vodozemac.txt"

target=${CARGO_TARGET_DIR:-$root/target}
build=()
[[ -n ${WAXWING_BIN:-} ]] || build+=(-p waxwing)
[[ -n ${WAXWING_TEST_CLIENT:-} ]] || build+=(-p waxwing-client)
if [[ ${#build[@]} -gt 0 ]]; then
    (cd "$root" && cargo build --quiet --locked "${build[@]}")
fi
WAXWING_BIN=$(realpath "${WAXWING_BIN:-$target/debug/waxwing}")
WAXWING_TEST_CLIENT=$(realpath "${WAXWING_TEST_CLIENT:-$target/debug/waxwing-client}")
export INTEROP_SYNAPSE WAXWING_BIN WAXWING_TEST_CLIENT PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
exec "$python" "$folder/scenario.py" "$@"
