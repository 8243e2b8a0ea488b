"""RedisLocks: fixed scripts on one Redis server; a fence from its clock, and no Redlock."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from onebeat.errors import ConfigurationError, DatabaseUnavailable, NotStarted
from onebeat.locks.backend import LockInfo
from onebeat.locks.base import LocksOn
from onebeat.model.protocols import Clock
from onebeat.store.connection.addresses import parse_address, show_address
from onebeat.timing.clock import MILLISECOND, SystemClock, from_us

if TYPE_CHECKING:
    from redis.asyncio import Redis

SOCKET_TIMEOUT = 5.0  # seconds for one answer
FENCE_KEPT = 30 * 24 * 3600 * 1000  # milliseconds for which a fence is remembered after its last use
AUDIT_KEPT = 1000  # forced releases
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)

# Each script gets a lock's two keys, which one hash tag keeps together: `…:lock` exists while it is held, `…:fence`
# remembers the last fence and the last owner that released. A forced release gets the audit list too. Numbers stay
# below 2^53, so Lua's are exact.
NOW = "local t = redis.call('TIME'); local now = t[1] * 1000000 + t[2]"  # microseconds

ACQUIRE = """
local holder = redis.call('HGET', KEYS[1], 'owner')
if holder == ARGV[1] then return redis.call('HGET', KEYS[1], 'fence') end
if holder then return false end
local last = redis.call('HGET', KEYS[2], 'fence')
local fence = now
if last and last + 1 > now then fence = last + 1 end
local text = string.format('%.0f', fence)
redis.call('HSET', KEYS[2], 'fence', text)
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'fence', text, 'holder', ARGV[3], 'acquired', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return text
"""

RENEW = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
"""

RELEASE = """
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[2], 'released', ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
  return 1
end
if redis.call('HGET', KEYS[2], 'released') == ARGV[1] then return 1 end
return 0
"""

FORCE = """
local found = redis.call('HMGET', KEYS[1], 'fence', 'holder', 'acquired')
if not found[1] then return false end
local left = redis.call('PTTL', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('LPUSH', KEYS[3], ARGV[1] .. (found[2] or 'nobody known') .. ARGV[2])
redis.call('LTRIM', KEYS[3], 0, ARGV[3] - 1)
return {found[1], found[2], found[3], left}
"""


class RedisBackend:
    """Locks as keys that end by themselves."""

    leased = True

    def __init__(self, make: Callable[[], Redis], *, prefix: str, where: str, clock: Clock) -> None:
        self.where = where
        self._make = make
        self._prefix = prefix
        self._clock = clock
        self._client: Any = None  # redis-py types its commands for both kinds of client at once
        self._scripts: dict[str, Any] = {}

    def twin(self) -> Self:
        """A client of its own, for another thread's event loop."""
        return type(self)(self._make, prefix=self._prefix, where=self.where, clock=self._clock)

    async def open(self, timeout: float) -> None:
        """Connect once, to say at once when nothing answers."""
        client: Any = self._make()
        self._client = client
        try:
            async with asyncio.timeout(timeout):
                await self._answer(client.ping())
        except TimeoutError:
            await self.close()
            raise DatabaseUnavailable(f"{self.where} did not answer within {timeout:g} s") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        self._scripts.clear()
        if client is not None:
            await client.aclose()

    async def acquire(self, name: str, owner: str, ttl: int, holder: str) -> int | None:
        """One script, one round trip."""
        fence = await self._run(f"{NOW}\n{ACQUIRE}", name, owner, _ms(ttl), holder, FENCE_KEPT)
        return None if fence is None else int(fence)

    async def renew(self, name: str, owner: str, ttl: int) -> bool:
        """One script."""
        return bool(await self._run(RENEW, name, owner, _ms(ttl)))

    async def release(self, name: str, owner: str) -> bool:
        """One script, one round trip."""
        return bool(await self._run(RELEASE, name, owner, FENCE_KEPT))

    async def holds(self, name: str, owner: str) -> bool:
        """One HGET."""
        found = await self._answer(self._open().hget(self._key(name, "lock"), "owner"))
        return found is not None and _text(found) == owner

    async def held(self) -> list[LockInfo]:
        """A SCAN over the keys, and a look at each."""
        client = self._open()
        infos = []
        for key in await self._answer(_collect(client.scan_iter(match=f"{self._prefix}:{{*}}:lock", count=500))):
            found = await self._answer(client.hmget(key, "fence", "holder", "acquired"))
            left = await self._answer(client.pttl(key))
            if found[0] is not None:
                name = _text(key)[len(self._prefix) + 2 : -len("}:lock")]
                infos.append(self._info(name, found[0], found[1], found[2], left))
        return sorted(infos, key=lambda info: info.name)

    async def force_release(self, name: str, reason: str, who: str) -> LockInfo | None:
        """Delete the key and note it, in one script; the last thousand of these are in the list `…:audit`."""
        before = f"{from_us(self._clock.now()).isoformat()} {who} released {name} held by "
        found = await self._run(FORCE, name, before, f": {reason[:2000]}", AUDIT_KEPT)
        return None if found is None else self._info(name, *found)

    def _info(self, name: str, fence: Any, holder: Any, acquired: Any, left: int) -> LockInfo:
        return LockInfo(
            name=name,
            fence=int(fence),
            holder=None if holder is None else _text(holder),
            acquired_at=None if acquired is None else from_us(int(acquired)),
            expires_at=from_us(self._clock.now() + left * MILLISECOND),
        )

    def _key(self, name: str, kind: str) -> str:
        return f"{self._prefix}:{{{name}}}:{kind}"

    async def _run(self, script: str, name: str, *arguments: str | int) -> Any:
        client = self._open()
        if script not in self._scripts:
            self._scripts[script] = client.register_script(script)
        keys = [self._key(name, "lock"), self._key(name, "fence")]
        if script is FORCE:
            keys.append(f"{self._prefix}:audit")
        return await self._answer(self._scripts[script](keys=keys, args=list(arguments)))

    def _open(self) -> Any:
        if self._client is None:
            raise NotStarted("these locks are closed; open them first")
        return self._client

    async def _answer(self, asked: Any) -> Any:
        from redis.exceptions import RedisError

        try:
            return await asked
        except (RedisError, OSError) as error:
            raise DatabaseUnavailable(
                f"{self.where} did not do what it was asked ({type(error).__name__}: {error}); "
                "is it running, and are address, password and permissions right?"
            ) from error


