"""Rooms (XEP-0045) with slixmpp and profanity."""

import asyncio

import slixmpp
from slixmpp.exceptions import IqError, PresenceError

from chat import Screen
from harness import Broker, Failure, Network, check, eventually, expect
from people import Person

ROOM = slixmpp.JID("verona@rooms.localhost")


class Guest(Person):
    """Somebody who goes into rooms and notes what happens there."""

    def __init__(self, broker: Broker, name: str, password: str):
        super().__init__(broker, name, password)
        for plugin in ["xep_0004", "xep_0045", "xep_0410"]:
            self.register_plugin(plugin)
        for event in ["groupchat_message", "groupchat_subject", "groupchat_presence", "groupchat_invite",
                      "groupchat_message_error"]:
            self.add_event_handler(event, lambda stanza, event=event: self.note(event, stanza))

    @property
    def muc(self):
        return self["xep_0045"]

    async def enters(self, nick, **wishes):
        return await self.muc.join_muc_wait(ROOM, nick, timeout=20, **wishes)

    async def configures(self, **settings):
        """Takes the room with these settings."""
        form = await self.muc.get_room_config(ROOM)
        form["type"] = "submit"
        form.set_values({f"muc#roomconfig_{name}": value for name, value in settings.items()})
        await self.muc.set_room_config(ROOM, form)

    def says(self, body):
        self.send_message(mto=ROOM, mbody=body, mtype="groupchat")

    async def hears(self, body, nick):
        return await self.wait(
            "groupchat_message", lambda message: message["body"] == body and message["from"].resource == nick)

    async def sees_nick(self, nick, type_, code=None):
        def fits(presence):
            if presence["from"] != f"{ROOM}/{nick}" or presence["type"] != type_:
                return False
            return code is None or code in presence["muc"]["status_codes"]
        return await self.wait("groupchat_presence", fits)


async def guest(broker: Broker, name: str):
    return await Guest(broker, name, await broker.add_user(name)).come()


async def meeting(broker: Broker, **settings):
    romeo, juliet = await guest(broker, "romeo"), await guest(broker, "juliet")
    made = await romeo.enters("Romeo")
    expect(201 in made[0]["muc"]["status_codes"], made[0])
    await romeo.configures(**settings)
    await juliet.enters("Juliet")
    await romeo.sees_nick("Juliet", "available")
    return romeo, juliet


@check("slixmpp makes a room, others enter, talk and change nicks", "slixmpp")
async def talk(broker: Broker):
    romeo, juliet = await meeting(broker, roomname="Verona")
    info = await juliet["xep_0030"].get_info(ROOM)
    expect("http://jabber.org/protocol/muc" in info["disco_info"]["features"], info)
    expect([identity[3] for identity in info["disco_info"]["identities"]] == ["Verona"], info)
    juliet.says("O Romeo, Romeo")
    for person in (romeo, juliet):
        await person.hears("O Romeo, Romeo", "Juliet")
    nurse = await guest(broker, "nurse")
    try:
        await nurse.enters("Juliet")
        raise Failure("two have one nick")
    except PresenceError as error:
        expect(error.condition == "conflict", error)
    entered = await nurse.enters("Nurse")
    expect([message["body"] for message in entered[3]] == ["O Romeo, Romeo"], entered)
    expect({presence["from"].resource for presence in entered[2]} >= {"Romeo", "Juliet"}, entered)
    await juliet.muc.set_self_nick(ROOM, "Capulet", timeout=20)
    await romeo.sees_nick("Juliet", "unavailable", 303)
    await romeo.sees_nick("Capulet", "available")
    romeo.muc.set_subject(ROOM, "Feuds")
    await nurse.wait("groupchat_subject", lambda message: message["subject"] == "Feuds")
    nurse.muc.leave_muc(ROOM, "Nurse")
    await romeo.sees_nick("Nurse", "unavailable")
    await asyncio.gather(*(person.go() for person in (romeo, juliet, nurse)))


