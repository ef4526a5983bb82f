# Every target does its own set-up; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
NAME ?= ebbtide-demo

##@ The two commands

.PHONY: demo
demo: venv ## Main job: real cluster, helm install, three scenes under load, plain against managed (about 25 min the first time, 6 to 12 after)
	$(PY) -m demo --cluster $(NAME)

.PHONY: test
test: venv ## Everything that CI checks (about 25 min; 10 more the first time)
	tools/test

##@ Demo

.PHONY: demo-quick
demo-quick: venv ## One scene with 6 replicas
	$(PY) -m demo --quick --cluster $(NAME)

.PHONY: demo-down
demo-down: venv ## Take the demo's cluster down; nothing is left behind but the caches
	$(PY) -m tests.localcluster down --name $(NAME)

##@ Tests

.PHONY: lint
lint: venv ## Format, lint, types, import contracts
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	.venv/bin/mypy

.PHONY: test-unit
test-unit: venv ## Pure rules and what one process does, on all cores: no cluster, under a minute
	.venv/bin/pytest --numprocesses auto tests/unit

.PHONY: test-pythons
test-pythons: venv ## The library's unit tests on every other Python at hand from 3.11 on, and on 3.14 (about 2 min; 2 more for environments the first time)
	$(PY) -m tests.each_python

.PHONY: test-contract
test-contract: venv ## Real etcd processes, whole processes of the library, the rendered chart
	.venv/bin/pytest tests/contract

.PHONY: test-store
test-store: venv ## The store: contract, faults (20 of each), histories (10), fencing (10,000 writes); prints the tables (about 15 min)
	EBBTIDE_FAULT_ROUNDS=$${EBBTIDE_FAULT_ROUNDS:-20} EBBTIDE_HISTORY_ROUNDS=$${EBBTIDE_HISTORY_ROUNDS:-10} \
		EBBTIDE_STALE_WRITES=$${EBBTIDE_STALE_WRITES:-10000} \
		.venv/bin/pytest tests/contract/test_store.py tests/contract/test_counting.py tests/contract/test_store_faults.py \
		tests/contract/test_linearizability.py tests/contract/test_histories.py tests/contract/test_fencing.py

.PHONY: test-servers
test-servers: venv ## The library under uvicorn, gunicorn, hypercorn, granian, aiohttp, Celery; prints the table of docs/library/servers.md
	.venv/bin/pytest tests/contract/servers

.PHONY: test-cluster
test-cluster: venv ## The real cluster, faults included; EBBTIDE_KEEP_CLUSTER=1 leaves it up
	.venv/bin/pytest tests/cluster

.PHONY: zoo
zoo: venv ## 1,000 seeded drains among bad citizens: all within budget, nothing unaccounted for (about 3 min)
	$(PY) -m tests.bench.zoo

.PHONY: soak
soak: venv ## Spawn, cancel, drain, undrain for 5 minutes: memory and every container flat
	$(PY) tests/bench/soak.py

##@ Figures

.PHONY: bench
bench: bench-library bench-restart bench-import bench-trend bench-store bench-rollout ## All figures below, each against the plain alternative in the same run

.PHONY: bench-library
bench-library: venv ## Goals G1 to G18 of the library on every Python at hand, each beside its target (about 5 min for each Python; PYTHONS=3.11: only that; GOALS=G8,G9: only those; DISTRIBUTIONS=1: as Debian and Ubuntu build them)
	$(PY) -m tests.bench.goals --python "$(PYTHONS)" --only "$(GOALS)" $(if $(DISTRIBUTIONS),--distributions)

.PHONY: bench-restart
bench-restart: venv ## Requests that fail during rolling restarts: plain uvicorn, preStop sleep, ebbtide without and with preStop (about 8 min)
	$(PY) -m tests.bench.rolling_restart

.PHONY: bench-import
bench-import: venv ## What an import of the library and the start of a runtime cost, in fresh interpreters (20 s for each Python)
	$(PY) -m tests.bench.import_time

.PHONY: bench-trend
bench-trend: venv ## How often leaks and churn are told right, on generated series and on the example under three loads (about two minutes)
	$(PY) tests/bench/trend_quality.py
	$(PY) -m tests.bench.trend_loads

.PHONY: bench-store
bench-store: venv ## Orders through the relay to 200 and 2,000 pods, the relay's memory and CPU for each, writes to etcd (about 4 min)
	$(PY) -m tests.bench.store

.PHONY: bench-rollout
bench-rollout: venv ## Managed rollouts against plain ones on a real cluster: time, release to deletion, CPU, writes (about 6 min)
	$(PY) -m tests.bench.rollout

##@ Local cluster

.PHONY: cluster-up
cluster-up: venv ## Start (or reuse) the local Kubernetes cluster
	$(PY) -m tests.localcluster up --name $(NAME)

.PHONY: cluster-down
cluster-down: demo-down ## Take it down

.PHONY: cluster-status
cluster-status: venv ## Say what runs
	$(PY) -m tests.localcluster status --name $(NAME)

.PHONY: images
images: venv ## Build the operator's and the example's images
	$(PY) -m tests.localcluster.images

##@ Development

.PHONY: venv
venv: ## Make .venv from the lock file
	@tools/bootstrap

.PHONY: fmt
fmt: venv ## Format and fix what can be fixed
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

.PHONY: generate
generate: venv ## Make again what is generated: dashboard, alerts, the chart's CRD and README, the library's API reference
	$(PY) -m charts.generate
	$(PY) -m tools.api_reference

.PHONY: lock
lock: ## Resolve the dependencies anew (needs uv on PATH)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --extra operator pyproject.toml -o operator/requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --extra operator --extra etcd3 --group test pyproject.toml -o requirements-dev.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header -c operator/requirements.lock examples/orders/requirements.in -o examples/orders/requirements.lock

.PHONY: help
help: ## Show this
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
