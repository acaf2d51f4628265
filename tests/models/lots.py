"""Des consommateurs et des exports dans un ordre quelconque, tués, gelés, sans réponse, devant un MongoDB simulé.

Le code essayé est le vrai (exercice3.arrivages, exercice3.schedule_export). MongoDB est un dictionnaire par
collection, avec ce qui compte ici : clé unique, écritures document par document, réponses perdues, requêtes qui
s'exécutent bien après que le client y a renoncé, parcours qui ne sont pas des photographies. Un seul fil parle à la
fois ; à chaque document, le hasard choisit qui continue, et qui est tué ou gelé. L'oracle : chaque vente de MongoDB est
dans un fichier terminé et un seul, un fichier n'a jamais deux contenus, et rien de validé ne manque.
``python -m tests.models.lots 100000``.
"""

import logging
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from exercice3 import arrivages, history, lots, schedule_export
from exercice3.collection import key, to_document
from exercice3.ventes import Vente
from tests.models.histories import play

from pymongo.errors import AutoReconnect, BulkWriteError, DuplicateKeyError

Document = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHEN = datetime(2025, 6, 1)
MOST_TURNS = 20_000
EVER = timedelta(days=-1)  # un essai ouvert à l'instant est déjà trop vieux


class KilledError(BaseException):
    """Ce processus est tué net, à cet instant."""


class World:
    """Le tour de parole, et les requêtes que plus personne n'attend."""

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.steady, self.turns = dice, False, 0
        self.late: list[Iterator[None]] = []
        self.locks: list[threading.Semaphore] = []
        self.running: list[int] = []
        self.deaths: dict[int, int] = {}
        self.frozen: dict[int, int] = {}
        self.here = threading.local()

    def turn(self) -> None:
        """Un point où un autre peut passer, et celui-ci mourir."""
        me: int = self.here.number
        self.turns += 1
        assert self.turns < MOST_TURNS, "deux processus ne font que se gêner"
        if self.late and self.dice.random() < 0.2:
            self.advance(self.dice.randrange(len(self.late)))
        if not self.steady:
            if self.dice.random() < 0.02:
                self.frozen[me] = self.turns + self.dice.randint(5, 80)
            self.give(me)
            self.deaths[me] = self.deaths.get(me, sys.maxsize) - 1
            if not self.deaths[me]:
                raise KilledError

    def advance(self, number: int) -> None:
        """Une requête abandonnée avance d'un document."""
        if next(self.late[number], self) is self:
            del self.late[number]

    def give(self, me: int) -> None:
        """Passe la parole, et l'attend."""
        awake = [one for one in self.running if self.frozen.get(one, 0) <= self.turns]
        other = self.dice.choice(awake or self.running)
        if other != me:
            self.locks[other].release()
            self.locks[me].acquire()

    def run(self, lives: list[Callable[[], None]]) -> None:
        """Fait vivre ces processus jusqu'au bout."""
        faults: list[BaseException] = []
        self.locks = [threading.Semaphore(0) for _ in lives]
        self.running = list(range(len(lives)))
        over = threading.Semaphore(0)

        def one(me: int, life: Callable[[], None]) -> None:
            self.here.number = me
            self.locks[me].acquire()
            try:
                life()
            except KilledError:
                pass
            except BaseException as error:
                faults.append(error)
            self.running.remove(me)
            (self.locks[self.dice.choice(self.running)] if self.running else over).release()

        for pair in enumerate(lives):
            threading.Thread(target=one, args=pair, daemon=True).start()
        self.locks[self.dice.choice(self.running)].release()
        assert over.acquire(timeout=60), "un processus ne finit pas"
        if faults:
            raise faults[0]

    def ask(self, steps: Iterator[None]) -> None:
        """Une requête : document par document ; elle ou sa réponse peut se perdre, ou tarder."""
        chance = 1.0 if self.steady else self.dice.random()
        self.turn()
        if chance < 0.03:
            raise AutoReconnect("la requête s'est perdue")
        if chance < 0.06:
            self.late.append(steps)
            raise AutoReconnect("elle s'exécutera plus tard")
        try:
            for _ in steps:
                self.turn()
        except KilledError:
            if self.dice.random() < 0.7:  # le client est mort, le serveur continue
                self.late.append(steps)
            raise
        if chance < 0.09:
            raise AutoReconnect("la réponse s'est perdue")


SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda a, b: bool(a == b),
    "$ne": lambda a, b: bool(a != b),
    "$in": lambda a, b: a in b,
    "$lt": lambda a, b: a is not None and a < b,
}


def matches(document: Document, wanted: Document) -> bool:
    """Vrai si ``document`` répond au filtre ; un champ absent vaut None, comme dans MongoDB."""
    for name, value in wanted.items():
        found = document.get(name)
        for sign, term in value.items() if isinstance(value, dict) else (("$eq", value),):
            if not SIGNS[sign](found, term):
                return False
    return True


def change(document: Document, orders: Document) -> None:
    """$set et $unset."""
    document.update(orders["$set"])
    for name in orders.get("$unset", ()):
        document.pop(name, None)


class Cursor:
    """Un parcours : chaque document est lu à son tour, tel qu'il est alors."""

    def __init__(self, collection: "Collection", wanted: Document) -> None:
        self.collection, self.wanted = collection, wanted
        self.most, self.order = sys.maxsize, 1

    def limit(self, most: int) -> "Cursor":
        """Comme pymongo."""
        self.most = most
        return self

    def sort(self, name: str, order: int) -> "Cursor":
        """Comme pymongo ; par _id."""
        assert name == "_id"
        self.order = order
        return self

    def __iter__(self) -> Iterator[Document]:
        world, documents = self.collection.world, self.collection.documents
        world.turn()
        if not world.steady and world.dice.random() < 0.02:
            raise AutoReconnect("la lecture s'est perdue")
        found = 0
        for id in sorted(documents)[:: self.order]:
            document = documents.get(id)  # effacé depuis ?
            if document and matches(document, self.wanted):
                found += 1
                yield dict(document)
                if found == self.most:
                    return
                world.turn()


