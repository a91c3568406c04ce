# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The one training loop: any stage, from its config to its last checkpoint."""

import contextlib
from collections.abc import Callable

import jax
from etils import epath

from g2sd_jax import (
    checkpoint,
    clock,
    cluster,
    core,
    evaluation,
    feed,
    metrics,
    nonfinite,
    parallel,
    retention,
    stages,
    step,
    summary,
    workdir,
)
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import failures, order, source, threads
from g2sd_jax.models import layers

DONE = "DONE"


def run(config, path: str) -> dict:
    """Trains the stage of `config` in the workdir `path`, resuming what is there.

    Returns:
        The final metrics, which `workdir/DONE` holds as well; at once if it exists.
    """
    cluster.agree("config", lambda: workdir.plain(config))
    workdir.check(config, path)
    done = epath.Path(path) / DONE
    if done.exists():
        metrics.say(f"{path} is done already")
        return workdir.read_json(done)
    workdir.cache_programs(config, path)
    with contextlib.ExitStack() as opened:
        opened.enter_context(threads.closing())
        scores = steps(config, path, opened)
    # Only now is the last checkpoint committed.
    _, total = step.count(config)
    final = {"step": total, **last_losses(path), **scores}
    if jax.process_index() == 0:
        workdir.write_json(done, final)
    return final


def steps(config, path: str, opened: contextlib.ExitStack) -> dict:
    """The run itself; what it opens is closed by `opened`, whatever happens.

    Returns:
        The evaluation of the last step.
    """
    # The machine, and the stage that is to run on it.
    mesh = parallel.make_mesh(config.mesh)
    parallel.check_batch(config, mesh)
    per_epoch, total = step.count(config)
    policy = core.one_of(
        "config.nonfinite.policy", config.nonfinite.policy, ("stop", "skip")
    )
    stage = stages.build(config)
    kept = retention.of(config, evaluation.metrics(stage))

    # Data: batch s is a function of (seed, s), so only the schema is needed for now.
    hosts = jax.process_index(), jax.process_count()
    main = not hosts[0]
    failures.list_in(workdir.local(path), hosts[0])
    opened.callback(failures.list_in, None)
    dataset = source.load(config, config.data.train_split)
    cluster.agree("data", lambda: datasets.fingerprint(dataset))
    wait = feed.wait_of(config)
    batches = order.train_batches(dataset, config.batch, config.seed, 0, *hosts)
    example = feed.first(batches, wait)
    describe = dict(
        stage.describe,
        stage=config.stage,
        class_names=dataset.classes,
        eval_crop=dataset.eval_crop,
    )

    # A mistake in the evaluation set is told now, not after hours.
    for evaluator in stage.evaluators.values():
        next(iter(evaluator.batches()), None)

    # What is not trained: loaded first, so that a wrong teacher is told at once.
    frozen, known = frozen_variables(stage, config, example, mesh)

    # State: shapes before arrays, then born in the right place.
    program = step.build(config, stage, mesh, example)
    keys = program.keys()

    # Where do the weights come from? In this order:
    # 1. this run's own latest checkpoint, if it was interrupted;
    # 2. an earlier stage, through stage.warm_start;
    # 3. the initialiser.
    saved = checkpoint.Manager(path, **kept)
    opened.push(closing(saved))
    if saved.latest() is not None:
        state = saved.restore(program.state)
        metrics.say(f"restored step {int(state.step)}")
    else:
        state = program.start(stage.warm_start(program.init(keys["init"])))

    # Steps. A run that was refused until here leaves no claim on the workdir.
    workdir.claim(config, path)
    failures.sync()
    start = int(state.step)
    writer = metrics.Writer(path, config, start, total, main)
    opened.callback(writer.close)
    profile = metrics.Profile(path, config, main)
    opened.callback(profile.close)
    if not start:
        batch = parallel.to_global(example, mesh)
        summary.tell(config, stage, dataset, batch, keys["step"], path)
    meter = feed.Meter()
    dataset = datasets.metered(dataset, meter.around)
    batches = order.train_batches(dataset, config.batch, config.seed, start, *hosts)
    place = lambda batch: parallel.to_global(batch, mesh)
    stop = cluster.Stop()
    opened.callback(stop.close)
    given = place, config.data.prefetch, meter, wait, stop.alone
    supply = feed.Feed(batches, *given)
    opened.callback(supply.close)
    timer, late = clock.Clock(config.batch, supply), metrics.Late()
    opened.callback(timer.close)
    keeper = nonfinite.Keeper(path, config, keys["step"], describe)
    watch = Watch(policy, config, total, writer, timer, keeper)
    if known and not start:
        writer.write(0, known)
    judge = evaluation.judge_of(stage, mesh, writer, timer)
    eval_every = max(1, round(config.eval_epochs * per_epoch))
    going = None if policy == "skip" else nonfinite.going(mesh)

    def save_as(number, state, scores):
        with timer.paused():
            writer.sync()
            failures.sync()
            saved.save(number, state, describe, scores)

    number = last = start  # The step, and the one that was saved last.
    scores = None
    with jax.transfer_guard("disallow"):
        for number, batch in zip(
            range(start + 1, total + 1), timer.batches(), strict=False
        ):
            profile.before(number)
            state, told = program.step(state, frozen, batch, keys["step"], going)
            timer.ran(told)
            going = told["finite"] if policy == "stop" else None
            keeper.hold(number, batch, state)
            watch(late.swap(number, told))
            saved.check()
            leave = stop.asked(number)
            judged = number == total or number % eval_every == 0
            save = leave or number == total or number % config.checkpoint.every == 0
            if judged or save:
                watch(late.last())  # Never judge or save a step nobody looked at.
            # Judged before it is saved: what a checkpoint restores was told.
            scores = judge(number, state.variables, frozen) if judged else None
            if save or (judged and config.checkpoint.best):
                save_as(number, state, scores)
                last = number
            if leave:
                break
        if number < total:  # Asked to stop: after a step, or while no batch came.
            watch(late.last())
            if last < number:
                save_as(number, state, scores)
            saved.wait()
            told = f"step {number} of {total} is saved" if number else "no step is made"
            raise core.Preempted(
                f"stopped as asked: {told}; the same command goes on from there"
            )
        if start == total:  # Killed between its last checkpoint and its end.
            scores = last_scores(path, total)
            scores = scores or judge(total, state.variables, frozen)
    return scores


