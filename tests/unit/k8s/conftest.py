"""Builds what is in k8s/, without a cluster."""

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
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


@cache
def built(folder: Path) -> Objects:
    command = kustomize()
    if command is None:
        pytest.skip("no kustomize, kubectl or Go here")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kustomize warns of what it will not understand one day"
    return [*yaml.safe_load_all(done.stdout)]


@pytest.fixture(scope="session")
def overlay() -> Callable[[str], Objects]:
    """The objects of an overlay by its name; of the base by `base`."""

    def of(name: str) -> Objects:
        return built(K8S / name if name == "base" else K8S / "overlays" / name)

    return of


@pytest.fixture(scope="session")
def with_component(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Objects]:
    """The objects of the base with these components."""

    @cache
    def of(*components: str) -> Objects:
        folder = tmp_path_factory.mktemp("overlay")
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(K8S / "base", folder)],
            "components": [os.path.relpath(K8S / "components" / name, folder) for name in components],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return built(folder)

    return of
