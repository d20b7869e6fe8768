"""Steps 2 to 4: mosquitto's clients and libcoap's with a device's topics, people on the pubsub side, refusals."""

from slixmpp.exceptions import IqError

from harness import Broker, Failure, Lines, check, expect, mosquitto, run, uri
from people import Person

TOOLS = ("mosquitto_pub", "mosquitto_sub")


async def person_and_pump(broker: Broker):
    pump = await broker.add_device("pump")
    password = await broker.add_user("romeo")
    await broker.grant("romeo@localhost", "retrieve,subscribe,publish", f"d/{pump.id}/#")
    return await Person(broker, "romeo", password).come(), pump


async def between_mqtt_and_pubsub(broker: Broker, version: str):
    romeo, pump = await person_and_pump(broker)
    up, command = f"d/{pump.id}/up/t", f"d/{pump.id}/cmd/led"
    await romeo.subscribe(up)
    for qos in ["0", "1", "2"]:
        await run(mosquitto("pub", broker, pump, "-t", up, "-m", f"21.{qos}", "-q", qos, version=version))
        await romeo.sees(up, f"21.{qos}")
    await run(mosquitto("pub", broker, pump, "-t", up, "-m", "22.0", "-q", "1", "-r", version=version))
    await romeo.sees(up, "22.0")
    expect(await romeo.last_item(up) == "22.0", "a retained message is the node's last item")
    sub = mosquitto("sub", broker, pump, "-t", f"d/{pump.id}/cmd/#", "-q", "1", "-d", "-F", "got %t %p", version=version)
    async with Lines(*sub) as lines:
        await lines.until("SUBACK")
        await romeo.publish(command, "on")
        await lines.until(f"got {command} on")
    await romeo.go()


@check("mosquitto's clients (3.1.1) and a pubsub node are one topic", "slixmpp", *TOOLS)
async def mqtt_311(broker: Broker):
    await between_mqtt_and_pubsub(broker, "311")


@check("mosquitto's clients (5) and a pubsub node are one topic", "slixmpp", *TOOLS)
async def mqtt_5(broker: Broker):
    await between_mqtt_and_pubsub(broker, "5")


@check("mosquitto_sub gets a pubsub publish later, as the retained message", "slixmpp", *TOOLS)
async def retained(broker: Broker):
    romeo, pump = await person_and_pump(broker)
    topic = f"d/{pump.id}/cmd/led"
    await romeo.publish(topic, "on")
    got = await run(mosquitto("sub", broker, pump, "-t", topic, "-C", "1", "-W", "10", "-F", "%r %p"))
    expect(got.strip() == "1 on", got)
    await romeo.go()


@check("mosquitto's clients over TLS, our certificate checked", *TOOLS)
async def mqtt_tls(broker: Broker):
    pump = await broker.add_device("pump")
    topic = f"d/{pump.id}/up/t"
    command = ["mosquitto_pub", "-h", "localhost", "-p", broker.ports["mqtts"], "--cafile", broker.ca, "-i", pump.id,
               "-u", pump.id, "-P", pump.secret, "-t", topic, "-m", "21.5", "-q", "1", "-r"]
    await run(command)
    got = await run(mosquitto("sub", broker, pump, "-t", topic, "-C", "1", "-W", "10"))
    expect(got.strip() == "21.5", got)


