"""An application with blocking work, for a real server: `uvicorn tests.offload.shop:app`."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from fastapi import FastAPI, Request, Response
from onebeat import install
from onebeat.errors import Busy
from onebeat.offload import Lane, to_process, to_process_sync, to_thread
from tests.offload import work

logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
app = FastAPI()
install(app)

wide = Lane("wide", width=200)
narrow = Lane("narrow", width=2, queue=0)
opened = threading.Event()


@app.exception_handler(Busy)
async def busy(request: Request, error: Busy) -> Response:
    return Response(str(error), status_code=503, headers={"Retry-After": "1"})


@app.get("/quick")
async def quick() -> dict[str, str]:
    return {"answer": "at once"}


@app.get("/plain")
def plain() -> str:
    return threading.current_thread().name


@app.get("/asleep/{seconds}")
async def asleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@app.get("/thread/{seconds}")
async def thread(seconds: float) -> None:
    await to_thread(time.sleep, seconds, lane=wide)


@app.get("/direct/{seconds}")
async def direct(seconds: float) -> None:
    time.sleep(seconds)  # the mistake


@app.get("/narrow")
async def full() -> None:
    await to_thread(opened.wait, 60, lane=narrow)


@app.get("/held")
async def held() -> int:
    return narrow.running


@app.get("/open")
async def open_narrow() -> None:
    opened.set()


@app.get("/process/{seconds}")
async def process(seconds: float) -> int:
    return await to_process(work.pid, timeout=seconds)


@app.get("/sync-process")
def sync_process() -> int:
    return to_process_sync(work.pid, timeout=30)
