"""``python -m foveate.describe``: writes the tables and pages that follow from the registry."""

from pathlib import Path

from foveate.describe.pages import stale, written


def main(root: Path = Path()) -> None:
    """Write each file under ``root``, and take away pages of mechanisms that are no more."""
    for path, text in written(root).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in stale(root):
        path.unlink()


if __name__ == "__main__":
    main()
