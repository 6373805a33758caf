"""An HTTP gateway: GET /SUBJECT answers with the reply of NATS, and GET /health says whether NATS is connected.

The gateway asks again where an answer is lost, as any gateway in front of nodes that are replaced. The header `X-Asked`
says how often the gateway asked. `connection.py` beside this file is code of docs/clients.md.
"""

import asyncio
import signal
import sys

import nats.errors
from connection import connect

ATTEMPTS = 5
ANSWERED_WITHIN = 2.0
# The pause before the next attempt where nobody listens, for instance while a responder's node goes away.
PAUSE = 0.1


async def ask(nc, subject):
    """Returns the status, how often NATS was asked, and the body."""
    said = b""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            answer = await nc.request(subject, b"", timeout=ANSWERED_WITHIN)
            return 200, attempt, answer.data
        except nats.errors.Error as error:
            said = repr(error).encode()
            await asyncio.sleep(PAUSE)
    return 500, ATTEMPTS, said


async def answer(nc, path):
    if path == "health":
        return (200, 1, b"ok") if nc.is_connected else (503, 1, b"not connected")
    return await ask(nc, path)


async def main():
    nc = await connect()

    async def serve(reader, writer):
        """Serves the requests of one connection, one after another (RFC 9112)."""
        try:
            while request := await reader.readline():
                while await reader.readline() not in (b"\r\n", b""):
                    pass
                status, asked, body = await answer(nc, request.split()[1].decode().lstrip("/"))
                head = f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\nX-Asked: {asked}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]), backlog=512)
    asked_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, asked_to_end.set)
    print("ready on port", server.sockets[0].getsockname()[1], flush=True)
    await asked_to_end.wait()
    server.close()
    await nc.drain()


asyncio.run(main())
