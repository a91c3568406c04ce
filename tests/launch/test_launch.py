# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The launchers, against stand-ins that write down what they were asked to do."""

import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"

# A cloud in one folder: `slice` and `queue` hold states, `codes` how each start ends.
GCLOUD = """
cd "$CLOUD"; echo "$*" | head -n 1 >> asked
state() { cat "$1" 2>/dev/null || exit 1; }
case "$*" in
  "storage ls"*) [ -e DONE ] ;;
  *"tpu-vm describe"*) state slice ;;
  *"queued-resources describe"*) state queue ;;
  *"queued-resources create"*) echo READY > slice; echo ACTIVE > queue ;;
  *"queued-resources delete"*) rm -f slice queue ;;
  *nohup*)
    head -n 1 codes > code; sed -i 1d codes
    case $(cat code) in
      0) touch DONE ;;
      preempted) echo PREEMPTED > slice; echo SUSPENDED > queue ;;
    esac ;;
  *"g2sd exit"*) [ "$(cat slice)" = READY ] && echo "g2sd exit $(cat code)" ;;
  *"tail --pid"*) [ "$(cat slice)" = READY ] ;;
esac
"""
POD = ("--name=g2sd", "--zone=z", "--type=v5litepod-64", "--runtime=r", "--spot")
POD += ("--workdir=gs://b/run", "--", "--config=pretrain", "--config.data.mean=(1, 2)")


def stand_in(folder: pathlib.Path, name: str, script: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + script)
    path.chmod(0o755)


def environment(folder: pathlib.Path, **more) -> dict:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "CLOUD": str(folder), "G2SD_POLL": "0", **more}


def shell(folder, script, *words, **more):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words],
        env=environment(folder, **more),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def pod(folder, *codes, words=POD):
    stand_in(folder, "gcloud", GCLOUD)
    stand_in(folder, "git", 'echo "git $*" >> "$CLOUD/asked"')
    (folder / "codes").write_text("\n".join(codes) + "\n")
    done = shell(folder, "tpu_pod.sh", *words)
    asked = folder / "asked"
    return done, asked.read_text().splitlines() if asked.exists() else []


def count(asked, words) -> int:
    return sum(words in line for line in asked)


def test_a_preempted_pod_is_made_again_until_the_run_is_done(tmp_path):
    done, asked = pod(tmp_path, "preempted", "75", "0")
    assert done.returncode == 0, done.stderr
    assert count(asked, "queued-resources create g2sd --node-id=g2sd --zone=z") == 2
    assert count(asked, "--accelerator-type=v5litepod-64 --runtime-version=r --spot")
    assert count(asked, "tpu-vm scp") == 2, "each new slice gets the code"
    # The lost slice is deleted before another is made, and the last one at the end.
    order = [line.split()[3] for line in asked if "queued-resources" in line]
    kept = [verb for verb in order if verb != "describe"]
    assert kept == ["create", "delete", "create", "delete"]
    assert count(asked, "nohup bash -c") == 0  # It is on the second line.
    assert not (tmp_path / "slice").exists()
    assert "gs://b/run is done" in done.stdout


def test_a_mistake_ends_the_launcher_and_a_crash_is_tried_thrice(tmp_path):
    done, asked = pod(tmp_path, "2")
    assert done.returncode == 2
    assert "a mistake that a restart does not mend" in done.stderr
    assert count(asked, "queued-resources delete") == 0
    shutil.rmtree(tmp_path / "bin")
    (tmp_path / "asked").unlink()
    done, asked = pod(tmp_path, "1", "1", "1")
    assert done.returncode == 1
    assert "crashed with 1  (3 in a row)" in done.stderr
    # The slice of before was there still.
    assert count(asked, "queued-resources create") == 0


def test_what_is_done_starts_nothing(tmp_path):
    (tmp_path / "DONE").touch()
    done, asked = pod(tmp_path)
    assert done.returncode == 0
    assert count(asked, "create") == count(asked, "scp") == 0


