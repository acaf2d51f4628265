"""Options, réglages, variables d'environnement."""

import argparse
import contextlib
import itertools
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from unittest import mock

from commun import PipelineError, UsageError, dead_letters, settings
from commun import kafka as commun_kafka
from commun.cli import NeverStopped, Parser, Stop, duration, french_number, port, positive, run
from commun.kafka import FromBeginning, client_config, ensure_topics, kafka_options
from commun.settings import ROOT, setting
from exercice1 import producer as csv_producer
from exercice1.fingerprint import Saved
from exercice2 import consumer_resilient, producer_resilient
from exercice3 import producer as ventes_producer

import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_INVALID, KafkaError, KafkaException, TopicPartition
from confluent_kafka.cimpl import NewTopic

CHOOSERS = (csv_producer, producer_resilient, consumer_resilient, dead_letters)


def test_environment_sets_any_property(monkeypatch: pytest.MonkeyPatch) -> None:
    """KAFKA_SECURITY_PROTOCOL règle security.protocol ; les variables d'autres outils sont laissées de côté."""
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("KAFKA_SASL_USERNAME", "moi")
    for foreign in ("KAFKA_HOME", "KAFKA_HEAP_OPTS", "KAFKA_PORT_9092_TCP", "KAFKA_SERVICE_HOST"):
        monkeypatch.setenv(foreign, "x")
    config = client_config({"acks": "all"}, ("acks",))
    assert config["security.protocol"] == "SASL_SSL"
    assert config["sasl.username"] == "moi"
    assert config["acks"] == "all"
    assert not {"home", "heap.opts", "port.9092.tcp", "service.host"} & config.keys()


def test_a_guaranteed_property_is_protected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toucher à une garantie est refusé, et la variable est nommée."""
    monkeypatch.setenv("KAFKA_ENABLE_IDEMPOTENCE", "false")
    with pytest.raises(PipelineError, match="KAFKA_ENABLE_IDEMPOTENCE"):
        client_config({}, ("enable.idempotence",))


@pytest.mark.parametrize(
    ("script", "variable"),
    [
        *((script, "KAFKA_PARTITIONER") for script in CHOOSERS),
        (ventes_producer, "KAFKA_DELIVERY_REPORT_ONLY_ERROR"),
    ],
)  # fmt: skip
def test_what_a_promise_rests_on(monkeypatch: pytest.MonkeyPatch, script: ModuleType, variable: str) -> None:
    """L'ordre d'une clé tient au choix de la partition ; les ventes confirmées, à ce que Kafka confirme chacune."""
    monkeypatch.setenv(variable, "random")
    with pytest.raises(PipelineError, match=f"{variable} changerait"):
        client_config(script.PRODUCER_CONFIG, script.GUARANTEED)


def written(folder: Path, text: str) -> str:
    """Le chemin d'un fichier --config."""
    path = folder / "client.properties"
    path.write_text(text, encoding="utf-8")
    return str(path)


def options_of(*argv: str) -> argparse.Namespace:
    """Les options de qui se connecte à Kafka."""
    parser = Parser("Essai.")
    kafka_options(parser)
    return parser.parse(argv)


