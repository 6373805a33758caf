"""A responder: it answers each request on the subject of its argument, and drains on SIGTERM.

`connection.py` beside this file is code of docs/clients.md.
"""

import asyncio
import os
import signal
import sys

from connection import connect


async def main():
    nc = await connect()

    async def answer(message):
        await message.respond(f"python {os.getpid()}".encode())

    await nc.subscribe(sys.argv[1], queue="responders", cb=answer)
    await nc.flush()
    asked_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, asked_to_end.set)
    print("ready", flush=True)
    await asked_to_end.wait()
    await nc.drain()


asyncio.run(main())
