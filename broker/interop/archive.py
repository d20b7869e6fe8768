"""The message archive with slixmpp's plugins of XEP-0313, XEP-0441 and XEP-0359."""

import asyncio

from harness import Broker, check, expect
from people import Person

MESSAGES = 60


class Reader(Person):
    """A person who reads the archive."""

    def __init__(self, broker: Broker, name: str, password: str):
        super().__init__(broker, name, password)
        for plugin in ["xep_0059", "xep_0280", "xep_0313", "xep_0359", "xep_0441"]:
            self.register_plugin(plugin)

    async def pages(self, **how):
        """The bodies of all pages, and the ids."""
        found = [message async for message in self["xep_0313"].iterate(**how)]
        results = [message["mam_result"] for message in found]
        return [result["forwarded"]["stanza"]["body"] for result in results], [result["id"] for result in results]


async def pair(broker: Broker):
    romeo = await Reader(broker, "romeo", await broker.add_user("romeo")).come()
    juliet = await Reader(broker, "juliet", await broker.add_user("juliet")).come()
    return romeo, juliet


@check("slixmpp pages through the archive forth and back, by correspondent too", "slixmpp")
async def paging(broker: Broker):
    romeo, juliet = await pair(broker)
    nurse = await Reader(broker, "nurse", await broker.add_user("nurse")).come()
    told = []
    for n in range(MESSAGES):
        (nurse if n % 3 == 0 else romeo).write("juliet@localhost", f"number {n}")
        message = await juliet.wait("message", lambda message: message["body"])
        expect(message["stanza_id"]["by"] == "juliet@localhost", message)
        told.append(message["stanza_id"]["id"])
    everything = [f"number {n}" for n in range(MESSAGES)]
    bodies, ids = await juliet.pages(rsm={"max": 7})
    expect(bodies == everything, bodies)
    expect(ids == told, "the ids differ from those that came with the messages")
    bodies, _ = await juliet.pages(rsm={"max": 7}, reverse=True)
    expect(bodies == everything[::-1], bodies)
    bodies, _ = await juliet.pages(with_jid="nurse@localhost", rsm={"max": 7})
    expect(bodies == everything[::3], bodies)
    bodies, _ = await romeo.pages()
    expect(bodies == [text for n, text in enumerate(everything) if n % 3], bodies)
    form = await juliet["xep_0313"].get_fields()
    fields = {field["var"] for field in form["fields"]}
    expect({"with", "start", "end", "ids"} <= fields, form)
    ends = (await juliet["xep_0313"].get_archive_metadata())["mam_metadata"]
    expect((ends["start"]["id"], ends["end"]["id"]) == (told[0], told[-1]), ends)
    info = await juliet["xep_0030"].get_info("juliet@localhost")
    expect({"urn:xmpp:mam:2", "urn:xmpp:mam:2#extended", "urn:xmpp:sid:0"} <= info["disco_info"]["features"], info)
    await asyncio.gather(romeo.go(), juliet.go(), nurse.go())


@check("what somebody missed is in the archive under the id with which it comes, after kill -9 too", "slixmpp")
async def missed(broker: Broker):
    romeo, juliet = await pair(broker)
    await juliet.go()
    for text in ["first", "second"]:
        romeo.write("juliet@localhost", text)
    await romeo["xep_0199"].ping("localhost")
    await broker.kill9()
    romeo.abort()
    await broker.start()
    juliet = await Reader(broker, "juliet", "the password of juliet").come()
    told = []
    for text in ["first", "second"]:
        message = await juliet.wait("message", lambda message: message["body"])
        expect(message["body"] == text, message)
        told.append(message["stanza_id"]["id"])
    bodies, ids = await juliet.pages()
    expect((bodies, ids) == (["first", "second"], told), (bodies, ids, told))
    await juliet.go()


@check("slixmpp says with whom nothing is archived", "slixmpp")
async def preferences(broker: Broker):
    romeo, juliet = await pair(broker)
    default, always, never = await juliet["xep_0441"].get_preferences()
    expect((default, list(always), list(never)) == ("always", [], []), (default, always, never))
    await juliet["xep_0441"].set_preferences(default="always", always=[], never=["romeo@localhost"])
    _, _, never = await juliet["xep_0441"].get_preferences()
    expect([str(jid) for jid in never] == ["romeo@localhost"], never)
    romeo.write("juliet@localhost", "a secret")
    message = await juliet.reads("a secret")
    expect(not message["stanza_id"]["id"], message)
    expect(await juliet.pages() == ([], []), "it is archived")
    bodies, _ = await romeo.pages()
    expect(bodies == ["a secret"], bodies)
    await asyncio.gather(romeo.go(), juliet.go())
