"""Counting against every token's own choice, and pruned models against whole ones.

Legend: T tasks, N tokens, C channels, E routed experts of a task, K selected.
"""

from __future__ import annotations

import pytest
import torch
from safetensors import SafetensorError

from fgmoe_dist.checkpoints.checkpoint import load_model
from fgmoe_dist.checkpoints.folder import find_checkpoint, read_state
from fgmoe_dist.errors import UserError
from fgmoe_dist.pruning import cut, write
from fgmoe_dist.pruning.choose import choose
from fgmoe_dist.pruning.usage import count_usage
from fgmoe_dist.pruning.write import check_free
from tests.export.models import tiny_model
from tests.runs import fgmoe, losses

IMAGES = 3
BANKS = {"task": {"count": 8}, "shared": {"count": 8, "bank": "shared"}}


def images() -> list[torch.Tensor]:
    return list(torch.randn(IMAGES, 3, 112, 144, generator=torch.Generator().manual_seed(3)))


def smaller(model, state, kept, tensors=None):
    """The model whose experts are `kept`, with the weights of `model` or those given."""
    from fgmoe_dist.checkpoints.folder import WHOLE
    from fgmoe_dist.config import build_config
    from fgmoe_dist.model import create_model

    changes = {"experts": {"kernel": "reference", "kept": kept}}
    pruned = create_model(build_config(state.changed_config(WHOLE, changes)), state).eval()
    own = model.state_dict() if tensors is None else tensors
    with torch.no_grad():
        for name, value in pruned.state_dict().items():
            if ".bank." not in name:
                value.copy_(own[name])
    whole = {(e.task, e.expert, e.weight): e for e in model.decoder.blocks[0].routed.logical_experts()}
    for e in pruned.decoder.blocks[0].routed.logical_experts():
        source = whole[e.task, e.expert, e.weight]
        e.parameter.data[e.index] = source.parameter.data[source.index]
    return pruned


@pytest.mark.parametrize("bank", BANKS)
def test_counts_are_those_of_every_token_asked_one_by_one(bank):
    model, _ = tiny_model(**BANKS[bank])
    seen = []
    router = model.decoder.blocks[0].routed.routers
    handle = router.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    usage = count_usage(model, images())
    handle.remove()
    tasks, experts, top_k = 2, 8, 2
    hard, soft = torch.zeros(2, tasks, experts, dtype=torch.float64)
    with torch.inference_mode():
        for task, x_C in [(index, x_C) for x_TNC in seen for index in range(tasks) for x_C in x_TNC[index]]:
            scores = (x_C @ router.weight_TCE[task]).softmax(0)
            for expert in scores.argsort(descending=True)[:top_k].tolist():
                hard[task, expert] += 1
                soft[task, expert] += scores[expert].double()
    assert usage.images == IMAGES and torch.equal(usage.hard_LTE[0], hard)
    torch.testing.assert_close(usage.soft_LTE[0], soft, rtol=1e-5, atol=1e-6)
    assert usage.hard_LTE.sum() == tasks * top_k * sum(x.shape[1] for x in seen)


@pytest.mark.parametrize("settings", [{}, {"renormalise": True}, {"score": "sigmoid"}, {"shared_gate": "joint"},
                                      {"router": "image"}])  # fmt: skip
@pytest.mark.parametrize("bank", BANKS)
def test_without_experts_that_nobody_chose_nothing_changes(bank, settings):
    model, state = tiny_model(**BANKS[bank], **settings)
    router = model.decoder.blocks[0].routed.routers
    with torch.no_grad():
        router.weight_TCE[:, :, 5:7] = 0  # these two lose against the better one of each pair of opposites
        router.weight_TCE[:, :, 1] = -router.weight_TCE[:, :, 0]
        router.weight_TCE[:, :, 3] = -router.weight_TCE[:, :, 2]
    usage = count_usage(model, images())
    kept = choose(usage.hard_LTE, model.decoder.experts, "used", False, (0, 1))
    assert any(len(left) < 8 for left in kept[0])
    pruned, batch = smaller(model, state, kept), torch.stack(images())
    with torch.inference_mode():
        for task, prediction in model(batch).predictions.items():
            assert torch.equal(pruned(batch).predictions[task], prediction), task


