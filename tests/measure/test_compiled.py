# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What a plan reads of a compiled program, and the plans of tiny stages."""

import copy
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
import slow
import step_costs
from g2sd_jax import parallel, stages, step
from g2sd_jax.measure import (
    budget,
    collectives,
    compiled,
    flops,
    hlo,
    hlo_groups,
    hlo_work,
    plan_text,
    shapes,
    step_speed,
    topology,
)
from g2sd_jax.tools import plan

# What compilers make is measured.
pytestmark = pytest.mark.usefixtures("optimised")

# A loop of three rounds, as a TPU's compiler writes it: the bound stands in the
# condition, S(1) is memory on the chip, one gather is spread over three fusions.
TEXT = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%piece (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=9, \
replica_groups=[2,4]<=[8], dimensions={0}
}

%rest (p: bf16[4,8], q: bf16[16,8]) -> bf16[16,8] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  %q = bf16[16,8]{1,0} parameter(1)
  ROOT %gather.2 = bf16[16,8]{1,0} all-gather(%p.1), channel_id=9, \
replica_groups=[2,4]<=[8], dimensions={0}
}

%slice_and_scale (stack: f32[3,64,32], at: s32[]) -> f32[64,32] {
  %stack = f32[3,64,32]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,64,32]{2,1,0} dynamic-slice(%stack, %at, %zero, %zero), \
dynamic_slice_sizes={1,64,32}
  ROOT %flat = f32[64,32]{1,0:S(1)} bitcast(%one)
}

%body (state: (s32[], f32[64,32], f32[3,64,32])) -> (s32[], f32[64,32], f32[3,64,32]) {
  %state = (s32[], f32[64,32]{1,0}, f32[3,64,32]{2,1,0}) parameter(0)
  %round = s32[] get-tuple-element(%state), index=0
  %x = f32[64,32]{1,0:S(1)} get-tuple-element(%state), index=1
  %w = f32[3,64,32]{2,1,0} get-tuple-element(%state), index=2
  %block = f32[64,32]{1,0:S(1)} fusion(%w, %round), kind=kLoop, calls=%slice_and_scale
  %product = f32[64,64]{1,0:S(1)} dot(%x, %block), lhs_contracting_dims={1}, \
rhs_contracting_dims={1}
  %shared = (f32[64,32]{1,0:S(1)}, bf16[5]{0}) all-reduce(%block, %x), channel_id=2, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %first = f32[64,32]{1,0:S(1)} get-tuple-element(%shared), index=0
  %more = bf16[16,8]{1,0} fusion(%x, %x), kind=kCustom, calls=%rest
  %next = s32[] add(%round, %round)
  ROOT %out = (s32[], f32[64,32]{1,0}, f32[3,64,32]{2,1,0}) tuple(%next, %first, %w)
}

%condition (state.1: (s32[], f32[64,32], f32[3,64,32])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
  %state.1 = (s32[], f32[64,32]{1,0}, f32[3,64,32]{2,1,0}) parameter(0)
  %round.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%round.1, %bound), direction=LT
}

ENTRY %main (begin: (s32[], f32[64,32], f32[3,64,32]), g: bf16[4,8]) -> bf16[16,8] {
  %begin = (s32[], f32[64,32]{1,0}, f32[3,64,32]{2,1,0}) parameter(0)
  %g = bf16[4,8]{1,0} parameter(1)
  %started = bf16[16,8]{1,0} fusion(%g), kind=kCustom, calls=%piece
  %loop = (s32[], f32[64,32]{1,0}, f32[3,64,32]{2,1,0}) while(%begin), \
condition=%condition, body=%body
  %begun = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%g), channel_id=3, \
replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}, dimensions={0}
  %ended = bf16[16,8]{1,0} all-gather-done(%begun)
  ROOT %last = bf16[16,8]{1,0} fusion(%g, %started), kind=kCustom, calls=%rest
}
"""


def test_loops_count_as_often_as_they_run():
    program = hlo.read(TEXT)
    assert program.times["body"] == 3
    done = hlo_work.measure(program)
    assert done.flops == 3 * 2 * 64 * 64 * 32
    # A round reads one slice of the stack, not the stack, and an index; what it makes
    # stays on the chip, but for bf16[5] of the all-reduce, a piece of a gather, and the
    # counter's sum. Each of three operations outside reads a part and writes the whole.
    round_bytes = 64 * 32 * 4 + 4 + 10 + 256 + 3 * 4
    assert done.memory == 3 * round_bytes + 3 * (64 + 256)
    assert done.all > 3 * (64 * 64 * 4) + done.memory


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("bf16[64,197,3]{2,1,0:T(8,128)(2,1)}", (64, 200, 128)),
        ("bf16[64,197,3]{1,2,0:T(4,128)(2,1)S(1)}", (64, 256, 4)),
        ("f32[12]{0:T(128)}", (128,)),
        ("f32[]{:T(128)}", ()),
        ("f32[5,3]{1,0}", (5, 3)),
    ],
)
def test_arrays_lie_in_whole_tiles(text, sides):
    (shape,) = hlo.shapes_of(text)
    assert shape.padded_sides == sides


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("jit(step)/optimiser/mul", "optimiser"),
        ("jit(step)/jvp()/augment/gather", "augmentation"),
        ("jvp()/teacher/Mae/while/body/blocks/attn/exp", "teacher: attention"),
        ("jit(step)/jvp(teacher)/Mae/blocks/attn/exp", "teacher: attention"),
        (
            "jvp(Mae)/_stack/while/body/jit(dynamic_update_index_in_dim)/dynamic_slice",
            "stacks of blocks, forward",
        ),
        (
            "jvp(Mae)/while/body/blocks/mlp/fc1/dot_general",
            "products of blocks, forward",
        ),
        (
            "transpose(jvp(Mae))/while/body/decoder_blocks/attn/exp",
            "attention, backward",
        ),
        (
            "transpose(jvp(Mae))/blocks/checkpoint/rematted_computation/norm1/mul",
            "norms of blocks, recomputed",
        ),
        (
            "transpose(jvp(Mae))/while/body/checkpoint/blocks/mlp/fc1/dot_general",
            "products of blocks, backward",
        ),
        ("jvp(Mae)/norm/mul", "the rest, forward"),
        ("", "made by the compiler"),
    ],
)
def test_groups_of_operations(path, group):
    assert hlo_groups.group_of(path) == group


def test_groups_add_up_to_what_is_moved():
    named = TEXT.replace("dimensions={0}", 'metadata={op_name="jit(step)/optimiser/x"}')
    program = hlo.read(named)
    groups = hlo_groups.bytes_by_group(program)
    assert sum(groups.values()) == hlo_work.measure(program).memory
    # The two ends of a gather, and the gather in one piece.
    assert set(groups) == {"optimiser", "made by the compiler"}


def test_messages_to_the_host_are_counted():
    assert hlo_work.transfers(hlo.read(TEXT)) == 0
    called = 'custom-call(%x, %block), custom_call_target="xla_python_cpu_callback"'
    talking = TEXT.replace("dot(%x, %block)", called)
    assert hlo_work.transfers(hlo.read(talking)) == 3


def test_collectives_of_a_program():
    found = collectives.find(hlo.read(TEXT), devices=8)
    kinds = collectives.summary(found)["kinds"]
    assert kinds["all-reduce"] == dict(
        count=3, bytes=3 * (64 * 32 * 4 + 10), elements=3 * (64 * 32 + 5)
    )
    # One with two ends, one in three pieces, of which one is in the loop.
    assert kinds["all-gather"] == dict(count=2, bytes=2 * 256, elements=2 * 128)
    assert {each.group for each in found} == {4}
    sent = 2 * 3 / 4 * 3 * (64 * 32 * 4 + 10) + 3 / 4 * 2 * 256
    assert collectives.summary(found)["sent_per_device"] == pytest.approx(sent)


@pytest.mark.parametrize(
    "known, changed",
    [("constant(3)", "parameter(1)"), ("direction=LT", "direction=NE")],
)
def test_a_loop_of_unknown_length_counts_once_and_is_named(known, changed):
    program = hlo.read(TEXT.replace(known, changed))
    assert program.times["body"] == 1
    assert program.unknown == ("loop",)
    assert hlo.read(TEXT).unknown == ()


@pytest.mark.parametrize(
    "side, kernel, out, window",
    [
        (7, 3, 5, dict(stride=1, low=0, spread=1, apart=1)),
        (7, 3, 7, dict(stride=1, low=1, spread=1, apart=1)),
        (6, 6, 6, dict(stride=5, low=0, spread=6, apart=1)),  # Six products apart.
        (9, 3, 3, dict(stride=2, low=0, spread=1, apart=2)),
    ],
)
def test_positions_of_a_convolution(side, kernel, out, window):
    spread = np.zeros((side - 1) * window["spread"] + 1)
    spread[:: window["spread"]] = 1
    met = 0
    for at in range(out):
        for tap in range(kernel):
            where = at * window["stride"] - window["low"] + tap * window["apart"]
            met += 0 <= where < len(spread) and spread[where]
    assert hlo_work.touched(side, kernel, out, window) == met


def test_scanned_and_unrolled_programs_cost_the_same():
    def step(unroll, x, w):
        body = lambda x, w: (jnp.tanh(x @ w), None)
        return jax.lax.scan(body, x, w, unroll=unroll)[0].sum()

    given = jnp.zeros((16, 32)), jnp.zeros((5, 32, 32))
    counted = {}
    for unroll in (1, 5):
        gradient = jax.grad(lambda *x, n=unroll: step(n, *x), argnums=1)
        compiled = jax.jit(gradient).lower(*given).compile()
        counted[unroll] = hlo_work.measure(hlo.read(compiled.as_text())).flops
    product = 2 * 16 * 32 * 32
    assert counted[1] == flops.matmul(gradient, *given) == 15 * product
    # Unrolled, the compiler sees that nobody asks for the gradient of the input.
    assert counted[5] == 14 * product


@pytest.fixture(scope="module")
def planned():
    """(stage, batch, fsdp) -> its plan here; each is compiled once."""

    return functools.cache(step_costs.plan)


@pytest.mark.slow  # Four programs; what a pod sends is in the layouts' tests, too.
@pytest.mark.parametrize("fsdp", [1, 4])
def test_what_is_sent_does_not_grow_with_the_batch(planned, fsdp):
    few, many = (planned("generic_distill", batch, fsdp) for batch in (16, 32))
    assert few["collectives"] == many["collectives"]
    kinds = few["collectives"]["kinds"]
    if fsdp == 1:
        # The gradient, and a few scalars.
        assert set(kinds) == {"all-reduce"}
        extra = kinds["all-reduce"]["elements"] - few["parameters"]
        assert 0 < extra < 10
    else:
        assert "all-gather" in kinds
        assert "all-to-all" not in kinds


def test_memory_is_told_by_what_holds_it(planned):
    whole, split = (planned("generic_distill", fsdp=fsdp) for fsdp in (1, 4))
    held = whole["memory"]["bytes_per_device"]
    assert held["parameters"] == 4 * whole["parameters"]
    # Two moments, and a count or two.
    assert 0 <= held["optimiser"] - 2 * held["parameters"] < 64
    assert held["teacher"] > 0
    assert whole["memory"]["total"] == sum(held.values())
    less = split["memory"]["bytes_per_device"]
    for name in ("parameters", "optimiser", "teacher"):
        assert held[name] / 4 <= less[name] < held[name] / 3
    assert less["batch"] == held["batch"]


@pytest.mark.slow  # A program more; canvases are those of `test_step_speed`, too.
def test_pictures_of_files_are_planned_on_their_canvas(planned):
    held = planned("generic_distill")["memory"]["bytes_per_device"]
    config = shapes.without_weights(runs.small("generic_distill"))
    config.data.source, config.augment.crop_area = "folder", ()
    figures = compiled.plan(config, topology.here(config), evaluate=True)
    sent = figures["batch_shapes"]
    assert sent["image"] == [16, 28, 28, 3] and sent["crop"] == [16, 4]
    found = figures["memory"]["bytes_per_device"]
    # Two examples on each of eight devices: wider pictures, and four floats.
    assert found["batch"] - held["batch"] == 2 * (3 * (28**2 - 16**2) + 16)
    # Two are ready, and the step before keeps its own.
    assert found["waiting"] == 3 * found["batch"]


@pytest.mark.parametrize(
    "stage", slow.parameters(["finetune", "linprobe"], quick=["linprobe"])
)
def test_evaluation_is_planned_as_well(planned, stage):
    figures = planned(stage, evaluate=True)
    assert figures["evaluation"]["eval"]["fits"]
    assert figures["evaluation"]["eval"]["total"] > 0


def test_compiled_products_are_those_asked_for(planned):
    count = planned("generic_distill")["flops_per_image"]
    # The compiler sums a few axes as products, too.
    assert count["asked"] <= count["compiled"] < 1.05 * count["asked"]


def test_products_of_a_detector_are_counted_in_whole_groups():
    """Per picture, whatever number of pictures shares a divisor of the loss."""
    counts = []
    for group in (2, 4):
        config = shapes.without_weights(runs.small("specific_det"))
        config.loss.group = group
        mesh = parallel.make_mesh(config.mesh)
        stage = stages.build(config)
        state = step.build(config, stage, mesh).state
        frozen = shapes.of_frozen(stage, config, mesh)
        counts.append(compiled.asked(config, state, frozen))
    # Position tables are resized once for all pictures.
    assert counts[0] == pytest.approx(counts[1], rel=0.01) and counts[0] > 1e6


@pytest.mark.slow  # A program more; the text is `test_plan_text`'s.
def test_the_command_ends_with_a_verdict(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(step_speed, "SIDE", {"cpu": 64})
    recipe = runs.small("pretrain")
    monkeypatch.setattr(plan.recipes, "load", lambda *_: recipe)
    out = tmp_path / "plan.json"
    words = ["--config=pretrain", f"--out={out}", "--no-eval", "--sweep=1,3:1,3"]
    assert plan.main([*words, "--efficiency=0.25", "--price=2", "--hours=1"]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-1].startswith("fits: yes, ")
    figures = json.loads(out.read_text())
    recipe = figures["recipe"]
    assert recipe["steps"] == 6
    seconds = 6 * figures["roofline"]["step_s"] / 0.25
    assert recipe["hours"] == pytest.approx(seconds / 3600)
    assert recipe["cost"] == pytest.approx(2 * 8 * seconds / 3600)
    assert recipe["share_done"] == 1.0
    assert "measured here" in figures["sources"]["roofline"]
    one, three, odd = figures["sweep"][:3]
    # 16 images: two micro-batches of 8; three per device make 24 at once.
    assert [row["accumulate"] for row in (one, three)] == [2, 1]
    assert [row["batch"] for row in (one, three)] == [16, 24]
    assert one["fits"] and three["images_per_s"] > 0
    assert "does not fit 8 devices" in odd["refusal"]


@pytest.mark.parametrize(
    "words, said",
    [
        ("--efficiency=2", "--efficiency=2.0 is a share"),
        ("--price=-1", "--price=-1.0 must be more than 0"),
        ("--sweep=a:b", "write images per device"),
        ("--sweep=0", "write images per device"),
        ("--topology=v9:2x2", "--topology='v9' is not known; did you mean"),
        ("--input=setup.cfg", "--input=setup.cfg is no file that `g2sd bench --input"),
    ],
)
def test_bad_input_is_one_line(words, said):
    with pytest.raises(ValueError) as error:
        plan.main(["--config=pretrain:smoke", words])
    assert said in str(error.value)


def test_the_need_of_input_is_compared_with_what_a_host_measured(tmp_path, planned):
    file = tmp_path / "input.json"
    measured = dict(cores=2, images_per_s=2500.0, python_images_per_s=70e3, more=1)
    file.write_text(json.dumps([measured]))
    figures = budget.host_input(str(file), 21_996.0)
    assert figures["cores_wanted"] == 18  # 17.6
    plan_figures = copy.deepcopy(planned("generic_distill"))
    plan_figures["recipe"] = dict(steps=1, epochs=1.0, input=figures)
    said = plan_text.describe(plan_figures)
    assert "each host wants 21996, which 18 such cores would bring" in said
    assert "one process hands over" not in said
    plan_figures["recipe"]["input"] = budget.host_input(str(file), 70_001.0)
    assert "one process hands over from any number of cores, 70000" in (
        plan_text.describe(plan_figures)
    )


def test_what_does_not_fit_says_what_to_change(planned):
    figures = copy.deepcopy(planned("generic_distill"))
    memory = figures["memory"]
    assert plan_text.verdict(figures).startswith("fits: yes")
    memory |= dict(limit=memory["total"] - 1000, spare=-1000, fits=False)
    said = plan_text.verdict(figures)
    assert said.startswith("fits: no")
    assert "1 kB too much" in said
    assert "--config.mesh.fsdp=2" in said or "--config.remat=full" in said
    refused = "Ran out of memory on HBM, HLO temporaries (34.50G) exceeds (15.75G)"
    assert compiled.refused_bytes(refused) == int(34.5 * 2**30)
    assert compiled.refused_bytes("no such words") == 0


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; pip install 'g2sd_jax[tpu]'",
)


@needs_libtpu
@pytest.mark.slow
def test_plan_for_a_tpu_that_is_not_here():
    found = topology.named("v4:2x2x2")
    # One device per chip, four chips a host.
    assert (len(found.devices), found.hosts) == (8, 2)
    config = runs.small("pretrain", compute_dtype="bfloat16")
    figures = compiled.plan(shapes.without_weights(config), found, evaluate=False)
    assert figures["memory"]["fits"]
    extra = figures["collectives"]["kinds"]["all-reduce"]["elements"]
    assert 0 < extra - figures["parameters"] < 10
    count = figures["flops_per_image"]
    assert count["asked"] < count["compiled"] < 1.5 * count["asked"]
    assert 0 < figures["bytes_per_image"]["memory"] <= figures["bytes_per_image"]["all"]
    assert set(figures["roofline"]["seconds"]) == {"compute", "memory", "collectives"}


@needs_libtpu
@pytest.mark.slow
def test_a_detector_is_planned_and_gathers_nothing():
    config = runs.small("specific_det", compute_dtype="bfloat16")
    config = shapes.without_weights(config)
    figures = compiled.plan(config, topology.named("v5e:2x2"), evaluate=False)
    assert figures["memory"]["fits"]
    assert set(figures["collectives"]["kinds"]) == {"all-reduce"}
    count = figures["flops_per_image"]
    assert count["asked"] < count["compiled"] < 1.5 * count["asked"]


@needs_libtpu
def test_a_topology_that_does_not_exist_is_one_line():
    with pytest.raises(ValueError, match="--topology='v5e:3x5'"):
        topology.named("v5e:3x5")
