"""Builds what is in k8s/, without a cluster."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml

from bench import overlays
from bench.overlays import K8S, Objects


@cache
def built(folder: Path) -> Objects:
    if overlays.kustomize() is None:
        pytest.skip("no kustomize, kubectl or Go here")
    objects, warnings = overlays.built(folder)
    assert not warnings, "kustomize warns of what it will not understand one day"
    return objects


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
