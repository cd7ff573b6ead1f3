"""Identity on a network that has learned: real ImageNet weights and photographs."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import foveate
from cases import fitting

DATA = Path(__file__).parents[2] / "shared" / "data"
WEIGHTS = DATA / "mobilenetv2_100.imagenet.safetensors"
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not WEIGHTS.exists(), reason=f"{WEIGHTS.name} is not beside the checkout"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([DATA / "unpack", folder, "photos"], check=True, capture_output=True)
    pixels = [
        np.asarray(Image.open(path).convert("RGB").resize((224, 224)))
        for path in sorted((folder / "photos").glob("*.jpg"))[::2]
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def network() -> nn.Module:
    model = timm.create_model("mobilenetv2_100", pad_type="same")
    model.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return model.eval()


@pytest.fixture(scope="module")
def logits(network: nn.Module, photos: Tensor) -> Tensor:
    with torch.inference_mode():
        found = network(photos)
    assert found.softmax(1).amax(1).median() > 0.5  # the weights are what they say
    return found


# Each mechanism at one of the places: the small hosts meet them all.
_PLACED = [
    (key, where)
    for k, key in enumerate(foveate.list_mechanisms())
    for p, where in enumerate((None, "residual", "conv3x3", "stage"))
    if (k + p) % 4 == 0 or key == "se"
]


@pytest.mark.parametrize(("key", "where"), _PLACED)
def test_no_logit_changes(
    key: str, where: str | None, network: nn.Module, photos: Tensor, logits: Tensor
) -> None:
    keys = list(network.state_dict())
    handle = foveate.insert(network, key, where=where, example=photos, **fitting(key, 8))
    try:
        with torch.inference_mode():
            assert torch.equal(network(photos), logits)
            if key == "se":  # the mechanisms are really in the way
                for module in handle.modules.values():
                    module.strength.fill_(1.0)
                assert not torch.equal(network(photos), logits)
    finally:
        foveate.remove(network)
    assert list(network.state_dict()) == keys
