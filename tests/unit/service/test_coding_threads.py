import asyncio
import threading

from service.http.coding_threads import in_coding_thread


async def test_coding_goes_on_while_every_other_thread_waits() -> None:
    away = threading.Event()
    waiting = [asyncio.create_task(asyncio.to_thread(away.wait)) for _ in range(100)]
    await asyncio.sleep(0)
    assert await in_coding_thread(pow, 2, 10) == 1024
    away.set()
    await asyncio.gather(*waiting)
