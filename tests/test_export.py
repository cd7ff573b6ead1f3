"""Exported networks: they agree at other sizes, or the export fails and says where."""

import os
import stat
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import foveate
from cases import DEFAULTS, Case
from foveate import export
from foveate.export import runtimes, to_openvino
from foveate.export.agreement import Runner, difference
from foveate.export.layers import first_difference, layers_of
from foveate.export.to_onnx import open_proto, read_attention, usual_sizes
from foveate.insertion import insert

SIZES = [(1, 21, 17), (5, 16, 24), (3, 28, 28), (2, 14, 10)]
IMAGE = torch.zeros(1, 3, 14, 10)


class Around(nn.Module):
    """A mechanism between two convolutions, so that no size of the map is the input's alone."""

    def __init__(self, mechanism: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.attention = mechanism
        self.head = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.stem(x)))


def network(key: str = "se", **options: object) -> nn.Module:
    torch.manual_seed(0)
    host = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1)
    )
    host.add_module("pool", nn.AdaptiveAvgPool2d(1))
    host.add_module("flat", nn.Flatten())
    insert(host, key, where="after", at="2", init="paper", example=IMAGE, **options)
    return host.eval()


@pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: case.id)
def test_every_mechanism_computes_the_same_in_onnx_at_other_sizes(
    case: Case, tmp_path: Path
) -> None:
    channels = case.fit(16)
    model = Around(case.randomised(channels, dtype=torch.float32), channels)
    sizes = [(b, h + case.least, w + case.least) for b, h, w in SIZES]
    example = torch.zeros(1, 3, 14 + case.least, 10 + case.least)
    found = export.onnx(model, example, tmp_path / "m.onnx", sizes=sizes)
    assert list(found.differences) == [(b, 3, h, w) for b, h, w in sizes]
    assert found.worst < 1e-4
    graph = open_proto(tmp_path / "m.onnx").graph
    # Fused kernels would be operations of our own, and baked sizes would be in these.
    assert {node.domain for node in graph.node} == {""}
    assert len(graph.node) < 250  # of many more the exporter takes minutes for a few layers
    assert "attention" in {name for node in graph.node for name in layers_of(node)} or (
        case.key == "static"
    )


