"""What the readers of foreign files raise; whoever opened the file adds its name."""


class FormatError(ValueError):
    """Bytes that are not what they should be; one line."""


def brief(text: str, most: int = 60) -> str:
    """Text from a file, on one line and of bounded length."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 4 * most].split()))
    return line if len(line) <= most else f"{line[: most - 3]}..."
