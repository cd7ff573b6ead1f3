"""The page served to this machine alone, and nothing of it left behind."""

import contextlib
import os
import signal
import socket
import tempfile
import webbrowser
from collections.abc import Callable, Iterator

from foveate.errors import InvalidValueError
from foveate.explore.looking import Explorer
from foveate.explore.pictures import Album

HOST = "127.0.0.1"
FIRST_PORT = 7860
_TRIED = 100


def serve(
    explorer: Explorer,
    album: Album | None = None,
    *,
    port: int | None = None,
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page until Ctrl-C; call it inside :func:`leaving_nothing`.

    Args:
        explorer: The networks.
        album: Images to pick from.
        port: By default the first that is free, from 7860.
        browser: Open the page.
        say: Is told the address.

    Raises:
        ValueError: If the port cannot be had.
    """
    import uvicorn

    from foveate.explore.door import application

    with _listen(port) as listener:
        host = f"{HOST}:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            application(explorer, album, host),
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,  # tabs keep a connection open, and are not waited for
        )
        say(f"http://{host} shows the page, to this machine only; Ctrl-C ends it")
        if browser:
            webbrowser.open(f"http://{host}")
        uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def leaving_nothing() -> Iterator[None]:
    """Ends quietly on Ctrl-C, also on a request to end, with all temporary files removed.

    Has to be entered before gradio is imported, which then asks where such files may lie.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    numbers = (signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        with (
            contextlib.suppress(KeyboardInterrupt),
            tempfile.TemporaryDirectory(prefix="foveate-explore-") as folder,
        ):
            os.environ["GRADIO_TEMP_DIR"] = folder
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.pop("GRADIO_TEMP_DIR")
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before


@contextlib.contextmanager
def _listen(port: int | None) -> Iterator[socket.socket]:
    """A socket of this machine alone, on a port that is free or on the one that is wanted."""
    tried = range(FIRST_PORT, FIRST_PORT + _TRIED) if port is None else range(port, port + 1)
    for number in tried:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, number))
                listener.listen()  # now it is taken
            except OSError as error:
                if number == tried[-1]:
                    raise InvalidValueError(
                        f"port {number} cannot be had: {error.strerror}"
                    ) from error
                continue
            yield listener
            return
