"""What real open_clip models return, as pairs to select from."""

import pytest
import torch

from jestcli.selection import PairEmbeddings, select

open_clip = pytest.importorskip("open_clip")

TOWER = dict(
    embed_dim=16,
    vision_cfg=dict(image_size=16, layers=1, width=16, head_width=8, patch_size=8),
    text_cfg=dict(context_length=8, vocab_size=64, width=16, heads=2, layers=1),
)
IMAGES, TEXTS = torch.randn(12, 3, 16, 16), torch.randint(1, 64, (12, 8))


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("output_dict", [False, True])
@pytest.mark.parametrize("bias", [None, -10.0])
def test_every_output_of_a_model(kind, output_dict, bias):
    torch.manual_seed(0)
    settings = dict(init_logit_scale=2.3026, init_logit_bias=bias)
    model = getattr(open_clip.model, kind)(**TOWER, **settings, output_dict=output_dict)
    out = model(IMAGES, TEXTS)
    pairs = PairEmbeddings.from_open_clip(out)
    assert torch.equal(pairs.image, model.encode_image(IMAGES, normalize=True))
    assert torch.equal(pairs.text, model.encode_text(TEXTS, normalize=True))
    assert float(pairs.scale) == pytest.approx(10.0, rel=1e-4)
    assert float(pairs.bias) == (0.0 if bias is None else bias)
    assert not pairs.image.requires_grad and not torch.as_tensor(pairs.scale).requires_grad
    chosen = select(pairs, pairs, size=5)
    by_hand = PairEmbeddings(pairs.image, pairs.text, 10.0, bias or 0.0)
    assert torch.equal(chosen, select(by_hand, by_hand, size=5))


def test_other_entries_are_passed_over():
    model = open_clip.model.CLIP(**TOWER, output_dict=True)
    out = {**model(IMAGES, TEXTS), "logits": torch.zeros(12, 8, 64), "dist_logit_scale": 1.0}
    assert len(PairEmbeddings.from_open_clip(out)) == 12


@pytest.mark.parametrize("output_dict", [False, True])
def test_a_missing_side_is_named(output_dict):
    model = open_clip.model.CLIP(**TOWER, output_dict=output_dict)
    with pytest.raises(ValueError, match="open_clip's output has no text_features"):
        PairEmbeddings.from_open_clip(model(IMAGES, None))
