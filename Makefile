# Every target sets up what it needs; `make help` lists them. tch's C++ takes minutes to compile, so the library, its tests
# and the lints share one profile (release).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO := tools/cargo.sh
PYTHON_VENV := .venv/bin/python
PARITY := $(CURDIR)/target/parity
# The environment with diffusers, for parity and bench. Set it to use one that exists already.
REFERENCE_VENV ?= $(CURDIR)/.venv-reference
# CUDA=1 puts libtorch's CUDA libraries into dist/backends/diffusion too: 3 GB, of which 2 GB are downloaded the first time.
CUDA ?=
# Measurements of each contender in the benches: make bench ROUNDS=5
ROUNDS ?= 3
# The model repository of `make serve`.
MODELS ?= model_repository
# SERVE=1 lets the demo's server run on, at ports 8000 to 8002, with the gateway's page at 8080.
SERVE ?=
# The Python of `make gpu-check`: with PyTorch for CUDA, numpy, Pillow and safetensors.
GPU_PYTHON ?= python3
# Further arguments of `make gpu-check`: make gpu-check GPU_CHECK_ARGS='--quick --json result.json'
GPU_CHECK_ARGS ?=
# Further arguments for pytest and for the cargo tests: make test PYTEST_ARGS='-k cancel' TEST_ARGS='--test goldens'
PYTEST_ARGS ?=
TEST_ARGS ?=

# OpenMP's threads wait for each other by spinning, which is slow on a machine with other work. Tests and demo spin for a
# short time and then sleep. The images are the same.
export GOMP_SPINCOUNT ?= 10000

# Property tests use the same cases in every run, so a failure comes from a change of the code. For other cases:
# make test-rust PROPTEST_RNG_SEED=$RANDOM
export PROPTEST_RNG_SEED ?= 1

TENSOR_FREE_CRATES := --package diffusion_core --package diffusion_image --package diffusion_request --package diffusion_engine --package diffusion_kernels --package diffusion_gateway --package test_support

.PHONY: help pretend setup setup-reference build backend wheel dist demo serve train test test-crates test-rust test-e2e test-page screenshots test-deploy test-gpu-check test-packages test-repository gpu-check soak chaos fuzz tiles check-cuda lint sanitize deny parity setup-bench bench bench-full-size bench-report clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install the pinned packages into .venv and link target/libtorch
	@tools/setup.sh

setup-reference: ## make .venv-reference with diffusers (3 GB), for parity and bench
	@REFERENCE_VENV='$(REFERENCE_VENV)' tools/setup_reference.sh

build: setup ## target/release: libtriton_diffusion.so, and the command triton-diffusion
	$(CARGO) build --release --package triton-diffusion --package triton-diffusion-cli

backend: build ## dist/backends/diffusion, for tritonserver --backend-directory=dist/backends; dist/bin/triton-diffusion
	@CUDA='$(CUDA)' tools/backend.sh

wheel: backend ## dist/triton_diffusion-*.whl: the library and the command for pip, with libtorch from the package torch
	@$(PYTHON_VENV) tools/build_wheel.py

dist: backend ## dist/triton-diffusion-*.tar.gz, for /opt/tritonserver/backends; with CUDA=1 for GPUs too
	@$(PYTHON_VENV) tools/build_archive.py $(if $(filter-out 0,$(CUDA)),--cuda)

demo: backend ## one image through four models, and a LoRA, to demo.png and demo.html; with SERVE=1 then a page
	@$(PYTHON_VENV) demo/run.py $(if $(SERVE),--serve)

serve: backend ## serve a model repository on loopback: make serve MODELS=model_repository
	@$(PYTHON_VENV) tools/server.py $(MODELS)

train: setup-reference ## train the demo's checkpoints and LoRA anew (hours on 2 cores; goes on where it was stopped)
	'$(REFERENCE_VENV)/bin/python' -m pip install --quiet --no-deps -r demo/train/requirements.txt
	'$(REFERENCE_VENV)/bin/python' demo/train/run.py --work target/train --out demo/models

# In this order: test-rust builds the library with planned failures in it, test-e2e builds and serves it without.
test: test-rust ## all tests: Rust, end to end against a real tritonserver, the page, deployment, GPU check, repository
	@$(MAKE) --no-print-directory test-e2e test-page test-deploy test-gpu-check test-repository

# The GPU path runs on a pretend GPU.
pretend: setup ## compile target/pretend/libtorch_cuda.so, the pretend GPU of the tests
	@tools/pretend_cuda.sh

test-rust: pretend test-crates
	$(CARGO) test --release --package triton-diffusion --package triton-diffusion-cli --package triton_api --package triton_fake \
	  --features triton-diffusion/failpoints $(TEST_ARGS)

# A debug build, with overflow checks, in seconds.
test-crates: ## the tests of the crates without Triton and tensors; they need no libtorch
	env -u LIBTORCH cargo test $(TENSOR_FREE_CRATES)

