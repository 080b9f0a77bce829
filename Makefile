# Every target makes .venv and installs what it needs, once: a second call starts at once.
# make PYTHON=python3.12 PIP_ARGS="--index-url ..." TEST_ARGS="-k layout -x" BENCH_ARGS="--device cuda"
# make test TORCH=2.15.0 TRITON=3.9.0   other versions, in an environment of their own; set on the command line only
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
TEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
MINUTES ?= 30
PYTHONS ?= 3.10 3.11 3.12 3.13 3.14
BESIDE ?= 2.13.0 2.15.0
TRITONS ?= 3.6.0 3.9.0
FUZZ_ARGS ?=
SOAK_ARGS ?=

TORCH :=
TRITON :=
ifneq ($(TORCH)$(TRITON),)
  ifeq ($(and $(TORCH),$(TRITON)),)
    $(error name both: make test TORCH=... TRITON=...)
  endif
  MAIN := $(VENV)
  MAIN_PYTHON := $(PYTHON)
  override VENV := $(VENV)-torch$(TORCH)-triton$(TRITON)
  override PYTHON = $(MAIN)/bin/python
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_ARGS)
NATIVE := setup.py pyproject.toml $(shell find csrc -type f 2>/dev/null)
CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# what these ask for would bring another torch
$(VENV)/.installed-no-deps: private PIP += --no-deps

.PHONY: help build demo test test-quick lint docs bench ptx ptx-tritons ptx-traffic ptx-mutants fuzz soak wheel wheels clean
.DELETE_ON_ERROR:

help:
	@echo "make build       the environment .venv with an editable install of the library in it"
	@echo "make demo        one rate or rates by part: a photograph and a small GPT; some minutes"
	@echo "make test-quick  a sample of the tests, of every package: before each commit"
	@echo "make test        run all tests, in two processes"
	@echo "make lint        ruff, clang-format and mypy, check only"
	@echo "make docs        the guide and the API reference as a site, in build/site; warnings are errors"
	@echo "make bench       throughput against torch and other optimizers"
	@echo "make ptx         run what both compilers emit for a GPU on the CPU, with checks; minutes"
	@echo "make ptx-tritons the same of what TRITONS=\"$(TRITONS)\" emit, beside the torch that is here"
	@echo "make ptx-traffic bytes that the kernels' warps touch, as in docs/kernels.md; CASE=\"Adam, 8bit\" by instruction"
	@echo "make ptx-mutants changes of the kernels, and which check catches each; minutes; CASE=statistics for some"
	@echo "make fuzz        random lives of optimizers, for MINUTES=30; says how to repeat what fails"
	@echo "make soak        kills, many steps, many groups, no memory: SOAK_ARGS=\"--only kills\""
	@echo "make wheel       source distribution and wheel for one Python, in dist/, tried in an empty environment"
	@echo "make wheels      the same for PYTHONS=\"$(PYTHONS)\" where they are found, beside torch"
	@echo "                 BESIDE=\"$(BESIDE)\", some gigabytes: what is uploaded, see CONTRIBUTING.md"
	@echo "make clean       remove what was built; .venv stays"
	@echo
	@echo "make test TORCH=2.15.0 TRITON=3.9.0   the same tests with these versions, in .venv-torch2.15.0-triton3.9.0:"
	@echo "                 some gigabytes, not for CI. A pip that is held to other versions has to be told otherwise,"
	@echo "                 e.g. by PIP_CONSTRAINT= or PIP_ARGS=\"--index-url ...\". The native modules are those of .venv."

build: $(VENV)/.built

demo: $(VENV)/.built $(VENV)/.installed-demo
	$(BIN)/python -m stackelberg_fused demo $(DEMO_ARGS)

TESTED := $(VENV)/.built $(addprefix $(VENV)/.installed-,demo docs test integrations no-deps)
# in the order of tests/conftest.py, where the largest groups, which are the slowest, do not all come first
PYTEST = $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder

# what several tests need is compiled before them, with a line for each file, instead of silence in the first of them
test: $(TESTED)
	$(CHECK_VERSIONS)
	PYTHONPATH=tests/support $(BIN)/python -m host_cuda.build
	PYTHONPATH=tests/support:tests $(BIN)/python -m ptx.nvcc_build
	$(PYTEST) $(TEST_ARGS)

test-quick: $(TESTED)
	$(CHECK_VERSIONS)
	PYTHONPATH=tests/support $(BIN)/python -m host_cuda.build --quick
	PYTHONPATH=tests/support:tests $(BIN)/python -m ptx.nvcc_build
	$(PYTEST) --quick $(TEST_ARGS)

lint: $(VENV)/.installed-lint $(VENV)/.installed-run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

docs: $(VENV)/.built $(VENV)/.installed-docs
	$(BIN)/python docs/site/build.py

bench: $(VENV)/.built $(VENV)/.installed-demo $(VENV)/.installed-test
	$(BIN)/python -m stackelberg_fused bench $(BENCH_ARGS)

