# `make quickstart` distils a student in minutes, `make test` runs the tests, `make check` what a reviewer's tools say.
# `make sweeps` and `make report` follow on a quickstart: the paper's ablations, and everything measured on one page.
# Each sets up .venv first where it is missing. PYTHON=python3.12 make test: another interpreter.

PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.13.0

.PHONY: quickstart sweeps report test coverage soak check

# Anew, but for the teacher's weights. The memory of large tensors is kept between two uses: glibc would give it back and
# fetch it again, a fifth of the time.
quickstart: $(BIN)/hf-distil-whisper
	rm -rf $(addprefix runs/quickstart/,labelled cache cache-bf16 training student)
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 $(BIN)/python examples/quickstart/run.py

# Takes hours; an interrupted sweep resumes.
sweeps: $(BIN)/hf-distil-whisper runs/sweeps/chunks/table.md
	for sweep in configs/sweeps/*.yaml; do $(BIN)/python benchmarks/paper/sweep.py $$sweep || exit; done

# Anew for every student.
runs/sweeps/chunks/table.md: runs/quickstart/student/model.safetensors | $(BIN)/hf-distil-whisper
	rm -rf $(@D)
	$(BIN)/python benchmarks/paper/chunk_length.py \
	    --model_name_or_path runs/quickstart/student --teacher_model_name_or_path runs/quickstart/teacher \
	    --dataset.path examples/quickstart/corpus --dataset.split longform \
	    --strides 0 0.5 1 2 --output_dir $(@D)

runs/quickstart/student/model.safetensors:
	@echo "make sweeps: $@ is missing, which the sweeps start from: run \`make quickstart\` first" >&2; exit 1

SWEEPS = $(patsubst %/table.md,%,$(wildcard runs/sweeps/*/table.md))
report: $(BIN)/hf-distil-whisper
	$(BIN)/python benchmarks/paper/report.py configs/reports/quickstart.yaml $(if $(SWEEPS),--sweeps $(SWEEPS))

# Two at a time, files whole, since tests of one file share what they prepare.
test: $(BIN)/hf-distil-whisper
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not real" -n 2 --dist loadfile

# The same tests, with the lines of src that they run.
coverage: $(BIN)/hf-distil-whisper
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not real" -n 2 --dist loadfile --cov=hf_distil_whisper --cov-report=term

soak: $(BIN)/hf-distil-whisper
	SOAK_KILLS=100 $(BIN)/python -m pytest -m slow tests/pseudo_labels/test_labelling_resumed.py

check: $(BIN)/hf-distil-whisper
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

# Without a GPU torch comes first and pinned: the open range would draw a newer release with gigabytes of CUDA packages.
$(BIN)/hf-distil-whisper:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	nvidia-smi >/dev/null 2>&1 || $(BIN)/python -m pip install -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