class Collection:
    """Une collection."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.documents: dict[Any, Document] = {}

    def find(self, wanted: Document, _: Document | None = None, **__: Any) -> Cursor:
        """Comme pymongo."""
        return Cursor(self, wanted)

    def find_one(self, wanted: Document | None = None, *, sort: list[tuple[str, int]] | None = None) -> Document | None:
        """Comme pymongo."""
        return next(iter(self.find(wanted or {}).sort(*(sort or [("_id", 1)])[0])), None)

    def count_documents(self, wanted: Document) -> int:
        """Comme pymongo."""
        return sum(1 for _ in self.find(wanted))

    def insert_one(self, document: Document) -> None:
        """Comme pymongo."""
        faults: list[Document] = []
        self.world.ask(self._insert([document], faults))
        if faults:
            raise DuplicateKeyError("simulé", 11000)

    def insert_many(self, documents: list[Document], *, ordered: bool) -> None:
        """Comme pymongo."""
        assert not ordered
        faults: list[Document] = []
        self.world.ask(self._insert(documents, faults))
        if faults:
            writes = [{"code": 11000, "op": document, "errmsg": "simulé"} for document in faults]
            raise BulkWriteError({"writeErrors": writes, "writeConcernErrors": []})

    def _insert(self, documents: list[Document], faults: list[Document]) -> Iterator[None]:
        for document in documents:
            if self.documents.setdefault(document["_id"], dict(document)) != document:
                faults.append(document)
            yield

    def update_one(self, wanted: Document, orders: Document) -> None:
        """Comme pymongo ; une seule étape."""

        def steps() -> Iterator[None]:
            document = self.documents.get(wanted["_id"])
            if document and matches(document, wanted):
                change(document, orders)
            yield

        self.world.ask(steps())

    def update_many(self, wanted: Document, orders: Document, **_: Any) -> SimpleNamespace:
        """Comme pymongo."""
        result = SimpleNamespace(modified_count=0)

        def steps() -> Iterator[None]:
            for document in list(self.documents.values()):
                if matches(document, wanted):
                    change(document, orders)
                    result.modified_count += 1
                    yield

        self.world.ask(steps())
        return result

    def delete_one(self, wanted: Document) -> None:
        """Comme pymongo."""

        def steps() -> Iterator[None]:
            if matches(self.documents.get(wanted["_id"], {}), wanted):
                del self.documents[wanted["_id"]]
            yield

        self.world.ask(steps())

    def delete_many(self, wanted: Document) -> None:
        """Comme pymongo."""

        def steps() -> Iterator[None]:
            for id, document in list(self.documents.items()):
                if matches(document, wanted):
                    self.documents.pop(id, None)
                    yield

        self.world.ask(steps())


class Pipeline:
    """Kafka (deux partitions), MongoDB et le dossier d'export."""

    def __init__(self, world: World) -> None:
        self.world, self.dice = world, world.dice
        self.ventes, self.arrivages, self.lots_export = (Collection(world) for _ in range(3))
        self.log: list[list[Vente]] = [[], []]
        self.committed = [0, 0]
        self.acknowledged: set[str] = set()
        self.files: dict[str, tuple[str, ...]] = {}
        self.former: Counter[str] = Counter()
        self.coming = (Vente(f"v{n:02}", "P", "R", Decimal("1.00"), WHEN) for n in range(1000))

    def produce(self, count: int) -> None:
        """Des ventes neuves, dont des corrections, et des copies, parfois dans l'autre partition."""
        for vente in (next(self.coming) for _ in range(count)):
            versions = [vente, vente._replace(version=2)] if self.dice.random() < 0.2 else [vente]
            for one in versions:
                for _ in range(self.dice.choice((1, 1, 1, 2))):
                    self.dice.choice(self.log).append(one)

    def former_version(self) -> None:
        """Ce que la version d'avant a laissé : des ventes marquées, d'autres non, un lot ouvert en plein milieu."""
        ventes = [next(self.coming) for _ in range(6)]
        for number, vente in enumerate(ventes):
            self.log[0].append(vente)
            lot = (1, 1, 2, 0, 0, 0)[number]
            self.ventes.documents[vente.id] = to_document(vente, NOW) | {"lot_export": lot}
        self.former.update(vente.id for vente in ventes[:2])
        self.lots_export.documents[1] = {"_id": 1, "termine": True, "manifeste": {}}
        self.lots_export.documents[2] = {"_id": 2, "termine": False, "ventes": [vente.id for vente in ventes[2:4]]}

    def consume(self, rounds: int, size: int) -> None:
        """Un consommateur : un lot de messages, écrit autant de fois qu'il le faut, puis la position."""
        for _ in range(rounds):
            number = self.dice.randrange(2)
            log, start = self.log[number], self.committed[number]
            batch = {key(vente): vente for vente in log[start : start + self.dice.randint(1, size)]}
            while batch:
                try:
                    arrivages.write(self, batch.values(), NOW)  # type: ignore[arg-type]
                    break
                except AutoReconnect:
                    self.world.turn()
            self.acknowledged |= batch.keys()
            self.world.turn()
            if log is self.log[number]:  # ce topic-là, et non un autre du même nom
                self.committed[number] = max(self.committed[number], start + len(batch))

    def export(self, passes: int, size: int) -> None:
        """Un export."""
        for _ in range(passes):
            try:
                schedule_export.export_new(self, Path(), size)  # type: ignore[arg-type]
            except AutoReconnect:
                self.world.turn()

    def forget(self, passes: int) -> None:
        """Un export qui oublie des lots, dont pg.py a compressé le fichier."""
        for _ in range(passes):
            try:
                history.forget_archived(self, Path())  # type: ignore[arg-type]
            except AutoReconnect:
                self.world.turn()

    def mishaps(self) -> None:
        """Groupe remis à zéro, topic recréé."""
        for _ in range(self.dice.randint(0, 3)):
            for _ in range(self.dice.randint(1, 60)):
                self.world.turn()
            number = self.dice.randrange(2)
            self.committed[number] = 0
            if self.dice.random() < 0.5:
                self.log[number] = []
                self.produce(2)

    def write(self, path: Path, parts: list[tuple[tuple[str, ...], int]]) -> Document:
        """Un fichier ; récrit, il a les mêmes octets."""
        self.world.turn()
        ((content, lines),) = parts
        assert self.files.setdefault(path.name, content) == content, f"{path.name} a deux contenus"
        self.world.turn()
        return {"fichier": path.name, "lignes": lines}

    def verdict(self) -> str:
        """Ce qui n'est pas allé, ou rien."""
        finished = {lot["manifeste"].get("fichier") for lot in self.lots_export.documents.values() if lot["termine"]}
        if len(finished) != len(self.lots_export.documents):
            return "un lot n'est pas terminé"
        if set(self.files) - finished:
            return "un fichier n'est celui d'aucun lot"
        exported = self.former + Counter(id for content in self.files.values() for id in content)
        if self.acknowledged - self.ventes.documents.keys():
            return "une vente validée n'est pas dans MongoDB"
        if exported != Counter(self.ventes.documents.keys()):
            return f"exportées {sorted(exported.items())}, dans MongoDB {sorted(self.ventes.documents)}"
        return ""


