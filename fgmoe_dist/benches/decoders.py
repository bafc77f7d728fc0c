"""Every decoder and preset on the same images: parameters, operations, seconds and memory of a training step.

Takes the sections `decoder` and `experts` of every file in --presets, and every decoder that has none there, into the
surroundings of --config: encoder, tasks, image size, batch. Each is measured in a process of its own, as often as
--rounds says, in turn. With --markdown the tables go between the marks of docs/decoders.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgmoe_dist.arguments import add_config, add_output, count
from fgmoe_dist.errors import UserError

if TYPE_CHECKING:
    from fgmoe_dist.config import Config

BEGIN, END = "<!-- fgmoe bench decoders: from here -->", "<!-- to here -->"

# Settings that cannot go together, each with the section it is set in; every one is tried.
REFUSED: list[dict[str, Any]] = [
    {"decoder": {"kind": "mlore"}, "train": {"activation_checkpointing": True}},
    {"decoder": {"kind": "mlore", "top_k": 16}},
    {"decoder": {"kind": "invpt", "channels": 100}},
    {"decoder": {"kind": "interrogate", "gates": [["ff"]]}},
    {"decoder": {"kind": "dense", "size": "total"}, "experts": {"bank": "shared", "count": 5, "split": 1}},
    {"decoder": {"stride": 5}},
    {"experts": {"kind": "conv_lora"}},
    {"experts": {"kind": "conv_lora", "router": "image", "capacity_factor": 1.0}},
    {"experts": {"kind": "rank_one"}},
    {"experts": {"closed_share": 0.5}},
    {"experts": {"closed_share": 1.0, "bank": "shared", "count": 4, "split": 1}},
    {"experts": {"balance_losses": {"mutual_information": 0.1}}},
    {"experts": {"router": "expert", "capacity_factor": 1.0}},
    {"experts": {"noise_kind": "softplus"}},
    {"experts": {"shared_gate": "joint", "score": "sigmoid"}},
    {"experts": {"backend": "deepspeed", "noise": 1.0}},
    {"experts": {"backend": "fairscale"}},
    {"experts": {"kept": [[[0]]]}},
    {"parallel": {"ep_size": 3}},
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--presets", type=Path, default=Path("configs/decoders"), metavar="DIR", help="default configs/decoders"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="presets and decoders to measure (default all)")
    parser.add_argument("--steps", type=count, default=3, metavar="S", help="steps timed per process (default 3)")
    parser.add_argument("--rounds", type=count, default=1, metavar="R", help="processes of each (default 1)")
    add_output(parser, "--markdown", metavar="FILE", help="write the tables between its marks")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from fgmoe_dist.config import load_config
    from fgmoe_dist.files import write_atomically
    from fgmoe_dist.machine import processor, versions

    text = _marked(args.markdown) if args.markdown else None
    base = load_config(args.config, args.set)
    systems = dict(_systems(base, args.presets))
    if unknown := set(args.only or ()) - systems.keys():
        raise UserError(f"--only {' '.join(sorted(unknown))}: there is no such one; name some of {', '.join(systems)}")
    refused = list(_refused())
    chosen = {name: config for name, config in systems.items() if not args.only or name in args.only}
    found = {name: _sizes(config) for name, config in chosen.items()}
    for _ in range(args.rounds):
        for name, config in chosen.items():
            _measure(config, args.steps, found[name])
            print(f"  {name}: {found[name]['seconds'][-1]:.2f} s, {found[name]['gib'][-1]:.2f} GiB", flush=True)
    result = {
        "config": args.config, "set": args.set, "image_size": list(base.data.image_size), "tasks": list(base.tasks),
        "encoder": base.encoder.name, "images": base.train.micro_batch_size, "machine": processor(),
        "versions": versions("torch"), "systems": found, "refused": refused,
    }  # fmt: skip
    table = to_markdown(result)
    print(table)
    if text is not None:
        head, tail = text
        write_atomically(args.markdown, f"{head}{BEGIN}\n{table}{END}{tail}")
    return result


def _marked(path: Path) -> tuple[str, str]:
    """What stands before and behind the marks of a file. UserError where there are none."""
    try:
        head, _, rest = path.read_text().partition(BEGIN)
    except OSError as error:
        raise UserError(f"--markdown {path}: cannot be read ({error.strerror})") from None
    _, mark, tail = rest.partition(END)
    if not mark:
        raise UserError(f"--markdown {path}: has no lines {BEGIN} and {END} to write between; add them")
    return head, tail


def _systems(base: Config, presets: Path) -> Iterator[tuple[str, Config]]:
    """Each preset in the surroundings of `base`, and each decoder that no preset is of, by name."""
    from fgmoe_dist.config import build_config, load_config
    from fgmoe_dist.decoders import DECODERS

    files = sorted(presets.glob("*.yaml"))
    if not files:
        raise UserError(f"--presets {presets}: holds no .yaml file; name a folder such as configs/decoders")
    around = base.model_dump(mode="json")
    seen = set()
    yield "fgmoe", build_config({**around, "decoder": {"kind": "fgmoe"}, "experts": {}}, "fgmoe")
    for path in files:
        preset = load_config(path)
        values = preset.model_dump(mode="json")
        seen.add(preset.decoder.kind)
        yield path.stem, build_config({**around, **{key: values[key] for key in ("decoder", "experts")}}, str(path))
    for kind in DECODERS:
        if kind not in seen and kind != "fgmoe":
            yield kind, build_config({**around, "decoder": {"kind": kind}, "experts": {}}, kind)


def _sizes(config: Config) -> dict[str, Any]:
    from fgmoe_dist.planning.flops import flops_of
    from fgmoe_dist.planning.trace import parameters_of

    flops = flops_of(config)
    return {
        "kind": config.decoder.kind, "parameters": parameters_of(config), "encoder_gflops": flops.encoder,
        "decoder_gflops": flops.decoder, "seconds": [], "encoder_seconds": [], "gib": [],
    }  # fmt: skip


def _measure(config: Config, steps: int, found: dict[str, Any]) -> None:
    from fgmoe_dist.benches.measure_step import measure_step
    from fgmoe_dist.benches.ranks import on_ranks
    from fgmoe_dist.benches.step import step_config

    measured = on_ranks(1, measure_step, step_config(config, 1, 1), steps, True)
    found["seconds"].append(measured["seconds"])
    found["encoder_seconds"].append(measured["stages"]["encoder"])
    found["gib"].append(measured["memory_bytes"] / 2**30)


def _refused() -> Iterator[dict[str, str]]:
    """Each of `REFUSED` as settings, and the line that says why not."""
    from fgmoe_dist.config import build_config
    from fgmoe_dist.settings import flatten

    for settings in REFUSED:
        told = ", ".join(f"{key}={value}" for key, value in flatten(settings).items())
        try:
            build_config(settings)
        except UserError as error:
            yield {"settings": told, "why": str(error).removeprefix("configuration: ")}
        else:
            raise AssertionError(f"{told} is not refused any more")


def to_markdown(result: Mapping[str, Any]) -> str:
    """Two tables: of the decoders, and of what is refused."""
    from fgmoe_dist.decoders import DECODERS

    size, images = " x ".join(map(str, result["image_size"])), result["images"]
    told = (
        f"{images} image{'s' * (images > 1)} of {size} a step, {', '.join(result['tasks'])}, frozen encoder"
        f" {result['encoder']}; {result['machine']}, torch {result['versions']['torch']}.\n"
        "Parameters are the decoder's, in millions; `active` are those that one token of one task passes. GFLOPs are of"
        " one image in evaluation,\nseconds and memory those of a training step."
    )
    heads = ["name", "what", "trained", "active", "GFLOPs decoder", "encoder", "s a step", "of them encoder", "GiB"]
    lines = [[name, f"`{of['kind']}`", *_cells(of)] for name, of in result["systems"].items()]
    kinds = [f"- `{kind}`: {_first_line(decoder)}" for kind, decoder in DECODERS.items()]
    refused = [[f"`{each['settings']}`", each["why"].replace("|", "/")] for each in result["refused"]]
    parts = [told, _table(heads, lines), "\n".join(kinds), "## Refused, and why", _table(["settings", "line"], refused)]
    return "\n\n".join(parts) + "\n"


def _cells(of: Mapping[str, Any]) -> list[str]:
    sizes = [f"{of['parameters'][name] / 1e6:.2f}" for name in ("trained", "active")]
    flops = [f"{of[f'{part}_gflops']:.1f}" for part in ("decoder", "encoder")]
    return [*sizes, *flops, *(f"{statistics.median(of[key]):.2f}" for key in ("seconds", "encoder_seconds", "gib"))]


def _first_line(decoder: type) -> str:
    import sys

    text = (sys.modules[decoder.__module__].__doc__ or "").strip()
    return " ".join(text.partition("\n\n")[0].split())


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines))
