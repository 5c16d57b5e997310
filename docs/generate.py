"""What the pages take from the package as they are built, so that it is stated once: tables, and the notebooks."""

import json
import re
import shutil
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kornia_mvit import DeepLabV3, MobileViT, MobileViTClassifier, MobileViTV2, MobileViTV2Classifier, SSDLite
from kornia_mvit.models.mobilevit import VARIANTS, Stage
from kornia_mvit.models.mobilevitv2 import WIDTHS, mode_name
from kornia_mvit.moved import MOVED, NAMES
from kornia_mvit.training.recipes import find_recipe, list_recipes
from kornia_mvit.weights import find_weights, list_weights

NOTEBOOKS = (
    "classification",
    "augmentation_aware",
    "learned_ranges",
    "mixing_targets",
    "segmentation",
    "detection",
    "test_time_augmentation",
    "shape_fuzzing",
    "pretrained_and_finetune",
    "export_to_phone",
)


EXTRAS = {
    "cli": "the command line",
    "train": "data sets, Lightning's training, the commands that train, validate, predict and preview",
    "hub": "safetensors files, and repositories of the Hugging Face hub",
    "stream": "shards from ``http(s)://`` and ``s3://`` addresses",
    "export": "ONNX, OpenVINO, ExecuTorch and Core ML",
    "video": "prediction of videos",
    "testing": "Hypothesis strategies and ``check_backbone``",
    "examples": "the notebooks",
    "docs": "these pages",
    "dev": "the tests and the tools around them",
    "all": "all of these but ``stream``",
}


def write_all(docs: Path) -> None:
    """Write the tables into ``_generated`` and bring the notebooks into ``examples``, both below a folder."""
    folder = docs / "_generated"
    folder.mkdir(exist_ok=True)
    tables = {
        "recipes": recipe_table(),
        "recipe_notes": recipe_notes(),
        "variants": variant_table(),
        "widths": width_table(),
        "kornia_variants": departure_table(),
        "models": model_table(),
        "weights": weights_table(),
        "pipeline_times": pipeline_table(docs.parent / "benchmarks/results/pipeline-cpu-1-thread.json"),
        "extras": extras_table(docs.parent / "pyproject.toml"),
        "moved": moved_table(),
    }
    for name, text in tables.items():
        write(folder / f"{name}.rst", text)
    bring_notebooks(docs.parent / "examples", docs / "examples")


def write(path: Path, text: str) -> None:
    """Write a file if it changes, so that Sphinx reads again only what is new."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def bring_notebooks(source: Path, target: Path) -> None:
    """Copy the notebooks as they were executed.

    Raises:
        FileNotFoundError: for one that is missing.
    """
    target.mkdir(exist_ok=True)
    for stale in set(target.glob("*.ipynb")) - {target / f"{name}.ipynb" for name in NOTEBOOKS}:
        stale.unlink()
    for name in NOTEBOOKS:
        file = source / f"{name}.ipynb"
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file}; `make notebooks` makes it of its source")
        copy = target / file.name
        if not copy.is_file() or copy.read_bytes() != file.read_bytes():
            shutil.copyfile(file, copy)


def list_table(header: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int] | None = None) -> str:
    """Write a table as RST."""
    lines = [".. list-table::", "   :header-rows: 1"]
    if widths is not None:
        lines.append(f"   :widths: {' '.join(map(str, widths))}")
    lines.append("")
    for row in (header, *rows):
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}".rstrip() for i, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


# ----------------------------------------------------------------------------------------------------------- recipes


def read_recipe(name: str) -> tuple[str, str, str]:
    """Return what a recipe's comment says before its command, the command, and what it says after it.

    Raises:
        ValueError: if it has no command, or tells no score and not that there is none.
    """
    head = []
    for line in find_recipe(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").removeprefix(" "))
    place = next((i for i, line in enumerate(head) if line.startswith("  kornia-mvit ")), None)
    if place is None:
        raise ValueError(f"recipe {name} has no command in its comment")
    before, after = " ".join(head[:place]), " ".join(head[place + 1 :])
    if not re.search(r"[Rr]eached|[Nn]ot yet measured", after):
        raise ValueError(f"recipe {name} tells no score, and not that there is none")
    return escape(before), head[place].strip(), escape(after)


def escape(text: str) -> str:
    """Keep RST from reading marks in plain text, and the dashes of options as they are."""
    parts = re.split(r"(--[\w.]+)", text)
    return "".join(f"``{p}``" if i % 2 else re.sub(r"([*_`|\\])", r"\\\1", p) for i, p in enumerate(parts))


def measured(after: str) -> str:
    """Return the sentences from the first on that tells of a score."""
    sentences = re.split(r"(?<=\.) (?=[A-Z])", after)
    first = next(i for i, text in enumerate(sentences) if re.search(r"[Rr]eached|[Nn]ot yet measured", text))
    return " ".join(sentences[first:])


def recipe_table() -> str:
    """Return task, data and length of each recipe, from its settings, and its score, from its comment."""
    rows = []
    for name in list_recipes():
        _, _, after = read_recipe(name)
        settings = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
        task, data, trainer = settings["model"], settings["data"], settings["trainer"]
        size = task["init_args"]["image_size"]
        height, width = (size, size) if isinstance(size, int) else size
        network = task["init_args"].get("mode") or task["init_args"].get("weights", "")
        settings_of = (
            task["class_path"].rpartition(".")[2].removesuffix("Task").lower(),
            f"{network}, {height}×{width}",
            data["class_path"].rpartition(".")[2],
        )
        rows.append(
            (f":ref:`{name} <recipe-{name}>`", "; ".join(settings_of), str(trainer["max_epochs"]), measured(after))
        )
    header = ("recipe", "task; network and input; data module", "epochs", "score and time")
    return list_table(header, rows, (17, 26, 8, 49))


def recipe_notes() -> str:
    """Return the comment of each recipe, command and all."""
    parts = []
    for name in list_recipes():
        before, command, after = read_recipe(name)
        parts.append(
            f".. _recipe-{name}:\n\n{name}\n{'~' * len(name)}\n\n{before}\n\n"
            f".. code-block:: console\n\n   $ {command}\n\n{after}\n"
        )
    return "\n".join(parts)


# ---------------------------------------------------------------------------------------------------------- networks


def count_parameters(model: torch.nn.Module) -> str:
    """Return the number of a model's parameters."""
    return f"{sum(p.numel() for p in model.parameters()):,}"