async def _collect(keys: Any) -> list[Any]:
    return [key async for key in keys]


def _ms(ttl: int) -> int:
    return -(-ttl // 1000)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class RedisLocks(LocksOn[RedisBackend]):
    """Locks on one Redis server (5 or newer), with redis-py; ``pip install 'onebeat[redis]'``.

    `url`: `redis://…`, `rediss://…` or `unix://…`, or a function that returns a new `redis.asyncio.Redis`. `prefix`
    stands before every key. A server that forgets (restart without persistence, failover to a replica) frees locks
    that are held: fences still grow, so let what you write to refuse a smaller one.

    ```python
    async with RedisLocks("redis://127.0.0.1:6379/0") as locks:
        async with locks.lock("rebuild-index", ttl=30) as lease:
            await index.write(page, if_fence_at_most=lease.fence)
    ```
    """

    def __init__(self, url: str | Callable[[], Redis], *, prefix: str = "onebeat", clock: Clock | None = None) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(f"prefix {prefix[:80]!r} cannot be used; use 1 to 64 of A-Z a-z 0-9 and _ . : -")
        make, where = (url, "the given client") if callable(url) else (_maker(url), show_address(url))
        clock = clock or SystemClock()
        super().__init__(RedisBackend(make, prefix=prefix, where=where, clock=clock), clock=clock)


def _maker(url: str) -> Callable[[], Redis]:
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise ConfigurationError(
            "RedisLocks needs redis-py, which is not installed; pip install 'onebeat[redis]'"
        ) from None

    def make() -> Redis:
        return Redis.from_url(
            url,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=SOCKET_TIMEOUT,
            retry=Retry(NoBackoff(), 1),  # once, on a new connection: scripts recognise their owner
            retry_on_error=[ConnectionError],
        )

    if not _is_readable(url):
        raise _unreadable()
    try:
        make()
    except ValueError:  # its text may hold a part of the password
        raise _unreadable() from None
    return make


def _is_readable(url: str) -> bool:
    """Return whether redis-py finds the same host and port as the text shows.

    It ends the host at the first `/`, `?` or `#`, also at one in the password.
    """
    seen = parse_address(url)
    try:
        parts = urlsplit(url)
        return seen is not None and (parts.hostname, parts.port) == (seen.host and seen.host.lower(), seen.port)
    except ValueError:
        return False


def _unreadable() -> ConfigurationError:
    return ConfigurationError(
        "the Redis URL cannot be used; it looks like redis://user:password@host:6379/0, rediss://… or unix:///path, "
        "with special characters of user and password written as %40 for @, %2F for /, %3F for ?, %23 for #"
    )
