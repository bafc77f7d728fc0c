"""Checkpoints: every layout reads every other's bit for bit, and what is wrong with one is said in a line.

The files are read here with safetensors alone, not with the code under test.
"""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fgmoe_dist.checkpoints.checkpoint import load_model, resume
from fgmoe_dist.checkpoints.folder import (
    CheckpointState,
    drop_partial,
    find_checkpoint,
    mark_score,
    partial_folder,
    publish,
    read_state,
    rewind,
)
from fgmoe_dist.config import build_config
from fgmoe_dist.errors import UserError
from tests.ranks import run_ranks
from tests.runs import Runs

WORLD, TASKS, C, BLOCKS = 4, 2, 16, 2
EXPERTS = dict(count=4, split=1, hidden=8, top_k=2, shared=1, global_experts=1)
LAYOUTS = [(ep_size, zero_stage) for zero_stage in (0, 1, 2) for ep_size in (1, 2, 4)]


def configuration(ep_size: int, zero_stage: int, **experts):
    return build_config(
        {
            "experts": {**EXPERTS, **experts},
            "train": {"batch_size": WORLD, "micro_batch_size": 1, "lr": 1e-2, "steps": 9},
            "parallel": {"ep_size": ep_size, "zero_stage": zero_stage},
        }
    )


class Model(nn.Module):
    def __init__(self, config, seed: int):
        super().__init__()
        from fgmoe_dist.decoders.parts.block import FGMoEBlock

        torch.manual_seed(seed)
        self.first = nn.Linear(C, C)
        self.blocks = nn.ModuleList(
            FGMoEBlock(TASKS, C, config.experts, config.parallel.ep_size, block, seed) for block in range(BLOCKS)
        )

    def forward(self, x_NC):
        a_NC = self.first(x_NC)
        u_TNC = a_NC.expand(TASKS, *a_NC.shape)
        for block in self.blocks:
            u_TNC, *_ = block(u_TNC, a_NC)
        return u_TNC


def engine_of(layout, seed: int, **experts):
    from fgmoe_dist.training.engines.deepspeed import create_engine

    config = configuration(*layout, **experts)
    return create_engine(Model(config, seed), config)


def step(engine, number: int) -> float:
    """One optimiser step on data that depends on rank and step."""
    import torch.distributed as dist

    x_NC = torch.randn(6, C, generator=torch.Generator().manual_seed(10 * number + dist.get_rank()))
    loss = (engine(x_NC) - 1).square().mean()
    engine.backward(loss)
    engine.step()
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item()


def state_of(layout, number: int = 2) -> CheckpointState:
    return CheckpointState(
        step=number, config={}, tasks=["depth"], classes={}, boundary_max_dist=0.01, encoder_checksum="e",
        world=WORLD, ep_size=layout[0], zero_stage=layout[1],
    )  # fmt: skip


def save(engine, folder: Path, state: CheckpointState) -> Path:
    from fgmoe_dist.checkpoints.writer import CheckpointWriter

    with CheckpointWriter(folder, keep=2) as writer:
        writer.save(engine, state)
    return folder / f"step-{state.step:08d}"


def write_with_every_layout(folder: Path) -> tuple[list[Path], list[list[float]]]:
    """Layout 0 trains and saves; each later layout, from other weights, loads what the one before saved and saves it.

    Returns the checkpoints, and the losses of two more steps with each.
    """
    engine = engine_of(LAYOUTS[0], seed=1)
    for number in range(2):
        step(engine, number)
    written, losses = [], []
    for index, layout in enumerate(LAYOUTS):
        if index:
            engine = engine_of(layout, seed=100 + index)
            loaded = resume(engine, written[-1], {"tasks": ["depth"], "encoder_checksum": "e"})
            assert replace(loaded, files={}) == state_of(LAYOUTS[index - 1])
        written.append(save(engine, folder / str(index), state_of(layout)))
        losses.append([step(engine, number) for number in (2, 3)])
    return written, losses


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return run_ranks(WORLD, write_with_every_layout, tmp_path_factory.mktemp("chain"))[0]


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in checkpoint.glob("*.safetensors"):
        found = load_file(path)
        assert not tensors.keys() & found.keys(), "a tensor is in two files"
        tensors.update(found)
    return tensors


