"""The configuration of a run, checked and filled in for this machine and environment."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from actors.environments.examination import Examination
from launcher.kinds import Names, stands_aside, suited, with_preset
from launcher.plan import plan as planning
from launcher.plan.disk import describe_journal
from launcher.plan.inspector import Here, Inspector
from launcher.plan.machine import Machine, detect
from launcher.plan.plan import Plan
from launcher.prediction.expectation import at_start
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.networks.counting import parameter_bytes
from pdqn.networks.sizes import check_network, network_sizes
from pdqn.specs import EnvironmentSpec
from pdqn.stop_at import WORDS, lacks_figure, parse_target


def prepare(
    config: Config,
    elsewhere: frozenset[str] = frozenset(),
    inspector: Inspector | Here | None = None,
    folder: Path | None = None,
    given: Names | None = None,
) -> tuple[EnvironmentSpec, Machine, Plan]:
    """Fill in every automatic setting for this machine and environment, and check the whole.

    Args:
        config: as a person wrote it.
        elsewhere: roles that will join from other hosts.
        inspector: looks at the environment; by default, this process does.
        folder: directory of the run; by default, one below the present directory.
        given: the settings that the person set, if a preset may come by itself below them.

    Raises:
        UsageError: settings that cannot work on any machine.
    """
    run, inspector = config.run, inspector or Here()
    examined = inspector.examine(run.env, run.env_args)
    spec = examined.spec.stacked(run.frame_stack or planning.frame_stack(examined.spec))
    here = detect()
    on_cpu = "learner" not in elsewhere and _learns_on_cpu(config, here)
    chosen = None if given is None else suited(spec, on_cpu=on_cpu)
    if chosen is None:
        return _fill_in(config, here, examined, spec, elsewhere, inspector, folder)
    assert given is not None
    fuller, sentence = with_preset(config, chosen, given)
    try:
        found = _fill_in(fuller, here, examined, spec, elsewhere, inspector, folder)
        reason = "; ".join(found[2].errors)
    except UsageError as error:
        found, reason = None, str(error)
    if found is None or (reason and fuller != config):
        # Whatever is wrong without the preset too is the person's to know.
        found = _fill_in(config, here, examined, spec, elsewhere, inspector, folder)
        sentence = stands_aside(chosen, reason)
    return found[0], found[1], dataclasses.replace(found[2], preset=sentence)


def _learns_on_cpu(config: Config, here: Machine) -> bool:
    device = config.learner.device
    return device == "cpu" or (device == "auto" and here.learner_gpu is None)


def _fill_in(
    config: Config,
    here: Machine,
    examined: Examination,
    spec: EnvironmentSpec,
    elsewhere: frozenset[str],
    inspector: Inspector | Here,
    folder: Path | None,
) -> tuple[EnvironmentSpec, Machine, Plan]:
    """Fill in the settings for this machine and environment as they are, and check them."""
    before, config = config, _without_repetition(config, examined)
    parameters = _parameter_bytes(spec, config, inspector)
    if config.evaluation.env_args:
        _check_evaluation(config, spec, inspector)
    check_combinations(config)
    _check_against(examined, config)
    plan = planning.plan(here, config, spec, None, elsewhere, parameters)
    size = float(spec.observation_bytes)
    if planning.measures_frames(here, config, spec, parameters):
        measured = inspector.measure(plan.config, spec)
        size = measured or size
        plan = planning.plan(here, config, spec, size, elsewhere, parameters)
        if measured is None:
            plan.warnings.append(
                f"{spec.id} ended or hung while its frames were measured: memory is planned as if "
                "they could not be compressed"
            )
    if config is not before:
        plan.layer.setdefault("evaluation", {})["episodes"] = config.evaluation.episodes
    if "replay" not in elsewhere and not plan.errors:
        line, warning = describe_journal(plan.config, size, folder or Path.cwd())
        plan = dataclasses.replace(plan, journal=line)
        plan.warnings.extend([warning] if warning else [])
    no = f"cannot be saved ({examined.unsaved}): --resume begins new episodes"
    yes = "can be saved: a stopped run in mode single resumes equal to the bit"
    state = no if examined.unsaved else yes
    expected = "" if "learner" in elsewhere else at_start(plan.config, spec)
    told = {"state": state, "about": examined.about, "expectation": expected}
    return spec, here, dataclasses.replace(plan, **told, before=before)


def _without_repetition(config: Config, examined: Examination) -> Config:
    """Evaluate each held-out map once if there are few: repeated scores would count as many."""
    distinct, evaluation = examined.held_out_episodes, config.evaluation
    if not distinct or evaluation.episodes is not None or evaluation.env_args:
        return config
    episodes = min(distinct, planning.HEADLINE_EVALUATION_EPISODES)
    return dataclasses.replace(
        config, evaluation=dataclasses.replace(evaluation, episodes=episodes)
    )


def _check_against(examined: Examination, config: Config) -> None:
    """Refuse settings that need what this environment does not have."""
    _check_guidance(config, examined)
    _check_stop(config, examined.spec)


def _check_guidance(config: Config, examined: Examination) -> None:
    """Refuse to follow an expert who says nothing, or nothing that is an action."""
    if not (config.actor.guidance or config.actor.guidance_final):
        return
    spec, odd = examined.spec, examined.odd_suggestion
    guidance = f"actor.guidance = {config.actor.guidance:g}: {spec.id} gives"
    if odd:
        last = spec.first_action + spec.num_actions - 1
        raise UsageError(
            f'{guidance} {odd} as info["suggested_action"]; the number of an action, '
            f"{spec.first_action} to {last}, is needed, or -1 or None for no suggestion"
        )
    if not examined.suggests:
        raise UsageError(
            f'{guidance} no info["suggested_action"] to follow; circle placement does with '
            "--env-arg suggest=true"
        )


def _check_stop(config: Config, spec: EnvironmentSpec) -> None:
    """Refuse an aim that the environment cannot reach, because it has no such figure."""
    text = config.run.stop_at
    if text is not None and lacks_figure(parse_target(text), spec.headline_metric):
        raise UsageError(f"--stop-at {text}: {spec.id} has no such figure; expected {WORDS}")


def _parameter_bytes(spec: EnvironmentSpec, config: Config, inspector: Inspector | Here) -> int:
    """Return the size of a network's parameters, and refuse what no network could be built of."""
    sized = network_sizes(spec, config.network)
    check_network(spec, sized)
    _check_target(config, sized.kind)
    if ":" in sized.kind:
        return inspector.measure_network(spec, config.network)
    return parameter_bytes(spec, sized)