def test_dry_run_prints_every_command_and_runs_none(tmp_path):
    done, asked = pod(tmp_path, words=("--dry-run", *POD))
    assert done.returncode == 0
    assert not asked
    told = [line[2:] for line in done.stderr.splitlines() if line.startswith("+ ")]
    parts = ("create", "scp", "--worker=all", "nohup", "tail", "storage ls", "delete")
    for part in parts:
        assert any(part in line for line in told), part
    # What the workers are told to run is the command line that was given.
    start = next(line for line in told if "nohup" in line)
    assert "--config.data.mean=" in start


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "--name=… is missing"),
        (("--nmae=x",), "--nmae=x is not an argument"),
        (POD[:6], "what to train is missing"),
    ],
)
def test_what_is_missing_is_named(tmp_path, words, said):
    done, asked = pod(tmp_path, words=words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not asked


G2SD = """
share=$XLA_PYTHON_CLIENT_MEM_FRACTION
echo "$CUDA_VISIBLE_DEVICES|$XLA_FLAGS|$share|$*" >> "$CLOUD/ran"
trap 'exit 75' TERM
code=$(head -n 1 "$CLOUD/codes"); sed -i 1d "$CLOUD/codes"
if [ "$code" = wait ]; then for _ in $(seq 100); do sleep 0.1; done; fi
exit "${code:-0}"
"""


def gpu(folder, codes, *words):
    stand_in(folder, "g2sd", G2SD)
    (folder / "codes").write_text("\n".join(codes) + "\n")
    done = shell(folder, "gpu_host.sh", *words)
    ran = folder / "ran"
    return done, ran.read_text().splitlines() if ran.exists() else []


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gpu_host.sh"])
def test_help_is_told_from_anywhere(script, tmp_path):
    for command, folder in (
        (["bash", script, "--help"], LAUNCH),
        (["bash", f"launch/{script}", "--help"], LAUNCH.parent),
        (["bash", str(LAUNCH / script), "-h"], tmp_path),
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), folder
        assert f"bash launch/{script} " in done.stdout


def test_gpu_host_starts_again_what_saved_and_left(tmp_path):
    words = ("--gpus=0,2", "--memory=0.9", "--deterministic", "--", "--config=pretrain")
    done, ran = gpu(tmp_path, ("75", "0"), *words)
    assert done.returncode == 0, done.stderr
    devices, flags, memory, given = ran[0].split("|")
    assert (devices, memory, given) == ("0,2", "0.9", "train --config=pretrain")
    assert "--xla_gpu_deterministic_ops=true" in flags
    assert len(ran) == 2
    done, ran = gpu(tmp_path, ("3",), *words)
    assert done.returncode == 3


def test_gpu_host_runs_one_process_per_gpu(tmp_path):
    done, ran = gpu(
        tmp_path, ("0", "0"), "--gpus=1,3", "--per-gpu", "--", "--workdir=w"
    )
    assert done.returncode == 0, done.stderr
    ends = {
        line.split("|")[0]: line.split(" --coordinator=localhost:")[1] for line in ran
    }
    assert ends["1"].endswith("--processes=2 --process=0")
    assert ends["3"].endswith("--processes=2 --process=1")


def test_gpu_host_passes_a_signal_on_and_does_not_start_again(tmp_path):
    stand_in(tmp_path, "g2sd", G2SD)
    (tmp_path / "codes").write_text("wait\nwait\n")
    command = ["bash", str(LAUNCH / "gpu_host.sh"), "--gpus=0", "--", "--workdir=w"]
    process = subprocess.Popen(command, env=environment(tmp_path), cwd=tmp_path)
    deadline = time.monotonic() + 20
    while not (tmp_path / "ran").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # Until its trap is set.
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert len((tmp_path / "ran").read_text().splitlines()) == 1


SBATCH = """
array=${1#--array=}; shift; script=$1; shift
for index in $(seq "${array%-*}" "${array#*-}"); do
  SLURM_JOB_ID=$((70 + index)) SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$index \
    bash "$script" "$@"
done
"""
SRUN = """
printf '%s\\n' "$@" >> "$CLOUD/ran"; echo -- >> "$CLOUD/ran"
case "$*" in *seed=1*) exit 75 ;; esac
"""
SWEEP = """
RECIPE, METRIC, BEST = "pretrain:smoke", "loss", "min"
SHARED = {"data": {"mean": (0.5, 0.25)}, "wandb": ""}


def get_sweep():
    return {"optim.lr": (1e-3, 2e-3), "seed": (0, 1)}
"""


def sweep(folder, *words):
    (folder / "x.py").write_text(SWEEP)
    command = [sys.executable, str(LAUNCH / "sweep.py"), f"--sweep={folder / 'x.py'}"]
    command += [f"--workdir={folder / 'runs'}", *words]
    env = environment(folder, PYTHONPATH=str(ROOT))
    return subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_a_sweep_as_a_slurm_array(tmp_path):
    told = sweep(tmp_path, "--emit=slurm").stdout.split()
    assert told[:2] == ["sbatch", "--array=0-3"]
    stand_in(tmp_path, "sbatch", SBATCH)
    stand_in(tmp_path, "srun", SRUN)
    stand_in(tmp_path, "scontrol", 'echo "$*" >> "$CLOUD/queued"')
    submitted = subprocess.run(
        told, env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True
    )
    assert submitted.returncode == 0, submitted.stderr
    runs = (tmp_path / "ran").read_text().split("--\n")[:-1]
    assert len(runs) == 4
    words = runs[2].splitlines()
    assert words[:3] == ["--kill-on-bad-exit=1", "g2sd", "train"]
    assert words[3:] == [
        "--config=pretrain:smoke",
        f"--workdir={tmp_path / 'runs' / 'lr=0.002_seed=0'}",
        "--config.data.mean=(0.5, 0.25)",
        "--config.wandb=",
        "--config.optim.lr=0.002",
        "--config.seed=0",
    ]
    # The two that saved and left are queued again, each as its element.
    assert (tmp_path / "queued").read_text().splitlines() == [
        "requeue 7_1",
        "requeue 7_3",
    ]


def test_a_sweep_as_pods(tmp_path):
    assert sweep(tmp_path, "--emit=pods", "--pod=--zone=z --spot").returncode == 0
    lines = (tmp_path / "runs" / "pods.txt").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(
        "bash launch/tpu_pod.sh --name=g2sd-lr-0-001-seed-0 --zone=z --spot --workdir="
    )
    assert " -- --config=pretrain:smoke '--config.data.mean=(0.5, 0.25)'" in lines[0]


def test_a_sweep_in_a_bucket_keeps_both_slashes(tmp_path):
    (tmp_path / "x.py").write_text(SWEEP)
    command = [sys.executable, str(LAUNCH / "sweep.py"), f"--sweep={tmp_path / 'x.py'}"]
    command += ["--workdir=gs://b/runs/"]
    how = dict(env=environment(tmp_path, PYTHONPATH=str(ROOT)), cwd=tmp_path)
    for kind in ("slurm", "pods"):
        subprocess.run([*command, f"--emit={kind}"], check=True, **how)
        lines = (tmp_path / f"{kind}.txt").read_text().splitlines()
        assert all(" --workdir=gs://b/runs/lr=0.00" in line for line in lines)
    assert not (tmp_path / "gs:").exists()
    done = subprocess.run(command, capture_output=True, text=True, **how)
    assert done.returncode == 2
    assert "local disks alone" in done.stderr


def stand_in_for_runs(folder, body):
    """A `g2sd_jax.cli` in `folder` that does `body`, and a sweep of it."""
    (folder / "x.py").write_text(SWEEP)
    (folder / "g2sd_jax").mkdir()
    (folder / "g2sd_jax" / "__init__.py").touch()
    (folder / "g2sd_jax" / "cli.py").write_text(body)


def test_a_sweep_that_is_told_to_stop_ends_its_runs(tmp_path):
    stand_in_for_runs(
        tmp_path,
        "import pathlib, signal, sys, time\n"
        "def leave(*_):\n"
        "    pathlib.Path('left').touch(); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "pathlib.Path('ran').touch(); time.sleep(60)\n",
    )
    command = [sys.executable, str(LAUNCH / "sweep.py"), f"--sweep={tmp_path / 'x.py'}"]
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path / 'runs'}"],
        env=environment(tmp_path, PYTHONPATH=str(tmp_path)),
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "ran").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert (tmp_path / "left").exists()


