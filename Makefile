# Set-up, demo, report, tests, checks and documentation (site/index.html). Everything happens in .venv and site/; nothing
# else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo report test check docs fast clean

demo: .venv/installed
	$(BIN)/python -m lit_prune.experiments.loss_ablation --seeds 3

report: .venv/installed
	$(BIN)/python -m analysis.report

test: .venv/installed check docs
	$(BIN)/python -m pytest

fast: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# torch first and alone: a wider request could pull another build of it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("lit_prune needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv dist build site
