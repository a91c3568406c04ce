# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Chains on own label maps and own objects, from a folder to their table."""

import jax
import numpy as np
import pytest

import coco_files
import files
import label_map_files
from g2sd_jax import cli, recipes, stages
from g2sd_jax.configs.chains import own
from g2sd_jax.tools import chain

FACTS = "pictures=60,classes=4,split=train+val,gflops=100.0"
CHAINS = {
    "maps": "images={split}/*,labels={split}annot/*",
    "coco": "images={split},annotations={split}.json,objects=7",
}
CPU, GPU = "side=300,device=cpu", "side=700,device=gpu"


def planned(name, *arguments, root="chain"):
    """{step: config} of a chain."""
    words = ",".join(("path=DIR", FACTS, CHAINS[name], *arguments))
    config = recipes.load(f"chains/{name}:{words}")
    assert "survey" not in config
    steps = chain.plan(config, str(root))
    return {step.name.split("/")[1]: step.config for step in steps}


def shapes(tree):
    """{path: shape} of all arrays."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_each_step_fits_the_ones_before(name, machine):
    configs = planned(name, machine)
    assert len(configs) == 8
    built = {}
    for step, config in configs.items():
        if step == "student_generic":  # It reads its teacher's size from a checkpoint.
            continue
        if "teacher" in config:
            config.teacher.checkpoint = "random:0"
        if "init_from" in config:
            config.init_from = ""
        config.data.train_examples = 60
        built[step] = stages.build(config)
    init = lambda step: jax.eval_shape(built[step].init, jax.random.key(0))
    teacher = shapes(init("teacher"))
    frozen = shapes(jax.eval_shape(built["g2sd"].frozen))
    assert len(frozen) > 20 and frozen.items() <= teacher.items()
    blocks = lambda step: sum("blocks" in path for path in shapes(init(step)))
    assert blocks("mae") == blocks("g2sd") > 0
    small = lambda step: sum(np.prod(s) for s in shapes(init(step)).values())
    assert small("mae") < small("teacher")
    # The masked stages see no labels, and the same splits.
    masked, tuned = configs["teacher_mae"].data, configs["teacher"].data
    assert (masked.source, masked.classes, masked.path) == ("folder", 0, "DIR")
    assert (masked.train_split, masked.eval_split) == ("train", "val")
    assert (tuned.source, tuned.classes, tuned.train_examples) == (name, 4, 60)


def test_windows_follow_the_pictures():
    side = lambda name, *more: planned(name, *more)["teacher"].model.image_size
    assert side("maps", CPU) == (96, 96) and side("maps", GPU) == (384, 384)
    assert side("coco", CPU) == (256, 256) and side("coco", GPU) == (512, 512)
    small = "side=80,device=cpu"
    assert side("maps", small) == side("coco", small) == (64, 64)
    assert side("maps", CPU, "image=128") == (128, 128)
    config = planned("maps", CPU)["g2sd"]
    assert config.augment.fit == config.inference.fit == (120, 480)
    tight = planned("maps", "side=100,device=cpu")["g2sd"]
    assert tight.augment.fit == (100, 400)
    assert planned("coco", GPU)["teacher"].model.pretrain_grid == (14, 14)


def test_ignored_labels_are_told_apart():
    ignored = lambda text: planned("maps", CPU, f"ignore={text}")["teacher"].data
    assert (ignored("0+11").ignore, ignored("0+11").reduce_zero_label) == ((11,), True)
    assert (ignored("7").ignore, ignored("7").reduce_zero_label) == ((7,), False)
    with pytest.raises(ValueError, match=r"with a \+ between them, such as 0\+11"):
        ignored("void")


ABOUT = "teacher_kind=encoder,teacher_width=96,teacher_depth=6,teacher_patch=14"
ABOUT += ",teacher_side=98,teacher_mean=0.5+0.5+0.5,teacher_std=0.5+0.5+0.5"


@pytest.mark.parametrize("name", CHAINS)
def test_a_teacher_that_is_there_is_only_tuned(name):
    configs = planned(name, CPU, "teacher=some/file", ABOUT, "teacher_heads=4")
    assert len(configs) == 7 and "teacher_mae" not in configs
    assert configs["teacher"].init_from == "some/file"
    assert configs["student_generic"].distill.target == "encoder"
    assert configs["teacher"].optim.lr < configs["mae"].optim.lr
    patches = {config.model.patch for config in configs.values()}
    assert patches == {16}  # Of which a pyramid can be made.
    assert {tuple(config.data.mean) for config in configs.values()} == {(0.5,) * 3}
    with pytest.raises(ValueError, match="do not say their number of attention heads"):
        planned(name, CPU, "teacher=some/file", ABOUT, "teacher_heads=-1")


def test_a_teacher_that_is_there_is_adapted_in_half_of_the_time():
    def lengths(*arguments):
        configs = planned(
            "maps", CPU, "teacher=f", ABOUT, "teacher_heads=4", *arguments
        )
        return [configs[step].total_epochs for step in ("teacher", "mae")]

    (longest, tuned), (shortest, few) = lengths("hours=9"), lengths("hours=0.05")
    assert longest == own.ADAPTED < tuned and 1.0 == shortest < few
    some, _ = lengths("hours=0.08")
    assert 1.0 < some < longest
    assert lengths("epochs=4") == [2.0, 2.0] and lengths("epochs=40") == [5.0, 20.0]


TINY = "student=32x2,teacher=48x2,image=64,batch=32,epochs=1,steps=2,rows=g2sd"


@pytest.mark.slow
def test_from_label_maps_to_the_table(tmp_path, capsys):
    contents = {}
    for i in range(40):
        pair = label_map_files.pair(f"p{i}", "x", i, (80, 100))
        contents |= {n.replace("/x/", "/"): data for n, data in pair.items()}
    root = files.write(tmp_path / "set", contents)
    table = run("maps", root, tmp_path / "runs", capsys)
    assert table[0][:2] == ["method", "mIoU"] and table[0][-2:] == ["mAcc", "aAcc"]


@pytest.mark.slow
def test_from_a_json_to_the_table(tmp_path, capsys):
    for split, count in (("train", 48), ("val", 8)):
        coco_files.write(tmp_path / "set", coco_files.content(count), split)
    table = run("coco", tmp_path / "set", tmp_path / "runs", capsys)
    assert table[0][:2] == ["method", "box AP"] and table[0][-1] == "mask AP"


def run(name, root, workdir, capsys):
    """Runs a chain; the cells of the table that it prints."""
    spec = f"chains/{name}:path={root},{TINY}"
    argv = [f"--config={spec}", f"--workdir={workdir}", "--config.progress=False"]
    assert cli.main(["chain", *argv]) == 0
    lines = [line for line in capsys.readouterr().out.split("\n") if line[:1] == "|"]
    table = [line.strip("| ").split(" | ") for line in lines]
    assert [line[0] for line in table[2:]] == ["teacher", "G2SD w/o S.D", "G2SD"]
    assert (workdir / "report.html").is_file()
    return table
