# On a new machine: `make demo` analyses the example recording, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# One test process per processor, at most four (WORKERS=0: a single process). The tests of a file run in one process and
# share its module fixtures; files run in pytest-randomly's order.
WORKERS ?= logical
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow test-processors platforms check format size bench truth clean

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade "pip>=24.1"
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.base
	$(BIN)/affectrace predict examples/example.mp4 --report --out demo_out
	@echo "open demo_out/example.html in a browser"

test: $(VENV)/.dev
	$(BIN)/affectrace weights fetch --quiet
	$(PYTEST)

test-slow: $(VENV)/.dev
	$(BIN)/affectrace weights fetch --quiet
	$(BIN)/python -m pytest -m "slow and not gpu and not hub"

# The tests with the CPU kernels of other processors (ATEN_CPU_CAPABILITY) and other thread counts; half an hour.
test-processors: $(VENV)/.dev
	$(BIN)/affectrace weights fetch --quiet
	@failed=; for kernels in "" default avx2; do for threads in 1 2; do \
		echo "== kernels $${kernels:-native}, threads $$threads"; \
		env $${kernels:+ATEN_CPU_CAPABILITY=$$kernels} OMP_NUM_THREADS=$$threads $(PYTEST) -q $(TESTS) \
			|| failed="$$failed $${kernels:-own}/$$threads"; done; done; \
	test -z "$$failed" || { echo "failed with (kernels/threads):$$failed"; exit 1; }

# Wheels of the pinned versions exist for Linux, Windows and macOS. Needs the package index, installs nothing.
platforms: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -n 4 tests/e2e/test_platforms.py

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/make_tree.py --check

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python docs/make_tree.py

# Size of the package, and the files that process a frame, a label and an option (SIZE=--quick: without the latter).
size: $(VENV)/.dev
	$(BIN)/affectrace weights fetch --quiet
	@$(BIN)/python docs/size.py $(SIZE)

# All benchmarks, one after another (about an hour on an idle machine). BENCH=bench/scan.py runs one;
# FER_PYTHON=PATH: Python of an environment with the fer package, to compare with predict.
BENCH ?= $(sort $(wildcard bench/*.py))

PAGES := docs/benchmarks
OPTIONS.predict = --long $(if $(FER_PYTHON),--fer-python $(FER_PYTHON))
OPTIONS.store = --full --out $(PAGES)/store.md
OPTIONS.chunking = --out $(PAGES)/chunking.md
OPTIONS.extract = --out $(PAGES)/extract.md
OPTIONS.finetune = --out $(PAGES)/finetune.md

bench: $(VENV)/.dev
	@failed=; $(foreach s,$(BENCH),echo "== $(s)"; \
		$(BIN)/python $(s) $(OPTIONS.$(basename $(notdir $(s)))) || failed="$$failed $(s)";) \
	test -z "$$failed" || { echo "did not finish:$$failed"; exit 1; }

# Accuracy of the shipped weights against docs/truth.json, for the data in AFFECTRACE_REAL_DATA (5 minutes).
# After a deliberate change: make truth UPDATE='what changed' writes a new row and redraws the tables.
truth: $(VENV)/.dev
	$(BIN)/affectrace weights fetch --quiet
	$(BIN)/python training/truth.py $(if $(UPDATE),--update '$(UPDATE)')

clean:
	rm -rf $(VENV) build dist demo_out
