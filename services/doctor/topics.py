"""Topics, groupes et dates des messages : ce que promettent les scripts, le cluster le tient-il ?"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from commun.cli import duration
from services.doctor.env_file import ROOT
from services.doctor.kafka import ADMIN_SECONDS, Cluster, Topic, admin, asking, local
from services.doctor.report import (
    AHEAD_SECONDS,
    PROBLEM,
    WARNING,
    Check,
    Finding,
    Notes,
    ok,
    unknown,
    warning,
)

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import ConfigResource, ConfigSource, OffsetSpec, ResourceType  # type: ignore[attr-defined]

TOPICS = ROOT / "services" / "config" / "topics.conf"
REPLICAS, IN_SYNC = 3, 2  # ce que promettent les scripts : trois copies, dont deux écrites avant confirmation
DAY_MINUTES = 24 * 60
INTERNAL = ("__consumer_offsets", "__transaction_state")  # les brokers eux-mêmes datent ce qu'ils y écrivent
RENAMED = {
    "csv-topic": "CSV_TOPIC",
    "transactions-topic": "TRANSACTIONS_TOPIC",
    "transactions-validees": "TRANSACTIONS_VALIDEES",
    "transactions-fenetres": "TRANSACTIONS_FENETRES",
    "transactions-fenetres-flink": "TRANSACTIONS_FENETRES_FLINK",
    "transactions-alertes": "TRANSACTIONS_ALERTES",
    "ventes-stream": "VENTES_TOPIC",
}
SUFFIXES = ("-dlq", "-positions", "-confirmees")
GROUPS = {
    "CSV_GROUP": "csv-consumer-group",
    "TRANSACTIONS_GROUP": "transactions-consumer-group",
    "VENTES_GROUP": "ventes-consumer-group",
    "TRANSACTIONS_MONITOR_GROUP": "",
}
RENEWED = "« make reset » (ou « docker-compose down -v ») puis « up » recrée tout, vide"
OWN = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
MONITOR_PREFIX = "fenetres-"

# --- Topics ---


def wanted_topics(environ: Mapping[str, str]) -> dict[str, Topic]:
    """Les topics de topics.conf, aux noms que l'environnement leur donne."""
    found = {}
    for line in TOPICS.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, partitions, *rest = line.split()
            suffix = next((mark for mark in SUFFIXES if name.endswith(mark)), "")
            base = name.removesuffix(suffix)
            config = dict(pair.split("=", 1) for pair in ",".join(rest).split(",") if pair)
            found[(environ.get(RENAMED.get(base, "")) or base) + suffix] = Topic(int(partitions), REPLICAS, config)
    return found


def judge_topics(wanted: Mapping[str, Topic], found: Mapping[str, Topic], leaderless: Sequence[str]) -> list[Finding]:
    """Les topics ont-ils ce que promettent les scripts ? Une phrase par reproche, avec tous les topics qu'il touche."""
    notes = Notes("topics")
    if missing := [name for name in wanted if name not in found]:
        notes.warning(
            f"pas encore créés : {', '.join(missing)}",
            "« make services » ou « docker-compose up -d » les crée ; chaque script crée aussi les siens.",
        )
    if leaderless:
        notes.problem(
            f"partitions sans chef, donc fermées : {', '.join(leaderless[:5])}", "Redémarrez les brokers qui manquent."
        )
    blamed: dict[tuple[str, str, str], list[str]] = {}
    for name, topic in wanted.items():
        for reproach in reproaches(topic, found[name]) if name in found else ():
            blamed.setdefault(reproach, []).append(name)
    for (state, text, cure), names in blamed.items():
        notes.add(state, f"{', '.join(names)} : {text}", cure)
    if few := [name for name in INTERNAL if name in found and found[name].replicas < REPLICAS]:
        notes.warning(
            f"{', '.join(few)} : moins de trois copies, un seul broker en panne arrête les groupes ou les transactions",
            "Mettez offsets.topic.replication.factor et transaction.state.log.replication.factor à 3 avant leur "
            "création.",
        )
    return notes.or_ok(f"les {len(wanted)} topics ont leurs partitions, leurs copies et leurs réglages")


