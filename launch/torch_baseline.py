# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The papers' training steps in PyTorch, to compare speeds with (`compare_torch.py`).

Own code from the method's description; weights, under the names of the published
checkpoints, come from our stages.
"""

import contextlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
import torch_networks
from ml_collections import ConfigDict
from torch import nn
from torch_networks import Form, Mae, Masking, Vit

from g2sd_jax import optim
from g2sd_jax.models import mae, vit


def standardise(x: torch.Tensor) -> torch.Tensor:
    """Normalises the last axis like a layer norm without scale or bias."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def pixel_loss(
    predicted: torch.Tensor,
    image: torch.Tensor,
    masking: Masking,
    patch: int,
    target: str,
) -> torch.Tensor:
    """MAE's: mean squared error of the hidden patches, raw or each by its own scale."""
    batch, channels = image.shape[:2]
    vectors = torch_networks.patchify(image, patch)
    by_channel = vectors.view(batch, -1, channels, patch**2)
    truth = by_channel.transpose(2, 3).flatten(2)  # Colours vary fastest.
    if target == "normalised":
        mean, variance = truth.mean(-1, keepdim=True), truth.var(-1, keepdim=True)
        truth = (truth - mean) / (variance + 1e-6) ** 0.5
    error = ((predicted.float() - truth) ** 2).mean(dim=-1)  # [B, N]
    return (error * masking.removed).sum() / masking.removed.sum()


class Pretrain(nn.Module):
    """MAE."""

    def __init__(self, config: ConfigDict, form: Form) -> None:
        super().__init__()
        # Plain numbers: what torch.compile traces should not read a config.
        self.ratio, self.pixels = config.mask_ratio, config.target
        self.student, self.teacher = Mae(mae.autoencoder(config.model), form), None

    def forward(self, image, noise, target):
        student = self.student
        masking = torch_networks.mask(noise, self.ratio)
        encoded = student.encode(image, masking)
        decoded = student.decode(student.norm(encoded.last), masking)
        predicted = student.pixels(decoded)
        return pixel_loss(predicted, image, masking, student.patch, self.pixels)


class GenericDistill(nn.Module):
    """Stage 1 of G2SD. The authors also keep every q, k and v, and weigh by 0 a loss
    of encoder features."""

    def __init__(self, config: ConfigDict, form: Form) -> None:
        super().__init__()
        self.ratio, self.published = config.mask_ratio, form.published
        self.block, self.beta = config.distill.teacher_block, config.distill.beta
        teacher = mae.autoencoder(config.teacher.model)
        student = mae.autoencoder(config.model).clone(
            pixel_head=form.published,
            feature_width=teacher.dec_width,
            encoder_feature_width=teacher.width if form.published else 0,
        )
        self.student = Mae(student, form, keep=form.published)
        self.teacher = Mae(teacher, form, keep=form.published)

    def forward(self, image, noise, target):
        student, teacher = self.student, self.teacher
        masking = torch_networks.mask(noise, self.ratio)
        with torch.no_grad():
            wanted = teacher.encode(image, masking)
            latent = teacher.norm(wanted.last)
            hidden = teacher.decode(latent, masking, self.block)
            goal = standardise(hidden)
        encoded = student.encode(image, masking)
        latent = student.norm(encoded.last)
        decoded = student.decode(latent, masking)
        predicted = student.decoderfeature_pred(decoded)
        loss = F.smooth_l1_loss(predicted.float(), goal.float(), beta=self.beta)
        if not self.published:
            return loss
        predicted = student.encoderfeature_pred(latent).float()
        goal = standardise(wanted.last).float()
        return loss + 0.0 * F.smooth_l1_loss(predicted, goal, beta=self.beta)


class DmaeDistill(nn.Module):
    """DMAE. The authors run all of the teacher, its decoder included."""

    def __init__(self, config: ConfigDict, form: Form) -> None:
        super().__init__()
        self.ratio, self.pixels = config.mask_ratio, config.target
        self.published, self.weight = form.published, config.distill.weight
        self.blocks = tuple(config.distill.student_blocks)
        self.teacher_blocks = tuple(config.distill.teacher_blocks)
        teacher = mae.autoencoder(config.teacher.model)
        student = mae.autoencoder(
            config.model,
            align_blocks=self.blocks,
            align_width=teacher.width,
        )
        self.student, self.teacher = Mae(student, form), Mae(teacher, form)

    def forward(self, image, noise, target):
        student, teacher = self.student, self.teacher
        masking = torch_networks.mask(noise, self.ratio)
        with torch.no_grad():
            needed = None if self.published else 1 + max(self.teacher_blocks)
            wanted = teacher.encode(image, masking, needed)
            if self.published:
                latent = teacher.norm(wanted.last)
                teacher.pixels(teacher.decode(latent, masking))
        encoded = student.encode(image, masking)
        latent = student.norm(encoded.last)
        decoded = student.decode(latent, masking)
        predicted = student.pixels(decoded)
        loss = pixel_loss(predicted, image, masking, student.patch, self.pixels)
        heads = student.aligned_feature_projection_heads
        blocks = zip(heads, self.blocks, self.teacher_blocks, strict=True)
        for head, mine, theirs in blocks:
            feature = F.normalize(head(encoded.taps[mine]).float(), dim=-1)
            goal = F.normalize(wanted.taps[theirs].float(), dim=-1)
            loss = loss + self.weight * (feature - goal).abs().mean()
        return loss


