# Deux commandes suffisent : « make demo » et « make test ». Le reste est ici.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test chaos bench bench-windows bench-views mutants apercu twbx flink compare-windows lint services stop status reset reconcile

help:            ## cette liste
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 18

$(VENV)/installed: requirements.txt requirements-dev.txt services/requirements.txt tableau/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "Il faut Python 3.11, 3.12 ou 3.13 (ici : %d.%d). Essayez : make PYTHON=python3.13" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

install: $(VENV)/installed  ## l'environnement virtuel .venv et tous les paquets

demo: install    ## tout le pipeline, sur de vrais serveurs, puis la vérification au centime
	$(BIN)/python -m services up
	cd exercice3 && ../$(BIN)/python demo.py

test: install    ## tous les tests, sur deux piles à part, côte à côte
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

chaos: services  ## l'exercice 2 pendant quinze minutes de pannes, puis les comptes
	cd exercice2 && ../$(BIN)/python chaos.py

bench: services  ## l'exercice 1 comparé à Kafka Connect, débit et latence
	$(BIN)/python bench/csv_to_kafka.py

.venv-peers/installed: bench/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-windows: services .venv-peers/installed  ## les fenêtres comparées à Flink, Quix Streams et Bytewax
	$(BIN)/python bench/windows.py

bench-views: services  ## les tableaux de bord sur dix millions de ventes, avec et sans les vues
	$(BIN)/python bench/views.py

apercu: services  ## les tableaux de bord dans un navigateur, en direct
	cd tableau && ../$(BIN)/python apercu.py

twbx: services   ## tableau/ventes.twbx : le classeur Tableau et ses données en un seul fichier
	$(BIN)/pip install --quiet --disable-pip-version-check -r tableau/requirements-extract.txt
	cd tableau && ../$(BIN)/python build_workbook.py --extract

flink: install   ## Apache Flink en plus, qui tient les fenêtres de l'exercice 2
	$(BIN)/python -m services flink

compare-windows: services  ## les fenêtres de kafka_monitor.py et celles de Flink, ligne à ligne
	cd exercice2 && ../$(BIN)/python compare_windows.py

MUTANTS ?=
mutants: install  ## casse un à un les modules purs : un test doit échouer (long ; un seul : MUTANTS='exercice3.rows*')
	$(BIN)/mutmut run --max-children 1 $(if $(MUTANTS),'$(MUTANTS)')
	$(BIN)/mutmut results

lint: install    ## style et types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

services: install  ## démarre les serveurs sans Docker
	$(BIN)/python -m services up

stop: install    ## arrête les serveurs
	$(BIN)/python -m services down

status: install  ## état des serveurs
	$(BIN)/python -m services status

reconcile: install  ## compare les ventes à chaque étape, quand vous voulez
	cd exercice3 && ../$(BIN)/python reconcile.py

reset: install   ## arrête les serveurs et efface toutes leurs données
	$(BIN)/python -m services reset