def closing(saved: checkpoint.Manager) -> Callable:
    """How the context that `saved` belongs to ends it, knowing why it ends."""

    def leave(kind, _error, _trace):
        # A save ends on all processes or on none: nobody waits for those that failed.
        together = (core.Preempted, FloatingPointError)
        if jax.process_count() == 1 or kind is None or issubclass(kind, together):
            saved.close()

    return leave


def last_losses(path: str) -> dict:
    """What the last logged step told, whichever process of the run made it."""
    file = epath.Path(path) / metrics.FILE
    rows = metrics.read_lines(file) if file.exists() else []
    told = next((row for row in reversed(rows) if "loss" in row), {})
    return {key: value for key, value in told.items() if key.startswith("loss")}


def last_scores(path: str, number: int) -> dict:
    """The evaluation of step `number`, if one was logged."""
    file = epath.Path(path) / metrics.FILE
    rows = metrics.read_lines(file) if file.exists() else []
    told = [row for row in rows if row["step"] == number and "loss" not in row]
    return {k: v for row in told[-1:] for k, v in row.items() if k != "step"}


def frozen_variables(stage: core.Stage, config, example, mesh):
    """What never changes: loaded whole, measured, then only what the loss needs.

    Returns:
        The frozen variables, placed, and what was measured of them.
    """
    frozen = stage.frozen()
    if not frozen:
        return {}, {}
    batch = parallel.to_global(example, mesh)
    # Measured from the host's copy: the part that is not needed is never placed twice.
    found = jax.device_get(jax.jit(stage.probe)(frozen, batch))
    found = {name: float(value) for name, value in found.items()}
    for name, value in found.items():
        metrics.say(f"{name}: {value:.4g} (measured before step 0)")
    dtype = layers.machine(config)["dtype"]
    frozen = parallel.cast(stage.trim(frozen), dtype)
    return parallel.place(frozen, parallel.shardings(frozen, mesh)), found


class Watch:
    """Looks at each step's metrics, one step late: logs them, and acts on a bad one."""

    def __init__(self, policy, config, total, writer, timer, keeper):
        self._policy, self._bound = policy, config.nonfinite.bound
        self._every, self._total = config.log_every, total
        self._writer, self._timer, self._keeper = writer, timer, keeper
        self._skipped, self._first = 0, True

    def __call__(self, reported):
        if reported is None:
            return
        number, told = reported
        self._judge(number, told)
        if self._first:
            self._timer.read()  # The first interval holds the compilation.
        self._first = False
        if number % self._every == 0 or number == self._total:
            self._writer.write(number, {**told, **self._timer.read()})

    def _judge(self, number, told):
        if told.pop("finite"):
            self._skipped = 0
            return
        self._skipped += 1
        said = ", ".join(f"{name} {value:.4g}" for name, value in told.items())
        stopping = self._policy == "stop"
        if self._skipped == 1:
            self._file = self._keeper.write(number, told, stopping)
        if stopping or self._skipped > self._bound:
            raise FloatingPointError(
                f"step {number} is not finite ({said}); {self._skipped} in a row. "
                "Lower config.optim.lr, set config.optim.clip, or "
                f"config.nonfinite.policy=skip. g2sd replay {self._file} tells where "
                "it comes from."
            )
        metrics.say(f"step {number} is not finite ({said}): not applied; {self._file}")
