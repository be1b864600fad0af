# `make demo` and `make test` are all a newcomer needs; both set up .venv the first time.
ACCELERATOR ?= cpu
PYTHON ?= python3
LOCKED ?= 0
BIN := .venv/bin
DATA := data/ml-1m-rechorus
RUN := demo-$(shell date +%Y%m%d-%H%M%S)-$(shell echo $$PPID)

.PHONY: help setup demo test test-slow test-kernels coverage lint lock docs serve serve-fuzz
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## Make .venv (ACCELERATOR=cpu|cuda, LOCKED=1: by cluster/requirements.lock)
	@ACCELERATOR=$(ACCELERATOR) PYTHON=$(PYTHON) LOCKED=$(LOCKED) cluster/setup.sh

demo: setup  ## Data, training on two workers, evaluation, export and a score, from nothing
	@$(BIN)/livetrain data ml-1m --protocol rechorus --out $(DATA)
	@$(BIN)/livetrain train configs/recipes/din_ml1m.yaml name=$(RUN)
	@$(BIN)/livetrain evaluate runs/$(RUN) --split test
	@echo "scores from the exported file, by examples/score.py:"
	@$(BIN)/python examples/score.py runs/$(RUN)/export
	@echo "the picture of this run: runs/$(RUN)/report.png"
	@echo "to try next: livetrain train configs/recipes/din_ml1m.yaml tables.movie.dim=32 name=wide, then compare the two;"
	@echo "  or livetrain init FILES..., on tables of your own (docs/start/quickstart.md)"

# Two halves of about one length at once; what the first prints comes at the end. Tests that start Ray mostly wait.
HALF := tests/cluster tests/modules/features tests/trainers/evaluate tests/trainers/export tests/trainers/data/sources \
  $(addprefix tests/trainers/train/,gradients $(addprefix test_,checkpoint.py farm.py loop.py sharding.py step.py))
test: setup  ## All fast tests
	@printed=$$(mktemp); $(BIN)/python -m pytest -q $(HALF) >$$printed 2>&1 & half=$$!; \
	$(BIN)/python -m pytest -q $(addprefix --ignore=,$(HALF)) tests; others=$$?; \
	wait $$half; half=$$?; cat $$printed; rm -f $$printed; exit $$((half > others ? half : others))

test-slow: setup  ## The tests that take minutes, and the properties on other examples each time
	@HYPOTHESIS_PROFILE=random $(BIN)/python -m pytest -q -m "slow or hypothesis"

test-kernels: setup  ## The kernels of GPUs, by Triton's interpreter and compiler (1 GB more in .venv)
	@$(BIN)/python -m pip install --quiet --editable '.[kernels]'
	@$(BIN)/python -m pytest -q -m "slow or not slow" tests/modules/layers/gpu

coverage: setup  ## Which lines the fast tests of this process reach: on the terminal, and in coverage.xml
	@$(BIN)/python -m pytest -q --cov --cov-report=term:skip-covered --cov-report=xml

lint: setup  ## ruff: rules and format; mypy: types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The torch release is cluster/setup.sh's affair, and the CUDA libraries that its wheels bring are the machine's.
MACHINES := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cccl cuda-cupti \
  cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink \
  nvshmem-cu13 nvtx)
lock: setup  ## Pin what pyproject.toml asks for, by hash, in cluster/requirements.lock
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile pyproject.toml --extra test --universal --python-version 3.11 --generate-hashes --upgrade \
	  --quiet --no-annotate --custom-compile-command "make lock" $(addprefix --no-emit-package=,$(MACHINES)) \
	  --output-file cluster/requirements.lock

docs: setup  ## The documentation site, into site/
	@test -x $(BIN)/mkdocs || $(BIN)/python -m pip install --quiet --editable '.[docs]'
	@$(BIN)/mkdocs build --strict --quiet && echo "site/index.html"

SANITIZE ?=
BUILD := serve/build$(addprefix -,$(SANITIZE))
serve: setup  ## The server outside Python, serve/build/livetrain-serve (SANITIZE=address: into serve/build-address)
	@cmake -S serve -B $(BUILD) -DSANITIZE=$(SANITIZE) \
	  $$($(BIN)/python -c "import pyarrow, torch; print(f'-DTORCH={torch.__path__[0]} -DARROW={pyarrow.__path__[0]}')")
	@cmake --build $(BUILD) && echo "$(BUILD)/livetrain-serve"

SECONDS := 60
serve-fuzz: setup  ## Fuzz what reads requests and published files (SECONDS=60 each; needs clang)
	@serve/fuzz/run.sh $(BIN)/python $(SECONDS)
