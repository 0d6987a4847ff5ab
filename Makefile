# DeSKPro: two-stage offline distillation for cloth-changing person re-identification.
# `make` alone prints the targets. Every target makes the virtual environment first.
#
#   CONFIG=configs/demo.yaml   the recipe          RUN=DIR      the run folder (its own recipe, if it has one)
#   DEVICE=cpu|cuda|cuda:1     where networks run  FORCE=1      run a stage whose output exists
#   FROM=DIR                   use teacher and targets of another run
#   ARGS='--set key=value …'   anything else that `deskpro STAGE --help` lists
#   TORCH=cpu                  install torch without CUDA, 5 GB less (of the first make alone)

PYTHON ?= python3
VENV   ?= .venv
CONFIG ?= configs/demo.yaml
RUN    ?=
FROM   ?=
DEVICE ?=
FORCE  ?=
ARGS   ?=
TORCH  ?=

ready   := $(VENV)/.ready
deskpro := $(VENV)/bin/deskpro
pip     := $(VENV)/bin/python -m pip install --disable-pip-version-check
torch_cpu := https://download.pytorch.org/whl/cpu
# A run folder that has a recipe brings it, and so does that of FROM, unless CONFIG is given.
own      = $(and $(RUN),$(filter file,$(origin CONFIG)),$(shell ls '$(RUN)/config.yaml' '$(FROM)/config.yaml' 2>/dev/null))
recipe   = $(if $(own),,--config '$(CONFIG)') $(if $(RUN),--run '$(RUN)')
options  = $(recipe) $(if $(FROM),--from '$(FROM)') $(if $(DEVICE),--set device=$(DEVICE)) \
           $(if $(filter-out 0,$(FORCE)),--force) $(ARGS)

# The run folder of a recipe has the recipe's tag behind its name, or that of ARGS='--set tag=NAME'.
tag      = $(or $(patsubst tag=%,%,$(filter tag=%,$(ARGS))),$(shell sed -n "s/^tag: *[\"']*\([^\"' ]*\).*/\1/p" '$(CONFIG)' 2>/dev/null))
home     = $(or $(RUN),runs/$(basename $(shell basename '$(CONFIG)'))$(addprefix -,$(tag)))

# What the recipe of the demonstration is measured at is tracked.
results  = $(if $(own),,$(if $(filter configs/demo.yaml,$(CONFIG)),--results configs/results.csv))

# What `make tune` tries: for each stream, options that its losses depend on, the recipe's values first. Without their
# back views people have one group of four images in an epoch, not two: the face stream alone has twice the epochs.
grids    = $(addprefix --grid ,train_student.lr=1e-2,5e-3,2e-2 train_student.ema=0.0,0.98 loss.label_smoothing=0.1,0.0)
of_face  = $(grids) $(addprefix --grid ,loss.triplet=0.1,1.0 kd_loss.T=2,1,4 kd_loss.alpha=0.7,0.5,0.9)
of_body  = $(grids) $(addprefix --grid ,mse.mse_weight=300,30,100,1000 mse.floor=0.1,0.0 mse.alone_steps=0,60 loss.triplet_body=0.0,0.1)
tuning   = sweep --config demo --set data.root=data/tuning --one-by-one --jobs 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-all all prepare check-data train-teacher teacher-cache train-student eval report export ablation sweep tune foreign-teacher \
        check format bench install clean

help: ## print the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nVariables: CONFIG=%s RUN= DEVICE= FORCE=1 ARGS="--set key=value"\n' '$(CONFIG)'

demo: $(ready) ## the whole pipeline on a benchmark that the project makes itself
	$(deskpro) demo $(options)

test: $(ready) ## run the tests but the slow ones; ARGS="--costs 40" lists the most expensive
	$(VENV)/bin/python -m pytest -n 2 -m "not slow" $(ARGS)

test-all: $(ready) ## run every test, with 200 instead of 25 examples of each property
	$(VENV)/bin/python -m pytest -n 2 --hypothesis-profile=all $(ARGS)

all: $(ready) ## every stage that isn't fresh, in order
	$(deskpro) all $(options)

prepare: $(ready) ## from a raw dataset to the prepared layout, as the recipe's section prepare says
	$(deskpro) prepare $(options)

check-data: $(ready) ## find the problems of a dataset before training does
	$(deskpro) check-data $(recipe) $(ARGS)

train-teacher: $(ready) ## train the teacher on HR faces (where no teacher weights exist)
	$(deskpro) train-teacher $(options)

teacher-cache: $(ready) ## stage one: run the teacher once, cache its logits and what masks show
	$(deskpro) teacher-cache $(options)

train-student: $(ready) ## stage two: train the LR student from the cache alone
	$(deskpro) train-student $(options)

eval: $(ready) ## mAP and CMC of the student on query and gallery
	$(deskpro) eval $(options)

report: $(ready) ## the run as one HTML page, to look at
	$(deskpro) report '$(home)' $(ARGS)

export: $(ready) ## the student as ONNX files that need nothing of this project, with a model card; ARGS="--streams body"
	$(deskpro) export '$(home)' $(if $(filter-out 0,$(FORCE)),--force) $(ARGS)

ablation: $(ready) ## what each part is worth, over replicates: ARGS="--replicates 5 --jobs 2"
	$(deskpro) ablation $(results) $(options)

sweep: $(ready) ## students of every combination: ARGS="--grid kd_loss.T=1,2,5 --seeds 3"
	$(deskpro) sweep $(options)

tune: $(ready) ## try the demo's choices one by one, on a world (seed 1001) of which no result is reported; about 90 minutes
	test -d data/tuning || $(deskpro) make-benchmark --out data/tuning --set seed=1001
	$(deskpro) $(tuning) --run runs/tuning-face --set forward_mode=face --set train_student.epochs=22 --set train_student.warmup_epochs=2 $(of_face) $(ARGS)
	$(deskpro) $(tuning) --run runs/tuning-body --set forward_mode=body --set cache.targets=[parsing] $(of_body) $(ARGS)

foreign-teacher: $(ready) ## a teacher of 2,000 other people, and a crowd without labels, for configs/foreign.yaml; about 20 minutes
	test -d data/foreign || $(deskpro) make-benchmark --out data/foreign --set seed=2001 --set train_identities=2000 --set test_identities=24
	test -d data/crowd || $(deskpro) make-benchmark --out data/crowd --set seed=3001 --set train_identities=400 --set test_identities=24
	$(deskpro) train-teacher --config demo --run runs/foreign-teacher --set data.root=data/foreign --set train_teacher.epochs=20 --set train_teacher.warmup_epochs=2 $(ARGS)

check: $(ready) ## lint, formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(ready) ## timings as ratios, both sides measured in one run
	$(VENV)/bin/python -m tests.bench $(ARGS)

format: $(ready) ## format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

install: $(ready) ## make the virtual environment only

clean: ## remove the virtual environment and tool caches; never runs, data or caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find pipeline stages cache tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(ready): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.11 …"; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(if $(filter-out cpu,$(TORCH)),$(error TORCH=$(TORCH): must be cpu, or left out))
	$(if $(TORCH),grep '^torch' requirements.lock | $(pip) --no-deps --index-url $(torch_cpu) -r /dev/stdin)
	$(if $(TORCH),grep -v '^nvidia-\|^cuda-\|^triton' requirements.lock | $(pip) -r /dev/stdin,$(pip) -r requirements.lock)
	$(pip) --no-deps --no-build-isolation -e .
	touch $@