def count_macs(model: torch.nn.Module, side: int) -> str:
    """Count the multiply-accumulates of convolutions, linear layers and attention, for one square image."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model.eval()(torch.rand(1, 3, side, side, device=next(model.parameters()).device))
    return f"{counter.get_total_flops() / 2e9:.2f} G"


def describe_stage(stage: Stage) -> str:
    """Say in a cell of the table what a stage is."""
    if not stage.depth:
        return f"{stage.channels}"
    return f"{stage.channels} / {stage.dim} / {stage.depth}"


def variant_table() -> str:
    """Return the rows of ``VARIANTS`` as columns, and what can be counted of the networks."""
    configs = VARIANTS["apple"]
    stages = zip(*(config.stages for config in configs.values()), strict=True)
    rows = [("stem, 3×3, stride 2", *(str(config.stem) for config in configs.values()))]
    for number, row in enumerate(stages, 1):
        first = row[0]
        what = f"stage {number}: {first.repeat if first.repeat > 1 else 'one'} inverted residual"
        what += ("s" if first.repeat > 1 else "") + f", stride {first.stride}"
        if first.depth:
            what += ", and a block: channels / token width / depth"
        rows.append((what, *map(describe_stage, row)))
    rows.append(("last 1×1 convolution", *(str(config.head_channels) for config in configs.values())))
    rows.append(("expansion of the inverted residuals", *(str(config.expand) for config in configs.values())))
    rows.append(("attention heads", *(str(config.heads) for config in configs.values())))
    rows.append(("parameters of the backbone", *(count_parameters(MobileViT(mode)) for mode in configs)))
    rows.append(("parameters with 1,000 classes", *(count_parameters(MobileViTClassifier(mode)) for mode in configs)))
    rows.append(("multiply-accumulates at 256×256", *(count_macs(MobileViTClassifier(m), 256) for m in configs)))
    return list_table(("", *(f"``{mode}``" for mode in configs)), rows, (49, 17, 17, 17))


def width_table() -> str:
    """Return the widths of the second version, and what can be counted of its networks."""
    rows = []
    for width in WIDTHS:
        with torch.device("meta"):  # of which everything but values is known
            backbone, classifier = MobileViTV2(width), MobileViTV2Classifier(width)
        stages = [f"{backbone.config.stem}", *map(describe_stage, backbone.config.stages)]
        counts = (count_parameters(backbone), count_parameters(classifier), count_macs(classifier, 256))
        rows.append((f"``{mode_name(width)}``", ", ".join(stages), *counts))
    header = ("mode", "stem and stages", "backbone", "with 1,000 classes", "multiply-accumulates at 256×256")
    return list_table(header, rows, (12, 42, 14, 16, 16))


def departure_table() -> str:
    """Return the fields in which the variants differ."""
    apple, kornia = VARIANTS["apple"]["xxs"], VARIANTS["kornia"]["xxs"]
    rows = []
    for name in ("head_dim", "qkv_bias", "closing_norm", "proj_norm_act"):
        rows.append((f"``{name}``", *(f"``{getattr(config, name)}``" for config in (apple, kornia))))
    ratios = (", ".join(str(s.ffn_ratio) for s in config.stages if s.depth) for config in (apple, kornia))
    rows.append(("``ffn_ratio`` of stages 3, 4, 5", *ratios))
    for mode in VARIANTS["kornia"]:
        counts = (count_parameters(MobileViT(mode, variant=variant)) for variant in VARIANTS)
        rows.append((f"parameters of the ``{mode}`` backbone", *counts))
    return list_table(("field", "``'apple'``", "``'kornia'``"), rows, (46, 27, 27))


def model_table() -> str:
    """Count the parameters and products of each task's model."""
    rows = []
    for mode in VARIANTS["apple"]:
        for model, size in (
            (MobileViTClassifier(mode), 256),
            (DeepLabV3(mode, num_classes=21), 512),
            (SSDLite(mode, num_classes=81), 320),
        ):
            row = (f":class:`~kornia_mvit.{type(model).__name__}`", f"``{mode}``", count_parameters(model))
            rows.append((*row, f"{size}×{size}", count_macs(model, size)))
    for width in (0.5, 1.0, 2.0):
        with torch.device("meta"):
            second = (
                (MobileViTV2Classifier(width), 256),
                (DeepLabV3(mode_name(width), num_classes=21), 512),
                (SSDLite(mode_name(width), num_classes=81), 320),
            )
        for model, size in second:
            row = (f":class:`~kornia_mvit.{type(model).__name__}`", f"``{mode_name(width)}``", count_parameters(model))
            rows.append((*row, f"{size}×{size}", count_macs(model, size)))
    order = sorted(rows, key=lambda row: row[0])
    return list_table(("model", "mode", "parameters", "image", "multiply-accumulates"), order)


