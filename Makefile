# What to type first. `make help` lists it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test bench chaos redis-server

TARGET := $(or $(CARGO_TARGET_DIR),target)

help: ## Say what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: redis-server ## See it work: Redis, a pod, two runners and four tenants, about 15 seconds
	cargo build --locked
	$(TARGET)/debug/job-router demo

test: redis-server ## Run all tests
	@if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --locked && cargo test --doc --locked; \
	else \
		cargo test --locked; \
	fi

bench: redis-server ## Measure this build on this machine: all of job-router bench (about 6 minutes)
	cargo build --release --locked
	$(TARGET)/release/job-router bench latency
	$(TARGET)/release/job-router bench throughput
	$(TARGET)/release/job-router bench backlog
	$(TARGET)/release/job-router bench lanes
	$(TARGET)/release/job-router bench fairness
	$(TARGET)/release/job-router bench roll
	$(TARGET)/release/job-router bench reconnect
	$(TARGET)/release/job-router bench gitlab

chaos: redis-server ## Let everything fail at random: make chaos SEED=7 MINUTES=10 TOPOLOGY=sentinel (one, cluster), or several: SEED="1 2"; its last lines are JSON
	@reports=$$(mktemp); code=0; \
	for topology in $(or $(TOPOLOGY),one); do for seed in $(or $(SEED),1); do \
		SEED=$$seed MINUTES=$(or $(MINUTES),1) TOPOLOGY=$$topology CHAOS_REPORT=$$reports \
			cargo test --locked --test chaos a_run_as_long_as_one_likes -- --ignored --nocapture || code=$$?; \
	done; done; \
	cat $$reports; rm -f $$reports; exit $$code

redis-server:
	@command -v redis-server >/dev/null && exit 0; \
	if ! command -v apt-get >/dev/null; then \
		echo "redis-server (7.0 or newer) is missing: install it with your package manager, such as: brew install redis" >&2; \
		exit 1; \
	fi; \
	sudo=; if [ "$$(id -u)" != 0 ]; then sudo=sudo; fi; \
	echo "redis-server is missing: installing it with apt-get"; \
	$$sudo apt-get update -q && $$sudo apt-get install -qy --no-install-recommends redis-server