def test_an_expert_that_is_gone_is_chosen_by_none_whatever_its_score():
    model, state = tiny_model(count=8)
    kept = [[[0, 2, 7], [1, 3]]]
    pruned = smaller(model, state, kept)
    hard_TE = count_usage(pruned, images()).hard_LTE[0]
    for task, left in enumerate(kept[0]):
        gone = [expert for expert in range(8) if expert not in left]
        assert hard_TE[task, gone].sum() == 0 and hard_TE[task].sum() > 0


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.slow
def test_the_verb_writes_runs_that_score_alike_and_train_on(bank, runs, tmp_path):
    small = {"train__steps": 2, "train__checkpoint_every": 0, "experts__bank": bank, "parallel__zero_stage": 1}
    runs.train("run", 1, **small)
    folder, calibrate = runs.folder("run"), read_state(find_checkpoint(runs.folder("run"))).config["data"]["val"]
    said = fgmoe("prune", "--checkpoint", folder, "--calibrate", calibrate, "--keep", "used", "0.5",
                 "--evaluate", calibrate, "--output", tmp_path / "pruned")  # fmt: skip
    lines = [line.split("|") for line in said.splitlines() if line.startswith("| ")]
    whole, used, half = lines[1:]
    assert whole[6:] == used[6:] and int(half[2]) == int(whole[2]) // 2
    fgmoe("prune", "--checkpoint", folder, "--calibrate", calibrate, "--task", "depth", "--output", tmp_path / "depth")
    model, alone, batch = load_model(folder)[0], load_model(tmp_path / "depth")[0], torch.stack(images())
    with torch.inference_mode():
        (one,), expected = alone(batch).predictions.values(), model(batch).predictions["depth"]
    torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    # And on: with a smaller k, each token sure of its experts, on one rank as on two.
    again = {**small, "train__steps": 4, "experts__top_k": 1, "experts__balance_losses__entropy": 0.01}
    again["experts__kept"] = read_state(find_checkpoint(tmp_path / "pruned/keep-0.5")).config["experts"]["kept"]
    checkpoint = str(tmp_path / "pruned/keep-0.5")
    one = runs.train("one", 1, resume=checkpoint, train__micro_batch_size=4, **again)
    two = runs.train("two", 2, resume=checkpoint, train__micro_batch_size=2, **again)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4) and one[-1]["experts/entropy_loss"] > 0


@pytest.mark.slow
def test_pruned_banks_of_each_task_are_spread_over_ranks(runs):
    """Each rank holds two experts of each task's four that are left, other numbers for each task."""
    kept = [[[0, 1, 4, 5], [2, 3, 6, 7], [0, 3, 4, 7], [1, 2, 5, 6]]] * 2
    small = {"train__steps": 2, "experts__kept": kept, "experts__top_k": 2, "train__micro_batch_size": 2}
    apart = runs.train("apart", 2, **small, parallel__ep_size=2)
    together = runs.train("together", 2, **small, parallel__ep_size=1)
    assert losses(apart)[0] == pytest.approx(losses(together)[0], rel=1e-6)
    assert losses(apart) == pytest.approx(losses(together), rel=1e-4)


@pytest.mark.parametrize("what", ["checkpoints/step-00000004/state.json", "about.json"])
def test_a_run_is_never_written_over(what, tmp_path):
    (tmp_path / "run" / what).parent.mkdir(parents=True)
    (tmp_path / "run" / what).write_text('{"status": "RUNNING"}')
    with pytest.raises(UserError, match="--output .*/run: holds a run, which would be lost; name another folder"):
        check_free(tmp_path / "run", "--output")
    check_free(tmp_path / "new", "--output")


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr(write, "save_file", full)
    _, state = tiny_model()
    with pytest.raises(UserError, match="the pruned model cannot be written .*No space left.*; make room"):
        write.write_run(tmp_path / "small", {}, state, {}, {})
    assert not list((tmp_path / "small/checkpoints").iterdir())


@pytest.mark.parametrize(
    ("experts", "task", "message"),
    [
        ({}, "edge", "--task=edge: the model predicts semseg, depth"),
        ({"global_input": "tasks"}, "depth", "reads the features of all tasks"),
        ({"bank": "shared", "closed_share": 0.5, "count": 8}, "depth", "experts.closed_share=0.5 closes"),
    ],
)
def test_what_cannot_be_cut_out_is_told(experts, task, message):
    from fgmoe_dist.config import build_config

    config = build_config(tiny_model(**experts)[1].config)
    with pytest.raises(UserError, match=message):
        cut.check_one_task(config, task, "--task")
