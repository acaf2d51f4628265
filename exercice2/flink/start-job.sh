#!/usr/bin/env bash
# Lance fenetres.sql dans un JobManager de Flink, à partir de sa dernière photographie (checkpoint) s'il y en a une.
# Les deux piles s'en servent : docker-compose.yml et services/flink.py.
#
#   FLINK_STATE=dossier KAFKA_BOOTSTRAP_SERVERS=adresses start-job.sh COMMANDE [ARGUMENTS]
#
# COMMANDE démarre un JobManager en mode application : il est le job, et finit avec lui. Rien d'autre ne peut donc
# soumettre ce job une seconde fois. Relancée, la même commande reprend là où la dernière photographie l'a laissé.
set -euo pipefail

TRANSACTIONS_TOPIC=${TRANSACTIONS_TOPIC:-transactions-topic}
TRANSACTIONS_FENETRES_FLINK=${TRANSACTIONS_FENETRES_FLINK:-transactions-fenetres-flink}
FLINK_BY=${FLINK_BY:-toutes}

refuse() {
  echo "$1" >&2
  exit 2
}
case $FLINK_BY in
  toutes | compte | type | region | canal) ;;
  *) refuse "FLINK_BY=$FLINK_BY n'est pas une clé possible : toutes, compte, type, region ou canal." ;;
esac

# Une photographie ne vaut que pour le job qui l'a prise : un dossier par topic et par clé.
[[ $FLINK_STATE == /* ]] || FLINK_STATE=$PWD/$FLINK_STATE
state=$FLINK_STATE/$TRANSACTIONS_TOPIC-$FLINK_BY
sql=$(<"$(dirname "$0")/fenetres.sql")
for name in KAFKA_BOOTSTRAP_SERVERS TRANSACTIONS_TOPIC TRANSACTIONS_FENETRES_FLINK FLINK_BY; do
  [[ ${!name:-} =~ ^[A-Za-z0-9._:,-]+$ ]] || refuse "$name=${!name:-} n'est pas un nom que Kafka accepte."
  placeholder="\${$name}"
  sql=${sql//"$placeholder"/${!name}}
done
# Une adresse file:// ne supporte ni espace, ni « # », ni « % », ni accent : ils y sont codés, octet par octet.
address() {
  local LC_ALL=C text=$1 i char code
  for ((i = 0; i < ${#text}; i++)); do
    char=${text:i:1}
    if [[ $char == [A-Za-z0-9/._~-] ]]; then
      printf %s "$char"
    else
      printf -v code %d "'$char"
      printf '%%%02X' $((code & 255))
    fi
  done
}
mkdir -p "$state"
printf '%s\n' "$sql" >"$state/fenetres.sql"

# La plus récente, parmi les complètes : _metadata est écrit en dernier.
options=(-D "execution.checkpointing.dir=file://$state")
latest=$(ls -t "$state"/*/chk-*/_metadata 2>/dev/null | head -1 || true)
if [[ -n $latest ]]; then
  echo "Reprise à la photographie ${latest%/_metadata}."
  options+=(--fromSavepoint "${latest%/_metadata}")
fi
exec "$@" "${options[@]}" --job-classname org.apache.flink.table.runtime.application.SqlDriver \
  --scriptUri "file://$(address "$state/fenetres.sql")"
