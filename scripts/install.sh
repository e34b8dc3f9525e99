# Functions that install what tests with other people's programs need; sourced, not run. `cache` is the folder for
# environments. What is missing on a Debian 12 with Rust, Go and Node is installed: Debian's packages as root, Python's
# from PyPI. What cannot be installed is a failure.

# debian PROGRAM:PACKAGE...: installs the packages whose programs are missing.
debian() {
    local missing=() pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if [[ $(id -u) -ne 0 ]]; then
        echo "missing Debian packages: ${missing[*]}" >&2
        return 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
}

# python_environment NAME REQUIREMENTS: sets `python` to the interpreter of an environment with exactly these packages.
# Another version of the file makes another environment; two runs that make the same one wait for each other.
python_environment() {
    local place lock
    debian python3:python3-venv
    python3 -c 'import ensurepip' 2>/dev/null || debian "a module of python3:python3-venv"
    place=$cache/$1-$({ cat "$2"; python3 --version; } | sha256sum | cut -c1-16)
    python=$place/bin/python
    mkdir -p "$cache"
    exec {lock}>"$place.lock"
    flock "$lock"
    if [[ ! -e $place/complete ]]; then
        python3 -m venv --clear "$place"
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --no-binary atomicwrites -r "$2"
        touch "$place/complete"
    fi
    exec {lock}>&-
}
