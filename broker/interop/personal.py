"""Personal nodes with slixmpp: avatars that contacts see, bookmarks for one's own sessions."""

import asyncio

from slixmpp.exceptions import IqError

from chat import Screen
from harness import Broker, check, eventually, expect
from people import Person, befriend

BOOKMARKS = "urn:xmpp:bookmarks:1"
METADATA = "urn:xmpp:avatar:metadata"
ROOM = "garden@rooms.localhost"


class Wisher(Person):
    """Somebody whose client says what it wants to be notified of."""

    def __init__(self, broker: Broker, name: str, password: str, wishes=()):
        super().__init__(broker, name, password)
        for plugin in ["xep_0004", "xep_0059", "xep_0115", "xep_0163", "xep_0084", "xep_0402"]:
            self.register_plugin(plugin)
        for event in ["avatar_metadata_publish", "bookmarks_publish", "bookmarks_retract"]:
            self.add_event_handler(event, lambda stanza, event=event: self.note(event, stanza))
        self["xep_0060"].map_node_event(BOOKMARKS, "bookmarks")
        self.wishes = list(wishes)
        self.add_event_handler("session_bind", lambda _: self.wish())

    def wish(self):
        for node in self.wishes:
            self["xep_0030"].add_feature(f"{node}+notify")

    async def come(self):
        await super().come()
        await self["xep_0115"].update_caps(broadcast=True)
        return self

    def bookmark_form(self):
        form = self["xep_0004"].make_form("submit")
        form.add_field(var="FORM_TYPE", ftype="hidden", value="http://jabber.org/protocol/pubsub#publish-options")
        for field, value in [("persist_items", "true"), ("max_items", "max"),
                             ("send_last_published_item", "never"), ("access_model", "whitelist")]:
            form.add_field(var=f"pubsub#{field}", value=value)
        return form

    async def bookmark(self, room: str, name: str):
        conference = self["xep_0402"].stanza.Conference()
        conference["name"] = name
        conference["autojoin"] = True
        conference["nick"] = self.boundjid.user
        await self["xep_0060"].publish(self.boundjid.bare, BOOKMARKS, id=room, payload=conference.xml,
                                       options=self.bookmark_form())

    async def bookmarks(self):
        answer = await self["xep_0060"].get_items(self.boundjid.bare, BOOKMARKS)
        return {item["id"]: item["conference"] for item in answer["pubsub"]["items"]}


@check("slixmpp publishes an avatar, a contact sees it at once and when it comes", "slixmpp")
async def avatar(broker: Broker):
    romeo = await Wisher(broker, "romeo", await broker.add_user("romeo")).come()
    juliet = await Wisher(broker, "juliet", await broker.add_user("juliet"), [METADATA]).come()
    await befriend(romeo, juliet)
    picture = bytes(range(256)) * 40
    number = romeo["xep_0084"].generate_id(picture)
    await romeo["xep_0084"].publish_avatar(picture)
    await romeo["xep_0084"].publish_avatar_metadata({"id": number, "type": "image/png", "bytes": len(picture)})
    news = await juliet.wait("avatar_metadata_publish", lambda message: message["from"].bare == "romeo@localhost")
    item = news["pubsub_event"]["items"]["item"]
    expect(item["id"] == number and item["avatar_metadata"]["items"][0]["bytes"] == len(picture), news)
    answer = await juliet["xep_0084"].retrieve_avatar("romeo@localhost", number)
    expect(answer["pubsub"]["items"]["item"]["avatar_data"]["value"] == picture, "another picture")
    await juliet.go()
    juliet = await Wisher(broker, "juliet", "the password of juliet", [METADATA]).come()
    news = await juliet.wait("avatar_metadata_publish", lambda message: message["from"].bare == "romeo@localhost")
    expect(news["pubsub_event"]["items"]["item"]["id"] == number, news)
    await asyncio.gather(romeo.go(), juliet.go())


@check("slixmpp keeps bookmarks, its owner's other client hears of them and nobody else does", "slixmpp")
async def bookmarks(broker: Broker):
    romeo = await Wisher(broker, "romeo", await broker.add_user("romeo")).come()
    juliet = await Wisher(broker, "juliet", await broker.add_user("juliet"), [BOOKMARKS]).come()
    await befriend(romeo, juliet)
    phone = await Wisher(broker, "romeo", "the password of romeo", [BOOKMARKS]).come()
    info = await romeo["xep_0030"].get_info("romeo@localhost")
    expect(("pubsub", "pep") in {(kind, type_) for kind, type_, *_ in info["disco_info"]["identities"]}, info)
    for room, name in [(ROOM, "Garden"), ("tomb@rooms.localhost", "Tomb")]:
        await romeo.bookmark(room, name)
        news = await phone.wait("bookmarks_publish")
        expect(news["pubsub_event"]["items"]["item"]["id"] == room, news)
    kept = await phone.bookmarks()
    expect(kept[ROOM]["name"] == "Garden" and kept[ROOM]["autojoin"] and len(kept) == 2, kept)
    await phone["xep_0060"].retract("romeo@localhost", BOOKMARKS, ROOM, notify=True)
    news = await phone.wait("bookmarks_retract")
    expect(news["pubsub_event"]["items"]["retract"]["id"] == ROOM, news)
    await broker.kill9()
    await broker.start()
    romeo = await Wisher(broker, "romeo", "the password of romeo").come()
    expect(list(await romeo.bookmarks()) == ["tomb@rooms.localhost"], "the bookmarks are gone")
    juliet = await Wisher(broker, "juliet", "the password of juliet", [BOOKMARKS]).come()
    try:
        await juliet["xep_0060"].get_items("romeo@localhost", BOOKMARKS)
        expect(False, "Juliet reads Romeo's bookmarks")
    except IqError as error:
        expect(error.condition == "not-allowed", error)
    expect(not [kind for kind, _ in juliet.seen if kind.startswith("bookmarks")], juliet.seen)
    await asyncio.gather(romeo.go(), juliet.go())


@check("profanity's bookmarks and slixmpp's are the same", "slixmpp", "profanity", "tmux")
async def old_bookmarks(broker: Broker):
    romeo = await Wisher(broker, "romeo", await broker.add_user("romeo"), [BOOKMARKS]).come()
    await romeo.bookmark(ROOM, "Garden")
    async with Screen(broker, "profanity") as screen:
        await screen.logs_in("romeo")
        await screen.types("/bookmark list")
        await screen.shows(ROOM)
        await screen.types("/bookmark add tomb@rooms.localhost nick Romeo autojoin off")

        async def kept():
            return set(await romeo.bookmarks()) == {ROOM, "tomb@rooms.localhost"}
        await eventually("profanity's bookmark is among slixmpp's", kept)
        await romeo.wait("bookmarks_publish",
                         lambda news: news["pubsub_event"]["items"]["item"]["id"] == "tomb@rooms.localhost")
        await screen.types(f"/bookmark remove {ROOM}")
        await romeo.wait("bookmarks_retract", lambda news: news["pubsub_event"]["items"]["retract"]["id"] == ROOM)
        await screen.types("/quit")
    await romeo.go()
