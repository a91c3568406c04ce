# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Features of pictures, in a file: `g2sd embed --workdir=DIR --out=FILE.npz`.

No patch is hidden, whatever the mask of the stage. `g2sd probe` judges such files.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from g2sd_jax import command, errors, finished, kinds
from g2sd_jax.data import order, source
from g2sd_jax.models import features
from g2sd_jax.ops import augment

SPLITS = ("train", "eval")


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("embed")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="instead of a split")
    parser.add_argument(
        "--out",
        type=command.output_file,
        required=True,
        help="FILE.npz or FILE.parquet",
    )
    parser.add_argument("--split", default="eval", help="train or eval: the config's")
    parser.add_argument(
        "--layer", default="last", help="a block, counted from 1, or last (after norms)"
    )
    parser.add_argument(
        "--token", default="", help="class or patches (their mean); default: the head's"
    )
    args = finished.parse(parser, argv)
    ending = os.path.splitext(args.out)[1]
    write = errors.lookup("--out: the ending", ending, WRITERS)
    embedding = embed(args.finished, args.images, args.split, args.layer, args.token)
    write(args.out, embedding)
    count, width = embedding["features"].shape
    print(f"{args.out}: {count} x {width} features, {embedding['what']}")
    return 0


def embed(
    model: kinds.Finished,
    images: Sequence[str] = (),
    split: str = "eval",
    layer: str = "last",
    token: str = "",
) -> dict:
    """Computes the features of pictures.

    Args:
        model: whose encoder is used.
        images: files; () takes a split of the config's data.
        split: train or eval, that is `config.data.train_split` or `eval_split`.
        layer: last, or a block counted from 1.
        token: class, patches, or "" for the one the model was made for.
    Returns:
        A dict of `features` [N, D] float32, `index` [N], `label` [N] of a labelled
        split, `what` (a description), `files` and `class_names`.
    """
    encode, what = encoder(model, layer, token)
    variables = jax.device_put(model.variables)
    apply = jax.jit(
        lambda variables, batch: encode(
            variables, augment.prepare(batch, {}, model.spec)["image"]
        )
    )
    rows = []
    for batch in batches_of(model, images, split):
        valid = batch.pop("valid")
        label = batch.pop("label", None)
        row = {"features": apply(variables, batch), "index": batch["index"]}
        row |= {"label": label} if label is not None else {}
        rows.append({key: np.asarray(value)[valid] for key, value in row.items()})
    joined = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    names = model.describe.get("class_names") or ()
    return dict(
        joined,
        what=f"{what} of {model.source}",
        files=np.array(images, str),
        class_names=np.array(names, str),
    )


def batches_of(
    model: kinds.Finished, images: Sequence[str], split: str
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the files, or of the split in its own order."""
    if images:
        return (batch for batch, _ in model.batches(images))
    errors.one_of("--split", split, SPLITS)
    config = model.config
    dataset = source.load(config, config.data[f"{split}_split"], evaluate=True)
    return (dict(batch) for batch, _ in order.eval_batches(dataset, config.batch))


def encoder(
    model: kinds.Finished, layer: str, token: str
) -> tuple[Callable[[dict, jax.Array], jax.Array], str]:
    """(variables, image [B, H, W, C]) -> features [B, D], and their description.

    Args:
        model: whose encoder is used.
        layer: last, or a block counted from 1.
        token: class, patches, or "" for the one the model was made for.
    """
    module = model.model()
    token = token or features.default_token(module)
    errors.one_of("--token", token, features.TOKENS)
    what = {"class": "class token", "patches": "mean of the patches"}[token]
    if layer == "last":
        last = lambda variables, image: features.last(module, variables, image, token)
        return last, f"{what}, end of the encoder"
    if not (layer.isdigit() and 1 <= int(layer) <= module.depth):
        raise ValueError(
            f"--layer={layer!r}: this encoder has blocks 1 to {module.depth}; or last."
        )

    def block(variables, image):
        return features.blocks(module, variables, image, token)[int(layer) - 1]

    return block, f"{what}, after block {layer}"


def write_npz(path: str, embedding: Mapping) -> None:
    """Writes every entry under its name."""
    np.savez(path, **embedding)


def write_parquet(path: str, embedding: Mapping) -> None:
    """Writes one row per picture; features as a list of float32."""
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(
            f"--out={path}: parquet takes pyarrow: pip install 'g2sd_jax[parquet]', or "
            "write an .npz."
        ) from None
    columns = {key: embedding[key] for key in ("index", "label") if key in embedding}
    columns["features"] = list(embedding["features"])
    if len(embedding["files"]):
        columns["file"] = embedding["files"]
    names = "\n".join(embedding["class_names"])
    meta = {"what": embedding["what"], "class_names": names}
    parquet.write_table(arrow.table(columns).replace_schema_metadata(meta), path)


WRITERS = {".npz": write_npz, ".parquet": write_parquet}
