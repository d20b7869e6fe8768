"""Blocking (XEP-0191) with slixmpp's plugin: the list, its pushes, and what each side hears."""

import asyncio

from slixmpp import JID
from slixmpp.exceptions import IqError

from harness import Broker, check, expect
from people import Person, befriend

ROMEO = JID("romeo@localhost")


async def come(broker: Broker, name: str, password: str) -> Person:
    """A person who has asked for the block list."""
    person = Person(broker, name, password)
    person.register_plugin("xep_0191")
    for event in ["blocked", "unblocked", "message_error"]:
        person.add_event_handler(event, lambda stanza, event=event: person.note(event, stanza))
    await person.come()
    await person["xep_0191"].get_blocked_jids()
    return person


def items(iq, change: str) -> set[str]:
    return {str(item["jid"]) for item in iq[change]}


@check("slixmpp blocks a contact, who finds nobody there, and unblocks him", "slixmpp")
async def block(broker: Broker):
    password = await broker.add_user("juliet")
    romeo = await come(broker, "romeo", await broker.add_user("romeo"))
    juliet, chamber = await come(broker, "juliet", password), await come(broker, "juliet", password)
    await befriend(romeo, juliet)
    await romeo.wait("presence_available", lambda presence: presence["from"] == juliet.boundjid)
    features = await juliet["xep_0030"].get_info("localhost")
    expect("urn:xmpp:blocking" in features["disco_info"]["features"], features)

    await juliet["xep_0191"].block(ROMEO)
    for session in [juliet, chamber]:
        expect(items(await session.wait("blocked"), "block") == {"romeo@localhost"}, "the push names him")
        await romeo.wait("presence_unavailable", lambda presence, who=session.boundjid: presence["from"] == who)
    expect(await chamber["xep_0191"].get_blocked_jids() == {ROMEO}, "the list has him")

    for to in ["juliet@localhost", "nobody@localhost"]:
        romeo.write(to, "are you there?")
        error = await romeo.wait("message_error", lambda message, to=to: message["from"].bare == to)
        expect(error["error"]["condition"] == "service-unavailable" and not error["error"]["text"], error)
    for to in [str(juliet.boundjid), "nobody@localhost/x"]:
        try:
            await romeo["xep_0199"].send_ping(JID(to))
            expect(False, f"{to} answered")
        except IqError as error:
            expect(error.condition == "service-unavailable", error)
    juliet.write("romeo@localhost", "I do not hear you")
    error = await juliet.wait("message_error")
    expect(error["error"]["condition"] == "not-acceptable", error)
    expect(error.xml.find(".//{urn:xmpp:blocking:errors}blocked") is not None, error)

    await juliet["xep_0191"].unblock(ROMEO)
    for session in [juliet, chamber]:
        expect(items(await session.wait("unblocked"), "unblock") == {"romeo@localhost"}, "the push names him")
        await romeo.wait("presence_available", lambda presence, who=session.boundjid: presence["from"] == who)
    romeo.write("juliet@localhost", "at last")
    read = await juliet.reads("at last", "romeo@localhost")
    said = [str(stanza) for kind, stanza in juliet.seen + chamber.seen if kind == "message" and "there?" in str(stanza)]
    expect(read and not said, f"what he said while he was blocked: {said}")
    await asyncio.gather(romeo.go(), juliet.go(), chamber.go())


@check("a block list outlives kill -9, and what the blocked one sent is not kept", "slixmpp")
async def lasting(broker: Broker):
    password = await broker.add_user("juliet")
    juliet = await come(broker, "juliet", password)
    await juliet["xep_0191"].block(ROMEO)
    await broker.kill9()
    juliet.abort()
    await broker.start()
    romeo = await come(broker, "romeo", await broker.add_user("romeo"))
    romeo.write("juliet@localhost", "while you are away")
    await romeo.wait("message_error")
    juliet = await come(broker, "juliet", password)
    expect(await juliet["xep_0191"].get_blocked_jids() == {ROMEO}, "the list has him still")
    # The plugin's own call without addresses sends an IQ without a child.
    everybody = juliet.make_iq_set()
    everybody.enable("unblock")
    await everybody.send()
    expect(await juliet["xep_0191"].get_blocked_jids() == set(), "the list is empty")
    romeo.write("juliet@localhost", "now")
    await juliet.reads("now", "romeo@localhost")
    said = [stanza["body"] for kind, stanza in juliet.seen if kind == "message"]
    expect(not said, said)
    await asyncio.gather(romeo.go(), juliet.go())
