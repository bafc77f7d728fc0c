"""`fgmoe`: one verb per command. Each verb lives in `fgmoe_dist/verbs/<verb>.py`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable
from typing import Any

from fgmoe_dist import __version__, plugins
from fgmoe_dist.arguments import Parser, add_plugin, parse, refuse_empty

# In the order of a project's life. A verb's module is imported when it is called, so that help answers at once.
VERBS = {
    "rooms": "render the built-in data set",
    "shards": "build, verify and inspect WebDataset shards",
    "train": "train a model (the same as fgmoe_dist/train.py)",
    "evaluate": "score a checkpoint on a data set",
    "score": "score saved predictions, anyone's",
    "predict": "predict on images, with a picture panel each",
    "prune": "make a trained model smaller: fewer experts, or one task alone",
    "export": "write a trained model as one file that runs without DeepSpeed",
    "checkpoint": "list, verify and remove a run's checkpoints",
    "sync": "bring MLflow up to date with runs that were killed or offline",
    "compare": "compare runs side by side",
    "ui": "open MLflow's pages on an experiment",
    "plan": "memory, traffic, seconds and the best ep_size on so many GPUs",
    "bench": "time a part beside the usual way to compute it",
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    verb = argv[0] if argv else "--help"
    if verb in ("-h", "--help", "help"):
        print(_help())
        return
    if verb == "--version":
        print(__version__)
        return
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean `fgmoe {near[0]}`?" if near else "`fgmoe --help` lists the verbs"
        print(f"error: fgmoe {verb}: no such verb; {hint}", file=sys.stderr)
        sys.exit(2)
    _or_end(refuse_empty, argv[1:])
    arguments = _or_end(plugins.take, argv[1:])  # before anything may ask which tasks or decoders there are
    module = importlib.import_module(f"fgmoe_dist.verbs.{verb}")
    parser = Parser(f"fgmoe {verb}", description=module.__doc__)
    module.add_arguments(parser)
    add_plugin(parser)
    _or_end(module.run, parse(parser, arguments))


def _or_end(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns; an error ends this process with the code that it stands for."""
    try:
        return function(*arguments)
    except BaseException as error:
        from fgmoe_dist.ranks import exit_with_error  # brings torch, which many verbs do without

        exit_with_error(error)


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return (
        f"usage: fgmoe VERB ...\n\n{verbs}\n\n`fgmoe VERB --help` explains a verb. `make demo` shows all of it at work."
    )


if __name__ == "__main__":
    main()
