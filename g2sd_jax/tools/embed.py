# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Features of pictures, in a file: `g2sd embed --workdir=DIR --out=FILE.npz`.

Every patch is seen, whatever the mask of the stage. `g2sd probe` judges such files.
"""

import importlib
import os
from collections.abc import Sequence

import jax
import numpy as np

from g2sd_jax import cli, core
from g2sd_jax.data import order, source
from g2sd_jax.models import features
from g2sd_jax.ops import augment
from g2sd_jax.tools import finished, predict

SPLITS = ("train", "eval")


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("embed")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="instead of a split")
    parser.add_argument("--out", required=True, help="FILE.npz or FILE.parquet")
    parser.add_argument("--split", default="eval", help="train or eval: the config's")
    parser.add_argument(
        "--layer", default="last", help="a block, counted from 1, or last (after norms)"
    )
    parser.add_argument(
        "--token", default="", help="class or patches (their mean); default: the head's"
    )
    args = finished.parse(parser, argv)
    write = writer(args.out)
    found = embed(args.finished, args.images, args.split, args.layer, args.token)
    write(args.out, found)
    shape = found["features"].shape
    print(f"{args.out}: {shape[0]} x {shape[1]} features, {found['what']}")
    return 0


def embed(model: finished.Finished, images=(), split="eval", layer="last", token=""):
    """A dict of `features` [N, D] float32, `index`, perhaps `label`, and `what`.

    Args:
        model: whose encoder sees.
        images: files; () takes a split of the config's data.
        split: train or eval, that is `config.data.train_split` or `eval_split`.
        layer: last, or a block counted from 1.
        token: class, patches, or "" for the one the model was made for.
    """
    encode, what = encoder(model, layer, token)
    variables = jax.device_put(model.variables)
    ask = jax.jit(
        lambda variables, batch: encode(
            variables, augment.prepare(batch, {}, model.spec)["image"]
        )
    )
    rows = []
    for batch in pictures_of(model, images, split):
        valid = batch.pop("valid")
        label = batch.pop("label", None)
        found = {"features": ask(variables, batch), "index": batch["index"]}
        found |= {"label": label} if label is not None else {}
        rows.append({key: np.asarray(value)[valid] for key, value in found.items()})
    joined = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    names = model.describe.get("class_names") or ()
    return dict(
        joined,
        what=f"{what} of {model.source}",
        files=np.array(images, str),
        class_names=np.array(names, str),
    )


def pictures_of(model: finished.Finished, images, split: str):
    """Batches of the files, or of the split in its own order."""
    if images:
        return (batch for batch, _ in predict.batches(model, images))
    core.one_of("--split", split, SPLITS)
    config = model.config
    dataset = source.load(config, config.data[f"{split}_split"], evaluate=True)
    return (dict(batch) for batch, _ in order.eval_batches(dataset, config.batch))


def encoder(model: finished.Finished, layer: str, token: str):
    """(variables, image) -> [B, D], and in words what that is."""
    module = model.model()
    token = token or features.own_token(module)
    core.one_of("--token", token, features.TOKENS)
    what = {"class": "class token", "patches": "mean of the patches"}[token]
    if layer == "last":
        encode = lambda variables, image: features.last(module, variables, image, token)
        return encode, f"{what}, end of the encoder"
    if not (layer.isdigit() and 1 <= int(layer) <= module.depth):
        raise ValueError(
            f"--layer={layer!r}: this encoder has blocks 1 to {module.depth}; or last."
        )
    at = int(layer) - 1
    encode = lambda variables, image: features.blocks(module, variables, image, token)[
        at
    ]
    return encode, f"{what}, after block {layer}"


def writer(path: str):
    """(path, found) -> None for the file's ending."""
    return core.lookup("--out: the ending", os.path.splitext(path)[1], WRITERS)


def write_npz(path: str, found) -> None:
    np.savez(path, **found)


def write_parquet(path: str, found) -> None:
    """One row per picture; features as a list of float32."""
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(
            f"--out={path}: parquet takes pyarrow: pip install 'g2sd_jax[parquet]', or "
            "write an .npz."
        ) from None
    columns = {key: found[key] for key in ("index", "label") if key in found}
    columns["features"] = list(found["features"])
    if len(found["files"]):
        columns["file"] = found["files"]
    names = "\n".join(found["class_names"])
    meta = {"what": found["what"], "class_names": names}
    parquet.write_table(arrow.table(columns).replace_schema_metadata(meta), path)


WRITERS = {".npz": write_npz, ".parquet": write_parquet}
