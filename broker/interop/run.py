#!/usr/bin/env python3
"""Runs the foreign-client checks against real programs: one line for each, then the counts.

    run.py --programs FOLDER [--only WORD]

FOLDER holds `tavi` and `tavi-fleet`. A check whose foreign program is missing is `not run`.
"""

import argparse
import asyncio
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harness import CHECKS, Broker, Check, Failure, installed  # noqa: E402

# A check waits for single things; this bounds it as a whole.
LIMIT = 120.0


def suites():
    """Importing a suite registers its checks; one that slixmpp's absence breaks registers none."""
    import archive, blocking, bots, chat, crash, personal, rooms, things  # noqa: E401, F401


async def perform(check: Check, programs: Path) -> str | None:
    """What went wrong, or None."""
    broker = Broker(programs)
    try:
        async with asyncio.timeout(LIMIT):
            await broker.start()
            await check.run(broker)
        return None
    except TimeoutError:
        return f"not finished after {LIMIT:.0f} s\n{broker.log()}"
    except Failure as failure:
        return f"{failure}\n--- the broker's log ends with\n{broker.log()}"
    except Exception:
        return f"{traceback.format_exc()}\n--- the broker's log ends with\n{broker.log()}"
    finally:
        await broker.close()


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--programs", type=Path, required=True)
    arguments.add_argument("--only", default="")
    options = arguments.parse_args()
    if not installed("slixmpp"):
        print("not run: all foreign-client checks: slixmpp is missing")
        print("0 passed, 0 failed, 1 skipped")
        return 0
    suites()
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for check in CHECKS:
        if options.only not in check.name:
            continue
        missing = [program for program in check.needs if not installed(program)]
        start = time.monotonic()
        if missing:
            counts["skipped"] += 1
            print(f"not run: {check.name}: {', '.join(missing)} missing", flush=True)
        elif problem := asyncio.run(perform(check, options.programs.resolve())):
            counts["failed"] += 1
            print(f"FAIL {check.name}\n{problem}", flush=True)
        else:
            counts["passed"] += 1
            print(f"ok   {check.name} ({time.monotonic() - start:.1f} s)", flush=True)
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**counts))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