def test_a_file_sets_any_property(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Le script, puis le fichier, puis les variables, puis l'option ; d'un producteur ou d'un consommateur."""
    text = (
        "\ufeff# mon cluster\nbootstrap.servers = a:1\nqueue.buffering.max.ms=7\n\nclient.id=x=y\nfetch.min.bytes=3\n"
    )
    path = written(tmp_path, text)
    config = client_config({"linger.ms": 20, "retries": 5}, ("acks",), options_of("--config", path))
    assert (config["linger.ms"], config["client.id"], config["bootstrap.servers"]) == ("7", "x=y", "a:1")
    assert (config["fetch.min.bytes"], config["retries"]) == ("3", 5)
    monkeypatch.setenv("KAFKA_LINGER_MS", "9")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "b:2")
    config = client_config({}, (), options_of("--config", path))
    assert (config["linger.ms"], config["bootstrap.servers"]) == ("9", "b:2")
    config = client_config({}, (), options_of("--config", path, "--bootstrap-servers", "c:3"))
    assert config["bootstrap.servers"] == "c:3"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("acks=0", "La ligne 2 de .*client.properties changerait « acks », sur quoi repose la garantie"),
        ("request.required.acks=0", "changerait « acks »"),
        ("group.id=autre", "changerait « group.id », que le script décide"),
    ],
)
def test_a_file_keeps_the_promise(tmp_path: Path, line: str, said: str) -> None:
    """Une ligne qui touche à la garantie, ou à ce que le script décide : une phrase, code 2."""
    options = options_of("--config", written(tmp_path, f"# essai\n{line}\n"))
    with pytest.raises(UsageError, match=said) as caught:
        client_config({}, ("acks",), options)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("client.id=moi\nlinger ms\n", "ligne 2 : écrivez « clé=valeur »"),
        ("nimporte.quoi=1\n", "« nimporte.quoi » n'est pas une propriété de librdkafka"),
        ("linger.ms=beaucoup\n", "queue.buffering.max.ms"),
        ("error_cb=moi\n", "error_cb"),
        (None, "ne peut pas être lu (n'existe pas)"),
        (b"client.id=\xe9\n", "n'est pas un texte en UTF-8"),
    ],
)
def test_a_file_that_does_not_do(
    tmp_path: Path, text: str | bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Une phrase, code 2."""
    path = tmp_path / "client.properties"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as caught:
        options_of("--config", str(path))
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_every_script_that_speaks_to_kafka_has_the_option() -> None:
    """L'option n'est écrite qu'en un endroit ; qui passe ``args`` au client l'a."""
    for path in ROOT.glob("exercice?/*.py"):
        text = path.read_text(encoding="utf-8")
        assert '"--bootstrap-servers"' not in text, path
        assert ("client_config(" in text) == ("kafka_options(parser)" in text), path


def test_bootstrap_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Option, puis variable, puis les trois ports de la pile."""
    monkeypatch.setenv("PORT_KAFKA1", "1111")
    second, third = setting("PORT_KAFKA2"), setting("PORT_KAFKA3")
    assert settings.bootstrap_servers() == f"localhost:1111,localhost:{second},localhost:{third}"
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "a:1")
    assert client_config({})["bootstrap.servers"] == "a:1"
    assert client_config({}, options=argparse.Namespace(bootstrap_servers="b:2"))["bootstrap.servers"] == "b:2"


def test_a_local_password_never_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Le mot de passe de .env ne part pas vers un autre serveur que celui de la pile."""
    assert "password" in settings.postgres_dsn()
    monkeypatch.setenv("PGHOST", "127.0.0.1")  # la même machine
    assert "password" in settings.postgres_dsn()
    monkeypatch.setenv("PGPORT", setting("PORT_POSTGRES"))
    assert settings.elsewhere() == []
    monkeypatch.setenv("KAFKA_METADATA_BROKER_LIST", "ailleurs:9092")  # l'autre nom de bootstrap.servers
    assert settings.elsewhere() == ["KAFKA_METADATA_BROKER_LIST"]
    with pytest.raises(PipelineError, match="KAFKA_BOOTSTRAP_SERVERS"):
        client_config({})
    monkeypatch.delenv("KAFKA_METADATA_BROKER_LIST")
    monkeypatch.setenv("PGSERVICE", "")
    with pytest.raises(PipelineError, match="PGSERVICE est posée, mais vide"):
        settings.postgres_dsn()
    monkeypatch.delenv("PGSERVICE")
    monkeypatch.setenv("PGHOST", "ailleurs.example")
    assert "password" not in settings.postgres_dsn()
    monkeypatch.setenv("PGPASSWORD", "secret")
    assert settings.postgres_dsn()["password"] == "secret"
    monkeypatch.setenv("PGSERVICE", "prod")
    assert settings.postgres_dsn() == {}


def test_the_reader_s_password_never_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pour le rôle tableau non plus : son mot de passe local reste ici."""
    assert settings.postgres_dsn(reader=True)["user"] == "tableau"
    assert settings.postgres_dsn(reader=True)["password"] == setting("TABLEAU_PASSWORD")
    monkeypatch.setenv("PGHOST", "ailleurs.example")
    assert "password" not in settings.postgres_dsn(reader=True)
    monkeypatch.delenv("PGHOST")
    elsewhere = settings.postgres_dsn(reader=True, host="ailleurs.example")  # build_workbook.py --server … --extract
    assert (elsewhere["host"], "password" in elsewhere) == ("ailleurs.example", False)
    monkeypatch.setenv("TABLEAU_PASSWORD", "secret")
    assert settings.postgres_dsn(reader=True)["password"] == "secret"
    monkeypatch.setenv("PGSERVICE", "prod")
    assert settings.postgres_dsn(reader=True) == {"user": "tableau"}