test-e2e: backend
	$(PYTHON_VENV) -m pytest tests/e2e $(PYTEST_ARGS)

test-page: backend ## the gateway's page in Chromium (installed with apt-get if it is missing and you are root)
	chromium="$$(tools/chromium.sh)"; CHROMIUM="$$chromium" $(PYTHON_VENV) -m pytest tests/page $(PYTEST_ARGS)

screenshots: backend ## the screenshots of the page in docs/images, anew
	chromium="$$(tools/chromium.sh)"; CHROMIUM="$$chromium" $(PYTHON_VENV) tools/page_screenshots.py

test-packages: backend ## the wheel and the archive, installed in temporary folders (about a minute)
	$(PYTHON_VENV) -m pytest tests/packages $(PYTEST_ARGS)

test-deploy: setup
	$(PYTHON_VENV) -m pytest tests/deploy $(PYTEST_ARGS)

test-gpu-check: backend
	$(PYTHON_VENV) -m pytest tests/gpu_check $(PYTEST_ARGS)

test-repository: setup
	$(PYTHON_VENV) -m pytest tests/repository $(PYTEST_ARGS)

# The second command has failures that the check arms.
gpu-check: backend ## images, speed and memory on the GPU of this machine (below 9 minutes): docs/gpu.md
	$(CARGO) build --release --package triton-diffusion-cli --features failpoints
	strip --strip-debug -o dist/bin/triton-diffusion-failpoints target/release/triton-diffusion
	$(GPU_PYTHON) tools/gpu_check $(GPU_CHECK_ARGS)

soak: backend ## eight clients that load, infer and unload at random for five minutes
	TRITON_DIFFUSION_SOAK_SECONDS=300 $(PYTHON_VENV) -m pytest tests/e2e/test_soak.py $(PYTEST_ARGS)

# A library in which the test plants failures.
CHAOS_SECONDS ?= 600
chaos: backend ## clients that cancel, disconnect and send rubbish next to good ones, and planted failures, for 10 minutes
	$(CARGO) build --release --lib --features failpoints
	rm -rf dist/chaos && mkdir -p dist/chaos && cp -al dist/backends/diffusion dist/chaos/diffusion
	rm dist/chaos/diffusion/libtriton_diffusion.so
	strip --strip-debug -o dist/chaos/diffusion/libtriton_diffusion.so target/release/libtriton_diffusion.so
	TRITON_DIFFUSION_CHAOS_SECONDS=$(CHAOS_SECONDS) $(PYTHON_VENV) -m pytest tests/chaos $(PYTEST_ARGS)

# The fuzzer needs a nightly compiler. FUZZ_SECONDS is for each target; new inputs go to target/fuzz/corpus.
FUZZ_SECONDS ?= 900
FUZZ_TARGETS ?= bytes gen_args prompt base64 image safetensors adapter tokenizer config
fuzz: setup ## the fuzzer, 15 minutes for each target (installs a nightly toolchain and cargo-fuzz)
	rustup toolchain install nightly --profile minimal
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p "target/fuzz/corpus/$$target"; \
	  LD_LIBRARY_PATH="$(CURDIR)/target/libtorch/lib" $(CARGO) +nightly fuzz run --fuzz-dir fuzz --target-dir target/fuzz $$target \
	    "target/fuzz/corpus/$$target" "fuzz/corpus/$$target" -- -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=4096 \
	    -print_final_stats=1; \
	done

tiles: setup ## the upscaler with tiles against the upscaler without, 512x512 to 2048x2048 (some minutes)
	TRITON_DIFFUSION_TILES_SIDE=512 $(CARGO) test --release --features failpoints --test upscaler_tiles -- --nocapture

lint: setup ## rustfmt, clippy, rustdoc, ruff, typos and the rules for imports, warnings as errors
	.venv/bin/typos
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	$(CARGO) fmt --all -- --check
	env -u LIBTORCH cargo test --package test_support --test architecture
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	$(CARGO) clippy --release --workspace --all-targets --features triton-diffusion/failpoints,triton-diffusion-cli/failpoints -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --workspace --no-deps

# Offline, after the fetch: what it checks is in Cargo.lock and in the crates themselves.
# Miri interprets the portable kernels only, and not the tests of large shapes. Its leak check would report the pool, which
# lives for the process.
sanitize: ## the CPU kernels under Miri, AddressSanitizer and ThreadSanitizer (installs a nightly toolchain; 10 minutes)
	rustup toolchain install nightly --profile minimal --component miri,rust-src
	MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-ignore-leaks' cargo +nightly miri test --package diffusion_kernels --target-dir target/miri \
	  -- small_ limit_of_one kernel_in_a_task panic_of_a_task exp2_below
	RUSTFLAGS=-Zsanitizer=address cargo +nightly test --release --package diffusion_kernels --lib --test kernels \
	  --target x86_64-unknown-linux-gnu --target-dir target/address
	RUSTFLAGS=-Zsanitizer=thread cargo +nightly test -Zbuild-std --release --package diffusion_kernels --lib --test kernels \
	  --target x86_64-unknown-linux-gnu --target-dir target/thread