def to_csv(rows: list[tuple[str, ...]]) -> tuple[tuple[str, ...], int]:
    """Contenu simulé d'un fichier : les clés de ses ventes."""
    return tuple(sorted(row[0] if row[5] == "1" else f"{row[0]}\t{row[5]}" for row in rows)), len(rows)


def live(seed: int) -> str:
    """Une histoire ; ce qui n'y est pas allé, ou rien."""
    logging.disable(logging.CRITICAL)
    dice = random.Random(seed)
    world = World(dice)
    pipeline = Pipeline(world)
    if dice.random() < 0.3:
        pipeline.former_version()
    pipeline.produce(dice.randint(3, 10))
    lives: list[Callable[[], None]] = [pipeline.mishaps] if dice.random() < 0.4 else []
    lives += [lambda: pipeline.consume(dice.randint(2, 8), dice.randint(1, 6)) for _ in range(dice.randint(1, 3))]
    lives += [lambda: pipeline.export(dice.randint(1, 4), dice.randint(1, 6)) for _ in range(dice.randint(1, 3))]
    if dice.random() < 0.5:
        lives.append(lambda: pipeline.forget(dice.randint(1, 20)))
    world.deaths = {number: dice.randint(1, 150) for number in range(len(lives)) if dice.random() < 0.4}

    def new_name() -> str:
        return f"{dice.getrandbits(64):016x}"

    def sweep(database: Any, now: datetime) -> arrivages.Swept:
        return arrivages.sweep(database, now, EVER if world.steady or dice.random() < 0.5 else -EVER)

    patches: list[Any] = [
        mock.patch.object(arrivages, "new_name", new_name),
        mock.patch.object(arrivages, "IN_SIZE", 2),
        mock.patch.object(arrivages, "SWEEP_SIZE", 2),
        mock.patch.object(schedule_export, "to_csv", to_csv),
        mock.patch.object(history, "to_csv", to_csv),
        mock.patch.object(lots, "write", pipeline.write),
        mock.patch.object(lots, "archived", return_value=SimpleNamespace(exists=lambda: dice.random() < 0.7)),
        mock.patch.object(schedule_export, "sweep", sweep),
        mock.patch.object(
            schedule_export, "_try", lambda database, lot, folder, _: schedule_export.finish_lot(database, lot, folder)
        ),
        mock.patch.object(schedule_export, "datetime", mock.Mock(now=lambda _: NOW)),
    ]
    for patch in patches:
        patch.start()
    try:
        world.run(lives)
        world.deaths.clear()
        world.frozen.clear()
        if dice.random() < 0.5:  # des consommateurs reviennent, et lisent tout ; sinon, personne ne relira
            world.run([lambda: pipeline.consume(40, 6) for _ in range(2)])
            world.deaths.clear()
        world.steady = True
        while world.late:
            world.advance(dice.randrange(len(world.late)))
        world.run([lambda: pipeline.export(2, 3)])
    except BaseException as error:
        return f"graine {seed} : {type(error).__name__} {error}"
    finally:
        mock.patch.stopall()
    found = pipeline.verdict()
    return f"graine {seed} : {found}" if found else ""


if __name__ == "__main__":
    play(live, "histoires")
