#!/usr/bin/env bash
# Met le connecteur Kafka de Flink dans un dossier, s'il n'y est pas déjà (service flink-init de docker-compose).
# Sa version et sa somme SHA-256 sont celles que la pile locale prend, dans flink.lock.
#
#   flink-connector.sh flink.lock DOSSIER
set -euo pipefail
read -r digest artifact < <(grep ':flink-sql-connector-kafka:' "$1")
folder=$2

check() { echo "$digest  $folder/flink-sql-connector-kafka.jar" | sha256sum --check --status 2>/dev/null; }

if ! check; then
  rm -f "$folder"/*.jar
  mvn -q -B dependency:copy -Dartifact="$artifact" -Dmdep.stripVersion=true -DoutputDirectory="$folder"
  check || { echo "Le jar reçu pour $artifact n'est pas celui attendu." >&2; exit 1; }
fi
