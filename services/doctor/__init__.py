"""« python -m services doctor » : ce sur quoi un nouveau venu trébuche, et le remède en une phrase.

- ``machine`` : Python, paquets, dossiers, disque, mémoire, processeur ;
- ``settings`` : variables exportées, proxy, .env ;
- ``ports`` : qui écoute sur les ports de la pile ;
- ``docker`` : le moteur, Compose, les fichiers que les conteneurs lisent ;
- ``kafka`` : brokers, adresses annoncées, topics, groupes, horloge, Kafka Connect ;
- ``databases`` : MongoDB et PostgreSQL ;
- ``report`` : un constat, leur recherche en parallèle, leur affichage.

Chaque module sépare ce qui se relève (des faits, par une fonction ``gather``) de ce qu'on en pense
(une fonction ``judge``, pure). Rien n'est modifié, nulle part. Les trois premiers se passent de tout
paquet : ils servent surtout quand il en manque.
"""
