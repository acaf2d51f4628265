"""Le README dit vrai : ses commandes existent, ses options aussi, et l'anglais suit le français."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from chaos.__main__ import parse_options as parse_chaos
from commun.settings import ROOT, defaults, setting
from services.__main__ import parse as parse_services
from services.stack import Stack
from tableau.workbook import Server
from tests.lab import CsvLab, Lab, expected, wait_until

import pytest

FRENCH = (ROOT / "README.md").read_text(encoding="utf-8")
ENGLISH = (ROOT / "README.en.md").read_text(encoding="utf-8")
SHEETS = {
    name: (ROOT / name / "README.md").read_text(encoding="utf-8")
    for name in ("exercice1", "exercice2", "exercice3", "tableau")
}
SHEET = SHEETS["exercice1"]
CONNECT_PORT, POSTGRES_PORT = "8083", "5432"  # ceux du .env livré ; le vôtre peut en avoir d'autres
SCRIPTS = [
    *(f"exercice1/{name}.py" for name in ("producer", "consumer")),
    *(f"exercice2/{name}.py" for name in ("producer_resilient", "consumer_resilient", "kafka_monitor")),
    *(f"exercice{number}/dead_letters.py" for number in (1, 2, 3)),
    "exercice2/verification/compare_windows.py",
    *(
        f"exercice3/{name}.py"
        for name in ("producer", "consumer", "schedule_export", "pg", "reconcile", "rebuild", "demo")
    ),
    *(f"tableau/{name}.py" for name in ("apercu", "build_workbook", "draw")),
    "services/acceptance.py",
]
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def blocks(text: str, language: str) -> list[str]:
    """Blocs de code d'un langage."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def headings(text: str) -> list[int]:
    """Niveaux des titres, dans l'ordre."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", without_code, re.MULTILINE)]


def commands() -> list[str]:
    """Commandes du README : lignes des blocs bash, et `commandes` des tableaux et du texte."""
    lines = [
        line.strip()
        for text in (FRENCH, *SHEETS.values())
        for block in blocks(text, "bash")
        for line in block.splitlines()
    ]
    inline = re.findall(r"`((?:make|git|(?:TESTS_KILLS=50 )?python|docker-compose) [^`…]+)`", FRENCH)
    return sorted({line.removeprefix("TESTS_KILLS=50 ") for line in (*lines, *inline) if line})


def help_of(script: str) -> str:
    """Texte de --help d'un script, donné par son chemin."""
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"],
        env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def options_of(script: str) -> set[str]:
    """Options longues d'un script."""
    return set(re.findall(r"--[a-z][a-z-]+", help_of(script)))


def check_python(words: list[str]) -> None:
    """Une commande « python … » : services, pytest ou un script, avec des options qui existent."""
    if words[1:3] == ["-m", "services"]:
        if words[3:]:  # sans rien de plus, c'est le nom du programme, dans une phrase
            parse_services(words[3:])
    elif words[1:3] == ["-m", "chaos"]:
        parse_chaos(words[3:])
    elif words[1:3] == ["-m", "pytest"]:
        assert (ROOT / words[3]).is_file(), words
    else:
        options = {word for word in words[2:] if word.startswith("--")}
        known = (*SCRIPTS, *(f"bench/{path.name}" for path in (ROOT / "bench").glob("*.py")))
        homonyms = [script for script in known if words[1] in (script, Path(script).name)]
        assert any(options <= options_of(script) for script in homonyms), words