# what nvcc and Triton emit, run on the CPU: all of it, where `make test` runs a selection
ptx: $(TESTED)
	$(PYTEST) --ptx tests/ptx $(TEST_ARGS)

# other versions of Triton, of which nothing but the compiler is used: the torch of $(VENV) stays as it is
OTHER_TRITONS := $(TRITONS:%=$(VENV)/triton-%/.installed)
$(OTHER_TRITONS): $(VENV)/triton-%/.installed: $(VENV)/.created
	$(PIP) --no-deps --upgrade --target $(@D) triton==$*
	touch $@

ptx-tritons: $(TESTED) $(OTHER_TRITONS)
	set -e; for triton in $(TRITONS); do echo "Triton $$triton"; PYTHONPATH=$(VENV)/triton-$$triton \
		$(PYTEST) --ptx tests/ptx --ignore tests/ptx/test_mutations.py --ignore tests/ptx/test_traffic.py -k triton $(TEST_ARGS); \
	done

ptx-traffic: $(TESTED)
	PYTHONPATH=tests/support:tests $(BIN)/python -m ptx.traffic $(if $(CASE),"$(CASE)")

ptx-mutants: $(TESTED)
	PYTHONPATH=tests/support:tests $(BIN)/python -m ptx.mutations $(if $(CASE),"$(CASE)")

fuzz: $(TESTED)
	PYTHONPATH=tests/support $(BIN)/python -m host_cuda.build --quick
	PYTHONPATH=tests/support $(BIN)/python -m fuzz --minutes $(MINUTES) $(FUZZ_ARGS)

soak: $(TESTED)
	$(BIN)/python tests/soak/soak.py $(SOAK_ARGS)

# after .built, so that one Python's objects are there
wheel: $(VENV)/.built $(VENV)/.installed-wheels
	$(BIN)/python release/wheels.py --pip-args="$(PIP_ARGS)"

wheels: $(VENV)/.built $(VENV)/.installed-wheels
	$(BIN)/python release/wheels.py --pythons $(PYTHONS) --beside $(BESIDE) --pip-args="$(PIP_ARGS)"

clean:
	rm -rf build dist *.egg-info stackelberg_fused/*.so stackelberg_fused/_build_info.json $(VENV)/.built

$(VENV)/.created: $(if $(MAIN),| $(MAIN)/.built)
	$(PYTHON) -m venv $(VENV)
	touch $@

ifndef MAIN
# nothing may bring another torch: pip then fails instead
$(VENV)/.installed-%: requirements/%.txt $(VENV)/.created
	$(PIP) --constraint requirements/run.txt -r $<
	touch $@

# no build isolation, no dependencies: pip would fetch a second torch otherwise
$(VENV)/.built: $(NATIVE) $(VENV)/.installed-build $(VENV)/.installed-run
	$(PIP) --no-build-isolation --no-deps -e .
	touch $@
	$(BIN)/python -m stackelberg_fused doctor
else
# torch first, and nothing after it may bring another one; triton is not the one that torch asks for
HELD := $(VENV)/versions.txt
# the interpreter of Triton 3.4 takes arrays of one element for scalars, which NumPy 2.4 refuses
NUMPY := $(if $(filter 3.4.%,$(TRITON)),numpy<2.4)
$(VENV)/.installed-run: requirements/run.txt $(VENV)/.created
	printf 'torch==%s\ntriton==%s\n%s\n' $(TORCH) $(TRITON) '$(NUMPY)' > $(HELD)
	$(PIP) torch==$(TORCH)
	$(PIP) --no-deps triton==$(TRITON)
	grep -v -e '^torch==' -e '^triton==' $< > $(VENV)/rest.txt
	$(PIP) --constraint $(HELD) -r $(VENV)/rest.txt
	touch $@

$(VENV)/.installed-%: requirements/%.txt $(VENV)/.installed-run
	$(PIP) --constraint $(HELD) -r $<
	touch $@

# native modules know no torch: those that the main environment built lie in the source tree, and Python is the same
$(VENV)/.built: $(MAIN)/.built $(VENV)/.installed-build $(VENV)/.installed-run
	cp -R $(MAIN)/lib/python*/site-packages/*stackelberg_fused* $(VENV)/lib/python*/site-packages/
	touch $@

$(MAIN)/.built: FORCE
	$(MAKE) TORCH= TRITON= VENV=$(MAIN) PYTHON=$(MAIN_PYTHON) $@
FORCE:

CHECK_VERSIONS = $(BIN)/python -c "import sys; from importlib.metadata import version; \
	found = {p: version(p.split('==')[0]) for p in sys.argv[1:]}; \
	sys.exit('; '.join(f'{p} was wanted, {v} is installed' for p, v in found.items() if v.split('+')[0] != p.split('==')[1]) or 0)" \
	torch==$(TORCH) triton==$(TRITON)
endif