@pytest.mark.parametrize("text", ["0", "65536", "-1", "abc", ""])
def test_a_port_is_a_port(text: str) -> None:
    """Un port va de 1 à 65535."""
    assert [port(good) for good in ("1", "8501", "65535")] == [1, 8501, 65535]
    with pytest.raises(argparse.ArgumentTypeError, match="entre 1 et 65535"):
        port(text)


def test_mongo_uri_escapes_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Un mot de passe avec des signes réservés reste entier."""
    monkeypatch.setenv("MONGO_PASSWORD", "a/b@c:d")
    assert f"a%2Fb%40c%3Ad@localhost:{setting('PORT_MONGO')}" in settings.mongo_uri()


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.write_bytes("MOT=é".encode("latin-1")), "n'est pas en UTF-8 : enregistrez-le"),
        (lambda path: path.mkdir(), "Ce compte ne peut pas lire .* rendez-le lisible"),
        (lambda path: path.write_text("A=1\n\nbonjour à tous\nB=2\n"), "La ligne 3 de .* n'est ni « NOM=valeur » ni"),
        (lambda path: path.write_text("A='1\n"), "La ligne 1 de .* mettez un « # » devant"),
    ],
)
def test_an_env_nobody_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object], sentence: str
) -> None:
    """Un autre encodage, un fichier fermé (ici, un dossier : root lit tout), une ligne perdue : une phrase."""
    write(tmp_path / ".env")
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    with pytest.raises(PipelineError, match=sentence):
        settings.defaults.__wrapped__()


def test_without_env_everything_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pas de .env : aucun réglage, et ce n'est pas une panne."""
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    assert settings.defaults.__wrapped__() == {}


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Une variable sans valeur : son nom et où la poser."""
    with pytest.raises(PipelineError, match=r"NIMPORTE .*\.env"):
        settings.setting("NIMPORTE")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--count"], "--count attend une valeur"),
        (["--count", "-1"], "attend une valeur|n'est pas un nombre positif"),
        (["--count", "0"], "'0' n'est pas un nombre positif"),
        (["--count", "abc"], "'abc' n'est pas un nombre positif"),
        (["--rate", "nan"], "n'est pas un nombre positif ou nul"),
        (["--rate", "inf"], "n'est pas un nombre positif ou nul"),
        (["--cou", "1"], "option ou argument inconnu : --cou 1"),
        (["reste"], "option ou argument inconnu : reste"),
        (["--log-level", "fort"], "--log-level : 'fort' n'est pas un choix possible"),
    ],
)
def test_errors_are_french(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Chaque mauvais usage donne une phrase en français et le code 2."""
    parser = Parser("Essai.", prog="essai")
    parser.option("--count", type=positive(), help="nombre")
    parser.option("--rate", type=positive(float, zero=True), help="débit")
    with pytest.raises(SystemExit) as stopped:
        parser.parse(argv)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert any(part in message for part in sentence.split("|")), message
    for english in ("error:", "argument --", "usage:", "expected"):
        assert english not in message