class Wrong(nn.Module):
    """Computes something else when it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.01 if torch.compiler.is_exporting() else 1.0)


def planted() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    model.add_module("wrong", nn.Sequential(nn.Conv2d(4, 4, 1), Wrong()))
    model.add_module("after", nn.Conv2d(4, 2, 1))
    return model.eval()


@pytest.mark.parametrize(("write", "name"), [(export.onnx, "m.onnx"), (export.program, "m.pt2")])
def test_a_mismatch_names_the_layer_where_it_begins_and_keeps_nothing(
    write: Any, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(b"what was there")
    with pytest.raises(export.MismatchError, match=r"begins at layer 'wrong\.1'"):
        write(planted(), IMAGE, path)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_openvino_names_the_layer_too(tmp_path: Path) -> None:
    model, path = planted(), tmp_path / "m.onnx"
    export.onnx(model, IMAGE, path, tolerance=1.0)
    layers = partial(to_openvino._layers, path)
    with torch.no_grad():
        where = first_difference(model, layers, torch.rand(2, 3, 9, 7), tolerance=1e-4)
        assert where == "layer 'wrong.1'"
        where = first_difference(model, layers, torch.rand(2, 3, 9, 7), tolerance=1.0)
        assert where.startswith("no layer: where each is read all agree")


def test_two_files_are_replaced_both_or_neither(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("what was there")
    (tmp_path / "m.bin").mkdir()
    with pytest.raises(ValueError, match=r"cannot write .*m\.bin: it is a folder"):
        export.openvino(network(), IMAGE, tmp_path / "m.xml")
    assert (tmp_path / "m.xml").read_text() == "what was there"
    assert {path.name for path in tmp_path.iterdir()} == {"m.xml", "m.bin"}


def test_a_network_without_open_sizes_can_be_exported_for_one(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(14, 10)

    with pytest.raises(ValueError, match=r"cannot be exported with open sizes.*fixed_size"):
        export.onnx(Fixed(), IMAGE, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    found = export.onnx(Fixed(), IMAGE, tmp_path / "m.onnx", fixed_size=True)
    assert list(found.differences) == [(b, 3, 14, 10) for b in (1, 2, 5)]


def test_padding_by_the_size_of_the_input_is_refused_with_open_sizes(tmp_path: Path) -> None:
    host = timm.layers.Conv2dSame(3, 4, 3, stride=2)
    assert not export.takes_any_size(host, IMAGE)
    assert export.takes_any_size(network(), IMAGE)
    with pytest.raises(ValueError, match=r"pads by the size of its input.*it can with fixed_size"):
        export.onnx(host, IMAGE, tmp_path / "m.onnx")
    assert export.onnx(host, IMAGE, tmp_path / "m.onnx", fixed_size=True).worst < 1e-5


def test_mode_and_gradients_stay_as_they_were(tmp_path: Path) -> None:
    model = network().train()
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export.onnx(model, IMAGE, tmp_path / "m.onnx")
    assert [m.training for m in model.children()] == [False, True, True, True, True, True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("key", "opset"),
    [("se", 11), ("se", 12), ("cbam", 11), ("coord", 13), ("coord", 17), ("cbam", 18), ("se", 22)],
)
def test_the_file_has_the_opset_that_was_asked_for(key: str, opset: int, tmp_path: Path) -> None:
    assert export.onnx(network(key), IMAGE, tmp_path / "m.onnx", opset=opset).worst < 1e-5
    proto = open_proto(tmp_path / "m.onnx")
    assert [one.version for one in proto.opset_import if not one.domain] == [opset]


def test_an_operation_that_is_too_new_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in opset 12: the split of Split must be known"):
        export.onnx(network("coord"), IMAGE, tmp_path / "m.onnx", opset=12)
    host = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LayerNorm([8, 14, 10]))
    with pytest.raises(ValueError, match=r"in opset 16: LayerNormalization does not exist in"):
        export.onnx(host, IMAGE, tmp_path / "m.onnx", opset=16, fixed_size=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"opset": 10}, ValueError, "opset must be from 11 to"),
        ({"opset": 99}, ValueError, "opset must be from 11 to"),
        ({"example": torch.zeros(3, 14, 10)}, ValueError, r"example must be \(B, C, H, W\)"),
        ({"path": "no/such/folder/m.onnx"}, ValueError, "cannot write"),
        ({"sizes": []}, ValueError, "sizes must name at least one"),
        ({"example": IMAGE.double()}, ValueError, "example must be float32 or float16"),
        ({"sizes": [(1, 0, 0)]}, ValueError, "the network itself refuses"),
    ],
)
def test_bad_input_is_named(
    change: dict[str, object],
    error: type[Exception],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    how = {"model": network(), "example": IMAGE, "path": "m.onnx", **change}
    with pytest.raises(error, match=words):
        export.onnx(**how)
    assert not list(tmp_path.iterdir())


def test_what_is_not_one_network_with_one_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a compiled network cannot be exported"):
        export.onnx(torch.compile(network(), backend="eager"), IMAGE, tmp_path / "m.onnx")

    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Lost(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.nan

    with pytest.raises(ValueError, match=r"only networks that give one tensor.* gives tuple"):
        export.onnx(Two(), IMAGE, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="the network itself gives no finite number at"):
        export.onnx(Lost(), IMAGE, tmp_path / "m.onnx")
    for odd in (nn.Bilinear(2, 2, 2), nn.Conv2d(1, 4, 1)):
        with pytest.raises(ValueError, match=r"the network itself refuses an input of \(1, 3,"):
            export.onnx(odd, IMAGE, tmp_path / "m.onnx")


def test_a_file_keeps_what_it_was_told_and_where_attention_is(tmp_path: Path) -> None:
    about = {"classes": ["é", "b"], "mean": [0.5]}
    export.onnx(network("cbam"), IMAGE, tmp_path / "m.onnx", about=about)
    assert export.read_about(tmp_path / "m.onnx") == about
    assert read_attention(tmp_path / "m.onnx")[0] == "2.attention"


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export.onnx(network(), IMAGE, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"m\.onnx is not a whole ONNX file"):
        export.read_about(path)


def test_differences_are_of_finite_numbers_and_what_is_not_finite_must_be_the_same() -> None:
    inf, nan = float("inf"), float("nan")
    expected = torch.tensor([inf, nan, 1.0, -2.0])
    assert difference(expected, expected) == 0
    assert difference(torch.tensor([inf, nan, 1.0, -1.0]), expected) == 0.5
    for other in ([inf, 0.0, 1.0, -2.0], [-inf, nan, 1.0, -2.0], [1e38, nan, 1.0, -2.0]):
        assert difference(torch.tensor(other), expected) == inf
    assert difference(torch.tensor([nan]), torch.tensor([nan])) == inf  # nothing was compared


def test_a_link_is_followed_and_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "m.onnx").symlink_to(tmp_path / "real" / "m.onnx")
    export.onnx(network(), IMAGE, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").is_symlink()
    assert (tmp_path / "real" / "m.onnx").is_file()
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ValueError, match="it must be a file"):
        export.onnx(network(), IMAGE, tmp_path / "pipe.onnx")
    assert stat.S_ISFIFO((tmp_path / "pipe.onnx").stat().st_mode)


def test_usual_sizes_leave_the_example_behind() -> None:
    sizes = usual_sizes(32, 32)
    assert {b for b, _, _ in sizes} >= {1, 5}
    assert len({(h, w) for _, h, w in sizes} - {(32, 32)}) == 3


def test_openvino_and_torch_programs_agree_too(tmp_path: Path) -> None:
    model = network("cbam")
    assert export.openvino(model, IMAGE, tmp_path / "m.xml").worst < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"m.xml", "m.bin"}
    assert export.program(model, IMAGE, tmp_path / "m.pt2").worst < 1e-6
    loaded = torch.export.load(tmp_path / "m.pt2").module()
    x = torch.rand(3, 3, 9, 31)
    torch.testing.assert_close(loaded(x), model(x))
    for write, ending in ((export.openvino, ".xml"), (export.program, ".pt2")):
        with pytest.raises(ValueError, match=f"ends in {ending}, but got 'm.zip'"):
            write(model, IMAGE, "m.zip")


def test_tensorrt_is_built_by_its_own_tool_or_its_absence_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"built by trtexec.*not found"):
        export.tensorrt(network(), IMAGE, tmp_path / "m.engine")
    tool = tmp_path / "trtexec"
    tool.write_text(
        '#!/bin/sh\nfor word in "$@"; do case $word in --saveEngine=*) '
        'echo "$@" > "${word#--saveEngine=}";; esac; done\n'
    )
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    export.tensorrt(network(), IMAGE, tmp_path / "m.engine")
    words = (tmp_path / "m.engine").read_text()
    assert "--minShapes=images:1x3x14x10" in words
    assert "--maxShapes=images:8x3x14x10" in words
    tool.write_text("#!/bin/sh\necho no device >&2\nexit 1\n")
    with pytest.raises(RuntimeError, match="trtexec failed: no device"):
        export.tensorrt(network(), IMAGE, tmp_path / "other.engine")
    assert not (tmp_path / "other.engine").exists()


def test_runtimes_are_measured_in_turns_and_checked() -> None:
    models = {"none": nn.Conv2d(3, 4, 3), "se": network()}
    chosen = ["eager", "onnxruntime", "openvino"]
    times = export.measure(models, torch.rand(2, 3, 14, 10), chosen, repeats=3)
    assert list(times) == [(model, runtime) for model in models for runtime in chosen]
    assert all(time.median_ms > 0 for time in times.values())
    with pytest.raises(
        ValueError, match="unknown runtime 'onnxruntim'; did you mean 'onnxruntime'"
    ):
        export.measure(models, IMAGE, ["onnxruntim"])
    with pytest.raises(ValueError, match="tensorrt needs an ONNX Runtime with Tensorrt"):
        export.measure(models, IMAGE, ["tensorrt"])


def test_a_runtime_that_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(model: nn.Module, images: Tensor, at: Path) -> Runner:
        return lambda images: model(images) * 1.01

    monkeypatch.setitem(runtimes.RUNTIMES, "openvino", wrong)
    with pytest.raises(export.MismatchError, match=r"differs by 0\.01"):
        export.measure({"a": network()}, torch.rand(2, 3, 14, 10), ["eager", "openvino"])


def test_a_mode_that_differed_is_given_back_after_measuring() -> None:
    model = network().train()
    export.measure({"a": model}, IMAGE, ["eager"], repeats=1)
    assert all(module.training for module in model.modules())


def accuracy(labels: Tensor, images: Tensor):
    return lambda runner: 100 * float((runner(images).argmax(1) == labels).double().mean())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Tensor, Path]:
    model = network("cbam", reduction=2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # that of the spatial gate is published as zero
    path = tmp_path_factory.mktemp("small") / "m.onnx"
    export.onnx(model, IMAGE, path)
    return model, torch.randn(24, 3, 14, 10, generator=torch.Generator().manual_seed(0)), path


@pytest.mark.parametrize("gates", [False, True])
def test_eight_bits_leave_attention_in_floating_point(
    gates: bool, small: tuple[nn.Module, Tensor, Path], tmp_path: Path
) -> None:
    model, images, source = small
    labels = model(images).argmax(1)
    made = export.int8(
        source, tmp_path / "q.onnx", [images], accuracy(labels, images), max_drop=30, gates=gates
    )
    assert made.before == 100
    assert 70 <= made.after <= 100
    assert made.drop == pytest.approx(100 - made.after)
    names = [layer.name for layer in made.layers]
    assert {"2", "3"} <= set(names)  # of what is fused, the last names it
    assert any(name.startswith("2.attention.") for name in names) is gates
    assert bool(made.kept) is not gates
    assert all(3 < layer.snr < 80 for layer in made.layers)
    graph = open_proto(tmp_path / "q.onnx").graph
    makers = {output: node for node in graph.node for output in node.output}
    inside = [node for node in graph.node if node.name in set(made.kept)]
    for node in inside:
        weights = [makers[one] for one in node.input[1:] if one in makers]
        assert "DequantizeLinear" not in {one.op_type for one in weights}
    sigmoids = [node for node in graph.node if node.op_type == "Sigmoid"]
    assert len(sigmoids) == 2
    assert f"{made.drop:.2f} points lost" in str(made)


def test_a_network_that_loses_too_much_is_not_called_done(
    small: tuple[nn.Module, Tensor, Path], tmp_path: Path
) -> None:
    _, images, source = small
    scores = iter([90.0, 88.9])
    with pytest.raises(
        export.DropError, match=r"falls from 90\.00 to 88\.90 %, by more than the 1"
    ):
        export.int8(source, tmp_path / "q.onnx", [images], lambda runner: next(scores))
    scores = iter([90.0, float("nan")])
    with pytest.raises(export.DropError):
        export.int8(source, tmp_path / "q.onnx", [images], lambda runner: next(scores))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="calibration needs at least one batch"):
        export.int8(source, tmp_path / "q.onnx", [], lambda runner: 0.0)


def test_torch_programs_in_eight_bits(
    small: tuple[nn.Module, Tensor, Path], tmp_path: Path
) -> None:
    model, images, _ = small
    labels = model(images).argmax(1)
    path = tmp_path / "q.pt2"
    before = torch.random.get_rng_state()
    scores = export.program_int8(
        model, IMAGE, path, [images], accuracy(labels, images), max_drop=30
    )
    assert scores[0] == 100
    assert torch.equal(torch.random.get_rng_state(), before)
    loaded = torch.export.load(path)
    operations = [str(node.target) for node in loaded.graph.nodes]
    assert any("dequantize_per_channel" in one for one in operations)
    found = loaded.module()(images[:5])
    difference = (found - model(images[:5])).abs().max() / model(images[:5]).abs().max()
    assert 0 < difference < 0.2  # it does round, and not by much
    with pytest.raises(export.DropError):
        export.program_int8(
            model, IMAGE, tmp_path / "r.pt2", [images], lambda runner: 0.0, max_drop=-1
        )
    assert not (tmp_path / "r.pt2").exists()


def test_export_is_public() -> None:
    assert foveate.export is export
    assert sorted(export.RUNTIMES) == ["compile", "eager", "onnxruntime", "openvino", "tensorrt"]