# ----------------------------------------------------------------------------------------------------------- weights


def weights_table() -> str:
    """Return what is known of the published weights."""
    rows = []
    for record in map(find_weights, list_weights()):
        score = ", ".join(f"{name} {value:g}" for name, value in record.score.items())
        source = record.source.removeprefix("https://docs-assets.developer.apple.com/ml-research/models/")
        rows.append(
            (
                f"| ``{record.name}``\n       | {source}",
                record.channel_order.upper(),
                score,
                escape(record.licence),
            )
        )
    return list_table(
        ("name, and file or repository of the hub", "order", "score in percent", "licence"), rows, (42, 9, 21, 28)
    )


# ---------------------------------------------------------------------------------------------------------- benchmarks


def pipeline_table(path: Path) -> str:
    """Return the times of ``benchmarks/pipeline.py`` as ratios to bare Kornia's."""
    results: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text(encoding="utf-8"))["results"]
    names = list(dict.fromkeys(name for contestants in results.values() for name in contestants))
    rows = []
    for case, contestants in results.items():
        cells = (contestants.get(name) for name in names)
        ratios = (f"{cell['ratio_median']:.2f} ({cell['ratio_of_bests']:.2f})" if cell else "" for cell in cells)
        rows.append((case, *ratios))
    return list_table(("median of ratios", *names), rows)


# --------------------------------------------------------------------------------------------------------------- moved


def moved_table() -> str:
    """Return the import paths of 0.1 that forward, and the new ones."""
    rows = [(f"``{old}``", f"``{new}``") for old, new in MOVED.items()]
    rows += [(f"``{old}.{name}``", f"``{new}.{name}``") for old, names in NAMES.items() for name, new in names.items()]
    return list_table(("0.1, below ``kornia_mvit``", "0.2"), sorted(rows), (50, 50))


# -------------------------------------------------------------------------------------------------------------- extras


def extras_table(path: Path) -> str:
    """Say what each extra of ``pyproject.toml`` is for and brings along, and what is needed without any.

    Raises:
        ValueError: for an extra that is not described here, or one that is and does not exist.
    """
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    if extras.keys() != EXTRAS.keys():
        raise ValueError(f"extras are {', '.join(extras)}; described are {', '.join(EXTRAS)}")
    rows = [("none", "networks, weights, augmentation, test-time augmentation", literal(project["dependencies"]))]
    rows += [(f"``{name}``", EXTRAS[name], literal(packages)) for name, packages in extras.items()]
    return list_table(("extra", "what it is for", "packages"), rows, (12, 38, 50))


def literal(names: Iterable[str]) -> str:
    """List names as code."""
    return ", ".join(f"``{name}``" for name in names)
