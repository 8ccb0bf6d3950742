"""The faults of `s3_faults` in front of an S3 server that is a process of its own: a proxy that many requests can take.

Connections are kept, and bytes handed on as they are, so that a signature stays valid.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.s3_faults import ANSWERS, DELAY_S, error_body

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
CONDITION = re.compile(rb"\r\nif-(none-)?match:", re.IGNORECASE)
END = b"\r\n\r\n"
BROKEN = (OSError, asyncio.IncompleteReadError)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class FaultyProxy:
    """A proxy whose requests meet faults.

    Attributes:
        choose: says which fault a request meets, if any; None is none.
        seen: how many requests met each fault.
        num_requests: how many requests there were.
    """

    def __init__(self, port: int):
        self._port = port
        self.choose: Callable[[str, str], str | None] = lambda method, path: None
        self.seen: Counter[str] = Counter()
        self.num_requests = 0
        self._tasks: set[asyncio.Task[None] | None] = set()  # Python 3.11 forgets those of connections

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, until it ends or is cut."""
        self._tasks.add(task := asyncio.current_task())
        ends = [writer]
        try:
            server = await asyncio.open_connection("127.0.0.1", self._port)
            ends.append(server[1])
            while await self._answer((reader, writer), server):
                pass
        except BROKEN:
            pass
        except asyncio.CancelledError:
            for one in ends:
                one.transport.abort()  # nobody waits for what is still to be sent
        finally:
            for one in ends:
                one.close()
            self._tasks.discard(task)

    async def _answer(self, client: Streams, server: Streams) -> bool:
        """Answer one request, and return whether another may follow."""
        reader, writer = client
        head, body = await read_message(reader)
        self.num_requests += 1
        method, path = head.split(b" ", 2)[:2]
        fault = self.choose(method.decode(), path.decode())
        if fault == "412" and not CONDITION.search(head):
            fault = None
        if fault is not None:
            self.seen[fault] += 1
        if fault in ANSWERS:
            status, said = ANSWERS[fault][0], error_body(fault)
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(said)}{END.decode()}".encode() + said)
            await writer.drain()
            return True
        if fault == "cut before":
            return False
        if fault == "delay":
            await asyncio.sleep(DELAY_S)
        server[1].write(head + body)
        head, body = await read_message(server[0], has_body=method != b"HEAD")
        if fault == "cut after":
            return False
        is_short = fault == "short"
        writer.write(head + (body[: len(body) // 2] if is_short else body))
        await writer.drain()
        return not is_short


async def read_message(reader: asyncio.StreamReader, *, has_body: bool = True) -> tuple[bytes, bytes]:
    """Return the head and the body of a request or answer, as they came."""
    head = await reader.readuntil(END)
    if not has_body:
        return head, b""
    if length := LENGTH.search(head):
        return head, await reader.readexactly(int(length[1]))
    body = b""
    while CHUNKED.search(head) and not body.endswith(b"\r\n0\r\n\r\n") and body != b"0\r\n\r\n":
        size = await reader.readuntil(b"\r\n")
        body += size + await reader.readexactly(int(size, 16) + 2)
    return head, body


@contextmanager
def faulty_proxy(port: int) -> Iterator[tuple[str, FaultyProxy]]:
    """Run a proxy of the server at this port of this machine; return its address, and the proxy."""
    proxy, loop, address = FaultyProxy(port), asyncio.new_event_loop(), ""

    async def begin() -> asyncio.Server:
        return await asyncio.start_server(proxy.serve, "127.0.0.1", 0, backlog=4096)

    server = loop.run_until_complete(begin())
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, name="s3-proxy", daemon=True)
    thread.start()
    try:
        yield address, proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(_end())
        loop.close()


async def _end() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.05)  # transports end in the loop's next rounds
