"""Chaque faute que reconcile.py doit voir, faite à chaque étape : le verdict nomme l'étape, et elle seule."""

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from commun.kafka import admin_config, client_config, ensure_topics
from exercice3 import reconcile
from exercice3.confirmations import SUFFIX, Confirmed
from exercice3.ventes import CENT, Vente, to_json
from exercice3.verification import stages
from exercice3.verification.point import SUFFIX as POINT_SUFFIX
from tests.lab import Lab, as_json, expected

import pytest
from bson.decimal128 import Decimal128
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

Fault = AbstractContextManager[None]
Break = Callable[[Lab], Fault]

VENTES = expected(40)
FOREIGN = VENTES[0]._replace(id="autre-1")  # une vente qui ne vient pas de producer.py
TOTAL = len(VENTES) + 1
VICTIM = VENTES[7]
OTHER_REGION = next(v.region for v in VENTES if v.region != VICTIM.region)
CENT_MORE = "+0 ventes, 0,01 €"
LOST, DOUBLED = "-1 ventes", "+1 ventes"
MOVED = f"{OTHER_REGION}, {VICTIM.produit} : +1 ventes"


@pytest.fixture(scope="module")
def done(stack: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Toutes les ventes arrivées au bout : 40 de producer.py dans deux lots, et une autre."""
    lab = Lab(tmp_path_factory.mktemp("reconcile"))
    lab.produce(len(VENTES))
    lab.send_raw(to_json(FOREIGN))
    lab.consume(25)
    lab.consume(TOTAL - 25)
    lab.run("schedule_export", "--once", "--lot-size", "25")
    lab.run("pg")
    yield lab
    lab.close()


Verdict = tuple[int, set[str], str]


def options_of(lab: Lab) -> list[str]:
    """Où reconcile.py doit lire."""
    return ["--topic", lab.topic, "--group", lab.env["VENTES_GROUP"], "--export-dir", str(lab.exports)]


@pytest.fixture
def verdict(done: Lab, capsys: pytest.CaptureFixture[str]) -> Callable[..., Verdict]:
    """Code de sortie de reconcile.py, étapes qu'il dit fausses, et tout ce qu'il affiche."""

    def ask(*options: str) -> Verdict:
        known = [
            "--topic",
            done.topic,
            "--group",
            done.env["VENTES_GROUP"],
            "--export-dir",
            str(done.exports),
            "--full",
        ]
        code = reconcile.main([*known, *options])
        shown = capsys.readouterr().out
        lines = shown.partition("DIFFÉRENCES :\n")[2].partition("\n\n")[0].splitlines()
        return code, {re.split(r",| :", line.strip())[0] for line in lines}, shown

    return ask


def test_all_equal(done: Lab, verdict: Callable[..., Verdict]) -> None:
    """Rien n'est changé : tout est égal, et le script sort avec 0."""
    assert verdict("--expect", str(TOTAL))[:2] == (0, set())
    assert f"Tout est égal, au centime, de producer.py aux tableaux de bord ({TOTAL} ventes)" in done.reconcile(TOTAL)


def test_only_what_is_new_is_read(done: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """Depuis le point, un ancien fichier n'est plus ouvert : seul --full voit qu'il a changé ; MongoDB se compte."""
    options = options_of(done)
    assert reconcile.main([*options, "--full"]) == 0
    assert len(done.messages(done.topic + POINT_SUFFIX)) >= 1
    with rewrite(lambda line: "")(done):
        assert reconcile.main(options) == 0
        assert reconcile.main([*options, "--full"]) == 1
    for fault in (mongo_lost, mongo_doubled()):
        with fault(done):
            assert reconcile.main(options) == 1
    assert reconcile.main(options) == 0
    assert "Tout est égal" in capsys.readouterr().out


def test_a_foreign_version_is_told(done: Lab, verdict: Callable[..., Verdict]) -> None:
    """Un document d'un autre programme porte une version : une différence, et non la fin de reconcile.py."""
    done.mongo.ventes.insert_one({"_id": "autre", "version": 2}, bypass_document_validation=True)
    try:
        code, wrong, shown = verdict()
    finally:
        done.mongo.ventes.delete_one({"_id": "autre"})
    assert (code, wrong) == (1, {"MongoDB"})
    assert "1 documents portent une version, et ne sont pas des ventes" in shown


def test_another_number_was_expected(verdict: Callable[..., Verdict]) -> None:
    """--expect : une vente de plus ou de moins que prévu."""
    for wrong in (TOTAL + 1, TOTAL - 1):
        code, _, shown = verdict("--expect", str(wrong))
        assert code == 1
        assert f"{wrong} ventes étaient attendues, {TOTAL} ont été produites." in shown


# --- MongoDB ---


@contextmanager
def mongo_lost(lab: Lab) -> Iterator[None]:
    """La vente manque."""
    document = lab.mongo.ventes.find_one_and_delete({"_id": VICTIM.id}) or {}
    yield
    lab.mongo.ventes.insert_one(document)


def mongo_doubled(**changes: object) -> Break:
    """La vente y est aussi sous un autre identifiant, et d'autres champs."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        document = lab.mongo.ventes.find_one({"_id": VICTIM.id}) or {}
        lab.mongo.ventes.insert_one(document | {"_id": "double"} | changes)
        yield
        lab.mongo.ventes.delete_one({"_id": "double"})

    return fault


def mongo_changed(**changes: object) -> Break:
    """La vente a d'autres champs."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        before = lab.mongo.ventes.find_one_and_update({"_id": VICTIM.id}, {"$set": changes}) or {}
        yield
        lab.mongo.ventes.replace_one({"_id": VICTIM.id}, before)

    return fault


# --- Fichiers ---


def files_changed(change: Callable[[Path], None]) -> Break:
    """``change`` du lot qui porte la vente ; le dossier est ensuite remis comme il était."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        before = {path: path.read_bytes() for path in lab.exports.iterdir()}
        change(next(path for path in before if path.suffix == ".csv" and VICTIM.id.encode() in before[path]))
        yield
        for path in set(lab.exports.iterdir()) - before.keys():
            path.unlink()
        for path, content in before.items():
            path.write_bytes(content)

    return fault


def rewrite(change: Callable[[str], str]) -> Break:
    """La ligne de la vente devient ``change`` de cette ligne."""

    def edit(path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        text = "".join(change(line) if line.startswith(VICTIM.id) else line for line in lines)
        path.write_text(text, encoding="utf-8")

    return files_changed(edit)


def copy_lot(path: Path) -> None:
    """Le lot est aussi là sous un autre nom."""
    other = path.with_name("ventes_999999_copie.csv")
    other.write_bytes(path.read_bytes())
    manifest = path.with_suffix(".json").read_text(encoding="utf-8")
    other.with_suffix(".json").write_text(manifest.replace(path.name, other.name), encoding="utf-8")


# --- PostgreSQL ---


def sql(break_it: str, repair: str, *, sums: bool = False) -> Break:
    """Une requête qui fausse, une qui répare ; ``sums`` : les déclencheurs reportent la faute dans les sommes."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        for statement in (break_it, None, repair):
            if statement is None:
                yield
                continue
            quiet = "" if sums else "ALTER TABLE ventes DISABLE TRIGGER USER;"
            lab.sql(f"{quiet} {statement}; ALTER TABLE ventes ENABLE TRIGGER USER")

    return fault


def quoted(text: object) -> str:
    """``text`` entre apostrophes, pour PostgreSQL."""
    return "'" + str(text).replace("'", "''") + "'"


WHERE = f"WHERE id = {quoted(VICTIM.id)}"
ROW = f"{quoted(VICTIM.produit)}, {quoted(VICTIM.region)}, {VICTIM.montant}, {quoted(VICTIM.date_vente)}"
DAY = (
    f"WHERE jour = {quoted(VICTIM.date_vente.date())} AND produit = {quoted(VICTIM.produit)} "
    f"AND region = {quoted(VICTIM.region)}"
)
HOUR = f"{DAY} AND heure = {VICTIM.date_vente.hour}"
REMOVE = (f"DELETE FROM ventes {WHERE}", f"INSERT INTO ventes VALUES ('{VICTIM.id}', {ROW})")
ADD = (f"INSERT INTO ventes VALUES ('double', {ROW})", "DELETE FROM ventes WHERE id = 'double'")


def moved(table: str, where: str) -> tuple[str, str]:
    """La vente passe d'une région à l'autre, et revient."""
    there, back = quoted(OTHER_REGION), quoted(VICTIM.region)
    change = f"UPDATE {table} SET region = {there} {where}"
    return change, f"UPDATE {table} SET region = {back} " + where.replace(back, there)


def added(table: str, column: str, amount: str, where: str) -> tuple[str, str]:
    """``column`` augmente de ``amount``, puis redescend."""
    update = f"UPDATE {table} SET {column} = {column} {{}} {amount} {where}"
    return update.format("+"), update.format("-")


POSTGRES, PER_DAY, CHARTS = {"PostgreSQL"}, {"par jour"}, {"tableaux"}
VIEW_FILTERED = (
    "ALTER VIEW ventes_analyse RENAME TO vraie; CREATE VIEW ventes_analyse AS SELECT * FROM vraie WHERE region <> "
    + quoted(VICTIM.region),
    "DROP VIEW ventes_analyse; ALTER VIEW vraie RENAME TO ventes_analyse",
)
VIEW_MISSING = ("ALTER VIEW ventes_analyse RENAME TO vraie", "ALTER VIEW vraie RENAME TO ventes_analyse")

FAULTS: dict[str, tuple[Break, set[str], str]] = {
    "MongoDB, perdue": (mongo_lost, {"MongoDB"}, LOST),
    "MongoDB, doublée": (mongo_doubled(), {"MongoDB"}, DOUBLED),
    "MongoDB, en trop, d'une région inconnue": (mongo_doubled(region="Nulle part"), {"MongoDB"}, "Nulle part, "),
    "MongoDB, un centime": (mongo_changed(montant=Decimal128(VICTIM.montant + CENT)), {"MongoDB"}, CENT_MORE),
    "MongoDB, autre région": (mongo_changed(region=OTHER_REGION), {"MongoDB"}, MOVED),
    "CSV, perdue": (rewrite(lambda line: ""), {"CSV"}, LOST),
    "CSV, doublée": (rewrite(lambda line: line + line), {"CSV"}, "1 ventes sont dans deux fichiers"),
    "CSV, un centime": (
        rewrite(lambda line: line.replace(str(VICTIM.montant), str(VICTIM.montant + CENT))), {"CSV"}, CENT_MORE,
    ),
    "CSV, autre région": (rewrite(lambda line: line.replace(VICTIM.region, OTHER_REGION)), {"CSV"}, MOVED),
    "CSV, dans deux fichiers": (files_changed(copy_lot), {"CSV"}, "ventes sont dans deux fichiers"),
    "CSV, lot sans manifeste": (files_changed(lambda path: path.with_suffix(".json").unlink()), {"CSV"}, LOST),
    "CSV, manifeste sans lot": (
        files_changed(lambda path: path.unlink()), {"CSV"}, "fichier illisible (n'existe pas)",
    ),
    "PostgreSQL, perdue": (sql(*REMOVE), POSTGRES, LOST),
    "PostgreSQL, doublée": (sql(*ADD), POSTGRES, DOUBLED),
    "PostgreSQL, un centime": (sql(*added("ventes", "montant", "0.01", WHERE)), POSTGRES, CENT_MORE),
    "PostgreSQL, autre région": (sql(*moved("ventes", WHERE)), POSTGRES, MOVED),
    "PostgreSQL et ses sommes": (sql(*REMOVE, sums=True), POSTGRES | PER_DAY | CHARTS, LOST),
    "par jour, perdue": (sql(*added("ventes_par_jour", "nombre_ventes", "-1", DAY)), PER_DAY, LOST),
    "par jour, doublée": (sql(*added("ventes_par_jour", "nombre_ventes", "1", DAY)), PER_DAY, DOUBLED),
    "par jour, un centime": (sql(*added("ventes_par_jour", "chiffre_affaires", "0.01", DAY)), PER_DAY, CENT_MORE),
    "par jour, autre région": (sql(*moved("ventes_par_jour", DAY)), PER_DAY, MOVED),
    "par heure, doublée": (sql(*added("ventes_par_heure", "nombre_ventes", "1", HOUR)), CHARTS, DOUBLED),
    "par heure, un centime": (sql(*added("ventes_par_heure", "chiffre_affaires", "0.01", HOUR)), CHARTS, CENT_MORE),
    "par heure, autre région": (sql(*moved("ventes_par_heure", HOUR)), CHARTS, MOVED),
    "vue filtrée": (sql(*VIEW_FILTERED), CHARTS, f"{VICTIM.region}, {VICTIM.produit} : -"),
    "vue absente": (sql(*VIEW_MISSING), CHARTS, "autres différences"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_its_step(done: Lab, verdict: Callable[..., Verdict], name: str) -> None:
    """La faute donne le code 1 et nomme son étape, sans accuser les autres ; réparée, tout est égal."""
    fault, steps, sentence = FAULTS[name]
    with fault(done):
        code, named, shown = verdict("--expect", str(TOTAL))
    assert (code, named) == (1, steps), shown
    assert sentence in shown


def test_everything_was_repaired(verdict: Callable[..., Verdict]) -> None:
    """Les fautes ci-dessus ont été défaites : chacune était donc la seule."""
    assert verdict("--expect", str(TOTAL))[:2] == (0, set())


def test_postgresql_is_read_at_one_instant(
    done: Lab, verdict: Callable[..., Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Une vente arrive entre deux lectures de PostgreSQL : elle n'est dans aucune, ou dans toutes."""
    first, *others = stages.IN_POSTGRES
    with ExitStack() as afterwards:

        def meanwhile() -> Iterator[tuple[str, str, str, str]]:
            yield first
            afterwards.enter_context(sql(*ADD, sums=True)(done))
            yield from others

        monkeypatch.setattr(stages, "IN_POSTGRES", meanwhile())
        code, named, shown = verdict("--expect", str(TOTAL))
    assert (code, named) == (0, set()), shown


# --- Kafka : un autre topic, dont les messages diffèrent de ce que la graine donne ---


@pytest.mark.parametrize(
    ("value", "steps", "sentences"),
    [
        (
            None,
            {"produites", "Kafka"},
            ["graine 1 : 1 ventes confirmées ne sont pas dans Kafka", f"{VICTIM.produit} : {LOST}"],
        ),
        (as_json(VICTIM, montant=float(VICTIM.montant + CENT)), {"Kafka"}, [CENT_MORE]),
        (as_json(VICTIM, region=OTHER_REGION), {"Kafka"}, [MOVED]),
        (as_json(VICTIM, montant=-1), {"produites", "Kafka"}, ["1 messages invalides", f"{VICTIM.produit} : {LOST}"]),
    ],
    ids=["perdue", "un centime", "autre région", "illisible"],
)
def test_a_fault_in_kafka(
    done: Lab, verdict: Callable[..., Verdict], value: bytes | None, steps: set[str], sentences: list[str]
) -> None:
    """Une vente que Kafka n'a pas, ou pas telle que producer.py l'a produite."""
    good = [to_json(vente) for vente in (*VENTES, FOREIGN) if vente is not VICTIM]
    topic = other_topic(done, *good, *([value] if value else []))
    code, named, shown = verdict("--topic", topic, "--expect", str(TOTAL))
    assert (code, named) == (1, steps), shown
    assert all(sentence in shown for sentence in sentences), shown


def test_a_message_sent_twice_is_told_not_counted(done: Lab, verdict: Callable[..., Verdict]) -> None:
    """Un message répété se dit, et n'est pas une faute : la vente n'est comptée qu'une fois, partout."""
    topic = other_topic(done, *(to_json(vente) for vente in (*VENTES, FOREIGN, VICTIM, FOREIGN)))
    code, named, shown = verdict("--topic", topic, "--expect", str(TOTAL))
    assert (code, named) == (0, set()), shown
    assert "2 messages répétés" in shown


def other_topic(lab: Lab, *values: bytes, promised: bool = True) -> str:
    """Un topic de plus, avec ces messages ; ``promised`` : et ce que producer.py a vu confirmer."""
    topic = f"{lab.topic}-{uuid.uuid4().hex[:8]}"
    ensure_topics(client_config({}), NewTopic(topic, 3, 3), NewTopic(topic + SUFFIX, 1, 3))
    lab.send_raw(*values, topic=topic)
    if promised:
        lab.send_raw(promise(VENTES), topic=topic + SUFFIX)
    return topic


def promise(ventes: list[Vente]) -> bytes:
    """Ce que producer.py dit une fois ces ventes confirmées."""
    confirmed = Confirmed(1, 1)
    for vente in ventes:
        confirmed.add(vente)
    return confirmed.to_json()


def test_a_lost_tail_is_seen(done: Lab, verdict: Callable[..., Verdict]) -> None:
    """Les dix dernières ventes confirmées ne sont plus dans Kafka : rien, dans les numéros lus, ne le dirait."""
    kept = [to_json(vente) for vente in (*VENTES[:-10], FOREIGN)]
    code, named, shown = verdict("--topic", other_topic(done, *kept))
    assert (code, named) == (1, {"produites", "Kafka"}), shown
    assert "graine 1 : 10 ventes confirmées ne sont pas dans Kafka" in shown
    assert "À regarder d'abord : produites" in shown


def test_producer_promises_what_was_confirmed(done: Lab) -> None:
    """producer.py laisse ce que Kafka lui a confirmé, et rien de plus."""
    values = [message.value() for message in done.messages(done.topic + SUFFIX)]
    assert values[-1] == promise(VENTES)


def test_purged_messages_are_made_again(done: Lab, verdict: Callable[..., Verdict]) -> None:
    """Kafka a effacé des ventes que producer.py avait vu confirmer : elles sont refaites, ce n'est pas une faute."""
    topic = other_topic(done, *(to_json(vente) for vente in (*VENTES, FOREIGN)))
    admin = AdminClient(admin_config(client_config({})))
    ends = [TopicPartition(topic, number, 0) for number in range(3)]
    consumer = Consumer(client_config({"group.id": "purge"}))
    try:
        for end in ends:
            end.offset = consumer.get_watermark_offsets(end, timeout=20)[1]
    finally:
        consumer.close()
    for answer in admin.delete_records(ends).values():
        answer.result(20)
    code, named, shown = verdict("--topic", topic)
    assert (code, named) == (0, set()), shown
    assert f"{TOTAL} messages effacés par Kafka, dont 40 ventes refaites" in shown


def test_an_identifier_of_the_same_form_is_not_a_suite(done: Lab, verdict: Callable[..., Verdict]) -> None:
    """« 00000001-20000000 » et « deadbeef-00000003 », d'un autre programme : rien n'est refait jusque-là."""
    others = [VENTES[0]._replace(id="00000001-20000000"), VENTES[0]._replace(id="deadbeef-00000003")]
    topic = other_topic(done, *(to_json(vente) for vente in (*VENTES, FOREIGN, *others)))
    code, named, shown = verdict("--topic", topic, "--expect", str(TOTAL + 2))
    assert (code, named) == (0, set()), shown
    assert "2 ventes" in shown.partition("En route :")[2], shown


def test_a_suite_without_promise_is_due_up_to_its_greatest_number(done: Lab, verdict: Callable[..., Verdict]) -> None:
    """Un topic d'avant les confirmations : un trou reste une vente perdue, et ce qui commence à 11 se dit."""
    holed = [to_json(vente) for vente in (*VENTES, FOREIGN) if vente is not VICTIM]
    code, _, shown = verdict("--topic", other_topic(done, *holed, promised=False))
    assert code == 1
    assert "graine 1 : 1 ventes ne sont pas dans Kafka" in shown
    _, named, shown = verdict("--topic", other_topic(done, *map(to_json, VENTES[10:]), promised=False))
    assert "la suite 1 commence à 11" in shown
    assert named == {"MongoDB", "CSV"} | POSTGRES | PER_DAY | CHARTS


# --- Des pipelines neufs : « done » n'y survit pas, ces essais sont les derniers ---


def test_what_is_on_its_way_is_not_a_fault(lab: Lab) -> None:
    """Arrêtée à chaque étape, la suite est en route, jamais perdue ; et l'étape où elle manque vraiment est nommée."""
    lab.produce(60)
    assert "60 ventes" in on_its_way(lab.reconcile(60), "MongoDB")
    lab.consume(60)
    assert "60 ventes" in on_its_way(lab.reconcile(60), "CSV")
    document = lab.mongo.ventes.find_one_and_delete({"_id": VENTES[0].id}) or {}
    assert "À regarder d'abord : MongoDB" in lab.reconcile(60, code=1)
    lab.mongo.ventes.insert_one(document)
    lab.run("schedule_export", "--once")
    assert "60 ventes" in on_its_way(lab.reconcile(60), "PostgreSQL")
    assert "Tout n'est pas arrivé" in lab.run("reconcile", "--wait", "0.1", code=1)
    lab.run("pg")
    assert "Tout est égal" in lab.reconcile(60)
    lab.produce(70)
    assert "10 ventes" in on_its_way(lab.run("reconcile"), "MongoDB")
    lab.consume(70)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    assert "Tout est égal" in lab.reconcile(70)


def on_its_way(shown: str, step: str) -> str:
    """La ligne « en route vers » cette étape."""
    lines = [line for line in shown.splitlines() if line.endswith(f" vers {step}")]
    assert len(lines) == 1, shown
    return lines[0]


def test_a_dead_letter_explains_its_sale(lab: Lab) -> None:
    """Un message que consumer.py a mis de côté n'est une vente nulle part ; laissé de côté sans lettre, il se dit."""
    lab.produce(1)
    lab.consume(1)
    lab.send_raw(to_json(VENTES[0]._replace(montant=VENTES[0].montant + 1)), b"{")
    lab.consume(2)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    shown = lab.reconcile(1)
    assert "Tout est égal" in shown
    assert "2 lettres mortes" in shown
    lab.send_raw(b"[]")
    assert "Tout est égal" in lab.reconcile(1)  # pas encore lu
    past(lab)
    assert "1 messages lus par consumer.py ne sont ni des ventes ni des lettres mortes" in lab.reconcile(1, code=1)


def past(lab: Lab) -> None:
    """Le groupe valide la fin du topic, sans avoir rien fait des derniers messages."""
    consumer = Consumer(client_config({"group.id": lab.env["VENTES_GROUP"]}))
    try:
        there = [TopicPartition(lab.topic, number) for number in range(6)]
        for place in there:
            place.offset = consumer.get_watermark_offsets(place, timeout=20)[1]
        consumer.commit(offsets=there, asynchronous=False)
    finally:
        consumer.close()
