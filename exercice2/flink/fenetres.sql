-- Les fenêtres d'une minute de kafka_monitor.py, par Apache Flink. Un seul job tient les deux sortes :
--
--   HOP    [début, fin[ de 60 s, une toutes les 10 s, alignées sur 1970       kafka_monitor.py
--   OVER   pour chaque transaction, les 60 s qui la précèdent, bornes comprises   kafka_monitor.py --slide event
--
-- start-job.sh remplit les noms entre ${ } et lance ce fichier, le même avec et sans Docker.

SET 'pipeline.name' = '${TRANSACTIONS_FENETRES_FLINK}, par ${FLINK_BY}';
SET 'table.local-time-zone' = 'UTC';  -- les instants lus et écrits sont en UTC, où que tourne Flink

-- Toutes les secondes, Flink photographie l'état du job et sa place dans le topic, puis valide les résultats : un
-- lecteur read_committed les voit donc avec une seconde de retard au plus. La dernière photographie reste sur le
-- disque quand le JobManager meurt ; start-job.sh la retrouve.
SET 'execution.checkpointing.interval' = '1 s';
SET 'execution.checkpointing.externalized-checkpoint-retention' = 'RETAIN_ON_CANCELLATION';

SET 'execution.state-recovery.claim-mode' = 'CLAIM';  -- celle dont le job repart est à lui : il l'effacera après usage

CREATE TABLE transactions (
  id          STRING,
  `timestamp` TIMESTAMP_LTZ(3),  -- un instant ; TIMESTAMP tout court serait une heure sans fuseau
  montant     DECIMAL(9, 2),     -- exact : une somme de DOUBLE dériverait
  `type`      STRING,
  compte      STRING,
  region      STRING,
  canal       STRING,
  cle AS CASE '${FLINK_BY}' WHEN 'compte' THEN compte WHEN 'type' THEN `type` WHEN 'region' THEN region
                            WHEN 'canal' THEN canal ELSE 'toutes' END,
  -- Le watermark : l'instant le plus avancé de chaque partition moins 5 s ; la partition la plus lente décide.
  -- Ce qui vient après lui n'entre plus dans une fenêtre close : Flink l'oublie, sans le dire ni le garder.
  WATERMARK FOR `timestamp` AS `timestamp` - INTERVAL '5' SECOND
) WITH (
  'connector' = 'kafka',
  'topic' = '${TRANSACTIONS_TOPIC}',
  'properties.bootstrap.servers' = '${KAFKA_BOOTSTRAP_SERVERS}',
  'properties.isolation.level' = 'read_committed',  -- jamais une transaction annulée ; les clients Java lisent tout
  'properties.group.id' = '${TRANSACTIONS_TOPIC}-flink-${FLINK_BY}',  -- pour montrer où il en est : sa vraie place
                                                                      -- est dans la photographie
  'scan.startup.mode' = 'earliest-offset',          -- sans photographie, depuis le début
  'scan.watermark.emit.strategy' = 'on-event',      -- sans quoi toutes les 200 ms : ce qui est en retard
                                                    -- dépendrait de la vitesse de lecture
  'scan.watermark.idle-timeout' = '10 s',           -- une partition muette ne retient plus les autres
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601',    -- 2026-01-31T23:59:59.999Z
  'json.ignore-parse-errors' = 'true'               -- un champ illisible vaut NULL, au lieu d'arrêter le job
);

-- Ce qui n'est pas une transaction est sauté, sans lettre morte : une date NULL arrêterait le job.
CREATE VIEW valides AS
SELECT * FROM transactions WHERE `timestamp` IS NOT NULL AND montant > 0 AND cle IS NOT NULL;

-- Les champs de kafka_monitor.py, dans un topic à part.
CREATE TABLE fenetres (
  message STRING,  -- la clé du message Kafka
  cle STRING, debut STRING, fin STRING, nombre BIGINT,
  montant_total DECIMAL(38, 2), montant_moyen DECIMAL(38, 6), montant_min DECIMAL(9, 2), montant_max DECIMAL(9, 2),
  par_seconde DECIMAL(18, 6)
) WITH (
  'connector' = 'kafka',
  'topic' = '${TRANSACTIONS_FENETRES_FLINK}',
  'properties.bootstrap.servers' = '${KAFKA_BOOTSTRAP_SERVERS}',
  'key.format' = 'raw',
  'key.fields' = 'message',
  'value.format' = 'json',
  'value.fields-include' = 'EXCEPT_KEY',
  'value.json.encode.decimal-as-plain-number' = 'true',  -- 1000.00, et non 1E+3
  -- Exactement une fois : les résultats d'une photographie sont une transaction Kafka, validée avec elle.
  'sink.delivery-guarantee' = 'exactly-once',
  'sink.transactional-id-prefix' = '${TRANSACTIONS_FENETRES_FLINK}-hop',  -- un par table : deux écrivains du
                                                                          -- même nom s'annuleraient
  'properties.transaction.timeout.ms' = '900000'  -- le plus que Kafka accepte (Flink demande une heure et serait
                                                  -- refusé) : mort plus de 15 minutes, Flink perd ce qu'il
                                                  -- écrivait
);

-- La même, et l'identifiant de la transaction où la fenêtre finit.
CREATE TABLE fenetres_par_transaction (id STRING)
WITH ('sink.transactional-id-prefix' = '${TRANSACTIONS_FENETRES_FLINK}-over')
LIKE fenetres (OVERWRITING OPTIONS);

EXECUTE STATEMENT SET BEGIN  -- un seul job, qui ne lit le topic qu'une fois

INSERT INTO fenetres
SELECT cle || '|' || fin, cle, debut, fin, nombre, total, moyenne, petit, grand, CAST(nombre / 60.0 AS DECIMAL(18, 6))
FROM (
  SELECT cle, COUNT(*) AS nombre, SUM(montant) AS total, AVG(montant) AS moyenne,
         MIN(montant) AS petit, MAX(montant) AS grand,
         DATE_FORMAT(window_start, 'yyyy-MM-dd''T''HH:mm:ss.SSS''Z''') AS debut,
         DATE_FORMAT(window_end, 'yyyy-MM-dd''T''HH:mm:ss.SSS''Z''') AS fin
  FROM HOP(TABLE valides, DESCRIPTOR(`timestamp`), INTERVAL '10' SECOND, INTERVAL '60' SECOND)
  GROUP BY cle, window_start, window_end
);

INSERT INTO fenetres_par_transaction
SELECT cle || '|' || fin, cle, debut, fin, nombre, total, moyenne, petit, grand, CAST(nombre / 60.0 AS DECIMAL(18, 6)), id
FROM (
  SELECT id, cle, COUNT(*) OVER minute_passee AS nombre, SUM(montant) OVER minute_passee AS total,
         AVG(montant) OVER minute_passee AS moyenne,
         MIN(montant) OVER minute_passee AS petit, MAX(montant) OVER minute_passee AS grand,
         DATE_FORMAT(`timestamp` - INTERVAL '60' SECOND, 'yyyy-MM-dd''T''HH:mm:ss.SSS''Z''') AS debut,
         DATE_FORMAT(`timestamp`, 'yyyy-MM-dd''T''HH:mm:ss.SSS''Z''') AS fin
  FROM valides
  -- En retard : le watermark l'a dépassée. Sans ce filtre, OVER juge chaque clé d'après ce qu'elle a déjà rendu, et
  -- l'oublie au bout d'une minute et demie : une même transaction serait admise ou non selon les précédentes.
  WHERE CURRENT_WATERMARK(`timestamp`) IS NULL OR `timestamp` > CURRENT_WATERMARK(`timestamp`)
  WINDOW minute_passee AS (
    PARTITION BY cle ORDER BY `timestamp` RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW
  )
);

END;
