"""Predict every task on photographs: raw predictions and one picture panel per image.

Writes OUTPUT/<task>/<id>.png|npy at each image's own resolution, in the formats `fgmoe score` reads, and
OUTPUT/panels/<id>.png. The id is the file's name without its suffix.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fgmoe_dist.arguments import add_checkpoint, add_json, add_output, check_outputs
from fgmoe_dist.errors import UserError, one_line
from fgmoe_dist.outputs import RESULTS, claim


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--input", required=True, type=Path, metavar="PATH", help="an image file, or a folder of them")
    add_output(parser, "--output", RESULTS, required=True, metavar="DIR", help="where predictions and panels go")
    parser.add_argument("--no-panels", action="store_true", help="only the raw predictions")
    parser.add_argument("--skip-bad", action="store_true", help="go on past images that cannot be read, naming them")
    add_json(parser, "which files were written and which were skipped")


def run(args: argparse.Namespace) -> None:
    from fgmoe_dist.data.images import list_images, read_image

    check_outputs(args)
    images = list_images(args.input)
    if not args.skip_bad:
        read_image(next(iter(images.values())))  # a wrong file is named before the model is loaded

    import torch

    from fgmoe_dist.checkpoints.checkpoint import load_model
    from fgmoe_dist.drawing.panel import panel
    from fgmoe_dist.evaluation.predict import predict_image
    from fgmoe_dist.evaluation.predictions import write_predictions
    from fgmoe_dist.progress import track

    model, config, _ = load_model(args.checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    _claim(args)
    skipped = {}
    for done, (image_id, path) in enumerate(track(images.items(), "predicting", len(images))):
        try:
            image_HWC = read_image(path)
        except UserError as error:
            if not args.skip_bad:
                raise UserError(
                    f"{error}; {done} of {len(images)} images are done and in {args.output}, --skip-bad goes past this"
                    f" one"
                ) from None
            skipped[str(path)] = str(error)
            continue
        predictions = predict_image(model, image_HWC, config.data.image_size)
        write_predictions(args.output, image_id, predictions)
        if not args.no_panels:
            picture = args.output / "panels" / f"{image_id}.png"
            panel(image_HWC, predictions, None, model.tasks, picture, caption=one_line(path.name))
    _report(args, list(images), skipped)


def _claim(args: argparse.Namespace) -> None:
    """Panels tell whose folder it is; without them a file does."""
    claim(args.output, "--output", RESULTS, mark=args.no_panels)
    if not args.no_panels:
        (args.output / "panels").mkdir(exist_ok=True)


def _report(args: argparse.Namespace, ids: list[str], skipped: dict[str, str]) -> None:
    from fgmoe_dist.files import write_json

    for message in skipped.values():
        print(f"skipped: {one_line(message)}")
    what = "predictions" if args.no_panels else "predictions and panels"
    print(f"{what} of {len(ids) - len(skipped)} images are in {args.output}")
    if args.json:
        write_json(args.json, {"output": str(args.output), "images": len(ids) - len(skipped), "skipped": skipped})
