# make demo, make app, make test, make lint: each makes .venv when it is missing and is quick when it is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo app test test-all test-older test-oldest site wheel lint format clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,recipe]'
	touch $@

demo: $(STAMP)
	$(BIN)/hyperbrush demo --out demo

app: $(STAMP)
	$(BIN)/hyperbrush serve

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The embedded model must open under an older transformers too: packages beside the pinned ones, in .older.
test-older: $(STAMP)
	test -d .older || $(BIN)/python -m pip install --quiet --no-deps --target .older \
		transformers==4.49.0 diffusers==0.32.2 huggingface-hub==0.29.3 tokenizers==0.21.1 requests tqdm
	$(BIN)/python tests/older/check.py save .older
	PYTHONPATH=.older $(BIN)/python tests/older/check.py compare .older

# The whole suite with the oldest versions that pyproject.toml allows, in .oldest; torch alone is the pinned one.
test-oldest: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	test -d .oldest || $(BIN)/python -m venv --without-pip .oldest
	$(BIN)/python -m pip download --quiet --no-deps --dest .oldest/wheels torch==2.13.0
	echo torch==2.13.0 > .oldest/torch.txt
	$(BIN)/uv pip install --quiet --python .oldest --find-links .oldest/wheels --resolution lowest-direct \
		--override .oldest/torch.txt -e '.[dev,recipe]'
	.oldest/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

# The docs as a site, in site/.
site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What people install: built, looked into, installed where nothing else is, and a first picture.
wheel: $(STAMP)
	$(BIN)/python release/check.py

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
