"""« python -m services doctor » : ce sur quoi un nouveau venu trébuche, et le remède en une phrase.

- ``environment`` : Python, paquets, projet installé, terminal ;
- ``machine`` : système, dossiers, disque, mémoire ;
- ``jars`` : ceux des serveurs sans Docker ;
- ``env_file``, ``variables`` : .env ; les variables exportées et le proxy ;
- ``ports`` : qui écoute sur les ports de la pile ;
- ``docker`` : le moteur, Compose, le processeur, les fichiers que les conteneurs lisent ;
- ``kafka``, ``topics``, ``connect`` : brokers et adresses annoncées ; topics, groupes, dates ; Kafka Connect ;
- ``mongodb``, ``postgresql`` (et ``refusals``, ce qu'ils ont en commun) ;
- ``report`` : un constat, la recherche de tous en parallèle, leur affichage.

Chaque module sépare ce qui se relève (des faits) de ce qu'on en pense (les fonctions ``judge_…``, pures). Rien n'est
modifié, nulle part. Jusqu'à ``docker``, aucun paquet n'est nécessaire : c'est quand il en manque qu'on en a besoin.
"""