@check("slixmpp kicks, bans, gives voice and invites", "slixmpp")
async def moderate(broker: Broker):
    romeo, juliet = await meeting(broker, moderatedroom=True)
    juliet.says("unheard")
    await juliet.wait("groupchat_message_error")
    await romeo.muc.set_role(ROOM, "Juliet", "participant")
    juliet.says("heard")
    await romeo.hears("heard", "Juliet")
    try:
        await juliet.muc.set_role(ROOM, "Romeo", "none")
        raise Failure("a participant kicks a moderator")
    except IqError as error:
        expect(error.condition == "forbidden", error)
    await romeo.muc.set_role(ROOM, "Juliet", "none", reason="night")
    await juliet.sees_nick("Juliet", "unavailable", 307)
    await romeo.muc.set_affiliation(ROOM, "outcast", jid="juliet@localhost")
    try:
        await juliet.enters("Juliet")
        raise Failure("somebody banned comes in")
    except PresenceError as error:
        expect(error.condition == "forbidden", error)
    expect(await romeo.muc.get_affiliation_list(ROOM, "outcast") == ["juliet@localhost"], "the list of the banned")
    nurse = await guest(broker, "nurse")
    romeo.muc.invite(ROOM, "nurse@localhost", reason="Anon")
    invitation = await nurse.wait("groupchat_invite")
    expect(invitation["from"] == ROOM, invitation)
    await romeo.muc.destroy(ROOM)
    await romeo.wait("groupchat_presence", lambda presence: presence["muc"].xml.find(".//{*}destroy") is not None)
    await asyncio.gather(*(person.go() for person in (romeo, juliet, nurse)))


@check("a room hears when an occupant's connection is cut", "slixmpp")
async def cut(broker: Broker):
    romeo, juliet = await meeting(broker)
    async with Network(broker) as network:
        nurse = Guest(broker, "nurse", await broker.add_user("nurse"))
        nurse.port = network.port
        await nurse.come()
        await nurse.enters("Nurse")
        await romeo.sees_nick("Nurse", "available")
        nurse.abort()
        await romeo.sees_nick("Nurse", "unavailable")
    juliet.abort()
    await romeo.sees_nick("Juliet", "unavailable")
    await romeo.go()


@check("a persistent room outlives kill -9: its history, its owner, and nobody in it", "slixmpp")
async def killed(broker: Broker):
    romeo, juliet = await meeting(broker, persistentroom=True)
    juliet.says("Good night")
    await juliet.hears("Good night", "Juliet")
    await broker.kill9()
    for person in (romeo, juliet):
        person.abort()
    await broker.start()
    juliet = await Guest(broker, "juliet", "the password of juliet").come()
    juliet.says("lost")
    await juliet.wait("groupchat_message_error")
    entered = await juliet.enters("Juliet")
    expect([message["body"] for message in entered[3]] == ["Good night"], entered)
    expect(entered[2] == [] or [p["from"].resource for p in entered[2]] == ["Juliet"], entered)
    romeo = await Guest(broker, "romeo", "the password of romeo").come()
    await romeo.enters("Romeo")
    await romeo.configures(persistentroom=False)
    await asyncio.gather(romeo.go(), juliet.go())


@check("profanity makes a room, sees who comes and talks with slixmpp", "slixmpp", "profanity", "tmux")
async def profanity(broker: Broker):
    romeo = await guest(broker, "romeo")
    await broker.add_user("juliet")
    async with Screen(broker, "profanity") as screen:
        await screen.logs_in("juliet")
        await screen.types(f"/join {ROOM} nick Juliet")
        await screen.shows("/room accept")
        await screen.types("/room accept")

        async def is_open():
            try:
                await romeo.enters("Romeo")
                return True
            except PresenceError:
                return False
        await eventually("the room is open", is_open)
        # In its list of who is there.
        await screen.shows("Romeo")
        await screen.types("hello from profanity")
        await romeo.hears("hello from profanity", "Juliet")
        romeo.says("hello from slixmpp")
        await screen.shows("hello from slixmpp")
        await screen.types("/close")
        await romeo.sees_nick("Juliet", "unavailable")
        await screen.types("/quit")
    await romeo.go()
