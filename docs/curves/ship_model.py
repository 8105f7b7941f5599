"""Put a finished training into the package: model, card, registry, log.

    python docs/curves/ship_model.py RUN NAME [--default] [--machine TEXT] [--same-bits TEXT]

RUN is the folder of a training, NAME what the model is to be called, such as 9-1-5-x3.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from minisrcnn import SRCNN
from minisrcnn.checkpoint import load_model, load_state, save_state
from minisrcnn.evaluate import PUBLISHED, evaluate
from minisrcnn.imaging.datasets import load_dataset
from minisrcnn.imaging.files import atomic_open
from minisrcnn.models import FOLDER
from minisrcnn.training.recipes import get_recipe

LOGS = Path(__file__).parent


def main() -> None:
    """Read the arguments and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--default", action="store_true", help="the model of its scale by default")
    parser.add_argument("--machine", default="one thread of an AMD EPYC that had other work")
    parser.add_argument("--same-bits", help="where the command gives the very same file",
                        default="the numba backend and a processor with AVX-512, with any number "
                        "of threads; other processors differ in the last digits")
    args = parser.parse_args()
    source, target = args.run / "model.safetensors", FOLDER / f"{args.name}.safetensors"
    save_state(target, *load_state(source))
    model = load_model(target)
    net = SRCNN.from_file(model)
    log = [json.loads(line) for line in (args.run / "log.jsonl").read_text().splitlines()]
    scores = {name: evaluate(load_dataset(name), model.scale, net) for name in ("Set5", "Set14")}
    sha256 = hashlib.sha256(target.read_bytes()).hexdigest()
    entry = {
        "name": args.name, "scale": model.scale, "arch": model.arch, "channels": model.channels,
        "default": args.default, "sha256": sha256,
        "psnr": {name: round(score.mean.model.psnr if model.channels == 1 else
                             score.mean.model.rgb, 3) for name, score in scores.items()},
    }
    registry = FOLDER / "registry.json"
    entries = {e["name"]: e for e in json.loads(registry.read_text())} if registry.exists() else {}
    entries[args.name] = entry
    ordered = sorted(entries.values(), key=lambda e: (e["scale"], e["channels"], e["name"]))
    with atomic_open(registry) as file:
        file.write((json.dumps(ordered, indent=1) + "\n").encode())
    with atomic_open(FOLDER / f"{args.name}.md") as file:
        file.write(card(args, model, log, scores, sha256).encode())
    LOGS.mkdir(exist_ok=True)
    log[0]["settings"]["data"] = "T91"  # wherever they were
    (LOGS / f"{args.name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    print(f"{args.name}: " + ", ".join(f"{k} {v:.3f} dB" for k, v in entry["psnr"].items()))


def card(args, model, log, scores, sha256) -> str:
    """Return the text of a model's card."""
    start, epochs = log[0], [line for line in log if line["event"] == "epoch"]
    recipe = start["settings"]["recipe"]
    known = get_recipe(recipe["name"])
    command = f"minisrcnn train --data T91 --scale {model.scale}"
    command += "" if model.arch == "9-1-5" else f" --arch {model.arch}"
    command += "" if recipe["name"] == "fast" else f" --recipe {recipe['name']}"
    command += "" if recipe["epochs"] == known.epochs else f" --epochs {recipe['epochs']}"
    command += "" if model.channels == 1 else " --rgb"
    backend, seed = start["settings"]["backend"], start["settings"]["seed"]
    command += "" if backend == "numba" else f" --backend {backend}"
    command += f" --seed {seed}" if seed else ""
    lines = [
        f"# {args.name}", "",
        f"SRCNN {model.arch} ({' and '.join(map(str, model.filters))} filters), "
        f"{'Y' if model.channels == 1 else 'RGB'}, scale {model.scale}; "
        f"{sum(p.size for p in model.parameters.values()):,} numbers.", "",
        f"SHA-256 of `{args.name}.safetensors`: `{sha256}`", "",
        "## Scores", "",
        "`minisrcnn evaluate`, mean over the set, on Y; the authors' are of their own weights, by "
        "the same program.", "",
        "| | PSNR dB | SSIM | bicubic dB | the authors', dB |", "|---|---|---|---|---|",
    ]
    for name, result in scores.items():
        published = PUBLISHED.get((name, model.scale))
        authors = "" if published is None else "; ".join(
            f"{who} {psnr:.2f}" for who, psnr in published.of(model.arch).items())
        mean = result.mean
        lines.append(f"| {name} | **{mean.model.psnr:.3f}** | {mean.model.ssim:.4f} | "
                     f"{mean.bicubic.psnr:.3f} | {authors or 'none'} |")
        if mean.model.rgb is not None:
            lines.append(f"| {name}, R, G and B together | **{mean.model.rgb:.3f}** | | "
                         f"{mean.bicubic.rgb:.3f} | none |")
    lines += [
        "", "## Training", "",
        f"    {command}", "",
        f"gives this file bit for bit on {args.same_bits}.",
        f"Seed {seed}, {recipe['epochs']} passes over {start['patches']:,} patches, "
        f"{epochs[-1]['step']:,} steps, {epochs[-1]['seconds'] / 60:.1f} minutes on "
        f"{args.machine}.", "",
        "- Data: the 91 pictures (T91) alone, and copies of them at "
        + ", ".join(f"{f:g}" for f in recipe["rescaled"]) + " of their size. Degradation: the "
        "authors' bicubic.",
        f"- Recipe `{recipe['name']}`: {recipe['optimizer']}, learning rate {recipe['lr']:g} "
        f"(last layer times {recipe['last_lr']:g}), {recipe['schedule']} to zero, batches of "
        f"{recipe['batch']}, patches of {recipe['input_size']}x{recipe['input_size']}, drawn by "
        f"error^-{recipe['balance']:g}, flips and rotations.",
        "- How it was chosen: the recipe on 21 held-out pictures of T91 (the twins t36 and t65 on "
        "one side), with the other 70",
        "  trained on, for scale 3 and Y: filters, balance and rate of 9-1-5, rate of 9-5-5. The "
        "number of epochs is what the time",
        "  allowed, the seed is the first. Then trained once on all 91, to the last step. Set5 and "
        "Set14 were scored, and decided",
        "  nothing.", "",
        f"| epoch | minutes | loss | Set5 dB{'' if model.channels == 1 else ', RGB'} |",
        "|---|---|---|---|",
    ]
    scored = [line for line in epochs if "psnr" in line]
    step = max(1, len(scored) // 8)
    for line in scored[: -1 : step] + scored[-1:]:
        lines.append(f"| {line['epoch']} | {line['seconds'] / 60:.1f} | {line['loss']:.6f} | "
                     f"{line['psnr']:.2f} |")
    lines += [
        "", "## Licence", "",
        "The weights are under the licence of minisrcnn (MIT). The 91 pictures come from the web "
        "by way of Yang et al. (2008)",
        "and have no stated licence; none is contained in this file. Whether weights trained on "
        "such pictures carry any right of",
        "the photographers is not settled; those who need certainty train on pictures of their "
        "own with the same command.", "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
