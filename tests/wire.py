"""Un relais devant MongoDB : il laisse tout passer, et note chaque commande telle qu'elle est sur le fil."""

import socket
import struct
import threading
from typing import Any

import bson

OP_MSG = 2013
HEADER = struct.Struct("<iiii")  # longueur, numéro, réponse à, opération


class MongoWire:
    """Relais de ``127.0.0.1:port`` ; s'utilise avec « with ». ``commands`` : ce que les clients ont demandé."""

    def __init__(self, port: int) -> None:
        self.commands: list[dict[str, Any]] = []
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "MongoWire":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for end in (self._listener, *self._sockets):
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # fermé
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            threading.Thread(target=self._relay, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._relay, args=(server, client, False), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, listen: bool) -> None:
        """Passe les messages un à un, jusqu'à ce qu'un côté ferme."""
        try:
            while header := _exactly(source, HEADER.size):
                length, *_, operation = HEADER.unpack(header)
                body = _exactly(source, length - HEADER.size)
                if listen and operation == OP_MSG:
                    self.commands.append(_command(body))
                target.sendall(header + body)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def _exactly(source: socket.socket, count: int) -> bytes:
    """``count`` octets, ou rien si l'autre côté a fermé."""
    data = b""
    while len(data) < count:
        piece = source.recv(count - len(data))
        if not piece:
            return b""
        data += piece
    return data


def _command(body: bytes) -> dict[str, Any]:
    """Le document principal d'un OP_MSG : quatre octets de drapeaux, puis des sections, la sienne de type 0."""
    at = 4
    while body[at] != 0:  # une section de type 1 porte les documents d'une écriture : on la saute
        at += 1 + struct.unpack_from("<i", body, at + 1)[0]
    size = struct.unpack_from("<i", body, at + 1)[0]
    return dict(bson.decode(body[at + 1 : at + 1 + size]))
