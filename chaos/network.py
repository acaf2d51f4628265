"""Un réseau qui va mal, entre un client et les brokers : lent, coupé, ou dont une requête arrive trop tard.

    with Network(bootstrap_servers()) as network:
        producer = Producer({"bootstrap.servers": network.servers, …})
        network.seconds = 0.1    chaque requête met ce temps de plus
        network.cut(5)           plus rien ne passe pendant cinq secondes
        network.hold_end()       la prochaine fin de transaction (EndTxn) reste en route, et sa connexion tombe :
        network.release()        le client la redemande par une autre ; la première arrive maintenant

Chaque broker a son port ici. Les réponses où les brokers donnent leurs adresses sont récrites : elles mènent ici aussi.
"""

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

METADATA, FIND_COORDINATOR, END_TXN = 3, 10, 26  # numéros de requêtes, dans le protocole de Kafka
HEAD = struct.Struct(">hhi")  # d'une requête : son numéro, sa version, ce qui relie la réponse à elle
HERE = "localhost"
HELD_SECONDS = 60.0  # une requête retenue n'attend pas davantage


class Network:
    """Un relais par broker. ``ends`` : les versions des fins de transaction vues ; ``answers`` : des retenues."""

    def __init__(self, servers: str) -> None:
        self.seconds = 0.0
        self.ends: list[int] = []
        self.answers: list[int] = []  # le code d'erreur que le broker a rendu à chaque fin retenue
        self._closed_until = 0.0
        self._hold = False
        self.held, self._released = threading.Event(), threading.Event()
        self._targets = [int(address.rpartition(":")[2]) for address in servers.split(",")]
        self._listeners = [socket.create_server(("127.0.0.1", 0)) for _ in self._targets]
        self._ports = [int(one.getsockname()[1]) for one in self._listeners]
        self._sockets: list[socket.socket] = []

    @property
    def servers(self) -> str:
        """Les adresses à donner au client."""
        return ",".join(f"{HERE}:{port}" for port in self._ports)

    def __enter__(self) -> Self:
        for listener, target in zip(self._listeners, self._targets, strict=True):
            _start(self._accept, listener, target)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        for one in self._listeners:
            _close(one)
        self._drop()

    # --- Ce qui va mal ---

    def cut(self, seconds: float) -> None:
        """Toutes les connexions tombent, et aucune ne se rouvre pendant ``seconds``."""
        self._closed_until = time.monotonic() + seconds
        self._drop()

    def hold_end(self) -> None:
        """La prochaine fin de transaction reste en route ; ``held`` dit quand c'est fait."""
        self.held.clear()
        self._released.clear()
        self._hold = True

    def release(self) -> None:
        """Elle arrive."""
        self._hold = False
        self._released.set()

    # --- Le relais ---

    def _drop(self) -> None:
        for one in self._sockets:
            _close(one)
        self._sockets.clear()

    def _accept(self, listener: socket.socket, target: int) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # fermé
                return
            try:
                if time.monotonic() < self._closed_until:
                    raise OSError
                server = socket.create_connection(("127.0.0.1", target))
            except OSError:
                _close(client)
                continue
            self._sockets += [client, server]
            asked: dict[int, int] = {}
            _start(self._requests, client, server, asked)
            _start(self._answers, server, client, asked)

    def _requests(self, client: socket.socket, server: socket.socket, asked: dict[int, int]) -> None:
        """Du client au broker ; ``asked`` : le numéro de chaque requête, pour lire sa réponse."""
        with suppress(OSError):
            while frame := _frame(client):
                number, version, link = HEAD.unpack_from(frame, 4)
                asked[link] = number
                if number == END_TXN:
                    self.ends.append(version)
                    if self._hold:
                        return self._keep(client, server, frame)
                time.sleep(self.seconds)
                server.sendall(frame)
        _close(client, server)

    def _keep(self, client: socket.socket, server: socket.socket, frame: bytes) -> None:
        """Cette fin reste en route ; son client la croit perdue."""
        self._hold = False
        self._sockets.remove(server)  # une coupure ne la perd pas
        _close(client)
        self.held.set()
        self._released.wait(HELD_SECONDS)
        server.sendall(frame)

    def _answers(self, server: socket.socket, client: socket.socket, asked: dict[int, int]) -> None:
        """Du broker au client."""
        with suppress(OSError):
            while frame := _frame(server):
                number = asked.pop(struct.unpack_from(">i", frame, 4)[0], 0)
                if number in (METADATA, FIND_COORDINATOR):
                    frame = self._rewritten(frame)
                elif number == END_TXN and client.fileno() < 0:
                    self.answers.append(struct.unpack_from(">h", frame, 12)[0])  # après le temps d'attente demandé
                client.sendall(frame)
        _close(client, server)

    def _rewritten(self, frame: bytes) -> bytes:
        """Les mêmes octets, où l'adresse de chaque broker est celle de son relais."""
        for target, port in zip(self._targets, self._ports, strict=True):
            frame = frame.replace(HERE.encode() + struct.pack(">i", target), HERE.encode() + struct.pack(">i", port))
        return frame


def _frame(source: socket.socket) -> bytes:
    """Une requête ou une réponse entière, sa longueur comprise ; vide si l'autre côté a fermé."""
    head = source.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        return b""
    length = int(struct.unpack(">i", head)[0])
    body = source.recv(length, socket.MSG_WAITALL)
    return head + body if len(body) == length else b""


def _start(call: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=call, args=arguments, daemon=True).start()


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
