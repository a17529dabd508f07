# GotoHotel. Every target sets up what it needs by itself; all it takes is Python 3.11 (or newer) and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Kept in the environment of what make starts: GOTOHOTEL_HOME, GOTOHOTEL_GATEWAY_PORT, …
RUN := $(BIN)/gotohotel
PROTOS := $(shell find protos -name '*.proto')
# 0001_* creates the tables, which nothing uses yet, so their locks don't matter.
MIGRATIONS := $(shell find . -path ./$(VENV) -prune -o -path ./.run -prune -o -path '*/migrations/*.sql' ! -name '0001_*' -print)
# Python keeps what it has compiled. Many containers set this to 1: then each process would compile every module again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test lint lock client up down status logs start stop token audit bench siege overload chaos fuzz \
  images push chart containers rollout clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/ready ## the main job as a story: search, book, pay, confirm, cancel, sold out
	@$(RUN) demo

test: $(VENV)/ready ## run all tests, on real PostgreSQL, NATS and Envoy
	@$(BIN)/pytest $(ARGS)

lint: $(VENV)/ready ## ruff, mypy, imports, buf, squawk (migrations), hadolint (images)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/buf lint gotohotel/descriptors.binpb --config protos/buf.yaml
	@$(BIN)/buf breaking gotohotel/descriptors.binpb --against protos/last_release.binpb --config protos/buf.yaml
	@$(BIN)/squawk --config .squawk.toml $(MIGRATIONS)
	@$(BIN)/hadolint --failure-threshold warning images/Dockerfile

# Envoy's wheels ask for glibc 2.31 and macOS 15.
PLATFORMS := x86_64-manylinux_2_31 aarch64-manylinux_2_31 aarch64-apple-darwin
VERSIONS := 3.11 3.12 3.13 3.14
COMPILE := MACOSX_DEPLOYMENT_TARGET=15.0 $(BIN)/uv pip compile pyproject.toml --group dev --quiet --no-header --no-annotate
# What each image gets, in the versions of requirements.txt.
IMAGE_LOCK := --quiet --no-header --no-annotate --constraint requirements.txt --universal --python-version 3.11 \
  --generate-hashes --output-file

lock: $(VENV)/ready ## write requirements.txt from pyproject.toml; every package needs wheels for all platforms
	@cp requirements.txt requirements.new
	@$(COMPILE) --universal --python-version 3.11 --generate-hashes --output-file requirements.new
	@for platform in $(PLATFORMS); do for version in $(VERSIONS); do \
	  $(COMPILE) --only-binary :all: --python-platform $$platform --python-version $$version \
	    --constraint requirements.new --output-file /dev/null || { rm requirements.new; exit 1; }; \
	done; done
	@mv requirements.new requirements.txt
	@$(BIN)/uv pip compile pyproject.toml $(IMAGE_LOCK) images/service.txt
	@$(BIN)/uv pip compile pyproject.toml --group operator $(IMAGE_LOCK) images/operator.txt
	@for group in build gateway; do $(BIN)/uv pip compile --group $$group $(IMAGE_LOCK) images/$$group.txt || exit 1; done

client: $(VENV)/ready ## build the wheel for clients in Python: dist/gotohotel_client-*.whl
	@$(BIN)/pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist ./client

up: $(VENV)/ready ## start the embedded stack in the background
	@$(RUN) up

down: $(VENV)/ready ## stop it; data stays in .run/
	@$(RUN) down

status: $(VENV)/ready ## name, state, pid and port of each process
	@$(RUN) status

logs: $(VENV)/ready ## follow the logs, of one process with SVC=name
	@$(RUN) logs $(SVC)

start: $(VENV)/ready ## start one process: SVC=name
	@$(RUN) start $(SVC)

stop: $(VENV)/ready ## stop one process: SVC=name
	@$(RUN) stop $(SVC)

token: $(VENV)/ready ## print a token: ROLE=guest|desk SUB=name (with make -s)
	@$(RUN) token --role "$(or $(ROLE),guest)" --sub "$(or $(SUB),guest)"

audit: $(VENV)/ready ## check the invariants against databases, ledger and stream; of orders placed SINCE=time UNTIL=time
	@$(RUN) audit $(if $(SINCE),--since $(SINCE)) $(if $(UNTIL),--until $(UNTIL))

bench: $(VENV)/ready ## measure orders/s against pgbench; or AGAINST=commit, SCALE=orders, REPLICAS=n, FLOOR=1 (against the calls alone), STEADY=seconds
	@$(BIN)/python -m bench $(if $(AGAINST),--against $(AGAINST)) $(if $(SCALE),--scale $(SCALE)) $(if $(REPLICAS),--replicas $(REPLICAS)) $(if $(FLOOR),--floor) $(if $(STEADY),--steady $(STEADY)) $(ARGS)

siege: $(VENV)/ready ## the original's circuit breaker test: 300 guests book while payments are slow
	@$(BIN)/python -m bench.siege $(ARGS)

overload: $(VENV)/ready ## orders at five times the sustainable rate: what is served, what is refused, how fast
	@$(BIN)/python -m bench.overload $(ARGS)

chaos: $(VENV)/ready ## break a stack under load: SCENARIO=numbers or names SEED=n SECONDS=of a fault REPLICAS=n of each service
	@$(BIN)/python -m chaos $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(REPLICAS),--replicas $(REPLICAS))

fuzz: $(VENV)/ready ## hostile input through the gateway: 20,000 cases, or CASES=n
	@FUZZ_CASES=$(or $(CASES),20000) $(BIN)/pytest tests/fuzz $(ARGS)

images: $(VENV)/ready ## build the images with docker or podman: ENGINE=…, TAG=…, IMAGE_BASE= another base image, PLATFORM=linux/amd64,linux/arm64
	@ENGINE="$(ENGINE)" TAG="$(TAG)" IMAGE_BASE="$(IMAGE_BASE)" PLATFORM="$(PLATFORM)" $(BIN)/python -m images.build

push: $(VENV)/ready ## push what `make images` has built: REGISTRY=registry.example.org/hotel, TAG=…
	@ENGINE="$(ENGINE)" TAG="$(TAG)" REGISTRY="$(REGISTRY)" $(BIN)/python -m images.build push

chart: $(VENV)/ready ## write what the chart has from elsewhere, and check it without a cluster
	@$(BIN)/python -m helm.generate
	@$(BIN)/pytest tests/chart $(ARGS)

containers: $(VENV)/ready ## build the images, and run the chart's manifests in containers, as root, on Debian 12; PLATFORM=linux/arm64 emulates it
	@PLATFORM="$(PLATFORM)" $(BIN)/python -m containers

rollout: $(VENV)/ready ## replace every part by the next release's while guests book: no call fails
	@$(BIN)/python -m rollout $(ARGS)

clean: ## stop the stack and remove what was made, the data in .run included
	@if [ -x $(RUN) ]; then $(RUN) down; fi
	@rm -rf .run dist $(VENV) .mypy_cache .pytest_cache .ruff_cache

# Tools first, then the project itself, which compiles the protos. Python compiles what is imported: few of all the files.
$(VENV)/tools: requirements.txt
	@echo "Setting up $(VENV) …" >&2
	@$(PYTHON) -c 'import sys; sys.exit("GotoHotel needs Python 3.11 or newer; set PYTHON=… to one.") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements.txt
	@touch $@

$(VENV)/ready: $(VENV)/tools pyproject.toml hatch_build.py $(PROTOS)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@
