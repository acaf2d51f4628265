#!/usr/bin/env bash
# MongoDB sert-il le compte des scripts ? (sonde de docker-compose.yml)
#
#   mongo-health.sh HÔTE PORT     HÔTE par son nom : pendant sa création, un serveur provisoire répond à localhost
#
# mongosh prend plus d'une seconde de calcul : une fois le compte reconnu dans ce conteneur, le port ouvert suffit.
set -euo pipefail
host=$1 port=$2 known=${TMPDIR:-/tmp}/compte-reconnu
[[ -e $known ]] && (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null && exit

mongosh --quiet --norc "mongodb://$host:$port/admin" --eval \
  'db.getSiblingDB(process.env.MONGO_DATABASE).auth(process.env.MONGO_USER, process.env.MONGO_PASSWORD).ok' | grep -qx 1
touch "$known"
