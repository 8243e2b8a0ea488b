"""A TCP proxy between onebeat and a server, which can cut, delay, hold back and refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import make_url


class Proxy:
    """Passes bytes on until told otherwise.

    `cut_on` = bytes: the first client message that contains them still reaches the server, whose answer is swallowed,
    and then both sides are cut: what happens when a connection dies while a COMMIT is under way. `before=True` cuts
    before the server gets the message. `refuse` = True: new connections are closed at once. `delay` = seconds: each
    round trip takes so much longer. `hold()`: nothing passes any more, as if the server stood still, until `release()`.
    `messages`: how many times a client has sent something.
    """

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut_on: bytes | None = None
        self.before = False
        self.refuse = False
        self.refuse_after_cut = False
        self.delay = 0.0
        self.cuts = 0
        self.opened = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._answered = asyncio.Event()  # the server has answered the message that was cut
        self.messages = 0

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return self._target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    def hold(self) -> None:
        """Let nothing pass in either direction; connections stay open."""
        self._flowing.clear()

    def release(self) -> None:
        """Let pass what was held back."""
        self._flowing.set()

    def cut(self) -> None:
        """Cut every connection now."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.transport.abort()
            return
        self.opened += 1
        default = {"postgresql": 5432}.get(self._target.drivername.partition("+")[0], 3306)
        server_reader, server_writer = await asyncio.open_connection(self._target.host, self._target.port or default)
        self._writers |= {writer, server_writer}
        pair = (writer, server_writer)
        for task in (
            asyncio.ensure_future(self._pass_on(reader, server_writer, pair, server_reader)),
            asyncio.ensure_future(self._pass_back(server_reader, writer, pair)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        _server: asyncio.StreamReader,
    ) -> None:
        try:
            while data := await source.read(65536):
                self.messages += 1
                await self._on_the_way()
                if self.cut_on is not None and self.cut_on in data:
                    self.cut_on = None
                    self.cuts += 1
                    self._answered = asyncio.Event()
                    self.refuse = self.refuse_after_cut
                    pair[0].transport.abort()  # the client never hears of it
                    if not self.before:
                        sink.write(data)
                        await sink.drain()
                        await self._answered.wait()
                    break
                sink.write(data)
                await sink.drain()
        except ConnectionError:  # cut
            return
        finally:
            self._hang_up(pair)

    async def _pass_back(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        try:
            while data := await source.read(65536):
                await self._on_the_way()
                if sink.is_closing():
                    self._answered.set()
                    return
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return
        finally:
            if not sink.is_closing():
                self._hang_up(pair)

    async def _on_the_way(self) -> None:
        """Take the time that one direction of a round trip takes."""
        if self.delay:
            await asyncio.sleep(self.delay / 2)
        await self._flowing.wait()

    def _hang_up(self, pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        for writer in pair:
            self._writers.discard(writer)
            writer.transport.abort()


@asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[Proxy]:
    """A started proxy before the server of a URL."""
    proxy = Proxy(url)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
