"""``minisrcnn evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MinisrcnnError
from .terminal import (
    Backend,
    Model,
    Scale,
    add_row,
    ask_for_scale,
    load_network,
    model_scale,
    new_table,
    note,
    number,
    print_json,
    print_table,
    progress_bar,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ..checkpoint import ModelFile
    from ..evaluate import Choice, Evaluation
    from ..srcnn import SRCNN

BICUBIC = "bicubic"


def evaluate_command(
    model: Model = None,
    data: Annotated[list[str] | None, typer.Option(
        metavar="DIR|NAME ...", show_default="Set5 Set14",
        help="Data sets by name, folders that hold them, or folders of pictures.")] = None,
    scale: Scale = None,
    backend: Backend = "auto",
    protocol: Annotated[bool, typer.Option(
        "--protocol", help="Measure what each choice of the protocol costs, in dB.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score a model on Y, PSNR and SSIM, beside bicubic and the published figures.

    Of a model of three channels the Y of the result is scored, and the PSNR over R, G and B.
    """
    from ..engine.backends import announce_backend
    from ..evaluate import evaluate, explain_protocol, likely_scale
    from ..imaging.datasets import load_datasets

    loaded, path, net, scale = _model(model, scale, backend)
    sets = load_datasets(data or [], ("Set5", "Set14"))
    if net is not None:
        announce_backend(net.backend, backend, note)
    if loaded is not None and net is not None and loaded.scale is None and net.channels == 1:
        likely = likely_scale(sets[0], scale, net)
        if likely is not None:
            note(f"Warning: the scores look like those of a model for scale {likely}, not {scale}: "
                 f"try --scale {likely}.")
    name = "" if model is not None or path is None else f", {path.stem}"
    header: dict[str, Any] = {"scale": scale, "model": None}
    if loaded is not None:
        header["model"] = {"path": str(path), "arch": loaded.arch, "filters": loaded.filters}
    if protocol:
        results: list[Any] = []
        for dataset in sets:
            with progress_bar(f"{dataset.name}, protocol") as progress:
                results.append(explain_protocol(dataset, scale, net, progress))
            if not json:
                _show_protocol(dataset.name, scale, results[-1])
        if json:
            print_json(header | {"protocol": [
                {"name": dataset.name, "choices": [vars(choice) for choice in result]}
                for dataset, result in zip(sets, results, strict=True)
            ]})
        return
    results = []
    for dataset in sets:
        with progress_bar(dataset.name) as progress:
            results.append(evaluate(dataset, scale, net, progress))
        if not json:
            _show_scores(results[-1], name)
    if json:
        print_json(header | {"sets": [result.as_dict() for result in results]})


def _model(
    name: str | None, scale: int | None, backend: str
) -> tuple[ModelFile | None, Path | None, SRCNN | None, int]:
    """Return the model to score, none for bicubic alone, and the scale: its own unless asked."""
    if name == BICUBIC:
        return None, None, None, 3 if scale is None else scale
    if name is None:
        scale = 3 if scale is None else scale
        name = _default(scale)
    loaded, path, net = load_network(name, backend)
    own = model_scale(loaded, path)
    if scale is None:
        if own is None:
            raise ask_for_scale(path)
        scale = own
    elif own not in (None, scale):
        note(f"Warning: {path} was trained for scale {own}, not {scale}: it will do worse than it "
             "can.")
    return loaded, path, net, scale


def _default(scale: int) -> str:
    """Return the name of the package's model of a scale."""
    from ..models import default_model, shipped_models

    found = default_model(scale)
    if found is None:
        scales = ", ".join(f"x{model.scale}" for model in shipped_models() if model.default)
        raise MinisrcnnError(f"scale is {scale}, for which the package has no model (it has "
                             f"{scales}): name one with --model")
    return found.name


def _show_scores(result: Evaluation, name: str) -> None:
    """Print one data set: every picture, the mean, and what is published."""
    has_model, has_rgb = result.mean.model is not None, result.mean.bicubic.rgb is not None
    columns = ["picture", "bicubic dB", "SSIM"]
    columns += ["model dB", "SSIM", "gain dB"] if has_model else []
    columns += ["RGB: bicubic dB", "model dB", "gain dB"] if has_rgb else []
    table = new_table(*columns, left=("picture",),
                      title=f"{result.name}, scale {result.scale}{name}")
    rows = [*result.rows, result.mean]
    for row in rows:
        cells = [row.name, number(row.bicubic.psnr, 3), number(row.bicubic.ssim, 4)]
        if row.model is not None:
            cells += [number(row.model.psnr, 3), number(row.model.ssim, 4),
                      number(row.model.psnr - row.bicubic.psnr, 3, "+")]
            if row.model.rgb is not None and row.bicubic.rgb is not None:
                cells += [number(row.bicubic.rgb, 3), number(row.model.rgb, 3),
                          number(row.model.rgb - row.bicubic.rgb, 3, "+")]
        if row is rows[-1]:
            table.add_section()
        add_row(table, *cells, style="bold" if row is rows[-1] else None)
    published = result.published
    if published is not None:
        table.add_section()
        if not has_model:
            add_row(table, "published bicubic", number(published.bicubic, 3), "")
        for name, value in published.of().items() if has_model else ():
            add_row(table, name, number(published.bicubic, 3), "", number(value, 3), "",
                          number(value - published.bicubic, 3, "+"))
    print_table(table)
    if published is None:
        note(f"No published figures are known for {result.name} at scale {result.scale}.")


def _show_protocol(name: str, scale: int, choices: list[Choice]) -> None:
    """Print the waterfall of one data set."""
    has_model = choices[0].model is not None
    columns = ["step", "choice", "bicubic", "change"]
    columns += ["model", "change"] if has_model else []
    table = new_table(*columns, left=("step", "choice"),
                   title=f"{name}, scale {scale}: one choice made otherwise, dB")
    for i, choice in enumerate(choices):
        cells = [choice.step, choice.choice, number(choice.bicubic, 3),
                 number(choice.bicubic_change, 3, "+") if i else ""]
        if has_model:
            cells += [number(choice.model, 3), number(choice.model_change, 3, "+") if i else ""]
        add_row(table, *cells)
    print_table(table)
