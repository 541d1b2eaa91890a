#!/usr/bin/env bash
# Try each supported Python in a clean environment: tools/try_pythons.sh [3.11 3.12 3.13]
# Builds the wheel, installs it in the versions of constraints.txt, and runs a few commands outside of the repository.
# A Python that is not on this machine is reported as absent. Exit code 1 where one failed or none was there.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
versions=("$@")
if [ $# = 0 ]; then versions=(3.11 3.12 3.13); fi

find_python() { # of a version: on the path, of uv, of pyenv
    local p
    for p in "python$1" "$(uv python find --no-python-downloads "$1" 2>/dev/null || true)" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if [ -n "$p" ] && "$p" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" \
            >/dev/null 2>&1; then echo "$p"; return; fi
    done
    return 1
}

try_python() ( # install the wheel with an interpreter and run it; `set -e` does not hold in a condition, `&&` does
    venv=$scratch/venv_$2
    cd "$scratch" &&
    "$1" -m venv "$venv" &&
    "$venv/bin/python" -m pip install -q --upgrade 'pip>=25.3' &&
    "$venv/bin/python" -m pip install -q --no-compile -c "$root/constraints.txt" "$wheel" &&
    "$venv/bin/lmnotes" --help >/dev/null &&
    "$venv/bin/lmnotes" data list >/dev/null &&
    "$venv/bin/lmnotes" train --dataset prose --size tiny --max_steps 2 --output_dir "$scratch/run_$2" &&
    rm -rf "$venv"
)

build_wheel() { # with the first Python that is there
    "$1" -m venv "$scratch/build"
    "$scratch/build/bin/python" -m pip install -q --upgrade 'pip>=25.3' build
    "$scratch/build/bin/python" -m build --wheel --outdir "$scratch/dist" "$root" >"$scratch/log_build"
    wheel=$(echo "$scratch"/dist/*.whl)
}

failed=0 passed=0 wheel=
for v in "${versions[@]}"; do
    if ! python=$(find_python "$v"); then echo "Python $v: absent"; continue; fi
    if [ -z "$wheel" ]; then build_wheel "$python"; fi
    if try_python "$python" "$v" >"$scratch/log_$v" 2>&1; then echo "Python $v: passed"; passed=$((passed+1))
    else echo "Python $v: failed"; tail -n 5 "$scratch/log_$v"; failed=$((failed+1)); fi
done
[ $failed = 0 ] && [ $passed -gt 0 ]