class SpecificCls(nn.Module):
    """Stage 2 of G2SD. The authors' teacher computes in float32."""

    def __init__(self, config: ConfigDict, form: Form) -> None:
        super().__init__()
        self.published, self.weight = form.published, config.distill.weight
        classes = config.data.classes
        self.student = Vit(vit.classifier(config.model, classes), form)
        self.teacher = Vit(vit.classifier(config.teacher.model, classes), form)

    def forward(self, image, noise, target):
        precision = contextlib.nullcontext()
        if self.published:
            precision = torch.autocast(image.device.type, enabled=False)
        with torch.no_grad(), precision:
            answers, _ = self.teacher(image)
        logits, dist_logits = self.student(image)
        loss = F.cross_entropy(logits.float(), target)
        hard = F.cross_entropy(dist_logits.float(), answers.argmax(dim=-1))
        return (1 - self.weight) * loss + self.weight * hard


STAGES: dict[str, Callable[[ConfigDict, Form], nn.Module]] = {
    "pretrain": Pretrain,
    "generic_distill": GenericDistill,
    "dmae_distill": DmaeDistill,
    "specific_cls": SpecificCls,
}


class Trainer:
    """A stage's network and optimiser on a device: one call of `step` is one step."""

    def __init__(
        self,
        config: ConfigDict,
        form: Form,
        device: str,
        student: Mapping[str, np.ndarray],
        teacher: Mapping[str, np.ndarray],
    ) -> None:
        """Builds the step.

        Args:
            config: the recipe; `compute_dtype` decides whether autocast is on.
            form: of `torch_networks.FORMS`.
            device: cpu or cuda.
            student: trained weights by their published names.
            teacher: frozen weights; {} where the stage has none.
        """
        self.device = device
        half = config.compute_dtype != "float32"
        self.autocast = lambda: torch.autocast(device, form.half, enabled=half)
        self.network = STAGES[config.stage](config, form)
        load(self.network.student, student)
        if teacher:
            load(self.network.teacher, teacher)
            self.network.teacher.requires_grad_(False)
        self.network.to(device)
        if teacher and half and not form.published:
            self.network.teacher.to(form.half)
        trained = dict(self.network.student.named_parameters())
        self.optimiser = torch.optim.AdamW(
            groups(config.optim, trained),
            betas=(config.optim.b1, config.optim.b2),
            eps=config.optim.eps,
            fused=True if not form.published else None,
        )
        scaling = half and form.half == torch.float16 and device == "cuda"
        self.scaler = torch.amp.GradScaler(device, enabled=scaling)
        self.checks_every_step = form.published
        compile_parts(self.network, form.compiled)

    def step(
        self,
        image: torch.Tensor,
        noise: torch.Tensor,
        target: torch.Tensor | None,
        rate: float,
    ) -> torch.Tensor:
        """Makes one optimiser step.

        Args:
            image: [B, c, H, W] normalised.
            noise: [B, N] that chooses the mask.
            target: [B, C] soft labels, of a classifier.
            rate: the learning rate, before any group's scale.
        Returns:
            The loss before the step.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        with self.autocast():
            loss = self.network(image, noise, target)
        if self.checks_every_step and not np.isfinite(loss.item()):
            raise FloatingPointError("the baseline's loss is not finite")
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.detach()


def load(network: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Loads weights by name; only parts that no loss reads may stay as they are."""
    tensors = {name: torch.tensor(array) for name, array in weights.items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.startswith(torch_networks.UNREAD)]
    if missing or unexpected:
        raise ValueError(f"weights do not fit: missing {missing}, extra {unexpected}.")


def groups(config: ConfigDict, parameters: Mapping[str, nn.Parameter]) -> list[dict]:
    """Groups parameters by decay and scale of the rate, as our optimiser does."""
    by_hyper = {}
    for name, hyper in optim.hyper(config, list(parameters)).items():
        by_hyper.setdefault(hyper, []).append(parameters[name])
    return [
        dict(params=members, weight_decay=hyper.wd, scale=hyper.lr_scale)
        for hyper, members in by_hyper.items()
    ]


def compile_parts(network: nn.Module, parts: str) -> None:
    """Applies torch.compile to every block, to the network, or to nothing."""
    if parts == "model":
        network.compile(dynamic=False)
    elif parts == "blocks":
        for module in network.modules():
            if isinstance(module, torch_networks.Block):
                # Blocks of one shape share one program.
                module.compile(dynamic=False)
