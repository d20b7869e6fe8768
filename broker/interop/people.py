"""People as slixmpp clients: STARTTLS with our CA checked, SCRAM-SHA-256, everything received kept in order."""

import asyncio
import logging

import slixmpp
from slixmpp.xmlstream import ET

from harness import PATIENCE, Broker, Failure

# A killed broker leaves slixmpp's own tasks behind; that is no news.
for name in ["slixmpp", "asyncio"]:
    logging.getLogger(name).setLevel(logging.CRITICAL)

DATA = "urn:tavi:data:0"
PUBSUB = "pubsub.localhost"
EVENTS = ["message", "presence_available", "presence_unavailable", "presence_subscribed", "receipt_received",
          "pubsub_publish", "pubsub_retract"]


class Person(slixmpp.ClientXMPP):
    """A connected, available person."""

    def __init__(self, broker: Broker, name: str, password: str):
        super().__init__(f"{name}@localhost", password)
        self.broker = broker
        self.port = broker.ports["xmpp"]
        self.seen = []
        self.enable_direct_tls = False
        self.ca_certs = broker.ca
        for plugin in ["xep_0030", "xep_0060", "xep_0184", "xep_0199", "xep_0203", "xep_0439"]:
            self.register_plugin(plugin)
        for event in EVENTS:
            self.add_event_handler(event, lambda stanza, event=event: self.note(event, stanza))
        for event in ["failed_auth", "failed_all_auth", "ssl_invalid_chain"]:
            self.add_event_handler(event, lambda why, event=event: self.note(event, why))

    def note(self, event, stanza):
        self.seen.append((event, stanza))

    async def wait(self, event, fits=lambda stanza: True, patience=PATIENCE):
        """Takes the first thing of this kind that fits."""
        try:
            async with asyncio.timeout(patience):
                while True:
                    for at, (kind, stanza) in enumerate(self.seen):
                        if kind == event and fits(stanza):
                            del self.seen[at]
                            return stanza
                    await asyncio.sleep(0.02)
        except TimeoutError:
            there = [(kind, str(stanza)) for kind, stanza in self.seen]
            raise Failure(f"{self.boundjid.bare} never saw {event}; there was {there}") from None

    async def come(self):
        """Connects, logs in, fetches the roster, becomes available."""
        session = asyncio.Event()
        self.add_event_handler("session_start", lambda _: session.set(), disposable=True)
        self.connect("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(PATIENCE):
                while not session.is_set():
                    if any(kind in ("failed_all_auth", "ssl_invalid_chain") for kind, _ in self.seen):
                        raise Failure(f"no login: {self.seen}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise Failure(f"{self.boundjid.bare} could not log in: {self.seen}") from None
        await self.get_roster()
        self.send_presence()
        return self

    async def go(self):
        """Closes the stream in order."""
        self.disconnect(wait=2.0)
        await asyncio.wait_for(self.disconnected, PATIENCE)

    def mechanism(self):
        return self["feature_mechanisms"].mech.name

    def write(self, to, body, receipt=False):
        message = self.make_message(mto=to, mbody=body, mtype="chat")
        message["id"] = self.new_id()
        if receipt:
            message["request_receipt"] = True
        message.send()
        return message["id"]

    async def reads(self, body, sender=None):
        """Waits for a message with this text."""
        def fits(message):
            return message["body"] == body and (sender is None or message["from"].bare == sender)
        return await self.wait("message", fits)

    async def subscribe(self, topic):
        await self["xep_0060"].subscribe(PUBSUB, topic)

    async def publish(self, topic, payload):
        data = ET.Element(f"{{{DATA}}}data", {"type": "text/plain", "encoding": "utf-8"})
        data.text = payload
        await self["xep_0060"].publish(PUBSUB, topic, payload=data)

    async def sees(self, topic, payload):
        """Waits for the pubsub event with this payload."""
        def fits(message):
            items = message["pubsub_event"]["items"]
            return items["node"] == topic and payload_of(items.xml) == payload
        return await self.wait("pubsub_publish", fits)

    async def last_item(self, topic):
        answer = await self["xep_0060"].get_items(PUBSUB, topic, max_items=1)
        return payload_of(answer["pubsub"]["items"].xml)


class Steady(Person):
    """One who goes on with the same stream over other connections (XEP-0198 §5), as soon as the broker is there."""

    def __init__(self, broker: Broker, name: str, password: str):
        super().__init__(broker, name, password)
        self.register_plugin("xep_0198")
        self.heard = []
        self.add_event_handler("message", lambda message: message["body"] and self.heard.append(message["body"]))
        for event in ["sm_enabled", "session_start", "session_resumed", "sm_failed"]:
            self.add_event_handler(event, lambda stanza, event=event: self.note(event, stanza))
        self.add_event_handler("disconnected", self.come_back)

    async def come_back(self, _):
        await self.broker.up.wait()
        self.connect("127.0.0.1", self.port)

    async def come(self):
        await super().come()
        enabled = await self.wait("sm_enabled")
        if not enabled["resume"] or not enabled["id"]:
            raise Failure(f"the stream cannot be resumed: {enabled}")
        await self.wait("session_start")
        return self

    async def has_resumed(self):
        """Waits until the stream goes on: nothing was bound and nothing failed."""
        await self.wait("session_resumed")
        if new := [kind for kind, _ in self.seen if kind in ("session_start", "sm_failed")]:
            raise Failure(f"{self.boundjid} did not only resume: {new}")

    def unanswered(self):
        """How many stanzas it sent that the broker has not acknowledged."""
        return len(self["xep_0198"].unacked_queue)

    async def go(self):
        self.del_event_handler("disconnected", self.come_back)
        await super().go()


def payload_of(xml):
    data = xml.find(f".//{{{DATA}}}data")
    return None if data is None else data.text


async def befriend(one: Person, other: Person):
    """Each asks to see the other and lets the other see: slixmpp agrees by itself."""
    one.send_presence_subscription(pto=other.boundjid.bare)
    await one.wait("presence_subscribed", lambda presence: presence["from"].bare == other.boundjid.bare)
    await other.wait("presence_subscribed", lambda presence: presence["from"].bare == one.boundjid.bare)
