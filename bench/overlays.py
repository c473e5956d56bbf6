"""What kustomize makes of a folder of k8s/, on a machine with kustomize, kubectl or Go."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
K8S = ROOT / "k8s"
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.8.1"

Objects = list[dict[str, Any]]


@cache
def kustomize() -> list[str] | None:
    """The command that builds a kustomization; None where this machine has none and can't make one."""
    if found := shutil.which("kustomize"):
        return [found, "build"]
    if found := shutil.which("kubectl"):
        return [found, "kustomize"]
    made = ROOT / ".headrace" / "bin" / "kustomize"
    if not made.is_file():
        if not shutil.which("go"):
            return None
        environment = os.environ | {"GOBIN": str(made.parent)}
        subprocess.run(["go", "install", KUSTOMIZE], env=environment, check=True, capture_output=True, timeout=900)
    return [str(made), "build"]


def built(folder: Path) -> tuple[Objects, str]:
    """The objects, and what kustomize warns of. Raises ValueError with its words where it refuses the folder, and
    FileNotFoundError where there is no kustomize.
    """
    command = kustomize()
    if command is None:
        raise FileNotFoundError("no kustomize, kubectl or Go here")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return [*yaml.safe_load_all(done.stdout)], done.stderr
