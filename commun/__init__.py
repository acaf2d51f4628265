"""Ce que tous les scripts partagent et qu'un cours n'expliquerait pas au tableau.

- ``cli`` : analyse des options en français, arrêt propre, codes de sortie ;
- ``systems`` : ce qui change de Linux à macOS et à Windows ;
- ``settings`` : environnement et valeurs par défaut de la pile locale ;
- ``kafka`` : variables ``KAFKA_…``, attente de Kafka, création d'un topic, lettres mortes ;
- ``exactly_once`` : transactions Kafka et positions écrites avec les lignes.
"""
