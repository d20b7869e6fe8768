"""Step 6: kill -9 in the middle of it; nothing that was acknowledged is gone."""

import asyncio

from harness import Broker, Lines, Network, check, eventually, expect, mosquitto, run
from people import Person, Steady, befriend


@check("after kill -9 slixmpp finds accounts, roster and undelivered messages", "slixmpp")
async def people(broker: Broker):
    romeo = await Person(broker, "romeo", await broker.add_user("romeo")).come()
    juliet = await Person(broker, "juliet", await broker.add_user("juliet")).come()
    await befriend(romeo, juliet)
    await juliet.go()
    for n in range(20):
        romeo.write("juliet@localhost", f"number {n}")
    await romeo["xep_0199"].ping("localhost")
    await broker.kill9()
    romeo.abort()
    await broker.start()
    juliet = await Person(broker, "juliet", "the password of juliet").come()
    got = [(await juliet.wait("message", lambda message: message["body"]))["body"] for _ in range(20)]
    expect(got == [f"number {n}" for n in range(20)], got)
    roster = await juliet.get_roster()
    expect(roster["roster"]["items"]["romeo@localhost"]["subscription"] == "both", roster)
    await juliet.go()


@check("after kill -9 mosquitto_sub finds its session, what came meanwhile, and retained values",
       "mosquitto_pub", "mosquitto_sub")
async def things(broker: Broker):
    pump, valve = await broker.add_device("pump"), await broker.add_device("valve")
    await broker.grant(valve.jid, "publish", f"d/{pump.id}/cmd/#")
    topics = f"d/{pump.id}/cmd/#"
    durable = mosquitto("sub", broker, pump, "-c", "-q", "1", "-t", topics, "-d", "-F", "got %p")
    async with Lines(*durable) as lines:
        await lines.until("SUBACK")
    for n in range(20):
        topic = f"d/{pump.id}/cmd/{n}"
        await run(mosquitto("pub", broker, valve, "-t", topic, "-m", f"number {n}", "-q", "1", version="5"))
    # Not as the pump: a clean session of its client id would end the durable one.
    await run(mosquitto("pub", broker, valve, "-t", f"d/{valve.id}/up/t", "-m", "21.5", "-q", "2", "-r"))
    await broker.kill9()
    await broker.start()
    async with Lines(*mosquitto("sub", broker, pump, "-c", "-q", "1", "-t", topics, "-d", "-F", "got %p")) as lines:
        for n in range(20):
            await lines.until(f"got number {n}")
    got = await run(mosquitto("sub", broker, valve, "-t", f"d/{valve.id}/up/t", "-C", "1", "-W", "10"))
    expect(got.strip() == "21.5", got)


@check("SIGTERM ends the broker in order with exit code 0, clients connected", "slixmpp")
async def orderly(broker: Broker):
    romeo = await Person(broker, "romeo", await broker.add_user("romeo")).come()
    await broker.stop()
    romeo.abort()


async def steady_pair(broker: Broker):
    romeo = await Steady(broker, "romeo", await broker.add_user("romeo")).come()
    juliet = await Steady(broker, "juliet", await broker.add_user("juliet")).come()
    await befriend(romeo, juliet)
    return romeo, juliet


async def chat(pair, numbers):
    """Both write to each other at once; what was written last has no answer yet when this returns."""
    romeo, juliet = pair
    for n in numbers:
        romeo.write("juliet@localhost", f"number {n}")
        juliet.write("romeo@localhost", f"number {n}")
        # Lets them read and write in between.
        await asyncio.sleep(0)


async def goes_on(pair, written):
    """Both have resumed. Everything comes, once and in order, and so does what is written from now on."""
    for person in pair:
        await person.has_resumed()
    await chat(pair, range(written, written + 50))
    expected = [f"number {n}" for n in range(written + 50)]
    for person in pair:
        async def has_all(person=person):
            return expected[-1] in person.heard
        await eventually(f"{person.boundjid} has {expected[-1]}, but {person.heard[-5:]}", has_all)
    for person in pair:
        # What came twice would stand before the answer.
        await person["xep_0199"].ping("localhost")
        expect(person.heard == expected, f"{person.boundjid} heard {person.heard}")


async def says_goodbye(pair):
    """The presence of before is still there: who goes is seen going."""
    romeo, juliet = pair
    await juliet.go()
    await romeo.wait("presence_unavailable", lambda presence: presence["from"].bare == "juliet@localhost")
    await romeo.go()


@check("slixmpp resumes its stream after kill -9; what was under way comes once and in order", "slixmpp")
async def resumed_after_kill(broker: Broker):
    pair = await steady_pair(broker)
    await chat(pair, range(150))
    expect(all(person.unanswered() for person in pair), "nothing is under way")
    await broker.kill9()
    await broker.start()
    await goes_on(pair, 150)
    await says_goodbye(pair)


@check("slixmpp resumes its stream after SIGTERM; what was under way comes once and in order", "slixmpp")
async def resumed_after_stop(broker: Broker):
    pair = await steady_pair(broker)
    await chat(pair, range(150))
    await broker.stop()
    await broker.start()
    await goes_on(pair, 150)
    await says_goodbye(pair)


@check("slixmpp resumes its stream when the network fails, whether the broker notices or not", "slixmpp")
async def resumed_after_cut(broker: Broker):
    async with Network(broker) as network:
        romeo = Steady(broker, "romeo", await broker.add_user("romeo"))
        juliet = Steady(broker, "juliet", await broker.add_user("juliet"))
        juliet.port = network.port
        pair = await romeo.come(), await juliet.come()
        await befriend(*pair)
        await chat(pair, range(100))
        romeo.transport.abort()
        network.fail()
        await goes_on(pair, 100)
        await says_goodbye(pair)
