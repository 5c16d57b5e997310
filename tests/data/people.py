"""Pictures of people whose 17 keypoints are single pixels, with their annotations as COCO and YOLO write them."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

NAMES = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()
SKELETON = [  # COCO's, of numbers from 1
    *([16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9], [8, 10], [9, 11]),
    *([2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7]),
]
FLIP_IDX = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
# Seen from the front, so that the left hand is on the right of the picture.
PLACES = (
    *((20, 8), (22, 6), (18, 6), (24, 7), (16, 7), (28, 16), (12, 16), (33, 26), (8, 27), (37, 18), (5, 37)),
    *((25, 36), (15, 36), (27, 48), (14, 48), (28, 58), (13, 58)),
)
RED = 255  # of the pixels of keypoints; everything else has less


def draw_people(number: int, size: tuple[int, int] = (97, 131)) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Return a picture, and for each person on it its box (x, y, width, height) and keypoints as COCO has them."""
    generator = torch.Generator().manual_seed(number)
    height, width = size
    picture = Image.new("RGB", (width, height), (205, 215, 225))
    pen, people = ImageDraw.Draw(picture), []
    for place in range(number % 3):
        left, top = 3 + 62 * place, int(torch.randint(2, height - 62, (1,), generator=generator))
        points = [(left + x, top + y) for x, y in PLACES]
        states = torch.randint(0, 8, (17,), generator=generator).clamp_max(2).tolist()
        for a, b in SKELETON:
            sides = {NAMES[k - 1].partition("_")[0] for k in (a, b)}
            colour = {"left": (40, 160, 60), "right": (60, 90, 200)}.get(
                min(sides) if len(sides) == 1 else "", (90,) * 3
            )
            pen.line((*points[a - 1], *points[b - 1]), fill=colour, width=2)
        for k, (x, y) in enumerate(points):
            picture.putpixel((x, y), (RED, 10 * k, 10 * place))
        keypoints = [
            v for (x, y), state in zip(points, states, strict=True) for v in ((x, y, state) if state else (0, 0, 0))
        ]
        people.append({"bbox": [left + 3, top + 3, 36, 58], "keypoints": keypoints})
    return picture, people


def make_coco_people(root: Path, count: int = 4) -> Path:
    """Write a folder as COCO's person keypoints: annotations of train and val, and their images."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for number in range(count):
            picture, people = draw_people(number + (split == "val"))
            name = f"{number:012}.png"
            picture.save(root / f"{split}2017" / name)
            size = {"height": picture.height, "width": picture.width}
            images.append({"id": number + 1, "file_name": name, **size})
            for person in people:
                annotations.append(
                    {
                        **person,
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": 1,
                        "num_keypoints": sum(state > 0 for state in person["keypoints"][2::3]),
                        "area": 0.5 * person["bbox"][2] * person["bbox"][3],
                        "iscrowd": 0,
                        "segmentation": [],
                    }
                )
        category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": NAMES, "skeleton": SKELETON}
        data = {"info": {}, "images": images, "annotations": annotations, "categories": [category]}
        (root / "annotations" / f"person_keypoints_{split}2017.json").write_text(json.dumps(data))
    return root


def make_yolo_people(root: Path, count: int = 4, width: int = 3, **described: Any) -> Path:
    """Write a folder as YOLO's pose: images, labels with keypoints behind the boxes, and a data.yaml."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            picture, people = draw_people(number + (split == "val"))
            picture.save(root / "images" / split / f"{number}.png")
            w, h = picture.size
            lines = []
            for person in people:
                x, y, across, down = person["bbox"]
                row = [(x + across / 2) / w, (y + down / 2) / h, across / w, down / h]
                for k in range(17):
                    px, py, state = person["keypoints"][3 * k : 3 * k + 3]
                    point = [(px + 0.5) / w, (py + 0.5) / h] if state else [0, 0]
                    row += [*point, state][:width]
                lines.append("0 " + " ".join(f"{v:.6f}" if isinstance(v, float) else str(v) for v in row))
            if lines:
                (root / "labels" / split / f"{number}.txt").write_text("\n".join(lines) + "\n")
    described = {"names": ["person"], "kpt_shape": [17, width], "flip_idx": FLIP_IDX} | described
    (root / "data.yaml").write_text(
        "\n".join(f"{key}: {json.dumps(value)}" for key, value in described.items() if value is not None)
    )
    return root
