"""The broker as a child process, other people's programs as tools, and the registry of checks."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Awaitable, Callable

LISTENERS = ["xmpp", "xmpps", "mqtt", "mqtts", "coap", "http", "https"]
PATIENCE = 20.0


@dataclass
class Check:
    """One check: its sentence, the programs that it needs, its body."""

    name: str
    needs: tuple[str, ...]
    run: Callable[["Broker"], Awaitable[None]]


CHECKS: list[Check] = []


def check(name: str, *needs: str):
    """Registers a check. It gets a fresh broker."""

    def register(run):
        CHECKS.append(Check(name, needs, run))
        return run

    return register


class Failure(Exception):
    """A program did not do what the check expects."""


@dataclass
class Device:
    id: str
    jid: str
    secret: str


class Broker:
    """`tavi serve` on free ports with a data folder of its own."""

    def __init__(self, programs: Path):
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="tavi-interop-"))
        self.data = self.folder / "data"
        self.data.mkdir()
        self.child = None
        self.ports: dict[str, int] = {}
        self.up = asyncio.Event()

    async def start(self):
        listen = [word for key in LISTENERS for word in ("--listen", f"{key}=127.0.0.1:{self.ports.get(key, 0)}")]
        with open(self.folder / "stderr.txt", "ab") as log:
            self.child = await asyncio.create_subprocess_exec(
                self.programs / "tavi", "serve", "--json", "--data", self.data, *listen,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        async with asyncio.timeout(60):
            while True:
                line = await self.child.stdout.readline()
                if not line:
                    raise Failure("the broker ended before it was ready")
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue
                if answer.get("ready"):
                    # The ports stay the same over a restart, as an operator's do: clients find the way back.
                    self.ports = {key: int(at.rsplit(":", 1)[1]) for key, at in answer["listeners"].items()}
                    self.up.set()
                    return

    async def kill9(self):
        self.up.clear()
        self.child.send_signal(signal.SIGKILL)
        await self.child.wait()

    async def stop(self):
        self.up.clear()
        self.child.terminate()
        async with asyncio.timeout(5):
            if await self.child.wait() != 0:
                raise Failure(f"the broker stopped with {self.child.returncode}")

    async def close(self):
        if self.child and self.child.returncode is None:
            await self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self, lines=40):
        text = (self.folder / "stderr.txt").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    @property
    def ca(self) -> Path:
        return self.data / "tls" / "ca.pem"

    async def add_user(self, name: str) -> str:
        """Makes an account and returns its password."""
        password = f"the password of {name}"
        await run([self.programs / "tavi", "user", "add", f"{name}@localhost", "--password-stdin", "--data", self.data],
                  give=password + "\n")
        return password

    async def fleet(self, *arguments):
        # A key file that it makes lands in the current folder.
        command = [self.programs / "tavi-fleet", "--local", self.data, *arguments, "--json"]
        answer = await run(command, folder=self.folder)
        return json.loads(answer)

    async def add_device(self, name: str) -> Device:
        made = await self.fleet("device", "add", "--name", name)
        return Device(made["id"], made["jid"], made["secret"])

    async def grant(self, subject: str, actions: str, topics: str):
        await self.fleet("grant", "add", subject, actions, topics)

    def add_bot(self, name: str, script: str):
        folder = self.data / "bots"
        folder.mkdir(exist_ok=True)
        draft = self.folder / "draft.rhai"
        draft.write_text(script)
        draft.rename(folder / f"{name}.rhai")


class Network:
    """Lies between clients and a port of the broker, and can fail without the broker's notice."""

    def __init__(self, broker: Broker):
        self.target = broker.ports["xmpp"]
        self.clients: list[asyncio.StreamWriter] = []
        self.tasks: set[asyncio.Task] = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.carry, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for task in self.tasks:
            task.cancel()

    async def carry(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self.clients.append(writer)
        for source, drain in [(reader, back), (there, writer)]:
            self.tasks.add(asyncio.create_task(self.pump(source, drain)))

    async def pump(self, source, drain):
        with suppress(OSError):
            while data := await source.read(65536):
                drain.write(data)
                await drain.drain()
        # The other side hears nothing of this end.

    def fail(self):
        """The clients' side of all connections is gone; the broker's side stays open, and nothing comes any more."""
        for client in self.clients:
            client.transport.abort()
        self.clients.clear()


async def run(command, give="", expect=0, folder=None):
    """Runs a program to its end and returns what it printed."""
    child = await asyncio.create_subprocess_exec(
        *map(str, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder)
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await child.communicate(give.encode())
    except TimeoutError:
        child.kill()
        raise Failure(f"{command[0]} does not end") from None
    if expect is not None and child.returncode != expect:
        raise Failure(f"{' '.join(map(str, command))} ended with {child.returncode}: {err.decode()}{out.decode()}")
    return out.decode(errors="replace")


class Lines:
    """A program that goes on running, and the lines that it prints."""

    def __init__(self, *command):
        self.command = [str(word) for word in command]
        self.seen: list[str] = []

    async def __aenter__(self):
        # A pipe makes many programs keep their lines back; stdbuf tells them not to.
        stdbuf = ["stdbuf", "-oL", "-eL"] if shutil.which("stdbuf") else []
        self.child = await asyncio.create_subprocess_exec(
            *stdbuf, *self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return self

    async def __aexit__(self, *_):
        if self.child.returncode is None:
            self.child.kill()
        await self.child.wait()

    async def until(self, wanted: str):
        """Reads until a line contains the text."""
        try:
            async with asyncio.timeout(PATIENCE):
                while line := await self.child.stdout.readline():
                    self.seen.append(line.decode(errors="replace").rstrip("\n"))
                    if wanted in self.seen[-1]:
                        return self.seen[-1]
        except TimeoutError:
            raise Failure(f"{self.command[0]} never printed {wanted!r}, but {self.seen}") from None
        raise Failure(f"{self.command[0]} ended without {wanted!r}: {self.seen}")


async def eventually(what: str, holds):
    """Asks again and again until it holds."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not await holds():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise Failure(f"it never came true that {what}") from None


def expect(holds, what):
    if not holds:
        raise Failure(str(what))


def mosquitto(program: str, broker: Broker, who: Device, *more, version="311"):
    """A command line of mosquitto_pub or mosquitto_sub for a device."""
    version = {"311": "mqttv311", "5": "mqttv5"}[version]
    return [f"mosquitto_{program}", "-h", "127.0.0.1", "-p", broker.ports["mqtt"], "-V", version,
            "-i", who.id, "-u", who.id, "-P", who.secret, *more]


def uri(broker: Broker, topic: str):
    return f"coap://127.0.0.1:{broker.ports['coap']}/t/{topic}"


def installed(program: str) -> bool:
    if program == "slixmpp":
        try:
            import slixmpp  # noqa: F401
        except ImportError:
            return False
        return True
    return shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin") is not None
