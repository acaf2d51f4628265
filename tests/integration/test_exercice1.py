"""L'exercice 1 sur de vrais serveurs : chaque script lancé comme le fait un étudiant."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from commun.exactly_once import POSITIONS_CONFIG
from commun.kafka import client_config, ensure_topics
from commun.settings import ROOT, bootstrap_servers
from exercice1.topic import PARTITIONS
from tests.lab import CsvLab, bar, headers, take_place, wait_until

import pytest
from confluent_kafka import ConsumerGroupState, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

HEADER = "id,nom\n"


def rows(*numbers: int) -> str:
    """Quelques lignes."""
    return "".join(f"{number},nom {number}\n" for number in numbers)


# --- producer.py ---


def test_rows_appear_while_the_file_grows(csv_lab: CsvLab) -> None:
    """Le fichier n'existe pas, puis grandit sous les yeux du script ; chaque ligne porte son fichier et son numéro."""
    producer = csv_lab.start("producer")
    producer.wait_for("n'existe pas encore")
    csv_lab.write(HEADER + '1,"Élan, dit ""le vif"""\n2,"deux\nlignes"\n3,à moi')
    csv_lab.wait_for(2)
    csv_lab.write("tié\n")
    csv_lab.wait_for(3)
    assert producer.stop(signal.SIGINT) == 0
    messages = csv_lab.messages(csv_lab.topic)
    assert csv_lab.column("nom") == ['Élan, dit "le vif"', "deux\nlignes", "à moitié"]
    assert [headers(message) for message in messages] == [
        {"source.file": str(csv_lab.path), "source.line": line} for line in ("2", "3", "5")
    ]
    assert {message.key() for message in messages} == {b"ventes.csv"}
    assert len({message.partition() for message in messages}) == 1


def test_nothing_twice_after_a_restart(csv_lab: CsvLab) -> None:
    """Relancé, il reprend à sa place, sans fichier d'état ; --from-start renvoie tout, exprès."""
    csv_lab.write(HEADER + rows(1, 2) + "3,sans fin de ligne")
    csv_lab.run("producer", "--once")
    csv_lab.run("producer", "--once")
    csv_lab.write("\n" + rows(4))
    csv_lab.run("producer", "--once")
    assert csv_lab.column() == ["1", "2", "3", "4"]
    assert list(csv_lab.path.parent.iterdir()) == [csv_lab.path]
    csv_lab.run("producer", "--once", "--from-start")
    assert csv_lab.column() == ["1", "2", "3", "4"] * 2


def test_what_is_not_csv_becomes_a_dead_letter(csv_lab: CsvLab) -> None:
    """Octets gardés, avec le fichier, la ligne et la raison ; le reste passe."""
    csv_lab.path.write_bytes(b"id,prix\n1,2,3\n2,\xff\n3,abc\n4,'1 234\xc2\xa0567,50'\n5,\n".replace(b"'", b'"'))
    output = csv_lab.run("producer", "--once", "--types", "prix:decimal")
    assert [message.value() for message in csv_lab.messages(csv_lab.topic)] == [
        b'{"id":"4","prix":1234567.50}',
        b'{"id":"5","prix":null}',
    ]
    letters = csv_lab.rejected()
    assert [value for value, _ in letters] == [b"1,2,3\n", b"2,\xff\n", b"3,abc\n"]
    assert [letter["dlq.line"] for _, letter in letters] == ["2", "3", "4"]
    assert letters[2][1]["dlq.reason"] == "« prix » : 'abc' n'est pas un nombre décimal"
    assert {(letter["dlq.file"], letter["dlq.topic"]) for _, letter in letters} == {(str(csv_lab.path), csv_lab.topic)}
    assert "Lignes envoyées : 2, lettres mortes : 3." in output


def test_progress_of_each_file(csv_lab: CsvLab) -> None:
    """--progress : octets confirmés et présents, lignes, lettres mortes de chaque fichier ; ce qui reste se voit."""
    csv_lab.write(HEADER + "1,é\n2\n3,inachevée")
    other = csv_lab.path.with_name("autre.csv")
    csv_lab.write(HEADER + rows(1, 2, 3), other)
    producer = csv_lab.start("producer", "--progress", "0.2", str(csv_lab.path), str(other))
    sizes = csv_lab.path.stat().st_size, other.stat().st_size
    wanted = {(str(csv_lab.path), 1, 1, sizes[0], len("3,inachevée".encode())), (str(other), 3, 0, sizes[1], 0)}

    def told() -> set[tuple[object, ...]]:
        shown = map(json.loads, list(producer.out))
        return {(row["file"], row["rows"], row["dead_letters"], row["size"], row["lag"]) for row in shown}

    wait_until(lambda: wanted <= told(), 60, told)
    assert producer.stop() == 0


