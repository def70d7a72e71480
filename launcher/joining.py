"""What the commands that join a run do. Imports nothing heavy: the roles' processes do that."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time

import click

from launcher import agent
from launcher.access import Door, find_door
from launcher.interrupts import Interrupts

# How long roles have to leave once the leash is cut.
_LEASH_SECONDS = 15.0


def join(part: agent.Part, door: Door, interrupts: Interrupts) -> int:
    """Be part of a run from another process until it ends; the exit code."""

    def say(text: str) -> None:
        click.echo(f"pdqn: {text}", err=True)

    return agent.take_part(door.endpoint, part, door.network, say, interrupts)


def join_on_leash(part: agent.Part, address: str, interrupts: Interrupts) -> int:
    """Be part of a run for as long as standard input is open; its first line says as whom."""
    first = json.loads(sys.stdin.readline())
    door = find_door(address, key=first["key"] or None, insecure=True)
    network = dataclasses.replace(door.network, agent=first["agent"])

    def follow() -> None:
        while sys.stdin.readline():
            pass
        interrupts.count = max(1, interrupts.count)
        time.sleep(_LEASH_SECONDS)
        os._exit(1)

    threading.Thread(target=follow, name="leash", daemon=True).start()
    return join(part, Door(door.endpoint, network), interrupts)