def test_names_speak_of_experts_and_never_of_ranks(chain):
    weights = ("w_in_ECH", "b_in_EH", "w_out_EHC", "b_out_EC")
    expected = {
        f"blocks.{block}.experts.{task}.{expert}.{weight}.{kind}"
        for block in range(BLOCKS) for task in range(TASKS) for expert in range(4)
        for weight in weights for kind in ("weight", "exp_avg", "exp_avg_sq")
    }  # fmt: skip
    for checkpoint in chain[0]:
        tensors = tensors_of(checkpoint)
        assert {name for name in tensors if ".experts." in name} == expected
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert tensors["blocks.0.experts.1.3.w_in_ECH.exp_avg"].shape == (C, 8)


@pytest.mark.parametrize("index", range(1, len(LAYOUTS)), ids=[f"ep{e}-zero{z}" for e, z in LAYOUTS[1:]])
def test_every_layout_keeps_every_bit(chain, index):
    first, other = tensors_of(chain[0][0]), tensors_of(chain[0][index])
    assert first.keys() == other.keys()
    assert [name for name in first if not torch.equal(first[name], other[name])] == []


def test_the_moments_are_of_something(chain):
    tensors = tensors_of(chain[0][0])
    moments = {name: tensor for name, tensor in tensors.items() if name.endswith("exp_avg_sq")}
    assert all(tensor.min() >= 0 for tensor in moments.values())
    assert moments["first.weight.exp_avg_sq"].min() > 0
    assert any(tensor.max() > 0 for name, tensor in moments.items() if ".experts." in name)


def test_training_goes_on_alike_in_every_layout(chain):
    for losses in chain[1][1:]:  # the bias correction of Adam would show a wrong step
        assert losses == pytest.approx(chain[1][0], rel=1e-5)


def write_shared_banks(folder: Path) -> list[Path]:
    """The same through three layouts, of a bank that all tasks share."""
    shared, written = dict(bank="shared", kind="lora", kernel="reference"), []
    for number, layout in enumerate([(4, 2), (1, 0), (2, 1)]):
        engine = engine_of(layout, seed=1 + number, **shared)
        if written:
            resume(engine, written[-1], {"tasks": ["depth"], "encoder_checksum": "e"})
        else:
            step(engine, 0)
        written.append(save(engine, folder / str(number), state_of(layout)))
    return written


@pytest.mark.slow
def test_experts_that_tasks_share_are_there_once_and_move_between_layouts(tmp_path):
    first, *others = map(tensors_of, run_ranks(WORLD, write_shared_banks, tmp_path)[0])
    assert {name for name in first if ".experts." in name} == {
        f"blocks.{block}.experts.shared.{expert}.{weight}.{kind}"
        for block in range(BLOCKS) for expert in range(4) for weight in ("a_ECR", "b_ERC")
        for kind in ("weight", "exp_avg", "exp_avg_sq")
    }  # fmt: skip
    assert first["blocks.1.experts.shared.3.a_ECR.weight"].shape == (C, 8)
    for other in others:
        assert first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


# A bank of buffers stands for whatever a router may keep beside its weights.


def with_buffer(engine, value: float):
    engine.module.blocks[1].routed.register_buffer("bias_TE", torch.full((TASKS, 4), value))
    return engine


def keep_a_buffer(folder: Path) -> list:
    plain, buffered = engine_of((2, 1), seed=1), with_buffer(engine_of((2, 1), seed=1), 0.25)
    without, checkpoint = save(plain, folder / "without", state_of((2, 1))), save(buffered, folder, state_of((2, 1)))
    seen, expected = [], {"tasks": ["depth"]}
    for source in (checkpoint, without):
        engine = with_buffer(engine_of((1, 2), seed=2), -1.0)
        resume(engine, source, expected)
        seen.append(engine.module.blocks[1].routed.bias_TE.unique().tolist())
    with pytest.raises(UserError, match=r"no blocks.1.routed.bias_TE; .* would drop .* keep a rate above 0"):
        resume(plain, checkpoint, expected)
    return seen


def test_a_buffer_is_kept_and_one_that_came_later_has_its_first_value(tmp_path):
    assert run_ranks(2, keep_a_buffer, tmp_path)[0] == [[0.25], [-1.0]]  # and what has no place here is refused
    checkpoint = find_checkpoint(tmp_path)
    assert read_state(checkpoint).buffers == ["blocks.1.routed.bias_TE"]
    tensor = load_file(checkpoint / "decoder.safetensors")["blocks.1.routed.bias_TE.weight"]
    assert tensor.dtype == torch.float32 and torch.equal(tensor, torch.full((TASKS, 4), 0.25))