def _check_target(config: Config, kind: str) -> None:
    """Refuse the last layer as a target where it is not known which layer that is."""
    if config.learner.target == "last_layer" and (":" in kind or kind == "qmap"):
        raise UsageError(
            f"learner.target = last_layer: a network of kind {kind} does not tell which layer is "
            "its last; use network or none"
        )


def _check_evaluation(config: Config, spec: EnvironmentSpec, inspector: Inspector | Here) -> None:
    """Refuse evaluations that show the network something other than it is trained on.

    Shapes and the number of actions may differ if the network can take them.
    """
    where, env_args = "evaluation.env_args", config.evaluation_env_args
    try:
        found = inspector.examine(spec.id, env_args).spec.stacked(spec.frame_stack)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    seen, trained = _essentials(found), _essentials(spec)
    differ = [f"{seen[k]} (in training {trained[k]})" for k in seen if seen[k] != trained[k]]
    if differ:
        raise UsageError(f"{where}: with them {spec.id} has {', '.join(differ)}")
    if _sizes(found) != _sizes(spec) and not inspector.takes(config.network, spec, found):
        raise UsageError(
            f"{where}: with them {spec.id} has {_sizes(found)} (in training {_sizes(spec)}), which "
            "the network does not fit"
        )


def _essentials(spec: EnvironmentSpec) -> dict[str, str]:
    """Describe what evaluation and training must share, since a network cannot adapt to it."""
    fields = (
        f"{f.name} {f.dtype}"
        + (f" of {list(f.categories)} categories from {list(f.start)}" if f.categories else "")
        for f in spec.fields_to_act
    )
    return {
        "first_action": f"the first action {spec.first_action}",
        "headline_metric": f"the headline metric {spec.headline_metric}",
        "fields": f"the observations {', '.join(fields)}",
    }


def _sizes(spec: EnvironmentSpec) -> str:
    shapes = ", ".join(f"{field.name} {list(field.shape)}" for field in spec.fields_to_act)
    return f"the shapes {shapes} and {spec.num_actions} actions"


def check_combinations(config: Config) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: with the setting, its value, and what is accepted.
    """
    learner, network = config.learner, config.network
    if learner.munchausen and network.distribution == "categorical":
        raise UsageError(
            "learner.munchausen = true with network.distribution = categorical: the entropy moves "
            "every action's atoms by a different amount; use quantile or none"
        )
    if learner.munchausen and config.actor.returns == "lambda":
        raise UsageError(
            "learner.munchausen = true with actor.returns = lambda: actors make these returns "
            "without its bonus; use actor.returns = n_step, or leave munchausen out"
        )
    if network.normalize_rewards and config.actor.returns == "lambda":
        raise UsageError(
            "network.normalize_rewards = true with actor.returns = lambda: these returns contain "
            "values, which their scale would follow; use actor.returns = n_step, or "
            "normalize_rewards = false"
        )
    micro = learner.micro_batch_size
    if micro is not None and micro > learner.batch_size:
        raise UsageError(
            f"learner.micro_batch_size = {micro}, but learner.batch_size = {learner.batch_size}: "
            "at most that many can be computed at once"
        )
    explores = config.actor.guidance or config.actor.guidance_final
    decays = config.actor.epsilon == "decay"
    if network.noisy and (explores or decays or config.actor.exploration != "uniform"):
        what = "actor.guidance" if explores else f"actor.exploration = {config.actor.exploration}"
        what = "actor.epsilon = decay" if decays and not explores else what
        raise UsageError(
            f"network.noisy = true with {what}: noise explores in place of random actions, so "
            "nothing would follow it; use network.noisy = false, or leave that out"
        )
