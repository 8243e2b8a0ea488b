"""The demo's own mail server: it accepts everything and writes each mail into a folder and a ledger."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller


class Mailbox:
    """Keeps each mail as a file `NNN.eml` and one line in `ledger.jsonl`: when it came and its headers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "ledger.jsonl"
        self.count = 0
        folder.mkdir(parents=True, exist_ok=True)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Take one mail in; the answer is what SMTP wants to hear."""
        self.count += 1
        (self.folder / f"{self.count:03}.eml").write_bytes(envelope.content)
        line = {"at": time.time(), "to": envelope.rcpt_tos, **_headers(envelope.content)}
        with self.ledger.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return "250 Message accepted"


def serve(folder: Path, port: int = 0) -> Controller:
    """Start the server on 127.0.0.1 in a thread of its own; `.port` tells where, `.stop()` ends it."""
    controller = Controller(Mailbox(folder), hostname="127.0.0.1", port=port)
    controller.start()
    return controller


def _headers(content: bytes) -> dict[str, str]:
    from email import message_from_bytes

    mail = message_from_bytes(content)
    return {
        "message_id": mail["Message-ID"] or "",
        "tracking_id": mail["X-Tracking-ID"] or "",
        "text": str(mail.get_payload()).strip(),
    }
