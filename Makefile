# `make demo` and `make test` are all a newcomer needs; both set up .venv the first time.
ACCELERATOR ?= cpu
PYTHON ?= python3
BIN := .venv/bin
DATA := data/ml-1m-rechorus
RUN := demo-$(shell date +%Y%m%d-%H%M%S)-$(shell echo $$PPID)

.PHONY: help setup demo test test-slow lint
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## Make .venv (ACCELERATOR=cpu|cuda)
	@ACCELERATOR=$(ACCELERATOR) PYTHON=$(PYTHON) cluster/setup.sh

demo: setup  ## Data, training on two workers, evaluation, export and a score, from nothing
	@$(BIN)/livetrain data ml-1m --protocol rechorus --out $(DATA)
	@$(BIN)/livetrain train configs/recipes/din_ml1m.yaml name=$(RUN)
	@$(BIN)/livetrain evaluate runs/$(RUN) --split test
	@$(BIN)/livetrain export runs/$(RUN)
	@echo "scores from the exported file, by the README's example:"
	@sed -n '/^```python/,/^```$$/p' README.md | sed '/^```/d' | $(BIN)/python - runs/$(RUN)/export
	@echo "plots: runs/$(RUN)/report.png"

test: setup  ## All fast tests
	@$(BIN)/python -m pytest -q

test-slow: setup  ## The tests that take minutes
	@$(BIN)/python -m pytest -q -m slow

lint: setup  ## ruff: rules and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