def test_a_run_that_always_leaves_is_not_started_for_ever(tmp_path, monkeypatch):
    sweep = runpy.run_path(str(LAUNCH / "sweep.py"))
    local, (now, slept) = sweep["local"], ([0.0], [])

    def sleep(seconds):
        slept.append(seconds)
        now[0] += 30

    clock = types.SimpleNamespace(time=lambda: now[0], sleep=sleep)
    started = []

    def start(command, **how):
        started.append(now[0])
        return types.SimpleNamespace(poll=lambda: 75, returncode=75)

    process = types.SimpleNamespace(Popen=start)
    local.__globals__.update(time=clock, subprocess=process, MOST_RESTARTS=5)
    assert local({"x": []}, str(tmp_path), 1) == ["x"]
    assert len(started) == 6  # The first and five more.


def test_a_sweep_goes_on_past_a_failure_and_picks_the_best(tmp_path):
    (tmp_path / "x.py").write_text(SWEEP)
    folder = tmp_path / "runs"
    for run, losses in {"lr=0.001_seed=0": (3, 2), "lr=0.002_seed=1": (1, 2.5)}.items():
        (folder / run).mkdir(parents=True)
        rows = [f'{{"step": {at}, "loss": {loss}}}\n' for at, loss in enumerate(losses)]
        (folder / run / "metrics.jsonl").write_text("".join(rows) + '{"step": 9, "lo')
    done = sweep(tmp_path, "--report")
    assert done.returncode == 0, done.stderr
    assert "| lr=0.001_seed=0 | 2 | 2 | 1 | 1 | no |" in done.stdout
    assert "| lr=0.002_seed=1 | 2.5 | 1 | 0 | 1 | no |" in done.stdout
    assert "best by the last loss (min): lr=0.001_seed=0" in done.stdout
    assert (folder / "sweep.png").stat().st_size > 1000
    # Two are done already; the stand-in fails one of the others.
    for run in ("lr=0.001_seed=0", "lr=0.002_seed=1"):
        (folder / run / "DONE").touch()
    fake = (
        "import pathlib, sys\n"
        "work = pathlib.Path(sys.argv[3].partition('=')[2])\n"
        "ran = work.parent / 'ran'\n"
        "ran.open('a').write(work.name + '\\n')\n"
        "if 'lr=0.001' in work.name: sys.exit(2)\n"
        "if ran.read_text().count(work.name) == 1: sys.exit(75)\n"
        "work.mkdir(); (work / 'DONE').touch()\n"
    )
    stand_in_for_runs(tmp_path, fake)
    command = [sys.executable, str(LAUNCH / "sweep.py"), f"--sweep={tmp_path / 'x.py'}"]
    done = subprocess.run(
        [*command, f"--workdir={folder}", "--at-once=2"],
        env=environment(tmp_path, PYTHONPATH=str(tmp_path)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "failed: lr=0.001_seed=1" in done.stderr
    ran = sorted((folder / "ran").read_text().split())
    assert ran == ["lr=0.001_seed=1", "lr=0.002_seed=0", "lr=0.002_seed=0"]


# A cluster that reads the failure policies: argv[1:] is what each start exits with.
KUBECTL = """
import os, sys, yaml
asked = sys.argv[1:]
assert asked == ["apply", "-f", "-"], asked
spec = yaml.safe_load(sys.stdin)["spec"]
job = spec["replicatedJobs"][0]["template"]["spec"]
mistakes = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
restarts = 0
for code in map(int, os.environ["CODES"].split()):
    if code == 0:
        print("completed after", restarts)
        break
    reason = "PodFailurePolicy" if code in mistakes else "BackoffLimitExceeded"
    rules = spec["failurePolicy"]["rules"]
    actions = [r["action"] for r in rules if reason in r["onJobFailureReasons"]]
    if actions == ["FailJobSet"] or restarts == spec["failurePolicy"]["maxRestarts"]:
        print("failed after", restarts)
        break
    restarts += 1
"""


@pytest.mark.parametrize(
    "codes, said", [("75 143 1 0", "completed after 3"), ("75 2 0", "failed after 1")]
)
def test_the_jobset_restarts_all_but_mistakes(tmp_path, codes, said):
    manifest = (LAUNCH / "gke_jobset.yaml").read_text()
    (tmp_path / "kubectl.py").write_text(KUBECTL)
    stand_in(tmp_path, "kubectl", f'{sys.executable} "$CLOUD/kubectl.py" "$@"')
    command = "sed 's|IMAGE|r/g2sd|; s|BUCKET|b|' | kubectl apply -f -"
    done = subprocess.run(
        ["bash", "-c", command],
        input=manifest,
        env=environment(tmp_path, CODES=codes),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == said, done.stderr


def test_the_jobset_asks_for_the_whole_slice():
    manifest = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == job["parallelism"]
    assert job["completions"] * chips == int(rows) * int(columns)
    assert job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ("python3.12", "python3.12"),
        ("pyenv/versions/3.13.0/bin/python", "pyenv/versions/3.13.0/bin/python"),
        ("uv", "found by uv"),
        ("", ""),
    ],
)
def test_the_newest_libraries_get_a_python_or_an_error(runs, expected, tmp_path):
    """Names of pyenv may be in PATH and run nothing: then the next one is tried."""
    for name in ("python3.13", "python3.12", "uv", "pip"):
        stand_in(tmp_path, name, "exit 127")
    stand_in(tmp_path, "pip", "")
    folder = tmp_path / "pyenv/versions/3.13.0/bin"
    folder.mkdir(parents=True)
    (folder / "python").touch()
    if runs.startswith("pyenv"):
        (folder / "python").write_text("#!/usr/bin/env bash\n")
        (folder / "python").chmod(0o755)
    elif runs:
        stand_in(tmp_path, runs, '[ "$2" != find ] || echo found by uv')
    done = subprocess.run(
        [
            "bash",
            "-euc",
            f"source {LAUNCH}/env.sh; python=$(newest_python); echo $python",
        ],
        env=environment(tmp_path, PYENV_ROOT=str(tmp_path / "pyenv")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == bool(expected), done.stderr
    assert done.stdout.strip().removeprefix(f"{tmp_path}/") == expected


def test_shell_scripts_are_clean():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    checker = shutil.which("shellcheck") or (beside.exists() and str(beside))
    if not checker:
        pytest.skip("shellcheck is not installed; pip install 'g2sd_jax[dev]' has it")
    scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), ROOT / ".ci" / "run"]
    command = [checker, "-x", *(str(path.relative_to(ROOT)) for path in scripts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
