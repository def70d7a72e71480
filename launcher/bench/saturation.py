"""The number of actors that saturates each part of a run, from measured costs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.numbers import number, plural, size

# The share of a link's bits that TCP and IP leave for data.
_USABLE = 0.94
GIGABIT_LINKS = (1, 10, 100)


@dataclass(frozen=True)
class Costs:
    """The measured costs; CPU time is that of one core.

    Attributes:
        actor_rate: transitions per second that an actor makes, ships and encrypts.
        wire_bytes: bytes of a transition between actor and replay.
        sample_bytes: bytes of a sampled transition between replay and learner.
        insert_seconds: CPU time of replay for each transition that arrives.
        sample_seconds: CPU time of replay for each transition that is sampled.
        learner_rate: transitions per second that the learner trains on, with its own threads.
        parameter_bytes: bytes of one publication to one host.
        publish_seconds: time between publications.
        host_actors: actors on a host, which passes what it receives on to all of them.
        samples_per_insert: transitions sampled for each that arrives.
        crypt_seconds_per_byte: CPU time at either side of an encrypted connection.
        report_seconds: CPU time of the coordinator for a report and its answer.
        telemetry_seconds: time between an actor's reports.
    """

    actor_rate: float
    wire_bytes: float
    sample_bytes: float
    insert_seconds: float
    sample_seconds: float
    learner_rate: float
    parameter_bytes: float
    publish_seconds: float
    host_actors: int
    samples_per_insert: float
    crypt_seconds_per_byte: float
    report_seconds: float
    telemetry_seconds: float


@dataclass(frozen=True)
class Limit:
    """A part of a run that a number of actors saturates.

    Attributes:
        what: the part, in words.
        actors: the number that saturates one of it.
        why: the arithmetic.
    """

    what: str
    actors: float
    why: str


def limits(costs: Costs) -> list[Limit]:
    """List every limit, in the order in which a growing run reaches them."""
    found = [_replay(costs), _learner(costs), _coordinator(costs), _publisher(costs)]
    for gigabits in GIGABIT_LINKS:
        found += [_link_of_replay(costs, gigabits), _link_of_learner(costs, gigabits)]
    return sorted(found, key=lambda limit: limit.actors)


def _replay(costs: Costs) -> Limit:
    decrypt = costs.wire_bytes * costs.crypt_seconds_per_byte
    encrypt = costs.sample_bytes * costs.crypt_seconds_per_byte
    each = (
        costs.insert_seconds + decrypt + costs.samples_per_insert * (costs.sample_seconds + encrypt)
    )
    why = (
        f"{each * 1e6:.2f} us a transition, its {number(costs.samples_per_insert)} samples included"
    )
    return Limit("a replay process", 1 / each / costs.actor_rate, why)


def _learner(costs: Costs) -> Limit:
    rate = costs.learner_rate / costs.samples_per_insert
    why = f"{number(costs.learner_rate)} samples/s are {number(rate)} transitions/s"
    return Limit("this learner", rate / costs.actor_rate, why)


def _coordinator(costs: Costs) -> Limit:
    actors = costs.telemetry_seconds / costs.report_seconds
    why = (
        f"{costs.report_seconds * 1e3:.2f} ms for a report, every {costs.telemetry_seconds:g} s "
        "(system.telemetry_seconds)"
    )
    return Limit("the coordinator", actors, why)


def _publisher(costs: Costs) -> Limit:
    each = costs.parameter_bytes * costs.crypt_seconds_per_byte
    why = (
        f"a core encrypts {size(costs.parameter_bytes)} for {_each_host(costs)}, every "
        f"{costs.publish_seconds:g} s (learner.publish_seconds)"
    )
    hosts = costs.publish_seconds / each
    return Limit("encrypting parameters", hosts * costs.host_actors, why)


def _link_of_replay(costs: Costs, gigabits: int) -> Limit:
    rate = _bytes_per_second(gigabits) / costs.wire_bytes
    why = f"{size(costs.wire_bytes)} a transition: {number(rate)}/s"
    return Limit(f"{gigabits} Gbit/s to replay", rate / costs.actor_rate, why)


def _link_of_learner(costs: Costs, gigabits: int) -> Limit:
    each = costs.parameter_bytes / costs.publish_seconds
    why = f"{size(each)}/s of parameters to {_each_host(costs)}"
    actors = _bytes_per_second(gigabits) / each * costs.host_actors
    return Limit(f"{gigabits} Gbit/s from the learner", actors, why)


def _each_host(costs: Costs) -> str:
    return f"each host of {plural(costs.host_actors, 'actor')}"


def _bytes_per_second(gigabits: int) -> float:
    return gigabits * 1e9 / 8 * _USABLE