@check("coap-client GETs, OBSERVEs and PUTs the same topic", "slixmpp", "coap-client-notls", *TOOLS)
async def coap(broker: Broker):
    romeo, pump = await person_and_pump(broker)
    up, command = f"d/{pump.id}/up/t", f"d/{pump.id}/cmd/led"
    await broker.grant("anon-clear", "retrieve,subscribe,publish", f"d/{pump.id}/#")
    await run(mosquitto("pub", broker, pump, "-t", up, "-m", "21.5", "-q", "1", "-r"))
    expect("21.5" in await run(["coap-client-notls", "-m", "get", uri(broker, up)]), "no value")
    async with Lines("coap-client-notls", "-w", "-s", "15", "-m", "get", uri(broker, up)) as observer:
        await observer.until("21.5")
        await run(mosquitto("pub", broker, pump, "-t", up, "-m", "21.6"))
        await observer.until("21.6")
        await run(mosquitto("pub", broker, pump, "-t", up, "-m", "21.7", "-q", "1"))
        await observer.until("21.7")
    await romeo.subscribe(command)
    sub = mosquitto("sub", broker, pump, "-t", command, "-q", "1", "-d", "-F", "got %p")
    async with Lines(*sub) as lines:
        await lines.until("SUBACK")
        await run(["coap-client-notls", "-m", "put", "-e", "on", uri(broker, command)])
        await lines.until("got on")
    await romeo.sees(command, "on")
    await romeo.go()


@check("coap-client reads 50 KB block by block", "coap-client-notls", *TOOLS)
async def blocks(broker: Broker):
    pump = await broker.add_device("pump")
    topic = f"d/{pump.id}/up/log"
    await broker.grant("anon-clear", "retrieve", f"d/{pump.id}/#")
    body = "".join(f"line {n:05}\n" for n in range(4600))[:50_000]
    sent, got = broker.folder / "sent.txt", broker.folder / "got.txt"
    sent.write_text(body)
    await run(mosquitto("pub", broker, pump, "-t", topic, "-f", sent, "-q", "1", "-r"))
    await run(["coap-client-notls", "-m", "get", "-o", got, uri(broker, topic)])
    expect(got.read_text() == body, f"{len(got.read_text())} of {len(body)} bytes are right")


@check("a device may not touch another's topics: each protocol says so", "slixmpp", "coap-client-notls", *TOOLS)
async def refusals(broker: Broker):
    pump, valve = await broker.add_device("pump"), await broker.add_device("valve")
    romeo = await Person(broker, "romeo", await broker.add_user("romeo")).come()
    own, foreign = f"d/{pump.id}/up/t", f"d/{valve.id}/up/t"
    await run(mosquitto("pub", broker, pump, "-t", own, "-m", "1", "-q", "1", version="5"))
    said = await run([*mosquitto("pub", broker, pump, "-t", foreign, "-m", "1", "-q", "1", "-d", version="5")], expect=None)
    expect("RC:135" in said, f"PUBACK 0x87: {said}")
    for version, code in [("5", "135"), ("311", "128")]:
        command = mosquitto("sub", broker, pump, "-t", foreign, "-d", "-W", "5", version=version)
        async with Lines(*command) as lines:
            line = await lines.until("Subscribed")
            expect(line.rstrip().endswith(code), line)
    for step in [romeo.subscribe(foreign), romeo.publish(foreign, "1")]:
        try:
            await step
        except IqError as error:
            expect(error.iq["error"]["condition"] == "forbidden", error.iq)
        else:
            raise Failure("it was allowed")
    said = await run(["coap-client-notls", "-v", "6", "-m", "get", uri(broker, foreign)], expect=None)
    expect("4.01" in said, said)
    await romeo.go()


@check("a grant acts at once, and a refusal's log names it", "coap-client-notls")
async def grants(broker: Broker):
    pump = await broker.add_device("pump")
    topic = uri(broker, f"d/{pump.id}/cmd/led")
    said = await run(["coap-client-notls", "-v", "6", "-m", "put", "-e", "on", topic], expect=None)
    expect("4.01" in said, said)
    expect("anon-clear" in broker.log() and pump.id in broker.log(), "the log names no grant")
    await broker.grant("anon-clear", "publish,retrieve", f"d/{pump.id}/cmd/#")
    await run(["coap-client-notls", "-m", "put", "-e", "on", topic])
    expect("on" in await run(["coap-client-notls", "-m", "get", topic]), "no value")
