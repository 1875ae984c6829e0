# make demo: the main job on songs that the project composes itself. make test: everything that CI checks.
# make bench: every comparison of speed, an hour on two cores (benchmarks/README.md).
# make docs: the documentation as a site in site/, which opens without a server.
# make notebooks: runs the notebooks, three minutes each at most, and keeps them with their pictures and sounds.
# All do all of the set-up themselves; a second run starts at once.
PYTHON ?= python3
BIN := .venv/bin
# Installs a Debian package where that is permitted without a question.
sudo = $$(test "$$(id -u)" = 0 || echo sudo -n)
apt = $(sudo) apt-get update -qq && $(sudo) apt-get install -y -qq $(1)

.PHONY: setup demo test bench docs notebooks lint types clean ffmpeg chromium

setup: .venv/installed ffmpeg

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "stemwise needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { $(call apt,python3-venv) && $(PYTHON) -m venv .venv; } \
		|| { echo "stemwise needs Python's venv module: sudo apt-get install python3-venv"; exit 1; }
	@echo "Installing PyTorch and the rest into .venv (5 GB, some minutes)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# musdb and museval look for both programs when they are imported.
ffmpeg:
	@command -v ffmpeg >/dev/null && command -v ffprobe >/dev/null \
		|| { $(call apt,ffmpeg); } \
		|| { echo "Evaluation needs ffmpeg: sudo apt-get install ffmpeg"; exit 1; }

# For the tests of pages. Without it they are skipped, and say so.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| { $(call apt,chromium); } \
		|| echo "The browser tests will be skipped: sudo apt-get install chromium"

demo: setup
	$(BIN)/python -m train experiment=demo hydra.run.dir=runs/demo
	$(BIN)/stemwise evaluate checkpoint=runs/demo/model.safetensors data=demo output=runs/demo/evaluation
	$(BIN)/stemwise separate data/demo/test/*/mixture.flac --model runs/demo/model.safetensors -o runs/demo/separated \
		--filename-format '{foldername}/{instrument}.{codec}' --overwrite
	@echo
	@echo "Songs:    data/demo            (mixture and stems; test/ was held out)"
	@echo "Model:    runs/demo/model.safetensors"
	@echo "Scores:   runs/demo/evaluation/report.html  (model, unprocessed mixture, oracle; songs to listen to)"
	@echo "Listen:   runs/demo/separated"
	@echo "Next:     source .venv/bin/activate"
	@echo "          stemwise separate YOUR_SONG.mp3 --model runs/demo/model.safetensors -o out"
	@echo "          python -m train data=folders data.root=YOUR_SONGS    (data/folders.md)"

# Two processes share the test files; TESTS= runs all in one, as plain pytest does.
TESTS ?= -n 2 --dist loadfile --no-loadscope-reorder
test: setup chromium lint types
	$(BIN)/python -m pytest $(TESTS)

# Each part is a command of its own, and goes on if another fails.
BENCHMARKS := ceilings train_speed input_pipeline separate scaling evaluate gpu
bench: setup
	@failed=; \
	for part in $(BENCHMARKS); do \
		echo "== benchmarks/$$part.py"; \
		$(BIN)/python benchmarks/$$part.py || failed="$$failed $$part"; \
	done; \
	$(BIN)/python benchmarks/summary.py || failed="$$failed summary"; \
	test -z "$$failed" || { echo "These failed:$$failed"; exit 1; }

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "Open site/index.html"

# Each has three minutes, on two cores that do nothing else; LIMIT= gives more.
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
LIMIT ?= 180
notebooks: setup
	@for notebook in $(NOTEBOOKS); do \
		began=$$(date +%s); \
		timeout $(LIMIT) $(BIN)/python -m nbconvert --log-level WARN --KernelManager.transport_encryption=auto \
			--to notebook --execute --output-dir runs/notebooks $$notebook || { code=$$?; \
			test $$code != 124 || echo "$$notebook: not done after $(LIMIT) s. On a slower machine: make notebooks LIMIT=600"; \
			exit $$code; }; \
		echo "$$notebook: $$(($$(date +%s) - began)) s"; \
	done
	@echo
	@echo "Look and listen:  $(BIN)/jupyter lab runs/notebooks"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf .venv build dist site src/*.egg-info
