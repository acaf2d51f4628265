"""ventes.twbx : le classeur et ses données dans un seul fichier, pour Tableau Public, Reader, ou sans base de données.

Demande le paquet tableauhyperapi, l'outil de Tableau pour écrire ses fichiers .hyper.
"""

import tempfile
import zipfile
from contextlib import closing
from pathlib import Path

from tableau.dashboards import FIELDS, VIEW
from tableau.database import connect, fetch
from tableau.sheet_sql import Query
from tableau.workbook import EXTRACT_PATH, Server, build_workbook

from tableauhyperapi import (
    Connection,
    CreateMode,
    HyperProcess,
    Inserter,
    Nullability,
    SqlType,
    TableDefinition,
    TableName,
    Telemetry,
)

TABLE = TableName("Extract", "Extract")
TYPES = {
    "date": SqlType.date(),
    "smallint": SqlType.small_int(),
    "bigint": SqlType.big_int(),
    "numeric": SqlType.numeric(18, 2),  # exact : un flottant donnerait 354954,999999999 pour 354955
    "text": SqlType.text(),
}


def build_packaged_workbook(path: Path, server: Server) -> int:
    """Écrit ``path`` avec ce que la vue contient à présent ; renvoie le nombre de lignes de l'extrait."""
    columns = [field for field in FIELDS if field.sql_type]
    names = ", ".join(field.name for field in columns)
    with closing(connect(server.host, port=server.port, dbname=server.database, user=server.user)) as connection:
        rows = fetch(connection, Query(f"SELECT {names} FROM {VIEW}", {}))  # noqa: S608 - nos propres noms
    definition = TableDefinition(
        TABLE, [TableDefinition.Column(field.name, TYPES[field.sql_type], Nullability.NULLABLE) for field in columns]
    )
    with tempfile.TemporaryDirectory() as folder:
        hyper = Path(folder) / "ventes.hyper"
        with (
            HyperProcess(Telemetry.DO_NOT_SEND_USAGE_DATA_TO_TABLEAU, parameters={"log_config": ""}) as process,
            Connection(process.endpoint, hyper, CreateMode.CREATE_AND_REPLACE) as extract,
        ):
            extract.catalog.create_schema("Extract")
            extract.catalog.create_table(definition)
            with Inserter(extract, definition) as inserter:
                inserter.add_rows(rows)
                inserter.execute()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
            package.writestr("ventes.twb", build_workbook(server, extract=True))
            package.write(hyper, EXTRACT_PATH)
    return len(rows)
