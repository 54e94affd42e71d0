# Targets for people and for CI; `make` alone lists them. VENV=DIR puts the virtual environment elsewhere.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
# The first Python that is new enough; PYTHON=… names another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo $$p && break; done)
# More words for pytest, such as PYTEST_ARGS='-k nodeport'.
PYTEST_ARGS ?=
# More than there are cores: many tests wait, for an answer that does not come or for a server to start.
WORKERS ?= 4
# Branch coverage in percent, of the quick tests as root: what `make cover` asks at least.
FLOOR ?= 90

BIN := $(VENV)/bin
DEV := $(VENV)/.ktp-dev
USER_INSTALL := $(VENV)/.ktp-demo
SOURCES = $(shell find ktp -type f -not -name '*.pyc')
# Recordings of whole clusters, for `make test-cases`.
CASES ?= ../shared/cases
BUILDER ?= buildah
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' ktp/__init__.py)
DEMO_SERVICE := test/nginx-externaltrafficpolicy

.PHONY: pages golden help demo test cover test-cases test-kernel test-vm test-image image lint type imports fmt bench check pyz krew dist sbom site clean system-packages

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(if $(wildcard $(DEV)),$(DEV),$(USER_INSTALL)) ## install ktp in a virtual environment and diagnose the packaged snapshot
	@# 1 says that there are findings, which is what the packaged snapshot is for.
	@rc=0; $(BIN)/ktp --demo diagnose svc $(DEMO_SERVICE) || rc=$$?; \
	case $$rc in 0|1) ;; *) exit $$rc ;; esac

test: system-packages $(DEV) ## everything CI runs: all checks, then the quick tests and the kernel tests
	@rc=0; $(MAKE) -k check || rc=1; \
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS) || rc=1; \
	exit $$rc

cover: system-packages $(DEV) ## the quick tests with branch coverage; fails below its floor
	@$(BIN)/python -m pytest -n $(WORKERS) --cov=ktp --cov-branch --cov-report=term:skip-covered --cov-fail-under=$(FLOOR) $(PYTEST_ARGS)

test-kernel: system-packages $(DEV) ## the tests that ask the Linux kernel (as root)
	@KTP_REQUIRE_KERNEL=1 KTP_KERNEL_CASES=$${KTP_KERNEL_CASES:-200} KTP_CHECK_SERVICES=1000 KTP_CHECK_LOOKS=200 \
		$(BIN)/python -m pytest -m kernel $(PYTEST_ARGS)
	@$(MAKE) test-vm

ifdef KERNEL
test-vm: system-packages $(DEV)
	@for p in qemu-system-x86 cpio xz-utils; do dpkg -s $$p >/dev/null 2>&1 || apt-get install -qy --no-install-recommends $$p; done
	@$(BIN)/python tests/support/whole_kernel.py --suite $(KERNEL) --env KTP_REQUIRE_KERNEL=1 \
		--env KTP_KERNEL_CASES=$${KTP_VM_CASES:-4} -- $(BIN)/python -m pytest -p no:cacheprovider -m kernel \
		tests/kernel/test_orders.py tests/kernel/test_wireguard.py tests/kernel/test_xfrm.py \
		tests/kernel/test_differential.py $(PYTEST_ARGS)
else
test-vm: system-packages $(DEV) ## IPVS (400 random pairs), IPsec and all kinds of tunnels in user-mode Linux; KERNEL=trixie: orders of chains, WireGuard under that kernel
	@$(BIN)/python tests/support/user_mode_linux.py --env KTP_REQUIRE_KERNEL=1 --env KTP_KERNEL_CASES=$${KTP_VM_CASES:-34} \
		--env KTP_KERNEL_SEED=$${KTP_KERNEL_SEED:-1} --env KTP_IPTABLES=iptables-legacy -- \
		$(BIN)/python -m pytest -p no:cacheprovider -m kernel tests/kernel/test_ipvs.py tests/kernel/test_conntrack_full.py tests/kernel/test_xfrm.py \
		tests/kernel/test_sizes.py::test_what_a_tunnel_adds tests/kernel/test_sizes.py::test_what_is_longer_than_the_next_node_takes \
		$(PYTEST_ARGS)
endif

