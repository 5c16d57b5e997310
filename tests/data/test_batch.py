"""Batch: images and their targets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import Batch


def samples(count=3):
    return [
        {"image": torch.full((3, 4, 5), i, dtype=torch.uint8), "label": i, "meta": {"path": f"{i}.png"}}
        for i in range(count)
    ]


class TestBatch:
    def test_smoke(self):
        batch = Batch.collate(samples())
        assert len(batch) == 3
        assert batch.image.shape == (3, 3, 4, 5)
        assert torch.equal(batch.label, torch.arange(3))
        assert batch.meta == [{"path": "0.png"}, {"path": "1.png"}, {"path": "2.png"}]

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"image": torch.zeros(3, 4, 4)}, ValueError, "expected images of shape (B, C, H, W), got (3, 4, 4)"),
            ({"image": torch.zeros(1, 3, 4, 4, dtype=torch.int64)}, TypeError, "got torch.int64"),
            ({"label": torch.zeros(3, dtype=torch.long)}, ValueError, "2 images, but label has 3 entries"),
            ({"meta": [{}]}, ValueError, "2 images, but meta has 1 entries"),
            ({"label": torch.zeros(2)}, ValueError, "integer labels of shape (B,) or soft ones (B, K)"),
            ({"label": torch.zeros(2, 1, dtype=torch.long)}, ValueError, "got torch.int64 (2, 1)"),
        ],
    )
    def test_exception(self, arguments, error, message):
        with pytest.raises(error) as raised:
            Batch(**{"image": torch.zeros(2, 3, 4, 4), **arguments})
        assert message in str(raised.value)

    def test_exception_of_collate(self):
        a, b, c = samples()
        with pytest.raises(ValueError, match="no samples"):
            Batch.collate([])
        with pytest.raises(ValueError, match="sample 1 has the fields"):
            Batch.collate([a, {"image": b["image"]}])
        with pytest.raises(ValueError, match="several dtypes or numbers of channels"):
            Batch.collate([a, {**b, "image": b["image"][:2]}])
        with pytest.raises(ValueError, match="NaN"):
            Batch.collate([{**c, "image": torch.full((3, 4, 5), torch.nan)}])
        with pytest.raises(ValueError, match="values from 0 to 2"):
            Batch.collate([{**c, "image": torch.tensor([0.0, 2.0, 1.0]).view(3, 1, 1)}])

    def test_absent_fields_stay_absent(self):
        batch = Batch.collate([{"image": torch.rand(3, 4, 4)}] * 2)
        assert batch.label is None
        assert batch.meta is None
        assert batch[:1].label is None
        assert batch.to("cpu").meta is None
        assert batch.sample(0).keys() == {"image"}

    def test_moves_to_a_device(self, device):
        batch = Batch.collate(samples()).to(device)
        assert batch.image.device.type == batch.label.device.type == device.type
        assert Batch.collate(samples()).to("meta").image.is_meta

    def test_refuses_a_single_number(self):
        with pytest.raises(TypeError, match=r"write batch.sample\(1\)"):
            Batch.collate(samples())[1]

    @given(
        count=st.integers(1, 6),
        data=st.data(),
    )
    def test_indexing_is_that_of_a_list(self, count, data):
        batch = Batch.collate(samples(count))
        everything = list(range(count))
        rows = data.draw(st.lists(st.sampled_from(everything), max_size=5), label="rows")
        cut = slice(data.draw(st.integers(-7, 7)), data.draw(st.integers(-7, 7)))
        mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count), label="mask"))
        for index, expected in (
            (rows, rows),
            (torch.tensor(rows, dtype=torch.long), rows),
            (cut, everything[cut]),
            (mask, [i for i in everything if mask[i]]),
        ):
            part = batch[index]
            assert part.label.tolist() == expected
            assert part.image[:, 0, 0, 0].tolist() == expected
            assert [entry["path"] for entry in part.meta] == [f"{i}.png" for i in expected]

    @given(count=st.integers(1, 5))
    def test_collate_undoes_sample(self, count):
        batch = Batch.collate(samples(count))
        again = Batch.collate([batch.sample(i) for i in range(count)])
        assert torch.equal(again.image, batch.image)
        assert torch.equal(again.label, batch.label)
        assert again.meta == batch.meta
