"""Le chargement dans PostgreSQL : ce qui est refusé, ce qui attend, ce qui a changé, et les versions."""

import itertools
import random
import signal
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from commun.settings import postgres_dsn, setting
from exercice3.collection import to_document, to_row
from exercice3.ventes import Vente
from tests.former import FormerLab
from tests.integration.test_exercice3 import write_lot
from tests.lab import Lab, expected, wait_until

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

LINE = b"%s,P,R,10.50,2025-01-01 10:00:00\n"
NOON = datetime(2025, 1, 1, 12)
TOTALS = "SELECT coalesce(sum(nombre_ventes), 0), coalesce(sum(chiffre_affaires), 0) FROM {}"


def sums(lab: Lab) -> set[tuple[Any, ...]]:
    """Nombre et montant selon la table, les deux sommes et la vue : une seule valeur si tout s'accorde."""
    table = lab.sql("SELECT count(*), coalesce(sum(montant), 0) FROM ventes WHERE NOT annulee")
    views = [lab.sql(TOTALS.format(name)) for name in ("ventes_par_heure", "ventes_par_jour", "ventes_analyse")]
    return set(itertools.chain(table, *views))


@contextmanager
def superuser(database: str = "postgres") -> Iterator[Connection]:
    """Connexion du superutilisateur de la pile des essais, hors transaction."""
    account = {"user": setting("POSTGRES_USER"), "password": setting("POSTGRES_PASSWORD"), "dbname": database}
    with closing(psycopg2.connect(**postgres_dsn() | account)) as connection:
        connection.autocommit = True
        yield connection


@contextmanager
def database(options: str = "") -> Iterator[dict[str, str]]:
    """Une base à part, et la variable qui y mène."""
    with superuser() as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE essai OWNER {setting('PGUSER')} TEMPLATE template0 {options}")
    try:
        yield {"PGDATABASE": "essai"}
    finally:
        with superuser() as connection, connection.cursor() as cursor:
            cursor.execute("DROP DATABASE essai WITH (FORCE)")


def ask(dbname: str, query: str) -> Any:
    """La seule valeur d'une requête dans une base."""
    with closing(psycopg2.connect(**postgres_dsn() | {"dbname": dbname})) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return (cursor.fetchone() or (None,))[0]


def test_one_row_never_blocks_the_others(lab: Lab) -> None:
    """Trop long pour un index, minuit à 24 h, une soixantième seconde, un refus que personne n'a prévu : des rejets."""
    lab.run("pg")
    lab.sql("ALTER TABLE ventes ADD CONSTRAINT la_mienne CHECK (produit <> 'Interdit')")
    lines = [
        *(LINE % b"a%d" % number for number in range(40)),
        b"long,%s,R,1,2025-01-01 10:00:00\n" % (b"x" * 6000),
        b"minuit,P,R,1,2025-01-01 24:00:00\n", b"soixante,P,R,1,2025-01-01 10:00:60\n",
        b"refuse,Interdit,R,1,2025-01-01 10:00:00\n",
        *(LINE % b"b%d" % number for number in range(40)),
        b"encore,Interdit,R,1,2025-01-01 10:00:00\n",
    ]  # fmt: skip
    write_lot(lab.exports, "ventes_000001_x", lines)
    write_lot(lab.exports, "ventes_000002_x", [LINE % b"suivante"])
    assert "85 lignes, 80 nouvelles, 0 modifiées, 5 rejetées" in lab.run("pg")
    rejects: dict[str, str] = dict(lab.sql("SELECT split_part(contenu, ',', 1), raison FROM ventes_rejets"))
    assert rejects.keys() == {"long", "minuit", "soixante", "refuse", "encore"}
    assert "1000 octets" in rejects["long"]
    assert "la_mienne" in rejects["refuse"]
    assert "date_vente" in rejects["minuit"]
    assert "date_vente" in rejects["soixante"]
    assert lab.in_postgres()[0] == 81
    assert len(sums(lab)) == 1


def test_an_open_transaction_hides_nothing(lab: Lab) -> None:
    """Une transaction ouverte a écrit dans ventes : le chargement passe quand même, aussitôt."""
    lab.run("pg")
    write_lot(lab.exports, "ventes_000001_x", [LINE % b"a"])
    with closing(psycopg2.connect(**postgres_dsn())) as other, other.cursor() as cursor:
        cursor.execute("UPDATE ventes_chargements SET lignes = lignes; LOCK TABLE ventes IN ROW EXCLUSIVE MODE")
        assert "1 nouvelles" in lab.run("pg")