def reproaches(wanted: Topic, found: Topic) -> Iterator[tuple[str, str, str]]:
    """Ce qu'un topic n'a pas de ce qu'il devrait avoir : l'état, la phrase, le remède."""
    again = f"Recréez ces topics (leurs messages se perdent) ; sur la pile locale, {RENEWED}."
    config, minimum = found.config, int(found.config.get("min.insync.replicas", IN_SYNC))
    if found.partitions < wanted.partitions:
        yield (WARNING, f"{found.partitions} partition(s) au lieu de {wanted.partitions}, donc pas plus de "
                        "consommateurs "
               "à la fois", again)  # fmt: skip
    elif wanted.partitions == 1 < found.partitions:
        yield WARNING, f"{found.partitions} partitions au lieu d'une, les messages n'y ont plus un seul ordre", again
    if found.in_sync < minimum:
        yield (PROBLEM, f"{found.in_sync} copie(s) à jour pour min.insync.replicas={minimum}, toute écriture est "
                        "refusée",
               "Redémarrez les brokers qui manquent ; s'il n'en manque pas, baissez ce réglage ou recréez ces "
               "topics.")  # fmt: skip
    if minimum < IN_SYNC:
        source = "du broker" if "min.insync.replicas" in found.inherited else "du topic"
        yield (WARNING, f"min.insync.replicas={minimum} (réglage {source}), un message confirmé peut n'être que sur un "
               "broker, et se perdre avec lui", _set("min.insync.replicas=2"))  # fmt: skip
    if found.replicas < REPLICAS:
        yield WARNING, f"{found.replicas} copie(s) au lieu de {REPLICAS}, moins de pannes les arrêtent", again
    if wanted.config.get("cleanup.policy") == "compact" and "compact" not in config.get("cleanup.policy", "compact"):
        yield (PROBLEM, f"cleanup.policy={config['cleanup.policy']}, les positions s'y effacent et tout repartirait du "
               "début", _set("cleanup.policy=compact"))  # fmt: skip
    kept = int(config.get("retention.ms", -1))
    if wanted.config.get("retention.ms") == "-1" and kept >= 0:
        days = f"{kept / 86_400_000:.3g}".replace(".", ",")
        yield (WARNING, f"les messages s'effacent au bout de {days} jours, reconcile.py ne les retrouverait plus",
               _set("retention.ms=-1"))  # fmt: skip
    size = int(wanted.config.get("max.message.bytes", 0))
    if size > int(config.get("max.message.bytes", size)):
        yield (WARNING, f"un message de plus de {config['max.message.bytes']} octets est refusé, au lieu de {size}",
               _set(f"max.message.bytes={size}"))  # fmt: skip


def _set(pair: str) -> str:
    return f"« kafka-configs.sh --alter --topic … --add-config {pair} » ; sur la pile locale, {RENEWED}."


def with_configs(topics: Mapping[str, Topic], names: Iterable[str]) -> dict[str, Topic]:
    """Les topics, avec leurs réglages tels qu'ils valent."""
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in names if name in topics]
    found = dict(topics)
    for resource, answer in admin().describe_configs(asked, request_timeout=ADMIN_SECONDS).items() if asked else ():
        entries = answer.result()
        topic = topics[resource.name]
        found[resource.name] = Topic(
            topic.partitions,
            topic.replicas,
            {name: entry.value for name, entry in entries.items()},
            topic.in_sync,
            frozenset(name for name, entry in entries.items() if entry.source != OWN),
        )
    return found


# --- Groupes ---


def judge_groups(idle: Sequence[str], minutes: int | None) -> list[Finding]:
    """Les positions des groupes sans membre s'oublient. ``minutes`` : offsets.retention.minutes, None si inconnu."""
    if not idle:
        return [ok("groupes", "aucun groupe du projet n'est sans membre")]
    names = ", ".join(idle)
    if minutes is None:
        return [unknown("groupes", f"sans membre : {names} ; le broker ne dit pas quand il en oublie les positions")]
    delay = f"{minutes / DAY_MINUTES:.0f} jours" if minutes >= 2 * DAY_MINUTES else f"{minutes} minutes"
    if minutes >= 365 * DAY_MINUTES:
        return [ok("groupes", f"sans membre : {names} ; leurs positions restent {delay}")]
    return [
        warning(
            "groupes",
            f"sans membre : {names} ; Kafka oublie leurs positions {delay} après le départ du dernier, et les "
            "topics gardent tout : relancés ensuite, ils reliraient depuis le début",
            f"Relancez-les avant {delay}, ou donnez une plus grande valeur à offsets.retention.minutes (brokers).",
        )
    ]


