# make demo | test | test-bytes | test-oracle | test-sanitize | test-aarch64 | fuzz | lint | bundle: each does all
# the set-up that it needs.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Everything is installed at the versions and hashes of locks/ (`make lock` renews them).
# DESTDIR is for `make install`; CMake would take the kernels there.
PIP    := env -u DESTDIR $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
LOCKED := $(PIP) --require-hashes --no-build-isolation

# Tiny matrices: a second BLAS thread only spins and gets in the way of the other processes.
test test-oracle test-sanitize test-latest fuzz fuzz-api attack coverage: export OPENBLAS_NUM_THREADS = 1

# Each of the hundreds of processes that the tests start would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo extra test test-oracle test-sanitize test-aarch64 test-release test-deb test-systemd fuzz lint \
        lock check-lock bundle goldens clean wheels install uninstall deb test-latest test-debian \
        test-gpu test-bytes test-clients coverage mutants planted fuzz-media fuzz-files fuzz-api \
        fuzz-recordings attack attacked bad-luck bench-start
.DEFAULT_GOAL := help

help:
	@echo "make demo         set up, build the small model's bundle, watch a session, ask five questions"
	@echo "make test         set up and run the tests that need no torch"
	@echo "make test-bytes   what compiled plans and the GPU's decode kernels move, whole (minutes)"
	@echo "make test-clients   stock clients, unmodified, against a running service (installs them)"
	@echo "make test-oracle  the same model in transformers, compared number by number (installs torch)"
	@echo "make test-sanitize  the kernels' tests with AddressSanitizer, UBSan and ThreadSanitizer"
	@echo "make test-aarch64   the kernels' tests on NEON, in an emulator"
	@echo "make test-latest [TESTS=tests/unit]  the newest releases: which one breaks what"
	@echo "sudo make test-debian [RELEASE=trixie] [TESTS=...]  another Debian or Ubuntu and its Python"
	@echo "make test-gpu     the GPU kernels on this machine's GPU, beside the CPU's, and their speed"
	@echo "make fuzz [SECONDS=1200]  random examples for the tests' properties, broken clients"
	@echo "make coverage     what the tests execute, line by line and branch by branch"
	@echo "make mutants [PACKAGE='session serve'] [N=300] [SEED=1]  how many small faults the tests find"
	@echo "make planted      which test finds each fault of tests/mutants/planted.toml"
	@echo "make fuzz-media [N=1000] [SEED=1]  media files that are damaged in many ways"
	@echo "make fuzz-files [N=2000] [SEED=1]  wrong bundles, headers, tokenizers and checkpoints"
	@echo "make fuzz-api [SECONDS=600] [SEED=1]  what /openapi.json allows and forbids, by schemathesis (installs it)"
	@echo "make attack [N=1000000] [RATE=3000] [SEED=1]  hostile messages by four roles, beside a neighbour"
	@echo "make fuzz-recordings [N=1000] [SEED=1]  recordings that are changed in many ways"
	@echo "make bad-luck     full, read-only and slow disks, kill -9 and others: what is kept"
	@echo "make bench-start [GB=18] [ROUNDS=3]  from the process's start to READY, nothing of the bundle cached"
	@echo "make lint         ruff, mypy, import-linter"
	@echo "make lock [UPGRADE=1]  renew locks/: the versions and hashes that all of these install"
	@echo "make check-lock   whether all of locks/ is there for each Python, on the boards and on a PC"
	@echo "make extra EXTRA=top   add an extra of pyproject.toml: top, mcp, microphone, device, quantize"
	@echo "make bundle CHECKPOINT=... OUT=...   build a bundle for the cpu engine"
	@echo "sudo make install [BUNDLE=...]       install or upgrade the service on this machine"
	@echo "make install HOST=user@jetson        the same, over ssh; BUNDLE is a path there"
	@echo "make wheels [KEY=...]                a release for aarch64: dist/omni-edge-VERSION-aarch64.tar"
	@echo "sudo make install RELEASE=that.tar   without network and compiler; also with HOST"
	@echo "make install DESTDIR=... | make deb  for who builds images or packages"
	@echo "sudo make uninstall [KEEP_DATA=1]    remove it"
	@echo "sudo make test-release [SUITES=...]  a release in arm64 file systems under qemu, without a network"
	@echo "sudo make test-deb [BUNDLE=...]      the package, from source, in a clean Debian of this machine's"
	@echo "sudo make test-systemd [ROWS=boot]   the service in a Debian with systemd as process 1"

