"""Run by test_sentry.py in a process of its own, since Sentry's SDK patches Starlette: prints what was reported."""

import asyncio
import sys

import sentry_sdk
from sentry_sdk.integrations.fastapi import FastApiIntegration
from sentry_sdk.integrations.starlette import StarletteIntegration
from sentry_sdk.transport import Transport

from tests.support.asgi import running
from tests.support.life_apps import PLACES, stage
from tests.telemetry import test_fates

reported: list[str] = []


class Kept(Transport):
    """Keeps what would be sent."""

    def capture_envelope(self, envelope):
        for item in envelope.items:
            if (event := item.get_event()) is not None:
                values = event.get("exception", {}).get("values", [])
                reported.append(values[-1]["type"] if values else str(event.get("logentry")))


async def main(face: str, fate: str) -> None:
    made = stage(face, "async generator")
    async with running(made.app) as client:
        await getattr(test_fates, fate)(client, made)


def fates(face: str) -> list:
    """All fates on one face; on the others, those that differ in where an exception passes."""
    few = [test_fates.left, test_fates.stopped, test_fates.failed, test_fates.failed_before_the_first_byte]
    return list(test_fates.FATES) if face == PLACES[0] else few


if __name__ == "__main__":
    sentry_sdk.init(
        dsn="http://key@localhost/1",
        transport=Kept,
        traces_sample_rate=0,
        # Those that it would choose by itself, but for the clients of language models that are installed here.
        auto_enabling_integrations=False,
        integrations=[StarletteIntegration(), FastApiIntegration()],
    )
    for face in PLACES:
        for fate in fates(face):
            asyncio.run(main(face, fate.__name__))
            sentry_sdk.flush()
            sys.stdout.write(" ".join([face, fate.__name__, *reported]) + "\n")
            reported.clear()
