# Two commands do everything on a machine that has Python 3.10 or newer and make:
#   make quickstart   raw text -> trained model -> its loss curve, scores and samples, in minutes on a CPU
#   make test         the tests

PYTHON ?= python3
RUN = .venv/bin/python

.PHONY: quickstart test lint clean

quickstart: .venv/ready
	$(RUN) prepare.py python
	$(RUN) train.py config/quickstart.py
	$(RUN) eval.py --out_dir=out-quickstart
	$(RUN) sample.py --out_dir=out-quickstart --start='class Node:' --temperature=0.7 --num_samples=3 --max_new_tokens=200
	@echo 'the loss curve is out-quickstart/loss.png'

test: .venv/ready
	$(RUN) -m pytest

lint: .venv/ready
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

clean:
	rm -rf out-quickstart .pytest_cache .ruff_cache .hypothesis __pycache__ */__pycache__

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
