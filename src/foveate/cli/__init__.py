"""The command line: one file a command."""

import sys
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from foveate.cli.compare import compare
from foveate.cli.diagnose import diagnose
from foveate.cli.doctor import doctor
from foveate.cli.explain import explain
from foveate.cli.explore import explore
from foveate.cli.export import export
from foveate.cli.list import list_keys
from foveate.cli.plan import plan
from foveate.cli.predict import predict
from foveate.cli.profile import profile
from foveate.cli.show import show
from foveate.cli.train import train
from foveate.errors import UserError

app = typer.Typer(
    help="Put attention into a convolutional network and see whether it helps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list_keys)
app.command("show")(show)
app.command("plan")(plan)
app.command("profile")(profile)
app.command("train")(train)
app.command("compare")(compare)
app.command("explain")(explain)
app.command("explore")(explore)
app.command("diagnose")(diagnose)
app.command("export")(export)
app.command("predict")(predict)
app.command("doctor")(doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; a person's mistake is one line and 2."""
    try:
        code = app(args=arguments, prog_name="foveate", standalone_mode=False)
    except UserError as error:
        message = str(error)
    except TyperException as error:
        message = error.format_message()
    except OSError as error:  # a name that is too long, a full disk
        message = f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    else:
        return code if isinstance(code, int) else 0
    if message:  # empty when the help was printed instead
        print(f"foveate: {' '.join(message.split())}", file=sys.stderr)
    return 2
