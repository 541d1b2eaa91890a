#!/usr/bin/env bash
# Make the environment lmnotes is developed in: tools/install.sh [FOLDER]   (default .venv)
# Needs Python 3.11, 3.12 or 3.13 and a package index; PYTHON=/path/to/python chooses one.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
say() { echo "lmnotes: $*"; }
stop() { echo "lmnotes: $*" >&2; exit 2; }

supported='import sys, venv, ensurepip; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,13))'
find_python() {
    for p in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if "$p" -c "$supported" >/dev/null 2>&1; then echo "$p"; return; fi
    done
    return 1
}

if ! "$venv/bin/python" -c "$supported; import pip" >/dev/null 2>&1; then
    python=$(find_python) || stop "found no ${PYTHON:-Python 3.11, 3.12 or 3.13} that can make environments; install one (Debian: with its python3-venv) or say PYTHON=/path/to/python"
    if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then stop "$venv is there but is no environment; move it away"; fi
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

log=$venv/install.log; : >"$log"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
show() { grep --line-buffered -E '^ *(Downloading .*[MG]B\)|Building|Installing)' | cut -c-110 || true; }

say "installing (everything pip says is in $log)"
for try in 1 2 3; do
    if pip install --progress-bar off --retries 10 --timeout 60 -e '.[dev,quant,rl,ray]' 2>&1 | tee -a "$log" | show; then break; fi
    if [ $try = 3 ]; then tail -n 15 "$log" >&2; stop "pip could not install; its last words are above"; fi
    say "pip did not get through; trying again"; sleep $((try*10))
done

# fastai asks for torchvision. Beside a CPU torch the one from PyPI is a CUDA build that cannot load and breaks
# `import transformers`. Nothing here looks at images, so one that cannot load goes.
if [ "$("$venv/bin/python" -c 'from lmnotes.core import torchvision_state as s; print(s())')" = broken ]; then
    say "removing a torchvision that cannot load beside this torch"
    pip uninstall -qy torchvision >>"$log" 2>&1
fi
touch "$venv/.installed"
say "ready: $("$venv/bin/python" -c 'import torch, platform; print("Python", platform.python_version(), "with torch", torch.__version__)')"
