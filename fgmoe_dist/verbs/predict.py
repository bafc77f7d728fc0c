"""Predict every task on photographs: raw predictions and one picture panel per image.

Writes OUTPUT/<task>/<id>.png|npy at each image's own resolution, in the formats `fgmoe score` reads, and
OUTPUT/panels/<id>.png. The id is the file's name without its suffix.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fgmoe_dist.arguments import add_checkpoint, add_json
from fgmoe_dist.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--input", required=True, type=Path, metavar="PATH", help="an image file, or a folder of them")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where predictions and panels go")
    parser.add_argument("--no-panels", action="store_true", help="only the raw predictions")
    parser.add_argument("--skip-bad", action="store_true", help="go on past images that cannot be read, naming them")
    add_json(parser, "which files were written and which were skipped")


def run(args: argparse.Namespace) -> None:
    from fgmoe_dist.data.images import list_images, read_image

    images = list_images(args.input)
    if not args.skip_bad:
        read_image(next(iter(images.values())))  # a wrong file is named before the model is loaded
    _writable(args.output)

    import torch

    from fgmoe_dist.checkpoints.checkpoint import load_model
    from fgmoe_dist.drawing.panel import panel
    from fgmoe_dist.evaluation.predict import predict_image
    from fgmoe_dist.evaluation.predictions import write_predictions
    from fgmoe_dist.progress import track

    model, config, _ = load_model(args.checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    skipped = {}
    for image_id, path in track(images.items(), "predicting", len(images)):
        try:
            image_HWC = read_image(path)
        except UserError as error:
            if not args.skip_bad:
                raise
            skipped[str(path)] = str(error)
            continue
        predictions = predict_image(model, image_HWC, config.data.image_size)
        write_predictions(args.output, image_id, predictions)
        if not args.no_panels:
            picture = args.output / "panels" / f"{image_id}.png"
            panel(image_HWC, predictions, None, model.tasks, picture, caption=path.name)
    _report(args, list(images), skipped)


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be made ({error.strerror}); name another folder") from None


def _report(args: argparse.Namespace, ids: list[str], skipped: dict[str, str]) -> None:
    from fgmoe_dist.files import write_json

    for message in skipped.values():
        print(f"skipped: {message}")
    what = "predictions" if args.no_panels else "predictions and panels"
    print(f"{what} of {len(ids) - len(skipped)} images are in {args.output}")
    if args.json:
        write_json(args.json, {"output": str(args.output), "images": len(ids) - len(skipped), "skipped": skipped})
