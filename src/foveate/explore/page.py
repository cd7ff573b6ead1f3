"""The page: what stands where, and what happens when something is dropped, picked or clicked."""

import base64
import functools
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import PurePath
from typing import Any

import gradio as gr

from foveate.errors import InvalidValueError, UserError
from foveate.explain import CAMS
from foveate.explore import looking, rendering
from foveate.explore.looking import Explorer, Point, View, Wanted
from foveate.explore.pictures import MOST_BYTES, Album, Picture, picture, sent

TABS = 32
"""Of more tabs the one that was used longest ago is forgotten, and no more wishes wait."""
_NO_CAM = "none"
_TYPES = {"png": "image/png", "svg": "image/svg+xml"}
_HIDE = "element.addEventListener('click', () => { props.value = ''; });"
_SAVE = """
watch('value', () => {
  const link = document.createElement('a');
  link.href = `data:${props.value.type};base64,${props.value.data}`;
  link.download = props.value.name;
  link.click();
});
"""


@dataclass(frozen=True)
class Seen:
    """What one tab looks at."""

    picture: Picture
    views: Sequence[View]
    point: Point | None = None


@dataclass(frozen=True)
class Page:
    """The parts of the page that events read and write."""

    explorer: Explorer
    album: Album | None
    seen: gr.State
    message: gr.HTML
    drop: gr.HTML
    stage: gr.HTML
    results: gr.HTML
    choices: list[Any]

    @property
    def outputs(self) -> list[Any]:
        """What :meth:`_shown` writes."""
        return [self.seen, self.message, self.stage, self.results]

    def take(self, seen: Seen | None, event: gr.EventData, *choices: Any) -> list[Any]:
        """A file was dropped or chosen."""
        name, content = sent(event._data.get("name"), event._data.get("data"))
        return self._open(name, None, content, choices)

    def pick(self, seen: Seen | None, number: Any, *choices: Any) -> list[Any]:
        """An image of the folder was picked."""
        if self.album is None:
            raise InvalidValueError("there is no folder of images")
        return self._open(*self.album.read(number), choices)

    def point(self, seen: Seen | None, event: gr.EventData, *choices: Any) -> list[Any]:
        """A point of the picture was clicked."""
        if seen is None:
            raise InvalidValueError("there is no picture yet")
        y, x = (event._data.get(axis) for axis in ("y", "x"))
        if not all(isinstance(share, int | float) for share in (y, x)):
            raise InvalidValueError("a point has a row and a column")
        return self._shown(replace(seen, point=(float(y), float(x))), choices)

    def choose(self, seen: Seen | None, *choices: Any) -> list[Any]:
        """Layers, class evidence or the comparison were chosen."""
        return [gr.skip()] * 4 if seen is None else self._shown(seen, choices)

    def save(self, ending: str, seen: Seen | None) -> list[Any]:
        """The figure was asked for."""
        if seen is None:
            raise InvalidValueError("there is no picture yet")
        name = f"{PurePath(seen.picture.name).stem}-attention.{ending}"
        content = self.explorer.draw(seen.views, ending)
        data = base64.b64encode(content).decode()
        return ["", {"name": name, "type": _TYPES[ending], "data": data}]

    def _open(
        self, name: str, folder: str | None, content: bytes, choices: Sequence[Any]
    ) -> list[Any]:
        opened = picture(name, folder, content, self.explorer.sizes)
        return self._shown(Seen(opened, ()), choices)

    def _shown(self, seen: Seen, choices: Sequence[Any]) -> list[Any]:
        compare, cam, *layers = choices
        wanted = Wanted(
            layers=[one or () for one in layers[::2]],
            features=[one or () for one in layers[1::2]],
            cam=None if cam == _NO_CAM else cam,
            point=seen.point,
            compare=compare,
        )
        views = self.explorer.look(seen.picture, wanted)
        pixels = views[0].content.picture
        return [
            replace(seen, views=views),
            "",
            rendering.stage(seen.picture, pixels, seen.point),
            rendering.results(views),
        ]


def build(explorer: Explorer, album: Album | None) -> gr.Blocks:
    """The page for one or two networks, and a folder of images if there is one."""
    with gr.Blocks(analytics_enabled=False, title="foveate explore", fill_width=True) as blocks:
        names = [side.title for side in (explorer.first, explorer.second) if side and not side.off]
        _html("head", rendering.head(names))
        message = _html("message", script=_HIDE)
        seen = gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                picker = None if album is None else _picker(album)
                stage = _html("stage", "", _text("stage.js"))
                # Apart from the picture: a file that is being chosen survives its change.
                taking = _text("drop.js").replace("MOST_BYTES", str(MOST_BYTES))
                drop = _html("drop", rendering.drop(), taking)
                compare = _comparison(explorer)
                with gr.Row():
                    buttons = {
                        ending: gr.Button(
                            f"Download {ending.upper()}",
                            size="sm",
                            min_width=120,
                            elem_id=f"save-{ending}",
                        )
                        for ending in _TYPES
                    }
                with gr.Accordion("Choose layers and class evidence", open=False):
                    choices = [compare, *_choices(explorer)]
            with gr.Column(scale=3, min_width=300):
                results = _html("results", rendering.nothing())
        parcel = gr.HTML({}, html_template="", js_on_load=_SAVE, elem_id="parcel")
        page = Page(explorer, album, seen, message, drop, stage, results, choices)
        _connect(page, picker, buttons, parcel)
        blocks.unload(_forgetting(blocks))
    blocks.state_session_capacity = TABS
    return blocks.queue(max_size=TABS)


