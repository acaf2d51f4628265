"""MongoDB : répond-il à ce compte, avec les droits que les scripts demandent ?"""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any

from commun.settings import mongo_uri
from services.doctor.env_file import exported, read_env, value
from services.doctor.ports import foreign_services, reachable
from services.doctor.refusals import START, Login, changed, cure, first_line, judge_time, restart
from services.doctor.report import PROBLEM, WARNING, Check, Finding, Notes, problem

from pymongo import MongoClient
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError

TIMEOUTS: dict[str, Any] = dict.fromkeys(("serverSelectionTimeoutMS", "connectTimeoutMS", "socketTimeoutMS"), 2500)
BAD_ACCOUNT = 18
ACCOUNT = ("MONGO_USER", "MONGO_PASSWORD", "MONGO_DATABASE")  # de quoi sont faites les connexions sans MONGO_URI
WRITERS = {"readWrite", "readWriteAnyDatabase", "dbOwner", "root"}
INDEXERS = {"dbAdmin", "dbAdminAnyDatabase", "dbOwner", "root"}


@dataclass(frozen=True)
class Mongo:
    """Ce que MongoDB dit de lui."""

    version: str
    engine: str
    roles: Mapping[str, set[str]]  # base → rôles du compte ; vide sans authentification
    authenticated: bool
    writable: bool
    ahead: float  # secondes dont son horloge devance celle d'ici


def judge_mongo(mongo: Mongo, database: str, where: str) -> list[Finding]:
    """Le moteur, les droits du compte et l'heure."""
    notes = Notes("MongoDB")
    if not mongo.writable:
        notes.problem(
            f"{where} est un membre secondaire : il refuse les écritures",
            "Nommez dans MONGO_URI tous les membres et « replicaSet=… ».",
        )
    roles = {role for base, names in mongo.roles.items() if base in (database, "admin") for role in names}
    for wanted, right in ((WRITERS, "écrire dans"), (INDEXERS, "régler les collections de")):
        if mongo.authenticated and roles and not roles & wanted:
            notes.problem(
                f"le compte de {where} n'a pas le droit d'{right} {database}"
                if right[0] in "aeéiou"
                else f"le compte de {where} n'a pas le droit de {right} {database}",
                f"Donnez-lui les rôles readWrite et dbAdmin sur {database} (MONGO_ROLES, avant le premier démarrage).",
            )
    notes.found += judge_time("MongoDB", mongo.ahead)
    return notes.or_ok(f"{mongo.engine} {mongo.version}, sur {where}")


def judge_mongo_failure(code: int | None, said: str, login: Login, silence: str) -> Finding:
    """Pourquoi MongoDB n'a pas servi : un compte refusé (``code`` 18) n'est pas un serveur muet (None).

    ``silence`` : pourquoi on ne se connecte pas à son port ; vide si on s'y connecte.
    """
    where = login.where
    if code == BAD_ACCOUNT:
        own = changed(login.spare or ("MONGO_USER", "MONGO_PASSWORD"))
        account = f"le compte {login.user}" if login.spare else "ce compte"
        message = f"{where} répond mais refuse {account} ou ce mot de passe"
        remedy = cure(login, own, "Vérifiez le compte et authSource dans MONGO_URI.")
        return Finding("MongoDB", WARNING if login.spare else PROBLEM, message, remedy)
    if code is not None:
        rights = "Vérifiez les droits de ce compte."
        return problem("MongoDB", f"{where} répond mais refuse : « {said} »", cure(login, rights, rights))
    if silence:
        remedy = START if login.local else "Vérifiez MONGO_URI et le réseau."
        return problem("MongoDB", f"ne répond pas sur {where} : {silence}", remedy)
    message = f"la connexion s'ouvre sur {where}, mais personne n'y répond comme MongoDB : « {said} »"
    remedy = restart("mongodb") if login.local else "Vérifiez MONGO_URI (port, tls=true, replicaSet=…)."
    return problem("MongoDB", message, remedy)


def mongodb() -> list[Finding]:
    """Se connecte comme les scripts, demande, n'écrit rien ; puis, sur notre pile, comme l'administrateur."""
    uri, database = mongo_uri(), value("MONGO_DATABASE") or "ventes_db"
    where = re.sub(r"^mongodb(\+srv)?://(?:[^@/]*@)?([^/?]*).*$", r"\2", uri)
    login = Login(where, "", not os.environ.get("MONGO_URI"), exported(ACCOUNT, os.environ, read_env()))
    try:
        with MongoClient[dict[str, Any]](uri, **TIMEOUTS) as client:
            asked = time.time()
            hello = client.admin.command("hello")
            about = client[database].command("connectionStatus")["authInfo"]
            client[database].list_collection_names()
            build = client.admin.command("buildInfo")
        roles: dict[str, set[str]] = {}
        for role in about["authenticatedUserRoles"]:
            roles.setdefault(role["db"], set()).add(role["role"])
        secantus = build.get("secantusVersion")
        mongo = Mongo(
            secantus or build["version"],
            "SecantusDB" if secantus else "mongod",
            roles,
            bool(about["authenticatedUsers"]),
            bool(hello.get("isWritablePrimary", True)),
            hello["localTime"].replace(tzinfo=UTC).timestamp() - asked,
        )
        return judge_mongo(mongo, database, where) + administrator(login)
    except OperationFailure as error:
        said = str((error.details or {}).get("errmsg") or error)
        return [judge_mongo_failure(error.code or 0, first_line(said), login, "")]
    except (InvalidURI, ConfigurationError) as error:
        return [problem("MongoDB", f"MONGO_URI ne se lit pas : « {first_line(str(error))} »", "Corrigez MONGO_URI.")]
    except PyMongoError as error:
        silences = [reachable(host if ":" in host else f"{host}:27017") for host in where.split(",")]
        return [judge_mongo_failure(None, first_line(str(error)), login, silences[0] if all(silences) else "")]


def administrator(login: Login) -> list[Finding]:
    """L'administrateur de .env entre-t-il ? Rien à dire s'il entre, ou si ce n'est pas notre pile."""
    names, env = ("MONGO_ADMIN_USER", "MONGO_ADMIN_PASSWORD"), read_env()
    user, password = (env.get(name) for name in names)
    if not (user and password) or "mongodb" in foreign_services(os.environ):
        return []
    try:
        with MongoClient[dict[str, Any]](login.where, username=user, password=password, **TIMEOUTS) as client:
            client.admin.command("ping")
    except OperationFailure as error:
        said = first_line(str(error))
        return [judge_mongo_failure(error.code or 0, said, replace(login, user=user, spare=names, exported=()), "")]
    return []


CHECKS: dict[str, Check] = {"MongoDB": mongodb}
