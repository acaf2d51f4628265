#!/usr/bin/env bash
# Crée les topics de topics.conf qui manquent (service kafka-init de docker-compose).
# La pile locale lit le même fichier dans services/health.py.
#
#   create-topics.sh BROKERS FICHIER
#
# Chaque appel à kafka-topics.sh est une machine Java de plus, donc des secondes : un seul dit ce qui existe déjà, et
# un « docker-compose up -d » de plus n'en demande pas d'autre.
set -euo pipefail
brokers=$1 file=$2

topics() {  # options : six essais, le temps que les brokers s'accordent
  local attempt
  for attempt in 1 2 3 4 5 6; do
    "${KAFKA_HOME:-/opt/kafka}/bin/kafka-topics.sh" --bootstrap-server "$brokers" "$@" </dev/null && return
    [[ $attempt == 6 ]] || sleep 5
  done
  return 1
}

create() {  # nom partitions [réglages]
  local options=()
  IFS=, read -ra pairs <<<"${3:-}"
  for pair in "${pairs[@]}"; do options+=(--config "$pair"); done
  topics --create --if-not-exists --topic "$1" --partitions "$2" --replication-factor 3 "${options[@]}"
}

existing=$(topics --list)
while read -r name partitions config; do
  [[ -z $name || $name == \#* ]] && continue
  grep -qxF -- "$name" <<<"$existing" && continue
  create "$name" "$partitions" "$config"
done <"$file"
