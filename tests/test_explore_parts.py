"""The page of ``foveate explore``, without a browser: pictures, networks, the door, the command."""

import io
import os
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import explored
import foveate
from foveate.cli import main
from foveate.errors import InvalidValueError
from foveate.experiments.subject import Subject
from foveate.explore import Album, Explorer, leaving_nothing, looking, pictures
from foveate.explore.looking import Wanted

SIZE = 16
EVIL = "<img src=x onerror=alert(1)>"


def subject(module: nn.Module, name: str = "tiny") -> Subject:
    return Subject(name, module.eval(), ("cat", "dog", EVIL), (0.5,) * 3, (0.25,) * 3, SIZE)


def encoded(pixels: Any, ending: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, ending)
    return buffer.getvalue()


def noise(seed: int, side: int = 24) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (side, side, 3)))


def opened(seed: int) -> pictures.Picture:
    return pictures.picture(f"{seed}.png", None, noise(seed), {SIZE})


def only_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has no pixels."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not an image that can be read"),
        (b"no image", "is not an image that can be read"),
        (noise(0)[:-200], "cannot be read as an image"),
        (only_header(8000, 6250), "has 50.0 megapixels (8000 by 6250); accepted: up to 25 for PNG"),
        (only_header(12000, 9000), "too many pixels"),  # Pillow itself warns
        (only_header(60000, 60000), "too many pixels"),  # and refuses
        (bytes(pictures.MOST_BYTES + 1), "is too large; accepted: up to 20 MB"),
    ],
    ids=["empty", "text", "cut", "50 megapixels", "108 megapixels", "bomb", "21 MB"],
)
def test_pictures_that_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        pictures.picture("a.png", None, content, {SIZE})
    assert reason in str(refused.value)


