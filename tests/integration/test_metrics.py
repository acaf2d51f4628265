"""--metrics-port, sur de vrais scripts : ce que « curl » en dit."""

import re
import socket
import subprocess

from tests.lab import BankLab, CsvLab, Lab, Running, wait_until


def free_port() -> str:
    """Un port que personne n'a."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def curl(port: str) -> dict[str, float]:
    """Chaque mesure et sa valeur ; rien tant que le script n'écoute pas."""
    command = ["curl", "-s", "--max-time", "20", f"http://localhost:{port}/metrics"]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {name: float(value) for name, value in re.findall(r"^(pipeline_\S+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}


def expect(script: Running, port: str, wanted: dict[str, float]) -> dict[str, float]:
    """Attend ces mesures, et les rend toutes."""
    wait_until(lambda: wanted.items() <= curl(port).items(), 60, lambda: f"{curl(port)} {script.text}")
    return curl(port)


def lag(found: dict[str, float]) -> float:
    """Ce qui reste à lire, toutes partitions ensemble."""
    return sum(value for name, value in found.items() if name.startswith("pipeline_lag_messages{"))


def test_exercise_1(csv_lab: CsvLab) -> None:
    """Lignes, lettres mortes par raison, validations, durées ; messages montrés et retard ; un port pris."""
    csv_lab.write("id,ville\n1,Brest\n2,Lyon\n3\n4,Nice\n")
    port, other = free_port(), free_port()
    producer = csv_lab.start("producer", "--metrics-port", port)
    found = expect(producer, port, {"pipeline_messages_total": 3, "pipeline_aborts_total": 0})
    assert [value for name, value in found.items() if name.startswith("pipeline_dead_letters_total{")] == [1]
    assert found["pipeline_commits_total"] >= 1
    assert found["pipeline_batch_seconds_count"] >= 1
    consumer = csv_lab.start("consumer", "--from-beginning", "--metrics-port", other)
    expect(consumer, other, {"pipeline_messages_total": 3})
    wait_until(lambda: 'pipeline_lag_messages{partition="0"}' in curl(other), 60, lambda: curl(other))
    said = csv_lab.run("consumer", "--metrics-port", port, code=1)
    assert f"Le port {port} de --metrics-port n'est pas libre (un autre programme y écoute)" in said
    assert [script.stop() for script in (producer, consumer)] == [0, 0]
    for script in (producer, consumer):
        assert "Warning" not in script.text, script.text


def test_exercise_2(bank_lab: BankLab) -> None:
    """Les trois scripts : transactions, retard, validations, lettres mortes, watermark, durées."""
    producing, working, watching = free_port(), free_port(), free_port()
    options = ("--generate", "--seed", "1", "--rate", "100", "--metrics-port", producing)
    producer = bank_lab.start("producer_resilient", *options)
    wait_until(lambda: curl(producing).get("pipeline_messages_total", 0) >= 100, 60, lambda: producer.text)
    assert curl(producing)["pipeline_batch_seconds_count"] >= 1
    assert producer.stop() == 1 or "Terminé" in producer.text
    bank_lab.send_raw(b"pas une transaction")
    count = len(bank_lab.messages(bank_lab.topic)) - 1
    consumer = bank_lab.start("consumer_resilient", "--exactly-once", "--metrics-port", working)
    monitor = bank_lab.start("kafka_monitor", "--metrics-port", watching)
    for script, port in ((consumer, working), (monitor, watching)):
        found = expect(script, port, {"pipeline_messages_total": count + 1})
        assert sum(value for name, value in found.items() if name.startswith("pipeline_dead_letters_total{")) == 1
        wait_until(lambda port=port: lag(curl(port)) == 0 and curl(port)["pipeline_commits_total"] > 0, 60)  # type: ignore[misc]
        assert curl(port)["pipeline_batch_seconds_count"] >= 1
    wait_until(lambda: curl(watching).get("pipeline_watermark_delay_seconds", 0) > 0, 60, lambda: curl(watching))
    assert [script.stop() for script in (consumer, monitor)] == [0, 0]


def test_exercise_3(lab: Lab) -> None:
    """Ventes écrites, exportées ; fichiers chargés."""
    lab.produce(50)
    lab.send_raw(b"{}")
    ports = [free_port() for _ in range(3)]
    consumer = lab.start("consumer", "--metrics-port", ports[0])
    found = expect(consumer, ports[0], {"pipeline_messages_total": 51})
    assert found['pipeline_dead_letters_total{reason="champ absent"}'] == 1
    wait_until(lambda: lag(curl(ports[0])) == 0, 60, lambda: curl(ports[0]))
    export = lab.start("schedule_export", "--every", "1", "--metrics-port", ports[1])
    found = expect(export, ports[1], {"pipeline_messages_total": 50})
    assert found["pipeline_batch_seconds_count"] >= 1
    pg = lab.start("pg", "--watch", "--metrics-port", ports[2])
    wait_until(lambda: curl(ports[2]).get("pipeline_messages_total", 0) >= 1, 60, lambda: pg.text)
    assert [script.stop() for script in (consumer, export, pg)] == [0, 0, 0]
    assert "va avec --watch" in lab.run("pg", "--metrics-port", ports[2], code=2)
