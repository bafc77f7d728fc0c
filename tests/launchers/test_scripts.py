"""The shell scripts, with stubs in place of srun, scontrol and Python that write down how they were called.

What only a real scheduler shows (two nodes, requeueing, a killed rank) is in `.ci/slurm_train.sh`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
SOURCED = [ROOT / "launchers/common.sh", ROOT / "slurm/job.sh"]
SCRIPTS = sorted([*ROOT.glob("launchers/*.sh"), *ROOT.glob("slurm/*.sh"), *ROOT.glob(".ci/*.sh"), ROOT / ".ci/run"])
BATCH = ["train_pascal.sh", "train_nyud.sh", "compare.sh"]
TRAINER = str(ROOT / "fgmoe_dist/train.py")


class Stubs:
    """A folder of commands that come first on PATH, and an environment without the caller's own SLURM job."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "venv/bin").mkdir(parents=True)
        self.log = folder / "calls"
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "CUDA", "MASTER", "OMP"))
        }
        self.environment = kept | {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "VENV": str(folder / "venv"),
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.write("venv/bin/python", f'printf "%s\\n" "$@" >{self.log}')
        self.write("srun", f'printf "%s\\n" "$@" >{self.log}')

    def write(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def start(self, script: str | Path, *arguments: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(ROOT / script), *arguments],
            env=self.environment | variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=self.folder,
        )  # fmt: skip

    def run(self, script: str | Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **variables)
        output, errors = process.communicate(timeout=30)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path)


def after_trainer(words: list[str]) -> list[str]:
    return words[words.index(TRAINER) + 1 :]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_stops_at_its_first_failure(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""
    text = script.read_text()
    if script in SOURCED:
        assert not os.access(script, os.X_OK)
    else:
        assert os.access(script, os.X_OK)
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("name", BATCH)
def test_batch_script_survives_its_time_limit_and_leaves_shape_to_the_command_line(name):
    options = [
        line.split(maxsplit=1)[1] for line in (ROOT / "slurm" / name).read_text().splitlines() if line[:7] == "#SBATCH"
    ]
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(options)
    # A GPU request in the script would shut out CPU clusters; CPUs by task would clash with --cpus-per-gpu.
    assert not [option for option in options if "gpu" in option or "cpus" in option or "ntasks" in option]


WORDS = [
    (["train.steps=5"], ["--set", "train.steps=5"]),
    (["--config", "runs/lr=1/c.yaml"], ["--config", "runs/lr=1/c.yaml"]),
    (["--set", "a.b=c", "d=e"], ["--set", "a.b=c", "--set", "d=e"]),
    (["--set=a.b=c", "--dry-run"], ["--set=a.b=c", "--dry-run"]),
    (["--resume", "/ckpt/step=40", "x=1 2"], ["--resume", "/ckpt/step=40", "--set", "x=1 2"]),
    (["data.train=/a/{0..3}.tar*"], ["--set", "data.train=/a/{0..3}.tar*"]),
    (["/folder/x=1"], ["/folder/x=1"]),
    ([], []),
]


@pytest.mark.parametrize("given_words, passed", WORDS, ids=lambda words: " ".join(words) or "none")
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "srun"])
def test_key_value_words_become_settings_and_others_pass(stubs, launcher, given_words, passed):
    result = stubs.run(f"launchers/{launcher}.sh", *given_words, MASTER_PORT="1")
    assert result.returncode == 0, result.stderr
    assert after_trainer(stubs.calls()) == passed


def test_torchrun_starts_a_process_a_gpu_else_nproc_else_one(stubs):
    for variables, processes in [
        ({}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,3"}, 2),
        ({"NPROC": "4"}, 4),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 1),
    ]:
        stubs.run("launchers/torchrun.sh", **variables)
        assert f"--nproc-per-node={processes}" in stubs.calls()
        assert "--standalone" in stubs.calls()


def test_torchrun_on_several_machines_meets_at_the_first(stubs):
    stubs.run("launchers/torchrun.sh", NNODES="2", NODE_RANK="1", MASTER_ADDR="n1")
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=n1", "--master-port=29500"} <= set(stubs.calls())
    failed = stubs.run("launchers/torchrun.sh", NNODES="2", NODE_RANK="1")
    assert failed.returncode != 0 and "MASTER_ADDR" in failed.stderr


