"""The kinds of faults: for each, its moment, what must hold after it, and what may be lost."""

from __future__ import annotations

from dataclasses import dataclass
from signal import SIGABRT, SIGHUP, SIGINT, SIGKILL, SIGSEGV, SIGTERM, SIGTSTP
from typing import Literal

from benchmarks.chaos import faults as f
from benchmarks.chaos.faults import Fault, kill, send, stop

Moment = Literal["starting", "joining", "learning", "saving", "stopping", "between"]
Loss = Literal["nothing", "transit", "journal", "everything"]
LOSSES: tuple[Loss, ...] = ("nothing", "transit", "journal", "everything")
Surrounding = Literal["disk", "ext4", "shm", "pids", "memory", "clock", "time"]
Output = Literal["files", "unread pipe", "unread terminal", "no output", "no errors", "full"]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: its name.
        words: description of the fault, for people.
        fault: function that does it; None where the surroundings or the environment are the fault.
        moment: time of the fault; ``between`` is after a session, and before it is resumed.
        exits: exit codes of the session that are right.
        ends: whether the fault itself ends the session, which is then resumed.
        loses: greatest loss that is right. ``nothing``: all that was acknowledged stays, and all
            that was sent is accounted for. ``transit``: a process took with it what was on its way.
            ``journal``: what was stored may be lost. ``everything``: no account can be expected.
        resumes: whether the run must be resumable; None for a choice by the seed.
        resume_exits: exit codes of the resumed session that are right.
        goes_on: whether learning must go on after the fault.
        surroundings: surroundings that the run needs.
        output: place of the launcher's output.
        options: further options of the launcher; ``{folder}`` is that of the scenario.
        hostile: conduct of a hostile environment.
        single: whether the run is in mode single.
        joined: role that joins as a host of its own.
        shards: number of replays; None for a choice by the seed.
        may_show_trace: whether the output may show the traceback of an environment.
        combines: whether the seed may add other faults, or add this one to others.
        awaits: pattern of files that the first session must have before it ends.
        in_order: whether the first session ends in order, and is not killed.
        size: megabytes of a disk or of shared memory.
        seconds: longest time until learning goes on.
    """

    name: str
    words: str
    fault: Fault | None = None
    moment: Moment = "learning"
    exits: tuple[int, ...] = (0,)
    ends: bool = False
    loses: Loss = "nothing"
    resumes: bool | None = None
    resume_exits: tuple[int, ...] = (0,)
    goes_on: bool = True
    surroundings: tuple[Surrounding, ...] = ()
    output: Output = "files"
    options: tuple[str, ...] = ()
    hostile: str = ""
    single: bool = False
    joined: str = ""
    shards: int | None = None
    may_show_trace: bool = False
    combines: bool = False
    awaits: str = ""
    in_order: bool = False
    size: int = 64
    seconds: float = 60.0


def _killed() -> list[Kind]:
    return [
        Kind("kill-replay", "a replay is killed", kill("replay"), combines=True),
        Kind("kill-learner", "the learner is killed", kill("learner"), combines=True),
        Kind("kill-actor", "an actor is killed", kill("actor"), combines=True, loses="transit"),
        Kind("kill-evaluator", "the evaluator is killed", kill("evaluator"), combines=True),
        Kind("kill-actors", "all actors are killed at once", kill("actor", every=True),
             combines=True, loses="transit"),
        Kind("kill-one-shard", "one of two replays is killed", kill("replay"), shards=2),
        Kind("kill-shards", "both replays are killed at once", kill("replay", every=True),
             shards=2),
        Kind("kill-roles", "all roles are killed at once", kill("roles", every=True),
             loses="transit"),
        Kind("kill-forkserver", "the forkserver is killed", kill("forkserver"), combines=True,
             loses="transit"),
        Kind("kill-tracker", "the resource tracker is killed", f.send_if_any("tracker", SIGKILL),
             combines=True),
        Kind("kill-forkserver-starting", "the forkserver is killed while it preloads",
             kill("forkserver"), "starting", loses="transit"),
        Kind("kill-replay-joining", "a replay is killed while the run starts", kill("replay"),
             "joining"),
        Kind("kill-learner-joining", "the learner is killed while the run starts",
             kill("learner"), "joining"),
        Kind("kill-replay-twice", "a replay is killed, and its successor while it starts",
             f.one_after_another(kill("replay"), kill("replay"), pause=(0.6, 1.5))),
        Kind("kill-learner-saving", "the learner is killed while it saves", kill("learner"),
             "saving"),
        Kind("kill-replay-stopping", "a replay is killed while the run stops", kill("replay"),
             "stopping", goes_on=False),
        Kind("kill-learner-stopping", "the learner is killed while the run stops",
             kill("learner"), "stopping", goes_on=False, exits=(0, 1), resumes=True),
        Kind("kill-actor-stopping", "an actor is killed while the run stops", kill("actor"),
             "stopping", goes_on=False, loses="transit"),
        Kind("kill-storm", "a random role is killed every half second, six times",
             f.kill_everything_storm, loses="transit"),
        Kind("kill-launcher", "the launcher is killed, and the run resumed", kill("launcher"),
             ends=True, exits=(-9,), loses="transit"),
        Kind("kill-launcher-starting", "the launcher is killed while it starts",
             kill("launcher"), "starting", ends=True, exits=(-9,), resumes=False),
        Kind("kill-launcher-joining", "the launcher is killed when the first role is there",
             kill("launcher"), "joining", ends=True, exits=(-9,), loses="transit"),
        Kind("kill-launcher-stopping", "the launcher is killed while the run stops",
             kill("launcher"), "stopping", ends=True, exits=(-9,), loses="transit"),
        Kind("kill-everything", "all processes are killed at once, and the run resumed",
             f.kill_everything, ends=True, exits=(-9,), loses="transit"),
        Kind("kill-everything-sync", "the same with replay.journal = sync", f.kill_everything,
             ends=True, exits=(-9,), options=("--set", "replay.journal=sync"), loses="transit"),
    ]  # fmt: skip


def _signalled() -> list[Kind]:
    return [
        Kind("term-replay", "a replay gets SIGTERM", send("replay", SIGTERM), combines=True),
        Kind("term-learner", "the learner gets SIGTERM", send("learner", SIGTERM),
             combines=True),
        Kind("term-actor", "an actor gets SIGTERM", send("actor", SIGTERM), combines=True),
        Kind("term-forkserver", "the forkserver gets SIGTERM", send("forkserver", SIGTERM),
             loses="transit"),
        Kind("int-roles", "all roles get SIGINT, which is not for them",
             send("roles", SIGINT, every=True), combines=True),
        Kind("segv-replay", "a replay crashes", send("replay", SIGSEGV), combines=True),
        Kind("abort-learner", "the learner aborts", send("learner", SIGABRT), combines=True),
        Kind("term-launcher", "the launcher gets SIGTERM", send("launcher", SIGTERM), ends=True),
        Kind("hup-launcher", "the terminal is closed", send("launcher", SIGHUP), ends=True),
        Kind("int-group", "Ctrl-C", f.send_group(SIGINT), ends=True),
        Kind("term-group", "the whole group gets SIGTERM", f.send_group(SIGTERM), ends=True),
        Kind("term-group-forkserver", "the group gets SIGTERM after a kill of the forkserver",
             f.one_after_another(kill("forkserver"), f.send_group(SIGTERM), pause=(3, 8)),
             ends=True, loses="transit"),
        Kind("int-twice", "Ctrl-C twice", f.one_after_another(
             f.send_group(SIGINT), f.send_group(SIGINT), pause=(0.1, 0.5)), ends=True,
             exits=(0, 130), loses="everything"),
        Kind("int-starting", "Ctrl-C while the run starts", f.send_group(SIGINT), "starting",
             ends=True, exits=(0, 130), resumes=False, loses="everything"),
        Kind("suspend", "Ctrl-Z, and fg after five seconds", f.one_after_another(
             f.send_group(SIGTSTP), stop("all", 5, every=True))),
    ]  # fmt: skip


def _stopped() -> list[Kind]:
    return [
        Kind("stop-replay-5", "a replay stands still for 5 s", stop("replay", 5), combines=True),
        Kind("stop-learner-5", "the learner stands still for 5 s", stop("learner", 5),
             combines=True),
        Kind("stop-actor-5", "an actor stands still for 5 s", stop("actor", 5), combines=True),
        Kind("stop-launcher-5", "the launcher stands still for 5 s", stop("launcher", 5),
             combines=True),
        Kind("stop-forkserver-20", "the forkserver stands still for 20 s",
             stop("forkserver", 20)),
        Kind("stop-replay-20", "a replay stands still for 20 s", stop("replay", 20)),
        Kind("stop-launcher-20", "the launcher stands still for 20 s", stop("launcher", 20)),
        Kind("stop-all-20", "everything stands still for 20 s", stop("all", 20, every=True)),
        Kind("stop-replay-45", "a replay stands still for 45 s: it is ended", stop("replay", 45)),
        Kind("stop-learner-45", "the learner stands still for 45 s: it is ended",
             stop("learner", 45)),
        Kind("stop-actor-45", "an actor stands still for 45 s: it is ended", stop("actor", 45),
             loses="transit"),
        Kind("stop-launcher-45", "the launcher stands still for 45 s", stop("launcher", 45)),
        Kind("stop-launcher-45-kill-replay", "the same, and its only replay is killed meanwhile",
             stop("launcher", 45, meanwhile=kill("replay")), shards=1),
        Kind("stop-launcher-45-kill-shard", "the same, and one of two replays is killed meanwhile",
             stop("launcher", 45, meanwhile=kill("replay")), shards=2),
        Kind("stop-all-45", "everything stands still for 45 s", stop("all", 45, every=True),
             loses="transit"),
        Kind("stop-forkserver-kill", "the forkserver stands still while an actor comes back",
             f.one_after_another(kill("actor"), stop("forkserver", 20)), loses="transit"),
        Kind("stop-learner-stopping", "the learner stands still for 5 s while the run stops",
             stop("learner", 5), "stopping", goes_on=False, exits=(0, 1)),
        Kind("stop-learner-stopping-40", "the learner stands still for 40 s while the run stops",
             stop("learner", 40), "stopping", goes_on=False, exits=(0, 1)),
    ]  # fmt: skip


def _corrupted() -> list[Kind]:
    checkpoint, segment = "checkpoints/step-*/learner.pth", "journal/replay-*/*.segment"
    return [
        Kind("flip-checkpoint", "bits of the newest checkpoint are flipped",
             f.flip_bits(checkpoint), "between"),
        Kind("flip-bit-checkpoint", "one bit of the newest checkpoint is flipped",
             f.flip_bits(checkpoint, 1), "between"),
        Kind("cut-checkpoint", "the newest checkpoint is cut", f.cut(checkpoint), "between"),
        Kind("cut-checkpoints", "all checkpoints are cut", f.cut(checkpoint, every=True),
             "between"),
        Kind("keep-one", "the only checkpoint is damaged", f.flip_bits(checkpoint, 64),
             "between", options=("--set", "checkpoint.keep=1")),
        Kind("flip-final-model", "bits of the last model are flipped",
             f.flip_bits("final_model.pth"), "between", in_order=True),
        Kind("cut-best-model", "the best model is cut", f.cut("best_model.pth"),
             "between", awaits="best_model.pth"),
        Kind("flip-segment", "bits of a journal's segment are flipped", f.flip_bits(segment, 3),
             "between", loses="journal"),
        Kind("cut-segment", "a journal's segment is cut", f.cut(segment), "between",
             loses="journal"),
        Kind("remove-segment", "a journal's segment is removed", f.remove(segment), "between",
             loses="journal"),
        Kind("append-segment", "a journal ends with half a record",
             f.append(segment, b"pdqr\x02\x00\x00\x00\xff\xff\x00\x00"), "between"),
        Kind("flip-snapshot", "bits of a journal's snapshot are flipped",
             f.flip_bits("journal/replay-*/*.snapshot", 3), "between", loses="journal"),
        Kind("cut-updates", "a journal's updates are cut",
             f.cut("journal/replay-*/*.updates"), "between", loses="journal"),
        Kind("remove-journal-between", "the journal is removed", f.remove("journal"), "between",
             loses="journal"),
        Kind("cut-state", "the counters' file is cut", f.cut("state.json"), "between",
             loses="everything", resume_exits=(0, 2)),
        Kind("other-state", "the counters' file holds something else",
             f.overwrite("state.json", b'{"format": 1}\n'), "between", loses="everything",
             resume_exits=(0, 2)),
        Kind("cut-metrics", "the metrics end with half a line", f.cut("metrics.jsonl"),
             "between"),
        Kind("append-events", "the events end with bytes that are not text",
             f.append("events.jsonl", b'\xff\xfe{"event"'), "between"),
        Kind("cut-config", "the settings are cut", f.cut("config.toml"), "between",
             resume_exits=(0, 2)),
        Kind("cut-configured", "the settings that people chose are cut",
             f.cut("configured.toml"), "between", resume_exits=(0, 2)),
        Kind("flip-segment-live", "bits of a segment are flipped, and then replay is killed",
             f.one_after_another(f.flip_bits(segment, 3), kill("replay", every=True)),
             loses="journal"),
    ]  # fmt: skip


def _disks() -> list[Kind]:
    full = ("replay.journal_full=block",)
    return [
        Kind("disk-full", "the disk is full for 6 s", f.fill_disk(6), surroundings=("disk",),
             loses="journal"),
        Kind("disk-full-block", "the disk is full for 6 s; actors wait", f.fill_disk(6),
             surroundings=("disk",), options=("--set", full[0])),
        Kind("disk-full-kill", "a replay is killed while the disk is full", f.one_after_another(
             f.fill_disk(None), kill("replay"), f.fill_disk(3)), surroundings=("disk",),
             loses="journal"),
        Kind("disk-full-end", "the disk stays full to the end", f.fill_disk(None),
             surroundings=("disk",), loses="everything", exits=(0, 1), resumes=False),
        Kind("disk-full-start", "the disk is full when the run starts", f.fill_disk(None),
             "starting", surroundings=("disk",), loses="everything", exits=(0, 1, 2, 130),
             resumes=False, goes_on=False),
        Kind("disk-hangs-10", "the disk hangs for 10 s", f.freeze_disk(10),
             surroundings=("ext4",), size=128),
        Kind("disk-hangs-45", "the disk hangs for 45 s", f.freeze_disk(45),
             surroundings=("ext4",), size=128),
        Kind("disk-hangs-sync", "the disk hangs for 10 s with replay.journal = sync",
             f.freeze_disk(10), surroundings=("ext4",), size=128,
             options=("--set", "replay.journal=sync")),
        Kind("read-only", "the run's folders take no new files for 8 s", f.make_read_only(8),
             loses="journal"),
        Kind("file-size-replay", "replay may write no file beyond 1 kB for 5 s",
             f.limit_file_size("replay", 1000, 5), loses="journal"),
        Kind("file-size-learner", "the learner may write no file beyond 1 kB for 5 s",
             f.limit_file_size("learner", 1000, 5)),
        Kind("shm-small", "there is 1 MB of shared memory", surroundings=("shm",), size=1),
        Kind("shm-full", "shared memory is full, and then the learner is killed",
             f.one_after_another(f.fill_shared_memory, kill("learner")), surroundings=("shm",)),
    ]  # fmt: skip


def _cleaned() -> list[Kind]:
    return [
        Kind("clean-sockets", "the folder of sockets is removed", f.clean_temporary("pdqn-*"),
             combines=True),
        Kind("clean-sockets-kill", "the folder of sockets is removed, and a replay killed",
             f.one_after_another(f.clean_temporary("pdqn-*"), kill("replay"), pause=(0, 2))),
        Kind("clean-pymp", "multiprocessing's folder is removed, and an actor killed",
             f.one_after_another(f.clean_temporary("pymp-*"), kill("actor"), pause=(0, 2)),
             loses="transit"),
        Kind("clean-temporary", "the temporary directory is emptied", f.clean_temporary("*")),
        Kind("remove-run", "the run's directory is removed", f.remove_run, loses="everything"),
        Kind("move-run", "the run's directory is moved", f.move_run, loses="everything",
             exits=(0, 1), resumes=False),
        Kind("run-is-file", "the run's directory is moved, and a file takes its place",
             f.replace_run_by_file, loses="everything", exits=(0, 1), resumes=False,
             goes_on=False),
        Kind("remove-checkpoints", "the folder of checkpoints is removed",
             f.remove("checkpoints")),
        Kind("remove-journal", "the folder of journals is removed, and replay killed later",
             f.one_after_another(f.remove("journal"), kill("replay", every=True), pause=(4, 6))),
        Kind("remove-journal-kill", "the folder of journals is removed, and replay killed",
             f.one_after_another(f.remove("journal"), kill("replay", every=True)),
             loses="journal"),
        Kind("remove-logs", "the folder of logs is removed, and an actor killed",
             f.one_after_another(f.remove("logs"), kill("actor")), loses="transit"),
        Kind("remove-metrics", "the file of metrics is removed", f.remove("metrics.jsonl"),
             resumes=True),
        Kind("log-is-folder", "a folder is in the place of a log", f.one_after_another(
             f.remove("logs/actor-0.log"), f.put_folder("logs/actor-0.log"),
             kill("actor", every=True)), loses="transit"),
    ]  # fmt: skip


def _limited() -> list[Kind]:
    return [
        Kind("descriptors-launcher", "the launcher has no descriptors left for 6 s",
             f.take_descriptors("launcher", 0, 6)),
        Kind("descriptors-replay", "a replay has two descriptors left for 6 s",
             f.take_descriptors("replay", 2, 6), loses="journal"),
        Kind("descriptors-learner", "the learner has one descriptor left for 6 s",
             f.take_descriptors("learner", 1, 6)),
        Kind("descriptors-forkserver", "the forkserver has none left, and an actor comes back",
             f.one_after_another(kill("actor"), f.take_descriptors("forkserver", 0, 6)),
             loses="transit"),
        Kind("pids-actor", "no process can start while an actor comes back",
             f.take_processes(kill("actor"), 3), surroundings=("pids",), loses="transit"),
        Kind("pids-forkserver", "no process can start while the forkserver comes back",
             f.take_processes(kill("forkserver"), 3), surroundings=("pids",), loses="transit"),
        Kind("pids-replay", "no process can start while replay comes back",
             f.take_processes(kill("replay"), 3), surroundings=("pids",)),
        Kind("clock-forward", "the clock is set forward by a day", f.move_clock(86_400),
             surroundings=("clock",), combines=True),
        Kind("clock-back", "the clock is set back by a day", f.move_clock(-86_400),
             surroundings=("clock",)),
        Kind("clock-monotonic", "the machine seems to have run for three years",
             surroundings=("time",)),
    ]  # fmt: skip


def _sent() -> list[Kind]:
    bound = ("--bind", "127.0.0.1")
    return [
        Kind("garbage", "random bytes at every socket", f.send_raw(f.random_bytes, "bytes"),
             combines=True),
        # It is that of the standard library, which ends with a traceback of its own.
        Kind("garbage-forkserver", "random bytes at the forkserver's socket",
             f.send_raw(f.random_bytes, "bytes", "pymp-*"), may_show_trace=True, loses="transit"),
        Kind("garbage-messages", "messages of random frames at every socket", f.send_messages,
             combines=True),
        Kind("half-messages", "half messages at every socket",
             f.send_raw(f.half_message, "half a message"), combines=True),
        Kind("other-protocol", "requests of the web at every socket",
             f.send_raw(f.other_protocol, "a request of the web"), combines=True),
        Kind("garbage-tcp", "random bytes at every port", f.send_raw(f.random_bytes, "bytes"),
             options=bound),
        Kind("half-messages-tcp", "half messages at every port",
             f.send_raw(f.half_message, "half a message"), options=bound),
        Kind("flood-tcp", "silent connections at every port", f.flood, options=bound),
    ]  # fmt: skip


def _shown() -> list[Kind]:
    rich = ("--console", "rich")
    return [
        Kind("unread-pipe", "nobody reads the output", output="unread pipe"),
        Kind("unread-terminal", "a terminal that nobody reads", output="unread terminal",
             options=rich),
        Kind("no-output", "standard output is closed", output="no output"),
        Kind("no-errors", "standard error is closed", output="no errors"),
        Kind("full-output", "the output goes to a full device", output="full"),
    ]  # fmt: skip


def _hostile() -> list[Kind]:
    def env(how: str, words: str, **more: object) -> Kind:
        name = f"env-{how.replace(' ', '-')}"
        usual = {"may_show_trace": True, "loses": "transit"}
        return Kind(name, words, hostile=how, **usual, **more)  # pyright: ignore[reportArgumentType]

    return [
        env("nan observation", "an environment observes NaN every 300 steps"),
        env("nan reward", "an environment's reward is NaN every 300 steps"),
        env("raise", "an environment raises every 300 steps"),
        env("hang", "an environment hangs once", seconds=120.0,
            options=("--set", "system.heartbeat_timeout_seconds=8")),
        env("exit", "an environment exits once"),
        env("end", "an environment ends its process once"),
        env("segfault", "an environment crashes its process once"),
        env("leak", "an environment takes memory until its actor is ended", seconds=90.0),
        env("print", "an environment prints and prints"),
        env("fork", "an environment forks"),
    ]  # fmt: skip


def _joined() -> list[Kind]:
    bound = ("--bind", "127.0.0.1")
    apart = (*bound, "--no-replay")
    shared = (*apart, "--set", "replay.journal_dir={folder}/shared")
    return [
        Kind("host-kill", "a host with an actor is killed", f.kill_host, joined="actor",
             options=bound, loses="transit"),
        Kind("host-term", "a host with an actor gets SIGTERM", send("host", SIGTERM),
             joined="actor", options=bound),
        Kind("host-stop-20", "a host with an actor stands still for 20 s",
             f.stop_host(20), joined="actor", options=bound),
        Kind("host-kill-replay", "the replay of another host is killed", kill("replay"),
             joined="replay", options=apart, shards=1),
        Kind("host-move-replay", "a host with replay is killed, and replay started on another",
             f.move_host, joined="replay", options=shared, shards=1, seconds=90.0),
        Kind("host-kill-launcher", "the launcher of a run with a host is killed",
             kill("launcher"), joined="actor", options=bound, ends=True, exits=(-9,),
             loses="transit"),
    ]  # fmt: skip


def _single() -> list[Kind]:
    return [
        Kind("single-kill", "a run in one process is killed", kill("launcher"), single=True,
             ends=True, exits=(-9,), loses="journal"),
        Kind("single-term", "a run in one process gets SIGTERM", send("launcher", SIGTERM),
             single=True, ends=True),
        Kind("single-stop-5", "a run in one process stands still for 5 s", stop("launcher", 5),
             single=True),
        Kind("single-disk-full", "the disk of a run in one process is full for 6 s",
             f.fill_disk(6), single=True, surroundings=("disk",)),
        Kind("single-cut-checkpoint", "the newest checkpoint of such a run is cut",
             f.cut("checkpoints/step-*/learner.pth"), "between", single=True, loses="journal"),
        Kind("single-remove-run", "the directory of such a run is removed", f.remove_run,
             single=True, loses="everything"),
    ]  # fmt: skip


def kinds() -> list[Kind]:
    """List all kinds."""
    makers = (_killed, _signalled, _stopped, _corrupted, _disks, _cleaned, _limited, _sent)
    makers += (_shown, _hostile, _joined, _single)
    return [kind for make in makers for kind in make()]
