"""Step 1: two people with slixmpp, a third with profanity."""

import asyncio
import os
import shlex

from harness import Broker, check, eventually, expect, run
from people import Person, befriend


async def pair(broker: Broker):
    romeo = await Person(broker, "romeo", await broker.add_user("romeo")).come()
    juliet = await Person(broker, "juliet", await broker.add_user("juliet")).come()
    return romeo, juliet


@check("slixmpp logs in with STARTTLS and SCRAM-SHA-256, our certificate checked", "slixmpp")
async def log_in(broker: Broker):
    romeo = await Person(broker, "romeo", await broker.add_user("romeo")).come()
    expect(romeo.mechanism().startswith("SCRAM-SHA-256"), romeo.mechanism())
    await romeo["xep_0199"].ping("localhost")
    await romeo.go()


@check("slixmpp is refused with a wrong password", "slixmpp")
async def wrong_password(broker: Broker):
    await broker.add_user("romeo")
    romeo = Person(broker, "romeo", "wrong")
    romeo.connect("127.0.0.1", broker.ports["xmpp"])
    await romeo.wait("failed_auth")
    romeo.abort()


@check("two people see each other's presence after subscribing", "slixmpp")
async def presence(broker: Broker):
    romeo, juliet = await pair(broker)
    await befriend(romeo, juliet)
    await romeo.wait("presence_available", lambda presence: presence["from"].bare == "juliet@localhost")
    await juliet.wait("presence_available", lambda presence: presence["from"].bare == "romeo@localhost")
    roster = await romeo.get_roster()
    expect(roster["roster"]["items"]["juliet@localhost"]["subscription"] == "both", roster)
    await juliet.go()
    await romeo.wait("presence_unavailable", lambda presence: presence["from"].bare == "juliet@localhost")
    await romeo.go()


@check("two people chat, receipts get through", "slixmpp")
async def chat(broker: Broker):
    romeo, juliet = await pair(broker)
    sent = romeo.write("juliet@localhost", "Good morning & <hello> \u2603", receipt=True)
    await juliet.reads("Good morning & <hello> \u2603", "romeo@localhost")
    receipt = await romeo.wait("receipt_received")
    expect(receipt["receipt"] == sent, receipt)
    for n in range(100):
        juliet.write("romeo@localhost", f"number {n}")
    got = [(await romeo.wait("message", lambda message: message["body"]))["body"] for _ in range(100)]
    expect(got == [f"number {n}" for n in range(100)], f"out of order: {got}")
    await asyncio.gather(romeo.go(), juliet.go())


@check("somebody who was away gets what was sent, in order and dated", "slixmpp")
async def offline(broker: Broker):
    romeo, juliet = await pair(broker)
    await juliet.go()
    romeo.write("juliet@localhost", "first")
    romeo.write("juliet@localhost", "second")
    await romeo["xep_0199"].ping("localhost")
    juliet = await Person(broker, "juliet", "the password of juliet").come()
    for text in ["first", "second"]:
        message = await juliet.wait("message", lambda message: message["body"])
        expect(message["body"] == text, message)
        expect(message["delay"]["stamp"], f"no date: {message}")
    await asyncio.gather(romeo.go(), juliet.go())


@check("profanity logs in, chats with slixmpp and is answered", "slixmpp", "profanity", "tmux")
async def profanity(broker: Broker):
    romeo = await Person(broker, "romeo", await broker.add_user("romeo")).come()
    await broker.add_user("juliet")
    async with Screen(broker, "profanity") as screen:
        await screen.logs_in("juliet")
        await screen.types("/msg romeo@localhost hello from profanity")
        await romeo.reads("hello from profanity", "juliet@localhost")
        romeo.write("juliet@localhost", "hello from slixmpp")
        await screen.shows("hello from slixmpp")
        await screen.types("/quit")
    await romeo.go()


class Screen:
    """A program in a terminal that nobody looks at but us (tmux with a server of its own)."""

    def __init__(self, broker: Broker, program: str):
        self.broker = broker
        self.socket = str(broker.folder / "tmux")
        self.home = broker.folder / "home"
        self.home.mkdir()
        self.program = program

    async def __aenter__(self):
        environment = {"HOME": str(self.home), "LANG": "C.UTF-8", "TERM": "screen"}
        setting = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        await self.tmux("-f", os.devnull, "new-session", "-d", "-x", "160", "-y", "50", f"env {setting} {self.program}")
        return self

    async def __aexit__(self, *_):
        await self.tmux("kill-server", expect=None)

    async def tmux(self, *command, expect=0):
        return await run(["tmux", "-S", self.socket, *command], expect=expect)

    async def logs_in(self, name):
        """profanity logs in to an account of this name."""
        await self.shows("Profanity")
        # The certificate's CA is ours, not the machine's: profanity is told to take the connection as it is.
        await self.types(f"/connect {name}@localhost server 127.0.0.1 port {self.broker.ports['xmpp']} tls trust")
        await self.shows("password")
        await self.types(f"the password of {name}")
        await self.shows("logged in successfully")

    async def types(self, text):
        await self.tmux("send-keys", "-l", text)
        await self.tmux("send-keys", "Enter")

    async def shows(self, text):
        async def there():
            return text in await self.tmux("capture-pane", "-p")
        await eventually(f"{self.program} shows {text!r}", there)
