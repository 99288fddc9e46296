# Everything sets up .venv by itself when needed; `make` alone lists the targets.
# Works with GNU make 3.81 (macOS): a recipe with a pipe or a loop switches `set -eo pipefail` on itself.
SHELL := bash
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
# In the C locale Python 3.11 can't start in a checkout whose path has other than ASCII letters:
# it reads the path, which the editable install left in .venv, as ASCII.
ifneq ($(filter C POSIX,$(or $(LC_ALL),$(LC_CTYPE),$(LANG),C)),)
export LC_ALL := C.UTF-8
endif

# What the results depend on: every file that git would track; in a source archive, every file that
# no target makes. `wildcard` leaves out what was deleted and not yet committed.
SOURCES := $(wildcard $(shell git ls-files --cached --others --exclude-standard 2>/dev/null | grep -v ' '))
ifeq ($(SOURCES),)
SOURCES := $(wildcard _config.yml) $(shell find refimpl book tests notebooks -type f \
	-not -path '*/_build/*' -not -path '*/__pycache__/*' -not -path 'book/api/refimpl*')
endif
BOOK_SOURCES := $(filter book/% notebooks/% refimpl/% tests/golden/% _config.yml,$(SOURCES))

# What concerns one paper: the rules of the repository, the contracts for its name, its own tests.
CONTRACTS := $(addprefix tests/test_,repository.py catalogue.py chapters.py checkpoints.py package.py)
OWN_TESTS = $(wildcard tests/papers/test_$(CHAPTER).py tests/papers/exercises/$(CHAPTER).py)

.PHONY: help book test chapters portable execute train serve bench readme address clean named

help:  ## list the targets
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ## / {printf "make %-10s%s\n", $$1, $$2}' Makefile

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "refimpl needs Python 3.10 or newer; $$($(PYTHON) --version) is $(PYTHON). Try: make PYTHON=python3.12"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time) …"
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch hatchling
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[chapters,book,test,gpu]'
	@touch $@

book: $(HTML)  ## build the book, warnings are errors: book/_build/html/index.html
	@echo "The book: $(HTML)"

$(HTML): $(READY) $(BOOK_SOURCES)
	@$(PY) book/tools/build.py

ifdef CHAPTER
test: $(READY)
	@PYTHONPATH=tests/offline $(PY) -m pytest -v $(CONTRACTS) $(OWN_TESTS) -k "$(CHAPTER) or test_repository and not examples"
	@$(PY) book/tools/run_chapters.py $(CHAPTER)
	@echo "All that concerns $(CHAPTER) passed. Before you commit: make test"
else
test: $(TESTED)  ## run every test, and every chapter from the wheel, offline; CHAPTER=stem: one paper's
	@echo "All tests passed ($$(cat $(TESTED))). Report: $(VENV)/test-report.txt"
endif

$(TESTED): $(READY) $(SOURCES)
	@rm -f $@
	@set -eo pipefail; PYTHONPATH=tests/offline $(PY) -m pytest -n $(JOBS) --dist loadgroup 2>&1 | tee $(VENV)/test-report.txt
	@set -eo pipefail; $(PY) book/tools/run_chapters.py -j $(JOBS) 2>&1 | tee -a $(VENV)/test-report.txt
	@date -u +'%Y-%m-%d %H:%M UTC' > $@

chapters: $(READY)  ## run the chapters alone, from the wheel, in empty folders; CHAPTER=stem: one
	@$(PY) book/tools/run_chapters.py -j $(JOBS) $(CHAPTER)

portable: $(READY)  ## compare the chapters' digits under other instruction sets and thread counts
	@set -e; for isa in default avx2; do for threads in 1 2; do \
		echo "ATEN_CPU_CAPABILITY=$$isa, $$threads thread(s)"; \
		ATEN_CPU_CAPABILITY=$$isa OMP_NUM_THREADS=$$threads $(PY) book/tools/run_chapters.py -j $$(($(JOBS) > threads ? $(JOBS) / threads : 1)) $(CHAPTER); \
	done; done
	@echo "The same digits under default and avx2, one and two threads."

execute: $(READY)  ## run chapters in place, refresh outputs and text pairs; CHAPTER=stem: one
	@$(PY) book/tools/execute.py -j $(JOBS) $(CHAPTER)
	@echo "Executed: notebooks/"

named:
	@test -n "$(CHAPTER)" || { echo "make train CHAPTER=stem"; exit 1; }

train: named $(READY)  ## train and store the recorded runs of CHAPTER=stem: refimpl/checkpoints/
	@$(PY) book/tools/execute.py --record $(CHAPTER)
	@echo "Recorded: refimpl/checkpoints/; now run make execute CHAPTER=$(CHAPTER)"

serve: book  ## build the book and serve it at http://localhost:8000
	@echo "http://localhost:8000 (Ctrl-C stops it)"
	@$(PY) -m http.server 8000 --directory $(dir $(HTML))

bench: $(READY)  ## measure this machine: book/results/*/<stem>.json; BENCH='--only models …'
	@$(PY) book/bench $(BENCH)
	@echo "Results: book/results/"

readme: $(READY)  ## refresh what is generated from the catalogue: README.md, book/_toc.yml
	@$(PY) book/tools/readme.py

address:  ## set the repository's address everywhere: REPO=owner/name
	@test -n "$(REPO)" || { echo "make address REPO=owner/name"; exit 1; }
	@$(PYTHON) book/tools/address.py "$(REPO)"

clean:  ## remove what these targets made: .venv, the built book
	@rm -rf $(VENV) book/_build dist .pytest_cache .ruff_cache .hypothesis
	@find refimpl tests book -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean"
