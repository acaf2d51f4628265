"""Le topic de l'exercice 1, que producer.py remplit et que consumer.py montre."""

TOPIC = "csv-topic"
PARTITIONS = 3
REPLICATION_FACTOR = 3
MESSAGE_BYTES = 33_554_432  # une ligne de 4 Mo, même si chaque octet prend six caractères en JSON
TOPIC_CONFIG = {"retention.ms": "-1", "max.message.bytes": str(MESSAGE_BYTES)}  # rien ne s'efface au bout de sept jours