def test_a_folder_and_new_files(csv_lab: CsvLab) -> None:
    """Un dossier : ses fichiers, les nouveaux, chacun dans son ordre ; un fichier renommé n'est pas relu."""
    folder = csv_lab.path.parent
    for name in ("a", "b"):
        csv_lab.write(HEADER + rows(*range(100)), folder / f"{name}.csv")
    producer = csv_lab.start("producer", str(folder))
    csv_lab.wait_for(200)
    csv_lab.write("x;y\n1;2\n", folder / "c.csv")
    csv_lab.wait_for(201)
    (folder / "a.csv").rename(folder / "ancien.csv")
    csv_lab.write(HEADER + rows(100), folder / "a.csv")
    csv_lab.wait_for(202)
    producer.wait_for("ancien.csv : colonnes")
    csv_lab.write(rows(101), folder / "ancien.csv")
    csv_lab.wait_for(203)
    assert producer.stop() == 0
    found: dict[str, list[str]] = {}
    for message in csv_lab.messages(csv_lab.topic):
        name = Path(headers(message)["source.file"]).stem
        found.setdefault(name, []).append(str(next(iter(json.loads(message.value() or b"").values()))))
    numbers = [str(number) for number in range(100)]
    assert found == {"a": [*numbers, "100"], "b": numbers, "c": ["1"], "ancien": ["101"]}


def test_encoding_delimiter_and_key(csv_lab: CsvLab) -> None:
    """cp1252, point-virgule reconnu, clé prise dans une colonne."""
    csv_lab.path.write_bytes("région;nom\nÎle-de-France;œuf\nBretagne;Élan\n".encode("cp1252"))
    csv_lab.run("producer", "--once", "--encoding", "cp1252", "--key", "région")
    messages = {message.key(): json.loads(message.value() or b"") for message in csv_lab.messages(csv_lab.topic)}
    assert messages == {
        "Île-de-France".encode(): {"région": "Île-de-France", "nom": "œuf"},
        b"Bretagne": {"région": "Bretagne", "nom": "Élan"},
    }


def test_a_cell_of_megabytes(csv_lab: CsvLab) -> None:
    """Une cellule de 3 Mo, dont chaque caractère double en JSON, arrive entière ; une ligne de 5 Mo est gardée."""
    cell = '"' * 3_000_000
    with csv_lab.path.open("w", encoding="utf-8") as file:
        file.write('id,nom\n1,"' + cell.replace('"', '""')[:3_000_000] + '"\n2,' + "x" * 5_000_000 + "\n3,y\n")
    csv_lab.run("producer", "--once")
    assert csv_lab.objects() == [{"id": "1", "nom": '"' * 1_500_000}, {"id": "3", "nom": "y"}]
    assert b"".join(value or b"" for value, _ in csv_lab.rejected()) == b"2," + b"x" * 5_000_000 + b"\n"


def test_a_second_producer_takes_the_place_of_the_first(csv_lab: CsvLab) -> None:
    """Deux producteurs sur un fichier : le premier s'écarte et le dit, aucune ligne n'est doublée."""
    csv_lab.write(HEADER + rows(1))
    first = csv_lab.start("producer")
    csv_lab.wait_for(1)
    second = csv_lab.start("producer")
    second.wait_for("colonnes")
    csv_lab.write(rows(2))
    assert first.process.wait(60) == 1
    assert "Un autre producer.py suit maintenant" in first.text
    csv_lab.wait_for(2)
    csv_lab.write(rows(3))
    csv_lab.wait_for(3)
    assert second.stop() == 0
    assert csv_lab.column() == ["1", "2", "3"]


def test_a_second_producer_is_slow_to_write(csv_lab: CsvLab) -> None:
    """Le premier laisse la place à qui s'est annoncé, même lent ; écarté sans annonce, il continue."""
    csv_lab.write(HEADER + rows(1))
    first = csv_lab.start("producer")
    csv_lab.wait_for(1)
    bar(csv_lab.topic, str(csv_lab.path))  # comme une transaction qui a trop duré
    csv_lab.write(rows(2))
    csv_lab.wait_for(2)
    second = take_place(csv_lab.topic, str(csv_lab.path))
    csv_lab.write(rows(3))
    assert first.process.wait(60) == 1
    assert "Un autre producer.py suit maintenant" in first.text
    second.producer.write(second.topic, b"", b"essai")
    second.producer.commit()  # le premier ne lui a pas repris la place
    assert csv_lab.column() == ["1", "2"]