deny: ## licenses, sources and duplicate versions of the crates (cargo-deny, installed if it is missing)
	command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo fetch --locked
	cargo deny --offline --log-level error check licenses bans sources

# The operators come from the pretend GPU, which runs all pipelines in its own process.
check-cuda: pretend ## the GPU path against libtorch's CUDA libraries, without a driver or a GPU (installs them the first time)
	@$(MAKE) --no-print-directory backend CUDA=1
	@tools/check_cuda.sh
	$(CARGO) test --release --features failpoints --test check_cuda -- --ignored --test-threads=1

parity: backend setup-reference ## run diffusers and this backend on this machine and demand equal bytes
	'$(REFERENCE_VENV)/bin/python' tests/gpu_check/eager_parity.py
	'$(REFERENCE_VENV)/bin/python' tools/reference/make_goldens.py --out '$(PARITY)'
	TRITON_DIFFUSION_PARITY='$(PARITY)' $(CARGO) test --release --features failpoints --test goldens -- --nocapture
	TRITON_DIFFUSION_PARITY='$(PARITY)' $(PYTHON_VENV) -m pytest tests/e2e/test_goldens.py
	'$(REFERENCE_VENV)/bin/python' tools/reference/check_converted_loras.py

setup-bench: setup-reference ## make .venv-bench with the peers of the benches
	@REFERENCE_VENV='$(REFERENCE_VENV)' tools/setup_bench.sh

BENCH_OPTIONS = --reference-venv '$(REFERENCE_VENV)'
BENCH = $(PYTHON_VENV) benches

bench: backend setup-bench ## compare with diffusers in the Python backend, OpenVINO and stable-diffusion.cpp (30 minutes)
	$(BENCH)/whole.py $(BENCH_OPTIONS) --rounds $(ROUNDS) --name tiny --checkpoint tiny --side 128 --steps 20 --images 4
	$(BENCH)/whole.py $(BENCH_OPTIONS) --rounds $(ROUNDS) --name tiny_four_clients --checkpoint tiny --side 128 --steps 20 --clients 4 --images 3
	$(BENCH)/load_time.py $(BENCH_OPTIONS) --rounds $(ROUNDS) --name load_tiny --checkpoint tiny
	$(BENCH)/many_models.py $(BENCH_OPTIONS) --name models_tiny --checkpoint tiny --count 20
	$(BENCH)/neighbors.py $(BENCH_OPTIONS) --rounds $(ROUNDS)
	$(BENCH)/mixed_load.py $(BENCH_OPTIONS) --rounds $(ROUNDS)
	$(BENCH)/gateway.py $(BENCH_OPTIONS)
	$(BENCH)/psnr.py $(BENCH_OPTIONS)
	$(BENCH)/whole.py $(BENCH_OPTIONS) --rounds $(ROUNDS) --name full_size_256 --checkpoint full_size --side 256 --steps 4
	$(BENCH)/whole.py $(BENCH_OPTIONS) --rounds $(ROUNDS) --name full_size_256_sdcpp --checkpoint full_size --side 256 --steps 4 --contenders exact,fast,sdcpp
	$(BENCH)/parts.py $(BENCH_OPTIONS) --rounds $(ROUNDS) --name parts_256 --checkpoint full_size --side 256
	@$(MAKE) --no-print-directory bench-report

bench-full-size: backend setup-bench ## the same at 512x512, memory of 3 models, and how cost grows (2 hours, 20 GB of memory, 15 GB of disk)
	$(BENCH)/parts.py $(BENCH_OPTIONS) --rounds $(ROUNDS) --name parts_512 --checkpoint full_size --side 512
	$(BENCH)/whole.py $(BENCH_OPTIONS) --rounds $(ROUNDS) --name full_size_512 --checkpoint full_size --side 512 --steps 20
	$(BENCH)/whole.py $(BENCH_OPTIONS) --rounds 1 --name full_size_512_sdcpp --checkpoint full_size --side 512 --steps 20 --contenders exact,fast,sdcpp
	$(BENCH)/stable_diffusion_cpp_flags.py $(BENCH_OPTIONS) --name flags_512 --side 512
	$(BENCH)/many_models.py $(BENCH_OPTIONS) --name models_full_size --checkpoint full_size --count 3 --side 256
	$(BENCH)/approximations.py $(BENCH_OPTIONS) --rounds $(ROUNDS)
	$(BENCH)/growth.py $(BENCH_OPTIONS) --name growth_full_size --checkpoint full_size
	@$(MAKE) --no-print-directory bench-report

bench-report: setup-bench ## write the results in target/bench to docs/benchmarks.md and its plot
	.venv-bench/bin/python benches/report.py

clean: ## remove what was built; the virtual environments stay
	rm -rf target dist demo.png demo.html
