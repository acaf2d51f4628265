#!/usr/bin/env bash
# Lance l'image de PostgreSQL ou de MongoDB, et rend son premier démarrage entier ou nul (docker-compose.yml).
#
#   first-start.sh PREUVE TÉMOIN SCRIPT COMMANDE…
#
# L'image crée le serveur (PREUVE est alors là), puis ses comptes avec SCRIPT. Arrêtée entre les deux, elle prendrait
# au démarrage suivant ce serveur sans comptes pour un serveur fini. TÉMOIN est donc posé avant la création, et retiré
# par elle, en dernier : s'il est encore là, personne n'a pu se servir de ce serveur, on l'efface et on recommence.
set -euo pipefail
proof=$1 witness=$2 script=$3
shift 3
folder=${INITDB_FOLDER:-/docker-entrypoint-initdb.d}

if [[ -e $witness && -d ${proof%/*} ]]; then
  echo "Le premier démarrage n'était pas allé au bout : il recommence de zéro."
  find "${proof%/*}" -mindepth 1 ! -path "$witness" -delete
fi
if [[ ! -e $proof ]]; then
  touch "$witness"
fi
# Copiés ici par root : le compte de l'image, qui les lira, n'a pas accès à un dossier cloné sous « umask 077 ».
install -m 644 "$script" "$folder/10-${script##*/}"
printf 'rm -f "%s"\nsync "%s"\n' "$witness" "${witness%/*}" >"$folder/99-fini.sh"
chmod 644 "$folder/99-fini.sh"
exec "$@"
