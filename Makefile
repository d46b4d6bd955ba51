# Thin: every target calls a program that a person can call too. `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
RUN := .venv/bin/python
export PYTHON

.PHONY: help setup demo test test-unit test-engine lint format types locks bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make both environments from the locks (fast when nothing changed)
	@images/install.sh .venv cpu dev embedded
	@images/install.sh .venv-quantize cpu-quantize

demo: setup ## plan → quantize → build → validate a small model, serve it, hold a streamed conversation
	@$(RUN) -m tests.demo

test: setup ## everything that proves it
	@$(RUN) -m pytest

test-unit: setup ## the tests that need no engine (seconds)
	@$(RUN) -m pytest -m "not engine and not docker"

lint: setup ## ruff, mypy, shellcheck, hadolint, actionlint on what they read
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/shellcheck images/*.sh .ci/run && .venv/bin/shfmt -i 4 -d images/*.sh .ci/run

format: setup ## let ruff and shfmt write
	@.venv/bin/ruff check --fix-only -q . && .venv/bin/ruff format -q .
	@.venv/bin/shfmt -i 4 -w images/*.sh .ci/run

locks: setup ## resolve pyproject.toml into images/locks/ again
	@images/lock.sh

bench: setup ## engine alone against the runtime over WebSocket; gateway cost; one run
	@$(RUN) -m tests.benchmarks

clean: ## remove environments, caches and artifacts
	rm -rf .venv .venv-quantize .venv-tools .cache artifacts