test-cases: $(DEV) ## the tests that ask recordings of whole clusters: CASES=FOLDER
	@KTP_CASES=$(abspath $(CASES)) KTP_HEADLINES=$(abspath $(CASES)) KTP_LOST_EVIDENCE=100 $(BIN)/python -m pytest -n $(WORKERS) \
		tests/test_recorded_clusters.py tests/test_headlines.py tests/test_lost_evidence.py tests/unit/diagnose \
		tests/unit/kubeproxy tests/unit/parse $(PYTEST_ARGS)

image: ## the container image ktp:VERSION (BUILDER=podman, IMAGE_ARGS='--build-arg BASE=…')
	@$(BUILDER) build $(IMAGE_ARGS) -f Containerfile -t ktp:$(VERSION) .

test-image: system-packages $(DEV) ## build the image from a root file system of its own, and run it as a pod does (as root)
	@for p in buildah mmdebstrap; do command -v $$p >/dev/null || apt-get install -qy --no-install-recommends $$p; done
	@KTP_REQUIRE_KERNEL=1 $(BIN)/python -m pytest -m slow tests/integration/test_image.py $(PYTEST_ARGS)

check: lint type imports ## ruff, mypy and import-linter

lint: $(DEV) ## ruff: rules and formatting
	@rc=0; $(BIN)/ruff check . || rc=1; $(BIN)/ruff format --check . || rc=1; exit $$rc

type: $(DEV) ## mypy --strict
	@$(BIN)/mypy --strict

imports: $(DEV) ## the import contract
	@$(BIN)/lint-imports

fmt: $(DEV) ## let ruff format and repair what it can
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

pages: $(DEV) ## write the pages that come from code again: findings, evidence, schema, modelled matches, manual pages, picture
	@$(BIN)/python tools/gen_pages.py && $(BIN)/python tools/gen_reference.py && $(BIN)/python tools/gen_man.py && $(BIN)/python tools/gen_screen.py

golden: $(DEV) ## write the reviewed screens in tests/golden again: read the difference
	@KTP_UPDATE_GOLDEN=1 $(BIN)/python -m pytest -q -n $(WORKERS) tests/unit $(PYTEST_ARGS)

bench: $(DEV) ## big dumps and timings, as ratios (BENCH_ARGS='--only batch'), then the slow tests
	@$(BIN)/python bench/run.py $(BENCH_ARGS)
	@$(BIN)/python bench/merging.py
	@[ "$$(id -u)" != 0 ] || $(BIN)/python bench/checking.py
	@$(BIN)/python -m pytest -m slow -s --durations=0 $(PYTEST_ARGS)

