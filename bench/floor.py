"""The least that a Python server can do: `websockets`, a loudness detector, the stubs' timing, and nothing of ours.

It is no product: no token, no store, no marks that are waited for, no bad input. `python -m bench.floor CORE` prints
its address as one line of JSON and serves until SIGTERM.
"""

import asyncio
import json
import signal
import sys
from binascii import a2b_base64, b2a_base64
from typing import Literal

import orjson
import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from bench import machine
from bench.task import END_SILENCE_MS, FRAME_BYTES, FRAME_MS, SENTENCE_MULAW, SENTENCES

LEAD_S = 0.6
BURST_S = 0.1
START_FRAMES = 5
"""100 ms of sound are speech."""
END_FRAMES = -(-END_SILENCE_MS // FRAME_MS)

# Positive and negative codes of mu-law whose magnitude is under about 900 of 32,767.
_QUIET = bytes([*range(0x50, 0x80), *range(0xD0, 0x100)])
_LOUD_SAMPLES = FRAME_BYTES // 8


class Ear:
    """Frames in; `started` and `stopped` out, each at the frame that decided it."""

    def __init__(self) -> None:
        self._speaking = False
        self._loud = self._quiet = 0

    def hear(self, mulaw: bytes) -> Literal["started", "stopped"] | None:
        if len(mulaw.translate(None, _QUIET)) >= _LOUD_SAMPLES:
            self._loud, self._quiet = self._loud + 1, 0
        else:
            self._loud, self._quiet = 0, self._quiet + 1
        if not self._speaking and self._loud >= START_FRAMES:
            self._speaking = True
            return "started"
        if self._speaking and self._quiet >= END_FRAMES:
            self._speaking = False
            return "stopped"
        return None


class Voice:
    """What is being said on one call."""

    def __init__(self, socket: ServerConnection, stream_sid: str, group: asyncio.TaskGroup) -> None:
        self._socket = socket
        self._stream_sid = stream_sid
        self._group = group
        self._task: asyncio.Task[None] | None = None

    def say(self, sentences: int) -> None:
        self.stop()
        self._task = self._group.create_task(self._say(sentences))

    def stop(self) -> bool:
        """Whether anything was being said."""
        task, self._task = self._task, None
        return task is not None and not task.done() and task.cancel()

    async def _say(self, sentences: int) -> None:
        """At most LEAD_S ahead of what is heard; a mark behind each sentence."""
        loop = asyncio.get_running_loop()
        head = f'{{"event":"media","streamSid":"{self._stream_sid}","media":{{"payload":"'
        heard = loop.time()
        for sentence in range(sentences):
            for at in range(0, len(SENTENCE_MULAW), FRAME_BYTES):
                if heard - loop.time() >= LEAD_S:
                    await asyncio.sleep(BURST_S)
                payload = b2a_base64(SENTENCE_MULAW[at : at + FRAME_BYTES], newline=False).decode()
                await self._socket.send(f'{head}{payload}"}}}}')
                heard += FRAME_MS / 1000
            await self._socket.send(
                f'{{"event":"mark","streamSid":"{self._stream_sid}","mark":{{"name":"{sentence}"}}}}'
            )
        await asyncio.sleep(max(0.0, heard - loop.time()))


async def call(socket: ServerConnection) -> None:
    ear = Ear()
    async with asyncio.TaskGroup() as group:
        voice: Voice | None = None
        try:
            async for text in socket:
                message = orjson.loads(text)
                event = message["event"]
                if event == "start":
                    voice = Voice(socket, message["streamSid"], group)
                    voice.say(1)
                elif event == "media" and voice is not None:
                    heard = ear.hear(a2b_base64(message["media"]["payload"]))
                    if heard == "started" and voice.stop():
                        await socket.send(f'{{"event":"clear","streamSid":"{message["streamSid"]}"}}')
                    elif heard == "stopped":
                        voice.say(len(SENTENCES))
                elif event == "stop":
                    break
        except ConnectionClosed:
            pass
        if voice is not None:
            voice.stop()
        await socket.wait_closed()


async def _serve() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with serve(call, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        port = server.sockets[0].getsockname()[1]
        print(json.dumps({"url": "", "stream_url": f"ws://127.0.0.1:{port}/"}), flush=True)
        await stop.wait()


def main() -> None:
    machine.pin(int(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
