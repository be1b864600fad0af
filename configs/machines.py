"""Hardware files: read and checked. Those that come along are known by their names."""

from pathlib import Path

from pydantic import ValidationError

from livetrain.configs.complaints import first_complaint
from livetrain.configs.errors import BadInput, nearest
from livetrain.configs.schema.hardware import Hardware
from livetrain.configs.trees import read_tree

FOLDER = Path(__file__).parent / "hardware"


def names() -> list[str]:
    """Return the names of the files that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_hardware(given: str) -> Hardware:
    """Return the hardware that a name, or the path of a file, stands for.

    Raises:
        BadInput: there is no such file, or something in it is wrong.

    Example:
        >>> load_hardware("h100").intra_gb_s
        450.0
    """
    path = FOLDER / f"{given}.yaml" if given in names() else Path(given)
    if not path.is_file():
        raise BadInput(f"--hardware: '{given}' is no file, nor a name that is known{nearest(given, names())}")
    tree, lines = read_tree(path, "hardware file", "keys")
    try:
        return Hardware.model_validate(tree)
    except ValidationError as error:
        complaint = first_complaint(error, Hardware, tree)
        line = next(
            (lines[complaint.place[:n]] for n in range(len(complaint.place), 0, -1) if complaint.place[:n] in lines),
            None,
        )
        raise BadInput(f"{path}{f', line {line}' if line else ''}: {complaint.sentence}") from None
