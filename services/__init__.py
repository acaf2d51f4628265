"""La pile locale : Kafka (trois nœuds), Kafka Connect, MongoDB, PostgreSQL et Flink, sans Docker.

Mêmes ports, mêmes noms et mêmes mots de passe que docker-compose.yml, lus dans le même .env :

- ``stack`` : les services, leurs ports, leurs dossiers et leurs commandes ;
- ``flink`` : Apache Flink, sur demande ;
- ``install`` : ce qui se fait une fois (jars, formatage, initdb, comptes) ;
- ``health`` : le service répond-il vraiment ?
- ``supervise`` : le superviseur (supervisord) qui lance et arrête les processus ;
- ``doctor`` : ce qui arrêterait les scripts, et le remède de chaque chose.
"""