def test_numbers_at_their_bounds() -> None:
    """Le plus petit nombre permis passe, la borne non ; la phrase dit laquelle des deux règles vaut."""
    assert positive()("1") == 1
    assert positive(float)("0.5") == 0.5
    assert positive(float, zero=True)("0") == 0
    for convert, text, sentence in (
        (positive(), "0", "'0' n'est pas un nombre positif"),
        (positive(float), "1e308", "'1e308' n'est pas un nombre positif"),
        (positive(zero=True), "-1", "'-1' n'est pas un nombre positif ou nul"),
        (positive(float, zero=True), "-0.5", "'-0.5' n'est pas un nombre positif ou nul"),
    ):
        with pytest.raises(argparse.ArgumentTypeError) as refused:
            convert(text)
        assert str(refused.value) == f"{sentence}, inférieur à mille milliards"
    with pytest.raises(argparse.ArgumentTypeError, match="n'est pas un port"):
        port("9" * 5000)


def test_an_option_reads_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Défaut < variable < option ; la valeur de la variable passe par le même contrôle."""

    def parse(*argv: str) -> argparse.Namespace:
        parser = Parser("Essai.")
        parser.option("--every", env="ESSAI_EVERY", type=positive(), default=3, help="100 % du temps")
        return parser.parse(argv)

    assert parse().every == 3
    monkeypatch.setenv("ESSAI_EVERY", "5")
    assert parse().every == 5
    assert parse("--every", "7").every == 7
    monkeypatch.setenv("ESSAI_EVERY", "-5")
    with pytest.raises(SystemExit):
        parse()


@pytest.mark.parametrize(("text", "level"), [("error", "error"), ("DEBUG", "debug"), ("", "info")])
def test_log_level(monkeypatch: pytest.MonkeyPatch, text: str, level: str) -> None:
    """LOG_LEVEL règle le journal, en majuscules aussi ; l'option l'emporte, même sur une variable fausse."""
    opened = []
    monkeypatch.setattr(logging, "basicConfig", lambda level, **_: opened.append(level))
    monkeypatch.setenv("LOG_LEVEL", text)
    assert Parser("Essai.").parse([]).log_level == level
    monkeypatch.setenv("LOG_LEVEL", "zz")
    assert Parser("Essai.").parse(["--log-level", "Warning"]).log_level == "warning"
    assert opened == [level.upper(), "WARNING"]


@pytest.mark.parametrize("text", ["trace", "zz"])
def test_an_unknown_log_level(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Un LOG_LEVEL d'un autre programme : la variable est nommée, code 2 ; ignoré par qui doit toujours marcher."""
    opened = []
    monkeypatch.setattr(logging, "basicConfig", lambda level, **_: opened.append(level))
    monkeypatch.setenv("LOG_LEVEL", text)
    with pytest.raises(SystemExit) as stopped:
        Parser("Essai.", prog="essai").parse([])
    message = f"essai : LOG_LEVEL={text} : ce n'est pas un niveau (debug, info, warning, error). Voyez"
    assert (stopped.value.code, capsys.readouterr().err[: len(message)]) == (2, message)
    assert opened == []
    assert Parser("Essai.").parse([], any_level=True).log_level == "info"
    assert opened == ["INFO"]


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        (lambda: 0, 0, ""),
        (lambda: 1, 1, ""),
        (lambda: _raise(PipelineError("Il manque X.")), 1, "Il manque X.\n"),
        (lambda: _raise(KeyboardInterrupt()), 1, "Interrompu avant la fin.\n"),
        (lambda: _raise(ValueError("boum")), 1, "Erreur imprévue : boum (ValueError)."),
    ],
)
def test_exit_codes(main: Callable[[], int], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Codes de sortie, et une phrase sans trace."""
    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code == code
    output = capsys.readouterr().err
    assert output.startswith(message)
    assert "Traceback" not in output


def _raise(error: BaseException) -> int:
    raise error


def test_stop_then_interrupt() -> None:
    """Le premier Ctrl-C lève le drapeau, le second interrompt."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stop = Stop()
        assert not stop
        signal.raise_signal(signal.SIGINT)
        assert stop
        assert stop.wait(10)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def test_a_wait_lasts_what_it_should() -> None:
    """Ni plus court, ni sans fin ; un temps négatif n'attend pas ; un autre fil peut demander l'arrêt."""
    stop, start = NeverStopped(), time.monotonic()
    assert not stop.wait(0.25)
    assert time.monotonic() - start >= 0.25
    assert not stop.wait(-1)
    threading.Timer(0.1, stop.ask).start()
    assert stop.wait(600)
    assert stop.wait(-1)


@pytest.mark.skipif(sys.platform == "win32", reason="setitimer n'y est pas")
def test_a_signal_at_any_moment_of_a_wait() -> None:
    """Deux mille signaux pendant de très courtes attentes : le fil interrompu ne s'attend jamais lui-même."""
    script = """
import random, signal
from commun.cli import Stop
for _ in range(2000):
    stop = Stop()
    signal.signal(signal.SIGALRM, stop._on_signal)
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 5e-4))
    while not stop:
        stop.wait(5e-5)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)


def test_french_numbers() -> None:
    """Espace pour les milliers, virgule pour les décimales."""
    assert french_number(1234567.891, 2) == "1 234 567,89"
    assert french_number(0) == "0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7500, "2 h 05"), (200_000, "2 j")],
)
def test_durations_are_readable(seconds: int, text: str) -> None:
    """« depuis 1451 s » ne se lit pas."""
    assert duration(seconds) == text


def test_a_partition_starts_again_once() -> None:
    """--from-beginning : la partition rendue puis reçue de nouveau ne rejoue pas ce qui a été montré."""
    given: list[list[tuple[int, int]]] = []
    consumer = mock.Mock(incremental_assign=lambda found: given.append([(p.partition, p.offset) for p in found]))
    on_assign = FromBeginning()
    for numbers in ([0, 1], [1, 2]):
        on_assign(consumer, [TopicPartition("t", number) for number in numbers])
    assert given == [[(0, OFFSET_BEGINNING), (1, OFFSET_BEGINNING)], [(1, OFFSET_INVALID), (2, OFFSET_BEGINNING)]]
    shown = mock.Mock(topic=lambda: "t", partition=lambda: 2, offset=lambda: 7)
    on_assign.after([shown])  # d'un groupe qui ne valide rien
    on_assign(consumer, [TopicPartition("t", 2)])
    assert given[-1] == [(2, 8)]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([KafkaError._TIMED_OUT, KafkaError.TOPIC_ALREADY_EXISTS], ""),
        ([KafkaError._TRANSPORT, KafkaError.NOT_CONTROLLER, KafkaError.NO_ERROR], ""),
        ([KafkaError._TIMED_OUT, KafkaError.TOPIC_AUTHORIZATION_FAILED], "Kafka refuse de créer le topic « t »"),
        ([KafkaError._TIMED_OUT] * 9, "Kafka ne répond pas sur"),
    ],
    ids=["créé malgré tout", "lent", "refusé", "muet"],
)
def test_a_silence_is_not_a_refusal(monkeypatch: pytest.MonkeyPatch, answers: list[int], said: str) -> None:
    """Un cluster lent est redemandé ; le topic qu'il a créé sans le dire convient ; muet, c'est ce qui est dit."""
    admin, clock = mock.Mock(), itertools.count(step=commun_kafka.ADMIN_SECONDS)
    admin.list_topics.return_value.topics = {}
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(commun_kafka, "AdminClient", lambda config: admin)

    def outcome(code: int) -> dict[str, Future[None]]:
        future = Future[None]()
        future.set_exception(KafkaException(KafkaError(code))) if code else future.set_result(None)
        return {"t": future}

    admin.create_topics.side_effect = map(outcome, answers)
    admin.describe_configs.side_effect = KafkaException(KafkaError(KafkaError._TIMED_OUT))
    with pytest.raises(PipelineError, match=said) if said else contextlib.nullcontext():
        ensure_topics(client_config({}), NewTopic("t", 1, 1))


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b'{"inode": "x"}', b'{"x": ' + b"[" * 5000])
def test_a_position_that_cannot_be_read(value: bytes) -> None:
    """Un autre programme a écrit sous la clé d'un fichier : dit, et rien ne part."""
    with pytest.raises(PipelineError, match="ne se lit pas"):
        Saved.decode(value)
