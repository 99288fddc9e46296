# Everything sets up .venv by itself when needed; `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
TESTED := $(VENV)/.tested
HTML := book/_build/html/index.html
JOBS ?= 2
export OMP_NUM_THREADS ?= 1

# What the results depend on: every file that git would track.
SOURCES := $(shell git ls-files --cached --others --exclude-standard 2>/dev/null | grep -v ' ' | xargs -r ls -d 2>/dev/null || find refimpl book tests notebooks -type f)
BOOK_SOURCES := $(filter book/% notebooks/% refimpl/% tests/golden/% _config.yml,$(SOURCES))

.PHONY: help book test chapters portable execute train serve bench readme address clean

help:  ## list the targets
	@echo "make book                     build the book: book/_build/html/index.html"
	@echo "make test                     run every test, and every chapter from the built wheel, offline"
	@echo "make execute [CHAPTER=stem]   run chapters in place, refresh their outputs and text pairs"
	@echo "make train CHAPTER=stem       train and store a chapter's recorded runs: refimpl/checkpoints/"
	@echo "make serve                    build the book and serve it at http://localhost:8000"
	@echo "make bench                    measure: writes book/results/*/<stem>.json"
	@echo "make portable                 every chapter's digits under other instruction sets and thread counts"
	@echo "make readme                   refresh what is generated from the catalogue: README.md, book/_toc.yml"
	@echo "make address REPO=owner/name  set the repository's address everywhere"
	@echo "make clean                    remove what these made (.venv, the built book)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "refimpl needs Python 3.10 or newer; $$($(PYTHON) --version) is $(PYTHON). Try: make PYTHON=python3.12"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time) …"
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch hatchling
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[chapters,book,test,gpu]'
	@touch $@

book: $(HTML)  ## build the book, warnings are errors
	@echo "The book: $(HTML)"

$(HTML): $(READY) $(BOOK_SOURCES)
	@$(PY) book/tools/build.py

test: $(TESTED)  ## everything that must hold
	@echo "All tests passed ($$(cat $(TESTED))). Report: $(VENV)/test-report.txt"

$(TESTED): $(READY) $(SOURCES)
	@rm -f $@
	@PYTHONPATH=tests/offline $(PY) -m pytest -n $(JOBS) --dist loadgroup 2>&1 | tee $(VENV)/test-report.txt
	@$(PY) book/tools/run_chapters.py -j $(JOBS) $(CHAPTER) 2>&1 | tee -a $(VENV)/test-report.txt
	@date -u +'%Y-%m-%d %H:%M UTC' > $@

chapters: $(READY)  ## the chapters alone, from the built wheel, in an empty folder, offline
	@$(PY) book/tools/run_chapters.py -j $(JOBS) $(CHAPTER)

portable: $(READY)  ## the same digits on other machines
	@for isa in default avx2; do for threads in 1 2; do \
		echo "ATEN_CPU_CAPABILITY=$$isa, $$threads thread(s)"; \
		ATEN_CPU_CAPABILITY=$$isa OMP_NUM_THREADS=$$threads $(PY) book/tools/run_chapters.py -j $$(($(JOBS) > threads ? $(JOBS) / threads : 1)) $(CHAPTER); \
	done; done
	@echo "The same digits under default and avx2, one and two threads."

execute: $(READY)  ## run chapters in place
	@$(PY) book/tools/execute.py -j $(JOBS) $(CHAPTER)
	@echo "Executed: notebooks/"

train: $(READY)  ## train and store a chapter's recorded runs
	@test -n "$(CHAPTER)" || { echo "make train CHAPTER=stem"; exit 1; }
	@$(PY) book/tools/execute.py --record $(CHAPTER)
	@echo "Recorded: refimpl/checkpoints/; now run make execute CHAPTER=$(CHAPTER)"

serve: book  ## look at the book
	@echo "http://localhost:8000 (Ctrl-C stops it)"
	@$(PY) -m http.server 8000 --directory $(dir $(HTML))

bench: $(READY)  ## measure this machine
	@$(PY) book/bench $(BENCH)
	@echo "Results: book/results/"

readme: $(READY)  ## refresh README.md and book/_toc.yml from the catalogue
	@$(PY) book/tools/readme.py

address:  ## set the repository's address
	@test -n "$(REPO)" || { echo "make address REPO=owner/name"; exit 1; }
	@$(PYTHON) book/tools/address.py "$(REPO)"

clean:  ## remove what these targets made
	@rm -rf $(VENV) book/_build dist .pytest_cache .ruff_cache .hypothesis
	@find refimpl tests book -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean"
