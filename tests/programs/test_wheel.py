# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""An installed g2sd_jax trains beside a user's `configs`; so does a bare checkout.

Nothing is downloaded: the environments made here see the packages of this one.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

import g2sd_jax

ROOT = pathlib.Path(__file__).resolve().parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
OFFLINE = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")
RECIPE = """
from g2sd_jax.configs import common, finetune


def get_config(text=""):
    config = finetune.get_config(text)
    config.augment = common.augment(flip=0.5)
    return config
"""


def run(*command, cwd, status=0) -> str:
    """Runs a command that has to end with `status`; returns all it printed."""
    environment = {key: os.environ[key] for key in os.environ.keys() - {"PYTHONPATH"}}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)  # As for a user.
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def make_environment(folder: pathlib.Path) -> pathlib.Path:
    """Makes a virtual environment of this one's packages but g2sd_jax; its `bin`."""
    venv.create(folder, symlinks=True, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # Listed in a .pth file, folders are searched last, and .pth files in them, such as
    # that of an editable g2sd_jax, are not read.
    seen = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    packages = folder / "lib" / version / "site-packages"
    (packages / "this_environment.pth").write_text("\n".join(sorted(seen)))
    return folder / "bin"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository, which building and installing write into."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("g2sd_jax", "configs", "launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", *OFFLINE, "--wheel-dir", folder, checkout, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def user_folder(tmp_path):
    """A folder with a `configs` package of the user's, and a recipe of theirs."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()
    (tmp_path / "configs" / "common.py").write_text("raise RuntimeError('not ours')\n")
    (tmp_path / "mine.py").write_text(RECIPE)
    return tmp_path


def places(bin_folder, cwd) -> list[pathlib.Path]:
    """Where `g2sd_jax` and `g2sd_jax.configs` are imported from."""
    code = (
        "import g2sd_jax.configs as c, g2sd_jax as p; print(*p.__path__, *c.__path__)"
    )
    return [
        pathlib.Path(place).resolve()
        for place in run(bin_folder / "python", "-c", code, cwd=cwd).split()
    ]


def files_in(folder) -> set[str]:
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)) for path in paths if path.is_file()}


def test_a_wheel_holds_one_package_with_all_its_files(wheel, checkout):
    names = zipfile.ZipFile(wheel).namelist()
    about = f"g2sd_jax-{g2sd_jax.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"g2sd_jax", about}
    package, configs = checkout / "g2sd_jax", checkout / "configs"
    expected = {f"g2sd_jax/{name}" for name in files_in(package)}
    expected |= {f"g2sd_jax/configs/{name}" for name in files_in(configs)}
    assert {name for name in names if not name.startswith(about)} == expected


@pytest.mark.slow
def test_a_wheel_trains_beside_a_configs_package_of_the_user(
    wheel, user_folder, tmp_path_factory
):
    bin_folder = make_environment(tmp_path_factory.mktemp("installed"))
    python = bin_folder / "python"
    run(*PIP, "--python", python, "install", *OFFLINE, wheel, cwd=user_folder)
    package, configs = places(bin_folder, user_folder)
    assert package.is_relative_to(bin_folder.parent)
    assert configs == package / "configs"

    named = "--config=generic_distill:smoke,steps=2"
    program = (python, "-m", "g2sd_jax.main")  # Looks into the user's folder first.
    run(*program, named, "--workdir=named", cwd=user_folder)
    own = ("--config=mine.py:smoke,steps=2", "--config.optim.lr=1e-5")
    run(bin_folder / "g2sd", "train", *own, "--workdir=own", cwd=user_folder)
    assert (user_folder / "named" / "DONE").exists()
    assert (user_folder / "own" / "DONE").exists()
    # It reads the fingerprints that are shipped with the recipes.
    printed = run(bin_folder / "g2sd", "doctor", "own", cwd=user_folder)
    assert printed.startswith("nothing looks wrong after 2 steps; no fingerprint fits")

    # Nothing called `configs` is here.
    (user_folder / "old.py").write_text("from configs import common\n")
    shutil.rmtree(user_folder / "configs")
    old = (*program, "--config=old.py", "--workdir=old")
    assert run(*old, cwd=user_folder, status=2) == (
        "error: recipe old.py, line 1: ModuleNotFoundError: No module named 'configs'; "
        "the shipped recipes are imported `from g2sd_jax.configs`\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("installed", [False, True], ids=["bare", "editable"])
def test_a_checkout_finds_its_recipes(
    installed, checkout, user_folder, tmp_path_factory
):
    bin_folder = make_environment(tmp_path_factory.mktemp("environment"))
    python = bin_folder / "python"
    if installed:
        install = (*PIP, "--python", python, "install", *OFFLINE, "--editable")
        run(*install, checkout, cwd=user_folder)
    cwd = user_folder if installed else checkout
    assert places(bin_folder, cwd) == [checkout / "g2sd_jax", checkout / "configs"]

    # Refused for its last key, after everything before it was understood.
    program = (python, "-m", "g2sd_jax.main", "--workdir=w", "--config.batch=0")
    by_path = checkout / "configs/pretrain.py"
    for spec in ("pretrain", by_path, user_folder / "mine.py"):
        printed = run(*program, f"--config={spec}:smoke", cwd=cwd, status=2)
        assert printed.startswith("error: config.batch=0 "), printed

    sweep = (python, checkout / "launch/sweep.py", "--workdir=runs", "--emit=slurm")
    shipped = checkout / "configs/sweeps/digits_lr.py"
    printed = run(*sweep, f"--sweep={shipped}", cwd=user_folder)
    assert printed.startswith("sbatch --array=0-5 ")
    (user_folder / "old.py").write_text("from configs.chains import digits\n")
    printed = run(*sweep, "--sweep=old.py", cwd=user_folder, status=2)
    assert printed.endswith("are imported `from g2sd_jax.configs`.\n"), printed
    assert printed.count("\n") == 1