def write_some(folder: Path, scores: list) -> list[str]:
    import torch.distributed as dist

    engine = engine_of((1, 1), seed=1)
    for number, score in enumerate(scores, 1):
        checkpoint = save(engine, folder, state_of((1, 1), number))
        if score is not None and dist.get_rank() == 0:
            mark_score(checkpoint, score)
        dist.barrier()
    return sorted(path.name for path in folder.iterdir())


def test_the_latest_and_the_best_are_kept(tmp_path):
    run_ranks(WORLD, write_some, tmp_path, [1.0, 9.0, None, 3.0, None])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best", "latest", "step-00000002", "step-00000004", "step-00000005",
    ]  # fmt: skip
    assert (tmp_path / "best").read_text().strip() == "step-00000002"
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000005"
    assert read_state(tmp_path / "step-00000002").score == 9.0


def checkpoint_folder(folder: Path, *steps: int) -> list[Path]:
    checkpoints = []
    for step in steps:
        checkpoints.append(folder / f"step-{step:08d}")
        checkpoints[-1].mkdir(parents=True)
        (checkpoints[-1] / "state.json").write_text(json.dumps(asdict(state_of((1, 1), step))))
    return checkpoints


def test_going_back_leaves_no_best_of_the_abandoned_branch(tmp_path):
    first, second = checkpoint_folder(tmp_path, 10, 20)
    mark_score(second, 5.0)
    rewind(tmp_path, second)
    assert (tmp_path / "best").read_text().strip() == second.name
    rewind(tmp_path, first)
    assert not (tmp_path / "best").exists() and find_checkpoint(tmp_path) == first
    rewind(tmp_path / "elsewhere", first)  # a run of its own that starts from another's checkpoint
    assert not (tmp_path / "elsewhere").exists()
    (other,) = checkpoint_folder(tmp_path / "other", 3)
    mark_score(first, 1.0)
    rewind(tmp_path, other)
    assert find_checkpoint(tmp_path) is None and first.is_dir()


def test_what_latest_names_is_there_until_another_takes_its_place(tmp_path, monkeypatch):
    (final,) = checkpoint_folder(tmp_path, 7)
    rewind(tmp_path, final)
    (final / "old").touch()
    partial = partial_folder(tmp_path, 7)
    partial.mkdir()

    def remove(path, **_):  # whatever is removed, and whenever: `latest` names a whole checkpoint
        assert (find_checkpoint(tmp_path) / "state.json").is_file() and path != final
        removed.append(path)

    removed = []
    monkeypatch.setattr("fgmoe_dist.checkpoints.folder.shutil.rmtree", remove)
    publish(partial, state_of((1, 1), 7), keep=2)
    assert not (final / "old").exists() and [(path / "old").exists() for path in removed] == [True]
    monkeypatch.undo()
    drop_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", final.name]


def test_a_half_written_checkpoint_is_none(tmp_path):
    (tmp_path / "checkpoints/.step-00000007.partial").mkdir(parents=True)
    (tmp_path / "checkpoints/.step-00000007.partial/state.json").write_text("{}")
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "nowhere") is None


# What may be wrong with the checkpoint of a whole run.


@pytest.fixture(scope="module")
def run_folder(nyud_shards, tmp_path_factory) -> Path:
    runs = Runs(tmp_path_factory.mktemp("runs"), nyud_shards.train, nyud_shards.val)
    runs.train("run", 1, train__steps=1, tasks="[semseg, depth]")
    return runs.folder("run")


@pytest.fixture
def checkpoint(run_folder, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(find_checkpoint(run_folder), tmp_path / "step-00000001"))


def edit_state(checkpoint: Path, **changes) -> None:
    """As a person may: without the checksum of what it says."""
    path = checkpoint / "state.json"
    values = {**json.loads(path.read_text()), **changes}
    del values["checksum"]
    path.write_text(json.dumps(values))


