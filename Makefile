# Every target makes .venv and installs what it needs, once: a second call starts at once.
# make PYTHON=python3.12 PIP_ARGS="--index-url ..." TEST_ARGS="-k layout -x" BENCH_ARGS="--device cuda"
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
TEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_ARGS)
NATIVE := setup.py pyproject.toml $(shell find csrc -type f 2>/dev/null)
CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test lint bench wheel clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   train a small model with the fused optimizer and with torch's"
	@echo "make test   run all tests, in two processes"
	@echo "make lint   ruff and clang-format, check only"
	@echo "make bench  throughput against torch and other optimizers"
	@echo "make wheel  source distribution and wheel, in dist/"
	@echo "make clean  remove what was built; .venv stays"

demo: $(VENV)/.built $(VENV)/.installed-demo
	$(BIN)/python -m stackelberg_fused train $(DEMO_ARGS)

test: $(VENV)/.built $(VENV)/.installed-demo $(VENV)/.installed-test
	$(BIN)/pytest -n 2 --dist loadgroup $(TEST_ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

bench: $(VENV)/.built $(VENV)/.installed-demo $(VENV)/.installed-test
	$(BIN)/python -m stackelberg_fused bench $(BENCH_ARGS)

wheel: $(VENV)/.installed-build
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf build dist *.egg-info stackelberg_fused/*.so stackelberg_fused/_build_info.json $(VENV)/.built

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed-%: requirements/%.txt $(VENV)/.created
	$(PIP) -r $<
	touch $@

# no build isolation, no dependencies: pip would fetch a second torch otherwise
$(VENV)/.built: $(NATIVE) $(VENV)/.installed-build $(VENV)/.installed-run
	$(PIP) --no-build-isolation --no-deps -e .
	touch $@
	$(BIN)/python -m stackelberg_fused doctor