def check_compose(words: list[str]) -> None:
    """Une commande « docker-compose … » : profils, commande et service qui existent, et ce qui y est exécuté."""
    profiles = {words[number + 1] for number, word in enumerate(words) if word == "--profile"}
    assert profiles <= {"flink", "ui", "pipeline"}
    assert {"up", "down", "ps", "logs", "exec", "stop"} & set(words), words
    if "exec" in words:
        service, *inside = words[words.index("exec") + 1 :]
        assert f"\n  {service}:\n" in (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
        if inside[0] == "psql":
            assert inside[-1] == Server().database
        else:
            check_python(inside)


@pytest.mark.parametrize("command", commands())
def test_every_command_exists(command: str) -> None:
    """Chaque commande du README désigne une cible, un script et des options qui existent."""
    words = shlex.split(command)
    match words[0]:
        case "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert set(targets) <= MAKE_TARGETS, command
        case "python":
            check_python(words)
        case "python3" | "source":
            assert command in ("python3 -m venv .venv", "source .venv/bin/activate")
        case "curl":
            assert re.search(rf"localhost:({CONNECT_PORT}/connectors|9101/metrics$)", words[-1]), command
            assert all((ROOT / word[1:]).is_file() for word in words if word.startswith("@"))
        case "echo":
            assert (ROOT / "exercice1" / words[-1]).is_file()
        case "git":
            assert words[1] == "checkout"
            assert (ROOT / "exercice1" / words[-1]).is_file()
        case "cd":
            assert (ROOT / words[1]).is_dir()
        case "pip":
            assert (ROOT / words[-1]).is_file()
        case "docker-compose":
            check_compose(words)
        case "psql":
            assert defaults()["TABLEAU_PASSWORD"] in command
        case _:
            pytest.fail(f"commande inattendue : {command}")


def test_the_acceptance_page_is_right() -> None:
    """Les commandes « make » et « python » de la recette existent, et ses liens mènent quelque part."""
    page = (ROOT / "services" / "ACCEPTATION.md").read_text(encoding="utf-8")
    lines = [line for block in blocks(page, "bash") + blocks(page, "powershell") for line in block.splitlines()]
    for words in (shlex.split(line) for line in lines):
        if words[0].startswith("MONGOD="):
            del words[0]
        if words[0] == "make":
            assert set(words[1:]) <= MAKE_TARGETS, words
        elif words[0] == "python":
            check_python(words)
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert (ROOT / "services" / target).exists(), target


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_documented(script: str) -> None:
    """Chaque option d'un script est dans le README."""
    for option in options_of(script):
        assert option in FRENCH, f"{option} de {script} manque dans le README"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_variable_is_documented(script: str) -> None:
    """Chaque variable d'environnement d'une option est dans le README."""
    for variable in re.findall(r"variable ([A-Z_]+)", help_of(script)):
        assert variable in FRENCH, f"{variable} manque dans le README"


def test_psql_lines_work(lab: Lab) -> None:
    """Les lignes « make psql » et psql du README, au port près, avec le psql de la pile locale."""
    lab.produce(10)
    lab.consume(10)
    lab.run("schedule_export", "--once")
    lab.run("pg")
    (line,) = (line for line in commands() if line.startswith("psql "))
    (ours,) = (line for line in commands() if line.startswith("make psql SQL="))
    words = shlex.split(line.replace(POSTGRES_PORT, setting("PORT_POSTGRES")))
    for command in ([str(Stack().postgres_bin / "psql"), *words[1:]], shlex.split(ours)):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        regions = {row.split("|")[0].strip() for row in done.stdout.splitlines()}
        assert {vente.region for vente in expected(10)} <= regions


def test_every_file_of_the_structure_exists() -> None:
    """La structure annoncée est celle du dépôt, et rien à la racine n'y manque."""
    structure = next(block for block in blocks(FRENCH, "text") if block.startswith("docker-compose.yml"))
    named = [line.split()[0] for line in structure.splitlines() if not line.startswith(" ")]
    for name in named:
        assert (ROOT / name).exists(), name
    for folder in ("exercice1", "exercice2", "exercice3", "tableau"):
        block = re.search(rf"^{folder}/.*\n(?: .*\n)*", structure, re.MULTILINE)
        files = set(re.findall(r"\b(\w+\.(?:py|sql|json))\b", block[0] if block else ""))
        first = {path.name for path in (ROOT / folder).iterdir() if path.suffix in {".py", ".sql", ".json"}}
        assert first <= files <= {path.name for path in (ROOT / folder).rglob("*")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    top = {path.split("/")[0] + ("/" if "/" in path else "") for path in tracked if path}
    assert top - set(named) == {
        ".ci/",
        ".dockerignore",
        ".gitattributes",
        ".gitignore",
        "README.md",
        "README.en.md",
    }


def test_every_link_leads_somewhere() -> None:
    """Les liens vers des fichiers du dépôt mènent à un fichier."""
    sheets = ((ROOT / name, text) for name, text in SHEETS.items())
    for folder, text in ((ROOT, FRENCH), (ROOT, ENGLISH), *sheets):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert target.startswith("http") or (folder / target).exists(), target


def test_sample_output_has_the_real_shape() -> None:
    """L'extrait de make demo a les étapes que reconcile.py affiche."""
    sample = next(block for block in blocks(FRENCH, "text") if block.startswith("étape"))
    steps = [(line[:12].strip(), line[12:]) for line in sample.splitlines()[1:8]]
    assert [name for name, _ in steps] == ["produites", "Kafka", "MongoDB", "CSV", "PostgreSQL", "par jour", "tableaux"]
    assert len({figures for _, figures in steps}) == 1


def test_english_mirrors_french() -> None:
    """Mêmes titres dans le même ordre, mêmes blocs de code, autant de tableaux et de liens."""
    assert headings(ENGLISH) == headings(FRENCH)
    for language in ("bash", "text", "yaml"):
        assert blocks(ENGLISH, language) == blocks(FRENCH, language)
    assert len(blocks(ENGLISH, "mermaid")) == len(blocks(FRENCH, "mermaid"))
    assert len(re.findall(r"^\|", ENGLISH, re.MULTILINE)) == len(re.findall(r"^\|", FRENCH, re.MULTILINE))


def test_curl_lines_work(csv_lab: CsvLab) -> None:
    """Les lignes curl du README, au port près : le connecteur de l'exercice 1 envoie le fichier d'exemple."""
    lines = [line.replace(CONNECT_PORT, setting("PORT_CONNECT")) for line in commands()]
    register, status = sorted(
        (line for line in lines if line.startswith("curl ") and "connectors" in line), key=len, reverse=True
    )
    sample = (ROOT / "exercice1" / "data" / "ventes.csv").read_text(encoding="utf-8").splitlines()

    def run(line: str) -> str:
        command = shlex.split(line)
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    try:
        assert '"name":"csv-source"' in run(register)
        wait_until(lambda: run(status).count("RUNNING") == 2, 60, lambda: run(status))
        wait_until(lambda: set(sample) <= {(m.value() or b"").decode() for m in csv_lab.messages("csv-topic")})
    finally:
        run(f"curl -X DELETE {status.split()[-1].removesuffix('/status')}")


def test_sheet_names_its_tests() -> None:
    """Chaque défaut F1 à F8 de la fiche a son test."""
    tests = (ROOT / "tests" / "integration" / "test_filestream.py").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (F\d) \|", SHEET, re.MULTILINE)
    assert rows == [f"F{number}" for number in range(1, 9)]
    assert all(f"def test_{row.lower()}_" in tests for row in rows)