def our_groups(environ: Mapping[str, str]) -> set[str]:
    """Noms des groupes des scripts."""
    return {environ.get(variable) or name for variable, name in GROUPS.items()} - {""}


def group_facts(node: int) -> tuple[list[str], int | None]:
    """Groupes du projet sans membre, et le délai d'oubli du broker ``node``."""
    listing = admin().list_consumer_groups(request_timeout=ADMIN_SECONDS)
    minutes = None
    with suppress(KafkaException):
        (answer,) = (
            admin()
            .describe_configs([ConfigResource(ResourceType.BROKER, str(node))], request_timeout=ADMIN_SECONDS)
            .values()
        )
        minutes = int(answer.result()["offsets.retention.minutes"].value)
    ours = our_groups(os.environ)
    groups = listing.result().valid
    return sorted(
        group.group_id
        for group in groups
        if group.state.name == "EMPTY" and (group.group_id in ours or group.group_id.startswith(MONITOR_PREFIX))
    ), minutes


# --- Horloge ---


def judge_clock(ahead: Mapping[str, float], *, local: bool) -> list[Finding]:
    """``ahead`` : topic → secondes dont son message le plus récent devance l'horloge d'ici (négatif : il est passé)."""
    notes = Notes("horloge")
    late = {name: seconds for name, seconds in ahead.items() if seconds > AHEAD_SECONDS}
    if brokers := [seconds for name, seconds in late.items() if name in INTERNAL]:
        notes.warning(
            f"les brokers datent leurs écritures {duration(max(brokers))} après l'heure d'ici : l'horloge de "
            "cette machine retarde, ou la leur avance",
            "Remettez les deux à l'heure (NTP).",
        )
    if records := {name: seconds for name, seconds in late.items() if name not in INTERNAL}:
        text = ", ".join(f"{name} (de {duration(seconds)})" for name, seconds in records.items())
        notes.warning(
            f"messages datés du futur dans {text} : l'horloge de qui les a écrits avançait, ou celle d'ici retarde",
            "Mettez les machines à l'heure (NTP) ; --reset DATE et retention.ms suivent ces dates.",
        )
    if not notes.found and not ahead:
        return [unknown("horloge", "aucun message à comparer : Kafka ne donne pas l'heure de ses brokers")]
    if local:
        return notes.or_ok("celle des brokers, c'est la même machine ; aucun message du futur")
    return notes.or_ok("aucun message du futur (un broker en retard ne se voit pas ainsi)")


def newest(topics: Mapping[str, Topic]) -> dict[str, float]:
    """Topic → secondes dont son message le plus récent devance l'horloge d'ici."""
    asked = {
        TopicPartition(name, part): OffsetSpec.max_timestamp()  # type: ignore[no-untyped-call]
        for name, topic in topics.items()
        for part in range(topic.partitions)
    }
    if not asked:
        return {}
    answers: Mapping[TopicPartition, Future[Any]] = admin().list_offsets(asked, request_timeout=ADMIN_SECONDS)
    now, found = time.time(), dict[str, float]()
    for place, answer in answers.items():
        with suppress(KafkaException):
            stamp = answer.result().timestamp
            if stamp > 0:
                found[place.topic] = max(found.get(place.topic, float("-inf")), stamp / 1000 - now)
    return found


def topics(known: Cluster) -> list[Finding]:
    """Les topics des scripts."""
    wanted = wanted_topics(os.environ)
    return judge_topics(wanted, with_configs(known.topics, wanted), known.leaderless)


def groups(known: Cluster) -> list[Finding]:
    """Les groupes des scripts."""
    return judge_groups(
        *group_facts(next(iter(known.brokers.keys() - known.unreachable.keys()), next(iter(known.brokers))))
    )


def clock(known: Cluster) -> list[Finding]:
    """L'heure d'ici et celle des messages."""
    names = {*wanted_topics(os.environ), *INTERNAL}
    return judge_clock(newest({name: topic for name, topic in known.topics.items() if name in names}), local=local())


CHECKS: dict[str, Check] = {
    "topics": asking("topics", topics),
    "groupes": asking("groupes", groups),
    "horloge": asking("horloge", clock),
}
