"""What the system says of its processor."""

from pathlib import Path


def processor() -> dict[str, str]:
    """The fields of the first processor, such as ``"model name"``; none where there is no list."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in fields}
