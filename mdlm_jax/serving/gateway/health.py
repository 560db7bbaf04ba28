"""The health checks of the regions."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator

import aiohttp

from mdlm_jax.serving.gateway import regions
from mdlm_jax.serving.gateway.chain import Standing

_LEAST = 0.05  # seconds between checks, whatever is suspected
_LOG = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def watched(standings: list[Standing], session: aiohttp.ClientSession) -> AsyncIterator[None]:
    """Checks the regions again and again while it is entered."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_watch(each, session)) for each in standings]
        yield
        for task in tasks:
            task.cancel()


async def _watch(standing: Standing, session: aiohttp.ClientSession) -> None:
    while True:
        standing.suspected.clear()
        good = await _is_healthy(standing, session)
        before = standing.healthy
        standing.checked(good)
        if standing.healthy != before:
            state = "healthy" if standing.healthy else "not healthy"
            _LOG.warning("region %s is %s", standing.region.name, state)
        try:
            standing.key = regions.read_key(standing.region)
        except (OSError, ValueError) as error:
            _LOG.error("region %s keeps its old key: %s", standing.region.name, error)
        await asyncio.sleep(_LEAST)
        with contextlib.suppress(TimeoutError):
            seconds = standing.check_in * random.uniform(0.9, 1.1)  # gateways begin together
            await asyncio.wait_for(standing.suspected.wait(), seconds)


async def _is_healthy(standing: Standing, session: aiohttp.ClientSession) -> bool:
    region = standing.region
    try:
        async with session.get(
            region.url + region.health_path,
            headers={"authorization": f"Bearer {standing.key}"} if standing.key else {},
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=region.health_timeout_s),
        ) as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError):  # of which TimeoutError is one
        return False