def test_large_jpeg_is_decoded_at_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    fit = pictures.to_tensor
    monkeypatch.setattr(
        pictures, "to_tensor", lambda image, size: sizes.append(image.size) or fit(image, size)
    )
    content = encoded(np.zeros((6250, 8000)), "JPEG")
    assert pictures.picture("a.jpg", None, content, {SIZE}).pixels[SIZE].shape == (3, SIZE, SIZE)
    assert sizes == [(1000, 782)]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (3, "", "with its name and its content"),
        ("a.png", None, "with its name and its content"),
        ("a.png", "no base64", "did not arrive whole"),
        ("a.png", "A" * (4 * (pictures.MOST_BYTES // 3 + 2)), "is too large"),
    ],
)
def test_what_is_sent_is_checked(name: object, data: object, reason: str) -> None:
    with pytest.raises(InvalidValueError, match=reason):
        pictures.sent(name, data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for number, name in enumerate(("cat/a.png", "dog/b.png", f"dog/{EVIL}.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(noise(number))
    (tmp_path / "secret.png").write_bytes(noise(9))
    return root


def test_album_gives_what_lies_in_the_folder_by_number(folder: Path) -> None:
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    (folder / "own.png").symlink_to(folder / "cat" / "a.png")
    album = Album(folder)
    assert album.names == ["cat/a.png", f"dog/{EVIL}.png", "dog/b.png", "own.png"]
    assert album.read(0) == ("cat/a.png", "cat", noise(0))


@pytest.mark.parametrize("number", ["../secret.png", "0", 0.0, None, True, -1, 3, [0]])
def test_album_takes_numbers_alone(folder: Path, number: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"picked by its number|there are 3 pictures"):
        Album(folder).read(number)


def test_links_that_lead_outside_are_refused(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "outside").symlink_to(folder.parent)
    (folder / "broken.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")  # reading one would wait for ever
    album = Album(folder)
    assert album.names == ["cat/a.png", f"dog/{EVIL}.png", "dog/b.png"]
    (folder / "cat" / "a.png").unlink()
    (folder / "cat" / "a.png").symlink_to(folder.parent / "secret.png")
    with pytest.raises(InvalidValueError, match="no longer a file of this folder"):
        album.read(0)


def test_large_folder_is_told_by_an_even_choice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "LISTED", 2)
    album = Album(folder)
    assert (album.names, album.count) == (["cat/a.png", "dog/b.png"], 3)


def test_name_that_is_no_text_is_shown(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(noise(4))
    assert "\N{REPLACEMENT CHARACTER}.png" in Album(folder).names


class Slow(nn.Module):
    """Waits in the middle, so that calls of several threads would overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = explored.weighing(3, 3, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner.conv(x)
        time.sleep(0.02)
        return self.inner.fc(self.inner.attention(y).mean((2, 3)))


def test_people_at_the_same_time_do_not_mix() -> None:
    explorer = Explorer(subject(Slow()))
    seen: dict[int, Any] = {}

    def look(seed: int) -> None:
        seen[seed] = explorer.look(opened(seed), Wanted(cam=None, compare=seed % 2 == 0))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(6):
        alone = explorer.look(opened(seed), Wanted(cam=None, compare=seed % 2 == 0))
        for view, again in zip(seen[seed], alone, strict=True):
            assert view.content.probabilities == again.content.probabilities
            for one, other in zip(view.content.sections, again.content.sections, strict=True):
                for panel, twin in zip(one.panels, other.panels, strict=True):
                    assert np.array_equal(panel.values, twin.values)


def titles(view: looking.View) -> list[str]:
    return [section.title for section in view.content.sections if section.panels]


def test_point_is_told_or_drawn() -> None:
    point = (0.7, 0.2)
    reads = Explorer(subject(explored.reading(3, 3, SIZE)))
    (unclicked,) = reads.look(opened(0), Wanted())
    assert unclicked.told.startswith("Click the picture")
    (view,) = reads.look(opened(0), Wanted(point=point))
    heading = "Whom a point reads: affinities"
    (panel,) = next(one.panels for one in view.content.sections if one.title == heading)
    assert view.told == ""
    assert heading in titles(view)
    assert panel.mark == pytest.approx((11.5 / SIZE, 3.5 / SIZE))
    (weighs,) = Explorer(subject(explored.weighing(3, 3, SIZE))).look(
        opened(0), Wanted(point=point)
    )
    assert weighs.told == looking.NO_AFFINITY
    (plain,) = Explorer(subject(explored.plain(3, 3, SIZE))).look(opened(0), Wanted(point=point))
    assert plain.told == looking.NO_ATTENTION


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(cam="scorecam"),
        Wanted(point=(0.5, 1.0)),
        Wanted(point=(float("nan"), 0.5)),
        Wanted(features=[["nowhere"]]),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(wanted: Wanted) -> None:
    with pytest.raises(InvalidValueError, match=r"unknown|outside"):
        Explorer(subject(explored.reading(3, 3, SIZE))).look(opened(0), wanted)


def test_switched_off_attention_is_that_and_says_so() -> None:
    module = explored.weighing(3, 3, SIZE)
    explorer = Explorer(subject(module))
    on, off = explorer.look(opened(0), Wanted(compare=True))
    assert off.side.title == "tiny, attention switched off"
    assert off.side.note == looking.SWITCHED_OFF
    assert not any("Gates" in title for title in titles(off))
    images = explorer.first.subject.normalised(opened(0).pixels[SIZE].unsqueeze(0))
    with torch.no_grad():
        bare = module.fc(module.act(module.conv(images)).mean((2, 3))).softmax(1)[0]
    found = dict(off.content.probabilities)
    assert [found[name] for name in ("cat", "dog", EVIL)] == pytest.approx(bare.tolist(), abs=1e-6)
    assert on.content.probabilities != off.content.probabilities


def test_what_cannot_be_switched_off_is_named() -> None:
    tiny = explored.weighing(3, 3, SIZE)
    tiny.act = foveate.create("involution", 8, group_width=4, init="paper")
    explorer = Explorer(subject(tiny))
    assert explorer.second is not None
    assert explorer.second.note.endswith(
        "1 of 2 mechanisms stand in the place of a convolution, and stay on: act."
    )
    assert Explorer(subject(explored.plain(3, 3, SIZE))).second is None


def test_second_network_is_looked_at_in_its_own_size() -> None:
    other = Subject("tiny", explored.plain(2, 1, 8), ("cat", "rat"), (0.0,), (1.0,), 8)
    explorer = Explorer(subject(explored.reading(3, 3, SIZE)), other)
    assert explorer.sizes == {SIZE, 8}
    picture = pictures.picture("a", "cat", noise(0), explorer.sizes)
    first, second = explorer.look(picture, Wanted(compare=True))
    assert second.side.title == "tiny (second)"
    assert (first.content.truth, second.content.truth) == ("cat", "cat")
    assert second.content.picture.shape == (8, 8, 3)
    drawn = Image.open(io.BytesIO(explorer.draw([first, second], "png")))
    assert drawn.width > 1.8 * Image.open(io.BytesIO(explorer.draw([first], "png"))).width


def test_network_that_cannot_take_its_size_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="tiny cannot be run on images of 16 pixels"):
        Explorer(subject(explored.reading(3, 4, SIZE)))


def test_nothing_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "mine")
    with leaving_nothing():
        (kept,) = tmp_path.iterdir()
        assert os.environ["GRADIO_TEMP_DIR"] == str(kept)
        assert kept.stat().st_mode & 0o777 == 0o700
        (kept / "some.png").write_bytes(b"")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    assert os.environ["GRADIO_TEMP_DIR"] == "mine"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (lambda at: ["explored:reading", "--data", str(at / "no")], "there is no folder"),
        (lambda at: ["explored:reading", "--data", str(at)], "holds no image; accepted: .bmp"),
        (lambda at: ["nosuchmodel"], "unknown host 'nosuchmodel'"),
        (lambda at: ["explored:reading", "--against", "nosuchmodel"], "unknown host"),
        (lambda at: ["explored:reading", "--mean", "a"], "--mean takes numbers with commas"),
        (lambda at: ["explored:reading", "--port", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_input_is_one_line(
    words: Callable[[Path], list[str]],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("gradio")
    arguments = ["explore", *words(tmp_path), "--size", "16", "--no-browser"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert reason in err


def test_port_that_is_taken_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["explore", "explored:reading", "--size", "16", "--port", str(port)]
        assert main(words) == 2
    reason = f"foveate: port {port} cannot be had: Address already in use\n"
    assert capsys.readouterr() == ("", reason)


def test_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["explore", "small_cnn", "--no-browser"]) == 2
    assert capsys.readouterr().err == (
        "foveate: gradio is not installed; it comes with: pip install 'foveate[explore]'\n"
    )