# The locked packages as pure Python, PyYAML alone has no such wheel: without its compiled part it uses its own parser.
PYZ := build/pyz
PYZ_PIP = $(PYZ)/tools/bin/python -m pip --disable-pip-version-check -q
PYZ_INTO = install --target $(PYZ)/site --upgrade --no-deps --no-compile
dist: ## wheel and source archive in dist/, checked
	@rm -rf build/tools dist && mkdir -p build && $(PYTHON) -m venv build/tools
	@build/tools/bin/pip install -q --disable-pip-version-check build twine check-wheel-contents
	@build/tools/bin/python -m build --outdir dist . >/dev/null
	@build/tools/bin/twine check --strict dist/ktp-* && build/tools/bin/check-wheel-contents --toplevel ktp --ignore W002 dist/*.whl

sbom: ## dist/ktp.cdx.json: what ktp brings along, as CycloneDX
	@rm -rf build/sbom && mkdir -p build dist && $(PYTHON) -m venv build/sbom/tools && $(PYTHON) -m venv build/sbom/ktp
	@build/sbom/tools/bin/pip install -q --disable-pip-version-check cyclonedx-bom
	@build/sbom/ktp/bin/pip install -q --disable-pip-version-check . && build/sbom/ktp/bin/pip uninstall -qy pip setuptools
	@build/sbom/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --of JSON \
		--output-reproducible -o dist/ktp.cdx.json build/sbom/ktp/bin/python && echo dist/ktp.cdx.json

site: ## the documentation as a site in build/site; a broken link is an error
	@rm -rf build/site && mkdir -p build && $(PYTHON) -m venv build/docs
	@build/docs/bin/pip install -q --disable-pip-version-check 'zensical>=0.0.70'
	@build/docs/bin/zensical build --strict -f mkdocs.yml

pyz: $(BIN)/python ## one file dist/ktp.pyz that runs on every Python from 3.10 on
	@rm -rf $(PYZ) && mkdir -p $(PYZ) dist
	@$(BIN)/python -m venv $(PYZ)/tools
	@$(PYZ_PIP) install shiv==1.0.8
	@grep -v '^PyYAML==' requirements/pyz.lock >$(PYZ)/pure.txt
	@$(PYZ_PIP) $(PYZ_INTO) --only-binary=:all: --platform any --implementation py --abi none --python-version 3.10 -r $(PYZ)/pure.txt
	@$(PYZ_PIP) $(PYZ_INTO) --only-binary=:all: "$$(grep '^PyYAML==' requirements/pyz.lock)"
	@$(PYZ_PIP) $(PYZ_INTO) .
	@find $(PYZ)/site/yaml $(PYZ)/site/_yaml -name '*.so' -delete
	@compiled="$$(find $(PYZ)/site -name '*.so' -o -name '*.pyd')"; [ -z "$$compiled" ] || { echo "compiled: $$compiled" >&2; exit 1; }
	@$(PYZ)/tools/bin/shiv --site-packages $(PYZ)/site --python '/usr/bin/env python3' --entry-point ktp.cli:main \
		--preamble requirements/pyz_preamble.py --compressed --reproducible --output-file dist/ktp.pyz >/dev/null
	@ls -sh dist/ktp.pyz

krew: pyz ## dist/ktp.yaml and its archive, by which krew installs ktp (REPOSITORY=https://github.com/OWNER/ktp)
	@[ -n "$(REPOSITORY)" ] || { echo "make krew REPOSITORY=https://github.com/OWNER/ktp" >&2; exit 2; }
	@$(BIN)/python tools/gen_krew.py dist/ktp.pyz "$(REPOSITORY)" && ls dist/ktp.yaml dist/kubectl-ktp.tar.gz

clean: ## remove the virtual environment, caches and builds
	@rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find ktp tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------------------- environments

$(BIN)/python:
	@root_apt() { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; }; \
	apt_install() { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$$@" >/dev/null; }; \
	python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		echo "ktp needs Python 3.10 or newer, and none was found: install it, or name it with make PYTHON=/path/to/python3." >&2; exit 1; \
	fi; \
	if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
		package="$$(basename $$python)-venv"; \
		if root_apt; then apt_install "$$package"; \
		else echo "Python's venv module is missing: run 'sudo apt-get install $$package', then make again." >&2; exit 1; fi; \
	fi; \
	$$python -m venv "$(VENV)"

$(USER_INSTALL): $(BIN)/python pyproject.toml $(SOURCES)
	@echo "installing ktp in $(VENV) ..." >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check .
	@touch $@

$(DEV): $(BIN)/python pyproject.toml
	@echo "installing ktp and its development tools in $(VENV) ..." >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[iptc]' >$(VENV)/iptc-install.log 2>&1 \
		|| echo "note: python-iptables was not built (it needs gcc and libc6-dev; see $(VENV)/iptc-install.log): its cross-check tests are skipped." >&2
	@rm -f $(USER_INSTALL)
	@touch $@

# Only the kernel tests and the optional python-iptables need these; nothing is asked of apt when all are there.
system-packages:
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=(); \
	need() { command -v "$$1" >/dev/null || [ -e "$$1" ] || missing+=("$$2"); }; \
	need iptables-save iptables; need nft nftables; need ipset ipset; need conntrack conntrack; \
	need ip iproute2; need ss iproute2; need strace strace; need gcc gcc; need /usr/include/stdio.h libc6-dev; \
	if [ $${#missing[@]} -eq 0 ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing $${missing[*]} ..." >&2; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$${missing[@]}" </dev/null >/dev/null; } \
			|| echo "note: apt-get could not install $${missing[*]}: tests that need them are skipped." >&2; \
	else \
		echo "note: tests that need $${missing[*]} are skipped; to run them: sudo apt-get install $${missing[*]}" >&2; \
	fi
	@# Not every Debian has the guest's: without them its tests alone are left out.
	@PATH="$$PATH:/usr/sbin:/sbin"; if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		for each in linux.uml:user-mode-linux ipvsadm:ipvsadm /bin/busybox:busybox-static depmod:kmod; do \
			command -v "$${each%%:*}" >/dev/null && continue; \
			[ -n "$$(apt-cache policy "$${each##*:}")" ] || apt-get update -qq; \
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${each##*:}" \
				</dev/null >/dev/null || echo "note: no $${each##*:}: its tests are left out" >&2; \
		done; \
	fi
