# Two commands do everything on a machine that has Python 3.10 or newer and make:
#   make quickstart   raw text -> trained model -> its loss curve, scores and samples, in minutes on a CPU
#   make test         the tests

PYTHON ?= python3
RUN = .venv/bin/python
INSTALL = $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test test-long lint clean

quickstart: .venv/ready
	$(RUN) prepare.py python
	$(RUN) train.py config/quickstart.py
	$(RUN) eval.py --out_dir=out-quickstart
	$(RUN) sample.py --out_dir=out-quickstart --start='class Node:' --temperature=0.7 --num_samples=3 --max_new_tokens=200
	@echo 'the loss curve is out-quickstart/loss.png'

test: .venv/ready-dev
	$(RUN) -m pytest

# about an hour on 2 cores, most of it layouts.py; full_disk.py needs root, planted.py downloads GPT-2's vocabulary
test-long: .venv/ready-dev
	$(INSTALL) -r tests/long/requirements.txt
	$(RUN) -m pytest tests/long
	$(RUN) tests/long/kill_prepare.py
	$(RUN) tests/long/kill_train.py
	$(RUN) tests/long/fuzz_run.py
	$(RUN) tests/long/full_disk.py
	$(RUN) tests/long/compare_datatrove.py
	$(RUN) tests/long/layouts.py
	$(RUN) tests/long/planted.py --megabytes=20

lint: .venv/ready-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

clean:
	rm -rf out-quickstart .pytest_cache .ruff_cache .hypothesis __pycache__ */__pycache__ tests/long/__pycache__

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(INSTALL) -r requirements-dev.txt
	touch $@
