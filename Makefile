# Everything a person or CI does with this repository. `make help` lists it.
#
# LAB=external runs the targets that need only kubectl and helm on the cluster of your own KUBECONFIG.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

LAB ?= egressnat-lab
MODE ?= nftables
HELM_ARGS ?=
PODS ?= 10000
CHANGES ?= 1000
SEED ?=
HUNT_ARGS ?=

lab := target/debug/lab
clusters := $(CURDIR)/target/lab/clusters
policy := e2e/manifests/policy.yaml
static := $(shell uname -m)-unknown-linux-musl
policy_dual := e2e/manifests/policy-dual.yaml

ifeq ($(LAB),external)
  own_cluster = $(error `make $@` is for the lab's own cluster: it does nothing on LAB=external)
  lab_flags := --external
  chart_values :=
else
  own_cluster :=
  lab_flags := --cluster $(LAB)
  chart_values := -f e2e/manifests/values.yaml -f target/images/values.yaml --hide-notes
  export KUBECONFIG := $(clusters)/$(LAB)/kubeconfig
  export PATH := $(CURDIR)/target/lab/bin:$(PATH)
endif

##@ The lab

.PHONY: lab
lab: ## One command: install, build, bring the lab up, and walk through it
	$(own_cluster)@start=$$SECONDS
	$(MAKE) up images
	$(lab) $(lab_flags) images load
	$(MAKE) egressnat egressnat-wait egress-prep
	$(lab) $(lab_flags) walk
	echo "The lab is up, after $$((SECONDS - start)) s. To use it from this shell:"
	echo
	echo "  export KUBECONFIG=$(KUBECONFIG)"
	echo "  export PATH=$(CURDIR)/target/lab/bin:\$$PATH     # kubectl and helm"
	echo
	echo "Then try:  make egress-setup egress-show    a policy, and what the outside sees of each pod"
	echo "           kubectl get egressnatpolicies    its status"
	echo "           make nuke-kube-proxy egress-show the same without kube-proxy"
	echo "           make egress-down, make down      the way back; make help lists the rest"

.PHONY: setup
setup: ## Check this machine, install what is missing, build the Kubernetes programs
	@e2e/setup.sh

.PHONY: lab-program
lab-program:
	@cargo build --quiet -p egressnat-e2e --bin lab

##@ The walk-through, step by step

.PHONY: up
up: setup lab-program ## The three-node cluster, with kube-proxy, DNS and the net-tshoot pods
	$(own_cluster)@$(lab) $(lab_flags) up

.PHONY: egressnat
egressnat: ## Install the chart by helm, or upgrade it
	@kubectl apply --server-side --force-conflicts -f charts/egressnat/crds
	helm upgrade --install egressnat charts/egressnat --namespace egressnat-system --create-namespace \
	  $(chart_values) $(HELM_ARGS)

.PHONY: egressnat-wait
egressnat-wait: ## Wait until the operator and every agent are ready
	@kubectl -n egressnat-system rollout status deployment/egressnat-operator --timeout=120s
	kubectl -n egressnat-system rollout status daemonset/egressnat-agent --timeout=120s

.PHONY: nuke-all-pods
nuke-all-pods: lab-program ## Restart all pods
	@$(lab) $(lab_flags) restart-all

.PHONY: nuke-kube-proxy
nuke-kube-proxy: ## Remove kube-proxy and its rules from every node
	$(own_cluster)@$(lab) $(lab_flags) kube-proxy --mode none

.PHONY: kube-proxy
kube-proxy: ## The way back: kube-proxy in MODE=nftables (default) or MODE=iptables
	$(own_cluster)@$(lab) $(lab_flags) kube-proxy --mode $(MODE)

.PHONY: egress-prep
egress-prep: ## The external echo server, called `echo` in the pods
	$(own_cluster)@$(lab) $(lab_flags) echo

.PHONY: egress-setup
egress-setup: ## The policy: pods of namespace default leave with the control plane's IPv4 address
	@kubectl apply -f $(policy)
	kubectl wait --for=condition=Programmed --timeout=60s -f $(policy)

.PHONY: egress-setup-dual
egress-setup-dual: ## The same policy for IPv4 and IPv6
	@kubectl apply -f $(policy_dual)
	kubectl wait --for=condition=Programmed --timeout=60s -f $(policy_dual)

.PHONY: egress-show
egress-show: lab-program ## What the echo server sees of each net-tshoot pod, IPv4 and IPv6
	@$(lab) $(lab_flags) show

.PHONY: egress-down
egress-down: ## Remove the policy
	@kubectl delete --ignore-not-found -f $(policy)

.PHONY: node-ip-1 node-ip-2 node-ip-3
node-ip-1 node-ip-2 node-ip-3: node-ip-%: ## Print a node's address
	@kubectl get node -o jsonpath='{range .items[*]}{.status.addresses[?(@.type=="InternalIP")].address}{"\n"}{end}' \
	  | sed -n '$*{s/ .*//;p}'

.PHONY: down
down: ## Remove the cluster and all that belongs to it
	$(own_cluster)@[ ! -x $(lab) ] || $(lab) $(lab_flags) down

.PHONY: cleanup
cleanup: ## Remove every cluster of the lab and everything that was built
	$(own_cluster)@for folder in $(clusters)/*/; do
	  [ ! -d "$$folder" ] || $(lab) --cluster "$$(basename "$$folder")" down
	done
	rm -rf target

##@ Build and test

.PHONY: test
test: images fmt-check lint crds-check ## All tests, the cluster's included; sets the machine up first
	cargo test --workspace

.PHONY: ci
ci: test ## Exactly what CI runs

.PHONY: images
images: setup lab-program ## The project's images, as OCI archives in target/images
	@echo "building the release programs"
	cargo build --release -p egressnat-operator -p egressnat-agent
	cargo build --release -p egressnat-agent --no-default-features --features cni --bin egressnat-cni --target $(static)
	install -D -t target/plugin target/$(static)/release/egressnat-cni
	$(lab) images build

.PHONY: plugin
plugin: ## The kubectl plugin, one static program for your PATH: target/plugin/kubectl-egressnat
	@e2e/setup.sh plugin
	@cargo build --release -p kubectl-egressnat --target $(static)
	@install -D -t target/plugin target/$(static)/release/kubectl-egressnat

.PHONY: bench
bench: images ## The benchmark: a table, target/bench/results.json and figures.svg; BENCH_QUICK=1: rough, in 4 minutes
	cargo bench -p egressnat-e2e --bench figures

.PHONY: hunt
hunt: images ## The leak hunt: every packet of PODS= pods through CHANGES= changes is judged; SEED= makes one again
	@cargo build --quiet -p egressnat-e2e --bins
	target/debug/hunt --pods $(PODS) --changes $(CHANGES) $(if $(SEED),--seed $(SEED)) $(HUNT_ARGS)

.PHONY: hunt-proof
hunt-proof: images ## Proof that the hunt can fail: without each safeguard in turn it finds the leak
	@cargo build --quiet -p egressnat-e2e --bins
	target/debug/hunt --prove $(if $(SEED),--seed $(SEED)) $(HUNT_ARGS)

.PHONY: crds
crds: ## Write the chart's CRDs from their Rust types
	@cargo run --quiet -p egressnat-crds --bin crdgen -- charts/egressnat/crds

.PHONY: crds-check
crds-check:
	@cargo run --quiet -p egressnat-crds --bin crdgen -- --check charts/egressnat/crds

.PHONY: fmt
fmt: ## Format the Rust code
	@cargo fmt --all

.PHONY: fmt-check
fmt-check:
	@cargo fmt --all -- --check

.PHONY: lint
lint: ## clippy with every warning an error, unused dependencies, files that no crate reaches
	@e2e/setup.sh lint
	cargo clippy --workspace --all-targets -- -D warnings
	target/lab/bin/cargo-machete
	e2e/orphans.sh

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^##@ /{printf "\n%s\n", substr($$0, 5)} /^[a-z][^=]*:.*## /{printf "  %-30s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	echo
	echo "LAB=external runs the targets that need only kubectl and helm on the cluster of your KUBECONFIG."

.ONESHELL:
