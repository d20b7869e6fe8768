"""Step 5: a bot asks a person with quick replies, commands the device, and hears it."""

import asyncio

from harness import Broker, Failure, Lines, check, eventually, expect, mosquitto, run
from people import Person

BOT = """
command("lamp", "Switch the lamp", "lamp");
on_topic("d/PUMP/up/door", "door");

fn lamp() {
    let answer = ask("Which way?", ["on", "off"]);
    publish("d/PUMP/cmd/led", answer);
    say(`The lamp is ${answer}.`);
}

fn door(value) { send_to("romeo@localhost", `The door is ${value.text}.`); }

fn on_message(text) { say(`I know lamp, not ${text}.`); }
"""


async def says(person: Person, to: str, text: str, answer: str):
    """A new script takes effect at a time that nobody announces: ask until it answers."""
    async def answered():
        person.write(to, text)
        from_bot = person.wait("message", lambda message: message["from"].bare == to)
        try:
            # A bot that is not there yet answers with an error, which is no message here.
            return (await asyncio.wait_for(from_bot, 1))["body"] == answer
        except TimeoutError:
            return False
    await eventually(f"{to} answers {answer!r}", answered)


@check("a bot asks with quick replies, commands the device and hears it", "slixmpp", "mosquitto_pub", "mosquitto_sub")
async def bot(broker: Broker):
    pump = await broker.add_device("pump")
    romeo = await Person(broker, "romeo", await broker.add_user("romeo")).come()
    await broker.grant("porter@bots.localhost", "subscribe,publish", f"d/{pump.id}/#")
    # What a bot does for a person is bounded by that person's own rights too.
    await broker.grant("romeo@localhost", "subscribe,publish", f"d/{pump.id}/#")
    broker.add_bot("porter", BOT.replace("PUMP", pump.id))
    await says(romeo, "porter@bots.localhost", "hello", "I know lamp, not hello.")
    command = mosquitto("sub", broker, pump, "-t", f"d/{pump.id}/cmd/#", "-q", "1", "-d", "-F", "got %p")
    async with Lines(*command) as lines:
        await lines.until("SUBACK")
        romeo.write("porter@bots.localhost", "lamp")
        question = await romeo.wait("message", lambda message: message["body"].startswith("Which way?"))
        choices = [choice.get("value") for choice in question.xml.findall("{urn:xmpp:tmp:quick-response}response")]
        expect(choices == ["on", "off"], question)
        expect("on" in question["body"] and "off" in question["body"], "the text names no choices")
        romeo.write("porter@bots.localhost", "on")
        await lines.until("got on")
    await romeo.reads("The lamp is on.", "porter@bots.localhost")
    await run(mosquitto("pub", broker, pump, "-t", f"d/{pump.id}/up/door", "-m", "open", "-q", "1"))
    await romeo.reads("The door is open.", "porter@bots.localhost")
    broker.add_bot("porter", 'fn on_message(text) { say("I am new."); }')
    await says(romeo, "porter@bots.localhost", "hello", "I am new.")
    await romeo.go()