def test_deepspeed_adds_the_launchers_own_options_and_keeps_local_rank_to_itself(stubs):
    stubs.run("launchers/deepspeed.sh", NPROC="2", MASTER_PORT="7")
    assert stubs.calls()[:5] == [
        "-m",
        "deepspeed.launcher.runner",
        "--no_local_rank",
        "--num_gpus=2",
        "--master_port=7",
    ]
    stubs.run("launchers/deepspeed.sh", DEEPSPEED_ARGS="--hostfile hosts", MASTER_PORT="7")
    assert stubs.calls()[3:6] == ["--hostfile", "hosts", "--master_port=7"]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "srun"])
def test_a_wrong_venv_is_named(stubs, launcher):
    failed = stubs.run(f"launchers/{launcher}.sh", VENV="/nowhere")
    assert failed.returncode == 2
    assert (
        failed.stderr == f"{launcher}.sh: VENV=/nowhere has no bin/python: name a virtual environment, or unset VENV\n"
    )


# What sbatch was asked for, as SLURM 22.05 tells the batch script -> the step. Environments seen on a real scheduler.
SHAPES = {
    "two plain nodes": (
        {"SLURM_NNODES": "2", "SLURM_JOB_CPUS_PER_NODE": "1(x2)"},
        {"--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=1"},
    ),
    "--ntasks-per-node=2": (
        {"SLURM_NNODES": "2", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_CPUS_PER_NODE": "2(x2)"},
        {"--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=1"},
    ),
    "--gpus-per-node=8 --cpus-per-gpu=6": (
        {
            "SLURM_NNODES": "4",
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_PER_GPU": "6",
            "SLURM_JOB_CPUS_PER_NODE": "48(x4)",
        },
        {"--ntasks=32", "--ntasks-per-node=8", "--cpus-per-task=6"},
    ),
    "--gpus-per-node=2, one CPU": (
        {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_CPUS_PER_NODE": "1(x2)"},
        {"--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=1", "--overcommit"},
    ),
    "--ntasks=4, spread 3 and 1": (
        {"SLURM_NNODES": "2", "SLURM_NTASKS": "4", "SLURM_JOB_CPUS_PER_NODE": "3,1"},
        {"--ntasks=4", "--cpus-per-task=1"},
    ),
    "--cpus-per-task=5": (
        {"SLURM_NNODES": "1", "SLURM_CPUS_PER_TASK": "5", "SLURM_JOB_CPUS_PER_NODE": "5"},
        {"--ntasks=1", "--cpus-per-task=5"},
    ),
    "unlike nodes": (
        {"SLURM_NNODES": "4", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_CPUS_PER_NODE": "64(x3),16"},
        {"--ntasks=8", "--cpus-per-task=8"},
    ),
}


@pytest.mark.parametrize("environment, step", SHAPES.values(), ids=SHAPES.keys())
def test_the_step_is_shaped_by_what_the_allocation_was_asked_for(stubs, environment, step):
    stubs.write("srun", f'printf "%s\\n" "$@" "cpus-per-gpu=${{SLURM_CPUS_PER_GPU-unset}}" >{stubs.log}')
    result = stubs.run("launchers/srun.sh", SLURM_JOB_ID="7", **environment)
    assert result.returncode == 0, result.stderr
    calls = set(stubs.calls())
    assert step | {"--kill-on-bad-exit=1", f"--nodes={environment['SLURM_NNODES']}", "cpus-per-gpu=unset"} <= calls
    assert ("--overcommit" in calls) == ("--overcommit" in step) == ("share fewer CPUs" in result.stderr)


def test_outside_an_allocation_srun_is_given_the_users_own_options(stubs):
    stubs.run("launchers/srun.sh", "a=b", SRUN_ARGS="--nodes=2 --ntasks-per-node=4")
    calls = stubs.calls()
    assert calls[calls.index("--nodes=2") + 1] == "--ntasks-per-node=4"
    assert not [call for call in calls if call.startswith("--cpus-per-task")]


def rank_environment(stubs: Stubs, **variables: str) -> dict[str, str]:
    step = {
        "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_NTASKS": "6", "SLURM_JOB_ID": "20007",
        "SLURM_STEP_NODELIST": "n[3-5]", "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    }  # fmt: skip
    stubs.write("scontrol", '[[ $* == "show hostnames n[3-5]" ]] && printf "n3\\nn4\\nn5\\n"')
    result = stubs.run("launchers/slurm_rank.sh", "env", **step | variables)
    assert result.returncode == 0, result.stderr
    return dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)


def test_a_task_says_in_torchs_words_who_it_is(stubs):
    seen = rank_environment(stubs, SLURM_CPUS_PER_TASK="4")
    expected = {
        "RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "2", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "n3", "MASTER_PORT": "10007", "OMP_NUM_THREADS": "4",
    }  # fmt: skip
    assert {key: seen[key] for key in expected} == expected


def test_master_and_threads_can_be_given(stubs):
    given_values = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000", "OMP_NUM_THREADS": "3"}
    seen = rank_environment(stubs, **given_values)
    assert {key: seen[key] for key in given_values} == given_values


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.data())
def test_local_world_size_is_read_from_slurms_run_lengths(tmp_path_factory, tasks_a_node, data):
    node = data.draw(st.integers(0, len(tasks_a_node) - 1))
    runs: list[list[int]] = []
    for tasks in tasks_a_node:
        if runs and runs[-1][0] == tasks:
            runs[-1][1] += 1
        else:
            runs.append([tasks, 1])
    written = ",".join(f"{tasks}(x{times})" if times > 1 else f"{tasks}" for tasks, times in runs)
    seen = rank_environment(
        Stubs(tmp_path_factory.mktemp("stubs")), SLURM_NODEID=str(node), SLURM_STEP_TASKS_PER_NODE=written
    )
    assert seen["LOCAL_WORLD_SIZE"] == str(tasks_a_node[node])


@pytest.fixture
def job(stubs):
    """A batch job on a copy of the scripts; the stub trainer obeys the stop file as the real one does."""
    repository = stubs.folder / "a repository"
    for folder in ("slurm", "launchers"):
        (repository / folder).mkdir(parents=True)
        for script in ROOT.glob(f"{folder}/*.sh"):
            (repository / folder / script.name).write_bytes(script.read_bytes())
            (repository / folder / script.name).chmod(script.stat().st_mode)
    spooled = stubs.folder / "spool"  # where sbatch puts the copy that it runs
    spooled.mkdir()
    command = f"   Command={repository}/slurm/train_nyud.sh a=b"
    # Asked for the number of an array, SLURM shows all of its tasks.
    show = f'for _ in 1 2; do echo "{command}"; done'
    stubs.write("scontrol", f'case $1 in show) {show} ;; requeue) echo "requeue $2" >>{stubs.folder}/requeued ;; esac')
    stubs.environment |= {
        "SLURM_JOB_ID": "42", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_CPUS_PER_NODE": "2",
    }  # fmt: skip

    def start(name: str, *arguments: str, **variables: str) -> subprocess.Popen:
        (spooled / "slurm_script").write_bytes((ROOT / "slurm" / name).read_bytes())
        return stubs.start(spooled / "slurm_script", *arguments, **variables)

    stubs.repository = repository
    stubs.start_job = start
    return stubs


OBEDIENT = (
    'touch "$PWD/started"; for _ in {1..200}; do [[ -e %s/stop ]] && rm %s/stop && exit 0; sleep 0.05; done; exit 9'
)


def until(condition) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "nothing happened within 15 s"
        time.sleep(0.02)


def test_a_requeued_job_goes_on_from_its_own_checkpoint(job):
    process = job.start_job("train_nyud.sh", "--resume", "/ckpt/step=40", SLURM_RESTART_COUNT="1")
    assert process.wait(30) == 0
    words = job.calls()
    given = [words[number + 1] for number, word in enumerate(words) if word == "--resume"]
    assert given == ["/ckpt/step=40", "auto"]  # the trainer takes the last


def test_a_job_finds_its_repository_its_configuration_and_a_run_folder_of_its_own(job):
    process = job.start_job("train_nyud.sh", "train.steps=3", "--dry-run")
    assert process.wait(30) == 0
    words = job.calls()
    trainer = words.index(str(job.repository / "fgmoe_dist/train.py"))
    assert words[trainer + 1 :] == [
        "--config", "configs/nyud_vitb.yaml", "--set", "train.steps=3", "--dry-run", "--set", "run.dir=runs/nyud-42",
    ]  # fmt: skip
    assert not (job.folder / "requeued").exists()


def test_a_given_configuration_and_run_folder_are_kept(job):
    process = job.start_job("train_nyud.sh", "--config=mine.yaml", "--set", "run.dir=/tmp/first", "run.dir=/tmp/last")
    output, _ = process.communicate(timeout=30)
    assert "/tmp/last" in output and "/tmp/first" not in output
    assert job.calls()[-5:] == ["--config=mine.yaml", "--set", "run.dir=/tmp/first", "--set", "run.dir=/tmp/last"]


def test_usr1_asks_the_run_to_stop_and_requeues_the_job(job):
    job.write("srun", OBEDIENT % ("runs/nyud-42", "runs/nyud-42"))
    process = job.start_job("train_nyud.sh")
    until((job.repository / "started").exists)
    process.send_signal(signal.SIGUSR1)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert (job.folder / "requeued").read_text() == "requeue 42\n"
    assert "go on in runs/nyud-42" in output


def test_one_task_of_an_array_is_requeued_alone(job):
    run = "runs/compare-42/a-seed1"
    job.write("srun", OBEDIENT % (run, run))
    process = job.start_job("compare.sh", "configs/a.yaml", SLURM_ARRAY_JOB_ID="42", SLURM_ARRAY_TASK_ID="1")
    until((job.repository / "started").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 0
    assert (job.folder / "requeued").read_text() == "requeue 42_1\n"


def test_many_signals_requeue_once(job):
    job.write("srun", 'touch "$PWD/started"; sleep 1')
    process = job.start_job("train_nyud.sh")
    until((job.repository / "started").exists)
    for _ in range(4):
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
    assert process.wait(30) == 0
    assert (job.folder / "requeued").read_text() == "requeue 42\n"


def test_a_stop_file_of_an_earlier_start_is_removed(job):
    stop = job.repository / "runs/nyud-42/stop"
    stop.parent.mkdir(parents=True)
    stop.touch()
    assert job.start_job("train_nyud.sh").wait(30) == 0
    assert not stop.exists()


@pytest.mark.parametrize("signalled", [False, True])
def test_a_failed_run_fails_the_job_and_is_not_requeued(job, signalled):
    job.write("srun", 'touch "$PWD/started"; sleep 0.5; exit 3')
    process = job.start_job("train_nyud.sh")
    until((job.repository / "started").exists)
    if signalled:
        process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "status 3" in errors
    assert not (job.folder / "requeued").exists()


def test_a_scheduler_that_refuses_to_requeue_fails_the_job_and_says_how_to_go_on(job):
    job.write("srun", OBEDIENT % ("runs/nyud-42", "runs/nyud-42"))
    job.write("scontrol", f'[[ $1 == show ]] && echo "   Command={job.repository}/slurm/train_nyud.sh"')
    process = job.start_job("train_nyud.sh")
    until((job.repository / "started").exists)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "run.dir=runs/nyud-42" in errors


def test_compare_gives_every_array_task_its_own_pair(job):
    pairs = set()
    for task in range(4):
        process = job.start_job(
            "compare.sh",
            "configs/a.yaml",
            "x.y=1",
            "configs/b.yaml",
            SLURM_ARRAY_TASK_ID=str(task),
            SLURM_ARRAY_JOB_ID="40",
        )
        assert process.wait(30) == 0
        words = job.calls()
        config, seed = words[words.index("--config") + 1], next(word for word in words if word.startswith("run.seed="))
        name = f"{Path(config).stem}-seed{seed[9:]}"
        assert words[-1] == f"run.dir=runs/compare-40/{name}" and "x.y=1" in words
        pairs.add((config, seed))
    assert pairs == {(f"configs/{config}.yaml", f"run.seed={seed}") for config in "ab" for seed in (0, 1)}


def test_build_shards_builds_both_splits_where_it_is_told(job):
    job.write("venv/bin/python", f'echo "$*" >>{job.log}')
    process = job.start_job(
        "build_shards.sh", "nyud", "/archives/NYU v2", "--samples-per-shard", "4", SLURM_CPUS_PER_TASK="3"
    )
    assert process.wait(30) == 0
    common = "-m fgmoe_dist.cli shards build --dataset nyud --root /archives/NYU v2"
    assert job.calls() == [
        f"{common} --split {split} --out data/nyud/{split} --workers 3 --samples-per-shard 4"
        for split in ("train", "val")
    ]


def test_without_sbatch_a_batch_script_says_so(stubs):
    failed = stubs.run("slurm/train_nyud.sh")
    assert failed.returncode != 0
    assert "start this with sbatch" in failed.stderr
