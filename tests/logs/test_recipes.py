"""The recipes of docs/logging.md run as they stand there."""

from __future__ import annotations

import json
import re

import pytest

from onebeat.logs.record import ALWAYS
from onebeat.logs.setup import configured_handler
from tests.logs.conftest import ROOT, Script

PAGE = (ROOT / "docs" / "logging.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def recipe(word: str) -> str:
    (block,) = [block for block in BLOCKS if word in block]
    return str(block)


@pytest.mark.parametrize("front_end", ["structlog", "loguru"])
def test_another_front_end_keeps_the_id_the_fields_and_the_exception(front_end: str, script: Script) -> None:
    log = "structlog.get_logger('shop')" if front_end == "structlog" else "logger"
    source = f"""
from onebeat.tracking import tracking
with tracking("t-1"):
    {recipe(front_end).replace(chr(10), chr(10) + "    ")}
    try:
        1 / 0
    except ZeroDivisionError:
        {log}.exception("failed")
"""
    ordered, failed = [json.loads(line) for line in script(source).stderr.splitlines()]
    assert (ordered["msg"], ordered["things"], ordered["tracking_id"]) == ("ordered", 3, "t-1")
    assert ordered["level"] == "INFO"
    assert failed["exc"]["type"] == "ZeroDivisionError"


def test_loguru_keeps_to_the_level_and_to_names_that_are_free(script: Script) -> None:
    source = recipe("loguru") + "logger.debug('unheard')\nlogger.bind(name='ada', msg='mine').success('done')\n"
    _, done = [json.loads(line) for line in script(source).stderr.splitlines()]
    assert (done["level"], done["msg"], done["name_"], done["msg_"]) == ("SUCCESS", "done", "ada", "mine")


def test_a_formatter_of_one_s_own_gets_the_id(script: Script) -> None:
    source = f"""
{recipe("TrackingFilter")}
from onebeat.tracking import tracking
with tracking("t-2"):
    logging.warning("hello")
"""
    assert script(source).stderr.endswith(" t-2 hello\n")


def test_json_on_standard_output(script: Script) -> None:
    done = script(recipe('stream="stdout"') + "import logging\nlogging.info('hello')\n")
    assert json.loads(done.stdout)["msg"] == "hello"


def test_the_page_names_every_option_and_every_field_that_is_always_there() -> None:
    import inspect

    missing = [name for name in inspect.signature(configured_handler).parameters if f"`{name}`" not in PAGE]
    assert not missing
    assert not [field for field in ALWAYS if f"`{field}`" not in PAGE]


def test_structlog_keeps_positional_arguments_context_and_names_of_records(script: Script) -> None:
    source = f"""
{recipe("structlog")}
structlog.contextvars.bind_contextvars(order=7)
log = structlog.get_logger("shop")
log.info("sent %s to %s", "a mail", "ann", name="n", args="a", msg="m", module="x", event_="e")
"""
    line = json.loads(script(source).stderr.splitlines()[-1])
    assert line["msg"] == "sent a mail to ann"
    assert line["order"] == 7
    assert (line["name_"], line["args_"], line["msg_"], line["module_"]) == ("n", "a", "m", "x")
