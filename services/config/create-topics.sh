#!/usr/bin/env bash
# Crée les topics de topics.conf qui manquent (service kafka-init de docker-compose).
# La pile locale lit le même fichier dans services/health.py.
#
#   create-topics.sh BROKERS FICHIER
set -euo pipefail
brokers=$1 file=$2

create() {  # nom partitions [réglages]
  local options=()
  IFS=, read -ra pairs <<<"${3:-}"
  for pair in "${pairs[@]}"; do options+=(--config "$pair"); done
  "${KAFKA_HOME:-/opt/kafka}/bin/kafka-topics.sh" --bootstrap-server "$brokers" --create --if-not-exists \
    --topic "$1" --partitions "$2" --replication-factor 3 "${options[@]}"
}

while read -r name partitions config; do
  [[ -z $name || $name == \#* ]] && continue
  for attempt in 1 2 3 4 5 6; do
    create "$name" "$partitions" "$config" </dev/null && break
    [[ $attempt == 6 ]] && exit 1
    sleep 5
  done
done <"$file"
