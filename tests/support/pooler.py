"""A pooler in transaction mode before PostgreSQL, like PgBouncer: each transaction on whichever connection is free."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import struct
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sqlalchemy import make_url
from sqlalchemy.engine import URL

STARTUP, SSL_REQUEST, CANCEL_REQUEST = 196608, 80877103, 80877102
KNOWN = {"user", "database", "client_encoding", "application_name"}  # others are refused, as PgBouncer does by default


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


async def read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind = await reader.readexactly(1)
    (length,) = struct.unpack("!i", await reader.readexactly(4))
    return kind, await reader.readexactly(length - 4)


@dataclass
class Backend:
    """One real connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    settings: list[bytes] = field(default_factory=list)

    @classmethod
    async def open(cls, url: URL) -> Backend:
        reader, writer = await asyncio.open_connection(url.host, url.port or 5432)
        words = ["user", url.username or "", "database", url.database or "", ""]
        body = struct.pack("!i", STARTUP) + b"".join(word.encode() + b"\0" for word in words)
        writer.write(struct.pack("!i", len(body) + 4) + body)
        backend = cls(reader, writer)
        login = Scram(url.password or "")
        while True:
            kind, body = await read_message(reader)
            assert kind != b"E", body
            if kind == b"R":
                writer.write(login.answer(body))
            elif kind == b"S":
                backend.settings.append(body)
            elif kind == b"Z":
                return backend


class Scram:
    """The login with a password, SCRAM-SHA-256 (RFC 5802, RFC 7677), as a client of PostgreSQL does it."""

    def __init__(self, password: str) -> None:
        self._password = password.encode()
        self._first = f"n=,r={secrets.token_hex(12)}"

    def answer(self, request: bytes) -> bytes:
        """Return the message that answers one of the server's requests; nothing where it asks for none."""
        (code,) = struct.unpack("!i", request[:4])
        if code == 10:  # the server names its methods
            first = f"n,,{self._first}".encode()
            return message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first)
        if code == 11:
            return message(b"p", self._proof(request[4:].decode()).encode())
        assert code in (0, 12), f"PostgreSQL asks for login method {code}"  # accepted, and the server's own proof
        return b""

    def _proof(self, challenge: str) -> str:
        nonce, salt, rounds = (word[2:] for word in challenge.split(","))
        key = hashlib.pbkdf2_hmac("sha256", self._password, b64decode(salt), int(rounds))
        client = hmac.digest(key, b"Client Key", "sha256")
        last = f"c=biws,r={nonce}"
        signature = hmac.digest(hashlib.sha256(client).digest(), f"{self._first},{challenge},{last}".encode(), "sha256")
        proof = bytes(a ^ b for a, b in zip(client, signature, strict=True))
        return f"{last},p={b64encode(proof).decode()}"


class Pooler:
    """`size` real connections, shared by any number of clients; a client keeps one for a transaction, no longer."""

    def __init__(self, url: str, size: int) -> None:
        self._target = make_url(url)
        self._size = size
        self._free: asyncio.Queue[Backend] = asyncio.Queue()
        self._backends: list[Backend] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.refused: list[str] = []  # startup parameters that a client should not have sent
        self.turns = 0

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return self._target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    async def start(self) -> None:
        for _ in range(self._size):
            self._backends.append(await Backend.open(self._target))
            self._free.put_nowait(self._backends[-1])
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for backend in self._backends:
            backend.writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if await self._greet(reader, writer):
                await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):  # the client went away
            return
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            length, code = struct.unpack("!ii", await reader.readexactly(8))
            body = await reader.readexactly(length - 8)
            if code == CANCEL_REQUEST:
                return False
            if code != SSL_REQUEST:
                break
            writer.write(b"N")
        words = [word.decode() for word in body.rstrip(b"\0").split(b"\0")]
        unknown = set(words[::2]) - KNOWN
        if unknown:
            self.refused.extend(unknown)
            text = f"SFATAL\0C08P01\0Munsupported startup parameter: {unknown.pop()}\0\0"
            writer.write(message(b"E", text.encode()))
            await writer.drain()
            return False
        writer.write(message(b"R", struct.pack("!i", 0)))
        for setting in self._backends[0].settings:
            writer.write(message(b"S", setting))
        writer.write(message(b"K", struct.pack("!ii", 1_000_000 + secrets.randbelow(1000), secrets.randbelow(2**31))))
        writer.write(message(b"Z", b"I"))
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turn: Turn | None = None
        try:
            while True:
                kind, body = await read_message(reader)
                if kind == b"X":
                    return
                if turn is None or turn.over:
                    turn = Turn(await self._free.get(), writer, self._free)
                    self.turns += 1
                turn.send(kind, body)
        finally:
            if turn is not None:
                await turn.clean()


class Turn:
    """One client's use of one connection, from its first message until the server is out of any transaction."""

    def __init__(self, backend: Backend, client: asyncio.StreamWriter, free: asyncio.Queue[Backend]) -> None:
        self.over = False
        self._backend = backend
        self._client = client
        self._free = free
        self._expected = 0  # how often the server still has to say that it is ready
        self._pump = asyncio.ensure_future(self._pass_back())

    def send(self, kind: bytes, body: bytes) -> None:
        self._expected += kind in (b"Q", b"S")
        self._backend.writer.write(message(kind, body))

    async def clean(self) -> None:
        """The client is gone: whatever it left open is rolled back, as PgBouncer does."""
        if not self.over:
            self.send(b"Q", b"ROLLBACK\0")
            await self._pump

    async def _pass_back(self) -> None:
        while not self.over:
            kind, body = await read_message(self._backend.reader)
            if not self._client.is_closing():
                self._client.write(message(kind, body))
            if kind == b"Z":
                self._expected -= 1
                self.over = body == b"I" and self._expected == 0
        self._free.put_nowait(self._backend)


@asynccontextmanager
async def pooler_to(url: str, size: int = 2) -> AsyncIterator[Pooler]:
    """A started pooler before the server of a URL."""
    pooler = Pooler(url, size)
    await pooler.start()
    try:
        yield pooler
    finally:
        await pooler.close()
