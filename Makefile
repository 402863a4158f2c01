# Thin names for the commands of the README.
PYTHON ?= python3
PROFILE ?= sandbox
RUN_DIR ?= runs/$(PROFILE)
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: setup reproduce test test-long test-endurance test-browser test-clean docs lint lock figures notebooks publish base-policies evidence evidence-medium evidence-large asset clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev,notebooks]'
	@touch $@

# train both methods, evaluate, draw: into $(RUN_DIR)
reproduce: setup
	$(RUN) -m amir_grpo reproduce --profile $(PROFILE) --run_dir "$(RUN_DIR)"

test: setup
	$(RUN) -m pytest -n 2 --dist loadgroup

# what the suite tests at one point, at all of them: math libraries, sharded weights, kills; and a reproduction from the wheel
test-long: setup
	$(RUN) -m pytest -n 2 --dist loadgroup -m long

# whole commands killed at twenty random moments, and the committed notebooks against a whole fresh run: an hour and more
test-endurance: setup
	$(RUN) -m pytest -m endurance

# every notebook in JupyterLab, the page of a run and the docs, in Chromium: the system's, or else the one that Playwright brings
test-browser: setup
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[browser,docs]'
	@command -v chromium chromium-browser google-chrome >/dev/null || test -n "$$CHROMIUM" || .ci/chromium $(RUN)
	$(RUN) -m pytest -m browser tests/test_browser.py
	$(RUN) -m pytest -m browser tests/test_docs.py

# the README's commands without rights, home, network or a writable tree; as root
test-clean:
	.ci/clean

# the pages of docs/ as a site, into docs/_build/html; a warning is an error
docs: setup
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(RUN) -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

# requirements.lock: what constraints.txt pins, with the hashes of every file, for all platforms
lock: setup
	$(RUN) -m pip install --quiet uv
	$(RUN) -m uv pip compile pyproject.toml --universal --python-version 3.11.7 --extra dev --extra notebooks \
	  --constraint constraints.txt --generate-hashes --no-emit-index-url --no-annotate --quiet \
	  --custom-compile-command "make lock" --output-file requirements.lock

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# every figure of figures/, from the tables in data/
figures: setup
	$(RUN) -m tools.gallery

# execute the committed notebooks again, from what runs/sandbox holds
notebooks: reproduce
	for name in notebooks/*.ipynb; do \
	  $(RUN) -m papermill $$name $$name --cwd notebooks --kernel python3 --no-progress-bar || exit 1; \
	done
	$(RUN) -m tools.gallery --tidy notebooks

# keep the results of runs/sandbox: tables into data/results/sandbox, figures into figures/, notebooks executed
publish: notebooks
	$(RUN) -m tools.gallery --keep runs/sandbox

# the six base policies that come with the package; minutes each
base-policies: setup
	$(RUN) -m amir_grpo.sandbox.base

# the runs behind the claims: the pilot, the confirmation, and the second plan. About 100 s of CPU time per run, 340, 150 and 96 runs: hours;
# shows the time left, and goes on where it stopped. Kept results are not made again: to make all again, add to EVIDENCE:
# --results runs/again
EVIDENCE ?=
evidence: setup
	$(RUN) -m amir_grpo evidence --study pilot $(EVIDENCE)
	$(RUN) -m amir_grpo evidence --study confirmation $(EVIDENCE)
	$(RUN) -m amir_grpo evidence --study fresh $(EVIDENCE)

# the main comparisons with larger policies: 1M parameters on a CPU, about 5 minutes of CPU time per run; 26M on a GPU
MAIN = clean/grpo clean/published clean/mixture-0.6 clean/two-step-grpo
evidence-medium evidence-large: evidence-%: setup
	$(RUN) -m amir_grpo evidence --profile sandbox-$* --folder runs/pilot-$* --results runs/pilot-$*/kept --arms $(MAIN)

# completions, rollouts and adapters of a study's runs as one archive with a data card, to attach to a release
STUDY ?= confirmation
asset:
	runs=$$(ls -d runs/$(STUDY)/*.seed* | wc -l) && sed -e "s/STUDY/$(STUDY)/g; s/RUNS/$$runs/; s/COMMIT/$$(git rev-parse HEAD)/" \
	  tools/asset_card.md > runs/$(STUDY)/README.md
	tar --exclude=.cache --exclude=.locks --exclude='*.parts' --exclude=checkpoints -cJf amir-grpo-$(STUDY).tar.xz -C runs $(STUDY)
	ls -lh amir-grpo-$(STUDY).tar.xz

clean:
	rm -rf $(VENV) runs docs/_build docs/notebooks