# `python3 -m venv` that fails or is killed leaves half of one: only the stamp says that it is whole.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' || \
	    { echo "Omni Edge needs Python 3.10 to 3.14: make PYTHON=python3.12 demo" >&2; exit 1; }
	@[ ! -e $(VENV) ] || [ -e $(VENV)/pyvenv.cfg ] || \
	    { echo "$(VENV) is there and no environment: make VENV=.venv-edge demo, or remove it" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.packages: locks/tools.txt locks/build.txt $(VENV)/.python
	@echo "make: downloads and installs the Python packages of locks/build.txt (about a minute)"
	@$(LOCKED) -r locks/tools.txt
	@$(LOCKED) -r locks/build.txt
	@touch $@

$(VENV)/.demo: pyproject.toml CMakeLists.txt $(wildcard kernels/cpu/*) $(VENV)/.packages
	@sh scripts/install_compiler.sh $(BIN)/python
	@echo "make: compiles the native kernels, kernels/cpu (about a minute)"
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: locks/dev.txt locks/mcp.txt locks/stubs.txt locks/plugins.txt $(VENV)/.demo \
    scripts/install_tensorrt_stubs.sh scripts/install_tensorrt_plugins.sh
	@echo "make: installs what the tests need (a minute or two)"
	@sh scripts/install_test_media.sh  # PortAudio's header is needed to install PyAudio
	@$(LOCKED) -r locks/dev.txt -r locks/mcp.txt
	@sh scripts/install_tensorrt_stubs.sh $(BIN)/python $(VENV)/stubs
	@sh scripts/install_tensorrt_plugins.sh $(BIN)/python $(VENV)/tensorrt_plugins
	@touch $@

# PyPI's torch for x86-64 needs CUDA; PyTorch's own index has the build for the CPU.
$(VENV)/.oracle: locks/oracle.txt locks/torch.txt $(VENV)/.dev
	@echo "make: installs torch, transformers and ModelOpt (some minutes)"
	@$(LOCKED) -r locks/oracle.txt
	@$(LOCKED) --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu -r locks/torch.txt
	@$(BIN)/python -c 'import torch' || \
	    { echo "make: install PyTorch's build for the CPU: $(BIN)/python -m pip install" \
	        "--index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0'" >&2; exit 1; }
	@touch $@

# What an optional command needs, into the same environment: make extra EXTRA=top
extra: $(VENV)/.demo
	@[ -e "locks/$(EXTRA).txt" ] || { echo "make extra EXTRA=top, or another of" \
	    "$(patsubst locks/%.txt,%,$(wildcard locks/*.txt))" >&2; exit 1; }
	@$(LOCKED) -r locks/$(EXTRA).txt

lock: $(VENV)/.dev
	sh scripts/lock.sh $(BIN)/uv $(if $(UPGRADE),--upgrade)

check-lock: $(VENV)/.dev
	sh scripts/check_lock.sh $(BIN)/uv

demo: $(VENV)/.demo
	$(BIN)/edge demo

# One process more than cores: much of a test waits. Each file is in one of them, and makes its
# fixtures once.
N_TESTED = $(shell n=$$(nproc); test $$n -lt 7 || n=7; echo $$((n + 1)))
TESTED := $(BIN)/python -m pytest --ignore tests/oracle
test: export EDGE_NODE_MODULES = $(abspath $(VENV)/js/node_modules)
test: $(VENV)/.dev
	sh scripts/install_test_media.sh
	sh scripts/install_js_clients.sh $(VENV)/js
	$(TESTED) -n $(N_TESTED) --dist loadfile -m 'not alone'
	$(TESTED) -m alone

test-bytes: $(VENV)/.dev
	EDGE_TEST_BYTES=all $(BIN)/python -m pytest -o timeout=3600 tests/device/test_bytes.py

# They have an environment of their own: what they want of other packages is not what we lock.
$(VENV)/.clients: locks/clients.txt tests/clients/js/package-lock.json $(VENV)/.demo
	@echo "make: installs stock clients into $(VENV)/clients (some minutes)"
	@$(PYTHON) -m venv --clear $(VENV)/clients
	@$(VENV)/clients/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --require-hashes --only-binary :all: -r locks/clients.txt
	@sh scripts/install_js_clients.sh $(VENV)/clients_js tests/clients/js
	@touch $@

test-clients: $(VENV)/.clients
	EDGE_PYTHON="$(abspath $(BIN)/python)" EDGE_CLIENTS_JS="$(abspath $(VENV)/clients_js)" \
	    $(VENV)/clients/bin/python -m pytest -c tests/clients/pytest.ini --rootdir tests/clients \
	    --confcutdir tests/clients tests/clients

test-oracle: $(VENV)/.oracle
	$(BIN)/python -m pytest tests/oracle

# The interpreter is not built with the sanitizer, so that its library has to come first.
test-sanitize: export ASAN_OPTIONS = detect_leaks=0
test-sanitize: export UBSAN_OPTIONS = print_stacktrace=1
test-sanitize: $(VENV)/.dev
	$(PIP) --upgrade --target build/sanitize --no-build-isolation -C install.strip=false \
	    -C cmake.define.EDGE_SANITIZE=address,undefined .
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	    $(BIN)/python scripts/pytest_with_kernels.py build/sanitize/edge/_kernels*.so -s \
	    tests/unit/test_kernels_[!a]*.py tests/unit/test_formats.py
	c++ -std=c++17 -O1 -g -Wno-psabi -ffp-contract=off -fsanitize=address,undefined \
	    -fno-sanitize-recover=all kernels/cpu/self_test.cpp kernels/cpu/kernel_table.cpp kernels/cpu/kernels_*.cpp \
	    -o build/sanitize/self_test
	build/sanitize/self_test
	$(BIN)/python -m pytest tests/unit/test_pool_races.py

test-aarch64: $(VENV)/.dev
	sh scripts/test_aarch64.sh $(BIN)/python

test-latest: $(VENV)/.dev
	$(BIN)/python scripts/test_latest.py --environment $(VENV)-latest $(TESTS)

test-debian:
	sh scripts/test_debian.sh $(or $(RELEASE),trixie) $(TESTS)

# The kernels, a CUDA graph and the tensorrt engine on this machine's GPU; elsewhere it says what lacks.
test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -s -rs tests/gpu/test_on_gpu.py

SECONDS ?= 1200
fuzz: $(VENV)/.dev
	$(BIN)/python scripts/fuzz.py --seconds "$(SECONDS)"

coverage: $(VENV)/.dev
	rm -rf .cache/coverage && mkdir -p .cache/coverage
	-$(BIN)/coverage run -m pytest --ignore tests/oracle --ignore tests/gpu --ignore tests/live
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report --skip-covered

PACKAGE ?= session features serve builder
mutants: $(VENV)/.dev
	$(BIN)/python scripts/mutants.py --package $(PACKAGE) --n "$(or $(N),300)" \
	    --seed "$(or $(SEED),1)"

planted: $(VENV)/.dev
	$(BIN)/python scripts/mutants.py --planted

fuzz-media: $(VENV)/.dev
	$(BIN)/python scripts/fuzz_media.py --n "$(or $(N),1000)" --seed "$(or $(SEED),1)"

fuzz-files: $(VENV)/.dev
	$(BIN)/python scripts/fuzz_files.py --n "$(or $(N),2000)" --seed "$(or $(SEED),1)"

ATTACKED := .cache/attack/bundle tests/assets/session/session.mp4
attacked: $(VENV)/.dev
	@rm -rf .cache/attack/bundle && mkdir -p .cache/attack
	@$(BIN)/build-engine bundle tests/assets/tiny_omni .cache/attack/bundle --target cpu

# What it wants of other packages is not what we lock, as with the clients.
$(VENV)/.openapi: locks/openapi.txt $(VENV)/.demo
	@echo "make: installs schemathesis into $(VENV)/openapi"
	@$(PYTHON) -m venv --clear $(VENV)/openapi
	@$(VENV)/openapi/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --require-hashes --only-binary :all: -r locks/openapi.txt
	@touch $@

fuzz-api: $(VENV)/.openapi attacked
	$(BIN)/python scripts/fuzz_api.py $(VENV)/openapi/bin $(ATTACKED) --n "$(or $(N),50)" \
	    --seconds "$(if $(filter command line,$(origin SECONDS)),$(SECONDS),600)" --seed "$(or $(SEED),1)"

# As root each of the four roles is a user of its own.
attack: attacked
	$(BIN)/python scripts/attack.py $(ATTACKED) --messages "$(or $(N),1000000)" \
	    --rate "$(or $(RATE),3000)" --seed "$(or $(SEED),1)"

build/demo/bundle/manifest.json: $(VENV)/.dev
	@$(BIN)/python -c 'from edge import demo; demo.prepare(demo.files())'

fuzz-recordings: build/demo/bundle/manifest.json
	$(BIN)/python scripts/fuzz_recordings.py build/demo/bundle --n "$(or $(N),1000)" --seed "$(or $(SEED),1)"

bad-luck: build/demo/bundle/manifest.json
	$(BIN)/python scripts/bad_luck.py build/demo/bundle tests/assets/session/session.mp4 --json

# Needs as much disk as the bundle has, and removes it.
bench-start: $(VENV)/.dev
	$(BIN)/python scripts/bench_start.py --gb "$(or $(GB),18)" --rounds "$(or $(ROUNDS),3)"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy scripts/*.py
	$(BIN)/lint-imports

bundle: $(VENV)/.demo
	$(BIN)/build-engine bundle "$(CHECKPOINT)" "$(OUT)" --target cpu

# What nobody publishes is compiled, for all Pythons of the boards.
wheels: $(VENV)/.dev
	@for program in aarch64-linux-gnu-g++ apt-get dpkg; do command -v $$program >/dev/null || \
	    { echo "no $$program: apt-get install g++-aarch64-linux-gnu" >&2; exit 1; }; done
	$(BIN)/python scripts/make_release.py $(if $(KEY),--key "$(KEY)") $(if $(PYTHONS),--pythons $(PYTHONS))

export BUNDLE EXTRAS WHEELS RELEASE DESTDIR KEEP_DATA
install:
ifdef HOST
ifdef RELEASE
	ssh "$(HOST)" 'rm -rf .cache/omni-edge && mkdir -p .cache/omni-edge && \
	    tar x -C .cache/omni-edge --strip-components=1' <"$(RELEASE)"
	ssh -t "$(HOST)" 'sudo BUNDLE="$(BUNDLE)" EXTRAS="$(EXTRAS)" sh .cache/omni-edge/install.sh'
else
	tar cz --exclude=./.git --exclude='./.venv*' --exclude=./build --exclude=./dist --exclude=./.cache . | ssh "$(HOST)" \
	    'mkdir -p .cache/omni-edge && tar xz -C .cache/omni-edge'
	ssh -t "$(HOST)" 'sudo BUNDLE="$(BUNDLE)" EXTRAS="$(EXTRAS)" sh .cache/omni-edge/jetson/install.sh'
endif
else
	sh jetson/install.sh
endif

uninstall:
	sh jetson/uninstall.sh

deb:
	sh jetson/make_deb.sh

test-release: wheels
	PYTHON="$(abspath $(BIN)/python)" sh tests/install/in_arm64.sh $(SUITES)

test-deb: $(VENV)/.demo
	sh tests/install/in_debian.sh $(BIN)/build-engine

# ROWS='boot|reload' runs those whose names match, behind the two that install; with JOURNAL_S=1800
# half an hour of the journal is measured, not two minutes.
test-systemd: $(VENV)/.demo
	@sh scripts/install_test_media.sh
	nice $(BIN)/python tests/systemd/on_systemd.py --rows '$(ROWS)'

goldens: $(VENV)/.oracle
	$(BIN)/python scripts/make_goldens.py

clean:
	rm -rf --one-file-system $(VENV) $(VENV)-latest build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
