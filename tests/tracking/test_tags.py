import subprocess

import pytest

from fgmoe_dist.tracking import tags


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "python"),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}, "python"),  # inside the batch script itself
        ({"SLURM_SRUN_COMM_HOST": "10.0.0.1", "SLURM_PROCID": "3"}, "srun"),
        ({"SLURM_SRUN_COMM_HOST": "10.0.0.1", "TORCHELASTIC_RUN_ID": "none"}, "torchrun"),
        ({"CROSS_RANK": "0", "CROSS_SIZE": "2"}, "deepspeed"),
    ],
)
def test_launcher(environment, expected):
    assert tags.launcher(environment) == expected


def test_tags_are_text_and_never_empty(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    found = tags.run_tags(world=4, ep_size=2)
    assert (found["world"], found["ep_size"], found["slurm_job_id"]) == ("4", "2", "42")
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["device"]


def test_git_says_commit_and_dirt(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    (tmp_path / "untracked").write_text("")
    assert tags._git(tmp_path) == {"git_commit": git("rev-parse", "HEAD").strip(), "git_dirty": "false"}
    (tmp_path / "a").write_text("2")
    assert tags._git(tmp_path)["git_dirty"] == "true"


def test_without_git_there_is_no_tag(tmp_path):
    assert tags._git(tmp_path / "nowhere") == {}
