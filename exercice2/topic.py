"""Les topics de l'exercice, et leurs réglages."""

TOPIC = "transactions-topic"
VALID_TOPIC = "transactions-validees"
PARTITIONS = 6
REPLICATION_FACTOR = 3
# Rien n'est effacé ; confirmé = écrit sur deux brokers au moins.
TOPIC_CONFIG = {"retention.ms": "-1", "min.insync.replicas": "2"}
