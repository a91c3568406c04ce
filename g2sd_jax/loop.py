# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The one training loop: any stage, from its config to its last checkpoint."""

import contextlib

import jax
from etils import epath
from ml_collections import ConfigDict

from g2sd_jax import (
    checkpoint,
    clock,
    errors,
    feed,
    interrupts,
    lock,
    metrics,
    nonfinite,
    open_keys,
    parallel,
    recipes,
    stages,
    step,
    summary,
    workdir,
)
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import failures, order, source
from g2sd_jax.data.processes import threads
from g2sd_jax.evaluators import fold
from g2sd_jax.hosts import cluster


def run(config: ConfigDict, path: str) -> dict[str, float]:
    """Trains the stage of `config` in the workdir `path`, resuming what is there.

    Returns:
        The final metrics, which `workdir/DONE` holds as well; at once if it exists and
        no later end is asked for.
    """
    interrupts.stop_deferring()  # A chain has several runs.
    recipes.check_ranges(config)
    config = open_keys.fill(config, path)
    stages.complete(config)
    cluster.agree("config", lambda: workdir.to_json_dict(config))
    workdir.check(config, path)
    _, total = step.count_steps(config)
    done = workdir.final_metrics(path)
    if done is not None and done.get("step", total) == total:
        parallel.print_once(f"{path} is done already")
        return done
    open_keys.check_length(config, path)
    with lock.alone_in(path):
        workdir.cache_programs(config, path)
        with contextlib.ExitStack() as opened:
            opened.enter_context(threads.closing())
            scores = steps(config, path, opened)
        # Only now is the last checkpoint committed.
        final = {"step": total, **metrics.last_losses(path), **scores}
        if jax.process_index() == 0:
            workdir.write_json(epath.Path(path) / workdir.DONE, workdir.finite(final))
    return final


