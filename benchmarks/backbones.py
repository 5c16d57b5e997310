"""Check what a backbone should do on this package's networks and on timm's, and write what is found as JSON.

python benchmarks/backbones.py --json runs/backbones.json
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from common import stamp, write
from hypothesis.strategies import SearchStrategy
from kornia.models.vit_mobile import MobileViT as KorniaMobileViT
from torch import nn

from kornia_mvit import DeepLabV3, MobileViT, MobileViTClassifier, MobileViTV2, MobileViTV2Classifier, SSDLite
from kornia_mvit.testing import Status, check_backbone
from kornia_mvit.testing.strategies import image_sizes

Sizes = SearchStrategy[tuple[int, int]] | list[tuple[int, int]]


def peer(name: str) -> Callable[[], nn.Module]:
    """Return a function that builds one of timm's networks."""
    return lambda: timm.create_model(name, pretrained=False)


NORMAL: Sizes = image_sizes(max_side=96)
SMALL: Sizes = image_sizes(min_side=1, max_side=96)
CASES: list[tuple[str, Callable[[], nn.Module], str, Sizes]] = [
    ("MobileViT xxs", lambda: MobileViT("xxs"), "32 to 96", NORMAL),
    ("MobileViTClassifier xs", lambda: MobileViTClassifier("xs"), "32 to 96", NORMAL),
    ("MobileViTClassifier s, kornia", lambda: MobileViTClassifier("s", variant="kornia"), "32 to 96", NORMAL),
    ("MobileViTV2 0.5", lambda: MobileViTV2(0.5), "32 to 96", NORMAL),
    ("MobileViTV2Classifier 0.5", lambda: MobileViTV2Classifier(0.5), "32 to 96", NORMAL),
    ("DeepLabV3 xxs", lambda: DeepLabV3("xxs"), "32 to 96", NORMAL),
    ("SSDLite xxs", lambda: SSDLite("xxs"), "32 to 96", NORMAL),
    ("MobileViT xxs", lambda: MobileViT("xxs"), "1 to 96", SMALL),
    ("Kornia MobileViT xxs", lambda: KorniaMobileViT("xxs"), "32 to 96", NORMAL),
    ("Kornia MobileViT xxs", lambda: KorniaMobileViT("xxs"), "64 and 128", image_sizes(64, min_side=64)),
    ("timm mobilevit_xxs", peer("mobilevit_xxs"), "32 to 96", NORMAL),
    ("timm mobilevit_xxs", peer("mobilevit_xxs"), "1 to 96", SMALL),
    ("timm mobilevitv2_050", peer("mobilevitv2_050"), "32 to 96", NORMAL),
    ("timm resnet18", peer("resnet18"), "32 to 96", NORMAL),
    ("timm resnet18", peer("resnet18"), "1 to 96", SMALL),
    ("timm vit_tiny_patch16_224", peer("vit_tiny_patch16_224"), "32 to 96", NORMAL),
    ("timm vit_tiny_patch16_224", peer("vit_tiny_patch16_224"), "224", [(224, 224)]),
]


def main() -> None:
    """Check, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10, help="sizes that each property is tried on (10)")
    parser.add_argument("--json", type=Path, help="where to write what was found")
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for name, factory, range_, sizes in CASES:
        report = check_backbone(factory, sizes=sizes, max_examples=arguments.examples, raise_on_failure=False)
        print(f"{name}, sides of {range_} px\n{report}\n", flush=True)
        counts = {status.value: sum(r.status is status for r in report.results) for status in Status}
        found.append({"name": name, "sides": range_, "counts": counts, **report.to_dict()})
    write(arguments.json, stamp(examples=arguments.examples, reports=found))


if __name__ == "__main__":
    main()
