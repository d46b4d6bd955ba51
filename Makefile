# Thin: every target calls a program that a person can call too. `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
RUN := .venv/bin/python
SCRIPTS := images/*.sh .ci/run .ci/docker .ci/packages tests/gpu/*.sh
# Engines in one worker, containers in another; the rest fills both.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --no-loadscope-reorder
export PYTHON

.PHONY: help setup setup-lane demo demo-publish demo-thinking demo-scale test test-house test-unit test-models test-writes test-formats test-ray test-images lint format locks locks-check images images-size bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make the environments from the locks (fast when nothing changed)
	@images/install.sh .venv cpu dev embedded .
	@images/install.sh .venv-quantize cpu-quantize
	@images/install.sh .venv-frameworks frameworks
	@images/install.sh .venv-ray ray

setup-lane: ## the environments of LANE alone (vllm or trt), on a machine that builds for it
	@images/install.sh .venv $(LANE) embedded .
	@[ ! -f images/locks/$(LANE)-quantize.txt ] || images/install.sh .venv-quantize $(LANE)-quantize

demo: setup ## plan → quantize → build → validate a small model, serve it, hold a streamed conversation
	@$(RUN) -m tests.demos.chain

demo-publish: setup ## sign and push to a hub on loopback over a failing link, then serve by name
	@$(RUN) -m tests.demos.publish

demo-thinking: setup ## a model that thinks: scripted, switched off, and with a budget; only speech is heard
	@$(RUN) -m tests.demos.thinking

demo-scale: setup ## servers behind a router, a store, Prometheus: one killed, one drained; every listener goes on
	@$(RUN) -m tests.demos.scale

test: setup ## everything that proves it
	@$(RUN) -m pytest $(PARALLEL) --durations=25

test-house: setup ## what reads all the code, its pages and its rooms: what a small change breaks far from itself (a minute)
	@$(RUN) -m pytest $(PARALLEL) -q -m house

test-unit: setup ## the tests that need neither engine nor network (minutes)
	@$(RUN) -m pytest $(PARALLEL) -m "not engine and not docker and not network"

test-writes: setup ## kill -9, a full disk and a broken one at every write of the pipeline; lists the points
	@YAP_EVERY_WRITE=all $(RUN) -m pytest -rP tests/unit/pipeline/test_every_write.py

test-models: setup ## every family of models by every method, and the table of docs/models.md (an hour or two)
	@$(RUN) -m tests.harness.models.matrix --serve

test-formats: setup ## every format of ModelOpt on the embedded chat model, judged by its gates (minutes)
	@MODELOPT_FORMATS=int4_awq,fp8,int8_sq $(RUN) -m pytest -rP tests/integration/test_modelopt.py

test-ray: setup ## Ray Serve by its own commands on the CPU engine, and its limits as docs/scaling.md has them (minutes)
	@YAP_RAY=whole $(RUN) -m pytest tests/integration/fleet/test_ray_whole.py

test-images: setup ## the images, built and run on a stand-in base; needs a Docker Engine
	@$(RUN) -m pytest tests/images

lint: setup ## ruff, mypy, deptry, import-linter, shellcheck, hadolint, actionlint, zizmor on what they read
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/deptry runtime pipeline
	@.venv/bin/lint-imports
	@.venv/bin/shellcheck $(SCRIPTS) && .venv/bin/shfmt -i 4 -d $(SCRIPTS)
	@.venv/bin/hadolint --config images/hadolint.yaml images/*.Dockerfile
	@.venv/bin/actionlint && .venv/bin/zizmor --offline --quiet .github/workflows

format: setup ## let ruff and shfmt write
	@.venv/bin/ruff check --fix-only -q . && .venv/bin/ruff format -q .
	@.venv/bin/shfmt -i 4 -w $(SCRIPTS)

locks: setup ## resolve pyproject.toml into images/locks/ again
	@images/lock.sh

locks-check: setup ## fail when pyproject.toml and the locks have drifted apart
	@images/lock.sh --check

images: ## build the vllm lane's images; `docker buildx bake -f bake.hcl TARGET` builds others
	@docker buildx bake -f bake.hcl

images-size: setup ## each image's size by layer against images/budget.txt
	@$(RUN) images/sizes.py

bench: setup ## engine alone against the runtime over WebSocket; gateway cost; one run
	@$(RUN) -m tests.benchmarks

clean: ## remove environments and caches; artifacts stay
	rm -rf .venv .venv-quantize .venv-frameworks .venv-ray .venv-tools .cache
