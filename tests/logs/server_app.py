"""The application the server tests run: every request logs, in the route, in a thread and in the background."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse

from fastapi import BackgroundTasks, FastAPI, WebSocket
from onebeat.fastapi.install import install
from onebeat.tracking.context import bind

log = logging.getLogger("shop")
app = FastAPI()
options = {"console": None, "directory": os.environ["LOGS"], "access_exclude": ["/health"]}
if os.environ.get("LOGS_SETUP", "install") == "install":
    install(app, logs=options)
elif os.environ["LOGS_SETUP"] == "config":  # the server's --log-config has set the logs up already
    install(app)


@app.get("/many/{number}")
async def many(number: int, background: BackgroundTasks) -> dict[str, int]:
    for part in range(20):
        log.info("part", extra={"request": number, "part": part})
    background.add_task(log.info, "after", extra={"request": number})
    return {"pid": os.getpid()}


@app.get("/items/{item}")
def items(item: int) -> dict[str, int]:
    bind(item=item)  # in a worker thread
    if item == 500:
        raise RuntimeError("item on fire")
    return {"item": item}


@app.get("/health")
async def health() -> str:
    return "ok"


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def events() -> AsyncIterator[bytes]:
        try:
            for tick in range(10_000):
                log.info("tick", extra={"tick": tick})
                yield b"data: tick\n\n"
                await asyncio.sleep(0.01)
        finally:
            log.info("stream over")

    return StreamingResponse(events(), media_type="text/event-stream")


@app.websocket("/ws")
async def ws(socket: WebSocket) -> None:
    await socket.accept()
    await socket.receive_text()
    await socket.close(4001)
