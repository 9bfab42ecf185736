PYTHON ?= python3
BIN := .venv/bin
RUNS := runs/demo

.PHONY: install demo deploy-demo test test-faults soak gpu-proof lint

install: .venv/installed

# Re-made only when the dependencies may have changed; the package itself is editable.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fedmutual needs Python 3.11 or newer: run make PYTHON=python3.11 install" >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: install
	rm -rf $(RUNS)/mutual $(RUNS)/isolated
	$(BIN)/fedmutual simulate digits -s beta-rule=auto --out $(RUNS)/mutual
	$(BIN)/fedmutual simulate digits -s beta=0 --out $(RUNS)/isolated
	$(BIN)/fedmutual report $(RUNS)/mutual $(RUNS)/isolated --out $(RUNS)/report.html

deploy-demo: install
	rm -rf $(RUNS)/deployed
	$(BIN)/fedmutual deploy-demo --out $(RUNS)/deployed

soak: install
	rm -rf $(RUNS)/soak
	$(BIN)/fedmutual soak --out $(RUNS)/soak

# Needs no installation, only what the command names when it is missing; OUT is gone on with.
gpu-proof:
	$(PYTHON) -m simulations.upkeep.gpu_proof $(or $(OUT),runs/gpu-proof)

# Two at a time: much of what tests do is to wait for processes that start. Three on two cores take longer.
test: install lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-faults: install
	$(BIN)/python -m pytest -m faults

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