def test_a_locked_table_is_told_and_ctrl_c_is_heard(lab: Lab) -> None:
    """La table est verrouillée par un autre : pg.py le dit, entend l'arrêt ; libérée, il charge."""
    lab.run("pg")
    write_lot(lab.exports, "ventes_000001_x", [LINE % b"a"])
    with closing(psycopg2.connect(**postgres_dsn())) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE ventes IN SHARE MODE")
        stopped = lab.start("pg")
        stopped.wait_for("retient la table ventes")
        assert stopped.stop(signal.SIGINT, timeout=60) == 0
        patient = lab.start("pg")
        patient.wait_for("retient la table ventes")
        other.rollback()
        assert patient.process.wait(60) == 0
    assert "1 nouvelles" in patient.text


def test_a_wrong_password_is_not_an_absence(lab: Lab) -> None:
    """Le serveur répond et refuse : --watch le dit et s'arrête, au lieu d'attendre toujours."""
    said = lab.run("pg", "--watch", code=1, timeout=30, env={"PGPASSWORD": "faux"})
    assert "PostgreSQL refuse la connexion" in said


def test_another_encoding(lab: Lab) -> None:
    """Une base en LATIN1 reçoit ce qu'elle sait écrire, le reste est rejeté ; PGCLIENTENCODING ne change rien."""
    lines = ["a,Télé,R,1,2025-01-01 10:00:00\n".encode(), "b,テレビ,R,1,2025-01-01 10:00:00\n".encode()]
    write_lot(lab.exports, "ventes_000001_x", lines)
    with database("ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER libc") as env:
        assert "1 nouvelles, 0 modifiées, 1 rejetées" in lab.run("pg", env=env)
        assert ask("essai", "SELECT produit FROM ventes") == "Télé"
        assert "LATIN1" in str(ask("essai", "SELECT current_setting('server_encoding')"))
        assert "la base ne sait pas écrire" in ask("essai", "SELECT raison FROM ventes_rejets")
    assert "2 nouvelles" in lab.run("pg", env={"PGCLIENTENCODING": "LATIN1"})
    assert lab.sql("SELECT produit FROM ventes ORDER BY id") == [("Télé",), ("テレビ",)]


def test_another_table_named_ventes(lab: Lab) -> None:
    """Une table ventes qui n'est pas la nôtre : une phrase, et elle reste telle quelle."""
    with database() as env:
        with closing(psycopg2.connect(**postgres_dsn() | {"dbname": "essai"})) as connection, connection:
            connection.cursor().execute("CREATE TABLE ventes (mon_travail text)")
        said = lab.run("pg", code=1, env=env)
        assert "ne peut pas recevoir le schéma des ventes" in said
        assert "PGDATABASE" in said
        assert ask("essai", "SELECT count(*) FROM information_schema.columns WHERE table_name = 'ventes'") == 1


def test_a_lot_written_again_is_loaded(lab: Lab) -> None:
    """Un lot déjà chargé, récrit sous le même nom avec d'autres octets : il est vu, même très ancien."""
    for number in range(1, 5):
        write_lot(lab.exports, f"ventes_{number:06d}_x", [LINE % b"v%d" % number])
    lab.run("pg")
    assert "Rien de nouveau" in lab.run("pg")
    assert lab.sql("SELECT lot FROM ventes_suivi") == [(4,)]
    write_lot(lab.exports, "ventes_000002_x", [b"v2,P,R,99.00,2025-01-01 10:00:00\n"])
    assert "ventes_000002_x.csv : 1 lignes, 0 nouvelles, 1 modifiées" in lab.run("pg")
    assert lab.sql("SELECT montant FROM ventes WHERE id = 'v2'") == [(Decimal("99.00"),)]
    write_lot(lab.exports, "ventes_000001_y", [LINE % b"recommence"])
    assert "1 nouvelles" in lab.run("pg")


def test_what_there_is_to_do_is_said(lab: Lab, tmp_path: Path) -> None:
    """Rien à charger, pas de dossier, pas de fichier : chaque fois une phrase."""
    lab.exports.mkdir()
    assert "Rien de nouveau à charger" in lab.run("pg")
    assert "n'existe pas" in lab.run("pg", "--export-dir", str(tmp_path / "nulle part"))
    assert "n'existe pas" in lab.run("pg", str(tmp_path / "absent.csv"), code=1)