def test_a_whole_checkpoint_loads_as_written(checkpoint):
    model, config, state = load_model(checkpoint)
    assert (state.step, config.tasks) == (1, ["semseg", "depth"])
    tensors = tensors_of(checkpoint)
    for name, parameter in model.decoder.named_parameters():
        if parameter.requires_grad and ".bank." not in name:
            assert torch.equal(parameter, tensors[f"{name}.weight"]), name
    bank_ECH = model.decoder.blocks[1].routed.bank.w_in_ECH
    for task in range(2):
        for expert in range(8):
            assert torch.equal(
                bank_ECH[8 * task + expert], tensors[f"blocks.1.experts.{task}.{expert}.w_in_ECH.weight"]
            )


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"decoder__kind": "multi_task"}, "blocks.0.experts"),
        pytest.param({"decoder__blocks": 1}, "blocks.1.experts", marks=pytest.mark.slow),
        pytest.param({"experts__shared": 0}, "blocks.0.shared", marks=pytest.mark.slow),
        pytest.param({"experts__global_experts": 0}, "blocks.0.global_experts", marks=pytest.mark.slow),
    ],
)
def test_no_weight_is_dropped_because_the_model_has_no_place_for_it(run_folder, nyud_shards, tmp_path, changes, lost):
    runs = Runs(tmp_path, nyud_shards.train, nyud_shards.val)
    with pytest.raises(AssertionError, match=f"UserError: checkpoint .*: this model has no {lost}"):
        runs.train("other", 1, resume=str(run_folder), train__steps=2, tasks="[semseg, depth]", **changes)


def cut(checkpoint):
    path = checkpoint / "decoder.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def scribble(checkpoint):
    (checkpoint / "decoder.safetensors").write_bytes(b"not a tensor")


def lose_experts(checkpoint):
    (checkpoint / "experts-000-of-001.safetensors").unlink()


def of_old(damage):
    """Done to a checkpoint from before there were checksums."""

    def damage_old(checkpoint):
        edit_state(checkpoint, files={})
        damage(checkpoint)

    return damage_old


def flip_a_number(checkpoint):
    """One bit of one weight: what any reader of tensors takes."""
    path = checkpoint / "decoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def change_the_step(checkpoint):
    path = checkpoint / "state.json"
    path.write_text(path.read_text().replace('"step": 1', '"step": 3'))


def misshape(checkpoint):
    path = checkpoint / "experts-000-of-001.safetensors"
    save_file({name: tensor[:1].clone() for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "decoder.safetensors: is damaged"),
        (scribble, "decoder.safetensors: is damaged"),
        (flip_a_number, "decoder.safetensors: is damaged (its checksum"),
        (change_the_step, "state.json cannot be read (its checksum"),
        (lose_experts, "experts-000-of-001.safetensors: is missing"),
        (of_old(cut), "decoder.safetensors: is damaged"),
        (of_old(lose_experts), "has no blocks.0.experts"),
        (of_old(misshape), "the model's is"),
        (lambda c: (c / "state.json").write_text("{"), "state.json cannot be read"),
        (lambda c: (c / "state.json").write_text("[]"), "state.json cannot be read"),
        (lambda c: edit_state(c, format=99), "format 99"),
        (lambda c: edit_state(c, encoder_checksum="another"), "other encoder weights"),
        (lambda c: edit_state(c, step=None, surprise=1), "state.json cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(checkpoint, damage, said):
    damage(checkpoint)
    with pytest.raises(UserError) as error:
        load_model(checkpoint)
    assert said in str(error.value) and str(checkpoint) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("expected", [{"tasks": ["depth"]}, {"encoder_checksum": "another"}])
def test_another_run_s_checkpoint_is_refused(checkpoint, expected):
    with pytest.raises(UserError, match=f"its {next(iter(expected))} is .* start anew"):
        resume(None, checkpoint, expected)


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(UserError, match="no checkpoint there"):
        load_model(tmp_path)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path(self.target),)


def test_a_pickle_in_the_folder_is_never_opened(checkpoint, tmp_path):
    bomb = Bomb()
    bomb.target = tmp_path / "exploded"
    for name in ("optimizer.pt", "decoder.pkl", "mp_rank_00_model_states.pt"):
        (checkpoint / name).write_bytes(pickle.dumps(bomb))
    load_model(checkpoint)
    (checkpoint / "experts-000-of-001.safetensors").write_bytes(pickle.dumps(bomb))
    with pytest.raises(UserError, match="is damaged"):
        load_model(checkpoint)
    assert not bomb.target.exists()
