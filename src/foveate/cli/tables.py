"""Writes the tables of the README files from the registry: ``python -m foveate.cli.tables``."""

from pathlib import Path

from foveate.cli.describe import mechanism_table

START, END = "<!-- mechanisms -->\n", "\n<!-- /mechanisms -->"


def with_table(text: str) -> str:
    """The text with the table of mechanisms between its marks as the registry has it."""
    before, _, rest = text.partition(START)
    return before + START + mechanism_table() + END + rest.partition(END.strip())[2]


if __name__ == "__main__":
    for page in (Path("README.md"), Path("README.zh-CN.md")):
        page.write_text(with_table(page.read_text()))
