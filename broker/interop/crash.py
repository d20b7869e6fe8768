"""Step 6: kill -9 in the middle of it; nothing that was acknowledged is gone."""

from harness import Broker, Lines, check, expect, mosquitto, run
from people import Person, befriend


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
