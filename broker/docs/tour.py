#!/usr/bin/env python3
"""A small chat client on slixmpp, for the tour in the README. Every line that is typed is a command; see HELP."""

import argparse
import asyncio
import logging
import os
import sys

import slixmpp
from slixmpp.xmlstream import ET

DATA = "urn:tavi:data:0"
HELP = """\
  add JID           see this person's presence (yours is shown in return)
  tell JID TEXT     send a message, and ask for a receipt
  watch TOPIC       subscribe to a topic
  last TOPIC        read the last value of a topic
  put TOPIC VALUE   publish a value
  bye               log out"""


class Client(slixmpp.ClientXMPP):
    """Prints what comes, sends what is typed."""

    def __init__(self, options):
        super().__init__(options.jid, options.password)
        self.enable_direct_tls = False
        self.ca_certs = options.ca
        self.here = set()
        self.topics = f"pubsub.{self.boundjid.domain}"
        for plugin in ["xep_0030", "xep_0060", "xep_0184", "xep_0199", "xep_0203"]:
            self.register_plugin(plugin)
        self.add_event_handler("session_start", self.started)
        self.add_event_handler("failed_all_auth", lambda _: self.leave("wrong password"))
        self.add_event_handler("connection_failed", lambda why: self.leave(f"no connection: {why}"))
        self.add_event_handler("message", self.message)
        self.add_event_handler("message_error", lambda m: self.show(f"{m['from']} did not take it: {m['error']['condition']}"))
        self.add_event_handler("receipt_received", lambda m: self.show(f"{m['from'].bare} has got it"))
        self.add_event_handler("presence_available", self.came)
        self.add_event_handler("presence_unavailable", self.went)
        self.add_event_handler("pubsub_publish", self.published)
        self.add_event_handler("pubsub_retract", lambda m: self.show(f"{m['pubsub_event']['items']['node']} is empty"))

    def show(self, line):
        print(line, flush=True)

    def leave(self, why):
        self.show(why)
        self.disconnect()

    async def started(self, _):
        self.show(f"logged in with {self.plugin['feature_mechanisms'].mech.name}")
        await self.get_roster()
        self.send_presence()

    def came(self, presence):
        who = presence["from"]
        if who.bare != self.boundjid.bare and who not in self.here:
            self.here.add(who)
            self.show(f"{who.bare} is here")

    def went(self, presence):
        if presence["from"] in self.here:
            self.here.remove(presence["from"])
            self.show(f"{presence['from'].bare} is gone")

    def message(self, message):
        if message["body"]:
            when = message["delay"]["stamp"]
            late = f" (sent {when:%H:%M:%S})" if when else ""
            self.show(f"{message['from'].bare}: {message['body']}{late}")

    def published(self, message):
        items = message["pubsub_event"]["items"]
        for item in items["substanzas"]:
            self.show(f"{items['node']} = {value(item)}")

    async def obey(self, line):
        verb, _, rest = line.strip().partition(" ")
        first, _, text = rest.partition(" ")
        pubsub = self.plugin["xep_0060"]
        if verb == "add" and first:
            self.send_presence_subscription(first)
        elif verb == "tell" and text:
            message = self.make_message(mto=first, mbody=text, mtype="chat")
            message["request_receipt"] = True
            message.send()
        elif verb == "watch" and first:
            await pubsub.subscribe(self.topics, first)
        elif verb == "last" and first:
            answer = await pubsub.get_items(self.topics, first)
            for item in answer["pubsub"]["items"]["substanzas"]:
                self.show(f"{first} = {value(item)}")
        elif verb == "put" and text:
            data = ET.Element(f"{{{DATA}}}data", {"type": "text/plain", "encoding": "utf-8"})
            data.text = text
            await pubsub.publish(self.topics, first, payload=data)
        elif verb == "bye":
            return self.disconnect()
        elif verb:
            self.show(HELP)


def value(item):
    """What an item holds: the text of our `<data/>`, or else its XML."""
    payload = item["payload"]
    if payload is None:
        return "(nothing)"
    return payload.text or "" if payload.tag == f"{{{DATA}}}data" else ET.tostring(payload, encoding="unicode")


def typed_lines():
    """Standard input, line by line; None is its end. The terminal stays as it is."""
    lines, part = asyncio.Queue(), b""

    def readable():
        nonlocal part
        data = os.read(sys.stdin.fileno(), 4096)
        *whole, part = (part + data).split(b"\n")
        for line in whole if data else [None]:
            lines.put_nowait(line)
        if not data:
            asyncio.get_running_loop().remove_reader(sys.stdin)

    asyncio.get_running_loop().add_reader(sys.stdin, readable)
    return lines


async def read_commands(client):
    """Obeys until standard input ends."""
    lines = typed_lines()
    while (line := await lines.get()) is not None:
        try:
            await client.obey(line.decode(errors="replace"))
        except slixmpp.exceptions.IqError as error:
            client.show(f"refused: {error.condition} {error.text}")
        except slixmpp.exceptions.IqTimeout:
            client.show("no answer")
        except slixmpp.jid.InvalidJID as error:
            client.show(f"no address: {error}")
    client.disconnect()


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jid")
    parser.add_argument("password")
    parser.add_argument("--ca", default="tavi-data/tls/ca.pem", help="the broker's CA [%(default)s]")
    parser.add_argument("--port", type=int, default=5222)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    client = Client(options)
    client.connect("localhost", options.port)
    reading = asyncio.ensure_future(read_commands(client))
    await client.disconnected
    client.show("logged out")
    reading.cancel()


if __name__ == "__main__":
    asyncio.run(main())