def steps(
    config: ConfigDict, path: str, opened: contextlib.ExitStack
) -> dict[str, float]:
    """Runs the loop of `run`; `opened` closes its files and threads in any case.

    Returns:
        The evaluation of the last step.
    """
    # The machine, and the stage that is to run on it.
    mesh = parallel.make_mesh(config.mesh)
    parallel.check_batch(config, mesh)
    per_epoch, total = step.count_steps(config)
    policy = errors.one_of(
        "config.nonfinite.policy", config.nonfinite.policy, ("stop", "skip")
    )
    stage = stages.build(config)
    retention = checkpoint.retention_options(
        config, fold.metric_names(stage), fold.scores(stage)
    )

    # Data: batch s is a function of (seed, s), so only the schema is needed for now.
    hosts = jax.process_index(), jax.process_count()
    main = not hosts[0]
    claimed = workdir.claimed(path)
    failures.list_in(workdir.local_folder(path), hosts[0], claimed)
    opened.callback(failures.list_in, None)
    dataset = source.load(config, config.data.train_split, stage.reads)
    cluster.agree("data", lambda: datasets.fingerprint(dataset))
    wait = feed.wait_from_config(config)
    batches = order.train_batches(dataset, config.batch, config.seed, 0, *hosts)
    example = feed.first(batches, wait)
    describe = dict(
        stage.describe,
        **dataset.describe,
        stage=config.stage,
        class_names=dataset.classes or stage.describe.get("class_names", ()),
        eval_crop=dataset.eval_crop,
        data=source.describe(config),
    )

    # A mistake in the evaluation set is reported now, not after hours.
    for evaluator in stage.evaluators.values():
        next(iter(evaluator.batches()), None)

    # The frozen variables, first: a wrong teacher is refused at once.
    frozen, teacher_metrics = stages.frozen_variables(stage, config, example, mesh)

    # State: shapes before arrays, then born in the right place.
    program = step.build(config, stage, mesh)
    keys = program.keys()

    # Where do the weights come from? In this order:
    # 1. this run's own latest checkpoint, if it was interrupted;
    # 2. an earlier stage, through stage.warm_start;
    # 3. the initialiser.
    saved = checkpoint.Manager(path, **retention)
    opened.push(checkpoint.closing(saved))
    if saved.latest() is not None:
        state = saved.restore(program.state)
        parallel.print_once(f"restored step {int(state.step)}")
    else:
        state = program.start(stage.warm_start(program.init(keys["init"])))

    start = int(state.step)
    if start > total:
        raise ValueError(
            f"--workdir={path} holds step {start}, beyond the {total} steps that are "
            f"asked for; use config.total_steps={start} or more, or another workdir."
        )

    # Steps. A run that was refused until here leaves no claim on the workdir.
    workdir.claim(config, path)
    failures.sync()
    writer = metrics.Writer(path, config, start, total, main)
    opened.callback(writer.close)
    profile = metrics.Profile(path, config, main)
    opened.callback(profile.close)
    if not start:
        batch = parallel.to_global(example, mesh)
        summary.report(config, stage, dataset, batch, keys["step"], path)
    meter = feed.Meter()
    dataset = datasets.metered(dataset, meter.around)
    batches = order.train_batches(dataset, config.batch, config.seed, start, *hosts)
    stop = cluster.Stop()
    opened.callback(stop.close)
    supply = feed.Feed(
        batches,
        place=lambda batch: parallel.to_global(batch, mesh),
        ahead=config.data.prefetch,
        meter=meter,
        wait=wait,
        stopped=stop.alone,
    )
    opened.callback(supply.close)
    timer = clock.Clock(config.batch, supply, cores=threads.workers(config))
    late = metrics.Late()
    opened.callback(timer.close)
    keeper = nonfinite.Keeper(path, config, keys["step"], describe)
    watch = Watch(policy, config, total, writer, timer, keeper)
    if teacher_metrics and not start:
        writer.write(0, teacher_metrics)
    evaluate = fold.make_evaluate(stage, mesh, writer, timer)
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
            state, step_metrics = program.step(
                state, frozen, batch, keys["step"], going
            )
            timer.ran(step_metrics)
            going = step_metrics["finite"] if policy == "stop" else None
            keeper.hold(number, batch, state)
            watch(late.swap(number, step_metrics))
            saved.check()
            leave = stop.asked(number)
            due = number == total or number % eval_every == 0
            save = leave or number == total or number % config.checkpoint.every == 0
            if due or save:
                watch(late.last())  # Never evaluate or save a step nobody looked at.
            # Evaluated before it is saved: the scores of a checkpoint are logged.
            try:
                scores = evaluate(number, state.variables, frozen) if due else None
            except Exception:
                # The last step is good, and a restart evaluates it again; from an
                # earlier one it would not. Of several processes, one may be alone here.
                if number == total and jax.process_count() == 1:
                    save_as(number, state, None)
                raise
            if save or (due and config.checkpoint.best):
                save_as(number, state, scores)
                last = number
            if leave:
                break
        if number < total:  # Asked to stop: after a step, or while no batch came.
            watch(late.last())
            if last < number:
                save_as(number, state, scores)
            saved.wait()
            reached = f"step {number} of {total} is saved"
            raise errors.Preempted(
                f"stopped as asked: {reached if number else 'no step is made'}; the "
                "same command goes on from there"
            )
        if start == total:  # Killed between its last checkpoint and its end.
            scores = metrics.last_scores(path, total)
            scores = scores or evaluate(total, state.variables, frozen)
    return scores


class Watch:
    """Looks at each step's metrics, one step late: logs them, and acts on a bad one."""

    def __init__(
        self,
        policy: str,
        config: ConfigDict,
        total: int,
        writer: metrics.Writer,
        timer: clock.Clock,
        keeper: nonfinite.Keeper,
    ):
        self._policy, self._bound = policy, config.nonfinite.bound
        self._every, self._total = config.log_every, total
        self._writer, self._timer, self._keeper = writer, timer, keeper
        self._skipped, self._first = 0, True

    def __call__(self, reported: tuple[int, dict[str, float]] | None) -> None:
        """Takes (step, metrics), or None where no step was made yet."""
        if reported is None:
            return
        number, step_metrics = reported
        self._check(number, step_metrics)
        if self._first:
            self._timer.read()  # The first interval holds the compilation.
        self._first = False
        if number % self._every == 0 or number == self._total:
            self._writer.write(number, {**step_metrics, **self._timer.read()})

    def _check(self, number: int, step_metrics: dict[str, float]) -> None:
        if step_metrics.pop("finite"):
            self._skipped = 0
            return
        self._skipped += 1
        words = ", ".join(f"{name} {value:.4g}" for name, value in step_metrics.items())
        stopping = self._policy == "stop"
        if self._skipped == 1:
            self._file = self._keeper.write(number, step_metrics, stopping)
        if stopping or self._skipped > self._bound:
            raise FloatingPointError(
                f"step {number} is not finite ({words}); {self._skipped} in a row. "
                "Lower config.optim.lr, set config.optim.clip, or "
                f"config.nonfinite.policy=skip. g2sd replay {self._file} tells where "
                "it comes from."
            )
        parallel.print_once(
            f"step {number} is not finite ({words}): not applied; {self._file}"
        )
