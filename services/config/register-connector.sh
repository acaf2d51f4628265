#!/usr/bin/env bash
# Inscrit un connecteur de Kafka Connect, ou met à jour celui qui existe, puis attend qu'il
# tourne. L'image apache/kafka n'a pas curl : bash ouvre lui-même la connexion (/dev/tcp).
#
#   register-connector.sh HÔTE PORT FICHIER     FICHIER : {"name": …, "config": …}
set -euo pipefail
host=$1 port=$2 file=$3

request() {  # méthode chemin [corps] : affiche la réponse HTTP entière
  local body=${3:-}
  exec 3<>"/dev/tcp/$host/$port" || return 1
  printf '%s %s HTTP/1.0\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %s\r\n\r\n%s' \
    "$1" "$2" "$host" "$(printf %s "$body" | wc -c)" "$body" >&3
  timeout 60 cat <&3
  exec 3>&-
}

# PUT attend l'objet « config » seul. Le fichier a une clé par ligne : de « "config": { » à l'accolade fermante.
name=$(sed -n 's/^ *"name": *"\(.*\)".*/\1/p' "$file" | head -1)
config="{$(sed -n '/"config": *{/,/^  }/p' "$file" | sed '1d;$d')}"

for attempt in $(seq 30); do
  answer=$(request PUT "/connectors/$name/config" "$config" 2>/dev/null || true)
  # 201 créé, 200 mis à jour ; 404 et 409 : Connect démarre ou se rééquilibre, on réessaie.
  if grep -qE '^HTTP/1\.[01] 20[01]' <<<"$answer"; then
    for _ in $(seq 30); do
      if request GET "/connectors/$name/status" | grep -q '"tasks":\[{[^]]*"state":"RUNNING"'; then
        echo "Connecteur $name inscrit : il tourne."
        exit 0
      fi
      sleep 1
    done
  fi
  sleep 2
done
echo "Le connecteur $name n'a pas pu être inscrit. Dernière réponse de Connect :" >&2
echo "$answer" >&2
exit 1
