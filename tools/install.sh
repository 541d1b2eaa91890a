#!/usr/bin/env bash
# Make an environment for lmnotes: tools/install.sh [FOLDER] [base|all]   (default .venv all)
# base is what the commands need; all adds what the tests, the site, reinforcement learning, Ray and low bits need.
# Needs Python 3.11, 3.12 or 3.13 and a package index; PYTHON=/path/to/python chooses one.
# Versions are those of constraints.txt; LATEST=1 takes the newest that settings.ini allows.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
part=${2:-all}
say() { echo "lmnotes: $*"; }
stop() { echo "lmnotes: $*" >&2; exit 2; }

case $part in
    base) what=. stamps=.base;;
    all) what='.[dev,quant,rl,ray]' stamps='.base .installed';;
    *) stop "unknown part '$part'; give base or all";;
esac
if [ "${LATEST:-}" = 1 ]; then versions=; tested_pip='pip>=26'; else versions='-c constraints.txt'; tested_pip='pip==26.3'; fi

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

# the pip that comes with Python 3.11 resolves three times slower; modules are compiled below, on all cores
pip install -q --retries 10 "$tested_pip" >>"$log" 2>&1 || stop "pip could not renew itself; see $log"
say "installing $part${versions:+ in the versions of constraints.txt} (everything pip says is in $log)"
for try in 1 2 3; do
    # shellcheck disable=SC2086 # two words or none
    if pip install --progress-bar off --no-compile --retries 10 --timeout 60 $versions -e "$what" 2>&1 | tee -a "$log" | show; then break; fi
    if [ $try = 3 ]; then tail -n 15 "$log" >&2; stop "pip could not install; its last words are above"; fi
    say "pip did not get through; trying again"; sleep $((try*10))
done

# fastai asks for torchvision. Beside a CPU torch the one from PyPI is a CUDA build that cannot load and breaks
# `import transformers`. Nothing here looks at images, so one that cannot load goes.
if [ "$("$venv/bin/python" -c 'from lmnotes.core import torchvision_state as s; print(s())')" = broken ]; then
    say "removing a torchvision that cannot load beside this torch"
    pip uninstall -qy torchvision >>"$log" 2>&1
fi
# once, on all cores: with PYTHONDONTWRITEBYTECODE set every command would compile them anew (8 s each);
# compileall ends with 1 for the templates some libraries carry, which are no Python
say "compiling modules"
"$venv/bin/python" -m compileall -qq -j 0 "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true
for stamp in $stamps; do touch "$venv/$stamp"; done
say "ready: $("$venv/bin/python" -c 'import torch, platform; print("Python", platform.python_version(), "with torch", torch.__version__)')"