@pytest.mark.parametrize(
    ("options", "env", "code", "sentence"),
    [
        (["--types", "prix:euro"], {}, 2, "écrivez COLONNE:TYPE"),
        (["--encoding", "gbk"], {}, 2, "UTF-8, UTF-16 ou un encodage d'un octet"),
        (["--delimiter", '"'], {}, 2, "n'est pas un séparateur"),
        (["--nimporte"], {}, 2, "option ou argument inconnu"),
        (["--once", "absent.csv"], {}, 1, "absent.csv n'existe pas."),
        (["--once", "--key", "prix"], {}, 1, "il n'a pas de colonne « prix » (il a : id, nom)"),
        (["--once"], {"KAFKA_TRANSACTIONAL_ID": "x"}, 1, "que le script décide"),
        (["--once"], {"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}, 1, "Kafka ne répond pas sur localhost:1 : démarrez"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(
    csv_lab: CsvLab, options: list[str], env: dict[str, str], code: int, sentence: str
) -> None:
    """Mauvaise option : code 2 ; empêché : code 1 ; une phrase à chaque fois."""
    csv_lab.write(HEADER + rows(1))
    assert sentence in csv_lab.run("producer", *options, env=env, code=code)


def test_a_row_too_big_for_the_topic_stops_the_producer(csv_lab: CsvLab) -> None:
    """Kafka refuse une ligne pour de bon : une phrase, code 1 ; la position n'avance pas, la ligne corrigée passe."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers()})
    request = NewTopic(csv_lab.topic, num_partitions=1, replication_factor=3, config={"max.message.bytes": "10000"})
    admin.create_topics([request])[csv_lab.topic].result()
    csv_lab.write(HEADER + rows(1))
    csv_lab.run("producer", "--once")
    csv_lab.write("2," + "".join(map(chr, range(256, 16_000))) + "\n3,x\n")
    for _ in range(2):
        said = csv_lab.run("producer", "--once", code=1)
        assert re.search(rf"Kafka refuse .* \({csv_lab.topic}, clé « ventes.csv », [0-9\u202f\xa0 ]+ octets\)", said)
    csv_lab.path.write_text(HEADER + rows(1, 2, 3), encoding="utf-8")
    csv_lab.run("producer", "--once")
    assert csv_lab.column() == ["1", "2", "3"]


# --- consumer.py ---


@pytest.fixture
def filled(csv_lab: CsvLab) -> CsvLab:
    """Un topic avec trois lignes en JSON, puis une ligne brute, un message vide et des octets illisibles."""
    csv_lab.write("id,nom,prix\n1,Élan,1\n2,b,22\n3,c,3\n")
    csv_lab.run("producer", "--once", "--types", "prix:decimal")
    producer = Producer({"bootstrap.servers": bootstrap_servers()})
    partition = csv_lab.messages(csv_lab.topic)[0].partition()
    for value in (b"4,brut,\x1b[31m", None, b"\xff"):
        producer.produce(csv_lab.topic, value, partition=partition or 0)
    assert producer.flush(30) == 0
    return csv_lab


def console(lab: CsvLab, *options: str) -> list[str]:
    """Ce que consumer.py écrit sur sa sortie."""
    done = subprocess.run(
        [sys.executable, "consumer.py", "--from-beginning", "--max-messages", "6", *options],
        cwd=ROOT / "exercice1", env=lab.env, capture_output=True, text=True, check=True, timeout=60, encoding="utf-8",
        errors="replace",
    )  # fmt: skip
    return done.stdout.splitlines()


def test_the_console_formats(filled: CsvLab) -> None:
    """Table alignée, lignes JSON, octets : ce qui n'est pas du JSON est montré tel quel, sans agir sur le terminal."""
    assert console(filled, "--format", "table") == [
        "id  nom   prix", "1   Élan  1", "2   b     22", "3   c     3",
        "texte : 4,brut,\\x1b[31m", "texte : (vide)", "texte : \ufffd",
    ]  # fmt: skip
    assert console(filled) == console(filled, "--format", "json")
    assert console(filled) == [
        '{"id":"1","nom":"Élan","prix":1}', '{"id":"2","nom":"b","prix":22}', '{"id":"3","nom":"c","prix":3}',
        '"4,brut,\\u001b[31m"', "null", '"\ufffd"',
    ]  # fmt: skip
    assert console(filled, "--format", "raw")[3:] == ["4,brut,\x1b[31m", "", "\ufffd"]


def test_the_console_details_and_filters(filled: CsvLab) -> None:
    """--show ajoute la place, la clé, l'heure, les en-têtes ; --filter choisit."""
    (line,) = console(
        filled, "--show", "offset,key,headers", "--filter", "nom=b", "--filter", "prix=22", "--idle-timeout", "2"
    )
    assert json.loads(line) == {
        "offset": 1, "key": "ventes.csv", "source.file": str(filled.path), "source.line": "3",
        "value": {"id": "2", "nom": "b", "prix": 22},
    }  # fmt: skip
    assert console(filled, "--show", "partition,time", "--format", "table")[0].split() == [
        "partition", "time", "id", "nom", "prix",
    ]  # fmt: skip


def test_the_group_remembers_what_was_shown(filled: CsvLab) -> None:
    """La position du groupe n'avance que pour ce qui est montré."""
    shown = [filled.run("consumer", "--max-messages", "2").splitlines() for _ in range(3)]
    values = [line for lines in shown for line in lines if line.startswith(("{", '"', "null"))]
    assert values == console(filled)


def test_a_lost_topic_is_told(csv_lab: CsvLab) -> None:
    """Le topic a été effacé, pas celui des positions : relancé, producer.py dit que rien n'en repart."""
    csv_lab.write("id,ville\n1,Brest\n")
    csv_lab.run("producer", "--once", str(csv_lab.path))
    csv_lab.delete_topic()
    assert "avait disparu" in csv_lab.run("producer", "--once", str(csv_lab.path))


def test_the_topic_is_recreated_under_the_console(filled: CsvLab) -> None:
    """Effacé puis recréé, plus long, sous la console en marche : le nouveau topic est montré en entier."""
    consumer = filled.start("consumer")
    wait_until(lambda: len(consumer.out) == 6, 60, lambda: consumer.text)
    partition = filled.messages(filled.topic)[0].partition() or 0
    filled.delete_topic()
    ensure_topics(client_config({}), NewTopic(filled.topic, PARTITIONS, 3))
    producer = Producer({"bootstrap.servers": bootstrap_servers()})
    for number in range(40):
        producer.produce(filled.topic, b'{"n":%d}' % number, partition=partition)
    assert producer.flush(30) == 0
    wanted = {f'{{"n":{number}}}' for number in range(40)}
    wait_until(lambda: wanted <= {*"".join(consumer.out).split()}, 60, lambda: consumer.text)
    consumer.wait_for("a été recréé")  # le client a pu revenir au début de lui-même, avant que cela se voie
    assert consumer.stop(signal.SIGINT) == 0


def test_a_closed_pipe_ends_the_console(filled: CsvLab) -> None:
    """« | head » : le script finit de lui-même, sans erreur, même quand plus rien n'arrive."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} consumer.py --from-beginning | head -2"],
        cwd=ROOT / "exercice1", env=filled.env, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_leaves_the_group_at_once(filled: CsvLab) -> None:
    """Ctrl-C : code 0, et le groupe est vide aussitôt."""
    consumer = filled.start("consumer")
    wait_until(lambda: len(consumer.out) == 6, 60, lambda: consumer.text)
    assert consumer.stop(signal.SIGINT) == 0
    admin = AdminClient({"bootstrap.servers": bootstrap_servers()})
    group = filled.env["CSV_GROUP"]
    assert admin.describe_consumer_groups([group])[group].result().state == ConsumerGroupState.EMPTY


def test_topics_of_the_former_version(csv_lab: CsvLab) -> None:
    """Un topic rempli par la version d'avant (enregistré tel quel), puis cette version-ci : rien ne repart."""
    folder = csv_lab.path.parent
    texts = {"v.csv": "id,nom\n3,c\n", "v.csv.1": 'id,nom\n1,Île\n2,"a\nb"\n', "w.csv": "id,nom\n7,x\n"}
    names = {"{dossier}": str(folder)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        names[f'"inode {name}"'] = str((folder / name).stat().st_ino)
    topics = [NewTopic(csv_lab.topic, 1, 3), NewTopic(f"{csv_lab.topic}-positions", 1, 3, config=POSITIONS_CONFIG)]
    ensure_topics(client_config({}), *topics)
    producer = Producer(client_config({"acks": "all"}))
    for line in (ROOT / "tests" / "data" / "positions_former.jsonl").read_text(encoding="utf-8").splitlines():
        key, value = json.loads(line)
        for word, real in names.items():
            key, value = key.replace(word, real), value.replace(word, real)
        producer.produce(topics[1].topic, value, key)
    assert producer.flush(30) == 0
    command = ("--once", f"{folder}/v.csv*", str(folder / "w.csv"))
    assert "Lignes envoyées : 0, lettres mortes : 0" in csv_lab.run("producer", *command)
    for number, name in enumerate(texts, start=10):
        csv_lab.write(f"{number},neuf\n", folder / name)
    csv_lab.run("producer", *command)
    assert sorted(csv_lab.column()) == ["10", "11", "12"]
