# `make demo` to see it work, `make test` to check it. Everything else is for those who change it.

VENV ?= .venv
BIN  := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
WORKERS ?= 2
INSTALL := settings.ini setup.py pyproject.toml constraints.txt tools/install.sh

# the demo: what a stranger sees first
DEMO ?= compare nbs/experiments/optimizer.yaml

help:             ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 10

demo: base        ## ask whether Muon beats AdamW, and write a report
	@lmnotes $(DEMO)
	@echo "the report: file://$(CURDIR)/$$(ls -td runs/*/report.html | head -1)"

check: install    ## ruff, the structure, and the notebooks and tests that changed (90 s at most)
	@python tools/check.py --workers $(WORKERS)

test: install     ## ruff and the structure, then every notebook, then pytest
	@ruff check --quiet
	@python tools/structure.py
	@OMP_NUM_THREADS=1 python tools/test_notebooks.py --workers $(WORKERS)
	@OMP_NUM_THREADS=1 python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lab: install      ## open JupyterLab in nbs/
	@cd nbs && jupyter lab

docs: install     ## build the site into _docs/ (open _docs/index.html)
	@python docs/make_site.py

export: install   ## after editing notebooks: write the package, clean the notebooks, renew the README
	@python tools/export.py
	@nbdev_clean
	@python tools/readme.py

readme: install   ## renew README.md from nbs/index.ipynb
	@python tools/readme.py

package: install  ## build wheel and sdist into dist/
	@python -m build

hooks: install    ## show notebook diffs as text and merge notebooks cell by cell, in this clone
	@git config --local include.path ../.gitconfig

lock: install     ## write constraints.txt from this environment, after the tests passed in it
	@python tools/lock.py

install: $(VENV)/.installed ## make the environment (done by the others when needed); LATEST=1 for newer versions

base: $(VENV)/.base ## make the part of the environment that the commands need (done by the demo)

$(VENV)/.base: $(INSTALL)
	@tools/install.sh $(VENV) base

$(VENV)/.installed: $(INSTALL)
	@tools/install.sh $(VENV) all

clean:            ## remove what was built; runs/ and the environment stay
	@rm -rf _docs _proc build dist *.egg-info .pytest_cache

.PHONY: help demo check test lab docs export readme package hooks lock base install clean