def look() -> dict[str, Any]:
    """Theme and style sheet, whose fonts are those of the system."""
    fonts = ["system-ui", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=fonts)
    return {"theme": theme, "css": _text("page.css")}


def _text(name: str) -> str:
    return resources.files(rendering.__package__).joinpath("templates", name).read_text("utf-8")


def _html(identity: str, value: str = "", script: str | None = None) -> gr.HTML:
    return gr.HTML(value, elem_id=identity, js_on_load=script, apply_default_css=False)


def _picker(album: Album) -> gr.Dropdown:
    names = album.names
    some = f" ({len(names)} of {album.count})" if len(names) < album.count else ""
    return gr.Dropdown(
        [(name, number) for number, name in enumerate(names)],
        value=None,
        label=f"Image of the folder{some}",
        elem_id="picker",
    )


def _comparison(explorer: Explorer) -> gr.Checkbox:
    second = explorer.second
    if second is None:
        label = "No comparison: there is no attention here that could be switched off"
    else:
        label = f"Compare with: {'the same, ' if second.off else ''}{second.brief}"
    return gr.Checkbox(False, label=label, interactive=second is not None, elem_id="compare")


def _choices(explorer: Explorer) -> Iterator[Any]:
    """Class evidence, and for each network its layers with attention and its feature maps."""
    cams = [(CAMS[key][0], key) for key in looking.CAMS] + [("none", _NO_CAM)]
    yield gr.Dropdown(cams, value="gradcam", label="Class evidence (not attention)", elem_id="cam")
    sides = [side for side in (explorer.first, explorer.second) if side and not side.off]
    for number, side in enumerate(sides):
        of = f" of {side.title}" if len(sides) > 1 else ""
        if side.attention:
            yield _layers(f"Gates and affinities{of}", side.attention, "all", f"attention{number}")
        else:
            yield gr.State([])
        usual = side.features[-1] if side.features else "none"
        yield _layers(f"Features{of}", side.features, usual, f"features{number}")


def _layers(label: str, names: Sequence[str], usual: str, identity: str) -> gr.Dropdown:
    info = f"Default: {usual}"
    return gr.Dropdown(list(names), multiselect=True, label=label, info=info, elem_id=identity)


def _connect(
    page: Page, picker: gr.Dropdown | None, buttons: dict[str, gr.Button], parcel: gr.HTML
) -> None:
    reads, writes = [page.seen, *page.choices], page.outputs
    how: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
    page.drop.upload(_told(page.take, 4), reads, writes, **how)
    page.stage.select(_told(page.point, 4), reads, writes, trigger_mode="always_last", **how)
    page.drop.clear(_refused, None, page.message, **how)
    if picker is not None:
        reading = [page.seen, picker, *page.choices]
        picker.input(_told(page.pick, 4), reading, writes, trigger_mode="always_last", **how)
    for choice in page.choices:
        if not isinstance(choice, gr.State):
            choice.input(_told(page.choose, 4), reads, writes, trigger_mode="always_last", **how)
    for ending, button in buttons.items():
        saved = _told(functools.partial(page.save, ending), 2, at=0)
        button.click(saved, page.seen, [page.message, parcel], **how)


def _forgetting(blocks: gr.Blocks) -> Callable[[gr.Request], None]:
    """A tab was closed: its picture goes, and all that was shown of it."""

    def forget(request: gr.Request) -> None:
        blocks.state_holder.session_data.pop(str(request.session_hash), None)

    return forget


def _refused(event: gr.EventData) -> str:
    """What the page itself has refused, before anything was sent."""
    return rendering.message(str(event._data.get("text")))


def _told(act: Callable[..., list[Any]], outputs: int, at: int = 1) -> Callable[..., list[Any]]:
    """Whatever goes wrong is one line of the page; all else stays as it is."""

    @functools.wraps(act)
    def guarded(*arguments: Any) -> list[Any]:
        try:
            return act(*arguments)
        except UserError as error:
            text = str(error)
        except Exception as error:  # of the network or of a library; the terminal has the rest
            traceback.print_exc(file=sys.stderr)
            text = f"This did not work: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        unchanged: list[Any] = [gr.skip()] * outputs
        unchanged[at] = rendering.message(text)
        return unchanged

    return guarded