VERSIONS = [
    b"v,P,R,10.00,2025-01-01 10:00:00,1,false\n",
    b"v,P,S,20.00,2025-01-02 10:00:00,2,false\n",
    b"v,P,S,20.00,2025-01-02 10:00:00,3,true\n",
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_greatest_version_wins(lab: Lab, order: tuple[int, ...]) -> None:
    """Trois versions d'une vente dans tous les ordres : la plus grande reste, et les sommes la suivent."""
    lab.run("pg")
    greatest = -1
    for number, version in enumerate(order, start=1):
        write_versions(lab.exports, f"ventes_{number:06d}_x", [VERSIONS[version]])
        lab.run("pg")
        greatest = max(greatest, version)
        assert lab.sql("SELECT version, annulee FROM ventes") == [(greatest + 1, greatest == 2)]
        amount = [Decimal("10.00"), Decimal("20.00"), Decimal(0)][greatest]
        assert sums(lab) == {(int(greatest < 2), amount)}


def test_versions_in_one_file(lab: Lab) -> None:
    """Les trois dans un même fichier, avec une version absurde : la plus grande, et un rejet."""
    write_versions(lab.exports, "ventes_000001_x", [VERSIONS[1], VERSIONS[0], b"w,P,R,1,2025-01-01 10:00:00,0,false\n"])
    assert "3 lignes, 1 nouvelles, 0 modifiées, 1 rejetées" in lab.run("pg")
    assert sums(lab) == {(1, Decimal("20.00"))}


def write_versions(folder: Path, name: str, lines: list[bytes]) -> None:
    """Un lot qui a les colonnes des corrections."""
    write_lot(folder, name, lines, header=b"id,produit,region,montant,date_vente,version,annulee\n")


def test_a_table_spread_over_partitions(lab: Lab) -> None:
    """Une table « ventes » répartie par PARTITION BY HASH (id) : mêmes lignes, mêmes sommes, mêmes comptes."""
    columns = (Path(__file__).parents[2] / "exercice3" / "schema.sql").read_text(encoding="utf-8").split(";")[0]
    parts = ";".join(
        f"CREATE TABLE ventes_{n} PARTITION OF ventes FOR VALUES WITH (MODULUS 2, REMAINDER {n})" for n in (0, 1)
    )
    lines = [b"v%d,P,R,10.50,2025-01-01 10:00:00,1,false\n" % number for number in range(10)]
    write_versions(lab.exports, "ventes_000001_x", lines)
    write_versions(lab.exports, "ventes_000002_x", [b"v3,P,R,1.50,2025-01-02 10:00:00,2,false\n"])
    with database() as env:
        with closing(psycopg2.connect(**postgres_dsn() | {"dbname": "essai"})) as connection, connection:
            connection.cursor().execute(f"{columns} PARTITION BY HASH (id);{parts}")
        said = lab.run("pg", env=env)
        assert "10 lignes, 10 nouvelles, 0 modifiées" in said
        assert "1 lignes, 0 nouvelles, 1 modifiées" in said
        assert ask("essai", "SELECT count(*) || ' ' || sum(montant) FROM ventes") == "10 96.00"
        assert ask("essai", TOTALS.format("ventes_par_jour").replace(", coal", " || ' ' || coal")) == "10 96.00"


def test_several_loaders_agree(lab: Lab) -> None:
    """Trois chargements à la fois, de lots qui se partagent ventes, versions et sommes : rien ne manque."""
    lab.run("pg")
    dice, wanted, bunches = random.Random(1), dict[str, Vente](), list[list[Vente]]()
    for _ in range(24):
        bunch: dict[tuple[str, int], Vente] = {}
        for _ in range(150):
            id, version = f"v{dice.randrange(600)}", dice.randrange(1, 5)
            hours = zlib.crc32(f"{id} {version}".encode()) % 48  # la même version est toujours la même
            when, cancelled = NOON + timedelta(hours=hours), version > 1 and hours % 4 == 0
            vente = Vente(id, f"P{hours % 3}", f"R{hours % 5}", Decimal(hours + 1), when, version, cancelled)
            bunch[id, version] = vente
            if version > wanted.get(id, vente).version or id not in wanted:
                wanted[id] = vente
        bunches.append(list(bunch.values()))
    for number, ventes in enumerate(bunches, start=1):
        lines = [",".join(to_row(to_document(vente, NOON))).encode() + b"\n" for vente in ventes]
        write_versions(lab.exports, f"ventes_{number:06d}_x", lines)
    loaders = [lab.start("pg") for _ in range(3)]
    for loader in loaders:
        assert loader.process.wait(120) == 0, loader.text
    assert lab.sql("SELECT count(*), sum(rejetees) FROM ventes_chargements") == [(24, 0)]
    found = lab.sql("SELECT id, produit, region, montant, date_vente, version, annulee FROM ventes")
    assert {row[0]: Vente(*row) for row in found} == wanted
    assert len(sums(lab)) == 1


def test_a_deadlock_is_begun_again(lab: Lab) -> None:
    """Un autre programme tient les sommes d'un jour, et attend celles d'un jour que pg.py tient : pg.py recommence."""
    lab.run("pg")
    write_lot(lab.exports, "ventes_000001_x", [LINE % b"a", b"b,P,R,1,2025-01-02 10:00:00\n"])
    day = "SELECT pg_advisory_xact_lock('ventes'::regclass::integer, (date %s - date '0001-01-01') %% 64)"
    with closing(psycopg2.connect(**postgres_dsn())) as other, other.cursor() as cursor:
        cursor.execute(day, ("2025-01-02",))
        loader = lab.start("pg")
        wait_until(lambda: lab.sql("SELECT 1 FROM pg_locks WHERE NOT granted") != [], 60, lambda: loader.text)
        with suppress(psycopg2.errors.DeadlockDetected):  # sur une machine lente, c'est lui que PostgreSQL annule
            cursor.execute(day, ("2025-01-01",))
        other.rollback()
        assert loader.process.wait(60) == 0, loader.text
    assert "2 nouvelles" in loader.text
    assert sums(lab) == {(2, Decimal("11.50"))}


def test_a_base_of_the_former_version_goes_on(stack: None, tmp_path: Path) -> None:
    """Base remplie par la version d'avant : rien n'est rechargé, les sommes restent, une vue d'étudiant aussi."""
    lab = FormerLab(tmp_path)
    try:
        lab.produce(500)
        lab.consume(500)
        lab.run("schedule_export", "--once")
        lab.run("pg")
        lab.sql("CREATE VIEW ma_vue AS SELECT region, sum(chiffre_affaires) FROM ventes_par_jour GROUP BY region")
        before, whole = sums_before(lab), lab.sql("SELECT * FROM ma_vue ORDER BY 1")
        lab.upgrade()
        assert "Rien de nouveau" in lab.run("pg")
        assert sums_before(lab) == before
        assert lab.sql("SELECT * FROM ma_vue ORDER BY 1") == whole
        vente = expected(1)[0]
        line = f"{vente.id},{vente.produit},{vente.region},1.00,{vente.date_vente},2,true\n".encode()
        write_versions(lab.exports, "ventes_000002_x", [line])
        assert "1 modifiées" in lab.run("pg")
        assert sums(lab) == {(499, before[0][1] - vente.montant)}
    finally:
        lab.sql("DROP VIEW IF EXISTS ma_vue")
        lab.close()


def sums_before(lab: Lab) -> list[tuple[Any, ...]]:
    """Les sommes par jour, que la version d'avant avait déjà."""
    return lab.sql(TOTALS.format("ventes_par_jour"))


def test_rights_of_others_are_left_alone(lab: Lab) -> None:
    """Un droit rendu à PUBLIC reste, et un rôle qui n'a que le droit de charger charge."""
    lab.run("pg")
    write_lot(lab.exports, "ventes_000001_x", [LINE % b"a"])
    with superuser(setting("PGDATABASE")) as connection, connection.cursor() as cursor:
        cursor.execute(f"""
            CREATE ROLE chargeur LOGIN PASSWORD 'essai';
            GRANT TEMPORARY ON DATABASE {setting("PGDATABASE")} TO PUBLIC;
            GRANT SELECT ON schema_version TO chargeur;
            GRANT SELECT, INSERT, UPDATE ON ventes, ventes_chargements, ventes_rejets, ventes_suivi TO chargeur
        """)
        try:
            assert "1 nouvelles" in lab.run("pg", env={"PGUSER": "chargeur", "PGPASSWORD": "essai"})
            lab.run("pg")
            cursor.execute("SELECT has_database_privilege('tableau', current_database(), 'TEMPORARY')")
            assert cursor.fetchone() == (True,)
        finally:
            cursor.execute(f"""
                REVOKE TEMPORARY ON DATABASE {setting("PGDATABASE")} FROM PUBLIC;
                DROP OWNED BY chargeur; DROP ROLE chargeur
            """)
    assert len(sums(lab)) == 1


def test_a_sale_of_tomorrow_changes_nothing_today(lab: Lab) -> None:
    """Le dernier jour est celui de l'horloge : une vente datée de demain ne change pas l'évolution d'aujourd'hui."""
    now = datetime.now().replace(microsecond=0)  # noqa: DTZ005 - heure locale, comme date_vente
    days = [now - timedelta(days=back) for back in range(20)]
    ventes = [Vente(f"v{number}", "P", "R", Decimal(10), when) for number, when in enumerate(days)]
    late = days[7].replace(hour=23, minute=59, second=59)  # la semaine d'avant, plus tard dans la journée
    ventes.append(Vente("tard", "P", "R", Decimal(10), late))
    compared = (
        "SELECT sum(chiffre_affaires_comparable), sum(chiffre_affaires_precedent) FROM ventes_analyse "
        "WHERE jour <= current_date"
    )

    def write(name: str, ventes: list[Vente]) -> None:
        lines = [f"{v.id},{v.produit},{v.region},{v.montant},{v.date_vente}\n".encode() for v in ventes]
        write_lot(lab.exports, name, lines)
        lab.run("pg")

    write("ventes_000001_x", ventes)
    before = lab.sql(compared)
    write("ventes_000002_x", [ventes[0]._replace(id="demain", date_vente=now + timedelta(days=1))])
    assert lab.sql(compared) == before
