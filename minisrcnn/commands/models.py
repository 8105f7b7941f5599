"""``minisrcnn models``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import MinisrcnnError
from .terminal import add_row, new_table, number, print_json, print_table


def models_command(
    name: Annotated[str | None, typer.Argument(
        metavar="[NAME]", help="Print the card of this model.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the models of the package, or print the card of one."""
    from ..models import find_model, shipped_models

    if name is not None:
        model = find_model(name)
        if model is None:
            names = ", ".join(model.name for model in shipped_models())
            raise MinisrcnnError(f"NAME is {name!r}, want one of {names}")
        print(model.card.read_text(encoding="utf-8"), end="")
        return
    if json:
        print_json([vars(model) | {"path": str(model.path)} for model in shipped_models()])
        return
    table = new_table("name", "scale", "channels", "Set5 dB", "Set14 dB", "KB", "used by default",
                      left=("name", "used by default"))
    for model in shipped_models():
        add_row(table, model.name, f"x{model.scale}", "Y" if model.channels == 1 else "RGB",
                      number(model.psnr.get("Set5"), 2), number(model.psnr.get("Set14"), 2),
                      f"{model.path.stat().st_size / 1000:.0f}", "yes" if model.default else "")
    print_table(table)
