# Deux commandes suffisent : « make demo » et « make test ». Le reste est ici.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# « python -m pip », car le programme pip porte en première ligne le chemin de .venv à sa naissance.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Le cd d'une recette va dans le dossier d'ici, pas dans celui d'une autre copie.
unexport CDPATH

.DEFAULT_GOAL := help
.PHONY: help install doctor demo test test-long test-unit lives lots fuzz chaos bench bench-windows bench-views bench-ventes bench-scale mutants apercu twbx flink compare-windows lint house services stop status reset reconcile psql

help:            ## cette liste
	@awk -F ':[^#]*## *' '/^[a-z-]+:.*## / {printf "%-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Une phrase si Python n'est pas de ceux du projet.
CHECK_PYTHON = $(PYTHON) -c 'import os, shutil, sys; v = sys.version_info[:2]; mongod = shutil.which(os.environ.get("MONGOD") or "mongod"); sys.exit(None if (3, 11) <= v <= (3, 13) or v == (3, 14) and mongod else "Il faut Python 3.11, 3.12 ou 3.13, ou 3.14 avec mongod (ici : %d.%d). Essayez : make PYTHON=python3.13" % v)'

# pip note dans .venv le dossier du projet. S'il n'a rien noté, il n'a pas fini ; si ce n'est pas le dossier d'ici, le
# projet a été déplacé, ou copié avec son .venv, dont les programmes visent l'ancien : « make install » refait tout.
NOTED := $(wildcard $(VENV)/lib/python*/site-packages/*streaming_data_pipeline.pth)
MOVED := $(if $(NOTED),$(shell grep -qxF -- "$$(pwd -P)" $(NOTED) || echo oui))
ifneq ($(if $(NOTED),$(MOVED),oui),)
.PHONY: $(VENV)/installed
endif

# Ce qu'il faut pour les scripts et les serveurs.
$(VENV)/installed: requirements.txt services/requirements.txt pyproject.toml
	@$(CHECK_PYTHON)
	@$(if $(MOVED),echo "Le projet a changé de dossier depuis l'installation : $(VENV) est refait."; rm -rf $(VENV))
	$(PYTHON) -m venv $(VENV)
	@echo "Installation des paquets dans $(VENV) (une minute ou deux, la première fois)…"
	$(PIP) -r requirements.txt -r services/requirements.txt
	@touch $@

# En plus, pour l'aperçu ; et pour les tests.
$(VENV)/installed-%: $(VENV)/installed
	$(PIP) $(addprefix -r ,$(filter %.txt,$^))
	@touch $@
$(VENV)/installed-apercu: tableau/requirements.txt
$(VENV)/installed-dev: requirements-dev.txt tableau/requirements.txt
$(VENV)/installed-extract: tableau/requirements-extract.txt

# Arrêter, regarder, effacer n'installent rien : cela doit marcher sans réseau, sous des serveurs en marche.
$(BIN)/python:
	@echo "Rien n'est encore installé ici : « make services » installe et démarre." >&2; exit 1

install: $(VENV)/installed  ## l'environnement virtuel .venv, pour les scripts et les serveurs

doctor:          ## ce qui arrêterait les scripts, et le remède de chaque chose ; n'installe rien
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(CHECK_PYTHON) && $(PYTHON)) -m services.doctor

demo: install    ## tout le pipeline, sur de vrais serveurs, puis la vérification au centime
	$(BIN)/python -m services up
	cd exercice3 && ../$(BIN)/python demo.py

SIDE_BY_SIDE := --numprocesses auto --dist loadfile --no-loadscope-reorder
test: $(VENV)/installed-dev  ## les tests, sur des piles à part, côte à côte
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not long"

test-long: $(VENV)/installed-dev  ## les longues pannes que « make test » laisse : kill -9 en boucle, coupures, chaos
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m long

test-unit: $(VENV)/installed-dev  ## les tests qui n'ont besoin d'aucun serveur, en moins d'une minute
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal tests/unit

chaos: services  ## les trois exercices pendant huit minutes de pannes, puis les comptes
	$(BIN)/python -m chaos

bench: services  ## l'exercice 1 comparé à Kafka Connect, débit et latence
	$(BIN)/python bench/csv_to_kafka.py

.venv-peers/installed: bench/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-windows: services .venv-peers/installed  ## les fenêtres comparées à Flink, Quix Streams et Bytewax
	$(BIN)/python bench/windows.py

bench-views: services  ## les tableaux de bord sur dix millions de ventes, avec et sans les vues
	$(BIN)/python bench/views.py

bench-ventes: services  ## chaque script de l'exercice 3 à côté d'une boucle nue, sur les mêmes serveurs
	$(BIN)/python bench/ventes.py

bench-scale: services  ## un, deux, trois exemplaires de chaque script de l'exercice 3, et le calcul que coûte une vente
	$(BIN)/python -m bench.scale

apercu: $(VENV)/installed-apercu services  ## les tableaux de bord dans un navigateur, en direct
	cd tableau && ../$(BIN)/python apercu.py

twbx: $(VENV)/installed-extract services  ## tableau/ventes.twbx : le classeur Tableau et ses données en un seul fichier
	cd tableau && ../$(BIN)/python build_workbook.py --extract

flink: install   ## Apache Flink en plus, qui tient les fenêtres de l'exercice 2
	$(BIN)/python -m services flink

compare-windows: services  ## les fenêtres de kafka_monitor.py et celles de Flink, ligne à ligne
	cd exercice2/verification && ../../$(BIN)/python compare_windows.py

lots: $(VENV)/installed-dev  ## cent mille histoires de consommateurs et d'exports tués au hasard, exercice 3
	$(BIN)/python -m tests.models.lots 100000

fuzz: $(VENV)/installed-dev  ## un million d'entrées abîmées au hasard, à chaque porte : aucune n'arrête rien
	$(BIN)/python -m tests.models.fuzz 1000000

lives: $(VENV)/installed-dev services  ## vingt mille vies de fichiers au hasard devant le lecteur de l'exercice 1, dix mille disputes, cent vies sur Kafka
	$(BIN)/python -m tests.models.lives 20000
	$(BIN)/python -m tests.models.claims 10000
	$(BIN)/python -m tests.models.kafka_lives 100

MUTANTS ?=
mutants: $(VENV)/installed-dev  ## casse un à un les modules purs : un test doit échouer (long ; un seul : MUTANTS='exercice3.rows*')
	$(BIN)/mutmut run --max-children 1 $(if $(MUTANTS),'$(MUTANTS)')
	$(BIN)/mutmut results

lint: $(VENV)/installed-dev  ## style et types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

house: $(VENV)/installed-dev  ## ce que lit qui ouvre un script : modules du projet et lignes
	@$(BIN)/python -m tests.house

services: install  ## démarre les serveurs sans Docker
	$(BIN)/python -m services up

stop: | $(BIN)/python    ## arrête les serveurs
	$(BIN)/python -m services down

status: | $(BIN)/python  ## état des serveurs
	$(BIN)/python -m services status

reconcile: | $(BIN)/python  ## compare les ventes à chaque étape, quand vous voulez
	@$(if $(MOVED),echo "Le projet a changé de dossier depuis l'installation : « make install » refait $(VENV)." >&2; exit 1)
	cd exercice3 && ../$(BIN)/python reconcile.py

SQL ?=
psql: | $(BIN)/python  ## PostgreSQL en SQL, rien à installer (une seule requête : SQL='TABLE ventes LIMIT 5')
	@$(BIN)/python -m services.psql $(if $(value SQL),--command "$$SQL")

reset: | $(BIN)/python  ## arrête les serveurs, efface leurs données et les ventes exportées (OUI=1 : sans demander)
	$(BIN)/python -m services reset $(if $(OUI),--oui)
